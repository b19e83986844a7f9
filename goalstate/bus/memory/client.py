"""The bus over the memory broker: the asyncio port of `base.py`.

It steps the broker from the event loop, a bounded number of deliveries a turn. All buses of one
broker live in one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from goalstate.bus.base import Message, Sink
from goalstate.bus.errors import BusClosed, BusError
from goalstate.bus.memory.broker import MemoryBroker, MemoryReader

#: Deliveries that are made before the loop may run other work.
_DELIVERIES_PER_TURN = 256


class MemoryProducer:
    """`base.Producer` over the broker."""

    def __init__(self, bus: MemoryBus, topic: str, generation: int) -> None:
        self._bus = bus
        self._topic = topic
        self._generation = generation
        self._closed = False

    @property
    def topic(self) -> str:
        return self._topic

    def send(
        self, payload: bytes, *, key: str = "", properties: Mapping[str, str] | None = None
    ) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            if self._closed:
                raise BusClosed(f"{self._topic}: the producer is closed")
            self._bus.broker.check_claim(self._topic, self._generation)
            answer.set_result(
                self._bus.broker.publish(
                    self._topic, payload, key=key, properties=properties, sender=self._bus.name
                )
            )
        except BusError as error:
            answer.set_exception(error)
        return answer

    async def flush(self) -> None:
        """Nothing is ever outstanding here."""

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._bus.producers.discard(self)
            self._bus.broker.release(self._topic, self._generation)


class MemoryBusReader:
    """`base.Reader` over the broker."""

    def __init__(self, bus: MemoryBus, reader: MemoryReader) -> None:
        self._bus = bus
        self._reader = reader

    @property
    def topic(self) -> str:
        return self._reader.topic

    async def close(self) -> None:
        self._bus.readers.discard(self)
        self._bus.broker.detach(self._reader)


class MemoryBus:
    """`base.Bus` over a `MemoryBroker`. `name` is what `MemoryBroker.partition` cuts off.

    Must be made and used in one running event loop.
    """

    def __init__(self, broker: MemoryBroker, name: str = "") -> None:
        self.broker = broker
        self.name = name
        self.readers: set[MemoryBusReader] = set()
        self.producers: set[MemoryProducer] = set()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._closed = False
        self._unwatch = broker.watch(self._schedule)
        self._schedule()

    async def open_producer(
        self,
        topic: str,
        *,
        exclusive: bool = False,
        take_over: bool = False,
        batch: bool = False,
        name: str = "",
    ) -> MemoryProducer:
        """As `base.Bus.open_producer`; `batch` has nothing to gather here."""
        self._check_open()
        generation = self.broker.claim(
            topic, exclusive=exclusive, take_over=take_over, name=self.name
        )
        producer = MemoryProducer(self, topic, generation)
        self.producers.add(producer)
        return producer

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> MemoryBusReader:
        """As `base.Bus.open_reader`."""
        self._check_open()
        reader = MemoryBusReader(self, self.broker.attach(topic, start, sink, name=self.name))
        self.readers.add(reader)
        return reader

    async def read_to_end(self, topic: str, start: bytes) -> AsyncIterator[Message]:
        """As `base.Bus.read_to_end`."""
        self._check_open()
        self.broker.check_reachable(topic, self.name)
        for message in self.broker.messages(topic, start):
            yield message

    async def last(self, topic: str) -> Message | None:
        """As `base.Bus.last`."""
        self._check_open()
        self.broker.check_reachable(topic, self.name)
        messages = self.broker.messages(topic)
        return messages[-1] if messages else None

    async def close(self) -> None:
        """As `base.Bus.close`. Closing twice is harmless."""
        if self._closed:
            return
        for reader in list(self.readers):
            await reader.close()
        for producer in list(self.producers):
            await producer.close()
        self._closed = True
        self._unwatch()

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed("the memory bus is closed")

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        for _ in range(_DELIVERIES_PER_TURN):
            try:
                if not self.broker.step():
                    return
            except Exception as error:  # a sink's own failure must not stop the other readers
                self._loop.call_exception_handler(
                    {"message": "a sink of the memory bus raised", "exception": error}
                )
        self._schedule()
