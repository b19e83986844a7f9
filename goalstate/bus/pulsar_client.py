"""The client library of Apache Pulsar, driven from an event loop: what it takes to open, ask, send
and close. The only module that imports it.

The client's compiled core (`_pulsar`) is used directly: the Python classes over it offer either
asyncio or listeners, and thousands of readers in one process need both. Every callback of the
client, from whatever thread, goes through one `Mailbox` into the event loop.

Traps of the client library that shaped this: `create_table_view` crashes the process; its Python
logger is called for every debug line under the interpreter lock (so its log goes to a file, by
default nowhere: what matters comes back as a result); a seek takes 0.1 s; `flush_async`, alone
among its calls, keeps the interpreter lock, for which a thread that fails sends may be waiting.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import itertools
import json
import secrets
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import _pulsar  # type: ignore[import-not-found,unused-ignore]

from goalstate.bus.base import EARLIEST, FENCED_BOUND, FLUSH_BOUND, LATEST
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusClosed,
    BusError,
    MessageTooLarge,
    PositionGone,
    ProducerFenced,
)
from goalstate.bus.mailbox import Mailbox

#: What the broker says of producers that are not exclusive (any more); seconds to wait for them.
_LEFT_BEHIND = "existing shared producers"
_LEFT_BEHIND_S = 0.02
#: The one property of Pulsar that holds all of a message's, as a JSON object.
PACKED = "goalstate"
_POSITION = struct.Struct(">QQI")
_DEFAULT_PORT = 6650
#: Opens and closes under way at once, so that each of them is answered well within its bound.
_CONCURRENT_OPENS = 100
#: Bytes of delivered messages that may wait for the loop before the client is held up.
_BACKLOG_BYTES = 64 * 1024 * 1024
#: What a waiting message weighs besides its payload, in bytes.
_MESSAGE_OVERHEAD = 512

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


def packed(properties: Mapping[str, str]) -> dict[str, str]:
    """Properties of Pulsar that hold these."""
    if not properties:
        return {}
    return {PACKED: json.dumps(dict(properties), separators=(",", ":"))}


def properties_of(raw: Any) -> dict[str, str]:
    """The properties of a delivered message; of others' messages, as they are."""
    properties: dict[str, str] = raw.properties()
    text = properties.get(PACKED)
    if text is None:
        return properties
    try:
        found = json.loads(text)
    except ValueError:
        return properties
    if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
        return found
    return properties


def position_of(raw: Any) -> bytes:
    """The position of a delivered message, see `pulsar`, law 4."""
    return _position(raw.message_id())


def _position(message_id: Any) -> bytes:
    return _POSITION.pack(
        message_id.ledger_id(), message_id.entry_id(), message_id.batch_index() + 1
    )


def written(position: bytes) -> str:
    """A position for people: ledger, entry, place in the batch."""
    return str(_POSITION.unpack(position))


def message_id(topic: str, position: bytes) -> Any:
    """The client's own id of the message at a position. Raises PositionGone if it is none."""
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


