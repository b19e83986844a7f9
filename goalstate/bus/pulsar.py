"""The bus over Apache Pulsar.

Laws, besides those of `base.py`:

1.  The event loop never waits for the client: only its asynchronous calls are used, and send
    queues are unbounded (callers bound themselves by the futures they hold).
2.  When the loop falls behind, the client's listener threads wait, then the client stops asking
    the broker for more: nothing is dropped and memory is bounded.
3.  Readers that share a topic in one process share the decoded message (which is immutable).
4.  A position is (ledger, entry, index in batch), big endian, so that positions of one topic
    compare as bytes in the order of the log. A reader passes on only what is above its last one:
    the client may see messages again when it reconnects.
5.  A reader that starts at a position proves first that the log still holds the message there.
    Pulsar itself would start silently at the next one it has.
6.  The properties of a message travel as one, a JSON object: each client parses and copies every
    single one, and frees it, which made a quarter of what a delivery costs.
7.  LATEST is resolved to a position before the reader opens. A reader opened by the client's own
    "latest" and cut off before its first message would resume at the then newest one.

A send that was under way while the connection broke is sent again by the client, and may then be
in the log twice. Who cannot live with that numbers its messages.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from goalstate.bus.base import EARLIEST, FLUSH_BOUND, LATEST, MAX_PAYLOAD, Message, Sink
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusClosed,
    BusError,
    MessageTooLarge,
    PositionGone,
)
from goalstate.bus.pulsar_client import Client, position_of, probe, properties_of, written

#: How much of what was decoded is kept for the other readers of the same topic.
_SHARED_BYTES = 64 * 1024 * 1024
_SHARED_MESSAGES = 32768
#: How much of a topic is read in one go while it is read to its end.
_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 8 * 1024 * 1024
#: How long a message may still be on its way after the client said that there is none, seconds.
_GRACE = 1.0
#: How long the last message of a topic is waited for, before it is asked for anew, seconds.
_SOUGHT_S = 2.0


class _Decoder:
    """Makes `Message`s of the client's messages, and shares them between readers of a topic."""

    def __init__(self) -> None:
        self._readers: dict[str, int] = {}
        self._shared: dict[tuple[str, bytes], Message] = {}
        self._order: deque[tuple[str, bytes]] = deque()
        self._bytes = 0

    def opened(self, topic: str) -> None:
        self._readers[topic] = self._readers.get(topic, 0) + 1

    def closed(self, topic: str) -> None:
        self._readers[topic] -= 1
        if not self._readers[topic]:
            del self._readers[topic]

    def decode(self, topic: str, raw: Any) -> Message:
        if self._readers.get(topic, 0) <= 1:
            return self._decode(topic, raw)
        place = (topic, raw.message_id().serialize())
        message = self._shared.get(place)
        if message is None:
            message = self._shared[place] = self._decode(topic, raw)
            self._order.append(place)
            self._bytes += len(message.payload)
            while self._bytes > _SHARED_BYTES or len(self._order) > _SHARED_MESSAGES:
                self._bytes -= len(self._shared.pop(self._order.popleft()).payload)
        return message

    @staticmethod
    def _decode(topic: str, raw: Any) -> Message:
        return Message(
            topic,
            raw.partition_key(),
            MappingProxyType(properties_of(raw)),
            raw.data(),
            position_of(raw),
            raw.publish_timestamp() * 1_000_000,
        )


