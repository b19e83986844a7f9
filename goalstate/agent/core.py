"""The pure core of one host: events in, actions out.

    start, receive ─▶ order, checksum, version ─▶ held (digest) ─▶ Programming ─▶ Program ─┐
        ▲                     │ gap, mismatch            │ subscription                    ▼
        │                   Repair                 Subscriptions        programmed ◀─ data plane
     reader ◀──── Follow ─────┴──────────────────────────┘                  │
                                                                            │
                                       report ◀── watermarks, exceptions ◀──┘

There is no clock, no IO and no thread here. `now` is the time in nanoseconds since the Unix epoch;
a clock that is set back delays repairs and deadlines and breaks nothing. Each event returns the
actions that it leads to, to be done in their order.

Laws (those of a stream's order are in `stream`, of its repair in `repair`, of what is followed in
`subscriptions`, and those of programming in `programming`):

1.  Received is not accepted, accepted is not applied. What was accepted is held; the digest is of
    that. What a host says that it applied is what its data plane confirmed.
2.  A message that is not what its checksum says also when it is read again, or that is intact and
    cannot be read, is refused by name: the stream goes on, with an exception at the message's mark,
    until the digest shows that its content came otherwise.
3.  The beginning of a stream is its newest checkpoint, where it has one, and then the log after it
    (`beginning`). A checkpoint is always read into a shadow. Until that is exact, the host keeps
    what it has, and says nothing of what it reads.
4.  A counting host checks order and checksum of the streams of VPCs and security groups, and holds
    nothing of them. As it cannot know what its ports refer to, it does not wait for references.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from goalstate.agent.actions import Action, Program, ReadBack, Refusal
from goalstate.agent.audit import Audit
from goalstate.agent.counters import Counters
from goalstate.agent.decoding import Content, Decoder, Received
from goalstate.agent.news import News
from goalstate.agent.programming import Programming
from goalstate.agent.repair import Repair, difference, faults, is_faulty
from goalstate.agent.retry import RetryPolicy
from goalstate.agent.state import Journal, StoredStream
from goalstate.agent.stream import Fault, Place, Reading, Stream
from goalstate.agent.subscriptions import Subscriptions
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.errors import EnvelopeError, MessageError
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.topics import Topics

SECOND_NS = 1_000_000_000


class HostSettings(NamedTuple):
    """What is the same for all hosts of a process. Times in nanoseconds."""

    topics: Topics
    pending_deadline_ns: int = 30 * SECOND_NS
    #: Operations in one program.
    program_limit: int = 4096
    #: Of what the data plane refuses for now.
    retry: RetryPolicy = RetryPolicy()
    #: Within which all is looked at once, see `audit`; 0: nothing ever is.
    audit_interval_ns: int = 0
    #: Can streams be followed over sessions? A subscription that says so is refused otherwise.
    sessions: bool = False


class Witness(Protocol):
    """Is told, as it happens, how far a host is with its streams."""

    def received(self, host: str, stream: StreamId, envelope: Envelope, now: int) -> None:
        """The host took the next message of a stream's log."""

    def applied(self, host: str, stream: StreamId, mark: Mark, now: int) -> None:
        """The host has applied all of a stream up to this mark."""

    def left(self, host: str, stream: StreamId) -> None:
        """The host follows a stream no longer."""