class Client:
    """The connections of one bus. Made in the loop that it belongs to.

    Handles are the client's own producers and readers.
    """

    def __init__(
        self,
        url: str,
        *,
        compression: str,
        connections: int,
        timeout: float,
        send_timeout: float,
        log_file: str,
    ) -> None:
        """As `pulsar.PulsarBus.connect`."""
        self.url = url
        self.timeout = timeout
        self.loop = asyncio.get_running_loop()
        self.mailbox = Mailbox(_BACKLOG_BYTES)
        self._send_timeout = send_timeout
        self._compression = _compression(compression)
        self._clients = []
        for _ in range(connections):
            configuration = _pulsar.ClientConfiguration()
            configuration.io_threads(1)
            configuration.message_listener_threads(1)
            configuration.concurrent_lookup_requests(50_000)
            configuration.operation_timeout_seconds(max(1, round(timeout)))
            configuration.connection_timeout(5_000)
            configuration.stats_interval_in_seconds(0)
            configuration.set_file_logger(_pulsar.LoggerLevel.Error, log_file)
            self._clients.append(_pulsar.Client(url, configuration))
        self._name = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._opens = asyncio.Semaphore(_CONCURRENT_OPENS)
        self._closed = False
        # A client that outlives its loop would call back into an interpreter that is gone.
        atexit.register(self._abandon)

    async def open_producer(
        self, topic: str, *, exclusive: bool, take_over: bool, batch: bool, name: str
    ) -> Any:
        """Raises BusError."""
        modes = _pulsar.ProducerAccessMode
        if exclusive and take_over:
            # Only to throw the holder out: a producer of this mode that is itself thrown out later
            # connects again by itself, is refused, and takes the then holder down with it.
            mode = modes.ExclusiveWithFencing
            await self.close_handle(await self._open_producer(topic, mode, batch, name))
            return await self._open_after_fencing(topic, batch, name)
        mode = modes.Exclusive if exclusive else modes.Shared
        return await self._open_producer(topic, mode, batch, name)

    async def _open_after_fencing(self, topic: str, batch: bool, name: str) -> Any:
        """The broker may still be about to forget those that were thrown out."""
        mode = _pulsar.ProducerAccessMode.Exclusive
        last = self.loop.time() + FENCED_BOUND
        while True:
            try:
                return await self._open_producer(topic, mode, batch, name)
            except ProducerFenced as error:
                # An exclusive one, however, is somebody who was quicker.
                if _LEFT_BEHIND not in str(error) or self.loop.time() > last:
                    raise
            await asyncio.sleep(_LEFT_BEHIND_S)

    async def _open_producer(self, topic: str, mode: Any, batch: bool, name: str) -> Any:
        configuration = _pulsar.ProducerConfiguration()
        configuration.access_mode(mode)
        configuration.batching_enabled(batch)
        if batch:
            configuration.batching_max_publish_delay_ms(3)
            configuration.batching_max_messages(1000)
            configuration.batching_max_allowed_size_in_bytes(128 * 1024)
        configuration.compression_type(self._compression)
        configuration.max_pending_messages(0)
        configuration.block_if_queue_full(False)
        configuration.send_timeout_millis(round(self._send_timeout * 1000))
        if name:
            configuration.producer_name(name)
        return await self._open(
            f"producer on {topic}",
            lambda done: self._next().create_producer_async_v2(topic, configuration, done),
        )

    async def open_reader(
        self, topic: str, start: bytes, queue: int, receive: Callable[[Any], None] | None
    ) -> Any:
        """Open a reader; one that starts at a position gets the message there first.

        `receive` is called in the loop with each message; without it the handle is asked. `queue`:
        messages that the client holds ready. Raises BusError.
        """
        configuration = _pulsar.ReaderConfiguration()
        configuration.receiver_queue_size(queue)
        # Once a reader was refused as "ConsumerBusy", as if its random name were taken.
        configuration.subscription_role_prefix(f"{self._name}-{next(self._numbers)}")
        configuration.start_message_id_inclusive(start != EARLIEST)
        if receive is not None:
            configuration.reader_listener(self._listener(receive))
        if start == EARLIEST:
            begin = _pulsar.MessageId.earliest
        elif start == LATEST:
            begin = _pulsar.MessageId.latest
        else:
            begin = message_id(topic, start)
        return await self._open(
            f"reader on {topic}",
            lambda done: self._next().create_reader_async_v2(topic, begin, configuration, done),
        )

    def _listener(self, receive: Callable[[Any], None]) -> Callable[[Any, Any], None]:
        put = self.mailbox.put_weighed

        def listener(_: Any, raw: Any) -> None:
            if not hasattr(_thread, "kept"):
                _keep_thread_state()
            put(raw.length() + _MESSAGE_OVERHEAD, receive, raw)

        return listener

    def send(
        self,
        handle: Any,
        topic: str,
        payload: bytes,
        key: str,
        properties: Mapping[str, str],
        answered: Callable[[bytes | None, BusError | None], None],
    ) -> None:
        """Send through a producer. `answered` is called in the loop: position, or error."""
        builder = _pulsar.MessageBuilder()
        builder.content(payload)
        if key:
            builder.partition_key(key)
        for name, value in packed(properties).items():
            builder.property(name, value)
        put = self.mailbox.put

        def told(result: Any, message_id: Any) -> None:
            if result == _pulsar.Result.Ok:
                answered(_position(message_id), None)
            else:
                answered(None, _error(result, f"send to {topic}"))

        def arrived(result: Any, message_id: Any) -> None:
            if not hasattr(_thread, "kept"):
                _keep_thread_state()
            put(told, result, message_id)

        handle.send_async(builder.build(), arrived)

    def read(self, handle: Any, topic: str) -> Any:
        """The next message of a reader without `receive`; blocks. Raises BrokerUnreachable."""
        try:
            return handle.read_next(round(self.timeout * 1000))
        except _pulsar.PulsarException as error:
            raise BrokerUnreachable(f"{self.url}: read {topic}: {error}") from error

    async def ask(
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
                answer.set_exception(_error(result, f"{self.url}: {what}"))

        call(lambda *outcome: self.mailbox.put(arrived, *outcome))
        try:
            async with asyncio.timeout(timeout or self.timeout + 1.0):
                return await answer
        except TimeoutError:
            raise BrokerUnreachable(f"{self.url}: {what}: no answer") from None

    async def close_handle(self, handle: Any) -> None:
        """Close a reader or producer; an error then means that it is gone."""
        if self._closed:
            return
        try:
            async with self._opens:
                await self.ask("close", handle.close_async, FLUSH_BOUND)
        except BusError:
            return

    async def close(self) -> None:
        """Close what is open, and end the client's threads."""
        self._closed = True
        await asyncio.gather(*(self._closing(client) for client in self._clients))
        self.mailbox.close()
        atexit.unregister(self._abandon)

    async def _closing(self, client: Any) -> None:
        done: asyncio.Future[None] = self.loop.create_future()

        def closed(result: Any) -> None:
            self.mailbox.put(done.cancel)

        client.close_async(closed)
        await asyncio.wait([done], timeout=5)
        # Waits for the client's threads. One that is still on its way into the interpreter when
        # that ends takes the process down with it.
        await asyncio.to_thread(client.shutdown)

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
                        _error(answer.error, f"{self.url}: {what}", answer.message)
                    )
                else:
                    opened.set_result(answer)

            call(lambda answer: self.mailbox.put(arrived, answer))
            # The client has its own bound, which it stretches while it tries to reconnect.
            try:
                async with asyncio.timeout(self.timeout + 1.0):
                    return await opened
            except BaseException as error:
                if opened.done() and not opened.cancelled() and opened.exception() is None:
                    # It was answered in the very turn in which nobody waited any more.
                    opened.result().close_async(lambda result: None)
                if isinstance(error, TimeoutError):
                    raise BrokerUnreachable(f"{self.url}: {what}: no answer") from None
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise BusClosed(f"{self.url}: the bus is closed")

    def _next(self) -> Any:
        return self._clients[next(self._numbers) % len(self._clients)]

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


async def probe(url: str, timeout: float) -> None:
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
