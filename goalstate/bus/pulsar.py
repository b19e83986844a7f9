"""The bus over Apache Pulsar: the only module that imports the Pulsar client.

It uses the client's compiled core (`_pulsar`) directly: the Python classes over it offer either
asyncio or listeners, and thousands of readers in one process need both. Every callback of the
client, from whatever thread, goes through one `Mailbox` into the event loop.

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
6.  LATEST is resolved to a position before the reader opens. A reader opened by the client's own
    "latest" and cut off before its first message would resume at the then newest one.

Traps of the client library that shaped this: `create_table_view` crashes the process; its Python
logger is called for every debug line under the interpreter lock (so its log goes to a file, by
default nowhere: what matters comes back as a result); a seek takes 0.1 s.

A send that was under way while the connection broke is sent again by the client, and may then be
in the log twice. Who cannot live with that numbers its messages.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import itertools
import os
import secrets
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import _pulsar  # type: ignore[import-not-found,unused-ignore]

from goalstate.bus.base import EARLIEST, FLUSH_BOUND, LATEST, MAX_PAYLOAD, Message, Sink
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusClosed,
    BusError,
    MessageTooLarge,
    PositionGone,
    ProducerFenced,
)
from goalstate.bus.mailbox import Mailbox

_POSITION = struct.Struct(">QQI")
_DEFAULT_PORT = 6650
#: Opens and closes under way at once, so that each of them is answered well within its bound.
_CONCURRENT_OPENS = 100
#: Bytes of delivered messages that may wait for the loop before the client is held up.
_BACKLOG_BYTES = 64 * 1024 * 1024
#: What a waiting message weighs besides its payload, in bytes.
_MESSAGE_OVERHEAD = 512
#: How much of what was decoded is kept for the other readers of the same topic.
_SHARED_BYTES = 64 * 1024 * 1024
_SHARED_MESSAGES = 8192
#: How much of a topic is read in one go while it is read to its end.
_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 8 * 1024 * 1024
#: How long a message may still be on its way after the client said that there is none, seconds.
_GRACE = 1.0

_ERRORS: dict[str, type[BusError]] = {
    "ProducerFenced": ProducerFenced,
    "ProducerBusy": ProducerFenced,
    "MessageTooBig": MessageTooLarge,
    "AlreadyClosed": BusClosed,
    "ConsumerBusy": BusError,
    "InvalidTopicName": BusError,
    "TopicNotFound": BusError,
    "TopicTerminated": BusError,
    "AuthenticationError": BusError,
    "AuthorizationError": BusError,
    "NotAllowedError": BusError,
    "InvalidConfiguration": BusError,
}


def _error(result: Any, what: str, detail: str = "") -> BusError:
    """The error for a result of the client. What is not known otherwise is a broker's absence."""
    kind = _ERRORS.get(result.name, BrokerUnreachable)
    return kind(f"{what}: {result.name}" + (f" ({detail.strip()})" if detail.strip() else ""))


def _position(message_id: Any) -> bytes:
    return _POSITION.pack(
        message_id.ledger_id(), message_id.entry_id(), message_id.batch_index() + 1
    )


def _message_id(topic: str, position: bytes) -> Any:
    if len(position) != _POSITION.size:
        raise PositionGone(f"{topic}: {position.hex()} is no position of Apache Pulsar")
    ledger, entry, index = _POSITION.unpack(position)
    return _pulsar.MessageId(-1, ledger, entry, index - 1)


_thread = threading.local()


