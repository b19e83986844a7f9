"""The envelope: what travels beside a GoalStateV2 so that its place in the stream is known.

It is a flat map of strings, so that it fits Pulsar's message properties and any other carrier.
The payload stays a plain GoalStateV2 that a client of the Alcor schema can read alone.

A *checkpoint* of a stream is on a topic of its own: CHECKPOINT messages `chunk` 1 to `chunks`, all
with the mark M after which the log is to be read on, closed by an IN_SYNC message of the same mark.
Writing it takes a while, in which the stream goes on, so a resource in it may be newer than M; none
is older. What it holds is the stream's state once the log is read from M up to `until`.

Messages of the log say where the newest checkpoint is. So that a quiet log does so too, an IN_SYNC
message is put on it when a checkpoint is complete; its mark is that of the message before it.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from goalstate.gs.errors import EnvelopeError
from goalstate.gs.streams import Mark, StreamId

#: Trace contexts of more characters than this are deflated: brokers do not compress properties, and
#: a message of many changes may have as much of them as of content.
DEFLATE_ABOVE = 1000
#: Characters of them in one message, at the most: a group of changes is far smaller.
TRACES_LIMIT = 1 << 20


class MessageKind(StrEnum):
    DELTA = "delta"
    CHECKPOINT = "checkpoint"
    #: Closes a checkpoint; on the log it only tells of one, and changes nothing.
    IN_SYNC = "in-sync"


class CheckpointPlace(NamedTuple):
    """Where a checkpoint is, and the log after it. Positions of the bus, as it gave them."""

    #: On the topic of checkpoints: it is read after this; empty: from the topic's beginning.
    begin: bytes
    #: On the log: the message at the checkpoint's mark.
    log: bytes

    def __str__(self) -> str:
        return f"{b64encode(self.begin).decode()},{b64encode(self.log).decode()}"

    @classmethod
    def parse(cls, text: str) -> CheckpointPlace:
        """Raises ValueError."""
        begin, comma, log = text.partition(",")
        if not comma:
            raise ValueError(f"{text!r} is no place of a checkpoint")
        return cls(b64decode(begin, validate=True), b64decode(log, validate=True))


class Envelope(NamedTuple):
    """All fields; see `to_properties` for their names on the wire."""

    schema: int
    stream: StreamId
    mark: Mark
    kind: MessageKind
    #: This is chunk `chunk` of `chunks` of what one change put on the stream, counted from 1.
    chunk: int
    chunks: int
    #: Number of the change in the intent log: of several in one message, of the last.
    change: int
    #: Digest of the stream after this message; 32 hexadecimal digits.
    digest: str
    #: `digest.checksum` of the payload.
    checksum: str
    #: Nanoseconds since the Unix epoch, by the publisher's clock.
    published_ns: int
    #: In the first message of an epoch: the mark of the message before. Else None.
    after: Mark | None = None
    #: W3C trace contexts of the changes in it that have one, separated by commas.
    traceparent: str = ""
    #: The newest complete checkpoint; on the topic of checkpoints, the one that it closes.
    checkpoint: CheckpointPlace | None = None
    #: In the message that closes a checkpoint: the mark from which on its reader is in sync.
    until: Mark | None = None


def _inflated(text: str) -> str:
    """Raises ValueError."""
    inflate = zlib.decompressobj()
    try:
        found = inflate.decompress(b64decode(text, validate=True), TRACES_LIMIT)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not inflate.eof:
        raise ValueError(f"more than {TRACES_LIMIT} characters, or cut off")
    return found.decode("ascii")


def to_properties(envelope: Envelope) -> dict[str, str]:
    properties = {
        "schema": str(envelope.schema),
        "stream": str(envelope.stream),
        "epoch": str(envelope.mark.epoch),
        "seq": str(envelope.mark.sequence),
        "kind": envelope.kind.value,
        "chunk": f"{envelope.chunk}/{envelope.chunks}",
        "change": str(envelope.change),
        "digest": envelope.digest,
        "checksum": envelope.checksum,
        "published_ns": str(envelope.published_ns),
    }
    if envelope.after is not None:
        properties["after"] = str(envelope.after)
    traces = envelope.traceparent
    if len(traces) > DEFLATE_ABOVE:
        properties["traceparents"] = b64encode(zlib.compress(traces.encode(), 1)).decode()
    elif traces:
        properties["traceparent"] = traces
    if envelope.checkpoint is not None:
        properties["checkpoint"] = str(envelope.checkpoint)
    if envelope.until is not None:
        properties["until"] = str(envelope.until)
    return properties


def from_properties(properties: Mapping[str, str]) -> Envelope:
    """Raises EnvelopeError, which names the property that is missing or wrong."""
    name = "schema"
    try:
        schema = int(properties[name])
        name = "stream"
        stream = StreamId.parse(properties[name])
        name = "epoch"
        epoch = int(properties[name])
        name = "seq"
        sequence = int(properties[name])
        name = "kind"
        kind = MessageKind(properties[name])
        name = "chunk"
        chunk, _, chunks = properties[name].partition("/")
        chunk_number, chunk_count = int(chunk), int(chunks)
        name = "change"
        change = int(properties[name])
        name = "published_ns"
        published_ns = int(properties[name])
        name = "digest"
        digest = properties[name]
        name = "checksum"
        checksum = properties[name]
        name = "after"
        after = Mark.parse(properties[name]) if name in properties else None
        name = "checkpoint"
        checkpoint = CheckpointPlace.parse(properties[name]) if name in properties else None
        name = "until"
        until = Mark.parse(properties[name]) if name in properties else None
        name = "traceparents"
        traces = properties.get("traceparent", "")
        if name in properties:
            traces = _inflated(properties[name])
    except KeyError:
        raise EnvelopeError(name, "missing") from None
    except ValueError:
        raise EnvelopeError(name, f"cannot be {properties[name]!r}") from None
    if epoch < 1 or sequence < 1:
        raise EnvelopeError("epoch" if epoch < 1 else "seq", "must be at least 1")
    if not 1 <= chunk_number <= chunk_count:
        raise EnvelopeError("chunk", f"{chunk_number} of {chunk_count} is none")
    return Envelope(
        schema,
        stream,
        Mark(epoch, sequence),
        kind,
        chunk_number,
        chunk_count,
        change,
        digest,
        checksum,
        published_ns,
        after,
        traces,
        checkpoint,
        until,
    )
