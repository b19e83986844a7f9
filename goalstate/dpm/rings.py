"""What was lately sent of each stream on sessions: who lags a little is told just that. Pure.

Laws:

1.  Of a stream that is on sessions, all messages after the mark `base` are here, without a gap.
    What takes too much room goes, oldest first, and `base` moves on.
2.  Room is bounded, for each stream and for all of them; the stream that was not used for longest
    gives way first. A checkpoint is kept beside them for as long as they continue it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from goalstate.gs.envelope import Envelope
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import Mark, StreamId

#: Bytes of payload: of one stream, and of all.
OF_STREAM = 256 * 1024
OF_ALL = 256 * 1024 * 1024


class Checkpoint(NamedTuple):
    """Messages that give the state of a stream, and the mark after which it is to be read on."""

    mark: Mark
    messages: Sequence[session_pb2.Message]

    @property
    def size(self) -> int:
        return sum(len(message.payload) for message in self.messages)


class _Ring:
    __slots__ = ("base", "checkpoint", "newest", "sent", "size")

    def __init__(self, base: Mark) -> None:
        self.base = self.newest = base
        self.sent: deque[tuple[Mark, session_pb2.Message]] = deque()
        self.checkpoint: Checkpoint | None = None
        #: Bytes, the checkpoint's included.
        self.size = 0

    def drop_oldest(self) -> None:
        mark, message = self.sent.popleft()
        self.base = mark
        self.size -= len(message.payload)
        if self.checkpoint is not None and self.checkpoint.mark < mark:
            self.drop_checkpoint()

    def drop_checkpoint(self) -> None:
        if self.checkpoint is not None:
            self.size -= self.checkpoint.size
            self.checkpoint = None

    def clear(self) -> None:
        self.drop_checkpoint()
        self.sent.clear()
        self.base = self.newest
        self.size = 0


class Rings:
    """`in` says whether a stream is on sessions."""

    def __init__(
        self,
        newest: Mapping[StreamId, Mark],
        *,
        of_stream: int = OF_STREAM,
        of_all: int = OF_ALL,
    ) -> None:
        """`newest`: the streams that are on sessions, each with the mark that it is at."""
        self._of_stream = of_stream
        self._of_all = of_all
        #: The one that was not used for longest first.
        self._rings = OrderedDict((stream, _Ring(mark)) for stream, mark in newest.items())
        self.size = 0

    def __contains__(self, stream: StreamId) -> bool:
        return stream in self._rings

    def put(self, envelope: Envelope, message: session_pb2.Message) -> None:
        """The next message of a stream, or the first of one that comes to sessions."""
        stream, mark = envelope.stream, envelope.mark
        before = envelope.after
        if before is None:
            before = Mark(mark.epoch, mark.sequence - 1)
        ring = self._rings.get(stream)
        if ring is None or ring.newest != before:
            self.drop(stream)
            ring = self._rings[stream] = _Ring(before)
        ring.newest = mark
        ring.sent.append((mark, message))
        self._grow(stream, ring, len(message.payload))

    def after(self, stream: StreamId, mark: Mark) -> list[session_pb2.Message] | None:
        """The messages of a stream after a mark; None: they are not all here."""
        ring = self._rings[stream]
        if mark < ring.base:
            return None
        return [message for at, message in ring.sent if at > mark]

    def keep(self, stream: StreamId, checkpoint: Checkpoint) -> None:
        """A checkpoint was built; it may serve others, if what is here continues it."""
        ring = self._rings.get(stream)
        if ring is None or ring.checkpoint is checkpoint:
            return
        if ring.base <= checkpoint.mark <= ring.newest:
            self.size -= ring.size
            ring.drop_checkpoint()
            self.size += ring.size
            ring.checkpoint = checkpoint
            self._grow(stream, ring, checkpoint.size)

    def checkpoint(self, stream: StreamId) -> Checkpoint | None:
        ring = self._rings.get(stream)
        return ring.checkpoint if ring is not None else None

    def drop(self, stream: StreamId) -> None:
        """The stream is not on sessions any more."""
        ring = self._rings.pop(stream, None)
        if ring is not None:
            self.size -= ring.size

    def _grow(self, stream: StreamId, ring: _Ring, size: int) -> None:
        self.size -= ring.size
        ring.size += size
        while ring.sent and ring.size - _checkpoint_size(ring) > self._of_stream:
            ring.drop_oldest()
        self.size += ring.size
        self._rings.move_to_end(stream)
        if self.size <= self._of_all:
            return
        for other in list(self._rings.values()):
            if self.size <= self._of_all:
                return
            self.size -= other.size
            other.clear()


def _checkpoint_size(ring: _Ring) -> int:
    return ring.checkpoint.size if ring.checkpoint is not None else 0
