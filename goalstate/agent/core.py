"""The pure core of one host: events in, actions out.

    start, receive ─▶ order, checksum, version ─▶ held (digest) ─▶ Programming ─▶ Program ─┐
        ▲                     │ gap, mismatch            │ subscription                    ▼
     reader ◀──── Follow ─────┴──────────────────────────┘              programmed ◀─ data plane
                                                                            │
                                       report ◀── watermarks, exceptions ◀──┘

There is no clock, no IO and no thread here. `now` is the time in nanoseconds since the Unix epoch;
a clock that is set back delays repairs and deadlines and breaks nothing. Each event returns the
actions that it leads to, to be done in their order.

Laws (those of a stream's order are in `stream`, those of programming in `programming`):

1.  Received is not accepted, accepted is not applied. What was accepted is held; the digest is of
    that. What a host says that it applied is what its data plane confirmed.
2.  A gap is repaired by reading again after the last good message; if that brings no progress, from
    the beginning, into a shadow, with a delay that doubles from RETRY_NS to RETRY_MAX_NS. So is a
    position that the broker does not have any more, with a delay from the second time on. Nothing
    is skipped. While a gap cannot be repaired, it is an exception of its stream. A new checkpoint
    that the log tells of meanwhile is tried soon.
3.  A message whose bytes are not what its checksum says is read once more. If it comes the same
    way, or if it is intact and cannot be read, it is refused by name: the stream goes on, with an
    exception at the message's mark, until the digest shows that its content came otherwise.
4.  When the digest differs from the publisher's, the stream is read again from the beginning, into
    a shadow. When the shadow has got as far, the difference is programmed, what it does not hold
    included. Until then the host keeps what it has. If the shadow differs too, the log is at fault:
    what it says is held, the reports say with which digest, and it is tried again ever less often.
5.  A host follows its inbox and the streams that it has subscriptions for. When one ends, all that
    came from its stream is taken out of the data plane. When one says that its stream is elsewhere
    from now on, on another topic or channel, it is read on there from what is known of it: marks go
    on whatever carries them.
6.  The beginning of a stream is its newest checkpoint, where it has one, and then the log after it
    (`beginning`). A checkpoint is always read into a shadow. Until that is exact, the host keeps
    what it has, and says nothing of what it reads.
7.  A host that starts with what an earlier run stored (see `state`) programs that first, and reads
    on where it was.
8.  A counting host checks order and checksum of the streams of VPCs and security groups, and holds
    nothing of them. As it cannot know what its ports refer to, it does not wait for references.
9.  A host that holds much of a stream reads it again at a moment of its own (`spread`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from goalstate.agent.actions import Action, Follow, Program, ReadBack, Refusal, Unfollow
from goalstate.agent.audit import Audit
from goalstate.agent.counters import Counters
from goalstate.agent.decoding import Content, Decoder, Group, Received, grouped
from goalstate.agent.programming import Programming
from goalstate.agent.retry import RetryPolicy
from goalstate.agent.spread import moment
from goalstate.agent.state import Journal, StoredStream, restored
from goalstate.agent.stream import Fault, Place, Reading, Stream
from goalstate.gs.envelope import MessageKind
from goalstate.gs.errors import EnvelopeError, MessageError
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import CONFIGURATION, Kind, Resource
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, to_position
from goalstate.gs.topics import Topics, is_session, of_session

SECOND_NS = 1_000_000_000
RETRY_NS = SECOND_NS
RETRY_MAX_NS = 60 * SECOND_NS


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
    ) -> None:
        """`journal` is told what is to be stored; without one, nothing is."""
        self.host = host
        self.inbox = inbox
        self.counting = counting
        self.counters = counters if counters is not None else Counters()
        self.streams: dict[StreamId, Stream] = {}
        self.programming = Programming(
            host,
            self.streams,
            self.counters,
            limit=settings.program_limit,
            pending_deadline_ns=settings.pending_deadline_ns,
            retry=settings.retry,
            references=not counting,
        )
        interval_ns = settings.audit_interval_ns
        self._audit = (
            Audit(host, self.streams, self.programming, self.counters, interval_ns)
            if interval_ns
            else None
        )
        #: When `tick` has something to do next; None: nothing.
        self.wakeup: int | None = None
        #: What a report has to tell: streams, ended ones, and whether exceptions changed.
        self.changed: dict[StreamId, None] = {}
        self.dropped: dict[StreamId, None] = {}
        self.exceptions_changed = False
        self.journal = journal
        #: Not followed (yet) in this run.
        self._stored: dict[StreamId, StoredStream] = {}
        self._topics = settings.topics
        self._has_sessions = settings.sessions
        self._decoder = decoder if decoder is not None else Decoder(capacity=0)
        self._program = 0
        self._under_way = False
        self._actions: list[Action] = []

    # --- events ---

    def start(self, now: int, stored: Iterable[StoredStream] = ()) -> list[Action]:
        """Begin to follow the inbox: anew, or where an earlier run stored that it was.

        What was stored goes to the data plane, which must be empty, before anything is read.
        """
        self._stored = {one.stream: one for one in stored}
        if self.journal is not None:
            self.journal.found(self._stored)
        self._follow(self.inbox, self._topics.of_stream(self.inbox), b"", now)
        if self.journal is not None:
            for stream_id in self._stored:
                self.journal.moved(stream_id)
        # Nothing of it is followed any more.
        self._stored = {}
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
                stream.suspect = (envelope.mark, envelope.chunk)
                self.counters.corrupted += 1
                self._reread(stream, envelope.mark, now)
        elif place is Place.KNOWN:
            self._pass(stream, envelope.mark, position)
        elif place is Place.DUPLICATE:
            self.counters.duplicates += 1
        elif place is Place.STALE:
            self.counters.stale += 1
        elif place is Place.GAP:
            self.counters.gaps += 1
            if (
                stream.reread_ns is not None
                and envelope.kind is MessageKind.IN_SYNC
                and envelope.until is None
                and envelope.mark >= stream.stuck
                and envelope.mark > stream.tried
            ):
                # It tells of a checkpoint, in which what is missing may be: no reason to wait. (But
                # as long as it takes to read what else there is: the next one may be of more use.)
                stream.tried = envelope.mark
                stream.reread_ns = now
                self._wake_at(now)
            else:
                self._reread(stream, envelope.mark, now)
        else:
            stream.fences[envelope.mark.epoch] = envelope.after or ORIGIN
            self._resync(stream, now)
        return self._done(now)

    def position_gone(self, stream_id: StreamId, now: int) -> list[Action]:
        """The broker no longer holds what the last Follow was to begin with: of the log, or the
        checkpoint.
        """
        stream = self.streams.get(stream_id)
        if stream is not None and not stream.leaving:
            stream.gone += 1
            if stream.gone == 1:
                delay = moment(self.host, stream)
            else:
                delay = _delay(stream.gone)
                self.exceptions_changed = True
            if delay:
                stream.reread_ns = now + delay
                self._wake_at(stream.reread_ns)
            else:
                self._resync(stream, now)
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
        for stream in list(self.streams.values()):
            if stream.leaving:
                continue
            if stream.reread_ns is not None and stream.reread_ns <= now:
                stream.reread_ns = None
                self._resync(stream, now)
            elif stream.resync_ns is not None and stream.resync_ns <= now:
                stream.resync_ns = None
                self._resync(stream, now)
            self._wake_at(stream.reread_ns)
            self._wake_at(stream.resync_ns)
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

    @property
    def dirty(self) -> bool:
        """Has anything changed that the last report did not tell?"""
        return bool(self.changed or self.dropped or self.exceptions_changed)

    def reported(self) -> None:
        """All that changed has been told."""
        self.changed.clear()
        self.dropped.clear()
        self.exceptions_changed = False

    def dead_letters(self, limit: int) -> list[agent_pb2.DeadLetter]:
        """What was refused for good and is to be told, of about `limit` bytes at the most."""
        programming = self.programming
        return programming.letters.take(self.host, self.streams, programming.exceptions, limit)

    def exceptions(self) -> Iterator[tuple[StreamId, int, str, Fault]]:
        """All that is not applied, and why: stream, number of the kind, id, fault.

        A message that could not be read, and a gap, have no kind and no id (0 and "").
        """
        for (stream_id, kind, id_), fault in self.programming.exceptions.items():
            yield stream_id, int(kind), id_, fault
        for (kind, id_), fault in self.programming.strays.exceptions.items():
            yield self.inbox, int(kind), id_, fault
        for stream in self.streams.values():
            for (number, id_), fault in stream.live.malformed.items():
                yield stream.id, number, id_, fault
            for fault in stream.live.unread.values():
                yield stream.id, 0, "", fault
            if stream.disagreements:
                reason = "DIGEST: what is held is not what the publisher says; reading it again"
                yield stream.id, 0, "", Fault(True, reason, 0, stream.disagreed)
            if stream.attempts > 1:
                mark = stream.live.mark
                expected = Mark(mark.epoch, mark.sequence + 1)
                reason = f"GAP: after {mark} came {stream.stuck}, also when read again"
                yield stream.id, 0, "", Fault(False, reason, 0, expected)
            elif stream.gone > 1:
                mark = stream.live.mark
                expected = Mark(mark.epoch, mark.sequence + 1)
                reason = f"GAP: the broker does not have what came after {mark} any more"
                yield stream.id, 0, "", Fault(False, reason, 0, expected)

    # --- reading ---

    def _accept(self, stream: Stream, received: Received, position: bytes, now: int) -> None:
        envelope = received.envelope
        reading = stream.reading
        if envelope.kind is MessageKind.CHECKPOINT and envelope.chunk == 1:
            reading = stream.shadow = Reading()
        previous = reading.mark
        reading.step(envelope, position)
        # All chunks of a checkpoint have one mark: only its end is progress.
        checkpoint = envelope.kind is MessageKind.CHECKPOINT
        if stream.attempts and envelope.mark >= stream.stuck and not checkpoint:
            self.exceptions_changed |= stream.attempts > 1
            stream.attempts = 0
            stream.reread_ns = None
        if envelope.kind is MessageKind.DELTA:
            self._found(stream)
        elif envelope.kind is MessageKind.IN_SYNC:
            self._read(stream, reading.position)
        stream.published_ns = envelope.published_ns
        self.counters.messages[stream.id.kind] += 1
        self.counters.bytes += len(received.payload)
        content = self._content(stream, received, reading)
        if content is not None:
            self._take(stream, reading, content, previous, now)
        agrees = content is None or reading.agrees(envelope)
        if not stream.id.kind.for_hosts:
            reading.expected = reading.digest if agrees and content is not None else None
        if (
            agrees
            and content is not None
            and not reading.loading
            and (reading.unread or reading.malformed)
            and (content.digest is not None or not stream.id.kind.for_hosts)
        ):
            # The digest shows that the rest of the content came otherwise. (On an inbox only a
            # message that gives one for this host does.)
            self.exceptions_changed |= reading.reconcile()
        if stream.shadow is not None:
            if reading.mark >= stream.live.mark and not reading.loading:
                self._swap(stream, now)
                self._judge(stream, agrees, now)
        else:
            self._moved(stream)
            self._judge(stream, agrees, now)
        if not stream.outstanding:
            self._advance(stream, now)

    def _pass(self, stream: Stream, mark: Mark, position: bytes) -> None:
        """A message of the log says what is known: that everything up to its mark came before."""
        self._found(stream)
        if mark == stream.reading.mark:
            stream.reading.position = position
            self._moved(stream)

    def _found(self, stream: Stream) -> None:
        """The broker has the log where it is read."""
        self.exceptions_changed |= stream.gone > 1
        stream.gone = 0

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
            self.exceptions_changed = True
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
                self._want(stream, group, taken, previous, now)
                if group.deletion and self.programming.exceptions:
                    # What is gone already may be wanted gone again: the data plane refused it.
                    for id_ in group.ids:
                        if not taken or id_ not in taken:
                            self.programming.again(stream, group.kind, id_, now)
            elif not group.deletion:
                reading.groups.append(group)
        self.counters.out_of_order += reading.out_of_order - out_of_order
        if content.malformed or reading.malformed:
            self.exceptions_changed = True
        reading.note(content)

    # --- repair ---

    def _reread(self, stream: Stream, seen: Mark, now: int) -> None:
        """The next message is not the one that is needed: have it read again."""
        # Until what was seen is reached: a reader that gave it too early does not give it again.
        stream.stuck = max(stream.stuck, seen)
        if stream.reread_ns is not None:
            return
        stream.attempts += 1
        if stream.attempts == 1:
            self._restart(stream)
            start = stream.reading.position or (b"" if stream.shadow else stream.start)
            self._read(stream, start)
            return
        self.exceptions_changed = True
        stream.reread_ns = now + _delay(stream.attempts)
        self._wake_at(stream.reread_ns)

    def _restart(self, stream: Stream) -> None:
        """The reader begins anew: what was read of an incomplete checkpoint is of no use."""
        if stream.reading.chunk:
            stream.shadow = Reading()

    def _resync(self, stream: Stream, now: int) -> None:
        """Read the stream again from its beginning."""
        self.counters.resyncs += 1
        stream.shadow = Reading()
        stream.resync_ns = None
        self._read(stream, b"")

    def _read(self, stream: Stream, start: bytes) -> None:
        known = stream.reading.mark
        self._actions.append(Follow(stream.id, stream.topic, start, known))

    def _judge(self, stream: Stream, agrees: bool, now: int) -> None:
        """Act on whether what is held agrees with the publisher's digest."""
        if agrees:
            self.exceptions_changed |= stream.disagreements > 0
            stream.disagreements = 0
            stream.resync_ns = None
        elif stream.resync_ns is None and not (stream.live.unread or stream.live.malformed):
            # What is missing because it is unreadable does not come by reading it again.
            self.counters.mismatches += 1
            stream.disagreements += 1
            if stream.disagreements == 1:
                stream.disagreed = stream.live.mark
                self.exceptions_changed = True
                delay = moment(self.host, stream)
            else:
                delay = _delay(stream.disagreements)
            if delay:
                stream.resync_ns = now + delay
                self._wake_at(stream.resync_ns)
            else:
                self._resync(stream, now)

    def _swap(self, stream: Stream, now: int) -> None:
        """The shadow has got as far as what is held: it takes its place, and is programmed."""
        old, new = stream.live, stream.shadow
        assert new is not None
        stream.live, stream.shadow = new, None
        previous = old.mark
        # When what the shadow brings was published is not known.
        published_ns, stream.published_ns = stream.published_ns, 0
        # Nor which message brought it, of those that were not held, or of all if these were wrong.
        stream.since = (
            ORIGIN if stream.disagreements else Mark(previous.epoch, previous.sequence + 1)
        )
        self.programming.gather()
        for kind in sorted(old.held.keys() | new.held.keys()):
            before, after = old.held.get(kind, {}), new.held.get(kind, {})
            gone = [r for id_, r in before.items() if id_ not in after]
            if gone:
                group = Group(kind, True, "", [r._replace(payload=b"") for r in gone], [()])
                self._want(stream, group, {r.id: r for r in gone}, previous, now)
            # What came together, and is all new, is brought on as it came: hosts that read the same
            # then share the work of sorting it.
            known: set[str] = set()
            for group in new.unchanged(kind):
                if before.keys().isdisjoint(group.ids):
                    self._want(stream, group, None, previous, now)
                    known.update(group.ids)
            if len(known) == len(after):
                continue
            came = [r for id_, r in after.items() if id_ not in known and before.get(id_) != r]
            for group in grouped(came, stream.id):
                fresh = before.keys().isdisjoint(group.ids)
                olds = None if fresh else {r.id: _known(before, r) for r in group.resources}
                self._want(stream, group, olds, previous, now)
        self.programming.look(now)
        stream.published_ns, stream.since = published_ns, None
        new.groups = []
        if old.unread or new.unread or old.malformed or new.malformed:
            self.exceptions_changed = True
        self.changed[stream.id] = None
        if self.journal is not None:
            self.journal.replaced(stream.id)

    def _look(self, audit: Audit, now: int) -> None:
        """Look at some of what is held and programmed, whether it is what it was."""
        drifted, kind = audit.step(now, busy=self._under_way)
        for stream in drifted:
            stream.disagreements, stream.disagreed = 1, ORIGIN
            self.exceptions_changed = True
            self._resync(stream, now)
        if kind is not None:
            self._actions.append(ReadBack(self._program, kind))

    def _want(
        self,
        stream: Stream,
        group: Group,
        olds: Mapping[str, Resource | None] | None,
        previous: Mark,
        now: int,
    ) -> None:
        """Bring to the data plane what of a group is in `olds`; None: all of it, and it is new."""
        if group.kind is Kind.SUBSCRIPTION:
            for resource in group.resources:
                if olds is None or resource.id in olds:
                    self._subscribe(resource, group, olds or {}, previous, now)
        elif olds is None:
            self.programming.want_all(stream, group, previous, now)
        elif olds:
            self.programming.want_each(stream, group, olds, previous, now)

    # --- what it follows ---

    def _subscribe(
        self,
        resource: Resource,
        group: Group,
        olds: Mapping[str, Resource | None],
        previous: Mark,
        now: int,
    ) -> None:
        """A subscription came, changed or went. It is applied by following the stream or not."""
        inbox = self.streams[self.inbox]
        fact = CONFIGURATION[Kind.SUBSCRIPTION].FromString(resource.payload)
        if not (group.refusal or resource.deleted or self._has_sessions) and (
            fact.channel == Channel.SESSION
        ):
            reason = "UNSUPPORTED_CHANNEL: this agent was given no publisher to open a session to"
            group = Group(Kind.SUBSCRIPTION, False, reason, [resource], [()])
        if group.refusal:
            old = {resource.id: olds.get(resource.id)}
            self.programming.want_each(inbox, group, old, previous, now)
            return
        self.programming.drop(inbox, Kind.SUBSCRIPTION, resource.id)
        self.counters.applied[Kind.SUBSCRIPTION] += 1
        try:
            stream_id = StreamId.parse(resource.id)
        except ValueError:
            return  # the end of one that was refused
        if resource.deleted:
            self._unfollow(stream_id, now)
        else:
            topic = fact.topic or self._topics.of_stream(stream_id)
            if fact.channel == Channel.SESSION:
                topic = of_session(stream_id)
            self._follow(stream_id, topic, fact.start_position, now)

    def _follow(self, stream_id: StreamId, topic: str, start: bytes, now: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            counting = self.counting and not stream_id.kind.for_hosts
            stream = self.streams[stream_id] = Stream(stream_id, topic, start, counting=counting)
            if self._resume(stream, now):
                start = stream.live.position or start
        elif stream.leaving:
            stream.leaving = False
            stream.topic, stream.start = topic, start
        elif stream.topic != topic:
            # Positions are of a topic: on the new one what comes after what is known is looked
            # for. On a session a mark is a position.
            stream.topic, stream.start = topic, start
            self._restart(stream)
            reading = stream.reading
            reading.position = to_position(reading.mark) if is_session(topic) else b""
            start = reading.position or start
            # What was to be repaired was the reading of the other topic.
            self.exceptions_changed |= stream.attempts > 1 or stream.gone > 1
            stream.attempts = stream.gone = 0
            stream.reread_ns = None
            self._moved(stream)
        else:
            return
        self._read(stream, start)

    def _resume(self, stream: Stream, now: int) -> bool:
        """Hold what is stored of a stream that begins, and bring it to the data plane."""
        stored = self._stored.pop(stream.id, None)
        if stored is None:
            return False
        reading = restored(stored)
        head = stored.head
        if reading is None or (head.topic, head.counting) != (stream.topic, stream.counting):
            if self.journal is not None:
                self.journal.replaced(stream.id)
            return False
        if self.journal is not None and len(stored.resources) > reading.size():
            self.journal.replaced(stream.id)  # more tombstones than are remembered
        stream.live = reading
        stream.since = ORIGIN
        # Subscriptions first: what they bring is what the others refer to.
        for kind in sorted(reading.held, key=lambda kind: (kind is not Kind.SUBSCRIPTION, kind)):
            for group in grouped(reading.held[kind].values(), stream.id):
                self._want(stream, group, None, ORIGIN, now)
        stream.since = None
        if not stream.outstanding:
            self._advance(stream, now)
        return True

    def _moved(self, stream: Stream) -> None:
        """What is to be stored of a stream changed, but for its resources."""
        if self.journal is not None:
            self.journal.moved(stream.id)

    def _unfollow(self, stream_id: StreamId, now: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None or stream.leaving:
            return
        self.programming.leave(stream, now)
        stream.forget()
        # What is still in the data plane keeps the stream's place until it is out.
        stream.leaving = True
        if not any(stream.unsettled.values()):
            del self.streams[stream_id]
        if self.journal is not None:
            self.journal.replaced(stream.id)
        self.exceptions_changed = True
        self.changed.pop(stream_id, None)
        self.dropped[stream_id] = None
        self._actions.append(Unfollow(stream_id))

    # --- after each event ---

    def _advance(self, stream: Stream, now: int) -> None:
        if stream.advance(now):
            self.changed[stream.id] = None
            if stream.watermark == stream.live.mark and stream.published_ns:
                self.counters.delays.observe(max(0, now - stream.published_ns) / SECOND_NS)

    def _done(self, now: int) -> list[Action]:
        """Move watermarks, start the next program, and give the actions."""
        programming = self.programming
        if not self._under_way:
            operations = programming.next_program()
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
        if programming.revoked:
            self.changed.update(dict.fromkeys(programming.revoked))
            programming.revoked.clear()
        if programming.cleared:
            for stream in programming.cleared.values():
                # Only now all up to the watermark is applied.
                if not stream.leaving:
                    stream.applied_ns = now
                    self.changed[stream.id] = None
            programming.cleared.clear()
        if programming.exceptions_changed or programming.strays.changed:
            programming.exceptions_changed = programming.strays.changed = False
            self.exceptions_changed = True
        self._wake_at(programming.deadline_ns)
        if self._audit is not None:
            self._wake_at(self._audit.due_ns)
        actions, self._actions = self._actions, []
        return actions

    def _wake_at(self, when: int | None) -> None:
        if when is not None and (self.wakeup is None or when < self.wakeup):
            self.wakeup = when


def _known(before: Mapping[str, Resource], resource: Resource) -> Resource | None:
    """What was held before a resource; None if it cannot have been: it has the same revision."""
    old = before.get(resource.id)
    return None if old is not None and old.revision == resource.revision else old


def _delay(failures: int) -> int:
    """Nanoseconds until the next try, after the second failure in a row and each later one."""
    return min(RETRY_NS << min(failures - 2, 10), RETRY_MAX_NS)
