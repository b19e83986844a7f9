"""What is wanted of a host's data plane and not there yet, and in which order it goes there.

Laws:

1.  A resource is programmed when everything that it refers to is there (`references`). If one is
    on its way, it is BLOCKED until that is settled. If it is not there, the resource is PENDING;
    after the deadline it is REFUSED with the reason MISSING_REFERENCE. It is still programmed when
    the reference comes later.
2.  A change that takes a permission away goes before everything, and waits for no reference: a
    port that waits for rules is better closed than open.
3.  Additions go in the order of dependency. Deletions go in the reverse order, when no addition is
    on its way (make before break); those that are pending do not hold them up.
4.  Only the newest revision of a resource is programmed; while it waits, older ones are skipped.
5.  One program is under way at a time, of at most `limit` operations, so that what is urgent
    overtakes a long backlog.
6.  What the data plane refuses for now is RETRYING: it is programmed again after a delay (`retry`),
    in its newest revision, and nothing waits for it meanwhile but what refers to it. After the last
    attempt it is REFUSED, as is at once what the data plane refuses for good. That is not tried
    again by itself: a newer revision is, or the same after the stream brought it to the data
    plane's knowledge anew. All three are `exceptions`, and so is PENDING.
7.  What the data plane turns out not to hold as it was applied is programmed again, and what it
    holds that nobody wants is deleted (`audit`). Both are exceptions until that is done.
8.  Where two streams have the same id, since it went from one VPC to another (`elsewhere`), the
    data plane holds the newer one. What the older one says of it is settled when that is applied.
    When the newer one goes first, the older one, which has yet to say that it went, is back.
9.  A reference that is deleted while something uses it: what uses it stays as it is applied, and
    its next change is pending. (A publisher that keeps the order never does this.)

The wanted state is what the streams hold (`Stream.live.held`). A `Change` stands for the difference
between that and what is applied, for one resource, or for many at once that came in one group and
are in the same situation. `Stream.unsettled` says which change stands for a resource; a change that
it no longer names for an id has been overtaken there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from goalstate.agent.actions import Refusal
from goalstate.agent.changes import Backlog, Change, State
from goalstate.agent.counters import Counters
from goalstate.agent.decoding import Group, Needs, Reference
from goalstate.agent.elsewhere import elsewhere
from goalstate.agent.exceptions import Exceptions
from goalstate.agent.news import News
from goalstate.agent.references import References
from goalstate.agent.retry import RetryPolicy
from goalstate.agent.strays import DRIFT, Strays
from goalstate.agent.stream import Stream
from goalstate.gs import ordering
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId

_NOTHING: Mapping[str, Resource] = {}


class _Flight(NamedTuple):
    change: Change
    ids: Sequence[str]
    resources: Sequence[Resource]


class Programming:
    """The unsettled changes of one host. Times are nanoseconds since the Unix epoch."""

    def __init__(
        self,
        host: str,
        streams: Mapping[StreamId, Stream],
        counters: Counters,
        news: News,
        *,
        limit: int,
        pending_deadline_ns: int,
        retry: RetryPolicy,
        references: bool,
    ) -> None:
        """`references` is False on a host that cannot know what it refers to (it only counts)."""
        self._host = host
        self._streams = streams
        self._counters = counters
        self._news = news
        self._limit = limit
        self._deadline_ns = pending_deadline_ns
        self._retry = retry
        self._knows_references = references
        self._references = References(streams)
        self._backlog = Backlog()
        self._flights: list[_Flight] = []
        #: To be looked at when the program is done: another stream has something newer in it.
        self._put_off: list[Change] = []
        #: Changes to be looked at, while all that is held is being replaced; None: at once.
        self._gathered: list[Change] | None = None
        self.exceptions = Exceptions(counters, news)
        self.strays = Strays(self.concerns, news, limit)
        #: Streams of which something was settled since this was last emptied.
        self.touched: dict[StreamId, Stream] = {}

    # --- what is wanted ---

    def gather(self) -> None:
        """All that is held of a stream is replaced. Until `look` nothing that is wanted is looked
        at, as that wakes what waits for it, which may be wanted no more."""
        self._gathered = []

    def look(self, now: int) -> None:
        gathered, self._gathered = self._gathered, None
        for change in gathered or ():
            if change.standing():
                self._evaluate(change, now)

    def want_all(self, stream: Stream, group: Group, previous: Mark, now: int) -> None:
        """All of a group is held since the message just read, and nothing of it was before.

        `previous` is the mark before that message.
        """
        unsettled = stream.unsettled.setdefault(group.kind, {})
        if unsettled and not unsettled.keys().isdisjoint(group.ids):
            self.want_each(stream, group, dict.fromkeys(group.ids), previous, now)
            return
        needs = group.needs[0]
        if len(group.needs) > 1:
            if not self._knows_references or self._references.are_there(stream, group.needs):
                needs = ()
            elif len(group.parts) > 1:
                for part in group.parts:
                    self.want_all(stream, part, previous, now)
                return
        change = Change(
            stream,
            group.kind,
            group.ids,
            _NOTHING,
            stream.live.mark,
            needs=needs,
            refusal=group.refusal,
        )
        unsettled.update(dict.fromkeys(group.ids, change))
        stream.count(change.mark, previous, len(group.ids))
        self._evaluate(change, now)

    def want_each(
        self,
        stream: Stream,
        group: Group,
        olds: Mapping[str, Resource | None],
        previous: Mark,
        now: int,
    ) -> None:
        """Those of a group that are in `olds` have changed with the message just read.

        `olds` says what was held of each before. Additions are held now, deletions no longer.
        """
        for part in group.parts:
            needs = part.needs[0]
            for id_ in part.ids:
                if id_ in olds:
                    self._want(stream, part, id_, olds[id_], needs, previous, now)

    def _want(
        self,
        stream: Stream,
        group: Group,
        id_: str,
        old: Resource | None,
        needs: Needs,
        previous: Mark,
        now: int,
    ) -> None:
        kind = group.kind
        unsettled = stream.unsettled.setdefault(kind, {})
        earlier = unsettled.get(id_)
        before: Mapping[str, Resource] = _NOTHING
        if earlier is None:
            if old is not None:
                before = {id_: old}
        elif id_ in earlier.before:
            before = {id_: earlier.before[id_]}
        change = Change(
            stream, kind, [id_], before, stream.live.mark, needs=needs, refusal=group.refusal
        )
        change.since_ns = stream.published_ns
        change.overtake(earlier, previous)
        if change.state is State.QUEUED:
            self._evaluate(change, now)

    def applied(self, stream: Stream, kind: Kind, id_: str) -> None:
        """A resource is as it should be without the data plane, whatever was to be done there."""
        change = stream.unsettled.get(kind, {}).get(id_)
        if change is not None:
            change.intact = False
            self._settle(change, [id_])
        self._counters.applied[kind] += 1

    def again(self, stream: Stream, kind: Kind, id_: str, now: int) -> None:
        """The publisher wants it once more: try what was refused, though it is the same."""
        change = stream.unsettled.get(kind, {}).get(id_)
        if change is not None and change.state in (State.REFUSED, State.RETRYING):
            change.attempts = 0
            self._evaluate(change, now)

    def leave(self, stream: Stream, now: int) -> None:
        """Nothing is wanted of the stream any more; `stream.live` still holds what was."""
        held = stream.live.held
        stream.live.held = {}
        stream.outstanding.clear()
        self.exceptions.leave(stream.id)
        # The messages that these counted for are forgotten, and may be read anew.
        for flight in self._flights:
            if flight.change.stream is stream:
                flight.change.mark = None
        # What is applied, and what was on its way, is to be known before any of it is looked at:
        # that settles what waits for it.
        before_all = [
            (kind, [id_ for id_ in held.get(kind, {}) if id_ not in unsettled], dict(unsettled))
            for kind in held.keys() | stream.unsettled.keys()
            for unsettled in (stream.unsettled.setdefault(kind, {}),)
        ]
        for kind, applied, on_its_way in before_all:
            olds = held.get(kind, {})
            unsettled = stream.unsettled[kind]
            for id_, earlier in on_its_way.items():
                earlier.mark = None
                if unsettled.get(id_) is not earlier:
                    continue
                before = earlier.before.get(id_)
                change = Change(
                    stream, kind, [id_], {id_: before} if before else _NOTHING, stream.live.mark
                )
                change.mark = None
                change.overtake(earlier, stream.live.mark)
                if change.state is State.QUEUED:
                    self._evaluate(change, now)
            if applied:
                change = Change(stream, kind, applied, olds, stream.live.mark)
                change.mark = None
                unsettled.update(dict.fromkeys(applied, change))
                self._evaluate(change, now)

    # --- what the data plane does not hold as it should ---

    def drifted(self, stream: Stream, kind: Kind, id_: str, now: int) -> None:
        """The data plane does not hold something as it was applied. It must be settled."""
        change = Change(stream, kind, [id_], _NOTHING, ORIGIN)
        change.mark = None
        stream.unsettled.setdefault(kind, {})[id_] = change
        self._except(change, State.PENDING, f"{DRIFT}; it is programmed again", now)
        self._evaluate(change, now)

    def concerns(self, kind: Kind, id_: str) -> bool:
        """Is it wanted, or on its way in or out?"""
        return any(
            id_ in one.live.held.get(kind, {}) or id_ in one.unsettled.get(kind, {})
            for one in self._streams.values()
        )

    # --- where a change goes ---

    def _evaluate(self, change: Change, now: int) -> None:
        """Queue a change, let it wait, or settle it if there is nothing to do."""
        if self._gathered is not None:
            self._gathered.append(change)
            return
        stream, kind = change.stream, change.kind
        held = stream.live.held.get(kind, {})
        first = change.ids[0]
        wanted = held.get(first)
        revokes = False
        if len(change.ids) == 1:
            before = change.before.get(first)
            if wanted == before:
                self._settle(change, change.ids)
                change.intact = False  # one that was pending has a deadline still
                self._wake_all(kind, change.ids, now)
                return
            revokes = (
                wanted is not None
                and kind in ordering.REVOKERS
                and ordering.revokes(before, wanted)
            )
        change.deletion = wanted is None
        change.revokes = revokes
        if change.refusal and not change.deletion:
            self._except(change, State.REFUSED, change.refusal, now)
            return
        if self._knows_references and not (change.deletion or revokes):
            awaited = None
            for reference in change.needs:
                found = self._references.find(stream, reference)
                if found is None:
                    self._pend(change, reference, now)
                    return
                if not found:
                    awaited = reference
            if awaited is not None:
                self._references.block(change, awaited)
                self._wake_all(kind, change.ids, now)
                return
        change.state = State.QUEUED
        self._backlog.put(change, ordering.phase(kind, change.deletion, revokes))
        self._wake_all(kind, change.ids, now)

    def _pend(self, change: Change, reference: Reference, now: int) -> None:
        kind, id_ = reference
        if not change.deadline_ns:
            change.deadline_ns = now + self._deadline_ns
        self._references.wait(change, reference)
        if now < change.deadline_ns:
            self.exceptions.remind(change, change.deadline_ns)
            reason = f"MISSING_REFERENCE: waits for {kind.name.lower()}/{id_}"
            self._except(change, State.PENDING, reason, now)
        else:
            self._except(change, State.REFUSED, _missing(reference), now)

    def _except(self, change: Change, state: State, reason: str, now: int) -> None:
        """A change becomes an exception; what refers to it learns of that."""
        self.exceptions.add(change, state, reason, now)
        stream = change.stream
        stream.uncount(change.mark, len(change.ids))
        change.mark = None
        self.touched[stream.id] = stream
        self._wake_all(change.kind, change.ids, now)

    def _settle(self, change: Change, ids: Sequence[str]) -> None:
        """These ids of a change need nothing any more. All of them are its own."""
        stream, kind = change.stream, change.kind
        unsettled = stream.unsettled[kind]
        if len(unsettled) == len(ids):
            unsettled.clear()
        else:
            for id_ in ids:
                del unsettled[id_]
        stream.uncount(change.mark, len(ids))
        self.touched[stream.id] = stream
        if self.exceptions.faults:
            for id_ in ids:
                self.exceptions.clear(stream, kind, id_)

    def _wake_all(self, kind: Kind, ids: Iterable[str], now: int) -> None:
        """What waits for these is looked at again."""
        for change in self._references.woken(kind, ids):
            self._evaluate(change, now)

    # --- time ---

    def expire(self, now: int) -> None:
        """Refuse what has been pending for too long, and try again what it is time for.

        To be called when `exceptions.due_ns` has come.
        """
        for change in self.exceptions.due(now):
            if change.state is State.RETRYING and change.retry_ns <= now and change.standing():
                self._counters.retries += 1
                self._evaluate(change, now)
            elif change.state is State.PENDING and change.deadline_ns <= now and change.standing():
                assert change.awaited is not None
                self._except(change, State.REFUSED, _missing(change.awaited), now)

    # --- programs ---

    def next_program(self, now: int) -> list[Resource]:
        """The operations to do now, in their order; empty if there are none, or one is under way.

        A resource without a payload is a deletion.
        """
        operations: list[Resource] = []
        if self._flights or self.strays.flying:
            return operations
        while self._backlog and len(operations) < self._limit:
            room = self._limit - len(operations)
            change = self._backlog.take(room, deletions=not self._references.blocked)
            if change is None:
                break
            flight = self._flight(change, now)
            if not flight.ids:
                continue
            change.state = State.FLYING
            self._flights.append(flight)
            operations += flight.resources
        if not operations and self.strays.due:
            operations = self.strays.next_program()
        if operations:
            self._counters.programs += 1
        return operations

    def _flight(self, change: Change, now: int) -> _Flight:
        """The operations of a change, as other streams allow (law 8)."""
        flight = _Flight(change, change.ids, change.operations())
        others = elsewhere(change, self._streams.values())
        if not others:
            return flight
        operations: dict[str, Resource] = {}
        settled: list[str] = []
        put_off: list[str] = []
        for id_, resource in zip(flight.ids, flight.resources, strict=True):
            operations[id_] = resource
            if id_ in others:
                revision, older, flying = others[id_]
                newest = resource.revision > revision
                if not newest or (flying and not resource.payload):
                    (put_off if flying else settled).append(id_)
                    del operations[id_]
                elif not resource.payload:
                    operations[id_] = older
        change.ids = [*operations, *put_off]
        if settled:
            self._settle(change, settled)
            self._wake_all(change.kind, settled, now)
        if put_off:
            self._put_off.append(change.split(len(operations)) if operations else change)
        return _Flight(change, list(operations), list(operations.values()))

    def programmed(self, refused: Mapping[int, Refusal], now: int) -> None:
        """The program under way is done, but for the refused operations: place in it → why."""
        if self.strays.flying:
            self.strays.programmed(refused)
            return
        flights, self._flights = self._flights, []
        offset = 0
        for flight in flights:
            change, ids, resources = flight
            if refused and not refused.keys().isdisjoint(range(offset, offset + len(ids))):
                for place, (id_, resource) in enumerate(zip(ids, resources, strict=True), offset):
                    self._landed(change, id_, resource, refused.get(place), now)
            elif change.intact:
                self._counters.applied[change.kind] += len(ids)
                if change.revokes:
                    self._revoked(change, now)
                self._settle(change, ids)
                self._wake_all(change.kind, ids, now)
            else:
                for id_, resource in zip(ids, resources, strict=True):
                    self._landed(change, id_, resource, None, now)
            offset += len(ids)
        put_off, self._put_off = self._put_off, []
        for change in put_off:
            if change.standing():
                self._evaluate(change, now)

    def _revoked(self, change: Change, now: int) -> None:
        """What took a permission away is applied."""
        stream = change.stream
        mark, _ = stream.revoked
        stream.revoked = (max(mark, change.at), now)
        self._news.streams[stream.id] = None
        self._news.revoked = True
        if change.since_ns:
            self._counters.revocations.observe(max(0, now - change.since_ns) / 1e9)

    def _landed(
        self, change: Change, id_: str, resource: Resource, refusal: Refusal | None, now: int
    ) -> None:
        """One operation is done, or was refused."""
        stream, kind = change.stream, change.kind
        successor = stream.unsettled[kind][id_]
        if refusal is None:
            self._counters.applied[kind] += 1
            if change.revokes:
                self._revoked(change, now)
            if successor is change:
                self._settle(change, [id_])
                self._wake_all(kind, [id_], now)
                return
            successor.before = _NOTHING if change.deletion else {id_: resource}
            stream.uncount(change.mark, 1)
            self.touched[stream.id] = stream
            self.exceptions.clear(stream, kind, id_)
        elif successor is change:
            alone = Change(stream, kind, [id_], change.before, change.at, needs=change.needs)
            alone.mark, alone.since, alone.deletion = change.mark, change.since, change.deletion
            alone.since_ns, alone.attempts = change.since_ns, change.attempts + 1
            change.intact = False
            stream.unsettled[kind][id_] = alone
            self._refuse(alone, refusal, now)
            return
        if refusal is not None and change.revokes:
            successor.since_ns = change.since_ns
        if refusal is not None and change.mark is not None:
            # Never applied at the older message: that one waits for the successor now.
            if successor.mark is not None:
                stream.uncount(successor.mark, 1)
                successor.mark = change.mark
                successor.since = min(successor.since, change.since)
            else:
                stream.uncount(change.mark, 1)
        successor.state = State.QUEUED
        self._evaluate(successor, now)

    def _refuse(self, change: Change, refusal: Refusal, now: int) -> None:
        """The data plane refused a change of one resource; not for the first time, maybe."""
        delay = None
        if refusal.transient:
            delay = self._retry.delay_ns(self._host, change.kind, change.ids[0], change.attempts)
        if delay is None:
            self._except(change, State.REFUSED, f"DATA_PLANE: {refusal.reason}", now)
            return
        change.retry_ns = now + delay
        self.exceptions.remind(change, change.retry_ns)
        self._except(change, State.RETRYING, f"DATA_PLANE: {refusal.reason}", now)


def _missing(reference: Reference) -> str:
    kind, id_ = reference
    return f"MISSING_REFERENCE: {kind.name.lower()}/{id_} is not here"
