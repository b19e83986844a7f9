"""What a push of Alcor's schema says, and what a host makes of it. Pure: no IO, no clock.

The schema has neither epochs nor sequence numbers, and its publishers may leave every revision at
1. So the host numbers what comes, as it comes: a push is the next message of a stream of its own
(`StreamKind.PUSHED`), and from there on it is a message like any other.

Laws:

1.  Order is the order of arrival. A push that was lost is not missed: nothing shows that it was.
2.  A revision below that of the resource held is OUT_OF_ORDER. The same revision with the same
    content is nothing new (and a success, once that content is applied); with other content it is
    newer. After a deletion whatever comes is new. A deletion that gives no revision is of whatever
    is there.
3.  Resources are held with revisions that the host gives (`Resource.revision`), each above the one
    before; the revision inside the payload is the publisher's and stays.
4.  CREATE and UPDATE say the same: so it shall be. INFO is for reference: it brings what is not
    there, and changes nothing that is. GET asks for nothing that this service can give.
5.  Only where parts of a resource have operations of their own, rules of security groups and of
    routing tables, does an update of type DELTA change parts: those that it names, by their ids.
    For all others DELTA, which is also what is read where nothing was said, is the whole resource.
6.  A host takes what a message says that it is its, and what the message says of no host. What is
    for hosts that are not here only is INVALID_ARG.
7.  Whether a neighbor is L2 or L3 (v1 says it) is not kept: data planes derive it, as they do for
    all neighbors.
8.  One state that is wrong spoils itself only. Of two for one resource the later counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from goalstate.agent.decoding import Content, Received, grouped
from goalstate.agent.stream import Reading
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.errors import FormatMismatch
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import STATES_FIELD, Kind, Resource, configuration
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2

Key = tuple[Kind, str]

_INFO = resources_pb2.INFO
_CREATE = resources_pb2.CREATE
_UPDATE = resources_pb2.UPDATE
_DELETE = resources_pb2.DELETE
_SETS = (_INFO, _CREATE, _UPDATE)


class Entry(NamedTuple):
    """One state of a push, as it came."""

    kind: Kind
    #: By what the message names it; it should be the id inside.
    id: str
    operation: int
    config: Any


class Verdict(NamedTuple):
    """How one entry ended: an OperationStatus, and why it is no success."""

    status: resources_pb2.OperationStatus.ValueType
    reason: str = ""


class Taken(NamedTuple):
    """What a host makes of a push."""

    #: To be held, each at most once; without a payload: to be held no longer.
    resources: list[Resource]
    #: Of each entry: why it counts for nothing; None: what becomes of it, the data plane says.
    verdicts: list[Verdict | None]


# --- reading ---


def of_v1(state: goalstate_pb2.GoalState) -> list[Entry]:
    """The entries of a GoalState, in the order in which they stand. Raises FormatMismatch."""
    _check(state.format_version, FORMAT_V1)
    entries = []
    for field, states in state.ListFields():
        kind = _KIND_OF.get(field.name)
        for one in states if kind is not None else ():
            assert kind is not None
            if kind is Kind.NEIGHBOR:
                for ip in one.configuration.fixed_ips:
                    ip.ClearField("neighbor_type")
            entries.append(Entry(kind, one.configuration.id, one.operation_type, one.configuration))
    return entries


def of_v2(
    state: goalstate_pb2.GoalStateV2, hosts: Collection[str]
) -> tuple[dict[str, list[Entry]], list[Entry]]:
    """The entries of a GoalStateV2: for each of `hosts`, and those that are for none of them.

    Raises FormatMismatch.
    """
    _check(state.format_version, FORMAT_V2)
    claims: dict[tuple[int, str], set[str]] = {}
    for host, section in state.host_resources.items():
        for named in section.resources:
            claims.setdefault((named.type, named.id), set()).add(host)
    entries: dict[str, list[Entry]] = {host: [] for host in hosts}
    foreign = []
    for kind, field in STATES_FIELD.items():
        states = getattr(state, field)
        for id_ in states:
            one = states[id_]
            entry = Entry(kind, id_, one.operation_type, one.configuration)
            claimed = claims.get((int(kind), id_))
            takers = entries.keys() if claimed is None else claimed & entries.keys()
            for host in takers:
                entries[host].append(entry)
            if not takers:
                foreign.append(entry)
    return entries, foreign


def of_subscription(fact: goalstate_pb2.NodeSubscribeInfo, stream: StreamId) -> Entry:
    """The entry that a fact of a subscription to `stream` is."""
    ends = fact.subscribe_operation == goalstate_pb2.Unsubscribe
    config = goalstate_pb2.NodeSubscribeInfo()
    config.CopyFrom(fact)
    config.stream = str(stream)
    return Entry(Kind.SUBSCRIPTION, str(stream), _DELETE if ends else _CREATE, config)


_KIND_OF = {name: kind for kind, name in STATES_FIELD.items()}


def _check(version: int, expected: int) -> None:
    # The rpc says what it is; a publisher that leaves the version out says nothing against it.
    if version not in (0, expected):
        raise FormatMismatch(expected, "the rpc", version, "the message")


# --- taking ---


def take(entries: Iterable[Entry], held: Reading, excepted: Collection[Key]) -> Taken:
    """What a host that holds `held` makes of a push.

    `excepted`: what is held and could not be applied. It is tried again when it is pushed again.
    """
    news: dict[Key, Resource] = {}
    verdicts: list[Verdict | None] = []
    for entry in entries:
        key = (entry.kind, entry.id)
        old = held.held.get(entry.kind, {}).get(entry.id)
        now = news.get(key, old)
        if now is not None and now.deleted:
            now = None
        verdict = _wrong(entry) or _late(entry, now)
        verdicts.append(verdict)
        if verdict is not None or (entry.operation == _DELETE and now is None and key not in news):
            continue
        if entry.operation == _DELETE:
            payload = b""
        elif now is None:
            payload = _whole(entry)
        else:
            if entry.operation == _INFO:
                continue
            payload = _changed(entry, now)
            if payload == now.payload and (key in news or key not in excepted):
                continue
        news[key] = Resource(entry.kind, entry.id, _revision(entry, old, held), payload)
    return Taken(list(news.values()), verdicts)


def _wrong(entry: Entry) -> Verdict | None:
    inside = entry.id if entry.kind is Kind.SUBSCRIPTION else entry.config.id
    if not entry.id:
        return Verdict(resources_pb2.INVALID_ARG, "it has no id")
    if inside != entry.id:
        return Verdict(resources_pb2.INVALID_ARG, f"it holds the configuration of {inside!r}")
    if entry.operation != _DELETE and entry.operation not in _SETS:
        return Verdict(
            resources_pb2.INVALID_ARG, f"operation {entry.operation} is none that can be pushed"
        )
    return None


def _late(entry: Entry, now: Resource | None) -> Verdict | None:
    if now is None or entry.operation == _INFO:
        return None
    said, known = entry.config.revision_number, configuration(now).revision_number
    if said >= known or (entry.operation == _DELETE and not said):
        return None
    return Verdict(
        resources_pb2.OUT_OF_ORDER, f"revision {said} comes after revision {known} was taken"
    )


def _revision(entry: Entry, old: Resource | None, held: Reading) -> int:
    if old is not None:
        return old.revision + 1
    gone = held.tombstones.get(entry.kind, {}).get(entry.id)
    return gone + 1 if gone is not None else 1


def _whole(entry: Entry) -> bytes:
    """What is to be held of a resource that is new; parts that it deletes are none of it."""
    if _in_parts(entry):
        empty = type(entry.config)(id=entry.id)
        return _merged(empty, entry.config)
    payload: bytes = entry.config.SerializeToString()
    return payload


def _changed(entry: Entry, now: Resource) -> bytes:
    return _merged(configuration(now), entry.config) if _in_parts(entry) else _whole(entry)


def _in_parts(entry: Entry) -> bool:
    return (
        entry.kind in (Kind.SECURITY_GROUP, Kind.ROUTER)
        and entry.config.update_type == resources_pb2.DELTA
    )


def _merged(config: Any, delta: Any) -> bytes:
    """The configuration of a security group or router after a DELTA. Changes `config`."""
    plain = type(delta)()
    plain.CopyFrom(delta)
    plain.ClearField("update_type")
    if isinstance(config, resources_pb2.SecurityGroupConfiguration):
        plain.ClearField("security_group_rules")
        _merge(config.security_group_rules, delta.security_group_rules)
    else:
        plain.ClearField("subnet_routing_tables")
        tables = {table.subnet_id: table for table in config.subnet_routing_tables}
        for table in delta.subnet_routing_tables:
            if table.subnet_id not in tables:
                added = config.subnet_routing_tables.add(subnet_id=table.subnet_id)
                tables[table.subnet_id] = added
            _merge(tables[table.subnet_id].routing_rules, table.routing_rules)
    config.MergeFrom(plain)
    payload: bytes = config.SerializeToString()
    return payload


def _merge(parts: Any, changes: Any) -> None:
    """Put or delete parts by their ids. What a part had to do is no part of what is held."""
    merged = {part.id: part for part in parts}
    for change in changes:
        merged.pop(change.id, None)
        if change.operation_type != _DELETE:
            merged[change.id] = change
    kept = list(merged.values())
    copies = [type(part).FromString(part.SerializeToString()) for part in kept]
    del parts[:]
    parts.extend(copies)


# --- numbering ---


class Push(Received):
    """A push, as the message of a stream that it becomes. It has no bytes of its own."""

    __slots__ = ()

    def __init__(self, stream: StreamId, mark: Mark, after: Mark, taken: Taken, now: int) -> None:
        """`mark` is the next one of the stream, `after` the one before. `now`: nanoseconds."""
        self.properties = {}
        self.payload = b""
        self.envelope = Envelope(
            FORMAT_V2, stream, mark, MessageKind.DELTA, 1, 1, 0, "", "", now, after
        )
        self._intact = True
        self._frame = None
        self._content = Content(grouped(taken.resources, stream), [])

    def content(self, host: str) -> Content:
        assert self._content is not None
        return self._content


def next_mark(held: Reading, epoch: int) -> Mark:
    """The mark of the next push to a host, in a process whose incarnation is `epoch`."""
    if held.mark != ORIGIN and held.mark.epoch >= epoch:
        return Mark(held.mark.epoch, held.mark.sequence + 1)
    return Mark(epoch, 1)
