"""Followers that do nothing: each stands for an agent process, and only notes what comes.

A process of its own plays many of them, over sessions or on a topic. Each has a connection of its
own, as agent processes have: what a connection costs publisher and broker is in the measurement,
and what an agent does with a message is not.
"""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from time import process_time, time_ns
from typing import Any, NamedTuple, Self

import grpc
import pulsar

from bench.alone import Answering
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import Mark, StreamId

#: Seconds for all of them to be there, and for what is expected to come.
_OPEN_S = 120.0
_COME_S = 60.0
#: So many are opened at once.
_AT_ONCE = 16
_OPEN = f"/{session_pb2.DESCRIPTOR.services_by_name['StreamSessions'].full_name}/Open"
_OPTIONS = (
    # Otherwise all channels to one address share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Came(NamedTuple):
    """All that was expected is there."""

    #: When the last follower had the last message, ns since the epoch.
    last_ns: int
    #: Processor seconds that the followers' process has used so far.
    cpu_s: float


class Followers(Answering):
    """The process. To be used in a `with`."""

    def __init__(self, serve: Callable[[Connection], None]) -> None:
        """Raises TimeoutError, and EOFError if the process failed."""
        super().__init__(
            serve,
            open_s=_OPEN_S,
            close_s=20,
            too_late="what was published did not reach all followers in time",
        )

    @classmethod
    def of_sessions(cls, count: int, address: str, stream: StreamId, mark: Mark) -> Self:
        """So many sessions, on each of which a stream is followed from a mark on."""
        return cls(partial(_serve_sessions, count, address, stream, mark))

    @classmethod
    def of_topic(cls, count: int, url: str, topic: str) -> Self:
        """So many clients, each with a reader at the end of a topic."""
        return cls(partial(_serve_topic, count, url, topic))

    def expect(self, messages: int) -> float:
        """So many are to come to each follower from now on. Gives the processor seconds that the
        followers' process has used so far."""
        self.ask(messages)
        used: float = self.answer(_COME_S)
        return used

    def await_all(self) -> Came:
        """Until they are there. Raises TimeoutError."""
        came: Came = self.answer(_COME_S)
        return came


class _Tally:
    """Who has got how much of what is expected."""

    def __init__(self, followers: int) -> None:
        self._followers = followers
        self._lock = threading.Lock()
        self._got: list[int] = []
        self._expected = self._waiting = 0

    def expect(self, messages: int) -> None:
        self._got = [0] * self._followers
        self._expected, self._waiting = messages, self._followers

    def note(self, follower: int) -> Came | None:
        """One came; of the last one it is said that it was that."""
        self._got[follower] += 1
        if self._got[follower] != self._expected:
            return None
        with self._lock:
            self._waiting -= 1
            return None if self._waiting else Came(time_ns(), process_time())


def _use_all_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve_topic(count: int, url: str, topic: str, pipe: Connection) -> None:
    _use_all_files()
    logger = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
    tally = _Tally(count)
    tally.expect(0)

    def listener(follower: int, reader: Any, message: Any) -> None:
        came = tally.note(follower)
        if came is not None:
            pipe.send(came)

    def follow(follower: int) -> Any:
        client = pulsar.Client(url, logger=logger)
        client.create_reader(
            topic, pulsar.MessageId.latest, reader_listener=partial(listener, follower)
        )
        return client

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        clients = list(pool.map(follow, range(count)))
        pipe.send(count)
        try:
            while True:
                tally.expect(pipe.recv())
                pipe.send(process_time())
        except EOFError:
            list(pool.map(lambda client: client.close(), clients))


def _serve_sessions(
    count: int, address: str, stream: StreamId, mark: Mark, pipe: Connection
) -> None:
    _use_all_files()
    asyncio.run(_follow_sessions(count, address, stream, mark, pipe))


async def _follow_sessions(
    count: int, address: str, stream: StreamId, mark: Mark, pipe: Connection
) -> None:
    tally = _Tally(count)
    tally.expect(0)
    slots = asyncio.Semaphore(_AT_ONCE)
    follow = session_pb2.Follow(id=1, stream=str(stream), epoch=mark.epoch, sequence=mark.sequence)
    opened: list[Any] = []

    async def open_one() -> None:
        async with slots:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
            # Nothing is parsed here.
            call = channel.stream_stream(
                _OPEN, request_serializer=session_pb2.Request.SerializeToString
            )()
            await call.initial_metadata()
            await call.write(session_pb2.Request(follow=follow))
            opened.append((channel, call))

    async def read(follower: int, call: Any) -> None:
        while await call.read() is not grpc.aio.EOF:
            came = tally.note(follower)
            if came is not None:
                pipe.send(came)

    await asyncio.gather(*(open_one() for _ in range(count)))
    reading = [asyncio.ensure_future(read(n, call)) for n, (_, call) in enumerate(opened)]
    over = asyncio.Event()

    def told() -> None:
        try:
            tally.expect(pipe.recv())
            pipe.send(process_time())
        except EOFError:
            over.set()

    loop = asyncio.get_running_loop()
    loop.add_reader(pipe.fileno(), told)
    pipe.send(count)
    await over.wait()
    loop.remove_reader(pipe.fileno())
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    await asyncio.gather(*(channel.close() for channel, _ in opened))
