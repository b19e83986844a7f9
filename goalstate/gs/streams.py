"""Streams: the one concept that carries all ordering.

A stream is a fenced, sequenced log of changes with its digest. Laws:

1.  `epoch` grows with each incarnation of the stream's single writer; a lower epoch is dropped.
2.  `sequence` is contiguous within (stream, epoch) and starts at 1. A gap is seen, never skipped.
3.  The first message of an epoch names the mark that it comes after, so that a reader that missed
    the end of the epoch before sees that too.
4.  There are three kinds, by the scope of what they carry: a VPC's stream (multicast), a security
    group's (group multicast), and the inbox of a group of hosts (unicast).
5.  What is pushed to a host by somebody who knows no streams is, for the host, a stream too: of a
    kind of its own, numbered by the host itself, on no topic, and with all kinds of resources.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class StreamKind(StrEnum):
    VPC = "vpc"
    SECURITY_GROUP = "sg"
    INBOX = "inbox"
    PUSHED = "pushed"

    #: Is what it carries for single hosts? Then each has a digest of its own.
    for_hosts: bool

    def __init__(self, value: str) -> None:
        self.for_hosts = value in ("inbox", "pushed")


class Channel(IntEnum):
    """What a stream travels on; the numbers are those of Alcor's NodeSubscribeInfo."""

    PULSAR = 0
    SESSION = 1


class StreamId(NamedTuple):
    """Kind, and the id of the VPC, security group or group of hosts. Written `vpc/<id>`."""

    kind: StreamKind
    id: str

    def __str__(self) -> str:
        return f"{self.kind.value}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> StreamId:
        """The stream that `text` names. Raises ValueError."""
        kind, slash, id_ = text.partition("/")
        if not slash or not id_:
            raise ValueError(f"{text!r} names no stream (expected vpc/ID, sg/ID or inbox/GROUP)")
        return cls(StreamKind(kind), id_)


def vpc_stream(vpc_id: str) -> StreamId:
    return StreamId(StreamKind.VPC, vpc_id)


def security_group_stream(group_id: str) -> StreamId:
    return StreamId(StreamKind.SECURITY_GROUP, group_id)


def inbox_stream(host_group: str) -> StreamId:
    return StreamId(StreamKind.INBOX, host_group)


def pushed_stream(host: str) -> StreamId:
    return StreamId(StreamKind.PUSHED, host)


class Mark(NamedTuple):
    """A place in a stream; marks of one stream compare as tuples. (0, 0) is before everything."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}/{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """Raises ValueError."""
        epoch, _, sequence = text.partition("/")
        return cls(int(epoch), int(sequence))


ORIGIN = Mark(0, 0)


def to_position(mark: Mark) -> bytes:
    """A mark as the position of a stream on sessions; empty is the beginning, as on a bus."""
    return (
        mark.epoch.to_bytes(8, "big") + mark.sequence.to_bytes(8, "big") if mark > ORIGIN else b""
    )


def from_position(position: bytes) -> Mark:
    """Raises ValueError for what `to_position` cannot have made."""
    if not position:
        return ORIGIN
    if len(position) != 16:
        raise ValueError(f"{len(position)} bytes are no position of a stream on sessions")
    return Mark(int.from_bytes(position[:8], "big"), int.from_bytes(position[8:], "big"))
