"""etcd: a key for each resource and a watch for each host, as Calico's agents have them without
Typha.

The client is etcd's gRPC API, by the stubs that `aetcd` ships: its own watcher makes an object of
each event, which for ten million of them would be all that is measured.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from bench.peers import servers
from bench.peers.base import CONNECTIONS, Arrived, Entry, Hosts, Place, Source, Work
from bench.peers.dealing import dealt
from goalstate.bus.process import Child, free_ports

#: Puts of one transaction (etcd takes 128), and transactions under way at once.
_PUTS = 100
_AT_ONCE = 10
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class Etcd:
    address: str
    version: str
    servers: tuple[int, ...]
    name: str = "etcd watch"
    how: str = (
        f"a key for each resource, put in transactions of {_PUTS}, {_AT_ONCE} at a time; a watch "
        f"for each host, over {CONNECTIONS} connections; who joins asks for the range, then watches"
    )
    no_late: str | None = None
    publishers: tuple[int, ...] = ()

    def units(self, work: Work) -> int:
        return len(work.entries())

    def source(self, work: Work, hosts: int) -> Source:
        return _Putter(self, work)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        return _Watchers(self, vpc, range(first, first + number), late)


def start(place: Place) -> Etcd:
    program = servers.find("etcd-server", "usr/bin/etcd", place.progress)
    clients, peers = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    data = place.scratch / "etcd"
    command = [str(program.path), "--name", "bench", "--data-dir", str(data)]
    command += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
    command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
    command += ["--initial-cluster", f"bench={peers}", "--log-level", "error"]
    command += ["--quota-backend-bytes", str(8 << 30)]
    env = {k: v for k, v in program.env.items() if not k.startswith("ETCD_")}
    child = Child(command, what="etcd", log=place.scratch / "etcd.log", env=env)
    place.stack.callback(partial(shutil.rmtree, data, ignore_errors=True))
    place.stack.callback(child.stop)
    address = clients.removeprefix("http://")
    child.await_ready(partial(servers.listens, int(address.rpartition(":")[2])), place.progress)
    found = servers.said(program, "--version").replace(" Version:", "")
    return Etcd(address, f"{found}, aetcd {version('aetcd')}", (child.pid,))


def _channel(address: str) -> Any:
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def _key(vpc: str, id_: str) -> bytes:
    return f"/{vpc}/{id_}".encode()


class _Putter:
    def __init__(self, peer: Etcd, work: Work) -> None:
        self._address = peer.address
        self._work = work
        self._entries = work.entries()

    async def open(self) -> None:
        self._connection = _channel(self._address)
        self._calls = rpc_pb2_grpc.KVStub(self._connection)

    async def begin(self, vpc: str) -> None: ...

    async def state(self, vpc: str) -> None:
        free = asyncio.Semaphore(_AT_ONCE)

        async def put(entries: Sequence[Entry]) -> None:
            async with free:
                await self._put(vpc, entries)

        pieces = range(0, len(self._entries), _PUTS)
        await asyncio.gather(*(put(self._entries[place : place + _PUTS]) for place in pieces))

    async def change(self, vpc: str, number: int) -> None:
        await self._put(vpc, [self._work.changed(number)])

    async def _put(self, vpc: str, entries: Sequence[Entry]) -> None:
        puts = [
            rpc_pb2.RequestOp(
                request_put=rpc_pb2.PutRequest(key=_key(vpc, entry.id), value=entry.payload)
            )
            for entry in entries
        ]
        await self._calls.Txn(rpc_pb2.TxnRequest(success=puts))

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        await self._connection.close()


class _Watchers:
    def __init__(self, peer: Etcd, vpc: str, hosts: range, late: bool) -> None:
        self._address = peer.address
        #: The keys from the one to the other, as etcd says a prefix.
        self._range = {"key": _key(vpc, ""), "range_end": f"/{vpc}0".encode()}
        self._hosts = hosts
        self._late = late
        self._channels: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        self._channels = [_channel(self._address) for _ in dealt(self._hosts)]
        for channel in self._channels:
            await channel.channel_ready()

    async def follow(self, arrived: Arrived) -> None:
        dealing = zip(self._channels, dealt(self._hosts), strict=True)
        await asyncio.gather(*(self._follow(channel, hosts, arrived) for channel, hosts in dealing))

    async def _follow(self, channel: Any, hosts: range, arrived: Arrived) -> None:
        revisions = [0] * len(hosts)
        if self._late:
            asking = (self._state(channel, host, arrived) for host in hosts)
            revisions = await asyncio.gather(*asking)
        stream = rpc_pb2_grpc.WatchStub(channel).Watch()
        ready = asyncio.Event()
        self._tasks.append(asyncio.create_task(_read(stream, hosts, arrived, ready)))
        for place, revision in enumerate(revisions):
            after = {"start_revision": revision + 1} if revision else {}
            create = rpc_pb2.WatchCreateRequest(**self._range, **after, watch_id=place + 1)
            await stream.write(rpc_pb2.WatchRequest(create_request=create))
        await ready.wait()

    async def _state(self, channel: Any, host: int, arrived: Arrived) -> int:
        """Gives the revision that it is of."""
        reply = await rpc_pb2_grpc.KVStub(channel).Range(rpc_pb2.RangeRequest(**self._range))
        arrived(host, len(reply.kvs))
        revision: int = reply.header.revision
        return revision

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._channels:
            await channel.close()


async def _read(stream: Any, hosts: range, arrived: Arrived, ready: asyncio.Event) -> None:
    created = 0
    async for reply in stream:
        if reply.created:
            created += 1
            if created == len(hosts):
                ready.set()
        elif reply.events:
            arrived(hosts[reply.watch_id - 1], len(reply.events))
