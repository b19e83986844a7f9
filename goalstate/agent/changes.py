"""Changes: the difference between what a host holds and what it has applied, and their backlog."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from goalstate.agent.decoding import Needs, Reference
from goalstate.gs import ordering
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Mark

if TYPE_CHECKING:
    from goalstate.agent.stream import Stream

#: Phases are -1 (revocations) to twice the number of kinds; see `ordering.phase`.
_PHASES = 2 * len(ordering.ADD_ORDER) + 2
#: Buckets from this one on hold deletions; bucket 0 holds the revocations.
_FIRST_DELETION = len(ordering.ADD_ORDER) + 1


class State(Enum):
    QUEUED = "queued"
    BLOCKED = "blocked"
    FLYING = "flying"
    #: It follows one that is flying.
    NEXT = "next"
    PENDING = "pending"
    REFUSED = "refused"
    #: Refused for now.
    RETRYING = "retrying"


#: What a change in one of these is, is told.
EXCEPTIONS = (State.PENDING, State.REFUSED, State.RETRYING)


class Change:
    """The difference between what is held and what is applied, see the module's text."""

    __slots__ = (
        "at",
        "attempts",
        "awaited",
        "before",
        "deadline_ns",
        "deletion",
        "ids",
        "intact",
        "kind",
        "mark",
        "needs",
        "refusal",
        "retry_ns",
        "revokes",
        "since",
        "since_ns",
        "state",
        "stream",
    )

    def __init__(
        self,
        stream: Stream,
        kind: Kind,
        ids: list[str],
        before: Mapping[str, Resource],
        at: Mark,
        *,
        needs: Needs = (),
        refusal: str = "",
    ) -> None:
        self.stream = stream
        self.kind = kind
        self.ids = ids
        #: What is applied of them. Of several, all have something or none has.
        self.before = before
        #: The message that brought it, and the first that may have, or one that it overtook.
        self.at = at
        self.since = at if stream.since is None else stream.since
        #: The message whose settlement waits for it; None: none does (any more).
        self.mark: Mark | None = at
        self.needs = needs
        self.refusal = refusal
        self.deletion = False
        #: Takes a permission away.
        self.revokes = False
        self.state = State.QUEUED
        #: Stands for all of `ids`: none was overtaken.
        self.intact = True
        self.awaited: Reference | None = None
        self.deadline_ns = 0
        #: How often the data plane refused it, and when it is asked again.
        self.attempts = 0
        self.retry_ns = 0
        #: When the message was published that brought it, or the first one of those that may have
        #: taken the same permission away; 0: not known, or of several resources, that take none.
        self.since_ns = 0

    def standing(self) -> list[str]:
        """The ids that it still stands for."""
        if not self.intact:
            unsettled = self.stream.unsettled.get(self.kind, {})
            self.ids = [id_ for id_ in self.ids if unsettled.get(id_) is self]
            self.intact = True
        return self.ids

    def overtake(self, earlier: Change | None, previous: Mark) -> None:
        """Stand for its one resource from now on, in the place of an earlier change, if any.

        `previous` is the mark before the message that brought this one.
        """
        stream = self.stream
        if earlier is None:
            stream.count(self.mark, previous, 1)
        else:
            earlier.intact = False
            if earlier.state is State.FLYING:
                self.state = State.NEXT
                stream.count(self.mark, previous, 1)
            elif earlier.mark is not None and self.mark is not None:
                # The watermark must not pass the older message before this is settled.
                self.mark = earlier.mark
                self.since = min(self.since, earlier.since)
            else:
                stream.uncount(earlier.mark, 1)
                stream.count(self.mark, previous, 1)
            if earlier.state is State.NEXT:
                self.state = State.NEXT
            if earlier.state is State.PENDING:
                self.deadline_ns = earlier.deadline_ns
            if self.since_ns and (earlier.revokes or earlier.state is State.NEXT):
                # As long as it has not happened, that is since when it should have.
                self.since_ns = earlier.since_ns or self.since_ns
        stream.unsettled[self.kind][self.ids[0]] = self

    def operations(self) -> Sequence[Resource]:
        """What a data plane has to do, in the order of `ids`."""
        live, kind = self.stream.live, self.kind
        if not self.deletion:
            return list(map(live.held[kind].__getitem__, self.ids))
        tombstones = live.tombstones.get(kind, {})
        return [
            Resource(kind, id_, tombstones.get(id_, self.before[id_].revision), b"")
            for id_ in self.ids
        ]

    def split(self, number: int) -> Change:
        """Stand for the first `number` of the ids only; gives a change that does for the others."""
        rest = self.ids[number:]
        later = Change(self.stream, self.kind, rest, self.before, self.at)
        later.mark, later.since = self.mark, self.since
        later.deletion, later.needs = self.deletion, self.needs
        self.stream.unsettled[self.kind].update(dict.fromkeys(rest, later))
        self.ids = self.ids[:number]
        return later


class Backlog:
    """Changes that can be programmed, in the order of their phases."""

    __slots__ = ("_buckets", "_length", "_lowest")

    def __init__(self) -> None:
        self._buckets: list[deque[Change]] = [deque() for _ in range(_PHASES)]
        self._length = 0
        #: No bucket before this one holds anything.
        self._lowest = _PHASES

    def __len__(self) -> int:
        return self._length

    def put(self, change: Change, phase: int) -> None:
        """Add a change at the end of its phase."""
        index = phase + 1
        self._buckets[index].append(change)
        self._length += 1
        self._lowest = min(self._lowest, index)

    def take(self, room: int, *, deletions: bool) -> Change | None:
        """The first change; None if there is none, or only deletions, and these are not asked for.

        Changes that were overtaken as a whole are left out. Of one of more than `room` resources,
        the rest stays the first.
        """
        while self._length:
            bucket = self._buckets[self._lowest]
            if not bucket:
                self._lowest += 1
                continue
            if self._lowest >= _FIRST_DELETION and not deletions:
                return None
            self._length -= 1
            change = bucket.popleft()
            if change.standing():
                if len(change.ids) > room:
                    self._length += 1
                    bucket.appendleft(change.split(room))
                return change
        return None
