"""From the bytes of a message to resources that a host can take.

Laws:

1.  A resource's payload is the bytes that its writer wrote, never a re-serialization: what is
    hashed here is what was hashed there, also where it has fields that are not known here.
2.  One resource that is malformed, of another VPC, or on a stream where its kind has no place,
    spoils itself only. A message that cannot be read at all raises MessageError.
3.  What a message says does not depend on the host that reads it. So the hosts of one process share
    the reading of a message that the bus hands to all of them (`Decoder`); each still checks the
    order by itself and keeps its own state.

Resources come in groups that can be taken in one step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import xxhash
from google.protobuf.message import DecodeError

from goalstate.gs import digest as digests
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import Envelope
from goalstate.gs.errors import (
    FormatMismatch,
    MalformedMessage,
    OversizeMessage,
    UnknownFormatVersion,
)
from goalstate.gs.packing import subscriptions
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.frame_pb2 import Frame
from goalstate.gs.resources import (
    CONFIGURATION,
    STATES_FIELD,
    Kind,
    Resource,
    configuration,
    references,
)
from goalstate.gs.streams import Channel, StreamId, StreamKind
from goalstate.gs.versions import FORMAT_V2, MESSAGE_LIMIT, detect

Reference = tuple[Kind, str]
Needs = tuple[Reference, ...]

_V2_BEGINS = bytes((1 << 3, FORMAT_V2))
_DELETE = resources_pb2.DELETE
_KIND_OF_FIELD = {
    Frame.DESCRIPTOR.fields_by_name[name].number: kind for kind, name in STATES_FIELD.items()
}
_INBOX_KINDS = frozenset({Kind.PORT, Kind.DHCP, Kind.SUBSCRIPTION})
_new_resource = tuple.__new__
#: `digest.item` seeds the hash with kind + 1; this is it for a whole column of payloads.
_hash = xxhash.xxh3_128_intdigest


class Group:
    """Resources of one kind: all additions or all deletions, all refused for one reason or none."""

    __slots__ = ("_parts", "deletion", "digest", "ids", "kind", "needs", "refusal", "resources")

    def __init__(
        self,
        kind: Kind,
        deletion: bool,
        refusal: str,
        resources: list[Resource],
        needs: Sequence[Needs],
        digest: int = 0,
    ) -> None:
        self.kind = kind
        self.deletion = deletion
        #: Why the agent itself refuses them; empty if it does not.
        self.refusal = refusal
        self.resources = resources
        self.ids = [resource[1] for resource in resources]
        #: What each of them refers to; one entry stands for all.
        self.needs = needs
        #: Sum of their hashes; 0 for deletions.
        self.digest = digest
        self._parts: list[Group] | None = None

    @property
    def parts(self) -> list[Group]:
        """The same in groups in which all have the same references."""
        if self._parts is None:
            columns: dict[Needs, list[Resource]] = {}
            if len(self.needs) > 1:
                for needs, resource in zip(self.needs, self.resources, strict=True):
                    columns.setdefault(needs, []).append(resource)
            if len(columns) < 2:
                self._parts = [self]
            else:
                self._parts = [
                    Group(self.kind, self.deletion, self.refusal, resources, [needs])
                    for needs, resources in columns.items()
                ]
        return self._parts


class Malformed(NamedTuple):
    """A resource that cannot be read. The kind is the number that the message gives."""

    kind: int
    id: str
    reason: str


class Content(NamedTuple):
    """What a message holds for one reader."""

    groups: list[Group]
    malformed: list[Malformed]
    #: On an inbox stream: digest of what the host holds of it after this message, if it says so.
    digest: int | None = None


_NOTHING = Content([], [])


class Received:
    """A message as it came: the envelope, and the content once somebody asks for it."""

    __slots__ = ("_content", "_frame", "_intact", "envelope", "payload", "properties")

    def __init__(self, properties: Mapping[str, str], payload: bytes) -> None:
        """Raises EnvelopeError."""
        self.properties = properties
        self.payload = payload
        self.envelope: Envelope = envelopes.from_properties(properties)
        self._intact: bool | None = None
        self._frame: Frame | None = None
        self._content: Content | None = None

    @property
    def intact(self) -> bool:
        """Are these the bytes that the publisher sent?"""
        if self._intact is None:
            self._intact = digests.checksum(self.payload) == self.envelope.checksum
        return self._intact

    def content(self, host: str) -> Content:
        """What the message holds for a host. Raises MessageError."""
        stream = self.envelope.stream
        if stream.kind is StreamKind.INBOX:
            return _for_host(self._parsed(), host, stream)
        if self._content is None:
            self._content = _for_all(self._parsed(), stream)
        return self._content

    def _parsed(self) -> Frame:
        if self._frame is None:
            self._frame = parse(self.payload, self.envelope.schema)
        return self._frame


class Decoder:
    """Gives a `Received` for what came, the same one for as long as the same objects come.

    It knows a message again by the identity of its properties and payload: a bus that fans one
    message out hands the same objects to all of its readers. Not more than `capacity` messages and
    `capacity_bytes` of payload are remembered.
    """

    def __init__(self, capacity: int = 32768, capacity_bytes: int = 32 * 1024 * 1024) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._known: dict[int, Received] = {}
        self._order: deque[Received] = deque()
        self._bytes = 0
        #: Messages read, and messages known again.
        self.read = 0
        self.shared = 0

    def receive(self, properties: Mapping[str, str], payload: bytes) -> Received:
        """Raises EnvelopeError."""
        known = self._known.get(id(properties))
        if known is not None and known.properties is properties and known.payload is payload:
            self.shared += 1
            return known
        received = Received(properties, payload)
        self.read += 1
        if self._capacity:
            self._remember(received)
        return received

    def _remember(self, received: Received) -> None:
        # A remembered mapping is alive, so its id is nobody else's.
        self._known[id(received.properties)] = received
        self._order.append(received)
        self._bytes += len(received.payload)
        while len(self._order) > self._capacity or (
            self._bytes > self._capacity_bytes and len(self._order) > 1
        ):
            oldest = self._order.popleft()
            self._bytes -= len(oldest.payload)
            if self._known.get(id(oldest.properties)) is oldest:
                del self._known[id(oldest.properties)]


def parse(payload: bytes, declared: int) -> Frame:
    """The message that the payload is; `declared` is the version that the envelope says.

    Raises OversizeMessage, UnknownFormatVersion, FormatMismatch, MalformedMessage.
    """
    if len(payload) > MESSAGE_LIMIT:
        raise OversizeMessage(len(payload), MESSAGE_LIMIT)
    # Nearly all begin so; `detect` looks at the others.
    version = FORMAT_V2 if payload.startswith(_V2_BEGINS) else detect(payload)
    if declared != version:
        raise FormatMismatch(declared, "the envelope", version, "the message")
    if version != FORMAT_V2:
        raise UnknownFormatVersion(version, "stream (102 expected)")
    try:
        frame = Frame.FromString(payload)
    except DecodeError as error:
        raise MalformedMessage(f"these bytes are no GoalStateV2: {error}") from None
    if frame.format_version != version:
        raise FormatMismatch(version, "the first field", frame.format_version, "a later one")
    return frame


class _Column:
    """The members of a group to be."""

    __slots__ = ("ids", "needs", "payloads", "revisions")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.revisions: list[int] = []
        self.payloads: list[bytes] = []
        self.needs: list[Needs] = []


class _Sorter:
    """Sorts resources into groups, in the order in which the groups' first members come."""

    def __init__(self, stream: StreamId) -> None:
        self._stream = stream
        self._columns: dict[tuple[Kind, bool, str], _Column] = {}
        self.malformed: list[Malformed] = []

    def add(self, kind: Kind, id_: str, state: Any) -> None:
        """One entry of a map."""
        payload = state.configuration
        try:
            config = CONFIGURATION[kind].FromString(payload)
        except DecodeError as error:
            self.spoiled(kind, id_, f"these bytes are no {kind.name} configuration: {error}")
            return
        if config.id != id_:
            self.spoiled(kind, id_, f"it holds the configuration of {config.id!r}")
            return
        deletion = state.operation_type == _DELETE
        self.put(kind, deletion, config, Resource(kind, id_, config.revision_number, payload))

    def put(self, kind: Kind, deletion: bool, config: Any, resource: Resource) -> None:
        needs: Needs = ()
        refusal = self._misplaced(kind, resource.id)
        if not deletion:
            needs = tuple(ref for ref in references(kind, config) if ref[1])
            refusal = refusal or self._foreign(kind, config)
            if kind is Kind.SUBSCRIPTION:
                refusal = _unfollowable(config)
        column = self._column(kind, deletion, refusal)
        column.ids.append(resource.id)
        column.revisions.append(resource.revision)
        column.payloads.append(b"" if deletion else resource.payload)
        column.needs.append(needs)

    def neighbors(self, states: Mapping[str, Any]) -> None:
        """All entries of the map of neighbors: `add` for each, at a third of its cost."""
        if self._stream.kind is not StreamKind.VPC:
            for id_ in states:
                self.add(Kind.NEIGHBOR, id_, states[id_])
            return
        vpc_id = self._stream.id
        parse_config = resources_pb2.NeighborConfiguration.FromString
        column = self._column(Kind.NEIGHBOR, False, "")
        ids, revisions, payloads = column.ids, column.revisions, column.payloads
        each_needs = column.needs
        needs_of: dict[str, Needs] = {"": ()}
        for id_ in states:
            state = states[id_]
            payload = state.configuration
            try:
                config = parse_config(payload)
            except DecodeError:
                self.add(Kind.NEIGHBOR, id_, state)
                continue
            addresses = config.fixed_ips
            if (
                len(addresses) != 1
                or config.vpc_id != vpc_id
                or state.operation_type == _DELETE
                or config.id != id_
            ):
                self.add(Kind.NEIGHBOR, id_, state)
                continue
            subnet_id = addresses[0].subnet_id
            needs = needs_of.get(subnet_id)
            if needs is None:
                needs = needs_of[subnet_id] = ((Kind.SUBNET, subnet_id),)
            ids.append(id_)
            revisions.append(config.revision_number)
            payloads.append(payload)
            each_needs.append(needs)

    def spoiled(self, kind: int, id_: str, reason: str) -> None:
        self.malformed.append(Malformed(int(kind), id_, f"MALFORMED: {reason}"))

    def groups(self) -> list[Group]:
        groups = []
        for (kind, deletion, refusal), column in self._columns.items():
            if not column.ids:
                continue
            rows = zip(repeat(kind), column.ids, column.revisions, column.payloads)
            resources = list(map(_new_resource, repeat(Resource), rows))
            digest = 0 if deletion else sum(map(_hash, column.payloads, repeat(kind + 1)))
            groups.append(Group(kind, deletion, refusal, resources, column.needs, digest))
        return groups

    def _column(self, kind: Kind, deletion: bool, refusal: str) -> _Column:
        key = (kind, deletion, refusal)
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = _Column()
        return column

    def _misplaced(self, kind: Kind, id_: str) -> str:
        """Why a resource of this kind has no place on the stream; empty if it has."""
        at = self._stream.kind
        fits = (
            kind in _INBOX_KINDS
            if at is StreamKind.INBOX
            else kind not in _INBOX_KINDS
            if at is StreamKind.VPC
            else True
            if at is StreamKind.PUSHED
            else kind is Kind.SECURITY_GROUP and id_ == self._stream.id
        )
        return "" if fits else f"WRONG_STREAM: it has no place on {self._stream}"

    def _foreign(self, kind: Kind, config: Any) -> str:
        """Why a resource on a VPC's stream is refused; empty if it is of that VPC."""
        if self._stream.kind is not StreamKind.VPC:
            return ""
        # Alcor's routers and gateways do not say where they belong.
        vpc_id = config.id if kind is Kind.VPC else getattr(config, "vpc_id", "")
        if vpc_id in ("", self._stream.id):
            return ""
        return f"WRONG_VPC: it belongs to VPC {vpc_id!r}, and this is the stream of another"


