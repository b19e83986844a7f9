"""What an agent process asks of its session: each stream once, for all of its hosts. Pure.

Laws:

1.  A reader gets every message of its stream after its start, in order; or a checkpoint, and what
    comes after that (see session.proto). What is lost on the way is asked for again.
2.  Readers of a stream that are at one mark share a Follow. One that begins elsewhere has a Follow
    of its own, until both are at one mark.
3.  A new session begins with a Follow for each that there was, from where that is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from goalstate.bus.base import Message, Sink
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import MessageKind
from goalstate.gs.errors import EnvelopeError
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import Mark, StreamId, from_position, to_position
from goalstate.gs.topics import of_session

Send = Callable[[session_pb2.Request], None]


class SessionReader:
    """A `Reader` on a session."""

    def __init__(self, follows: Follows, stream: StreamId, sink: Sink) -> None:
        self.topic = of_session(stream)
        self.stream = stream
        self.sink = sink
        self._follows = follows

    async def close(self) -> None:
        self.detach()

    def detach(self) -> None:
        """The sink is not called any more."""
        self._follows.detach(self)


class _Follow:
    """Readers of a stream that are at one mark."""

    __slots__ = ("id", "loading", "mark", "readers", "stream")

    def __init__(self, id_: int, stream: StreamId, mark: Mark) -> None:
        #: In the session that there is.
        self.id = id_
        self.stream = stream
        #: What comes up to here, they have.
        self.mark = mark
        #: A checkpoint is coming.
        self.loading = False
        self.readers: dict[SessionReader, None] = {}


class Follows:
    """All that the hosts of a process follow on sessions."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._by_id: dict[int, _Follow] = {}
        self._of_stream: dict[StreamId, dict[_Follow, None]] = {}
        self._of_reader: dict[SessionReader, _Follow] = {}
        self._send: Send | None = None
        #: Messages that came, and Follows that the publisher ended.
        self.messages = 0
        self.gone = 0

    def __len__(self) -> int:
        """How many Follows there are."""
        return len(self._by_id)

    # --- readers ---

    def attach(self, stream: StreamId, start: bytes, sink: Sink) -> SessionReader:
        """Raises ValueError for a start that is no position on a session."""
        mark = from_position(start)
        reader = SessionReader(self, stream, sink)
        follow = next((f for f in self._of(stream) if f.mark == mark and not f.loading), None)
        if follow is None:
            follow = _Follow(next(self._numbers), stream, mark)
            self._by_id[follow.id] = follow
            self._of_stream.setdefault(stream, {})[follow] = None
            self._ask(follow)
        follow.readers[reader] = None
        self._of_reader[reader] = follow
        return reader

    def detach(self, reader: SessionReader) -> None:
        follow = self._of_reader.pop(reader, None)
        if follow is not None:
            del follow.readers[reader]
            if not follow.readers:
                self._end(follow)

    # --- the session ---

    def connected(self, send: Send) -> None:
        """A new session is open; what it has to ask for goes to `send`."""
        self._send = send
        for follow in list(self._by_id.values()):
            self._renew(follow)

    def disconnected(self) -> None:
        self._send = None

    def take(self, carried: session_pb2.Carried) -> None:
        """What came in the session that is open."""
        follow = self._by_id.get(carried.id)
        if follow is None:
            return  # it was on its way when its Follow was ended
        if carried.gone:
            self.gone += 1
            self._renew(follow)
            return
        self.messages += 1
        properties = dict(carried.message.properties)
        try:
            envelope = envelopes.from_properties(properties)
        except EnvelopeError:
            return  # the next one shows what is missing
        if envelope.kind is MessageKind.CHECKPOINT:
            follow.loading = True
        else:
            follow.loading = False
            follow.mark = envelope.mark
        message = Message(
            of_session(follow.stream),
            follow.stream.id,
            properties,
            carried.message.payload,
            to_position(envelope.mark),
            envelope.published_ns,
        )
        for reader in list(follow.readers):
            # What one does may detach another.
            if self._of_reader.get(reader) is follow:
                reader.sink(message)
        if not follow.loading and self._by_id.get(follow.id) is follow:
            self._merge(follow)

    # --- follows ---

    def _of(self, stream: StreamId) -> dict[_Follow, None]:
        return self._of_stream.get(stream, {})

    def _merge(self, follow: _Follow) -> None:
        """One Follow is enough for those that have come to one mark."""
        for other in list(self._of(follow.stream)):
            if other is not follow and other.mark == follow.mark and not other.loading:
                for reader in other.readers:
                    follow.readers[reader] = None
                    self._of_reader[reader] = follow
                other.readers.clear()
                self._end(other)

    def _renew(self, follow: _Follow) -> None:
        del self._by_id[follow.id]
        follow.id = next(self._numbers)
        follow.loading = False
        self._by_id[follow.id] = follow
        self._ask(follow)

    def _ask(self, follow: _Follow) -> None:
        if self._send is not None:
            epoch, sequence = follow.mark
            body = session_pb2.Follow(
                id=follow.id, stream=str(follow.stream), epoch=epoch, sequence=sequence
            )
            self._send(session_pb2.Request(follow=body))

    def _end(self, follow: _Follow) -> None:
        del self._by_id[follow.id]
        of_stream = self._of_stream[follow.stream]
        del of_stream[follow]
        if not of_stream:
            del self._of_stream[follow.stream]
        if self._send is not None:
            self._send(session_pb2.Request(unfollow=session_pb2.Unfollow(id=follow.id)))