def _keep_thread_state() -> None:
    """Keep the interpreter's state for the calling thread of the client until that thread ends.

    A thread that the interpreter does not know gets a state for each callback and loses it
    afterwards. In Python 3.11 that maps and unmaps memory, about half of a delivery's whole cost.
    One unmatched "ensure" keeps the state. It is small; a client has two such threads.
    """
    ctypes.pythonapi.PyGILState_Ensure()
    _thread.kept = True


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
        message_id = raw.message_id()
        if self._readers.get(topic, 0) <= 1:
            return self._decode(topic, raw, message_id)
        place = (topic, message_id.serialize())
        message = self._shared.get(place)
        if message is None:
            message = self._shared[place] = self._decode(topic, raw, message_id)
            self._order.append(place)
            self._bytes += len(message.payload)
            while self._bytes > _SHARED_BYTES or len(self._order) > _SHARED_MESSAGES:
                self._bytes -= len(self._shared.pop(self._order.popleft()).payload)
        return message

    @staticmethod
    def _decode(topic: str, raw: Any, message_id: Any) -> Message:
        return Message(
            topic,
            raw.partition_key(),
            MappingProxyType(raw.properties()),
            raw.data(),
            _position(message_id),
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
        answer: asyncio.Future[bytes] = self._bus.loop.create_future()
        if self._closed:
            answer.set_exception(BusClosed(f"{self._topic}: the producer is closed"))
            return answer
        if len(payload) > MAX_PAYLOAD:
            answer.set_exception(
                MessageTooLarge(f"{self._topic}: {len(payload)} bytes, at most {MAX_PAYLOAD}")
            )
            return answer
        builder = _pulsar.MessageBuilder()
        builder.content(payload)
        if key:
            builder.partition_key(key)
        if properties:
            for name, value in properties.items():
                builder.property(name, value)
        put = self._bus.mailbox.put
        handler = self._on_answer

        def answered(result: Any, message_id: Any) -> None:
            if not hasattr(_thread, "kept"):
                _keep_thread_state()
            put(handler, answer, result, message_id)

        self._unanswered.add(answer)
        self._producer.send_async(builder.build(), answered)
        return answer

    async def flush(self) -> None:
        await self._flush(None)

    async def close(self) -> None:
        self._closed = True
        await self._flush(FLUSH_BOUND)
        self.abandon()
        if self in self._bus.producers:
            self._bus.producers.discard(self)
            await self._bus.close_handle(self._producer)

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
            # Only pushes an unfinished batch out; the sends' own answers tell when they are done.
            self._producer.flush_async(lambda result: None)
            await asyncio.wait(list(self._unanswered), timeout=timeout)

    def _on_answer(self, answer: asyncio.Future[bytes], result: Any, message_id: Any) -> None:
        self._unanswered.discard(answer)
        if not answer.done():
            if result == _pulsar.Result.Ok:
                answer.set_result(_position(message_id))
            else:
                answer.set_exception(_error(result, f"send to {self._topic}"))


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
        found: asyncio.Future[bool] = self._bus.loop.create_future()
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
            await self._bus.close_handle(self.handle)


class PulsarBus:
    """`base.Bus` over Apache Pulsar. Make it with `connect`; it belongs to the running loop."""

    def __init__(self, url: str, clients: list[Any], settings: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        self.mailbox = Mailbox(_BACKLOG_BYTES)
        self.decoder = _Decoder()
        self.readers: set[PulsarReader] = set()
        self.producers: set[PulsarProducer] = set()
        self._url = url
        self._clients = clients
        self._name = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._settings = settings
        self._opens = asyncio.Semaphore(_CONCURRENT_OPENS)
        self._closed = False
        # A client that outlives its loop would call back into an interpreter that is gone.
        atexit.register(self._abandon)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        compression: str = "zstd",
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
        await _probe(url, min(timeout, 5.0))
        clients = []
        for _ in range(connections):
            configuration = _pulsar.ClientConfiguration()
            configuration.io_threads(1)
            configuration.message_listener_threads(1)
            configuration.concurrent_lookup_requests(50_000)
            configuration.operation_timeout_seconds(max(1, round(timeout)))
            configuration.connection_timeout(5_000)
            configuration.stats_interval_in_seconds(0)
            configuration.set_file_logger(_pulsar.LoggerLevel.Error, log_file)
            clients.append(_pulsar.Client(url, configuration))
        settings = {
            "compression": _compression(compression),
            "receiver_queue": receiver_queue,
            "send_timeout": send_timeout,
            "timeout": timeout,
        }
        return cls(url, clients, settings)

    async def open_producer(
        self, topic: str, *, exclusive: bool = False, batch: bool = False, name: str = ""
    ) -> PulsarProducer:
        """As `base.Bus.open_producer`. `name` must be unique on the topic, if given."""
        configuration = _pulsar.ProducerConfiguration()
        configuration.batching_enabled(batch)
        if batch:
            configuration.batching_max_publish_delay_ms(3)
            configuration.batching_max_messages(1000)
            configuration.batching_max_allowed_size_in_bytes(128 * 1024)
        configuration.compression_type(self._settings["compression"])
        configuration.max_pending_messages(0)
        configuration.block_if_queue_full(False)
        configuration.send_timeout_millis(round(self._settings["send_timeout"] * 1000))
        if exclusive:
            configuration.access_mode(_pulsar.ProducerAccessMode.Exclusive)
        if name:
            configuration.producer_name(name)
        handle = await self._open(
            f"producer on {topic}",
            lambda done: self._client().create_producer_async_v2(topic, configuration, done),
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
        put = self.mailbox.put_weighed
        receive = reader.receive

        def listener(_: Any, raw: Any) -> None:
            if not hasattr(_thread, "kept"):
                _keep_thread_state()
            put(raw.length() + _MESSAGE_OVERHEAD, receive, raw)

        found = reader.expect(start) if start != EARLIEST else None
        self.decoder.opened(topic)
        try:
            reader.handle = await self._open_handle(
                topic, start, self._settings["receiver_queue"], listener
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
        handle = await self._open_handle(topic, start, 1000, None)
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
            await self.close_handle(handle)

    async def last(self, topic: str) -> Message | None:
        """As `base.Bus.last`. Takes some 0.1 s: see the traps in the module's text."""
        handle = await self._open_handle(topic, LATEST, 1, None)
        try:
            held = await self._ask(f"read {topic}", handle.has_message_available_async)
            if not held:
                return None
            raw = await self._ask(f"read {topic}", handle.read_next_async)
            return self.decoder.decode(topic, raw)
        finally:
            await self.close_handle(handle)

    async def close(self) -> None:
        """As `base.Bus.close`. Closing twice is harmless."""
        if self._closed:
            return
        for reader in self.readers:
            reader.detach()
        flushes = [asyncio.ensure_future(producer.close()) for producer in list(self.producers)]
        if flushes:
            await asyncio.wait(flushes, timeout=FLUSH_BOUND)
            for flush in flushes:
                flush.cancel()
            await asyncio.gather(*flushes, return_exceptions=True)
        self._closed = True
        closing = [self._closing(client) for client in self._clients]
        await asyncio.gather(*closing)
        for producer in list(self.producers):
            producer.abandon()
        self.mailbox.close()
        self.readers.clear()
        self.producers.clear()
        atexit.unregister(self._abandon)

    async def close_handle(self, handle: Any) -> None:
        """Close a reader or producer of the client; an error then means that it is gone."""
        if self._closed:
            return
        try:
            async with self._opens:
                await self._ask("close", handle.close_async, FLUSH_BOUND)
        except BusError:
            return

    def _read_some(self, handle: Any, topic: str, end: bytes) -> list[Any]:
        """The next messages up to position `end`, in a thread of their own.

        Several of the client's asynchronous receives at once do not answer in order, one at a
        time is slow, and a listener would need another way to hold the client up.
        """
        chunk: list[Any] = []
        size = 0
        try:
            while len(chunk) < _CHUNK_MESSAGES and size < _CHUNK_BYTES:
                raw = handle.read_next(round(self._settings["timeout"] * 1000))
                chunk.append(raw)
                size += raw.length()
                if _position(raw.message_id()) >= end:
                    break
        except _pulsar.PulsarException as error:
            if not chunk:
                raise BrokerUnreachable(f"{self._url}: read {topic}: {error}") from error
        return chunk

    async def _closing(self, client: Any) -> None:
        done: asyncio.Future[None] = self.loop.create_future()

        def closed(result: Any) -> None:
            self.mailbox.put(done.cancel)

        client.close_async(closed)
        await asyncio.wait([done], timeout=5)
        # Waits for the client's threads. One that is still on its way into the interpreter when
        # that ends takes the process down with it.
        await asyncio.to_thread(client.shutdown)

    async def _open_handle(
        self, topic: str, start: bytes, queue: int, listener: Callable[[Any, Any], None] | None
    ) -> Any:
        """Open a reader of the client; one that starts at a position gets that message first."""
        configuration = _pulsar.ReaderConfiguration()
        configuration.receiver_queue_size(queue)
        # Once a reader was refused as "ConsumerBusy", as if its random name were taken.
        configuration.subscription_role_prefix(f"{self._name}-{next(self._numbers)}")
        configuration.start_message_id_inclusive(start != EARLIEST)
        if listener is not None:
            configuration.reader_listener(listener)
        if start == EARLIEST:
            message_id = _pulsar.MessageId.earliest
        elif start == LATEST:
            message_id = _pulsar.MessageId.latest
        else:
            message_id = _message_id(topic, start)
        return await self._open(
            f"reader on {topic}",
            lambda done: self._client().create_reader_async_v2(
                topic, message_id, configuration, done
            ),
        )

    async def _check_start(
        self, handle: Any, topic: str, start: bytes, found: asyncio.Future[bool]
    ) -> None:
        asked = asyncio.ensure_future(
            self._ask(f"read {topic}", handle.has_message_available_async)
        )
        timeout = self._settings["timeout"]
        try:
            await asyncio.wait([found, asked], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not found.done() and asked.done():
                # "None there" may also mean that the first message is just on its way to us.
                await asyncio.wait([found], timeout=timeout if asked.result() else _GRACE)
            if not found.done() and not (asked.done() and not asked.result()):
                raise BrokerUnreachable(f"{self._url}: no answer while opening {topic}")
        finally:
            asked.cancel()
        if not (found.done() and found.result()):
            raise PositionGone(
                f"{topic}: the log does not hold the message at {_POSITION.unpack(start)}"
            )

    def _client(self) -> Any:
        return self._clients[next(self._numbers) % len(self._clients)]

    async def _open(self, what: str, call: Callable[[Callable[[Any], None]], None]) -> Any:
        self._check_open()
        async with self._opens:
            self._check_open()
            opened: asyncio.Future[Any] = self.loop.create_future()

            def arrived(answer: Any) -> None:
                if opened.done():  # nobody waits any more: do not leave it open
                    if not isinstance(answer, _pulsar.Error):
                        answer.close_async(lambda result: None)
                elif isinstance(answer, _pulsar.Error):
                    opened.set_exception(
                        _error(answer.error, f"{self._url}: {what}", answer.message)
                    )
                else:
                    opened.set_result(answer)

            call(lambda answer: self.mailbox.put(arrived, answer))
            # The client has its own bound, which it stretches while it tries to reconnect.
            try:
                async with asyncio.timeout(self._settings["timeout"] + 1.0):
                    return await opened
            except TimeoutError:
                raise BrokerUnreachable(f"{self._url}: {what}: no answer") from None

    async def _ask(
        self, what: str, call: Callable[[Callable[..., None]], None], timeout: float | None = None
    ) -> Any:
        """One asynchronous call of the client that answers (result[, value]).

        `timeout`: seconds until it counts as unanswered, by default a little over the client's.
        """
        answer: asyncio.Future[Any] = self.loop.create_future()

        def arrived(result: Any, value: Any = None) -> None:
            if answer.done():
                return
            if result == _pulsar.Result.Ok:
                answer.set_result(value)
            else:
                answer.set_exception(_error(result, f"{self._url}: {what}"))

        call(lambda *outcome: self.mailbox.put(arrived, *outcome))
        try:
            async with asyncio.timeout(timeout or self._settings["timeout"] + 1.0):
                return await answer
        except TimeoutError:
            raise BrokerUnreachable(f"{self._url}: {what}: no answer") from None

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed(f"{self._url}: the bus is closed")

    def _abandon(self) -> None:
        """At the interpreter's exit: make the client's threads call nobody."""
        self.mailbox.close()
        for client in self._clients:
            client.shutdown()


def _compression(name: str) -> Any:
    kinds = _pulsar.CompressionType
    known = {
        "none": kinds.NONE,
        "lz4": kinds.LZ4,
        "zlib": kinds.ZLib,
        "zstd": kinds.ZSTD,
        "snappy": kinds.SNAPPY,
    }
    if name not in known:
        raise ValueError(f"compression {name!r} is none of {', '.join(known)}")
    return known[name]


async def _probe(url: str, timeout: float) -> None:
    """See that somebody listens at one of the URL's addresses. Raises BrokerUnreachable."""
    parts = urlsplit(url)
    if parts.scheme not in ("pulsar", "pulsar+ssl") or not parts.netloc:
        raise BrokerUnreachable(f"{url}: not an address like pulsar://host:{_DEFAULT_PORT}")
    reasons = []
    for address in parts.netloc.split(","):
        try:
            one = urlsplit(f"//{address}")
            host, port = one.hostname or "", one.port or _DEFAULT_PORT
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
        except (OSError, ValueError, TimeoutError) as error:
            reasons.append(f"{address}: {str(error) or 'no answer'}")
            continue
        writer.close()
        return
    raise BrokerUnreachable(f"nobody answers at {url} ({'; '.join(reasons)})")
