"""What goes over the wire and into the file of the embedded broker: frames and records.

A frame is a length (4 bytes, of what follows), a kind (1 byte) and a body. Calls and replies are
JSON, everything that carries messages is binary. Numbers are big endian.

    kind      from    body
    CALL      client  JSON {"id", "op", …}
    REPLY     broker  JSON {"id", …} or {"id", "error": name of a bus error, "text"}
    PUBLISH   client  call id u32, producer id u32, record
    ACCEPTED  broker  call id u32, index u64
    RECORDS   broker  call id u32, first index u64, end of the log u64, records   (answers a CALL)
    DELIVERY  broker  reader id u32, first index u64, records

A record is: publish time u64 (ns), head length u32, head (JSON [key, properties]), payload; in a
row of records each is preceded by its length (4 bytes).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping

from goalstate.bus.base import MAX_PAYLOAD, Message

CALL, REPLY, PUBLISH, ACCEPTED, RECORDS, DELIVERY = range(6)

LENGTH = struct.Struct(">I")
PUBLISH_HEAD = struct.Struct(">II")
ACCEPTED_BODY = struct.Struct(">IQ")
RECORDS_HEAD = struct.Struct(">IQQ")
DELIVERY_HEAD = struct.Struct(">IQ")
_FRAME_HEAD = struct.Struct(">IB")
_RECORD_HEAD = struct.Struct(">QI")
#: A position: which store it is of, and the index in the topic.
_POSITION = struct.Struct(">8sQ")

#: Longer frames are not sent; one that claims to be is no frame of ours.
MAX_FRAME = MAX_PAYLOAD + 1024 * 1024
#: The longest key and properties together, in bytes as JSON.
MAX_HEAD = 64 * 1024


class NotOurs(Exception):
    """The other side does not speak this protocol."""


def frame(kind: int, *parts: bytes) -> bytes:
    """One frame, ready to be sent."""
    body = b"".join(parts)
    return _FRAME_HEAD.pack(len(body) + 1, kind) + body


class Deframer:
    """Cuts a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames (kind, body) that are complete now. Raises NotOurs."""
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _FRAME_HEAD.size:
            length, kind = _FRAME_HEAD.unpack_from(buffer, start)
            if not 1 <= length <= MAX_FRAME or kind > DELIVERY:
                raise NotOurs(f"a frame of kind {kind} and {length} bytes")
            end = start + LENGTH.size + length
            if len(buffer) < end:
                break
            frames.append((kind, bytes(memoryview(buffer)[start + _FRAME_HEAD.size : end])))
            start = end
        del buffer[:start]
        return frames


def record(published_ns: int, key: str, properties: Mapping[str, str], payload: bytes) -> bytes:
    """A record without its length."""
    head = json.dumps([key, dict(properties)], separators=(",", ":")).encode()
    return b"".join((_RECORD_HEAD.pack(published_ns, len(head)), head, payload))


def check_record(data: bytes) -> None:
    """Raises NotOurs unless it can be read back."""
    try:
        _, length = _RECORD_HEAD.unpack_from(data)
        head = json.loads(data[_RECORD_HEAD.size : _RECORD_HEAD.size + length])
        key, properties = head
        strings = [key, *properties, *properties.values()]
    except (struct.error, ValueError, TypeError, AttributeError) as error:
        raise NotOurs("a record that cannot be read") from error
    if not all(isinstance(one, str) for one in strings):
        raise NotOurs("a record whose key or properties are no strings")


def with_length(data: bytes) -> bytes:
    """A record as it stands in a row."""
    return LENGTH.pack(len(data)) + data


def messages(topic: str, store: bytes, first: int, row: bytes, start: int) -> Iterator[Message]:
    """The messages of a row of records that begins at `start` of `row`."""
    index = first
    while start < len(row):
        (length,) = LENGTH.unpack_from(row, start)
        start += LENGTH.size
        published, head_length = _RECORD_HEAD.unpack_from(row, start)
        head = start + _RECORD_HEAD.size
        key, properties = json.loads(row[head : head + head_length])
        payload = row[head + head_length : start + length]
        yield Message(topic, key, properties, payload, _POSITION.pack(store, index), published)
        start += length
        index += 1


def position(store: bytes, index: int) -> bytes:
    """The position of the message at `index`."""
    return _POSITION.pack(store, index)


def index_of(store: bytes, place: bytes) -> int | None:
    """The index of a position; None if it is of another store or none at all."""
    if len(place) != _POSITION.size:
        return None
    of, index = _POSITION.unpack(place)
    return int(index) if of == store else None
