"""A publisher's state as sections of bytes, and back. Nothing here reads or writes anything.

Laws:

1.  `restore` of the `sections` of a replay gives one that is equal in everything that matters:
    whatever is redone on both gives the same messages, byte for byte.
2.  What follows from other things is not kept: indexes follow from the objects; digests, counts and
    followers from the resources. A stream's digest is kept all the same, and compared.
3.  Of the changes that can be waited for by their number, the newest are kept, REMEMBERED_BYTES of
    them at the most; the others are unknown after a start from a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.core import Accepted, Requirement
from goalstate.dpm.errors import SnapshotUnreadable
from goalstate.dpm.inventory import Record
from goalstate.dpm.recovery import Replay
from goalstate.gs import digest as digests
from goalstate.gs import intent_codec
from goalstate.gs.derivation import Key
from goalstate.gs.desired import Changes, ObjectChange
from goalstate.gs.intent import FIELDS, ObjectKind
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId

#: Bytes of the changes that are remembered, all together.
REMEMBERED_BYTES = 4 * 1024 * 1024
#: So many objects, resources, streams or changes go into a section: some 0.01 s of work.
SECTION_ITEMS = 2000
_HASH_BYTES = 16

# A named tuple's own constructor is a Python function and takes twice as long.
_new: Any = tuple.__new__
T = TypeVar("T")


def sections(replay: Replay) -> Iterator[bytes]:
    """The state, all of which must be on its topics. It must not change meanwhile."""
    memory = replay.core.memory
    for heads in _batches(replay.core.streams.items()):
        section = log_pb2.SnapshotSection()
        for stream, state in heads:
            head = section.streams.add(
                digest=digests.to_bytes(state.digest), size=state.size, written=state.written
            )
            _put(head.head, stream, state.mark)
            head.session = state.channel is Channel.SESSION
            if state.began > ORIGIN:
                _put(head.began, stream, state.began)
        yield section.SerializeToString()
    for kind in ObjectKind:
        for objects in _batches(replay.core.desired.objects(kind)):
            section = log_pb2.SnapshotSection()
            for object_ in objects:
                intent_codec.add(section.objects, object_)
            yield section.SerializeToString()
    for records in _batches(memory.records.items()):
        section = log_pb2.SnapshotSection()
        _put_resources(section.resources, records)
        yield section.SerializeToString()
    for vpc, accepted_ns in memory.accepted_ns.items():
        section = log_pb2.SnapshotSection()
        _put_vpc(section.vpcs.add(), vpc, accepted_ns, memory.inbox_places.get(vpc, {}))
        yield section.SerializeToString()
    for changes in _batches(_remembered(replay)):
        yield log_pb2.SnapshotSection(changes=changes).SerializeToString()
    for checkpoints in _batches(replay.checkpoints.values()):
        yield log_pb2.SnapshotSection(checkpoints=checkpoints).SerializeToString()


class Restoring:
    """Makes a replay what its snapshot says, section by section.

    All of it raises SnapshotUnreadable; the replay is of no use then.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._core = replay.core
        self._digests: dict[StreamId, int] = {}
        #: Text that is the same is held once: a port's id is also that of two resources.
        self._once: dict[str, str] = {}
        self._streams: dict[str, StreamId] = {}

    def take(self, section: bytes) -> None:
        try:
            self._take(log_pb2.SnapshotSection.FromString(section))
        except (DecodeError, ValueError, LookupError) as error:
            raise SnapshotUnreadable(f"what it holds makes no sense: {error!r}") from error

    def finish(self, end: log_pb2.SnapshotEnd) -> None:
        """After the last section: compare, and be where `end` says."""
        for stream, state in self._core.streams.items():
            if state.digest != self._digests.get(stream):
                raise SnapshotUnreadable(f"the resources of {stream} are not those of its digest")
        self._core.epoch = end.epoch
        self._core.policy = ChannelPolicy(end.session_ports, end.session_members)
        self._core.change = end.change
        self._replay.records = end.records
        self._replay.settle()

    def _take(self, section: log_pb2.SnapshotSection) -> None:
        core, replay = self._core, self._replay
        for head in section.streams:
            stream, mark = self._place(head.head)
            core.place(
                stream,
                mark,
                size=head.size,
                written=head.written,
                channel=Channel.SESSION if head.session else Channel.PULSAR,
                began=Mark(head.began.epoch, head.began.sequence),
            )
            self._digests[stream] = int.from_bytes(head.digest, "big")
        if section.HasField("objects"):
            self._take_objects(section.objects)
        if section.HasField("resources"):
            self._take_resources(section.resources)
        for vpc in section.vpcs:
            core.memory.accepted_ns[vpc.vpc] = vpc.accepted_unix_ns
            at = [self._place(place) for place in vpc.at]
            if vpc.hosts:
                core.memory.inbox_places[vpc.vpc] = {
                    self._shared(host): at[place]
                    for host, place in zip(vpc.hosts, vpc.places, strict=True)
                }
        for change in section.changes:
            requirements = [
                Requirement(
                    *self._place(r.place),
                    frozenset(r.hosts) if r.of_hosts else None,
                    self._place(r.revoked)[1] if r.HasField("revoked") else ORIGIN,
                )
                for r in change.requirements
            ]
            replay.changes[change.change] = Accepted(
                change.change, change.accepted_unix_ns, change.changed_objects, [], requirements
            )
        for checkpoint in section.checkpoints:
            replay.checkpoints[self._stream(checkpoint.stream)] = checkpoint

    def _take_objects(self, message: Any) -> None:
        intent = intent_codec.from_proto(message)
        desired = self._core.desired
        items = []
        for kind, field in FIELDS.items():
            for object_ in getattr(intent, field):
                self._once[object_.id] = object_.id
                items.append(ObjectChange(kind, None, object_))
        desired.commit(Changes(items, desired.version))

    def _take_resources(self, message: log_pb2.SnapshotResources) -> None:
        at = [
            (self._stream(p.stream), self._shared(p.host), self._shared(p.vpc)) for p in message.at
        ]
        kinds = {int(kind): kind for kind in Kind}
        hashes = message.hashes
        if len(hashes) != _HASH_BYTES * len(message.ids):
            raise ValueError(f"{len(hashes)} bytes are not the hashes of {len(message.ids)}")
        once, take_over, number = self._once, self._core.inventory.take_over, int.from_bytes
        columns = zip(message.kinds, message.ids, message.places, message.revisions, strict=True)
        for n, (kind_number, id_, place, revision) in enumerate(columns):
            kind = kinds[kind_number]
            stream, host, vpc = at[place]
            key = (kind, once.setdefault(id_, id_), host if kind is Kind.SUBSCRIPTION else "")
            hash_ = number(hashes[_HASH_BYTES * n : _HASH_BYTES * (n + 1)], "big")
            take_over(_new(Key, key), _new(Record, (stream, host, vpc, revision, hash_)))

    def _shared(self, text: str) -> str:
        return self._once.setdefault(text, text)

    def _stream(self, text: str) -> StreamId:
        stream = self._streams.get(text)
        if stream is None:
            stream = self._streams[text] = StreamId.parse(text)
        return stream

    def _place(self, place: log_pb2.StreamPlace) -> tuple[StreamId, Mark]:
        return self._stream(place.stream), Mark(place.epoch, place.sequence)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, SECTION_ITEMS)):
        yield batch


