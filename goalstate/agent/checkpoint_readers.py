"""Readers of checkpoints, shared by the hosts of a process that read the same one.

Laws:

1.  Hosts that ask for the same place of the same topic before its first message came get one reader
    of the bus between them. It is open for as long as one of them reads.
2.  Each gets every message, in order, until it closes. They get it one after the other, and after
    TURN_S of that the loop does what else there is to do: a host that is in sync gets its changes
    while a thousand others join.
3.  A checkpoint of which nothing came for STALL_S is not there any more: the broker's retention
    took the rest of it while it was read. Those who read it are told so, as if its place were gone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from goalstate.agent.beginning import Beginning
from goalstate.bus.base import Bus, Message, Reader, Sink
from goalstate.process import retrieved

log = structlog.get_logger()

#: Seconds for which messages are handed out before the loop has its turn.
TURN_S = 0.005
#: Seconds without a message. A broker that is away for less interrupts nothing.
STALL_S = 30.0

Stalled = Callable[[], None]


class CheckpointReader:
    """`bus.base.Reader` for one host."""

    def __init__(self, shared: _Shared, sink: Sink, stalled: Stalled) -> None:
        self.sink = sink
        self.stalled = stalled
        self._shared = shared

    @property
    def topic(self) -> str:
        return self._shared.begin.topic

    async def close(self) -> None:
        await self._shared.leave(self)


class CheckpointReaders:
    """See the module's text."""

    def __init__(self, bus: Bus | None, *, shared: bool) -> None:
        """`shared`: else each host has a reader of the bus of its own."""
        self._bus = bus
        self._is_shared = shared
        #: Those of which nothing was read yet.
        self._joinable: dict[Beginning, _Shared] = {}

    async def open(self, begin: Beginning, sink: Sink, stalled: Stalled) -> CheckpointReader:
        """Open a reader. `stalled` is called at most once, and then `sink` no more.

        Raises what `Bus.open_reader` does.
        """
        assert self._bus is not None, "nobody is told to follow anything without one"
        shared = self._joinable.get(begin)
        if shared is None:
            shared = _Shared(self._bus, begin, self._begun)
            if self._is_shared:
                self._joinable[begin] = shared
        return await shared.join(sink, stalled)

    def _begun(self, shared: _Shared) -> None:
        """It is too late to join."""
        if self._joinable.get(shared.begin) is shared:
            del self._joinable[shared.begin]


class _Shared:
    """One reader of the bus, and those who read by it."""

    def __init__(self, bus: Bus, begin: Beginning, begun: Callable[[_Shared], None]) -> None:
        self.begin = begin
        self._bus = bus
        self._begun = begun
        self._members: dict[CheckpointReader, None] = {}
        self._messages: deque[Message] = deque()
        self._came = asyncio.Event()
        self._opening = asyncio.ensure_future(self._open())
        self._opening.add_done_callback(retrieved)
        self._handing: asyncio.Task[None] | None = None

    async def join(self, sink: Sink, stalled: Stalled) -> CheckpointReader:
        member = CheckpointReader(self, sink, stalled)
        self._members[member] = None
        try:
            # One that no longer asks must not end it for the others.
            await asyncio.shield(self._opening)
        except BaseException:
            await self.leave(member)
            raise
        return member

    async def leave(self, member: CheckpointReader) -> None:
        self._members.pop(member, None)
        if self._members:
            return
        self._begun(self)
        if self._handing is not None:
            self._handing.cancel()
        self._messages.clear()
        opening, reader = self._opening, None
        if opening.done() and not opening.cancelled() and opening.exception() is None:
            reader = opening.result()
        elif not opening.done():
            opening.cancel()
        if reader is not None:
            await reader.close()

    async def _open(self) -> Reader:
        try:
            reader = await self._bus.open_reader(*self.begin, self._receive)
        except BaseException:
            self._begun(self)
            raise
        self._handing = asyncio.ensure_future(self._hand_out())
        return reader

    def _receive(self, message: Message) -> None:
        self._begun(self)
        self._messages.append(message)
        self._came.set()

    async def _hand_out(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    await self._came.wait()
            except TimeoutError:
                break
            begun = loop.time()
            while self._messages:
                message = self._messages.popleft()
                for member in list(self._members):
                    if member in self._members:
                        self._hand(member, message)
                    if loop.time() - begun > TURN_S:
                        await asyncio.sleep(0)
                        begun = loop.time()
            self._came.clear()
        log.warning("a checkpoint does not go on", topic=self.begin.topic)
        self._begun(self)
        for member in list(self._members):
            member.stalled()

    def _hand(self, member: CheckpointReader, message: Message) -> None:
        try:
            member.sink(message)
        except Exception:  # one host's failure must not keep the others from reading
            log.exception("a message of a checkpoint was not taken", topic=self.begin.topic)