class PulsarProducer:
    """`base.Producer` over the client's."""

    def __init__(self, bus: PulsarBus, topic: str, producer: Any) -> None:
        self._bus = bus
        self._topic = topic
        self._producer = producer
        self._unanswered: set[asyncio.Future[bytes]] = set()
        self._closed = False

    @property
    def topic(self) -> str:
        return self._topic

    def send(
        self, payload: bytes, *, key: str = "", properties: Mapping[str, str] | None = None
    ) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = self._bus.client.loop.create_future()
        if self._closed:
            answer.set_exception(BusClosed(f"{self._topic}: the producer is closed"))
            return answer
        if len(payload) > MAX_PAYLOAD:
            answer.set_exception(
                MessageTooLarge(f"{self._topic}: {len(payload)} bytes, at most {MAX_PAYLOAD}")
            )
            return answer
        self._unanswered.add(answer)

        def answered(position: bytes | None, error: BusError | None) -> None:
            self._unanswered.discard(answer)
            if not answer.done():
                if position is not None:
                    answer.set_result(position)
                else:
                    answer.set_exception(error or BusClosed(self._topic))

        self._bus.client.send(self._producer, self._topic, payload, key, properties or {}, answered)
        return answer

    async def flush(self) -> None:
        await self._flush(None)

    async def close(self) -> None:
        self._closed = True
        await self._flush(FLUSH_BOUND)
        self.abandon()
        if self in self._bus.producers:
            self._bus.producers.discard(self)
            await self._bus.client.close_handle(self._producer)

    def abandon(self) -> None:
        """Fail what is unanswered: nobody waits for answers any more."""
        self._closed = True
        gone = BusClosed(f"{self._topic}: the producer was closed")
        for answer in self._unanswered:
            if not answer.done():
                answer.set_exception(gone)
        self._unanswered.clear()

    async def _flush(self, timeout: float | None) -> None:
        if self._unanswered:
            # An unfinished batch goes out by itself, in milliseconds.
            await asyncio.wait(list(self._unanswered), timeout=timeout)


class PulsarReader:
    """`base.Reader` over the client's."""

    def __init__(self, bus: PulsarBus, topic: str, sink: Sink) -> None:
        self._bus = bus
        self._topic = topic
        self._sink = sink
        self._last = b""
        self._expected: tuple[bytes, asyncio.Future[bool]] | None = None
        self._closed = False
        self.handle: Any = None

    @property
    def topic(self) -> str:
        return self._topic

    def expect(self, position: bytes) -> asyncio.Future[bool]:
        """The first message must be the one at `position`; the result tells whether it was."""
        found: asyncio.Future[bool] = self._bus.client.loop.create_future()
        self._expected = (position, found)
        return found

    def receive(self, raw: Any) -> None:
        """Take one delivery, in the loop."""
        if self._closed:
            return
        message = self._bus.decoder.decode(self._topic, raw)
        position = message.position
        if position <= self._last:
            return
        if self._expected is not None:
            expected, found = self._expected
            self._expected = None
            self._last = position
            if not found.done():
                found.set_result(position == expected)
            if position != expected:
                self._closed = True
            return
        self._last = position
        self._sink(message)

    def detach(self) -> None:
        """The sink is not called any more."""
        self._closed = True

    async def close(self) -> None:
        self._closed = True
        if self in self._bus.readers:
            self._bus.readers.discard(self)
            self._bus.decoder.closed(self._topic)
            await self._bus.client.close_handle(self.handle)


