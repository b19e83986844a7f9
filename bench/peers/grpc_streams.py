"""gRPC unicast: a server that holds a stream for each host, and writes each message to every one.

Messages are bytes already, so that nothing is serialized for each host anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import grpc

from bench.hold import Sent
from bench.peers.base import CONNECTIONS, Arrived, Hosts, Place, Source, Work
from bench.peers.dealing import dealt
from goalstate.bus.process import free_ports

_METHOD = "/bench.Peers/Follow"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
#: First bytes of a request: who joins late gets the state.
_LATE, _NEW = b"L", b"N"


@dataclass(frozen=True)
class Streams:
    address: str
    version: str
    name: str = "gRPC streams"
    how: str = (
        f"the publisher is the server; a stream for each host, over {CONNECTIONS} connections; "
        "no compression, since gRPC compresses for each stream anew"
    )
    no_late: str | None = None
    publishers: tuple[int, ...] = ()
    servers: tuple[int, ...] = ()

    def units(self, work: Work) -> int:
        return len(work.state)

    def source(self, work: Work, hosts: int) -> Source:
        return _Server(self.address, work)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        return _Followers(self.address, vpc, range(first, first + number), late)


def start(place: Place) -> Streams:
    (port,) = free_ports(1)
    return Streams(f"127.0.0.1:{port}", f"grpcio {version('grpcio')}")


class _Server(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, address: str, work: Work) -> None:
        self._address = address
        self._work = work
        self._streams: dict[str, set[asyncio.Queue[bytes]]] = {}

    def service(self, details: Any) -> Any:
        if details.method == _METHOD:
            return grpc.unary_stream_rpc_method_handler(self._follow)
        return None

    async def _follow(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        vpc = request[1:].decode()
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._streams.setdefault(vpc, set()).add(queue)
        try:
            yield b""  # it follows
            if request[:1] == _LATE:
                for sent in self._work.state:
                    yield sent.payload
            while True:
                yield await queue.get()
        finally:
            self._streams[vpc].discard(queue)

    async def open(self) -> None:
        self._server = grpc.aio.server(handlers=[self], options=_OPTIONS)
        self._server.add_insecure_port(self._address)
        await self._server.start()

    async def begin(self, vpc: str) -> None: ...

    async def state(self, vpc: str) -> None:
        self._write(vpc, self._work.state)

    async def change(self, vpc: str, number: int) -> None:
        self._write(vpc, self._work.changes[number : number + 1])

    def _write(self, vpc: str, messages: tuple[Sent, ...]) -> None:
        for queue in self._streams.get(vpc, ()):
            for sent in messages:
                queue.put_nowait(sent.payload)

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        await self._server.stop(None)


class _Followers:
    def __init__(self, address: str, vpc: str, hosts: range, late: bool) -> None:
        self._address = address
        self._request = (_LATE if late else _NEW) + vpc.encode()
        self._hosts = hosts
        self._channels: list[Any] = []
        self._reading: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        count = min(CONNECTIONS, len(self._hosts))
        self._channels = [
            grpc.aio.insecure_channel(self._address, options=_OPTIONS) for _ in range(count)
        ]
        for channel in self._channels:
            await channel.channel_ready()

    async def follow(self, arrived: Arrived) -> None:
        following = []
        for channel, hosts in zip(self._channels, dealt(self._hosts), strict=True):
            call = channel.unary_stream(_METHOD)
            for host in hosts:
                ready = asyncio.Event()
                stream = call(self._request)
                task = asyncio.create_task(self._read(stream, host, arrived, ready))
                self._reading.append(task)
                following.append(ready.wait())
        await asyncio.gather(*following)

    async def _read(self, stream: Any, host: int, arrived: Arrived, ready: asyncio.Event) -> None:
        async for message in stream:
            if message:
                arrived(host, 1)
            else:
                ready.set()

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        for channel in self._channels:
            await channel.close()
