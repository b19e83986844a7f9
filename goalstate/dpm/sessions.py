"""Streams over sessions that agents open: the second `StreamTransport`.

    send ─▶ ring of the stream ─▶ queue of each session that follows it ─▶ its agent
                   ▲ what comes after a mark, or a checkpoint ◀─ Follow

Laws:

1.  A message is confirmed at once: it is in the intent log, and who lacks it asks for it. Nothing
    is sent, nor built into a checkpoint that is sent, before it is durable there.
2.  A Follow is answered with what comes after its mark, from the ring, or if that does not reach
    back, with a checkpoint and what comes after it. From then on with each message, in order.
3.  A queue is bounded. A session that does not take what is sent loses its queue, and is told which
    Follows came to their end: it asks again, and gets the state as it is by then. So it slows
    nobody down, and costs no more memory than its queue.
4.  A checkpoint is built for the first who needs it, and serves all others for as long as the
    ring continues it.
5.  A stream that comes to sessions ends the Follows that waited for it: they ask again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from goalstate.dpm.building import Building
from goalstate.dpm.core import Core
from goalstate.dpm.inventory import Publication
from goalstate.dpm.rings import Checkpoint, Rings
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import CheckpointPlace, Envelope
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import Mark, StreamId, to_position

#: Bytes that wait for one session; a checkpoint is added only while it is less than half of that.
QUEUE_BYTES = 4 * 1024 * 1024
#: So many checkpoints are built at once.
AT_ONCE = 4
#: Bytes that a message takes in a queue beside its payload, about.
_OVERHEAD = 512


class Session:
    """What one agent process follows, and what waits to be sent to it."""

    def __init__(self, queue_bytes: int = QUEUE_BYTES) -> None:
        #: By the number that the agent gave; a Follow that waits for its checkpoint is None.
        self.follows: dict[int, StreamId | None] = {}
        #: It is over: it was closed, or the publisher does not serve any more.
        self.ended = False
        #: Set when there is something to send, or it is over.
        self.news = asyncio.Event()
        #: Bytes that wait.
        self.size = 0
        self._limit = queue_bytes
        #: Without a message: the Follow came to its end.
        self._queue: deque[tuple[int, session_pb2.Message | None]] = deque()
        self._room = asyncio.Event()
        self._room.set()

    def pop(self) -> session_pb2.Carried | None:
        """The next to be sent; None: there is nothing."""
        if not self._queue:
            self.news.clear()
            return None
        id_, message = self._queue.popleft()
        self.size -= _size(message)
        self._look()
        if message is None:
            return session_pb2.Carried(id=id_, gone=True)
        return session_pb2.Carried(id=id_, message=message)

    def put(self, id_: int, message: session_pb2.Message | None) -> None:
        self._queue.append((id_, message))
        self.size += _size(message)
        self._look()
        self.news.set()

    @property
    def is_full(self) -> bool:
        return self.size > self._limit and len(self._queue) > 1

    def forget(self) -> set[int]:
        """Give up what waits; gives the Follows that lose something by that."""
        lost = {id_ for id_, message in self._queue if message is not None}
        ends = [one for one in self._queue if one[1] is None]
        self._queue.clear()
        self.size = 0
        for id_, _ in ends:
            self.put(id_, None)
        self._look()
        return lost

    def end(self) -> None:
        self.ended = True
        self.news.set()
        self._room.set()

    async def room(self) -> None:
        """Wait until a checkpoint's next message may be added, or it is over."""
        await self._room.wait()

    def _look(self) -> None:
        if self.ended or 2 * self.size < self._limit:
            self._room.set()
        else:
            self._room.clear()


def _size(message: session_pb2.Message | None) -> int:
    return _OVERHEAD + (len(message.payload) if message is not None else 0)


