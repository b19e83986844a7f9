"""The memory bus with wires that can be cut: what becomes of a send is the test's to say.

`Wire.GOOD` is the memory bus as it is. The others act on what is sent to a topic from then on:

FAILS    it does not get there, and the sender hears so
UNSURE   it gets there, and the sender hears that it failed
TWICE    it gets there, and again with all that was sent to the topic meanwhile (as after a lost
         connection); the sender hears once
DEAD     it does not get there, and the sender hears nothing
HELD     the same until `release`; then it gets there, in order, and the sender hears so
LATE     it gets there, and the sender hears so at `release`
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from enum import Enum, auto

from goalstate.bus.base import EARLIEST, Message, Producer, Reader, Sink
from goalstate.bus.errors import BrokerUnreachable
from goalstate.bus.memory import MemoryBroker, MemoryBus
from goalstate.dpm.recovery import changes_of
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import Envelope
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import StreamId
from goalstate.gs.topics import Topics

#: Seconds within which what a test waits for must come.
BOUND = 20.0
_LOOK = 0.001


class Wire(Enum):
    GOOD = auto()
    FAILS = auto()
    UNSURE = auto()
    TWICE = auto()
    DEAD = auto()
    HELD = auto()
    LATE = auto()


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; fails, naming it, if it does not come."""
    end = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < end, f"not within {BOUND} s: {what}"
        await asyncio.sleep(_LOOK)


class Region:
    """A broker, and the wires to it. It outlives the publishers that use it."""

    def __init__(self) -> None:
        self.topics = Topics(report_shards=1)
        self.broker = MemoryBroker(time.time_ns)
        self.wires: dict[str, Wire] = {}
        #: Sends to a topic that go well before its wire is what it is.
        self.first_good: dict[str, int] = {}
        #: How often a producer was opened on each topic.
        self.opened: Counter[str] = Counter()
        #: If there is one: opening a producer lasts until it is set.
        self.gate: asyncio.Event | None = None
        self._held: list[Callable[[], None]] = []

    def bus(self, name: str = "") -> WiredBus:
        """A connection. Must be made in the running loop."""
        return WiredBus(self, MemoryBus(self.broker, name))

    def cut(self, wire: Wire, *topics: str, after: int = 0) -> None:
        """Sends to these topics (none given: to any) meet this fate, after so many that do not."""
        for topic in topics or ("",):
            self.wires[topic] = wire
            self.first_good[topic] = after

    def mend(self) -> None:
        """All wires are good again; what was held stays held."""
        self.wires.clear()
        self.first_good.clear()

    def release(self) -> None:
        """Let through what was held."""
        held, self._held = self._held, []
        for send in held:
            send()

    @property
    def held(self) -> int:
        return len(self._held)

    def fate(self, topic: str) -> Wire:
        """Of the next send."""
        topic = topic if topic in self.wires else ""
        if self.first_good.get(topic, 0) > 0:
            self.first_good[topic] -= 1
            return Wire.GOOD
        return self.wires.get(topic, Wire.GOOD)

    def hold(self, send: Callable[[], None]) -> None:
        self._held.append(send)

    # --- what is on the topics ---

    def messages(self, topic: str) -> list[Message]:
        return self.broker.messages(topic, EARLIEST)

    def stream(self, stream: StreamId) -> list[tuple[Envelope, bytes]]:
        """What is on a stream, the time of sending aside."""
        return [
            (envelopes.from_properties(m.properties)._replace(published_ns=0), m.payload)
            for m in self.messages(self.topics.of_stream(stream))
        ]

    def streams(self) -> dict[StreamId, list[tuple[Envelope, bytes]]]:
        """What is on all streams."""
        found = {}
        for topic in self.broker.topics:
            try:
                stream = self.topics.stream_of(topic)
            except ValueError:
                continue
            found[stream] = self.stream(stream)
        return found

    def log(self) -> list[log_pb2.Record]:
        """The records of the intent log, of which none has more than one part."""
        return [log_pb2.Record.FromString(m.payload) for m in self.messages(self.topics.intent_log)]

    def logged(self) -> list[int]:
        """Numbers of the changes in the intent log."""
        return [change.change for record in self.log() for change in changes_of(record)]

    def noted(self) -> list[int]:
        """What the intent log says to be published."""
        return [r.published.change for r in self.log() if r.WhichOneof("body") == "published"]


class WiredBus:
    """`base.Bus` over the memory bus."""

    def __init__(self, region: Region, inner: MemoryBus) -> None:
        self.region = region
        self.inner = inner

    async def open_producer(
        self,
        topic: str,
        *,
        exclusive: bool = False,
        take_over: bool = False,
        batch: bool = False,
        name: str = "",
    ) -> Producer:
        self.region.opened[topic] += 1
        inner = await self.inner.open_producer(
            topic, exclusive=exclusive, take_over=take_over, batch=batch, name=name
        )
        if self.region.gate is not None:
            await self.region.gate.wait()
        return _WiredProducer(self.region, inner)

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> Reader:
        return await self.inner.open_reader(topic, start, sink)

    def read_to_end(self, topic: str, start: bytes) -> AsyncIterator[Message]:
        return self.inner.read_to_end(topic, start)

    async def last(self, topic: str) -> Message | None:
        return await self.inner.last(topic)

    async def close(self) -> None:
        """Also what a broker sees of a publisher that was killed."""
        await self.inner.close()


class _WiredProducer:
    """`base.Producer`."""

    def __init__(self, region: Region, inner: Producer) -> None:
        self._region = region
        self._inner = inner
        self._sent: list[tuple[bytes, str, Mapping[str, str]]] = []

    @property
    def topic(self) -> str:
        return self._inner.topic

    def send(
        self, payload: bytes, *, key: str = "", properties: Mapping[str, str] | None = None
    ) -> asyncio.Future[bytes]:
        fate = self._region.fate(self.topic)
        sent = (payload, key, dict(properties or {}))
        if fate is Wire.GOOD:
            return self._pass(sent)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if fate is Wire.TWICE:
            self._sent.append(sent)
            answer = self._pass(sent)
            for again in self._sent:
                self._pass(again)
        elif fate is Wire.HELD:
            self._region.hold(lambda: _answer(self._pass(sent), answer))
        elif fate is Wire.LATE:
            passed = self._pass(sent)
            self._region.hold(lambda: _answer(passed, answer))
        elif fate is not Wire.DEAD:
            if fate is Wire.UNSURE:
                self._pass(sent)
            answer.set_exception(BrokerUnreachable(f"{self.topic}: the wire is cut"))
        return answer

    def _pass(self, sent: tuple[bytes, str, Mapping[str, str]]) -> asyncio.Future[bytes]:
        payload, key, properties = sent
        return self._inner.send(payload, key=key, properties=properties)

    async def flush(self) -> None:
        await self._inner.flush()

    async def close(self) -> None:
        await self._inner.close()


def _answer(passed: asyncio.Future[bytes], answer: asyncio.Future[bytes]) -> None:
    error = passed.exception()
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(passed.result())
