"""What is done about a stream that does not go on, or does not hold what it should. Pure.

Laws:

1.  A gap is repaired by reading again after the last good message; if that brings no progress, from
    the beginning, into a shadow, with a delay that doubles from RETRY_NS to RETRY_MAX_NS. So is a
    position that the broker does not have any more, with a delay from the second time on. Nothing
    is skipped. While a gap cannot be repaired, it is an exception of its stream. A new checkpoint
    that the log tells of meanwhile is tried soon.
2.  A message whose bytes are not what its checksum says is read once more.
3.  When the digest differs from the publisher's, the stream is read again from the beginning, into
    a shadow. When the shadow has got as far, the `difference` is programmed, what it does not hold
    included. Until then the host keeps what it has. If the shadow differs too, the log is at fault:
    what it says is held, the reports say with which digest, and it is tried again ever less often.
4.  A host that holds much of a stream reads it again at a moment of its own (`spread`).

What is under way is kept in each `Stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from goalstate.agent.actions import Action, Follow
from goalstate.agent.counters import Counters
from goalstate.agent.decoding import Group, grouped
from goalstate.agent.news import News
from goalstate.agent.spread import moment
from goalstate.agent.stream import Fault, Reading, Stream
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.resources import Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId

RETRY_NS = 1_000_000_000
RETRY_MAX_NS = 60 * 1_000_000_000


class Repair:
    """Of the streams of one host. Times (`now`) are nanoseconds since the Unix epoch."""

    def __init__(self, host: str, counters: Counters, news: News, actions: list[Action]) -> None:
        """`actions` gets what is to be read."""
        self._host = host
        self._counters = counters
        self._news = news
        self._actions = actions
        #: When `tick` has something to do next; None: nothing.
        self.due_ns: int | None = None

    # --- what is read ---

    def read(self, stream: Stream, start: bytes) -> None:
        """Read a stream after this position."""
        self._actions.append(Follow(stream.id, stream.topic, start, stream.reading.mark))

    def resync(self, stream: Stream) -> None:
        """Read a stream again from its beginning."""
        self._counters.resyncs += 1
        stream.shadow = Reading()
        stream.resync_ns = None
        self.read(stream, b"")

    def moved(self, stream: Stream) -> None:
        """Its reader begins on another topic: what was to be repaired was the reading of this."""
        self._restart(stream)
        self._news.exceptions |= stream.attempts > 1 or stream.gone > 1
        stream.attempts = stream.gone = 0
        stream.reread_ns = None

    def _restart(self, stream: Stream) -> None:
        """The reader begins anew: what was read of an incomplete checkpoint is of no use."""
        if stream.reading.chunk:
            stream.shadow = Reading()

    # --- what is wrong, or right again ---

    def gap(self, stream: Stream, envelope: Envelope, now: int) -> None:
        """A message came that is not the next one."""
        self._counters.gaps += 1
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
            self._due_at(now)
        else:
            self._reread(stream, envelope.mark, now)

    def corrupted(self, stream: Stream, envelope: Envelope, now: int) -> None:
        """The next message came, and its bytes are not what its checksum says."""
        self._counters.corrupted += 1
        stream.suspect = (envelope.mark, envelope.chunk)
        self._reread(stream, envelope.mark, now)

    def voided(self, stream: Stream, envelope: Envelope) -> None:
        """An epoch begins that does not know of everything that was read."""
        stream.fences[envelope.mark.epoch] = envelope.after or ORIGIN
        self.resync(stream)

    def gone(self, stream: Stream, now: int) -> None:
        """The broker no longer holds what the last Follow was to begin with."""
        stream.gone += 1
        if stream.gone == 1:
            delay = moment(self._host, stream)
        else:
            delay = _delay(stream.gone)
            self._news.exceptions = True
        if delay:
            stream.reread_ns = now + delay
            self._due_at(stream.reread_ns)
        else:
            self.resync(stream)

    def found(self, stream: Stream) -> None:
        """The broker has the log where it is read."""
        self._news.exceptions |= stream.gone > 1
        stream.gone = 0

    def progressed(self, stream: Stream, mark: Mark) -> None:
        """The stream was read up to this mark without a gap."""
        if stream.attempts and mark >= stream.stuck:
            self._news.exceptions |= stream.attempts > 1
            stream.attempts = 0
            stream.reread_ns = None

    def judge(self, stream: Stream, agrees: bool, now: int) -> None:
        """What is held agrees with the publisher's digest, or not."""
        if agrees:
            self._news.exceptions |= stream.disagreements > 0
            stream.disagreements = 0
            stream.resync_ns = None
        elif stream.resync_ns is None and not (stream.live.unread or stream.live.malformed):
            # What is missing because it is unreadable does not come by reading it again.
            self._counters.mismatches += 1
            stream.disagreements += 1
            if stream.disagreements == 1:
                stream.disagreed = stream.live.mark
                self._news.exceptions = True
                delay = moment(self._host, stream)
            else:
                delay = _delay(stream.disagreements)
            if delay:
                stream.resync_ns = now + delay
                self._due_at(stream.resync_ns)
            else:
                self.resync(stream)

    def drifted(self, stream: Stream) -> None:
        """What is held is not what it was."""
        stream.disagreements, stream.disagreed = 1, ORIGIN
        self._news.exceptions = True
        self.resync(stream)

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
            self.read(stream, start)
            return
        self._news.exceptions = True
        stream.reread_ns = now + _delay(stream.attempts)
        self._due_at(stream.reread_ns)

    # --- time ---

    def tick(self, streams: Iterable[Stream], now: int) -> None:
        """Read again what it is time for, of all streams of the host."""
        self.due_ns = None
        for stream in streams:
            if stream.leaving:
                continue
            if stream.reread_ns is not None and stream.reread_ns <= now:
                stream.reread_ns = None
                self.resync(stream)
            elif stream.resync_ns is not None and stream.resync_ns <= now:
                self.resync(stream)
            self._due_at(stream.reread_ns)
            self._due_at(stream.resync_ns)

    def _due_at(self, when: int | None) -> None:
        if when is not None and (self.due_ns is None or when < self.due_ns):
            self.due_ns = when


