"""Sends publications, keeps their order, and knows what is out.

A stream's transport is its own affair: `StreamTransport` is all that the publisher asks of one.
On a bus each stream has its topic, and each topic a lane: a producer, and the messages that the
broker has not confirmed yet. When a producer breaks, its lane opens another one and sends what is
unconfirmed again, in order; receivers know a repeated message by its mark.

What is sent on a topic says where the newest checkpoint of its stream is. Since a stream may be
quiet for long, `BusTransport.announce` says so once by a message of its own, and `remind` says
where the stream ends (see `reminders`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Protocol

import structlog

from goalstate.bus.base import Bus, Producer
from goalstate.bus.errors import BusClosed, BusError, ProducerFenced
from goalstate.dpm.building import in_sync
from goalstate.dpm.inventory import Publication
from goalstate.dpm.recovery import Head, head_of
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import CheckpointPlace, Envelope
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.topics import Topics

log = structlog.get_logger()

Prove = Callable[[], Awaitable[object]]
#: Seconds before what failed is tried again: doubled at each failure up to the second number.
BACKOFF_S = (0.1, 5.0)


class StreamTransport(Protocol):
    """Carries the messages of streams to those who follow them."""

    def send(self, publication: Publication, confirmed: Callable[[], None]) -> None:
        """Queue a message. `confirmed` is called once it cannot be lost any more.

        Messages of one stream are carried in the order of the calls.
        """
        ...

    def remind(self, newest: Envelope) -> None:
        """Say where a stream ends, whose `newest` message was sent: who lacks it asks for it."""
        ...

    async def drain(self) -> None:
        """Wait until everything sent so far is confirmed."""
        ...

    async def close(self) -> None: ...


class Publisher:
    """Sends what changes derive, and follows up to which change all is confirmed."""

    def __init__(self, transport: StreamTransport, published: int = 0) -> None:
        #: Everything derived from changes up to this one is confirmed.
        self.published = published
        #: Messages that are not confirmed yet, and their payload in bytes.
        self.backlog = 0
        self.backlog_bytes = 0
        self._transport = transport
        self._open: OrderedDict[int, int] = OrderedDict()

    def publish(self, change: int, publications: Iterable[Publication]) -> None:
        """Send all that came of a change; to be called in the order of changes."""
        queued = list(publications)
        self._open[change] = len(queued)
        self.backlog += len(queued)
        self.backlog_bytes += sum(len(publication.payload) for publication in queued)

        def confirmed(size: int) -> None:
            self._open[change] -= 1
            self.backlog -= 1
            self.backlog_bytes -= size
            if self._open[change] == 0:
                self._advance()

        for publication in queued:
            self._transport.send(publication, partial(confirmed, len(publication.payload)))
        if not queued:
            self._advance()

    def _advance(self) -> None:
        while self._open:
            change, unconfirmed = next(iter(self._open.items()))
            if unconfirmed:
                return
            del self._open[change]
            self.published = change

    def remind(self, newest: Envelope) -> None:
        self._transport.remind(newest)

    async def drain(self) -> None:
        await self._transport.drain()

    async def close(self) -> None:
        await self._transport.close()


class BusTransport:
    """Streams on the topics of a bus. Producers are pooled: idle ones beyond `pool` are closed."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        pool: int = 16_384,
        clock_ns: Callable[[], int],
        sent: Callable[[Publication], None] = lambda _: None,
        prove: Prove | None = None,
        checkpoints: Mapping[StreamId, CheckpointPlace] = MappingProxyType({}),
    ) -> None:
        """`prove` raises BusError unless it is for us to send: then a topic that another one holds,
        who must be our predecessor, is taken over. Without it, the topic is waited for."""
        self._bus = bus
        self._topics = topics
        self._pool = pool
        self._clock_ns = clock_ns
        self._sent = sent
        self._prove = prove
        self._checkpoints = dict(checkpoints)
        self._lanes: OrderedDict[StreamId, _Lane] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def send(self, publication: Publication, confirmed: Callable[[], None]) -> None:
        lane = self._lane(publication.envelope.stream)
        self._sent(publication)
        lane.send(publication, confirmed)

    async def head(self, stream: StreamId, published: Mark = ORIGIN) -> Head | None:
        """The newest message that is surely on a stream's log; None: there is none on it.

        `published`: where the stream is, as far as is known. Raises BusError.
        """
        found: Head | None = None
        lane = self._lanes.get(stream)
        if lane is None or lane.head is None:
            found = await head_of(self._bus, self._topics.of_stream(stream), stream, published)
            lane = self._lanes.get(stream)
        return (lane.head if lane is not None else None) or found

    async def begin(self, newest: Envelope) -> Head:
        """The same for a log on which nothing was found: wait for what is on its way there.

        If nothing is, the log was emptied, and what was `newest` on it is followed by a message
        that changes nothing: something must be there from which the log can be read on.
        """
        lane = self._lane(newest.stream)
        if lane.newest is None:
            self._tell(lane, newest)
        await lane.drain()
        assert lane.head is not None, "it was confirmed"
        return lane.head

    def begin_again(self, stream: StreamId) -> None:
        """What comes next on the log does not continue what it has: its checkpoint is of no use."""
        self._checkpoints.pop(stream, None)
        lane = self._lanes.get(stream)
        if lane is not None:
            lane.checkpoint = None

    async def open_producer(self, topic: str) -> Producer:
        """Of a topic beside those of the streams. Raises BusError."""
        return await take(self._bus, topic, self._prove)

    async def announce(self, stream: StreamId, place: CheckpointPlace) -> None:
        """Say from now on where the newest checkpoint of a stream is, and at once do so.

        Raises BusError; then what is sent later says so all the same.
        """
        self._checkpoints[stream] = place
        lane = self._lanes.get(stream)
        if lane is not None:
            lane.checkpoint = place
        head = await self.head(stream)
        lane = self._lane(stream)
        newest = lane.newest or (head.envelope if head is not None else None)
        if newest is not None:
            self._tell(lane, newest)

    def remind(self, newest: Envelope) -> None:
        lane = self._lane(newest.stream)
        # What is not confirmed is on its way, and says as much.
        if not lane.unconfirmed:
            self._tell(lane, lane.newest or newest)

    def _tell(self, lane: _Lane, newest: Envelope) -> None:
        message = in_sync(newest)
        self._sent(message)
        lane.send(message, lambda: None)

    def _lane(self, stream: StreamId) -> _Lane:
        lane = self._lanes.get(stream)
        if lane is None:
            topic = self._topics.of_stream(stream)
            lane = _Lane(self._bus, topic, stream.id, self._clock_ns, self._prove)
            lane.checkpoint = self._checkpoints.get(stream)
            self._lanes[stream] = lane
            self._evict()
        else:
            self._lanes.move_to_end(stream)
        return lane

    def _evict(self) -> None:
        for stream, lane in list(self._lanes.items()):
            if len(self._lanes) <= self._pool:
                return
            if lane.idle:
                del self._lanes[stream]
                task = asyncio.ensure_future(lane.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def drain(self) -> None:
        await asyncio.gather(*(lane.drain() for lane in self._lanes.values()))

    async def close(self) -> None:
        lanes = list(self._lanes.values())
        self._lanes.clear()
        await asyncio.gather(*self._closing, *(lane.close() for lane in lanes))


async def take(bus: Bus, topic: str, prove: Prove | None) -> Producer:
    """Become the only one who sends to a topic, see `BusTransport`. Raises BusError."""
    try:
        return await bus.open_producer(topic, exclusive=True)
    except ProducerFenced:
        if prove is None:
            raise
    await prove()
    return await bus.open_producer(topic, exclusive=True, take_over=True)


class _Lane:
    """One topic: a producer, and what it has not confirmed yet."""

    def __init__(
        self,
        bus: Bus,
        topic: str,
        key: str,
        clock_ns: Callable[[], int],
        prove: Prove | None,
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._key = key
        self._clock_ns = clock_ns
        self._prove = prove
        self.unconfirmed: deque[tuple[Publication, Callable[[], None]]] = deque()
        self._producer: Producer | None = None
        #: What messages say of the newest checkpoint from now on.
        self.checkpoint: CheckpointPlace | None = None
        #: The newest message that was sent here, and the newest that was confirmed.
        self.newest: Envelope | None = None
        self.head: Head | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing = asyncio.Event()
        self._delay = BACKOFF_S[0]
        self._opening = asyncio.ensure_future(self._open())

    @property
    def idle(self) -> bool:
        return not self.unconfirmed and self._producer is not None

    def send(self, publication: Publication, confirmed: Callable[[], None]) -> None:
        self.unconfirmed.append((publication, confirmed))
        self._empty.clear()
        self.newest = publication.envelope
        if self._producer is not None:
            self._send(self._producer, publication)

    def _send(self, producer: Producer, publication: Publication) -> None:
        stamped = publication.envelope._replace(
            published_ns=self._clock_ns(), checkpoint=self.checkpoint
        )
        future = producer.send(
            publication.payload, key=self._key, properties=envelopes.to_properties(stamped)
        )
        future.add_done_callback(lambda done: self._done(producer, done))

    def _done(self, producer: Producer, done: asyncio.Future[bytes]) -> None:
        if producer is not self._producer:
            if not done.cancelled():
                done.exception()  # of a producer that was given up: its messages were sent again
            return
        error = BusClosed("cancelled") if done.cancelled() else done.exception()
        if error is None:
            self._delay = BACKOFF_S[0]
            publication, confirmed = self.unconfirmed.popleft()
            self.head = Head(publication.envelope, done.result())
            if not self.unconfirmed:
                self._empty.set()
            confirmed()
        elif not self._closing.is_set():
            log.warning("topic broken, opening it again", topic=self._topic, error=str(error))
            self._producer = None
            self._opening = asyncio.ensure_future(self._reopen(producer))

    async def _reopen(self, broken: Producer) -> None:
        await self._give_up(broken)
        await self._pause()
        await self._open()

    async def _open(self) -> None:
        while not self._closing.is_set():
            try:
                producer = await take(self._bus, self._topic, self._prove)
            except BusError as error:
                log.warning("cannot open topic yet", topic=self._topic, error=str(error))
                await self._pause()
                continue
            self._producer = producer
            for publication, _ in list(self.unconfirmed):
                self._send(producer, publication)
            return

    async def _pause(self) -> None:
        """Wait before the next attempt, longer each time until something is confirmed."""
        delay, self._delay = self._delay, min(2 * self._delay, BACKOFF_S[1])
        try:
            async with asyncio.timeout(delay):
                await self._closing.wait()
        except TimeoutError:
            pass

    async def _give_up(self, producer: Producer) -> None:
        try:
            await producer.close()
        except BusError as error:
            log.debug("closing a producer", topic=self._topic, error=str(error))

    async def drain(self) -> None:
        await self._empty.wait()

    async def close(self) -> None:
        """Give the topic up; what is not confirmed by then is not out."""
        self._closing.set()
        # An opening that is cut short could leave the topic taken: it is waited for.
        await self._opening
        if self._producer is not None:
            await self._give_up(self._producer)
