"""Changes: the difference between what a host holds and what it has applied, and their backlog."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
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

    def take(self, *, deletions: bool) -> Change | None:
        """The first change; None if there is none, or only deletions, and these are not asked for.

        Changes that were overtaken as a whole are left out.
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
                return change
        return None

    def put_back(self, change: Change) -> None:
        """Make a change the first one; it has the phase of the one that was taken last."""
        self._buckets[self._lowest].appendleft(change)
        self._length += 1