class Sessions:
    """All sessions of one incarnation of the publisher."""

    def __init__(
        self,
        rings: Rings,
        build: Callable[[StreamId], Awaitable[Checkpoint]],
        *,
        clock_ns: Callable[[], int],
        sent: Callable[[Publication], None] = lambda _: None,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """`build` makes a checkpoint of a stream, whose mark all that was sent reaches by then."""
        self._rings = rings
        self._build = build
        self._clock_ns = clock_ns
        self._sent = sent
        self._queue_bytes = queue_bytes
        self._followers: dict[StreamId, dict[tuple[Session, int], None]] = {}
        #: In the order in which they were opened: in that they are ended.
        self.open: dict[Session, None] = {}
        #: Follows that came to their end because their session was too slow.
        self.resyncs = 0
        self.ended = False

    # --- transport ---

    def send(self, publication: Publication, confirmed: Callable[[], None]) -> None:
        stream = publication.envelope.stream
        if stream not in self._rings:
            for session, id_ in list(self._followers.get(stream, ())):
                self._end_follow(session, id_)
        message = _message(publication, self._clock_ns())
        self._rings.put(publication.envelope, message)
        self._sent(publication)
        for session, id_ in list(self._followers.get(stream, ())):
            self._carry(session, id_, message)
        confirmed()

    def leave(self, stream: StreamId) -> None:
        """The stream is on another channel from now on."""
        self._rings.drop(stream)

    def remind(self, newest: Envelope) -> None:
        """Nothing: what is lost on a session its agent asks for again."""

    async def drain(self) -> None:
        """Nothing is ever unconfirmed."""

    async def close(self) -> None:
        """End all sessions."""
        self.ended = True
        for session in list(self.open):
            session.end()

    # --- sessions ---

    def begin(self) -> Session:
        session = Session(self._queue_bytes)
        if self.ended:
            session.end()
        self.open[session] = None
        return session

    def end(self, session: Session) -> None:
        session.end()
        self.open.pop(session, None)
        for id_ in list(session.follows):
            self.unfollow(session, id_)

    async def follow(self, session: Session, id_: int, stream: StreamId, mark: Mark) -> None:
        """Send what comes after a mark. Returns when a checkpoint that it takes is in the queue.

        Raises what building one raises; then the Follow waits until `give_up`.
        """
        self.unfollow(session, id_)
        if self.go_on(session, id_, stream, mark):
            return
        session.follows[id_] = None
        checkpoint = self._rings.checkpoint(stream)
        if checkpoint is None:
            checkpoint = await self._build(stream)
            self._rings.keep(stream, checkpoint)
        for message in checkpoint.messages:
            await session.room()
            # Meanwhile it may have come to its end.
            if session.ended or id_ not in session.follows:
                return
            self._carry(session, id_, message)
        if id_ in session.follows and not self.go_on(session, id_, stream, checkpoint.mark):
            self._end_follow(session, id_)

    def go_on(self, session: Session, id_: int, stream: StreamId, mark: Mark) -> bool:
        """The same if it takes no checkpoint; False if it does.

        What is not on sessions just now is waited for: its subscriptions say where it is.
        """
        if stream in self._rings:
            messages = self._rings.after(stream, mark)
            if messages is None:
                return False
        else:
            messages = []
        session.follows[id_] = stream
        self._followers.setdefault(stream, {})[session, id_] = None
        for message in messages:
            self._carry(session, id_, message)
        return True

    def unfollow(self, session: Session, id_: int) -> None:
        """Send nothing more of this. What waits already is sent all the same."""
        stream = session.follows.pop(id_, None)
        if stream is not None:
            followers = self._followers[stream]
            del followers[session, id_]
            if not followers:
                del self._followers[stream]

    def give_up(self, session: Session, id_: int) -> None:
        """A Follow cannot be answered: if it is still one, its agent is told, and asks again."""
        if id_ in session.follows:
            self._end_follow(session, id_)

    def _end_follow(self, session: Session, id_: int) -> None:
        self.unfollow(session, id_)
        session.put(id_, None)

    def _carry(self, session: Session, id_: int, message: session_pb2.Message) -> None:
        if id_ not in session.follows:
            return
        session.put(id_, message)
        if session.is_full:
            for lost in session.forget():
                if lost in session.follows:
                    self.resyncs += 1
                    self._end_follow(session, lost)


class CheckpointBuilder:
    """Builds checkpoints beside what else is done, each once for all who ask meanwhile."""

    def __init__(
        self,
        core: Core,
        *,
        lock: asyncio.Lock,
        durable: Callable[[], Awaitable[None]],
        clock_ns: Callable[[], int],
    ) -> None:
        """`lock`: nobody changes the core while it is held. `durable` waits until all that the core
        accepted so far is in the log, and sent; raises NotServing."""
        self._core = core
        self._lock = lock
        self._durable = durable
        self._clock_ns = clock_ns
        self._building: dict[StreamId, asyncio.Task[Checkpoint]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def build(self, stream: StreamId) -> Checkpoint:
        """Raises NotServing, RuntimeError (see `Inventory.rebuild`)."""
        task = self._building.get(stream)
        if task is None:
            task = self._building[stream] = asyncio.ensure_future(self._build(stream))
            task.add_done_callback(lambda done: self._built(stream, done))
        # One that no longer asks must not end it for the others.
        return await asyncio.shield(task)

    async def _build(self, stream: StreamId) -> Checkpoint:
        async with self._slots:
            async with self._lock:
                building = Building(self._core, stream)
            while not building.done:
                async with self._lock:
                    building.step()
                await asyncio.sleep(0)
            # Nothing of what is not durable may ever be read as if it were.
            await self._durable()
        return checkpoint_of(building, self._clock_ns())

    def _built(self, stream: StreamId, done: asyncio.Task[Checkpoint]) -> None:
        del self._building[stream]
        if not done.cancelled():
            done.exception()  # those that asked have it; there may be none left


def checkpoint_of(building: Building, now_ns: int) -> Checkpoint:
    """What was built, as it is sent."""
    mark = building.begun
    publications = building.publications(mark, CheckpointPlace(b"", to_position(mark)))
    return Checkpoint(mark, [_message(one, now_ns) for one in publications])


def _message(publication: Publication, now_ns: int) -> session_pb2.Message:
    envelope = publication.envelope._replace(published_ns=now_ns)
    return session_pb2.Message(
        properties=envelopes.to_properties(envelope), payload=publication.payload
    )
