"""The bus over the embedded broker. Laws, besides those of `base.py`:

1.  One connection carries everything. When it breaks, the bus tries again until it is closed, and
    then re-opens its readers where they were and its producers as they were.
2.  A send is repeated, in order, until it is answered or its time is up. One that was under way
    when the connection broke may then be in the log twice.
3.  Readers of one topic that are at the same place share the decoded messages.
4.  A reader whose position the broker no longer holds when the bus comes back is closed and
    reported to the loop's exception handler. The others go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

from goalstate.bus import errors
from goalstate.bus.base import EARLIEST, FLUSH_BOUND, LATEST, MAX_PAYLOAD, Message, Sink
from goalstate.bus.embedded import wire
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusClosed,
    BusError,
    MessageTooLarge,
    PositionGone,
    ProducerFenced,
)

#: Pieces of logs that are kept decoded for other readers at the same place.
_SHARED_PIECES = 64
#: Seconds until an attempt to connect, with all that is re-opened, counts as failed.
_JOIN_BOUND = 5.0
#: Seconds before an attempt to connect again.
_RETRY_FIRST, _RETRY_MOST = 0.02, 0.5
#: Seconds between two looks at the sends that wait.
_EXPIRY = 1.0


class _Link(asyncio.Protocol):
    """One connection. Tells the bus of frames and of its end."""

    def __init__(self, bus: EmbeddedBus) -> None:
        self._bus = bus
        self._deframer = wire.Deframer()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._deframer.feed(data):
                self._bus.on_frame(kind, body)
        except (wire.NotOurs, ValueError, KeyError, struct.error) as error:
            self._bus.loop.call_exception_handler(
                {"message": "the embedded broker sent what cannot be read", "exception": error}
            )
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bus.on_lost(self)


class EmbeddedProducer:
    """`base.Producer`."""

    def __init__(
        self, bus: EmbeddedBus, topic: str, number: int, exclusive: bool, take_over: bool
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._outstanding: set[asyncio.Future[bytes]] = set()
        self._closed = False
        self._token = secrets.token_hex(8)
        self._exclusive = exclusive
        self._take_over = take_over
        #: By what the broker tells whether somebody had the topic since; 0: not told yet.
        self.epoch = 0
        self.number = number
        #: Set when it lost its topic while it was away.
        self.fenced: BusError | None = None

    @property
    def topic(self) -> str:
        return self._topic

    @property
    def claim(self) -> dict[str, Any]:
        """The call that opens it, also again."""
        return {
            "op": "open_producer",
            "producer": self.number,
            "topic": self._topic,
            "token": self._token,
            "exclusive": self._exclusive,
            "take_over": self._take_over and not self.epoch,
            "epoch": self.epoch,
        }

    def send(
        self, payload: bytes, *, key: str = "", properties: Mapping[str, str] | None = None
    ) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = self._bus.loop.create_future()
        error = self._refusal(payload)
        if error is None:
            record = wire.record(time.time_ns(), key, properties or {}, payload)
            if len(record) - len(payload) > wire.MAX_HEAD:
                error = MessageTooLarge(f"{self._topic}: key and properties over {wire.MAX_HEAD}")
        if error is not None:
            answer.set_exception(error)
            return answer
        self._outstanding.add(answer)
        answer.add_done_callback(self._outstanding.discard)
        self._bus.publish(self.number, record, answer)
        return answer

    async def flush(self) -> None:
        if self._outstanding:
            await asyncio.wait(list(self._outstanding))

    async def close(self) -> None:
        self._closed = True
        if self._outstanding:
            await asyncio.wait(list(self._outstanding), timeout=FLUSH_BOUND)
        for answer in list(self._outstanding):
            if not answer.done():
                answer.set_exception(BusClosed(f"{self._topic}: the producer was closed"))
        await self._bus.forget_producer(self)

    def _refusal(self, payload: bytes) -> BusError | None:
        if self._closed or self._bus.closed:
            return BusClosed(f"{self._topic}: the producer is closed")
        if self.fenced:
            return ProducerFenced(str(self.fenced))
        if len(payload) > MAX_PAYLOAD:
            return MessageTooLarge(f"{self._topic}: {len(payload)} bytes, at most {MAX_PAYLOAD}")
        return None


class EmbeddedReader:
    """`base.Reader`."""

    def __init__(self, bus: EmbeddedBus, topic: str, number: int, sink: Sink) -> None:
        self._bus = bus
        self._topic = topic
        self.number = number
        self.sink = sink
        #: The index in the log that comes next.
        self.next = 0
        self.opened = False
        self.closed = False

    @property
    def topic(self) -> str:
        return self._topic

    def claim(self, start: bytes) -> dict[str, Any]:
        """The call that opens it after position `start`."""
        return {
            "op": "open_reader",
            "reader": self.number,
            "topic": self._topic,
            "start": start.hex(),
        }

    async def close(self) -> None:
        self.closed = True
        await self._bus.forget_reader(self)


class EmbeddedBus:
    """`base.Bus`. Make it with `connect`; it belongs to the running loop."""

    def __init__(self, url: str, host: str, port: int, timeout: float, send_timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self._url = url
        self._address = (host, port)
        self._timeout = timeout
        self._send_timeout = send_timeout
        self._link: _Link | None = None
        self._linked = asyncio.Event()
        self._lost = asyncio.Event()
        #: The broker has answered something since this connection was made.
        self._proven = False
        self._keeper: asyncio.Task[None] | None = None
        self._store = b""
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._sends: dict[int, tuple[bytes, asyncio.Future[bytes], float]] = {}
        self._readers: dict[int, EmbeddedReader] = {}
        self._producers: dict[int, EmbeddedProducer] = {}
        self._outbox: list[bytes] = []
        self._shared: dict[tuple[str, int, int], list[Message]] = {}
        self._order: deque[tuple[str, int, int]] = deque()

    @classmethod
    async def connect(
        cls, url: str, *, timeout: float = 10.0, send_timeout: float = 30.0
    ) -> EmbeddedBus:
        """Connect to the broker at `url` (embedded://127.0.0.1:port).

        `timeout`, `send_timeout`: seconds until a call and a send fail with BrokerUnreachable.
        Raises BrokerUnreachable within 5 s if nobody answers.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme != "embedded" or not host or not port:
            raise BrokerUnreachable(f"{url}: not an address like embedded://127.0.0.1:port")
        bus = cls(url, host, port, timeout, send_timeout)
        try:
            async with asyncio.timeout(_JOIN_BOUND):
                await bus._join()
        except (OSError, TimeoutError) as error:
            raise BrokerUnreachable(f"nobody answers at {url} ({error})") from None
        finally:
            if not bus._linked.is_set():
                bus._drop_link()
        bus._keeper = asyncio.create_task(bus._keep())
        return bus

    async def open_producer(
        self,
        topic: str,
        *,
        exclusive: bool = False,
        take_over: bool = False,
        batch: bool = False,
        name: str = "",
    ) -> EmbeddedProducer:
        """As `base.Bus.open_producer`; sends of one turn of the loop always go together."""
        producer = EmbeddedProducer(self, topic, next(self._numbers), exclusive, take_over)
        opened = await self._call(producer.claim)
        producer.epoch = opened["epoch"]
        self._producers[producer.number] = producer
        return producer

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> EmbeddedReader:
        """As `base.Bus.open_reader`."""
        reader = EmbeddedReader(self, topic, next(self._numbers), sink)
        # Deliveries may come right behind the answer, before this coroutine runs again.
        self._readers[reader.number] = reader
        try:
            opened = await self._call(reader.claim(start))
        except BaseException:
            self._readers.pop(reader.number, None)
            raise
        reader.next = max(reader.next, opened["next"])
        reader.opened = True
        return reader

    async def read_to_end(self, topic: str, start: bytes) -> AsyncIterator[Message]:
        """As `base.Bus.read_to_end`."""
        if start == LATEST:
            return
        first, end, row = await self._call({"op": "read", "topic": topic, "start": start.hex()})
        while True:
            for message in wire.messages(topic, self._store, first, row, wire.RECORDS_HEAD.size):
                if first >= end:
                    return
                first += 1
                yield message
            if first >= end:
                return
            start = wire.position(self._store, first - 1)
            first, _, row = await self._call({"op": "read", "topic": topic, "start": start.hex()})

    async def last(self, topic: str) -> Message | None:
        """As `base.Bus.last`."""
        first, _, row = await self._call({"op": "read", "topic": topic, "start": None})
        return next(wire.messages(topic, self._store, first, row, wire.RECORDS_HEAD.size), None)

    async def close(self) -> None:
        """As `base.Bus.close`. Closing twice is harmless."""
        if self.closed:
            return
        for reader in self._readers.values():
            reader.closed = True
        if self._sends:
            await asyncio.wait([send[1] for send in self._sends.values()], timeout=FLUSH_BOUND)
        self.closed = True
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        self._flush()
        self._drop_link()
        self._linked.set()  # calls that still wait for a connection learn that none comes
        gone = BusClosed(f"{self._url}: the bus was closed")
        for answer in [*self._calls.values(), *(send[1] for send in self._sends.values())]:
            if not answer.done():
                answer.set_exception(gone)

    # -- for producers and readers -----------------------------------------------------------

    def publish(self, producer: int, record: bytes, answer: asyncio.Future[bytes]) -> None:
        """Send a record, now and after each reconnection, until `answer` is done."""
        number = next(self._numbers)
        frame = wire.frame(wire.PUBLISH, wire.PUBLISH_HEAD.pack(number, producer), record)
        self._sends[number] = (frame, answer, self.loop.time() + self._send_timeout)
        if self._linked.is_set():
            self._write(frame)

    async def forget_reader(self, reader: EmbeddedReader) -> None:
        if self._readers.pop(reader.number, None):
            await self._farewell({"op": "close_reader", "reader": reader.number})

    async def forget_producer(self, producer: EmbeddedProducer) -> None:
        if self._producers.pop(producer.number, None):
            await self._farewell({"op": "close_producer", "producer": producer.number})

    # -- the connection ----------------------------------------------------------------------

    def on_frame(self, kind: int, body: bytes) -> None:
        """Take what the broker sent."""
        if kind == wire.DELIVERY:
            self._deliver(body)
            return
        self._proven = self._linked.is_set()
        if kind == wire.ACCEPTED:
            number, index = wire.ACCEPTED_BODY.unpack(body)
            send = self._sends.pop(number, None)
            if send and not send[1].done():
                send[1].set_result(wire.position(self._store, index))
        elif kind == wire.RECORDS:
            number, first, end = wire.RECORDS_HEAD.unpack_from(body)
            call = self._calls.pop(number, None)
            if call and not call.done():
                call.set_result((first, end, body))
        else:
            self._on_reply(json.loads(body))

    def on_lost(self, link: _Link) -> None:
        """A connection has ended."""
        if link is not self._link:
            return
        self._drop_link()
        self._outbox.clear()
        error = BrokerUnreachable(f"{self._url}: the connection broke")
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.done():
                call.set_exception(error)

    def _on_reply(self, reply: dict[str, Any]) -> None:
        number = reply["id"]
        send = self._sends.pop(number, None)
        answer: asyncio.Future[Any] | None = send[1] if send else self._calls.pop(number, None)
        if answer is None or answer.done():
            return
        if "error" not in reply:
            answer.set_result(reply)
            return
        kind = getattr(errors, str(reply["error"]), BusError)
        answer.set_exception(kind(reply["text"]))

    def _deliver(self, body: bytes) -> None:
        number, first = wire.DELIVERY_HEAD.unpack_from(body)
        reader = self._readers.get(number)
        if reader is None:
            return
        place = (reader.topic, first, len(body))
        piece = self._shared.get(place)
        if piece is None:
            piece = self._shared[place] = list(
                wire.messages(reader.topic, self._store, first, body, wire.DELIVERY_HEAD.size)
            )
            self._order.append(place)
            if len(self._order) > _SHARED_PIECES:
                del self._shared[self._order.popleft()]
        sink = reader.sink
        reader.next = first + len(piece)
        for message in piece:
            if reader.closed:
                return
            try:
                sink(message)
            except Exception as error:  # a sink's own failure must not stop the other readers
                self.loop.call_exception_handler(
                    {"message": "a sink of the embedded bus raised", "exception": error}
                )

    async def _keep(self) -> None:
        """Hold the connection, and give up sends whose time has come."""
        pause = _RETRY_FIRST
        # Not `wait_for`: that may lose the cancellation by which `close` ends this.
        while not self.closed:
            if self._link is None:
                if self._proven:
                    pause = _RETRY_FIRST
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RETRY_MOST)
                try:
                    async with asyncio.timeout(_JOIN_BOUND):
                        await self._join()
                except (OSError, TimeoutError, BusError):
                    self._drop_link()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EXPIRY):
                        await self._lost.wait()
            self._expire()

    async def _join(self) -> None:
        """Connect, then put the broker's side as it was. Raises OSError, BusError."""
        self._proven = False
        _, link = await self.loop.create_connection(lambda: _Link(self), *self._address)
        self._link = link
        self._lost.clear()
        hello = await self._ask({"op": "hello"})
        store = bytes.fromhex(hello["store"])
        if self._store and store != self._store:
            self._lose_everything()
        self._store = store
        # All at once: one after the other, many would not be done within the bound.
        await asyncio.gather(
            *[self._reopen_reader(one) for one in self._readers.values() if one.opened],
            *[self._reopen_producer(one) for one in self._producers.values() if not one.fenced],
        )
        for frame, answer, _ in self._sends.values():
            if not answer.done():
                self._write(frame)
        self._linked.set()

    async def _reopen_reader(self, reader: EmbeddedReader) -> None:
        start = wire.position(self._store, reader.next - 1) if reader.next else EARLIEST
        try:
            await self._ask(reader.claim(start))
        except PositionGone as error:
            reader.closed = True
            self._readers.pop(reader.number, None)
            self.loop.call_exception_handler(
                {
                    "message": f"{self._url}: the reader of {reader.topic} is closed: the broker "
                    "came back without what was read already",
                    "exception": error,
                }
            )
            return
        if reader.closed:  # meanwhile
            await self._ask({"op": "close_reader", "reader": reader.number})

    async def _reopen_producer(self, producer: EmbeddedProducer) -> None:
        try:
            await self._ask(producer.claim)
        except ProducerFenced as error:
            producer.fenced = error
            return
        if producer.number not in self._producers:  # closed meanwhile
            await self._ask({"op": "close_producer", "producer": producer.number})

    def _lose_everything(self) -> None:
        """Another broker with other logs is at the address now: start over with those."""
        self._shared.clear()
        self._order.clear()
        for reader in self._readers.values():
            reader.next = 0
        self.loop.call_exception_handler(
            {"message": f"{self._url}: the broker came back without its logs"}
        )

    def _expire(self) -> None:
        now = self.loop.time()
        while self._sends:
            number = next(iter(self._sends))
            _, answer, deadline = self._sends[number]
            if not answer.done() and deadline > now:
                return
            del self._sends[number]
            if not answer.done():
                answer.set_exception(BrokerUnreachable(f"{self._url}: a send was not answered"))

    async def _call(self, call: dict[str, Any]) -> Any:
        """One call to the broker, once there is a connection."""
        self._check_open()
        try:
            async with asyncio.timeout(self._timeout):
                await self._linked.wait()
                self._check_open()
                return await self._ask(call)
        except TimeoutError:
            raise BrokerUnreachable(f"{self._url}: {call['op']}: no answer") from None

    def _check_open(self) -> None:
        if self.closed:
            raise BusClosed(f"{self._url}: the bus is closed")

    async def _farewell(self, call: dict[str, Any]) -> None:
        """A call whose failure means that there is nothing left to do."""
        if self._linked.is_set() and not self.closed:
            with contextlib.suppress(BusError, TimeoutError):
                async with asyncio.timeout(FLUSH_BOUND):
                    await self._ask(call)

    async def _ask(self, call: dict[str, Any]) -> Any:
        number = next(self._numbers)
        answer: asyncio.Future[Any] = self.loop.create_future()
        self._calls[number] = answer
        try:
            self._write(wire.frame(wire.CALL, json.dumps({"id": number, **call}).encode()))
            return await answer
        finally:
            self._calls.pop(number, None)

    def _write(self, frame: bytes) -> None:
        """Send with whatever else this turn of the loop sends."""
        self._outbox.append(frame)
        if len(self._outbox) == 1:
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._outbox and self._link:
            self._link.transport.write(b"".join(self._outbox))
        self._outbox.clear()

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        self._linked.clear()
        self._lost.set()
        if link:
            link.transport.close()