class HostCore:
    """One host. `streams` and `programming` are for reading only."""

    def __init__(
        self,
        host: str,
        inbox: StreamId,
        settings: HostSettings,
        *,
        counting: bool = False,
        decoder: Decoder | None = None,
        counters: Counters | None = None,
        journal: Journal | None = None,
        witness: Witness | None = None,
    ) -> None:
        """`journal` is told what is to be stored; without one, nothing is."""
        self._witness = witness
        self.host = host
        self.inbox = inbox
        self.counting = counting
        self.counters = counters if counters is not None else Counters()
        self.streams: dict[StreamId, Stream] = {}
        self.news = News()
        self.programming = Programming(
            host,
            self.streams,
            self.counters,
            self.news,
            limit=settings.program_limit,
            pending_deadline_ns=settings.pending_deadline_ns,
            retry=settings.retry,
            references=not counting,
        )
        #: When `tick` has something to do next; None: nothing.
        self.wakeup: int | None = None
        self.journal = journal
        self._actions: list[Action] = []
        self._repair = Repair(host, self.counters, self.news, self._actions)
        self._subscriptions = Subscriptions(
            inbox,
            self.streams,
            self.programming,
            self._repair,
            self.news,
            self._actions,
            topics=settings.topics,
            sessions=settings.sessions,
            counting=counting,
            journal=journal,
        )
        interval_ns = settings.audit_interval_ns
        self._audit = (
            Audit(host, self.streams, self.programming, self.counters, interval_ns)
            if interval_ns
            else None
        )
        self._decoder = decoder if decoder is not None else Decoder(capacity=0)
        self._program = 0
        self._under_way = False

    # --- events ---

    def start(self, now: int, stored: Iterable[StoredStream] = ()) -> list[Action]:
        """Begin to follow the inbox: anew, or where an earlier run stored that it was.

        What was stored goes to the data plane, which must be empty, before anything is read.
        """
        self._subscriptions.start(stored, now)
        if self._audit is not None:
            self._audit.start(now)
        return self._done(now)

    def receive(
        self,
        stream_id: StreamId,
        properties: Mapping[str, str],
        payload: bytes,
        position: bytes,
        now: int,
    ) -> list[Action]:
        """A message came from the reader of a stream."""
        try:
            received = self._decoder.receive(properties, payload)
        except EnvelopeError:
            self.counters.foreign += 1
            return []
        return self.take(stream_id, received, position, now)

    def take(
        self, stream_id: StreamId, received: Received, position: bytes, now: int
    ) -> list[Action]:
        """A message of a stream came, and its envelope was read."""
        stream = self.streams.get(stream_id)
        if stream is None or stream.leaving:
            return []
        envelope = received.envelope
        if envelope.stream != stream_id:
            self.counters.foreign += 1
            return []
        if stream.fences and stream.void(envelope.mark):
            self.counters.stale += 1
            return []
        place = stream.reading.place(envelope)
        if place is Place.NEXT:
            if received.intact or stream.suspect == (envelope.mark, envelope.chunk):
                self._accept(stream, received, position, now)
            else:
                self._repair.corrupted(stream, envelope, now)
        elif place is Place.KNOWN:
            self._pass(stream, envelope.mark, position)
        elif place is Place.DUPLICATE:
            self.counters.duplicates += 1
        elif place is Place.STALE:
            self.counters.stale += 1
        elif place is Place.GAP:
            self._repair.gap(stream, envelope, now)
        else:
            self._repair.voided(stream, envelope)
        return self._done(now)

    def position_gone(self, stream_id: StreamId, now: int) -> list[Action]:
        """The broker no longer holds what the last Follow was to begin with: of the log, or the
        checkpoint.
        """
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.leaving:
            self._repair.gone(stream, now)
        return self._done(now)

    def programmed(self, number: int, refused: Mapping[int, Refusal], now: int) -> list[Action]:
        """A program is done. `refused`: place among its operations → why that one is not."""
        if not self._under_way or number != self._program:
            return []
        self._under_way = False
        self.programming.programmed(refused, now)
        return self._done(now)

    def read_back(
        self, number: int, kind: Kind, table: Mapping[str, bytes] | None, now: int
    ) -> list[Action]:
        """The data plane holds these payloads of a kind, by id. None: it cannot be read back."""
        if self._audit is None:
            return []
        if number == self._program and not self._under_way:
            self._audit.read_back(kind, table, now)
        else:
            self._audit.lost(now)
        return self._done(now)

    def tick(self, now: int) -> list[Action]:
        """Do what is due. To be called when `wakeup` has come; earlier is harmless."""
        if self.wakeup is None or now < self.wakeup:
            return []
        self.wakeup = None
        self._repair.tick(self.streams.values(), now)
        self.programming.expire(now)
        audit = self._audit
        if audit is not None and audit.due_ns is not None and audit.due_ns <= now:
            self._look(audit, now)
        return self._done(now)

    # --- what it holds ---

    def is_empty(self, stream_id: StreamId) -> bool:
        """Has it nothing of a stream, or not even that?"""
        stream = self.streams.get(stream_id)
        return stream is None or stream.live.mark == ORIGIN

    def dead_letters(self, limit: int) -> list[agent_pb2.DeadLetter]:
        """What was refused for good and is to be told, of about `limit` bytes at the most."""
        exceptions = self.programming.exceptions
        return exceptions.letters.take(self.host, self.streams, exceptions.faults, limit)

    @property
    def has_exceptions(self) -> bool:
        """Is anything not applied that should be? Is there any of `exceptions`?"""
        programming = self.programming
        if programming.exceptions.faults or programming.strays.exceptions:
            return True
        for stream in self.streams.values():
            if stream.live.malformed or stream.live.unread or is_faulty(stream):
                return True
        return False

    def exceptions(self) -> Iterator[tuple[StreamId, int, str, Fault]]:
        """All that is not applied, and why: stream, number of the kind, id, fault.

        A message that could not be read, and a gap, have no kind and no id (0 and "").
        """
        for (stream_id, kind, id_), fault in self.programming.exceptions.faults.items():
            yield stream_id, int(kind), id_, fault
        for (kind, id_), fault in self.programming.strays.exceptions.items():
            yield self.inbox, int(kind), id_, fault
        for stream in self.streams.values():
            for (number, id_), fault in stream.live.malformed.items():
                yield stream.id, number, id_, fault
            for fault in stream.live.unread.values():
                yield stream.id, 0, "", fault
            for fault in faults(stream):
                yield stream.id, 0, "", fault

    # --- reading ---

    def _accept(self, stream: Stream, received: Received, position: bytes, now: int) -> None:
        envelope = received.envelope
        reading = stream.reading
        if envelope.kind is MessageKind.CHECKPOINT and envelope.chunk == 1:
            reading = stream.shadow = Reading()
        previous = reading.mark
        reading.step(envelope, position)
        if stream.attempts and envelope.kind is not MessageKind.CHECKPOINT:
            # All chunks of a checkpoint have one mark: only its end is progress.
            self._repair.progressed(stream, envelope.mark)
        if envelope.kind is MessageKind.DELTA:
            if stream.gone:
                self._repair.found(stream)
            if self._witness is not None:
                self._witness.received(self.host, stream.id, envelope, now)
        elif envelope.kind is MessageKind.IN_SYNC:
            self._repair.read(stream, reading.position)
        stream.published_ns = envelope.published_ns
        self.counters.messages[stream.id.kind] += 1
        self.counters.bytes += len(received.payload)
        content = self._content(stream, received, reading)
        if content is not None:
            self._take(stream, reading, content, previous, now)
        agrees = content is None or reading.agrees(envelope)
        for_hosts = stream.id.kind.for_hosts
        if not for_hosts:
            reading.expected = reading.digest if agrees and content is not None else None
        if (
            (reading.unread or reading.malformed)
            and agrees
            and content is not None
            and not reading.loading
            and (content.digest is not None or not for_hosts)
        ):
            # The digest shows that the rest of the content came otherwise. (On an inbox only a
            # message that gives one for this host does.)
            self.news.exceptions |= reading.reconcile()
        if stream.shadow is not None:
            if reading.mark >= stream.live.mark and not reading.loading:
                self._swap(stream, now)
                self._repair.judge(stream, agrees, now)
        else:
            self._moved(stream)
            if stream.disagreements or not agrees:
                self._repair.judge(stream, agrees, now)
        if not stream.outstanding:
            self._advance(stream, now)

    def _pass(self, stream: Stream, mark: Mark, position: bytes) -> None:
        """A message of the log says what is known: that everything up to its mark came before."""
        self._repair.found(stream)
        if mark == stream.reading.mark:
            stream.reading.position = position
            self._moved(stream)

    def _content(self, stream: Stream, received: Received, reading: Reading) -> Content | None:
        """What the message holds; None if it is not to be held, or cannot be."""
        mark = received.envelope.mark
        reason = ""
        if not received.intact:
            reason = "CHECKSUM: the bytes are not what the publisher sent, also when read again"
        elif not stream.counting:
            try:
                return received.content(self.host)
            except MessageError as error:
                self.counters.unreadable += 1
                reason = f"UNREADABLE: {error}"
        if reason:
            reading.unread[mark] = Fault(False, reason, 0, reading.fault_mark)
            self.news.exceptions = True
        return None

    def _take(
        self, stream: Stream, reading: Reading, content: Content, previous: Mark, now: int
    ) -> None:
        """Hold the content of the message just read; want it too, unless it is for the shadow."""
        live = reading is stream.live
        out_of_order = reading.out_of_order
        for group in content.groups:
            taken = reading.take(group)
            if live:
                if self.journal is not None and (taken is None or taken or group.deletion):
                    self.journal.touched(stream.id, group.kind, group.ids)
                self._subscriptions.want(stream, group, taken, previous, now)
                if group.deletion and self.programming.exceptions.faults:
                    # What is gone already may be wanted gone again: the data plane refused it.
                    for id_ in group.ids:
                        if not taken or id_ not in taken:
                            self.programming.again(stream, group.kind, id_, now)
            elif not group.deletion:
                reading.groups.append(group)
        self.counters.out_of_order += reading.out_of_order - out_of_order
        if content.malformed or reading.malformed:
            self.news.exceptions = True
        reading.note(content)

    def _swap(self, stream: Stream, now: int) -> None:
        """The shadow has got as far as what is held: it takes its place, and is programmed."""
        old, new = stream.live, stream.shadow
        assert new is not None
        stream.live, stream.shadow = new, None
        # When what the shadow brings was published is not known.
        published_ns, stream.published_ns = stream.published_ns, 0
        # Nor which message brought it, of those that were not held, or of all if these were wrong.
        held = old.mark
        stream.since = ORIGIN if stream.disagreements else Mark(held.epoch, held.sequence + 1)
        self.programming.gather()
        for group, olds in difference(old, new, stream.id):
            self._subscriptions.want(stream, group, olds, old.mark, now)
        self.programming.look(now)
        stream.published_ns, stream.since = published_ns, None
        new.groups = []
        if old.unread or new.unread or old.malformed or new.malformed:
            self.news.exceptions = True
        self.news.streams[stream.id] = None
        if self.journal is not None:
            self.journal.replaced(stream.id)

    def _moved(self, stream: Stream) -> None:
        """What is to be stored of a stream changed, but for its resources."""
        if self.journal is not None:
            self.journal.moved(stream.id)

    def _look(self, audit: Audit, now: int) -> None:
        """Look at some of what is held and programmed, whether it is what it was."""
        drifted, kind = audit.step(now, busy=self._under_way)
        for stream in drifted:
            self._repair.drifted(stream)
        if kind is not None:
            self._actions.append(ReadBack(self._program, kind))

    # --- after each event ---

    def _advance(self, stream: Stream, now: int) -> None:
        if stream.advance(now):
            self.news.streams[stream.id] = None
            if stream.watermark == stream.live.mark and stream.published_ns:
                self.counters.delays.observe(max(0, now - stream.published_ns) / SECOND_NS)
            if self._witness is not None:
                self._witness.applied(self.host, stream.id, stream.watermark, now)

    def _done(self, now: int) -> list[Action]:
        """Move watermarks, start the next program, and give the actions."""
        programming = self.programming
        if not self._under_way:
            operations = programming.next_program(now)
            if operations:
                self._program += 1
                self._under_way = True
                self._actions.append(Program(self._program, operations))
        if programming.touched:
            for stream in programming.touched.values():
                if not stream.leaving:
                    self._advance(stream, now)
                elif self.streams.get(stream.id) is stream and not any(stream.unsettled.values()):
                    del self.streams[stream.id]
            programming.touched.clear()
        cleared = programming.exceptions.cleared
        if cleared:
            for stream in cleared.values():
                # Only now all up to the watermark is applied.
                if not stream.leaving:
                    stream.applied_ns = now
                    self.news.streams[stream.id] = None
            cleared.clear()
        self._wake_at(programming.exceptions.due_ns)
        self._wake_at(self._repair.due_ns)
        if self._audit is not None:
            self._wake_at(self._audit.due_ns)
        actions = self._actions[:]
        self._actions.clear()
        return actions

    def _wake_at(self, when: int | None) -> None:
        if when is not None and (self.wakeup is None or when < self.wakeup):
            self.wakeup = when
