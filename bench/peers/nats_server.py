"""NATS: core, which keeps nothing, and JetStream, a stream on disk with ordered consumers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy, StorageType, StreamConfig

from bench.peers import servers
from bench.peers.base import CONNECTIONS, Arrived, Hosts, Place, Source, Work
from bench.peers.dealing import dealt
from goalstate.bus.process import Child, free_ports

#: A whole state may wait for each host of a connection, in bytes; by default such a client is cut.
_CONFIGURATION = """\
host: 127.0.0.1
port: {port}
max_payload: 8MB
max_pending: 4GB
write_deadline: "120s"
jetstream {{ store_dir: "{store}", max_file_store: 8GB }}
"""


@dataclass(frozen=True)
class Nats:
    url: str
    version: str
    servers: tuple[int, ...]
    stream: bool
    publishers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return "NATS JetStream" if self.stream else "NATS core"

    @property
    def how(self) -> str:
        kind = "an ordered consumer" if self.stream else "a subscription"
        kept = "a stream for the VPC, on files; " if self.stream else ""
        return f"{kept}{kind} for each host, over {CONNECTIONS} connections; it has no compression"

    @property
    def no_late(self) -> str | None:
        return None if self.stream else "it keeps nothing for who comes late"

    def units(self, work: Work) -> int:
        return len(work.state)

    def source(self, work: Work, hosts: int) -> Source:
        return _Publisher(self, work)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        return _Subscribers(self, vpc, range(first, first + number), late)


def start(place: Place, *, stream: bool) -> Nats:
    program = servers.find("nats-server", "usr/sbin/nats-server", place.progress)
    (port,) = free_ports(1)
    store = place.scratch / "nats"
    configuration = place.scratch / "nats.conf"
    configuration.write_text(_CONFIGURATION.format(port=port, store=store), "utf-8")
    child = Child(
        [str(program.path), "--config", str(configuration)],
        what="NATS",
        log=place.scratch / "nats.log",
        env=program.env,
    )
    place.stack.callback(partial(shutil.rmtree, store, ignore_errors=True))
    place.stack.callback(child.stop)
    child.await_ready(partial(servers.listens, port), place.progress)
    found = f"{servers.said(program, '--version')}, nats-py {version('nats-py')}"
    return Nats(f"nats://127.0.0.1:{port}", found, (child.pid,), stream)


async def _connected(url: str) -> Any:
    return await nats.connect(url, max_outstanding_pings=60, pending_size=64 << 20)


class _Publisher:
    def __init__(self, peer: Nats, work: Work) -> None:
        self._peer = peer
        self._work = work

    async def open(self) -> None:
        self._client = await _connected(self._peer.url)
        stream = self._client.jetstream(timeout=30)
        self._publish: Callable[..., Awaitable[Any]] = (
            stream.publish if self._peer.stream else self._client.publish
        )

    async def begin(self, vpc: str) -> None:
        if self._peer.stream:
            await self._client.jetstream().add_stream(
                StreamConfig(name=vpc, subjects=[vpc], storage=StorageType.FILE)
            )

    async def state(self, vpc: str) -> None:
        await asyncio.gather(*(self._publish(vpc, sent.payload) for sent in self._work.state))
        await self._client.flush(60)

    async def change(self, vpc: str, number: int) -> None:
        await self._publish(vpc, self._work.changes[number].payload)
        if not self._peer.stream:
            await self._client.flush()

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        await self._client.close()


class _Subscribers:
    def __init__(self, peer: Nats, vpc: str, hosts: range, late: bool) -> None:
        self._peer = peer
        self._vpc = vpc
        self._hosts = hosts
        self._policy = DeliverPolicy.ALL if late else DeliverPolicy.NEW
        self._clients: list[Any] = []

    async def connect(self) -> None:
        self._clients = [await _connected(self._peer.url) for _ in dealt(self._hosts)]

    async def follow(self, arrived: Arrived) -> None:
        async def follow(client: Any, hosts: range) -> None:
            for host in hosts:
                await self._subscribe(client, partial(_take, arrived, host))
            await client.flush(60)

        dealing = zip(self._clients, dealt(self._hosts), strict=True)
        await asyncio.gather(*(follow(client, hosts) for client, hosts in dealing))

    async def _subscribe(self, client: Any, take: Callable[[Any], Awaitable[None]]) -> None:
        if self._peer.stream:
            await client.jetstream(timeout=60).subscribe(
                self._vpc,
                stream=self._vpc,
                cb=take,
                ordered_consumer=True,
                config=ConsumerConfig(deliver_policy=self._policy),
            )
        else:
            await client.subscribe(self._vpc, cb=take)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


async def _take(arrived: Arrived, host: int, message: Any) -> None:
    arrived(host, 1)