def _delay(failures: int) -> int:
    """Nanoseconds until the next try, after the second failure in a row and each later one."""
    return min(RETRY_NS << min(failures - 2, 10), RETRY_MAX_NS)


def is_faulty(stream: Stream) -> bool:
    """Is there any of `faults`?"""
    return stream.disagreements > 0 or stream.attempts > 1 or stream.gone > 1


def faults(stream: Stream) -> Iterator[Fault]:
    """What of a stream is not repaired yet."""
    if stream.disagreements:
        reason = "DIGEST: what is held is not what the publisher says; reading it again"
        yield Fault(True, reason, 0, stream.disagreed)
    if stream.attempts <= 1 and stream.gone <= 1:
        return
    mark = stream.live.mark
    if stream.attempts > 1:
        reason = f"GAP: after {mark} came {stream.stuck}, also when read again"
    else:
        reason = f"GAP: the broker does not have what came after {mark} any more"
    yield Fault(False, reason, 0, Mark(mark.epoch, mark.sequence + 1))


Difference = Iterator[tuple[Group, Mapping[str, Resource | None] | None]]


def difference(old: Reading, new: Reading, stream: StreamId) -> Difference:
    """What changes where a shadow takes the place of what was held.

    Gives groups of which all, or what is in the mapping, changed, and what was held of it before;
    None: all of it, and it is new.
    """
    for kind in sorted(old.held.keys() | new.held.keys()):
        before, after = old.held.get(kind, {}), new.held.get(kind, {})
        gone = [r for id_, r in before.items() if id_ not in after]
        if gone:
            deletions = [r._replace(payload=b"") for r in gone]
            yield Group(kind, True, "", deletions, [()]), {r.id: r for r in gone}
        # What came together, and is all new, is brought on as it came: hosts that read the same
        # then share the work of sorting it.
        known: set[str] = set()
        for group in new.unchanged(kind):
            if before.keys().isdisjoint(group.ids):
                yield group, None
                known.update(group.ids)
        if len(known) == len(after):
            continue
        came = [r for id_, r in after.items() if id_ not in known and before.get(id_) != r]
        for group in grouped(came, stream):
            if before.keys().isdisjoint(group.ids):
                yield group, None
            else:
                yield group, {r.id: _known(before, r) for r in group.resources}


def _known(before: Mapping[str, Resource], resource: Resource) -> Resource | None:
    """What was held before a resource; None if it cannot have been: it has the same revision."""
    old = before.get(resource.id)
    return None if old is not None and old.revision == resource.revision else old
