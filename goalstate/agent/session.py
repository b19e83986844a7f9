"""The session of an agent process with the publisher that serves its region.

It opens one when there is something to follow, goes where the publisher says that another one
serves, and tries again for as long as it takes: hosts keep what they have meanwhile. It waits
longer after each attempt that failed, and for a time that is spread at random, so that many agents
do not come back at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

import grpc
import structlog

from goalstate.agent.follows import Follows, SessionReader
from goalstate.bus.base import Sink
from goalstate.gs.pb.goalstate.session.v1 import session_pb2, session_pb2_grpc
from goalstate.gs.sharding import SHARD
from goalstate.gs.streams import StreamId
from goalstate.process import ACTIVE_ADDRESS, DIRECTLY, MAX_GRPC_BYTES

log = structlog.get_logger()

#: Seconds before another attempt: doubled at each failure up to the second number.
BACKOFF_S = (0.1, 5.0)
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_GRPC_BYTES),
    DIRECTLY,
    # A publisher that is gone without a word is noticed within the sum of these (milliseconds),
    # however long nothing was said: by itself gRPC asks less often then.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # How long to wait for a connection is decided here.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class SessionClient:
    """Opens readers as a bus does, on the one session of the process."""

    def __init__(
        self, addresses: Sequence[str], random: Random | None = None, *, shard: int | None = None
    ) -> None:
        """`addresses`: HOST:PORT of publishers of the region, tried in turn. `shard`: whose streams
        they are, where the region is divided."""
        self.follows = Follows()
        #: Sessions that were open so far, and whether one is.
        self.opened = 0
        self.is_open = False
        self._addresses = list(addresses)
        self._metadata = () if shard is None else ((SHARD, str(shard)),)
        self._random = random or Random()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> SessionReader:
        """Raises ValueError for what is no session's. What is asked for may come much later."""
        stream = StreamId.parse(topic.partition(":")[2])
        reader = self.follows.attach(stream, start, sink)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        self._wanted.set()
        return reader

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        failures = turn = 0
        named = told = ""
        while True:
            if not len(self.follows):
                self._wanted.clear()
                await self._wanted.wait()
            # The last that was named stays one of them: of those given, none may be there.
            addresses = [*self._addresses, *({told} - {"", *self._addresses})]
            address = named or addresses[turn % len(addresses)]
            before = self.opened
            try:
                named = await self._session(address)
            except Exception:  # a defect must not end it for good
                log.exception("session failed", dpm=address)
                named = ""
            if self.opened > before:
                failures = 0
            if named == address:
                named = ""  # it says so, and does not serve
            told = named or told
            if not named:
                turn += 1
            failures += 1
            longest = min(BACKOFF_S[0] * 2 ** min(failures - 1, 10), BACKOFF_S[1])
            await asyncio.sleep(longest * (0.5 + 0.5 * self._random.random()))

    async def _session(self, address: str) -> str:
        """One session, to its end. Gives the address at which another one is to be opened, if the
        publisher named one."""
        requests: asyncio.Queue[session_pb2.Request] = asyncio.Queue()
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            stub: Any = session_pb2_grpc.StreamSessionsStub(channel)
            call = stub.Open(_each(requests), metadata=self._metadata)
            try:
                # A publisher that serves answers with these before it has anything to tell.
                await call.initial_metadata()
                if not call.done():
                    self.is_open = True
                    self.opened += 1
                    log.info("session open", dpm=address)
                    self.follows.connected(requests.put_nowait)
                async for carried in call:
                    self.follows.take(carried)
                log.info("session ended", dpm=address)
            except grpc.aio.AioRpcError as error:
                log.info("no session", dpm=address, reason=error.details())
                metadata = dict(error.trailing_metadata() or ())
                return str(metadata.get(ACTIVE_ADDRESS, ""))
            finally:
                self.is_open = False
                self.follows.disconnected()
                call.cancel()
        return ""


async def _each(
    requests: asyncio.Queue[session_pb2.Request],
) -> AsyncIterator[session_pb2.Request]:
    while True:
        yield await requests.get()
