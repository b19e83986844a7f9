"""The core of the publisher: accepted intent in, publications out. Pure: no IO, no clock.

Laws:

1.  An intent is accepted whole or refused whole; a refused one leaves no trace.
2.  Publications are a function of the log: the same records in the same order give the same
    messages with the same marks, byte for byte. So a restarted publisher knows what it had
    published, and what is missing, without having been told.
3.  A resource's revision starts at 1, grows by one with each change of its content, and goes on
    where it was after a deletion.
4.  The cost of a change follows the change, not the size of the VPC or the number of its hosts.
    The exception is a VPC's switch to another channel: its followers are told, each once.
5.  What a VPC's streams travel on follows from the log as well: from the thresholds that came with
    the newest epoch, and from where the VPC was when a change touched it (`channels`). A switch
    puts a message on each of the VPC's streams, in the change that led to it, as the first on the
    new channel: who has applied that follows the new channel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from goalstate.dpm import channels
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.gs import digest as digests
from goalstate.gs import ordering, packing
from goalstate.gs.derivation import Derivation, Key
from goalstate.gs.desired import Changes, Desired
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Intent, ObjectKind
from goalstate.gs.packing import Addressed
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import (
    ORIGIN,
    Channel,
    Mark,
    StreamId,
    StreamKind,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.topics import Topics
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


class Requirement(NamedTuple):
    """These hosts have applied something when they are at this mark of the stream."""

    stream: StreamId
    mark: Mark
    #: None: all that follow the stream, see `Core.concerned`: a change must not cost a copy.
    hosts: frozenset[str] | None
    #: Where the last of it is that takes a permission away; ORIGIN: nothing does.
    revoked: Mark = ORIGIN


class Accepted(NamedTuple):
    """What came of an accepted intent."""

    change: int
    accepted_ns: int
    changed_objects: int
    publications: list[Publication]
    requirements: list[Requirement]


class Record(NamedTuple):
    """A resource as it was last put on a stream."""

    stream: StreamId
    host: str
    vpc: str
    revision: int
    hash: int  # 0: it was withdrawn, only its revision still matters


#: A resource on its way onto a stream: its phase in the order, itself, the hash of what it takes
#: the place of (0: of nothing), and its own (0: it is a deletion).
_Item = tuple[int, Addressed, int, int]


class Memory(NamedTuple):
    """What a core knows beside the desired state and the heads of its streams; live views."""

    records: dict[Key, Record]
    #: Per VPC and host, where the host's inbox last had something of the VPC.
    inbox_places: dict[str, dict[str, tuple[StreamId, Mark]]]
    #: When the newest change that concerned each VPC was accepted.
    accepted_ns: dict[str, int]


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
        #: Bytes of payload put on its log since its newest checkpoint.
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


class _StreamDiff:
    """What one change puts on a stream."""

    __slots__ = ("concerned", "items")

    def __init__(self) -> None:
        self.items: list[_Item] = []
        #: Which hosts find something on an inbox stream, and of which VPC: (vpc, host).
        self.concerned: set[tuple[str, str]] = set()


class _Diff:
    """What one change puts on its streams."""

    def __init__(self) -> None:
        self.streams: dict[StreamId, _StreamDiff] = {}
        #: Hosts that begin to follow a stream.
        self.joined: dict[StreamId, set[str]] = {}

    def on(self, stream: StreamId) -> _StreamDiff:
        diff = self.streams.get(stream)
        if diff is None:
            diff = self.streams[stream] = _StreamDiff()
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


class Core:
    """The whole state of a publisher. Not safe for use by several threads at once."""

    def __init__(
        self,
        topics: Topics,
        *,
        security_groups_own_stream: bool = False,
        chunk_bytes: int = packing.CHUNK_BYTES,
    ) -> None:
        self.topics = topics
        self.desired = Desired()
        self.epoch = 0
        self.change = 0
        self.streams: dict[StreamId, StreamState] = {}
        #: When VPCs are on sessions.
        self.policy = NEVER
        #: Per VPC that is or was, what its streams travel on.
        self._channels: dict[str, Channel] = {}
        self._derivation = Derivation(
            self.desired,
            topics,
            security_groups_own_stream=security_groups_own_stream,
            channel=self.channel_of_vpc,
        )
        self._chunk_bytes = chunk_bytes
        self._records: dict[Key, Record] = {}
        #: Digest of what each host holds of its inbox.
        self._host_digests: dict[str, int] = {}
        #: Per VPC and host, where the host's inbox last had something of the VPC.
        self._inbox_places: dict[str, dict[str, tuple[StreamId, Mark]]] = {}
        #: When the newest change that concerned each VPC was accepted.
        self._accepted_ns: dict[str, int] = {}

    # --- intent in, publications out ---

    def begin_epoch(self, epoch: int, policy: ChannelPolicy = NEVER) -> None:
        """A writer begins. Raises ValueError unless the epoch is above all before.

        `policy` counts for each VPC from the next change that touches it on.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} is not above {self.epoch}")
        self.epoch = epoch
        self.policy = policy

    def plan(self, intent: Intent) -> Changes:
        """What an intent would change. Changes nothing. Raises IntentRejected."""
        changes = self.desired.plan(intent)
        refused = channels.refused(intent, changes, self.policy)
        if refused:
            raise IntentRejected(refused)
        return changes

    def accept(
        self,
        changes: Changes,
        now_ns: int,
        traceparent: str = "",
        again: Collection[Key] = (),
    ) -> Accepted:
        """Make changes so that were planned on this very state, and derive what to publish.

        `now_ns`: nanoseconds since the Unix epoch. What is in `again` and was on a stream is put
        there with the next revision also if it is the same, deletions included. Raises ValueError
        before the first epoch.
        """
        if self.epoch < 1:
            raise ValueError("no epoch has begun")
        self.desired.commit(changes)
        self.change += 1
        touched = self._derivation.touched(changes)
        if again:
            touched.update(dict.fromkeys(again))
        switched = self._choose_channels(changes)
        for vpc in switched:
            touched.update(dict.fromkeys(self._derivation.subscriptions_of_vpc(vpc)))
        diff = self._diff(touched, self._derivation.revoking(changes), frozenset(again))
        for vpc in switched:
            for stream in self._derivation.streams_of_vpc(vpc):
                diff.on(stream).concerned.add((vpc, ""))
        publications: list[Publication] = []
        requirements: list[Requirement] = []
        for stream, of_stream in diff.streams.items():
            channel = Channel.PULSAR
            if stream.kind is not StreamKind.INBOX:
                channel = self.channel_of_vpc(next(iter(of_stream.concerned))[0])
            published, revoked = self._publish(
                stream, channel, of_stream.items, now_ns, traceparent
            )
            publications += published
            mark = self.streams[stream].mark
            for vpc, host in of_stream.concerned:
                self._accepted_ns[vpc] = now_ns
                if host:
                    self._inbox_places.setdefault(vpc, {})[host] = (stream, mark)
            inbox = stream.kind is StreamKind.INBOX
            hosts = frozenset(host for _, host in of_stream.concerned) if inbox else None
            requirements.append(Requirement(stream, mark, hosts, revoked))
        for stream, hosts_joined in diff.joined.items():
            # What they need of it may all have been published by earlier changes.
            state = self.streams[stream]
            if stream not in diff.streams and state.mark > ORIGIN:
                requirements.append(Requirement(stream, state.mark, frozenset(hosts_joined)))
        return Accepted(self.change, now_ns, len(changes), publications, requirements)

    # --- taking over from another core, see `snapshot_codec` ---

    @property
    def memory(self) -> Memory:
        return Memory(self._records, self._inbox_places, self._accepted_ns)

    def place(
        self,
        stream: StreamId,
        mark: Mark,
        *,
        size: int,
        written: int,
        channel: Channel = Channel.PULSAR,
        began: Mark = ORIGIN,
    ) -> None:
        """Go on with a stream after the mark to which another core brought it."""
        state = self._stream(stream)
        state.mark, state.size, state.written = mark, size, written
        state.channel, state.began = channel, began
        if stream.kind is StreamKind.VPC:
            self._channels[stream.id] = channel

    def take_over(self, key: Key, record: Record) -> None:
        """Know a resource that another core put on a stream, as if this one had done so.

        That gives a stream its digest, its count and its followers, but not its mark.
        """
        self._records[key] = record
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

    def channel_of_vpc(self, vpc: str) -> Channel:
        return self._channels.get(vpc, Channel.PULSAR)

    def _choose_channels(self, changes: Changes) -> list[str]:
        """Decide where the VPCs are that were touched; gives those that switch. Of one that is
        gone, what is left to be said is said where it was."""
        switched = []
        for vpc in channels.touched(changes):
            if self.desired.get(ObjectKind.VPC, vpc) is None:
                continue
            before = self._channels.get(vpc)
            after = channels.choose(self.policy, self.desired, vpc, before)
            self._channels[vpc] = after
            if before not in (None, after):
                switched.append(vpc)
        return switched

    def _diff(
        self, touched: Iterable[Key], revoking: Collection[Key], again: Collection[Key]
    ) -> _Diff:
        diff = _Diff()
        records = self._records
        build = self._derivation.build
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
                        self._stream(_parsed(id_)).follow(old.host, False)
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

    def _stream(self, stream: StreamId) -> StreamState:
        state = self.streams.get(stream)
        if state is None:
            state = self.streams[stream] = StreamState()
        return state

    def _publish(
        self,
        stream: StreamId,
        channel: Channel,
        items: list[_Item],
        now_ns: int,
        traceparent: str,
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
            if state.mark.epoch == self.epoch:
                after, mark = None, Mark(self.epoch, state.mark.sequence + 1)
            else:
                after, mark = state.mark, Mark(self.epoch, 1)
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
                change=self.change,
                digest=digests.to_hex(state.digest),
                checksum=digests.checksum(payload),
                published_ns=now_ns,
                after=after,
                traceparent=traceparent,
            )
            publications.append(Publication(envelope, payload, channel, begins))
            begins = False
        return publications, revoked

    def _settle(self, state: StreamState, part: list[_Item]) -> dict[str, int]:
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

    # --- what hosts say of single resources ---

    def knows(self, key: Key) -> bool:
        """Is there such a resource, or was there ever?"""
        return key in self._records

    def vpc_of(self, stream: StreamId, key: Key) -> str:
        """The VPC of a resource on a stream, or of the stream itself; empty if none is known."""
        record = self._records.get(key)
        if record is None and stream.kind is StreamKind.SECURITY_GROUP:
            record = self._records.get(Key(Kind.SECURITY_GROUP, stream.id))
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

    # --- checkpoints ---

    def on_stream(self, stream: StreamId) -> Iterator[Key]:
        """Keys of what is on a stream now, see `Derivation.on_stream`."""
        return self._derivation.on_stream(stream)

    def rebuild(self, stream: StreamId, keys: Iterable[Key]) -> list[Addressed]:
        """The resources with these keys as they were last put on the stream.

        What is not on it is left out. Raises RuntimeError when one cannot be made again as it was
        published: then no checkpoint of the stream can be made.
        """
        found = []
        for key in keys:
            record = self._records.get(key)
            if record is None or not record.hash or record.stream != stream:
                continue
            derived = self._derivation.build(key)
            if derived is not None:
                derived.config.revision_number = record.revision
                payload = derived.config.SerializeToString()
                if digests.item(key.kind, payload) == record.hash:
                    resource = _new(Resource, (key.kind, key.id, record.revision, payload))
                    found.append(_new(Addressed, (record.host, resource)))
                    continue
            raise RuntimeError(f"{key.kind.name.lower()}/{key.id} is not what is on {stream}")
        return found

    def checkpointed(self, stream: StreamId, size: int) -> None:
        """There is a new checkpoint of a stream, of `size` bytes of payload."""
        state = self.streams.get(stream)
        if state is not None:
            state.size = size
            state.written = 0

    # --- what to wait for ---

    def requirements_of_vpc(self, vpc: str) -> list[Requirement]:
        """Where hosts must be to have all that was published for a VPC so far.

        That includes hosts which only had to forget it, as long as they are part of the region.
        Empty: nothing ever was.
        """
        groups = self.desired.groups_of_vpc(vpc)
        streams = [vpc_stream(vpc), *(security_group_stream(group) for group in groups)]
        requirements = []
        for stream in streams:
            state = self.streams.get(stream)
            if state is not None and state.mark > ORIGIN:
                requirements.append(Requirement(stream, state.mark, None))
        places = self._inbox_places.get(vpc, {})
        return requirements + _by_place(
            {host: place for host, place in places.items() if self.follows(host, place[0])}
        )

    def requirements_of_all(self) -> list[Requirement]:
        """Where hosts must be to have all that was published so far."""
        places: dict[str, tuple[StreamId, Mark]] = {}
        for of_vpc in self._inbox_places.values():
            for host, place in of_vpc.items():
                if self.follows(host, place[0]) and places.get(host, place) <= place:
                    places[host] = place
        requirements = [
            Requirement(stream, state.mark, None)
            for stream, state in self.streams.items()
            if stream.kind is not StreamKind.INBOX and state.mark > ORIGIN
        ]
        return requirements + _by_place(places)

    def concerned(self, requirement: Requirement) -> frozenset[str]:
        """The hosts that a requirement is for, as things are now."""
        if requirement.hosts is not None:
            return requirement.hosts
        return self.streams[requirement.stream].followers

    def accepted_ns(self, vpc: str | None = None) -> int:
        """When the newest change of a VPC (None: of any) was accepted; 0 if none ever was."""
        if vpc is not None:
            return self._accepted_ns.get(vpc, 0)
        return max(self._accepted_ns.values(), default=0)

    def host_digest(self, host: str) -> int:
        """Digest of what a host is to hold of its inbox."""
        return self._host_digests.get(host, digests.EMPTY)

    def follows(self, host: str, stream: StreamId) -> bool:
        """Is the host to follow the stream, as things are now?"""
        if stream.kind is StreamKind.INBOX:
            known = self.desired.get(ObjectKind.HOST, host)
            return known is not None and bool(known.group == stream.id)
        state = self.streams.get(stream)
        return state is not None and state.is_followed_by(host)


def _weigh(state: StreamState, part: list[_Item], size: int) -> None:
    """Follow the size of a stream past a message of `size` bytes that was settled."""
    created = sum(1 for _, _, gone, _ in part if not gone)
    deleted = sum(1 for _, _, _, come in part if not come)
    state.size += size * created // max(1, len(part))
    if deleted:
        state.size -= state.size * deleted // (state.resources + deleted)
    state.written += size


def _by_place(places: dict[str, tuple[StreamId, Mark]]) -> list[Requirement]:
    hosts: dict[tuple[StreamId, Mark], set[str]] = {}
    for host, place in places.items():
        hosts.setdefault(place, set()).add(host)
    return [Requirement(stream, mark, frozenset(h)) for (stream, mark), h in hosts.items()]
