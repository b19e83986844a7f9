"""The bus of a simulated process: `base.Bus` over the memory broker, with time and misfortune.

Laws (those of `bus.base` beside them):

1.  The sends of a producer reach the broker in their order, each after a while, and are answered
    in their order after another while. One that cannot reach it is tried until SEND_TIMEOUT_NS,
    then it fails, and what was sent after it may still get through.
2.  While there is trouble, a send may fail and not be written, fail and be written, or be written
    twice: at-least-once delivery over a connection that breaks.
3.  A producer whose topic was taken over is refused; while the broker is `unfenced`, only on the
    intent log, so that what a former writer says reaches the streams.
4.  When the process dies, what is on the wire gets through or not, a later send never without the
    earlier ones of its producer; after a while the broker gives the topics that it held free.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from typing import NamedTuple

from goalstate.bus.base import FLUSH_BOUND, Message, Sink
from goalstate.bus.errors import BrokerUnreachable, BusClosed, BusError
from goalstate.bus.memory import MemoryBroker, MemoryReader
from goalstate.scale.simulate.timeline import MS_NS, SECOND_NS, Timeline, VirtualLoop

SEND_TIMEOUT_NS = 3 * SECOND_NS
_TRY_AGAIN_NS = 50 * MS_NS
#: One way to the broker, at most.
_LATENCY_NS = 3 * MS_NS


class Trouble(NamedTuple):
    """What goes wrong with sends, each a probability in 0..1."""

    #: Fails, and is not written.
    lost: float = 0.0
    #: Fails, though it is written.
    unanswered: float = 0.0
    #: Is written twice.
    repeated: float = 0.0


class Arrival(NamedTuple):
    """A send as the broker gets it."""

    topic: str
    properties: Mapping[str, str]
    payload: bytes


#: Called before (False) and after (True) a send is written; may end the process.
Watcher = Callable[[Arrival, bool], None]


class Wire:
    """What the buses of all processes have in common."""

    def __init__(
        self, broker: MemoryBroker, timeline: Timeline, random: Random, watcher: Watcher
    ) -> None:
        self.broker = broker
        self.timeline = timeline
        self.random = random
        self.watcher = watcher
        self.trouble = Trouble()
        #: Topics on which a producer that was thrown out is refused all the same; None: all.
        self.fenced: frozenset[str] | None = None
        #: How often each kind of trouble happened.
        self.troubles = Counter[str]()

    def latency_ns(self) -> int:
        return int(self.random.random() * _LATENCY_NS) + 1


class _Send(NamedTuple):
    arrival: Arrival
    key: str
    answer: asyncio.Future[bytes]
    given_up_ns: int


class _Producer:
    def __init__(self, bus: ProcessBus, topic: str, generation: int) -> None:
        self._bus = bus
        self._topic = topic
        self._generation = generation
        self._queue: deque[_Send] = deque()
        self._unanswered = 0
        self._answered_ns = 0
        self._closed = False

    @property
    def topic(self) -> str:
        return self._topic

    def send(
        self, payload: bytes, *, key: str = "", properties: Mapping[str, str] | None = None
    ) -> asyncio.Future[bytes]:
        bus = self._bus
        answer: asyncio.Future[bytes] = bus.loop.create_future()
        if self._closed or bus.dead:
            answer.set_exception(BusClosed(f"{self._topic}: the producer is closed"))
            return answer
        timeline = bus.wire.timeline
        arrival = Arrival(self._topic, dict(properties or {}), bytes(payload))
        self._queue.append(_Send(arrival, key, answer, timeline.now_ns + SEND_TIMEOUT_NS))
        if len(self._queue) == 1:
            timeline.after(bus.wire.latency_ns(), self._arrive)
        return answer

    def _arrive(self) -> None:
        """The oldest send reaches the broker, or not yet."""
        bus, wire = self._bus, self._bus.wire
        timeline = wire.timeline
        if self._closed or not self._queue or timeline.now_ns > bus.lost_after_ns:
            return
        send = self._queue[0]
        delay = wire.latency_ns()
        try:
            wire.broker.check_reachable(self._topic, bus.name)
        except BrokerUnreachable as error:
            if timeline.now_ns < send.given_up_ns:
                timeline.after(_TRY_AGAIN_NS, self._arrive)
                return
            self._queue.popleft()
            self._answer(send, error)
        else:
            wire.watcher(send.arrival, False)
            if timeline.now_ns > bus.lost_after_ns:
                return
            self._queue.popleft()
            self._answer(send, self._write(send))
            wire.watcher(send.arrival, True)
        if self._queue:
            timeline.after(delay // 4, self._arrive)

    def _write(self, send: _Send) -> bytes | BusError:
        wire = self._bus.wire
        trouble = wire.trouble
        drawn = wire.random.random() if any(trouble) else 1.0
        if drawn < trouble.lost:
            wire.troubles["send lost"] += 1
            return BrokerUnreachable(f"{self._topic}: the connection broke")
        try:
            if wire.fenced is None or self._topic in wire.fenced:
                wire.broker.check_claim(self._topic, self._generation)
            position = self._publish(send)
        except BusError as error:
            return error
        if drawn < trouble.lost + trouble.unanswered:
            wire.troubles["send unanswered"] += 1
            return BrokerUnreachable(f"{self._topic}: no answer")
        if drawn < sum(trouble):
            wire.troubles["send repeated"] += 1
            self._publish(send)
        return position

    def _publish(self, send: _Send) -> bytes:
        return self._bus.wire.broker.publish(
            self._topic,
            send.arrival.payload,
            key=send.key,
            properties=send.arrival.properties,
            sender=self._bus.name,
        )

    def _answer(self, send: _Send, outcome: bytes | BusError) -> None:
        self._unanswered += 1

        def answered() -> None:
            self._unanswered -= 1
            if self._bus.dead or send.answer.done():
                return
            if isinstance(outcome, bytes):
                send.answer.set_result(outcome)
            else:
                send.answer.set_exception(outcome)

        wire = self._bus.wire
        self._answered_ns = max(self._answered_ns, wire.timeline.now_ns + wire.latency_ns())
        wire.timeline.at(self._answered_ns, answered)

    async def flush(self) -> None:
        while not self._bus.dead and (self._queue or self._unanswered):
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        bus = self._bus
        if self._closed or bus.dead:
            return
        try:
            async with asyncio.timeout(FLUSH_BOUND):
                await self.flush()
        except TimeoutError:
            pass
        self._closed = True
        for send in self._queue:
            if not send.answer.done():
                send.answer.set_exception(BusClosed(f"{self._topic}: the producer was closed"))
        self._queue.clear()
        self.release()

    def release(self) -> None:
        """The broker gives the topic free."""
        if self in self._bus.held:
            del self._bus.held[self]
            self._bus.wire.broker.release(self._topic, self._generation)


class ProcessBus:
    """`base.Bus` of one process, which ends with it."""

    def __init__(self, wire: Wire, loop: VirtualLoop, name: str) -> None:
        self.wire = wire
        self.loop = loop
        self.name = name
        self.dead = False
        #: Sends that would arrive later are lost.
        self.lost_after_ns = 1 << 62
        #: Producers whose topic is taken.
        self.held: dict[_Producer, None] = {}
        self._readers: dict[_Reader, None] = {}

    async def open_producer(
        self,
        topic: str,
        *,
        exclusive: bool = False,
        take_over: bool = False,
        batch: bool = False,
        name: str = "",
    ) -> _Producer:
        """As `base.Bus.open_producer`; `batch` has nothing to gather here."""
        await self._travel()
        generation = self.wire.broker.claim(
            topic, exclusive=exclusive, take_over=take_over, name=self.name
        )
        producer = _Producer(self, topic, generation)
        self.held[producer] = None
        return producer

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> _Reader:
        """As `base.Bus.open_reader`."""
        await self._travel()
        reader = _Reader(self)
        reader.open(topic, start, sink)
        self._readers[reader] = None
        return reader

    async def read_to_end(self, topic: str, start: bytes) -> AsyncIterator[Message]:
        """As `base.Bus.read_to_end`; anything may happen between two messages."""
        await self._travel()
        self.wire.broker.check_reachable(topic, self.name)
        for number, message in enumerate(self.wire.broker.messages(topic, start), 1):
            if number % 16 == 0:
                await self._travel()
                self.wire.broker.check_reachable(topic, self.name)
            yield message

    async def last(self, topic: str) -> Message | None:
        """As `base.Bus.last`."""
        await self._travel()
        self.wire.broker.check_reachable(topic, self.name)
        messages = self.wire.broker.messages(topic)
        return messages[-1] if messages else None

    async def close(self) -> None:
        """As `base.Bus.close`."""
        for reader in list(self._readers):
            await reader.close()
        for producer in list(self.held):
            await producer.close()

    def die(self) -> None:
        """The process is gone."""
        wire = self.wire
        self.dead = True
        for reader in self._readers:
            reader.detach()
        self.lost_after_ns = wire.timeline.now_ns + wire.latency_ns()
        held = list(self.held)

        def noticed() -> None:
            for producer in held:
                producer.release()

        wire.timeline.after(2 * _LATENCY_NS + int(wire.random.random() * SECOND_NS), noticed)

    async def _travel(self) -> None:
        await asyncio.sleep(self.wire.latency_ns() / 1e9)


class _Reader:
    def __init__(self, bus: ProcessBus) -> None:
        self._bus = bus
        self._reader: MemoryReader | None = None
        self._topic = ""

    @property
    def topic(self) -> str:
        return self._topic

    def open(self, topic: str, start: bytes, sink: Sink) -> None:
        """Raises BrokerUnreachable, PositionGone."""
        self._topic = topic

        def deliver(message: Message) -> None:
            if self._reader is not None:
                self._bus.loop.call_soon(sink, message)

        self._reader = self._bus.wire.broker.attach(topic, start, deliver, name=self._bus.name)

    def detach(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._bus.wire.broker.detach(reader)

    async def close(self) -> None:
        self.detach()
