"""The session of a simulated agent process: the service and the follows of the product, and a wire.

What gRPC promises is all that the wire adds: both ways everything comes in its order, each after a
while, and nothing is lost before the connection is. What is under way then is lost, and each end
hears of it after a while. A publisher that is paused answers when it goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from random import Random
from typing import NoReturn, Protocol, cast

from goalstate.agent.follows import Follows, SessionReader
from goalstate.bus.base import Sink
from goalstate.dpm.engine import Engine
from goalstate.dpm.service import Context
from goalstate.dpm.session_service import SessionService
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import StreamId
from goalstate.scale.simulate.processes import Process
from goalstate.scale.simulate.timeline import MS_NS, SECOND_NS, Due, Timeline
from goalstate.scale.simulate.wire import Wire

_RETRY_NS = 100 * MS_NS
_RETRY_MAX_NS = 5 * SECOND_NS


class Around(Protocol):
    """What a session lives in."""

    timeline: Timeline
    wire: Wire
    random: Random
    processes: list[Process]

    def say(self, text: str) -> None: ...


class Link:
    """Has a session with one of the publishers after the other, until one serves."""

    def __init__(self, around: Around, name: str) -> None:
        self.follows = Follows()
        self.opened = 0
        self._name = name
        self._around = around
        self._call: _Call | None = None
        self._due: Due | None = None
        self._turn = 0
        self._failures = 0
        #: It cannot be opened before.
        self._cut_until_ns = 0

    def attach(self, stream: StreamId, start: bytes, sink: Sink) -> SessionReader:
        """A reader of what comes on a stream, see `Follows.attach`."""
        reader = self.follows.attach(stream, start, sink)
        self._open_after(0)
        return reader

    def cut(self, for_ns: int) -> None:
        """The connection breaks, and there is none for a while."""
        self._cut_until_ns = max(self._cut_until_ns, self._around.timeline.now_ns + for_ns)
        call = self._call
        if call is not None:
            call.cancel()
            self.ended(call)

    def lost(self, process: Process) -> None:
        """A publisher is gone."""
        if self._call is not None and self._call.process is process:
            self.ended(self._call)

    def heal(self) -> None:
        self._cut_until_ns = 0

    # --- what the call tells ---

    def is_open(self, call: _Call) -> None:
        self.opened += 1
        self._failures = 0
        self._around.say(f"{self._name} has a session with {call.process.name}")
        self.follows.connected(call.ask)

    def take(self, call: _Call, carried: session_pb2.Carried) -> None:
        self.follows.take(carried)

    def ended(self, call: _Call) -> None:
        self._call = None
        self.follows.disconnected()
        self._failures += 1
        longest = min(_RETRY_NS << min(self._failures - 1, 10), _RETRY_MAX_NS)
        self._open_after(int(longest * (0.5 + 0.5 * self._around.random.random())))

    def hears(self, call: _Call) -> bool:
        return self._call is call

    # --- opening ---

    def _open_after(self, delay_ns: int) -> None:
        if self._call is None and self._due is None:
            timeline = self._around.timeline
            self._due = timeline.at(max(timeline.now_ns + delay_ns, self._cut_until_ns), self._open)

    def _open(self) -> None:
        self._due = None
        around = self._around
        if not len(self.follows):
            return  # whoever attaches next opens it
        if around.timeline.now_ns < self._cut_until_ns:
            self._open_after(0)
            return
        process = around.processes[self._turn % len(around.processes)]
        self._turn += 1
        self._call = call = _Call(self, process, around.timeline, around.wire)
        if process.engine is None:
            self.ended(call)
        else:
            call.begin(process.engine)


class _Aborted(Exception):
    """The publisher ended the call with an error."""


class _Call:
    """One session, and what is under way on it; the service takes it for the call's context."""

    def __init__(self, link: Link, process: Process, timeline: Timeline, wire: Wire) -> None:
        self.process = process
        self._link = link
        self._timeline = timeline
        self._wire = wire
        self._requests: asyncio.Queue[session_pb2.Request] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False
        # When the newest arrives: of what goes to the publisher, and of what comes from it.
        self._there_ns = self._here_ns = 0

    def begin(self, engine: Engine) -> None:
        loop = self.process.loop
        assert loop is not None

        def begin() -> None:
            if not self._is_cancelled:
                self._task = loop.create_task(self._serve(engine))

        self._timeline.after(self._wire.latency_ns(), lambda: loop.call_soon(begin))

    def cancel(self) -> None:
        """The publisher hears that the connection broke."""
        loop = self.process.loop

        def cancel() -> None:
            self._is_cancelled = True
            if self._task is not None:
                self._task.cancel()

        if loop is not None:
            self._timeline.after(self._wire.latency_ns(), lambda: loop.call_soon(cancel))

    def ask(self, request: session_pb2.Request) -> None:
        self._there_ns = self._after(self._there_ns)
        self._timeline.at(self._there_ns, partial(self._requests.put_nowait, request))

    def _after(self, newest_ns: int) -> int:
        return max(newest_ns, self._timeline.now_ns + self._wire.latency_ns())

    def _answer(self, what: Callable[[], None]) -> None:
        def arrive() -> None:
            if self._link.hears(self):
                what()

        self._here_ns = self._after(self._here_ns)
        self._timeline.at(self._here_ns, arrive)

    # --- at the publisher ---

    async def _serve(self, engine: Engine) -> None:
        link = self._link
        try:
            async for carried in SessionService([engine]).Open(self._each(), cast(Context, self)):
                self._answer(partial(link.take, self, carried))
        except _Aborted:
            pass
        self._answer(partial(link.ended, self))

    async def _each(self) -> AsyncIterator[session_pb2.Request]:
        while True:
            yield await self._requests.get()

    async def send_initial_metadata(self, metadata: object) -> None:
        self._answer(partial(self._link.is_open, self))

    def set_trailing_metadata(self, metadata: object) -> None:
        """Where another one serves: it is found by trying."""

    async def abort(self, code: object, text: str) -> NoReturn:
        raise _Aborted(text)
