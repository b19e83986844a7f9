"""Which resources of a host are not applied, why, and when that is looked at again. Pure.

Laws:

1.  An exception stands until the resource is applied or gone, also while a newer revision, or
    another attempt, is on its way. Its mark is that of the oldest message that it stands for.
2.  One attempt more is no news by itself.
3.  A refusal for good is told in a dead letter too (`dead_letters`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from goalstate.agent.changes import Change, State
from goalstate.agent.counters import Counters
from goalstate.agent.dead_letters import DeadLetters, Name
from goalstate.agent.news import News
from goalstate.agent.stream import Fault, Stream
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamId


class Exceptions:
    """Of one host. Times are nanoseconds since the Unix epoch."""

    def __init__(self, counters: Counters, news: News) -> None:
        self._counters = counters
        self._news = news
        #: What is not applied and why, by stream, kind and id.
        self.faults: dict[Name, Fault] = {}
        #: Streams that lost an exception by applying the resource since this was last emptied.
        self.cleared: dict[StreamId, Stream] = {}
        #: Refusals that are to be told, and were.
        self.letters = DeadLetters()
        self._reminders: list[tuple[int, int, Change]] = []
        self._ties = 0

    def add(self, change: Change, state: State, reason: str, now: int) -> None:
        """A change becomes an exception, or is one for another reason."""
        stream, kind = change.stream, change.kind
        held = stream.live.held.get(kind, {})
        # It may stand for an older message too, which it overtook before that was applied.
        since = min(change.since, change.mark) if change.mark is not None else change.since
        if state is State.REFUSED and change.state is not State.REFUSED:
            self._counters.refused += len(change.ids)
        change.state = state
        for id_ in change.ids:
            wanted = held.get(id_)
            revision = wanted.revision if wanted is not None else change.before[id_].revision + 1
            key = (stream.id, kind, id_)
            earlier = self.faults.get(key)
            at = since if earlier is None else min(earlier.mark, since)
            fault = self.faults[key] = Fault(
                state is State.PENDING,
                reason,
                revision,
                at,
                change.attempts,
                state is State.RETRYING,
            )
            if earlier is None or earlier._replace(attempts=0) != fault._replace(attempts=0):
                self._news.exceptions = True
            if state is State.REFUSED:
                self.letters.refused(key, revision, now)

    def clear(self, stream: Stream, kind: Kind, id_: str) -> None:
        """A resource is applied or gone, whether it was an exception or not."""
        key = (stream.id, kind, id_)
        if self.faults.pop(key, None) is not None:
            self.letters.cleared(key)
            self._news.exceptions = True
            self.cleared[stream.id] = stream

    def leave(self, stream: StreamId) -> None:
        """Nothing is wanted of a stream any more."""
        for key in [key for key in self.faults if key[0] == stream]:
            del self.faults[key]
            self.letters.cleared(key)
            self._news.exceptions = True

    # --- time ---

    def remind(self, change: Change, when: int) -> None:
        """A change is to be looked at again then, if it is in the same state."""
        self._ties += 1
        heapq.heappush(self._reminders, (when, self._ties, change))

    @property
    def due_ns(self) -> int | None:
        """When the next one is to be looked at; None: nothing waits."""
        return self._reminders[0][0] if self._reminders else None

    def due(self, now: int) -> Iterator[Change]:
        """Changes of which it is time; they may have been overtaken, or be in another state."""
        while self._reminders and self._reminders[0][0] <= now:
            yield heapq.heappop(self._reminders)[2]
