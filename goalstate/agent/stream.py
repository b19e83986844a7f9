"""What one host keeps of one stream: what it read, and how far it applied it.

Laws of reading:

1.  A message is taken when it is the next one, and only then. Of the same epoch, that is the next
    sequence; of a higher one, sequence 1 that comes `after` the mark read last. An earlier message
    is a duplicate; one of a lower epoch is stale; anything else shows a gap.
2.  A reading begins with the first message of the log (sequence 1, after nothing) or with the first
    chunk of a checkpoint. The chunks of a checkpoint come in their order, all with one mark; what
    is of a lower mark is stale, and the first chunk of a higher one begins anew. Its end gives the
    place from which the log is read on. What is held is exact, and is of use, when the log has been
    read as far as the checkpoint's end says (`loading` until then).
3.  When an epoch begins `after` a mark that is below what was read, then what was read above it was
    written by a writer that had lost the stream. It is void, and left out when the stream is read
    again (`Stream.fences`).
4.  Of each resource the highest revision is held. Lower ones are dropped, and so is what would
    bring a deleted resource back at or below the revision of its deletion. (Of each kind the newest
    TOMBSTONES deletions are remembered. Older revisions than these can only come from a writer that
    breaks the order, and then the digest tells.)
5.  An IN_SYNC message of the log changes nothing and takes no sequence number: it is passed over
    where everything up to its mark was read, and shows a gap where that is not so.

Laws of the watermark:

6.  It is the mark of the newest message such that it and all before it are settled. A message is
    settled when each resource that it changed is, at that revision or a higher one, applied or
    named as an exception.
7.  It never goes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from operator import is_
from typing import TYPE_CHECKING, NamedTuple

from goalstate.agent.decoding import Content, Group
from goalstate.gs import digest as digests
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId

if TYPE_CHECKING:
    from goalstate.agent.changes import Change

#: Deletions remembered, of each kind and stream.
TOMBSTONES = 10_000


class Place(Enum):
    """Where a message stands to what was read."""

    NEXT = "next"
    #: It tells nothing that is not known, and that is as it should be.
    KNOWN = "known"
    DUPLICATE = "duplicate"
    STALE = "stale"
    GAP = "gap"
    #: It begins an epoch that does not know of everything that was read.
    VOIDS = "voids"


def closes(envelope: Envelope) -> bool:
    """Is it the end of a checkpoint? Another IN_SYNC message is of the log."""
    return (
        envelope.kind is MessageKind.IN_SYNC
        and envelope.until is not None
        and envelope.checkpoint is not None
    )


class Fault(NamedTuple):
    """Something of a stream that is not applied, and why."""

    pending: bool  # else refused
    reason: str
    revision: int
    mark: Mark
    #: How often the data plane refused it.
    attempts: int = 0
    #: It is refused for now, and the data plane is asked again.
    retrying: bool = False


class Reading:
    """What was read of a stream, from its beginning or from a checkpoint on, without a gap."""

    __slots__ = (
        "chunk",
        "chunks",
        "digest",
        "expected",
        "groups",
        "held",
        "malformed",
        "mark",
        "out_of_order",
        "position",
        "tombstones",
        "unread",
        "until",
    )

    def __init__(self) -> None:
        self.mark = ORIGIN
        #: The log is read on after this position of the bus: that of the message at `mark`, or of
        #: one that tells of it. Empty before the first, and within a checkpoint.
        self.position = b""
        #: The chunk of a checkpoint that was read last, of how many; 0 outside of a checkpoint.
        self.chunk = 0
        self.chunks = 0
        #: What is held is exact from here on; ORIGIN where it always was.
        self.until = ORIGIN
        self.held: dict[Kind, dict[str, Resource]] = {}
        #: Additions as they came, kept for as long as none of it is wanted yet (a shadow).
        self.groups: list[Group] = []
        self.tombstones: dict[Kind, dict[str, int]] = {}
        self.digest = digests.EMPTY
        #: What the publisher says that the digest is; None where it said nothing yet.
        self.expected: int | None = None
        #: Messages that could not be read, and resources of which the same is true.
        self.unread: dict[Mark, Fault] = {}
        self.malformed: dict[tuple[int, str], Fault] = {}
        #: Dropped because of their revision, though their content is another.
        self.out_of_order = 0

    @property
    def loading(self) -> bool:
        """Is what is held a checkpoint that is not complete, or not exact yet?"""
        return self.chunk > 0 or self.mark < self.until

    def place(self, envelope: Envelope) -> Place:
        mark, after = envelope.mark, envelope.after
        if envelope.kind is MessageKind.CHECKPOINT or closes(envelope):
            return self._place_in_checkpoint(envelope)
        if self.chunk:
            return Place.GAP
        if envelope.kind is MessageKind.IN_SYNC:
            return Place.KNOWN if mark <= self.mark else Place.GAP
        if self.mark == ORIGIN:
            return Place.NEXT if mark.sequence == 1 and after in (None, ORIGIN) else Place.GAP
        if mark.epoch == self.mark.epoch:
            ahead = mark.sequence - self.mark.sequence
            return Place.NEXT if ahead == 1 else Place.GAP if ahead > 1 else Place.DUPLICATE
        if mark.epoch < self.mark.epoch:
            return Place.STALE
        if mark.sequence != 1 or after is None or after > self.mark:
            return Place.GAP
        return Place.NEXT if after == self.mark else Place.VOIDS

    def _place_in_checkpoint(self, envelope: Envelope) -> Place:
        begins = envelope.kind is MessageKind.CHECKPOINT and envelope.chunk == 1
        if not self.chunk:
            return Place.NEXT if begins else Place.GAP
        if envelope.mark != self.mark:
            if envelope.mark < self.mark:
                return Place.STALE
            return Place.NEXT if begins else Place.GAP
        if envelope.kind is MessageKind.IN_SYNC:
            return Place.NEXT if self.chunk == self.chunks else Place.GAP
        ahead = envelope.chunk - self.chunk
        return Place.NEXT if ahead == 1 else Place.GAP if ahead > 1 else Place.DUPLICATE

    def step(self, envelope: Envelope, position: bytes) -> None:
        """Move on to a message whose place is NEXT. A checkpoint is begun by a new reading only."""
        self.mark = envelope.mark
        if envelope.kind is MessageKind.CHECKPOINT:
            self.chunk, self.chunks = envelope.chunk, envelope.chunks
            return
        if envelope.checkpoint is not None and envelope.until is not None:
            self.chunk = self.chunks = 0
            self.until = envelope.until
            position = envelope.checkpoint.log
        self.position = position

    def take(self, group: Group) -> dict[str, Resource | None] | None:
        """Hold these resources. Gives those that were news, each with what was held before.

        None says: all of them, and nothing was held or remembered of any.
        """
        kind = group.kind
        held = self.held.get(kind)
        if held is None:
            held = self.held[kind] = {}
        tombstones = self.tombstones.get(kind)
        if (
            not group.deletion
            and (not tombstones or tombstones.keys().isdisjoint(group.ids))
            and held.keys().isdisjoint(group.ids)
        ):
            held.update(zip(group.ids, group.resources, strict=True))
            self.digest = (self.digest + group.digest) & digests.MASK
            return None
        if tombstones is None:
            tombstones = self.tombstones[kind] = {}
        taken: dict[str, Resource | None] = {}
        digest = self.digest
        for resource in group.resources:
            id_ = resource.id
            old = held.get(id_)
            known = old.revision if old is not None else tombstones.get(id_, -1)
            if resource.revision <= known:
                # The same once more is a success, and so is the deletion of what is gone.
                same = resource == old or (old is None and not resource.payload)
                # A checkpoint may be ahead of the log that is read after it.
                if not same and not self.loading:
                    self.out_of_order += 1
                continue
            if old is not None:
                digest -= digests.item(kind, old.payload)
            if resource.payload:
                digest += digests.item(kind, resource.payload)
                held[id_] = resource
                tombstones.pop(id_, None)
                taken[id_] = old
            else:
                held.pop(id_, None)
                tombstones.pop(id_, None)
                tombstones[id_] = resource.revision
                if old is not None:
                    taken[id_] = old
        while len(tombstones) > TOMBSTONES:
            del tombstones[next(iter(tombstones))]
        self.digest = digest & digests.MASK
        return taken

    @property
    def fault_mark(self) -> Mark:
        """The first message that may have brought what was just read: of a checkpoint, any."""
        return ORIGIN if self.chunk else self.mark

    def unchanged(self, kind: Kind) -> list[Group]:
        """The kept groups of a kind of which all is held as it came."""
        held = self.held.get(kind, {})
        return [
            group
            for group in self.groups
            if group.kind is kind and all(map(is_, map(held.get, group.ids), group.resources))
        ]

    def note(self, content: Content) -> None:
        """Remember what of the message just read is malformed, and forget what no longer is."""
        if self.malformed:
            for group in content.groups:
                for id_ in group.ids:
                    self.malformed.pop((int(group.kind), id_), None)
        for kind, id_, reason in content.malformed:
            self.malformed[kind, id_] = Fault(False, reason, 0, self.fault_mark)
        if content.digest is not None:
            self.expected = content.digest

    def reconcile(self) -> bool:
        """What could not be read before the newest message is held by now, or gone.

        Was there anything of that?
        """
        before = len(self.unread) + len(self.malformed)
        self.unread = {k: v for k, v in self.unread.items() if v.mark == self.mark}
        self.malformed = {k: v for k, v in self.malformed.items() if v.mark == self.mark}
        return len(self.unread) + len(self.malformed) < before

    def size(self) -> int:
        """How many resources are held, and deletions remembered."""
        return sum(map(len, self.held.values())) + sum(map(len, self.tombstones.values()))

    def agrees(self, envelope: Envelope) -> bool:
        """Is what is held what the publisher says, as of the message just read?

        True where it cannot be said yet. On an inbox stream the envelope's digest is of all hosts;
        what counts is the one that the publisher gave for this host.
        """
        if self.loading:
            return True
        if envelope.stream.kind.for_hosts:
            return self.expected in (None, self.digest)
        return envelope.digest == digests.to_hex(self.digest)


class _Outstanding:
    """How many resources a message still waits for, and the mark before it."""

    __slots__ = ("count", "previous")

    def __init__(self, previous: Mark) -> None:
        self.count = 0
        self.previous = previous


class Stream:
    """A stream that a host follows."""

    __slots__ = (
        "applied_ns",
        "attempts",
        "counting",
        "disagreed",
        "disagreements",
        "fences",
        "followed_ns",
        "gone",
        "id",
        "leaving",
        "live",
        "outstanding",
        "published_ns",
        "reread_ns",
        "resync_ns",
        "revoked",
        "shadow",
        "since",
        "start",
        "stuck",
        "suspect",
        "topic",
        "tried",
        "unsettled",
        "watermark",
    )

    def __init__(self, id_: StreamId, topic: str, start: bytes, *, counting: bool) -> None:
        self.id = id_
        self.topic = topic
        #: Where reading begins, as the subscription says.
        self.start = start
        #: Payloads are checked and counted, not decoded.
        self.counting = counting
        #: What is held and not (yet) applied, see `programming`.
        self.unsettled: dict[Kind, dict[str, Change]] = {}
        #: Followed no longer, but not all of it is out of the data plane yet.
        self.leaving = False
        #: Since when it is followed.
        self.followed_ns = 0
        self.forget()

    def forget(self) -> None:
        """Be as if nothing had been read. What is in the data plane stays known."""
        self.live = Reading()
        #: The stream is being read from a checkpoint, or again from its beginning, into this; then
        #: it replaces `live`.
        self.shadow: Reading | None = None
        self.outstanding: dict[Mark, _Outstanding] = {}
        self.watermark = ORIGIN
        self.applied_ns = 0
        #: The newest message of which something applied took a permission away, and when the last
        #: such thing was applied.
        self.revoked = (ORIGIN, 0)
        #: When the newest message read was published.
        self.published_ns = 0
        #: The first message that may have brought what is wanted just now; None: the newest did.
        self.since: Mark | None = None
        #: First marks of epochs, and the marks that they come after (law 3).
        self.fences: dict[int, Mark] = {}
        # See `repair`: reads since there was progress beyond `stuck`, and when the next is
        # due (None: none is wanted); the corrupted message and its chunk, read once more; how often
        # the broker did not have the position, since it gave a message of the log; the mark at
        # which a checkpoint was told of that was tried before its time.
        self.tried = ORIGIN
        self.attempts = 0
        self.stuck = ORIGIN
        self.reread_ns: int | None = None
        self.suspect = (ORIGIN, 0)
        self.gone = 0
        self.disagreements = 0
        #: Where the first of them was found.
        self.disagreed = ORIGIN
        self.resync_ns: int | None = None

    @property
    def reading(self) -> Reading:
        """What the open reader feeds."""
        return self.shadow or self.live

    def void(self, mark: Mark) -> bool:
        """Was the message at `mark` written after its epoch was over?"""
        return any(mark.epoch < epoch and mark > after for epoch, after in self.fences.items())

    def count(self, mark: Mark | None, previous: Mark, number: int) -> None:
        """`number` resources more are to be settled before the watermark passes `mark`."""
        if mark is None:
            return
        entry = self.outstanding.get(mark)
        if entry is None:
            entry = self.outstanding[mark] = _Outstanding(previous)
        entry.count += number

    def uncount(self, mark: Mark | None, number: int) -> None:
        entry = self.outstanding.get(mark) if mark is not None else None
        if entry is not None:
            entry.count -= number

    def advance(self, now: int) -> bool:
        """Move the watermark as far as it goes; did it move?"""
        outstanding = self.outstanding
        while outstanding:
            first = next(iter(outstanding))
            if outstanding[first].count > 0:
                break
            del outstanding[first]
        reached = outstanding[first].previous if outstanding else self.live.mark
        if reached <= self.watermark:
            return False
        self.watermark = reached
        self.applied_ns = now
        return True

    def applied(self, kind: Kind) -> Mapping[str, Resource]:
        """What is applied of a kind, by id. To be used at once: it may be the state itself."""
        held = self.live.held.get(kind, {})
        unsettled = self.unsettled.get(kind)
        if not unsettled:
            return held
        applied = dict(held)
        for id_, change in unsettled.items():
            before = change.before.get(id_)
            if before is None:
                applied.pop(id_, None)
            else:
                applied[id_] = before
        return applied

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of which something may be applied, in the order of Kind."""
        return sorted(self.live.held.keys() | self.unsettled.keys())

    def resources(self) -> int:
        """How many resources are applied."""
        total = 0
        for kind in self.kinds:
            held = self.live.held.get(kind, {})
            total += len(held)
            for id_, change in self.unsettled.get(kind, {}).items():
                total += (change.before.get(id_) is not None) - (id_ in held)
        return total
