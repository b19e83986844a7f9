"""Format versions: telling GoalState (101) from GoalStateV2 (102), and refusing everything else.

Their fields share numbers with different types, and each may parse as the other without an error.
So the version decides, never the outcome of parsing. Laws:

1.  Both formats have the version as field 1, a varint, and a writer puts it first: a payload begins
    `08 65` or `08 66`. As these differ, no payload is both, whatever follows.
2.  A payload that does not begin with field 1 is refused, also if a version follows later: protobuf
    would allow it, but then nothing short of reading the whole message could tell what it is, and
    serializers write known fields in the order of their numbers.
3.  A version that is written in more bytes than needed counts as what it says: its low 32 bits, as
    protobuf reads it. So `detect` and the parser agree on it.
4.  Where field 1 comes twice (two messages run together), the last one counts for protobuf, so the
    parsed message is checked again: if it does not say what the first field said, it is refused.
5.  What the carrier declares (the envelope, the type of a gRPC call) must agree with the bytes.

The version is the writer's word: that finds mistakes. It does not find a forger, who may write 101
in front of anything; who may write to a topic is the broker's business.
"""

from __future__ import annotations

from typing import Final, Literal, overload

from google.protobuf.message import DecodeError

from goalstate.gs.errors import (
    FormatMismatch,
    MalformedMessage,
    OversizeMessage,
    UnknownFormatVersion,
)
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalState, GoalStateV2

FORMAT_V1: Final = 101
FORMAT_V2: Final = 102

#: Bytes; what Apache Pulsar accepts as one message unless it is configured otherwise.
MESSAGE_LIMIT: Final = 5 * 1024 * 1024

_TYPES: Final[dict[int, type[GoalState] | type[GoalStateV2]]] = {
    FORMAT_V1: GoalState,
    FORMAT_V2: GoalStateV2,
}
_VERSION_TAG: Final = 1 << 3  # field 1, wire type 0
_WIRE_TYPES: Final = (0, 1, 2, 3, 4, 5)
_VARINT_BYTES: Final = 10


def detect(payload: bytes) -> int:
    """The format version that the payload begins with: FORMAT_V1 or FORMAT_V2.

    Looks at the first field only, so what follows may still be malformed. Raises
    UnknownFormatVersion for another version, or where the payload does not begin with one, and
    MalformedMessage where its first field is none of protobuf's.
    """
    if not payload:
        raise UnknownFormatVersion(None)
    tag, end = _varint(payload, 0)
    if tag & 7 not in _WIRE_TYPES or not 0 < tag >> 3 < 1 << 29:
        raise MalformedMessage(f"the message begins with {payload[0]:#04x}, which is no field")
    if tag != _VERSION_TAG:
        raise UnknownFormatVersion(None)
    version = _varint(payload, end)[0] & 0xFFFF_FFFF
    if version not in _TYPES:
        raise UnknownFormatVersion(version)
    return version


def check(message: GoalState | GoalStateV2) -> None:
    """Refuse a parsed message whose version is not that of its type.

    Raises UnknownFormatVersion, or FormatMismatch if the version is the other type's.
    """
    version = message.format_version
    if version not in _TYPES:
        raise UnknownFormatVersion(version or None)
    if type(message) is not _TYPES[version]:
        expected = FORMAT_V1 if isinstance(message, GoalState) else FORMAT_V2
        raise FormatMismatch(expected, f"the type {type(message).__name__}", version, "the message")


@overload
def decode(payload: bytes, *, declared: Literal[101], limit: int = ...) -> GoalState: ...
@overload
def decode(payload: bytes, *, declared: Literal[102], limit: int = ...) -> GoalStateV2: ...
@overload
def decode(
    payload: bytes, *, declared: int | None = ..., limit: int = ...
) -> GoalState | GoalStateV2: ...
def decode(
    payload: bytes, *, declared: int | None = None, limit: int = MESSAGE_LIMIT
) -> GoalState | GoalStateV2:
    """The message that the payload is; its type follows from the version that it begins with.

    `declared` is what the carrier says of the version, None if it says nothing; `limit` is the
    largest payload taken, in bytes.

    Raises OversizeMessage, UnknownFormatVersion (also for `declared`), FormatMismatch and
    MalformedMessage (all are MessageError); nothing else.
    """
    if len(payload) > limit:
        raise OversizeMessage(len(payload), limit)
    if declared is not None and declared not in _TYPES:
        raise UnknownFormatVersion(declared, "envelope")
    version = detect(payload)
    if declared is not None and declared != version:
        raise FormatMismatch(declared, "the envelope", version, "the message")
    type_ = _TYPES[version]
    try:
        message = type_.FromString(payload)
    except DecodeError as error:
        raise MalformedMessage(f"these bytes are no {type_.__name__}: {error}") from None
    if message.format_version != version:
        raise FormatMismatch(
            version, "the first field", message.format_version, "a later one of the same message"
        )
    return message


def _varint(payload: bytes, start: int) -> tuple[int, int]:
    """The varint at `start`, and where it ends. Raises MalformedMessage."""
    value = 0
    for i, byte in enumerate(payload[start : start + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, start + i + 1
    raise MalformedMessage("the message ends, or is garbage, within its first field")
