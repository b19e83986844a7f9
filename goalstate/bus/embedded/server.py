"""The embedded broker's server: one connection per client, many readers and producers on each.

Laws:

1.  A send is answered after its record is in the file, and delivered after it is answered or in
    the same turn of the loop; sends of one connection are accepted in the order they came.
2.  A connection whose client does not read is not written to: readers then simply lag behind, at
    no cost in memory, because their messages stay where they are, in the log.
3.  The readers of one connection are served in turn, a bounded piece at a time.
4.  What a connection held (readers, exclusive topics) is free once it is gone. A producer that
    comes back with its token takes its topic over from its former self. Exclusive producers of a
    topic are numbered, and the newest number is in the file before its producer hears it; one that
    comes back after a later one had the topic is refused, also when the later one is gone, and
    also after the broker's restart.
5.  When the file cannot be written, nothing is answered or delivered any more: memory is then
    ahead of the file. The server has ended, and `failure` says why.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from typing import Any

from goalstate.bus.base import EARLIEST, LATEST
from goalstate.bus.embedded import wire
from goalstate.bus.embedded.store import Store
from goalstate.bus.errors import BusError, PositionGone, ProducerFenced

#: One piece of a log that goes to one reader: so many messages, or one that is larger.
_PIECE_BYTES = 256 * 1024
_PIECE_MESSAGES = 256
#: Bytes that may wait in a connection's buffer.
_HIGH_WATER = 1024 * 1024


class _Reader:
    __slots__ = ("connection", "cursor", "number", "topic")

    def __init__(self, connection: _Connection, number: int, topic: str, cursor: int) -> None:
        self.connection = connection
        self.number = number
        self.topic = topic
        self.cursor = cursor


class _Producer:
    __slots__ = ("connection", "epoch", "exclusive", "number", "take_over", "token", "topic")

    def __init__(
        self,
        connection: _Connection,
        number: int,
        topic: str,
        *,
        token: str,
        exclusive: bool,
        take_over: bool,
        epoch: int,
    ) -> None:
        self.connection = connection
        self.number = number
        self.topic = topic
        self.token = token
        self.exclusive = exclusive
        self.take_over = take_over
        #: Its number among the topic's exclusive producers, or, of another one, that of the newest
        #: of them when it opened (1: there was none); 0: it is new.
        self.epoch = epoch


class Server:
    """The broker over a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.readers: dict[str, dict[_Reader, None]] = {}
        self.producers: dict[str, dict[str, _Producer]] = {}
        #: Set when the server is to end, or has ended by itself.
        self.ended = asyncio.Event()
        #: Why it has ended by itself.
        self.failure: OSError | None = None
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> int:
        """Listen on 127.0.0.1; gives the port. Raises OSError if it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", port, backlog=1024
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        if self._server:
            self._server.close()
        self.store.close()

    def commit(self) -> None:
        """Write what was accepted, or end."""
        if self.failure:
            return
        try:
            self.store.commit()
        except OSError as error:
            self.failure = error
            self.ended.set()

    def claim(self, producer: _Producer) -> None:
        """Raises ProducerFenced."""
        holders = self.producers.setdefault(producer.topic, {})
        newest = self.store.claims.get(producer.topic, 1)
        if producer.epoch and producer.epoch < newest:
            raise ProducerFenced(f"{producer.topic}: another producer took the topic over")
        if producer.take_over or (producer.exclusive and producer.epoch > newest):
            holders.clear()
        holders.pop(producer.token, None)
        if holders and (producer.exclusive or any(one.exclusive for one in holders.values())):
            raise ProducerFenced(f"{producer.topic}: another producer holds the topic")
        if not producer.epoch:
            producer.epoch = newest + 1 if producer.exclusive else newest
        if producer.exclusive and producer.epoch > newest:
            self.store.claim(producer.topic, producer.epoch)
        holders[producer.token] = producer

    def release(self, producer: _Producer) -> None:
        holders = self.producers.get(producer.topic, {})
        if holders.get(producer.token) is producer:
            del holders[producer.token]

    def holds(self, producer: _Producer) -> bool:
        return self.producers.get(producer.topic, {}).get(producer.token) is producer

    def start_of(self, topic: str, start: bytes) -> int:
        """The index after position `start`. Raises PositionGone."""
        end = len(self.store.logs.get(topic, ()))
        if start == EARLIEST:
            return 0
        if start == LATEST:
            return end
        index = wire.index_of(self.store.name, start)
        if index is None or index >= end:
            raise PositionGone(f"{topic}: this broker's log does not hold that position")
        return index + 1

    def wake(self, topics: set[str]) -> None:
        """Serve the readers of these topics."""
        for topic in topics:
            for reader in self.readers.get(topic, ()):
                reader.connection.ready(reader)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._deframer = wire.Deframer()
        self._readers: dict[int, _Reader] = {}
        self._producers: dict[int, _Producer] = {}
        self._ready: dict[_Reader, None] = {}
        self._paused = False
        self._scheduled = False
        self._ops: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            "hello": self._hello,
            "open_reader": self._open_reader,
            "close_reader": self._close_reader,
            "open_producer": self._open_producer,
            "close_producer": self._close_producer,
            "read": self._read,
        }

    # -- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for number in list(self._readers):
            self._close_reader({"reader": number})
        for producer in self._producers.values():
            self._server.release(producer)
        self._producers.clear()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._schedule()

    def data_received(self, data: bytes) -> None:
        if self._server.failure:
            return
        answers: list[bytes] = []
        touched: set[str] = set()
        try:
            for kind, body in self._deframer.feed(data):
                if kind == wire.PUBLISH:
                    answers.append(self._publish(body, touched))
                elif kind == wire.CALL:
                    answers += self._call(body)
                else:
                    raise wire.NotOurs(f"a frame of kind {kind}")
        except (wire.NotOurs, struct.error):
            self._transport.abort()
        finally:
            self._server.commit()
        if self._server.failure:
            return
        if answers:
            self._transport.write(b"".join(answers))
        self._server.wake(touched)

    # -- requests ----------------------------------------------------------------------------

    def _publish(self, body: bytes, touched: set[str]) -> bytes:
        call, number = wire.PUBLISH_HEAD.unpack_from(body)
        producer = self._producers.get(number)
        if producer is None or not self._server.holds(producer):
            topic = producer.topic if producer else "unknown topic"
            return _refusal(call, ProducerFenced(f"{topic}: the producer does not hold it"))
        record = body[wire.PUBLISH_HEAD.size :]
        wire.check_record(record)
        index = self._server.store.append(producer.topic, record)
        touched.add(producer.topic)
        return wire.frame(wire.ACCEPTED, wire.ACCEPTED_BODY.pack(call, index))

    def _call(self, body: bytes) -> list[bytes]:
        try:
            call = json.loads(body)
            number = call["id"]
            operation = self._ops[call["op"]]
        except (ValueError, TypeError, KeyError) as error:
            raise wire.NotOurs("a call that cannot be read") from error
        try:
            answer = operation(call)
        except BusError as error:
            return [_refusal(number, error)]
        except (ValueError, TypeError, KeyError) as error:
            raise wire.NotOurs(f"a malformed call of {call['op']}") from error
        if answer is None:
            return [self._records(call)]
        return [wire.frame(wire.REPLY, json.dumps({"id": number, **answer}).encode())]

    def _hello(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"store": self._server.store.name.hex()}

    def _open_reader(self, call: dict[str, Any]) -> dict[str, Any]:
        topic = str(call["topic"])
        cursor = self._server.start_of(topic, bytes.fromhex(call["start"]))
        reader = _Reader(self, int(call["reader"]), topic, cursor)
        self._readers[reader.number] = reader
        self._server.readers.setdefault(topic, {})[reader] = None
        self.ready(reader)
        return {"next": cursor}

    def _close_reader(self, call: dict[str, Any]) -> dict[str, Any]:
        reader = self._readers.pop(int(call["reader"]), None)
        if reader:
            self._server.readers[reader.topic].pop(reader, None)
            self._ready.pop(reader, None)
        return {}

    def _open_producer(self, call: dict[str, Any]) -> dict[str, Any]:
        topic = str(call["topic"])
        if not topic:
            raise BusError("a topic without a name")
        producer = _Producer(
            self,
            int(call["producer"]),
            topic,
            token=str(call["token"]),
            exclusive=bool(call["exclusive"]),
            take_over=bool(call["exclusive"] and call["take_over"]),
            epoch=int(call["epoch"]),
        )
        self._server.claim(producer)
        self._producers[producer.number] = producer
        return {"epoch": producer.epoch}

    def _close_producer(self, call: dict[str, Any]) -> dict[str, Any]:
        producer = self._producers.pop(int(call["producer"]), None)
        if producer:
            self._server.release(producer)
        return {}

    def _read(self, call: dict[str, Any]) -> None:
        """Answered by `_records`; here only what can go wrong."""
        if call["start"] is not None:
            self._server.start_of(str(call["topic"]), bytes.fromhex(call["start"]))

    def _records(self, call: dict[str, Any]) -> bytes:
        """A piece of a log after `start`, or without a start the newest message."""
        topic = str(call["topic"])
        log = self._server.store.logs.get(topic, [])
        if call["start"] is None:
            first = max(0, len(log) - 1)
        else:
            first = self._server.start_of(topic, bytes.fromhex(call["start"]))
        return wire.frame(
            wire.RECORDS,
            wire.RECORDS_HEAD.pack(call["id"], first, len(log)),
            *_piece(log, first),
        )

    # -- deliveries --------------------------------------------------------------------------

    def ready(self, reader: _Reader) -> None:
        """The reader may have something to get."""
        self._ready[reader] = None
        self._schedule()

    def _schedule(self) -> None:
        if self._ready and not self._scheduled and not self._paused:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._scheduled = False
        if self._transport.is_closing() or self._server.failure:
            return
        frames: list[bytes] = []
        size = 0
        logs = self._server.store.logs
        while self._ready and size < _PIECE_BYTES:
            reader = next(iter(self._ready))
            del self._ready[reader]
            log = logs.get(reader.topic, [])
            piece = _piece(log, reader.cursor)
            if not piece:
                continue
            head = wire.DELIVERY_HEAD.pack(reader.number, reader.cursor)
            frames.append(wire.frame(wire.DELIVERY, head, *piece))
            size += len(frames[-1])
            reader.cursor += len(piece)
            if reader.cursor < len(log):
                self._ready[reader] = None
        if frames:
            self._transport.write(b"".join(frames))
        self._schedule()


def _piece(log: list[bytes], first: int) -> list[bytes]:
    """The records from `first` on that go into one frame."""
    piece = log[first : first + _PIECE_MESSAGES]
    size = 0
    for count, record in enumerate(piece):
        size += len(record)
        if size > _PIECE_BYTES and count:
            return piece[:count]
    return piece


def _refusal(call: int, error: BusError) -> bytes:
    answer = {"id": call, "error": type(error).__name__, "text": str(error)}
    return wire.frame(wire.REPLY, json.dumps(answer).encode())