class PulsarBus:
    """`base.Bus` over Apache Pulsar. Make it with `connect`; it belongs to the running loop."""

    def __init__(self, client: Client, *, receiver_queue: int = 200) -> None:
        self.client = client
        self.decoder = _Decoder()
        self.readers: set[PulsarReader] = set()
        self.producers: set[PulsarProducer] = set()
        self._receiver_queue = receiver_queue
        self._closed = False

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        compression: str = "lz4",
        connections: int = 1,
        receiver_queue: int = 200,
        timeout: float = 10.0,
        send_timeout: float = 30.0,
        log_file: str = os.devnull,
    ) -> PulsarBus:
        """Connect to the broker at `url` (pulsar://host:port[,host:port…]).

        `compression`: none, lz4, zlib, zstd or snappy. `connections`: TCP connections among which
        readers and producers are spread. `receiver_queue`: messages that the client holds ready
        per reader. `timeout`, `send_timeout`: seconds until an open and a send fail with
        BrokerUnreachable. `log_file`: where the client library writes its errors.

        Raises BrokerUnreachable within 5 s if nobody answers.
        """
        await probe(url, min(timeout, 5.0))
        client = Client(
            url,
            compression=compression,
            connections=connections,
            timeout=timeout,
            send_timeout=send_timeout,
            log_file=log_file,
        )
        return cls(client, receiver_queue=receiver_queue)

    async def open_producer(
        self,
        topic: str,
        *,
        exclusive: bool = False,
        take_over: bool = False,
        batch: bool = False,
        name: str = "",
    ) -> PulsarProducer:
        """As `base.Bus.open_producer`. `name` must be unique on the topic, if given."""
        handle = await self.client.open_producer(
            topic, exclusive=exclusive, take_over=take_over, batch=batch, name=name
        )
        producer = PulsarProducer(self, topic, handle)
        self.producers.add(producer)
        return producer

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> PulsarReader:
        """As `base.Bus.open_reader`."""
        if start == LATEST:
            newest = await self.last(topic)
            start = newest.position if newest else EARLIEST
        reader = PulsarReader(self, topic, sink)
        found = reader.expect(start) if start != EARLIEST else None
        self.decoder.opened(topic)
        try:
            reader.handle = await self.client.open_reader(
                topic, start, self._receiver_queue, reader.receive
            )
        except BaseException:
            self.decoder.closed(topic)
            raise
        self.readers.add(reader)
        if found is not None:
            try:
                await self._check_start(reader.handle, topic, start, found)
            except BaseException:
                await reader.close()
                raise
        return reader

    async def read_to_end(self, topic: str, start: bytes) -> AsyncIterator[Message]:
        """As `base.Bus.read_to_end`."""
        newest = await self.last(topic)
        if start == LATEST:
            return
        if newest is None:
            if start != EARLIEST:
                raise PositionGone(f"{topic}: the topic is empty")
            return
        if start > newest.position:
            raise PositionGone(f"{topic}: the position is beyond the end of the log")
        handle = await self.client.open_reader(topic, start, 1000, None)
        try:
            first = start != EARLIEST
            position = start
            while position < newest.position:
                for raw in await asyncio.to_thread(self._read_some, handle, topic, newest.position):
                    message = self.decoder.decode(topic, raw)
                    position = message.position
                    if not first:
                        yield message
                    elif position != start:
                        raise PositionGone(f"{topic}: the log begins after the position")
                    first = False
        finally:
            await self.client.close_handle(handle)

    async def last(self, topic: str) -> Message | None:
        """As `base.Bus.last`. Takes some 0.1 s: see the traps in the module's text."""
        waits_s = _SOUGHT_S
        while True:
            handle = await self.client.open_reader(topic, LATEST, 1, None)
            try:
                held = await self.client.ask(f"read {topic}", handle.has_message_available_async)
                if not held:
                    return None
                try:
                    raw = await self.client.ask(f"read {topic}", handle.read_next_async, waits_s)
                except BrokerUnreachable:
                    # To find the last one the client seeks it, and a message that comes before the
                    # seek is answered is dropped for good: only another reader gets it.
                    if waits_s > self.client.timeout:
                        raise
                    waits_s *= 2
                    continue
                return self.decoder.decode(topic, raw)
            finally:
                await self.client.close_handle(handle)

    async def close(self) -> None:
        """As `base.Bus.close`. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        for reader in self.readers:
            reader.detach()
        flushes = [asyncio.ensure_future(producer.close()) for producer in list(self.producers)]
        if flushes:
            await asyncio.wait(flushes, timeout=FLUSH_BOUND)
            for flush in flushes:
                flush.cancel()
            await asyncio.gather(*flushes, return_exceptions=True)
        await self.client.close()
        for producer in list(self.producers):
            producer.abandon()
        self.readers.clear()
        self.producers.clear()

    def _read_some(self, handle: Any, topic: str, end: bytes) -> list[Any]:
        """The next messages up to position `end`, in a thread of their own.

        Several of the client's asynchronous receives at once do not answer in order, one at a
        time is slow, and a listener would need another way to hold the client up.
        """
        chunk: list[Any] = []
        size = 0
        try:
            while len(chunk) < _CHUNK_MESSAGES and size < _CHUNK_BYTES:
                raw = self.client.read(handle, topic)
                chunk.append(raw)
                size += raw.length()
                if position_of(raw) >= end:
                    break
        except BrokerUnreachable:
            if not chunk:
                raise
        return chunk

    async def _check_start(
        self, handle: Any, topic: str, start: bytes, found: asyncio.Future[bool]
    ) -> None:
        asked = asyncio.ensure_future(
            self.client.ask(f"read {topic}", handle.has_message_available_async)
        )
        timeout = self.client.timeout
        try:
            await asyncio.wait([found, asked], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not found.done() and asked.done():
                # "None there" may also mean that the first message is just on its way to us.
                await asyncio.wait([found], timeout=timeout if asked.result() else _GRACE)
            if not found.done() and not (asked.done() and not asked.result()):
                raise BrokerUnreachable(f"{self.client.url}: no answer while opening {topic}")
        finally:
            asked.cancel()
        if not (found.done() and found.result()):
            raise PositionGone(f"{topic}: the log does not hold the message at {written(start)}")
