"""The readers of a fleet: one for each host and stream that it follows.

Laws:

1.  Opening and closing of one host's reader of one stream go one after the other; only the newest
    wish counts. A message of a reader that was replaced is ignored, however late it comes.
2.  Not more than a bounded number are being opened at a time, over all hosts.
3.  An open that fails is tried again, with a delay that doubles up to RETRY_MAX_S and is spread at
    random, so that many hosts do not come back at once.
4.  Where a stream is read from its beginning, the newest message of its log is looked up first. All
    that ask for one topic while a look is under way share it.
5.  Where that leads to a checkpoint, a host reads it once it is admitted (`semaphore`), and has its
    place until it follows something else. One that had to wait looks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import structlog

from goalstate.agent.actions import Follow
from goalstate.agent.beginning import Beginning, beginning, is_sought
from goalstate.agent.checkpoint_readers import CheckpointReaders
from goalstate.agent.semaphore import PrioritySemaphore, Ticket
from goalstate.bus.base import Bus, Message, Reader, Sink
from goalstate.bus.errors import BusError, PositionGone
from goalstate.gs.streams import StreamId
from goalstate.gs.topics import Topics, is_session

log = structlog.get_logger()

RETRY_S = 0.2
RETRY_MAX_S = 10.0


class Listener(Protocol):
    """Whoever follows."""

    def received(self, stream: StreamId, message: Message) -> None: ...

    def position_gone(self, stream: StreamId) -> None: ...

    def is_empty(self, stream: StreamId) -> bool:
        """Does it have nothing of the stream yet?"""
        ...


class _Following:
    """One host's reader of one stream, and what is wished of it."""

    __slots__ = ("generation", "opened", "reader", "task", "ticket", "wish")

    def __init__(self) -> None:
        #: Grows with each wish.
        self.generation = 0
        self.wish: Follow | None = None
        self.reader: Reader | None = None
        #: The wish that `reader` is of.
        self.opened = 0
        self.task: asyncio.Task[None] | None = None
        #: Of a checkpoint that it reads, or is to read.
        self.ticket: Ticket | None = None


class Source(Protocol):
    """What readers are opened on: a bus, or a session."""

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> Reader: ...


