"""What is on the streams: resources as they were last put there, and the streams' heads. Pure.

Laws:

1.  A resource's revision starts at 1, grows by one with each change of its content, and goes on
    where it was after a deletion.
2.  What is as it was is not put on its stream again, unless that is asked for.
3.  A stream's digest is that of the resources which are on it; a host's, of those for that host on
    its inbox.
4.  The cost of a change follows what it touches, not the size of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from goalstate.dpm.leaving import Leaving
from goalstate.gs import digest as digests
from goalstate.gs import ordering, packing
from goalstate.gs.derivation import Derived, Key
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.packing import Addressed
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, StreamKind
from goalstate.gs.versions import FORMAT_V2

# A named tuple's own constructor is a Python function and takes twice as long.
_new: Any = tuple.__new__
_parsed = lru_cache(1 << 14)(StreamId.parse)
#: `ordering.phase` by kind, and whether it is a deletion.
_PHASES = {
    (kind, deleted): ordering.phase(kind, deleted) for kind in Kind for deleted in (False, True)
}
_REVOCATION = ordering.phase(Kind.SECURITY_GROUP, False, True)


class Publication(NamedTuple):
    """One message for one stream. Those of a stream are sent in the order of their marks."""

    envelope: Envelope
    payload: bytes
    channel: Channel = Channel.PULSAR
    #: The first of its stream on the channel since it was on another one.
    begins: bool = False


class Stamp(NamedTuple):
    """What all messages of a change say alike."""

    epoch: int
    change: int
    #: Nanoseconds since the Unix epoch.
    now_ns: int
    traceparent: str


class Record(NamedTuple):
    """A resource as it was last put on a stream."""

    stream: StreamId
    host: str
    vpc: str
    revision: int
    hash: int  # 0: it was withdrawn, only its revision still matters


#: A resource on its way onto a stream: its phase in the order, itself, the hash of what it takes
#: the place of (0: of nothing), and its own (0: it is a deletion).
Item = tuple[int, Addressed, int, int]


class StreamState:
    """The head of one stream."""

    __slots__ = (
        *("_followers", "_frozen", "began", "channel", "digest", "mark", "resources", "size"),
        "written",
    )

    def __init__(self) -> None:
        self.mark = ORIGIN
        #: What it travels on, and the first message there since it was on another channel; ORIGIN:
        #: it never was.
        self.channel = Channel.PULSAR
        self.began = ORIGIN
        self.digest = digests.EMPTY
        self.resources = 0
        #: Bytes of payload that the resources make, about: their updates are taken to be as large.
        self.size = 0
        #: Bytes of payload put on its log since its newest checkpoint was begun.
        self.written = 0
        self._followers: set[str] = set()
        self._frozen: frozenset[str] | None = None

    def continues(self, mark: Mark) -> bool:
        """Does its topic have, and get, all that comes after this mark?"""
        return self.channel is Channel.PULSAR and mark >= self.began

    @property
    def followers(self) -> frozenset[str]:
        """The subscribed hosts. Empty on an inbox stream, which needs no subscription."""
        if self._frozen is None:
            self._frozen = frozenset(self._followers)
        return self._frozen

    def is_followed_by(self, host: str) -> bool:
        """May be asked while another thread works on the core: it leaves nothing behind."""
        return host in self._followers

    def follow(self, host: str, follows: bool) -> None:
        if follows:
            self._followers.add(host)
        else:
            self._followers.discard(host)
        self._frozen = None


class StreamDiff:
    """What one change puts on a stream."""

    __slots__ = ("concerned", "items")

    def __init__(self) -> None:
        self.items: list[Item] = []
        #: Which hosts find something on an inbox stream, and of which VPC: (vpc, host).
        self.concerned: set[tuple[str, str]] = set()

    @property
    def revokes(self) -> bool:
        return any(phase == _REVOCATION for phase, *_ in self.items)


class Diff:
    """What one change puts on its streams."""

    def __init__(self) -> None:
        self.streams: dict[StreamId, StreamDiff] = {}
        #: Hosts that begin to follow a stream.
        self.joined: dict[StreamId, set[str]] = {}

    def on(self, stream: StreamId) -> StreamDiff:
        diff = self.streams.get(stream)
        if diff is None:
            diff = self.streams[stream] = StreamDiff()
        return diff

    def add(
        self,
        stream: StreamId,
        host: str,
        vpc: str,
        resource: Resource,
        gone: int,
        come: int,
        revokes: bool = False,
    ) -> None:
        diff = self.on(stream)
        addressed = _new(Addressed, (host, resource))
        phase = _REVOCATION if revokes else _PHASES[resource[0], come == 0]
        diff.items.append((phase, addressed, gone, come))
        diff.concerned.add((vpc, host))


def joined(diffs: Sequence[Diff]) -> Diff:
    """What several changes, one after the other, put on their streams: each resource once."""
    if len(diffs) == 1:
        return diffs[0]
    whole = Diff()
    merged: dict[StreamId, dict[tuple[Kind, str, str], Item]] = {}
    for diff in diffs:
        for stream, part in diff.streams.items():
            whole.on(stream).concerned |= part.concerned
            items = merged.setdefault(stream, {})
            for item in part.items:
                host, resource = item[1]
                key = (resource.kind, resource.id, host)
                items[key] = _after(items[key], item) if key in items else item
    for stream, items in merged.items():
        whole.on(stream).items = list(items.values())
    return whole


def _after(first: Item, second: Item) -> Item:
    """The second of two changes of a resource, for those who have not had the first."""
    phase, (_, resource), gone, come = first
    if second[3] and not gone:
        phase = _PHASES[resource.kind, False]
    elif second[3] and not come:
        # It was taken away and came back, perhaps with less than it permitted before.
        phase = _REVOCATION if resource.kind in ordering.REVOKERS else second[0]
    elif phase != _REVOCATION or not second[3]:
        phase = second[0]
    return phase, second[1], gone, second[3]


class Inventory:
    """Resources in as they are now, messages out. Not safe for use by several threads at once."""

    def __init__(self, build: Callable[[Key], Derived | None], chunk_bytes: int) -> None:
        """`build` gives what a resource must be now; None: there is none."""
        self.records: dict[Key, Record] = {}
        self.streams: dict[StreamId, StreamState] = {}
        self.leaving = Leaving()
        self._build = build
        self._chunk_bytes = chunk_bytes
        #: Digest of what each host holds of its inbox.
        self._host_digests: dict[str, int] = {}

    # --- a change ---

    def update(
        self, change: int, touched: Iterable[Key], revoking: Collection[Key], again: Collection[Key]
    ) -> Diff:
        """Take resources in as they are after a change; gives what that puts on which streams.

        It is to be put there (`put`) before anything else is taken in. `revoking`: those whose
        update takes a permission away. What is in `again` and was on a stream is put there with the
        next revision also if it is the same, deletions included.
        """
        diff = Diff()
        records = self.records
        build = self._build
        item_hash = digests.item
        for key in touched:
            kind, id_, _ = key
            old = records.get(key)
            new = build(key)
            live = old is not None and old.hash != 0
            if new is None:
                if old is not None and live:
                    gone = Resource(kind, id_, old.revision + 1, b"")
                    diff.add(old.stream, old.host, old.vpc, gone, old.hash, 0)
                    records[key] = old._replace(revision=old.revision + 1, hash=0)
                    if kind is Kind.SUBSCRIPTION:
                        left = _parsed(id_)
                        self.leaving.add(change, old.host, left)
                        self._stream(left).follow(old.host, False)
                elif old is not None and key in again:
                    gone = Resource(kind, id_, old.revision + 1, b"")
                    diff.add(old.stream, old.host, old.vpc, gone, 0, 0)
                    records[key] = old._replace(revision=old.revision + 1)
                continue
            stream, host, vpc, config = new
            revision, replaced = 1, 0
            if old is not None:
                revision = old.revision + 1
                if live and (old.stream, old.host) == (stream, host):
                    config.revision_number = old.revision
                    same = item_hash(kind, config.SerializeToString()) == old.hash
                    if same and key not in again:
                        continue
                    replaced = old.hash
                elif live:
                    gone = Resource(kind, id_, revision, b"")
                    diff.add(old.stream, old.host, old.vpc, gone, old.hash, 0)
            config.revision_number = revision
            payload: bytes = config.SerializeToString()
            come = item_hash(kind, payload)
            resource = _new(Resource, (kind, id_, revision, payload))
            diff.add(stream, host, vpc, resource, replaced, come, replaced != 0 and key in revoking)
            records[key] = _new(Record, (stream, host, vpc, revision, come))
            if kind is Kind.SUBSCRIPTION:
                followed = _parsed(id_)
                self._stream(followed).follow(host, True)
                if not live:
                    diff.joined.setdefault(followed, set()).add(host)
        return diff

    def put(
        self, stream: StreamId, channel: Channel, items: list[Item], stamp: Stamp
    ) -> tuple[list[Publication], Mark]:
        """Put a change set on a stream, as one message or as many as its size takes.

        Gives also the mark of the last one that takes a permission away.
        """
        state = self._stream(stream)
        begins = state.channel is not channel and state.mark > ORIGIN
        state.channel = channel
        items.sort(key=itemgetter(0))
        # Without items it says that the stream goes on here.
        chunks = packing.chunk([one for _, one, _, _ in items], self._chunk_bytes) or [[]]
        publications = []
        revoked = ORIGIN
        start = 0
        for number, chunk in enumerate(chunks, 1):
            part = items[start : start + len(chunk)]
            start += len(chunk)
            host_digests = self._settle(state, part)
            payload = packing.encode(chunk, host_digests)
            _weigh(state, part, len(payload))
            if state.mark.epoch == stamp.epoch:
                after, mark = None, Mark(stamp.epoch, state.mark.sequence + 1)
            else:
                after, mark = state.mark, Mark(stamp.epoch, 1)
            state.mark = mark
            if part and part[0][0] == _REVOCATION:
                revoked = mark  # they come first, also within a message
            if begins:
                state.began = mark
            envelope = Envelope(
                schema=FORMAT_V2,
                stream=stream,
                mark=mark,
                kind=MessageKind.DELTA,
                chunk=number,
                chunks=len(chunks),
                change=stamp.change,
                digest=digests.to_hex(state.digest),
                checksum=digests.checksum(payload),
                published_ns=stamp.now_ns,
                after=after,
                traceparent=stamp.traceparent,
            )
            publications.append(Publication(envelope, payload, channel, begins))
            begins = False
        return publications, revoked

    def _settle(self, state: StreamState, part: list[Item]) -> dict[str, int]:
        """Bring the digests of a stream, and of the hosts concerned, past these items."""
        total = 0
        hosts: dict[str, int] = {}
        for _, (host, _), gone, come in part:
            total += come - gone
            state.resources += (come != 0) - (gone != 0)
            if host:
                hosts[host] = hosts.get(host, 0) + come - gone
        state.digest = (state.digest + total) & digests.MASK
        for host, change in hosts.items():
            after = (self._host_digests.get(host, digests.EMPTY) + change) & digests.MASK
            self._host_digests[host] = hosts[host] = after
        return hosts

    def _stream(self, stream: StreamId) -> StreamState:
        state = self.streams.get(stream)
        if state is None:
            state = self.streams[stream] = StreamState()
        return state

    # --- what is on a stream ---

    def knows(self, key: Key) -> bool:
        """Is there such a resource, or was there ever?"""
        return key in self.records

    def vpc_of(self, stream: StreamId, key: Key) -> str:
        """The VPC of a resource on a stream, or of the stream itself; empty if none is known."""
        record = self.records.get(key)
        if record is None and stream.kind is StreamKind.SECURITY_GROUP:
            record = self.records.get(Key(Kind.SECURITY_GROUP, stream.id))
        if record is not None:
            return record.vpc
        return stream.id if stream.kind is StreamKind.VPC else ""

    def digest_at(self, host: str, stream: StreamId, mark: Mark) -> int | None:
        """Digest of what a host is to hold of a stream at a mark; None: it is known at heads only.

        Not to be asked while another thread works on the core.
        """
        state = self.streams.get(stream)
        if state is None or state.mark != mark:
            return None
        return self.host_digest(host) if stream.kind is StreamKind.INBOX else state.digest

    def host_digest(self, host: str) -> int:
        """Digest of what a host is to hold of its inbox."""
        return self._host_digests.get(host, digests.EMPTY)

    def rebuild(self, stream: StreamId, keys: Iterable[Key]) -> list[Addressed]:
        """The resources with these keys as they were last put on the stream.

        What is not on it is left out. Raises RuntimeError when one cannot be made again as it was
        published: then no checkpoint of the stream can be made.
        """
        found = []
        for key in keys:
            record = self.records.get(key)
            if record is None or not record.hash or record.stream != stream:
                continue
            derived = self._build(key)
            if derived is not None:
                derived.config.revision_number = record.revision
                payload = derived.config.SerializeToString()
                if digests.item(key.kind, payload) == record.hash:
                    resource = _new(Resource, (key.kind, key.id, record.revision, payload))
                    found.append(_new(Addressed, (record.host, resource)))
                    continue
            raise RuntimeError(f"{key.kind.name.lower()}/{key.id} is not what is on {stream}")
        return found

    def checkpointed(self, stream: StreamId, size: int, covers: int) -> None:
        """There is a new checkpoint of a stream, of `size` bytes of payload.

        `covers`: what `written` was when that was begun. What came since has to be read after it.
        """
        state = self.streams.get(stream)
        if state is not None:
            state.size = size
            state.written = max(0, state.written - covers)

    # --- taking over from another one, see `snapshot_codec` ---

    def place(
        self,
        stream: StreamId,
        mark: Mark,
        *,
        size: int,
        written: int,
        channel: Channel,
        began: Mark,
    ) -> None:
        """Go on with a stream after the mark to which another one brought it."""
        state = self._stream(stream)
        state.mark, state.size, state.written = mark, size, written
        state.channel, state.began = channel, began

    def take_over(self, key: Key, record: Record) -> None:
        """Know a resource that another one put on a stream, as if this one had done so.

        That gives a stream its digest, its count and its followers, but not its mark.
        """
        self.records[key] = record
        stream, host, _, _, hash_ = record
        if not hash_:
            return
        state = self._stream(stream)
        state.digest = (state.digest + hash_) & digests.MASK
        state.resources += 1
        if host:
            held = self._host_digests.get(host, digests.EMPTY)
            self._host_digests[host] = (held + hash_) & digests.MASK
        if key.kind is Kind.SUBSCRIPTION:
            self._stream(_parsed(key.id)).follow(host, True)


def _weigh(state: StreamState, part: list[Item], size: int) -> None:
    """Follow the size of a stream past a message of `size` bytes that was settled."""
    created = sum(1 for _, _, gone, _ in part if not gone)
    deleted = sum(1 for _, _, _, come in part if not come)
    state.size += size * created // max(1, len(part))
    if deleted:
        state.size -= state.size * deleted // (state.resources + deleted)
    state.written += size
