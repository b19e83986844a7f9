"""What a host's core asks its surroundings to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId


class Follow(NamedTuple):
    """Read `topic` after position `start`. Replaces an open reader of the stream.

    An empty start is the beginning of the stream; `beginning` says what to read then. In the place
    of a topic may be what stands for a session (`topics.is_session`).
    """

    stream: StreamId
    topic: str
    start: bytes
    #: What comes up to here is known, whatever the start.
    known: Mark = ORIGIN


class Unfollow(NamedTuple):
    """Close the reader of the stream."""

    stream: StreamId


class Program(NamedTuple):
    """Bring these resources, in this order, to the data plane; answer with `programmed`.

    An operation without a payload is a deletion. There is one program at a time.
    """

    number: int
    operations: Sequence[Resource]


class ReadBack(NamedTuple):
    """Say what the data plane holds of a kind, with `read_back` and the same number."""

    number: int
    kind: Kind


class Refusal(NamedTuple):
    """Why a data plane did not do an operation of a program."""

    reason: str
    #: It may do it when it is asked again; else it never will.
    transient: bool = False


Action = Follow | Unfollow | Program | ReadBack
