"""The core of the publisher: accepted intent in, publications out. Pure: no IO, no clock.

    intent ─▶ desired ─▶ touched keys ─▶ inventory ─▶ items per stream ─▶ publications
              └────────── take, for each change ──────────────┘   └─ put, for a group ─┘

Laws (those of what is on the streams are in `inventory`):

1.  An intent is accepted whole or refused whole; a refused one leaves no trace.
2.  Publications are a function of the log: the same records in the same order give the same
    messages with the same marks, byte for byte. So a restarted publisher knows what it had
    published, and what is missing, without having been told. Changes that are put together are one
    change set on each stream that they touch, in one message where its size allows; nobody is to
    look at the core between the first of them and `put`.
3.  The cost of a change follows the change, not the size of the VPC or the number of its hosts.
    The exception is a VPC's switch to another channel: its followers are told, each once.
4.  What a VPC's streams travel on follows from the log as well: from the thresholds that came with
    the newest epoch, and from where the VPC was when a change touched it (`channels`). A switch
    puts a message on each of the VPC's streams, in the change that led to it, as the first on the
    new channel: who has applied that follows the new channel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from goalstate.dpm import channels
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.dpm.inventory import Diff, Inventory, Publication, Record, Stamp, joined
from goalstate.gs import packing
from goalstate.gs.derivation import Derivation, Key
from goalstate.gs.desired import Changes, Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Intent, ObjectKind
from goalstate.gs.streams import (
    ORIGIN,
    Channel,
    Mark,
    StreamId,
    StreamKind,
    inbox_stream,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.topics import Topics


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
    #: Of changes that were put together: of all of them, at the last.
    publications: list[Publication]
    requirements: list[Requirement]


class _Taken(NamedTuple):
    """A change that is not put on the streams yet."""

    change: int
    now_ns: int
    traceparent: str
    changed_objects: int
    diff: Diff


class Memory(NamedTuple):
    """What a core knows beside the desired state and the heads of its streams; live views."""

    records: dict[Key, Record]
    #: Per VPC and host, where the host's inbox last had something of the VPC.
    inbox_places: dict[str, dict[str, tuple[StreamId, Mark]]]
    #: When the newest change that concerned each VPC was accepted.
    accepted_ns: dict[str, int]


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
        #: What is on the streams, and their heads.
        self.inventory = Inventory(self._derivation.build, chunk_bytes)
        self.streams = self.inventory.streams
        self._leaving = self.inventory.leaving
        #: Per VPC and host, where the host's inbox last had something of the VPC.
        self._inbox_places: dict[str, dict[str, tuple[StreamId, Mark]]] = {}
        #: When the newest change that concerned each VPC was accepted.
        self._accepted_ns: dict[str, int] = {}
        #: To be put on the streams together.
        self._taken: list[_Taken] = []

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

        As `take`, and then `put`.
        """
        self.take(changes, now_ns, traceparent, again)
        return self.put()[-1]

    def take(
        self,
        changes: Changes,
        now_ns: int,
        traceparent: str = "",
        again: Collection[Key] = (),
    ) -> None:
        """Make changes so that were planned on this very state. To be followed by `put`.

        `now_ns`: nanoseconds since the Unix epoch. What is in `again` and was on a stream is put
        there with the next revision also if it is the same, deletions included. Raises ValueError
        before the first epoch.
        """
        if self.epoch < 1:
            raise ValueError("no epoch has begun")
        for kind, before, after in changes:
            if kind is ObjectKind.HOST and before and (not after or after.group != before.group):
                self._leaving.add(self.change + 1, before.id, inbox_stream(before.group))
        self.desired.commit(changes)
        self.change += 1
        touched = self._derivation.touched(changes)
        if again:
            touched.update(dict.fromkeys(again))
        switched = self._choose_channels(changes)
        for vpc in switched:
            touched.update(dict.fromkeys(self._derivation.subscriptions_of_vpc(vpc)))
        revoking = self._derivation.revoking(changes)
        diff = self.inventory.update(self.change, touched, revoking, frozenset(again))
        for vpc in switched:
            for stream in self._derivation.streams_of_vpc(vpc):
                diff.on(stream).concerned.add((vpc, ""))
        self._taken.append(_Taken(self.change, now_ns, traceparent, len(changes), diff))

    def put(self) -> list[Accepted]:
        """Put what was taken since the last time on the streams; gives what came of each change."""
        taken, self._taken = self._taken, []
        publications: list[Publication] = []
        revoked: dict[StreamId, Mark] = {}
        for stream, of_stream in joined([one.diff for one in taken]).streams.items():
            channel = Channel.PULSAR
            if stream.kind is not StreamKind.INBOX:
                channel = self.channel_of_vpc(next(iter(of_stream.concerned))[0])
            stamp = self._stamp([one for one in taken if stream in one.diff.streams])
            published, revoked[stream] = self.inventory.put(stream, channel, of_stream.items, stamp)
            publications += published
        accepted = [
            Accepted(one.change, one.now_ns, one.changed_objects, [], self._required(one, revoked))
            for one in taken
        ]
        if accepted:
            accepted[-1].publications.extend(publications)
        return accepted

    def _stamp(self, taken: list[_Taken]) -> Stamp:
        traces = ",".join(one.traceparent for one in taken if one.traceparent)
        return Stamp(self.epoch, taken[-1].change, taken[-1].now_ns, traces)

    def _required(self, one: _Taken, revoked: dict[StreamId, Mark]) -> list[Requirement]:
        requirements: list[Requirement] = []
        diff = one.diff
        for stream, of_stream in diff.streams.items():
            mark = self.streams[stream].mark
            for vpc, host in of_stream.concerned:
                self._accepted_ns[vpc] = one.now_ns
                if host:
                    self._inbox_places.setdefault(vpc, {})[host] = (stream, mark)
            inbox = stream.kind is StreamKind.INBOX
            hosts = frozenset(host for _, host in of_stream.concerned) if inbox else None
            until = revoked[stream] if of_stream.revokes else ORIGIN
            requirements.append(Requirement(stream, mark, hosts, until))
        for stream, hosts_joined in diff.joined.items():
            # What they need of it may all have been published by earlier changes.
            state = self.streams[stream]
            if stream not in diff.streams and state.mark > ORIGIN:
                requirements.append(Requirement(stream, state.mark, frozenset(hosts_joined)))
        return requirements

    def logged(self, change: int) -> None:
        """The log has all changes up to this one: they cannot be lost any more."""
        self._leaving.logged(change)

    # --- channels ---

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

    def on_stream(self, stream: StreamId) -> Iterator[Key]:
        """Keys of what is on a stream now, see `Derivation.on_stream`."""
        return self._derivation.on_stream(stream)

    # --- taking over from another core, see `snapshot_codec` ---

    @property
    def memory(self) -> Memory:
        return Memory(self.inventory.records, self._inbox_places, self._accepted_ns)

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
        self.inventory.place(stream, mark, size=size, written=written, channel=channel, began=began)
        if stream.kind is StreamKind.VPC:
            self._channels[stream.id] = channel

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
            {host: place for host, place in places.items() if self.waits_for(host, place[0])}
        )

    def requirements_of_all(self) -> list[Requirement]:
        """Where hosts must be to have all that was published so far."""
        places: dict[str, tuple[StreamId, Mark]] = {}
        for of_vpc in self._inbox_places.values():
            for host, place in of_vpc.items():
                if self.waits_for(host, place[0]) and places.get(host, place) <= place:
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
        followers = self.streams[requirement.stream].followers
        leaving = self._leaving.of(requirement.stream)
        return followers | leaving if leaving else followers

    def accepted_ns(self, vpc: str | None = None) -> int:
        """When the newest change of a VPC (None: of any) was accepted; 0 if none ever was."""
        if vpc is not None:
            return self._accepted_ns.get(vpc, 0)
        return max(self._accepted_ns.values(), default=0)

    def follows(self, host: str, stream: StreamId) -> bool:
        """Is the host to follow the stream, as things are now?"""
        if stream.kind is StreamKind.INBOX:
            known = self.desired.get(ObjectKind.HOST, host)
            return known is not None and bool(known.group == stream.id)
        state = self.streams.get(stream)
        return state is not None and state.is_followed_by(host)

    def waits_for(self, host: str, stream: StreamId) -> bool:
        """Is the host to be heard of on the stream? It follows it, or may yet stay (`leaving`)."""
        return self._leaving.leaves(host, stream) or self.follows(host, stream)


def _by_place(places: dict[str, tuple[StreamId, Mark]]) -> list[Requirement]:
    hosts: dict[tuple[StreamId, Mark], set[str]] = {}
    for host, place in places.items():
        hosts.setdefault(place, set()).add(host)
    return [Requirement(stream, mark, frozenset(h)) for (stream, mark), h in hosts.items()]
