"""The envelope: what travels beside a GoalStateV2 so that its place in the stream is known.

It is a flat map of strings, so that it fits Pulsar's message properties and any other carrier.
The payload stays a plain GoalStateV2 that a client of the Alcor schema can read alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from goalstate.gs.errors import EnvelopeError
from goalstate.gs.streams import Mark, StreamId


class MessageKind(StrEnum):
    DELTA = "delta"
    CHECKPOINT = "checkpoint"
    #: Closes a checkpoint: whoever read it whole is in sync up to here.
    IN_SYNC = "in-sync"


class Envelope(NamedTuple):
    """All fields; see `to_properties` for their names on the wire."""

    schema: int
    stream: StreamId
    mark: Mark
    kind: MessageKind
    #: This is chunk `chunk` of `chunks` of what one change put on the stream, counted from 1.
    chunk: int
    chunks: int
    #: Number of the change in the intent log.
    change: int
    #: Digest of the stream after this message; 32 hexadecimal digits.
    digest: str
    #: `digest.checksum` of the payload.
    checksum: str
    #: Nanoseconds since the Unix epoch, by the publisher's clock.
    published_ns: int
    #: In the first message of an epoch: the mark of the message before. Else None.
    after: Mark | None = None
    #: W3C trace context, empty if there is none.
    traceparent: str = ""


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
    if envelope.traceparent:
        properties["traceparent"] = envelope.traceparent
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
        properties.get("traceparent", ""),
    )