def _for_all(frame: Frame, stream: StreamId) -> Content:
    sorter = _Sorter(stream)
    for field, states in frame.ListFields():
        kind = _KIND_OF_FIELD.get(field.number)
        if kind is Kind.NEIGHBOR:
            sorter.neighbors(states)
        elif kind is not None:
            for id_ in states:
                sorter.add(kind, id_, states[id_])
    return Content(sorter.groups(), sorter.malformed)


def _for_host(frame: Frame, host: str, stream: StreamId) -> Content:
    if host not in frame.host_resources:
        return _NOTHING
    section = frame.host_resources[host]
    sorter = _Sorter(stream)
    # Once for each id, whatever the section says: a group names no id twice.
    for named in {(r.type, r.id): r for r in section.resources}.values():
        field = STATES_FIELD.get(named.type)  # type: ignore[call-overload]
        states: Mapping[str, Any] = getattr(frame, field) if field else {}
        if named.id in states:
            sorter.add(Kind(named.type), named.id, states[named.id])
        else:
            sorter.spoiled(named.type, named.id, "the message names it and does not hold it")
    for resource, fact in {pair[0].id: pair for pair in subscriptions(section)}.values():
        sorter.put(Kind.SUBSCRIPTION, resource.deleted, fact, resource)
    digest = int.from_bytes(section.digest, "big") if section.digest else None
    return Content(sorter.groups(), sorter.malformed, digest)


def grouped(resources: Iterable[Resource], stream: StreamId) -> list[Group]:
    """Resources that were decoded before, each at most once, in groups again."""
    sorter = _Sorter(stream)
    for resource in resources:
        config = None if resource.deleted else configuration(resource)
        sorter.put(resource.kind, resource.deleted, config, resource)
    return sorter.groups()


def _unfollowable(fact: Any) -> str:
    """Why a host cannot follow what a subscription names; empty if it can."""
    try:
        stream = StreamId.parse(fact.stream)
    except ValueError as error:
        return f"MALFORMED: {error}"
    if stream.kind.for_hosts:
        return "WRONG_STREAM: a host has one inbox, which is no matter of subscriptions"
    if fact.channel not in Channel._value2member_map_:
        return f"UNSUPPORTED_CHANNEL: channel {fact.channel} is none that this agent reads"
    return ""