def _put(place: log_pb2.StreamPlace, stream: StreamId, mark: Mark) -> None:
    place.stream = str(stream)
    place.epoch, place.sequence = mark


def _put_resources(
    message: log_pb2.SnapshotResources, records: Iterable[tuple[Key, Record]]
) -> None:
    at: dict[tuple[StreamId, str, str], int] = {}
    kinds, ids, places, revisions, hashes = [], [], [], [], []
    for (kind, id_, _), (stream, host, vpc, revision, hash_) in records:
        kinds.append(kind)
        ids.append(id_)
        places.append(at.setdefault((stream, host, vpc), len(at)))
        revisions.append(revision)
        hashes.append(hash_.to_bytes(_HASH_BYTES, "big"))
    message.kinds.extend(kinds)
    message.ids.extend(ids)
    message.places.extend(places)
    message.revisions.extend(revisions)
    message.hashes = b"".join(hashes)
    for stream, host, vpc in at:
        message.at.add(stream=str(stream), host=host, vpc=vpc)


def _put_vpc(
    message: log_pb2.SnapshotVpc,
    vpc: str,
    accepted_ns: int,
    places: dict[str, tuple[StreamId, Mark]],
) -> None:
    at: dict[tuple[StreamId, Mark], int] = {}
    message.vpc = vpc
    message.accepted_unix_ns = accepted_ns
    message.hosts.extend(places)
    message.places.extend([at.setdefault(place, len(at)) for place in places.values()])
    for place in at:
        _put(message.at.add(), *place)


def _remembered(replay: Replay) -> list[log_pb2.SnapshotChange]:
    """The newest changes, oldest first."""
    changes: list[log_pb2.SnapshotChange] = []
    size = 0
    for accepted in reversed(replay.changes.values()):
        change = log_pb2.SnapshotChange(
            change=accepted.change,
            accepted_unix_ns=accepted.accepted_ns,
            changed_objects=accepted.changed_objects,
        )
        for stream, mark, hosts, revoked in accepted.requirements:
            requirement = change.requirements.add(of_hosts=hosts is not None, hosts=hosts or ())
            _put(requirement.place, stream, mark)
            if revoked > ORIGIN:
                _put(requirement.revoked, stream, revoked)
        size += change.ByteSize()
        if size > REMEMBERED_BYTES:
            break
        changes.append(change)
    changes.reverse()
    return changes