class Readers:
    """See the module's text. `wanted` and `open` are numbers of readers."""

    def __init__(
        self,
        bus: Bus | None,
        topics: Topics,
        at_a_time: int,
        sessions: Source | None = None,
        *,
        joining: int,
        shared: bool,
    ) -> None:
        """`sessions` carries the streams whose subscriptions say so; without it there are none.
        `joining`: so many hosts read a checkpoint at a time. `shared`: they share its reader.
        """
        self._bus = bus
        self._sessions = sessions
        self._topics = topics
        self._semaphore = PrioritySemaphore(joining)
        self._checkpoints = CheckpointReaders(bus, shared=shared)
        #: By topic: looks under way at its newest message.
        self._lookups: dict[str, asyncio.Task[Message | None]] = {}
        self._slots = asyncio.Semaphore(at_a_time)
        self._followings: dict[tuple[Listener, StreamId], _Following] = {}
        self._random = Random()
        self._closed = False
        self.wanted = 0
        self.open = 0

    def follow(self, listener: Listener, wish: Follow) -> None:
        """Open a reader, in the place of the one that is open or opening."""
        key = (listener, wish.stream)
        following = self._followings.get(key)
        if following is None:
            following = self._followings[key] = _Following()
        if following.wish is None:
            self.wanted += 1
        following.wish = wish
        self._go(listener, wish.stream, following)

    def unfollow(self, listener: Listener, stream: StreamId) -> None:
        """Close the reader, if there is one."""
        following = self._followings.get((listener, stream))
        if following is not None and following.wish is not None:
            self.wanted -= 1
            following.wish = None
            self._go(listener, stream, following)

    @property
    def waiting(self) -> int:
        """So many hosts wait for their turn to read a checkpoint."""
        return self._semaphore.waiting

    async def settled(self) -> None:
        """Wait until every wish so far is fulfilled."""
        while tasks := [f.task for f in self._followings.values() if f.task is not None]:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Close all readers."""
        self._closed = True
        followings = list(self._followings.values())
        tasks: list[asyncio.Task[Any]] = [f.task for f in followings if f.task is not None]
        for following in followings:
            following.generation += 1
        tasks += self._lookups.values()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.gather(*(self._close(following) for following in followings))
        self._followings.clear()
        self.wanted = 0

    def _go(self, listener: Listener, stream: StreamId, following: _Following) -> None:
        following.generation += 1
        self._leave(following)
        if following.task is None and not self._closed:
            following.task = asyncio.create_task(self._fulfil(listener, stream, following))

    async def _fulfil(self, listener: Listener, stream: StreamId, following: _Following) -> None:
        """Bring a reader to what is wished of it, until nothing more is wished."""
        failures = 0
        try:
            while following.opened != following.generation:
                generation = following.generation
                try:
                    begin = await self._begin(following.wish)
                    if generation == following.generation and not await self._is_admitted(
                        listener, following, begin
                    ):
                        continue
                    async with self._slots:
                        await self._close(following)
                        if generation == following.generation:
                            await self._open(listener, stream, following, generation, begin)
                    failures = 0
                except PositionGone as error:
                    log.info("position gone", stream=str(stream), error=str(error))
                    self._leave(following)
                    following.opened = generation
                    if generation == following.generation:
                        listener.position_gone(stream)
                except BusError as error:
                    failures += 1
                    log.warning("cannot follow", stream=str(stream), error=str(error))
                    self._leave(following)
                    await asyncio.sleep(self._delay(failures))
                except Exception:  # a defect must not end the following for good
                    failures += 1
                    log.exception("cannot follow", stream=str(stream))
                    self._leave(following)
                    await asyncio.sleep(self._delay(failures))
        finally:
            following.task = None
            if following.wish is None and following.reader is None:
                self._followings.pop((listener, stream), None)

    async def _begin(self, wish: Follow | None) -> Beginning | None:
        """What to open; None: nothing."""
        if wish is None:
            return None
        newest = await self._look_up(wish.topic) if is_sought(wish, self._topics) else None
        return beginning(wish, newest, self._topics)

    async def _is_admitted(
        self, listener: Listener, following: _Following, begin: Beginning | None
    ) -> bool:
        """May the host read this now? Else wait until it may, or does not wish to any more."""
        wish, ticket = following.wish, following.ticket
        if wish is None or begin is None or not begin.is_checkpoint_of(wish):
            self._leave(following)
            return True
        if ticket is None:
            empty = listener.is_empty(wish.stream)
            ticket = following.ticket = self._semaphore.acquire(empty=empty)
            if not ticket.held:
                await ticket.turn()
                return False  # by now there may be another checkpoint
        return ticket.held

    def _leave(self, following: _Following) -> None:
        ticket, following.ticket = following.ticket, None
        if ticket is not None:
            self._semaphore.release(ticket)

    async def _look_up(self, topic: str) -> Message | None:
        """The newest message of a topic."""
        lookup = self._lookups.get(topic)
        if lookup is None:
            lookup = self._lookups[topic] = asyncio.create_task(self._last(topic))
            lookup.add_done_callback(lambda done: self._looked_up(topic, done))
        # One that no longer asks must not end it for the others.
        return await asyncio.shield(lookup)

    async def _last(self, topic: str) -> Message | None:
        async with self._slots:
            assert self._bus is not None
            return await self._bus.last(topic)

    def _looked_up(self, topic: str, done: asyncio.Task[Message | None]) -> None:
        del self._lookups[topic]
        if not done.cancelled():
            done.exception()  # those that asked have it; there may be none left

    async def _open(
        self,
        listener: Listener,
        stream: StreamId,
        following: _Following,
        generation: int,
        begin: Beginning | None,
    ) -> None:
        wish = following.wish
        if begin is not None and wish is not None:
            sink = self._sink(listener, stream, following, generation)
            if begin.is_checkpoint_of(wish):

                def stalled() -> None:
                    if following.generation == generation:
                        listener.position_gone(stream)

                following.reader = await self._checkpoints.open(begin, sink, stalled)
            else:
                source = self._sessions if is_session(begin.topic) else self._bus
                assert source is not None, "the core refuses such a subscription"
                following.reader = await source.open_reader(*begin, sink)
            self.open += 1
        following.opened = generation

    @staticmethod
    def _sink(
        listener: Listener, stream: StreamId, following: _Following, generation: int
    ) -> Callable[[Message], None]:
        received = listener.received

        def sink(message: Message) -> None:
            if following.generation == generation:
                received(stream, message)

        return sink

    async def _close(self, following: _Following) -> None:
        reader, following.reader = following.reader, None
        if reader is not None:
            self.open -= 1
            try:
                await reader.close()
            except BusError as error:
                log.info("a reader did not close", topic=reader.topic, error=str(error))

    def _delay(self, failures: int) -> float:
        longest: float = min(RETRY_S * 2 ** min(failures - 1, 10), RETRY_MAX_S)
        return longest * (0.5 + 0.5 * self._random.random())
