"""Converting between GoalState (v1: one host, everything written out) and GoalStateV2 (each
resource once, hosts refer to it by kind and id).

Laws, for one host's slice of a goal state:

1.  v1 → v2 → v1 and v2 → v1 → v2 keep every field of every state, unknown fields included, and the
    order of v1's lists. That order is the order of the host's references in v2.
2.  What v2 says of a host beside its resources (digest, subscriptions) travels in v1's own
    `host_resources`, and the host's name in `host_id`. Both are additions that a plain reader of v1
    skips. References travel there only where they are not what v1's lists give: kinds in the order
    of v1's field numbers, each in the order of its list. So a reference to what is not in the
    message, or one that comes twice, survives as well.
3.  What cannot be said is a ConversionError, never a silent loss: a map key that is not the id
    inside (v1 has no keys), unknown fields of the message itself (their numbers mean different
    things in the two), a state that no host refers to (in `split`), a host that is not there.

Whether a neighbor is L2 or L3 depends on who looks. v1 says it for its host; v2 is for many hosts
and does not send it, the receiver derives it: L2 if one of the host's ports, deleted ones apart, is
in the subnet of the neighbor's fixed ip, else L3. So `to_v1` writes the derived type and `to_v2`
clears it. As L2 is 0 and thus looks like nothing said, a v1 that contradicts the derivation (a
message of neighbors alone, whose ports came earlier, does) cannot keep its word in the fixed ip;
`to_v2` puts it into the host's `explicit_neighbor_types`, from where `to_v1` takes it back. Hence:

4.  v1 → v2 → v1 keeps every neighbor type, derivable or not.
5.  v2 → v1 → v2 keeps what a receiver sees. A type in a v2's fixed ip that is not 0 (from a sender
    that does send it) counts as that host's explicit type; it, too, is dropped if derivable and
    moved to `explicit_neighbor_types` if not. After one round nothing moves any more.

What is normalized: a state that v1 holds twice is there once; `host_id` is filled in; references
that v1's `host_resources` lacks are added; an empty `host_resources` of v1 goes; explicit types
come in the order of the neighbors.

Where several hosts' v1 hold one resource, the newest revision wins for all of them, and with it
derived types for those that had an older one. At that revision they must agree in everything but
the neighbor types, operation included. A reference to what only another host's v1 holds finds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from google.protobuf.unknown_fields import UnknownFieldSet

from goalstate.gs.errors import ConversionError, UnknownKind
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import (
    GoalState,
    GoalStateV2,
    HostResources,
    ResourceIdType,
)
from goalstate.gs.resources import STATES_FIELD, Kind
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2, check

#: The lists of v1, which are named like the maps of v2, in the order of v1's field numbers.
_LISTS: dict[Kind, str] = dict(
    sorted(
        STATES_FIELD.items(),
        key=lambda item: GoalState.DESCRIPTOR.fields_by_name[item[1]].number,
    )
)

#: Kinds as the schema's enum.
_TYPES = {kind: resources_pb2.ResourceType.ValueType(kind) for kind in _LISTS}


class _Key(NamedTuple):
    kind: Kind
    id: str

    def __str__(self) -> str:
        return f"{self.kind.name.lower()}/{self.id}"


def hosts(state: GoalStateV2) -> list[str]:
    """The hosts that the state is for, sorted; none if it is for whoever reads it."""
    return sorted(state.host_resources)


def split(state: GoalStateV2) -> dict[str, GoalStateV2]:
    """Each host's slice: its section, and the states that it refers to.

    Raises ConversionError if the state holds something that no host refers to (see `address`) or
    unknown fields; UnknownFormatVersion, FormatMismatch, UnknownKind.
    """
    _check(state, None)
    for key in _unclaimed(state):
        raise ConversionError("no host refers to it, so it is in no slice", resource=str(key))
    slices = {}
    for host in hosts(state):
        part = slices[host] = GoalStateV2(format_version=FORMAT_V2)
        part.host_resources[host].CopyFrom(state.host_resources[host])
        for key, entry in _referenced(state, host):
            getattr(part, _LISTS[key.kind])[key.id].CopyFrom(entry)
    return slices


def address(state: GoalStateV2, host: str) -> GoalStateV2:
    """A copy in which `host` refers, after what it did already, to every state that no host
    refers to: a multicast state as that host reads it. Raises UnknownKind."""
    addressed = GoalStateV2()
    addressed.CopyFrom(state)
    section = addressed.host_resources[host]
    section.resources.extend(_reference(key) for key in _unclaimed(state))
    return addressed


def to_v1(state: GoalStateV2, host: str, attached: Collection[str] = ()) -> GoalState:
    """The slice of one host, as v1.

    `attached` holds the subnets that the host has ports in, besides those of the ports in the
    slice: a change that brings neighbors only cannot be seen right without them.

    Raises ConversionError, UnknownKind, UnknownFormatVersion or FormatMismatch.
    """
    _check(state, host)
    if host not in state.host_resources:
        raise ConversionError("the state has no section for it", host=host)
    result = GoalState(format_version=FORMAT_V1, host_id=host)
    section = HostResources()
    section.CopyFrom(state.host_resources[host])
    for key, entry in _referenced(state, host):
        if entry.configuration.id != key.id:
            raise ConversionError(
                f"its configuration has the id {entry.configuration.id!r}",
                host=host,
                resource=str(key),
            )
        getattr(result, _LISTS[key.kind]).add().CopyFrom(entry)

    subnets = _subnets(result.port_states) | set(attached)
    explicit = {(e.neighbor_id, e.fixed_ip): e for e in section.explicit_neighbor_types}
    for neighbor in result.neighbor_states:
        for i, ip in _fixed_ips(neighbor):
            said = explicit.pop((neighbor.configuration.id, i), None)
            if said is not None:
                ip.neighbor_type = said.type
            elif ip.neighbor_type == 0:
                ip.neighbor_type = _derived(ip, subnets)

    # What is left has found no fixed ip here and goes along.
    left = list(explicit.values())
    del section.explicit_neighbor_types[:]
    section.explicit_neighbor_types.extend(left)
    if list(section.resources) == [_reference(key) for key, _ in _listed(result)]:
        del section.resources[:]
    if section.ByteSize():
        result.host_resources.CopyFrom(section)
    return result


def to_v2(
    states: Mapping[str, GoalState], attached: Mapping[str, Collection[str]] | None = None
) -> GoalStateV2:
    """The states of several hosts, by host, as one v2.

    `attached` as in `to_v1`, by host; with the same subnets there and here nothing is lost.

    Raises ConversionError, UnknownKind, UnknownFormatVersion or FormatMismatch.
    """
    attached = attached or {}
    own: dict[str, dict[_Key, Any]] = {}
    for host, state in states.items():
        _check(state, host)
        if state.host_id not in ("", host):
            raise ConversionError(f"the state is for host {state.host_id!r}", host=host)
        own[host] = _newest((host, key, entry) for key, entry in _listed(state))
    shared = {host: {k: _untyped(k.kind, e) for k, e in held.items()} for host, held in own.items()}
    whole = _newest((host, k, e) for host, held in shared.items() for k, e in held.items())

    result = GoalStateV2(format_version=FORMAT_V2)
    for key, entry in whole.items():
        getattr(result, _LISTS[key.kind])[key.id].CopyFrom(entry)
    for host, state in states.items():
        held = own[host]
        section = result.host_resources[host]
        section.CopyFrom(state.host_resources)
        named = {(r.type, r.id) for r in section.resources}
        section.resources.extend(_reference(key) for key in held if tuple(key) not in named)

        neighbors = {key: entry for key, entry in held.items() if key.kind is Kind.NEIGHBOR}
        types = {(key.id, i) for key, entry in neighbors.items() for i, _ in _fixed_ips(entry)}
        spare = [
            e for e in section.explicit_neighbor_types if (e.neighbor_id, e.fixed_ip) not in types
        ]
        del section.explicit_neighbor_types[:]
        ports = (entry for key, entry in _referenced(result, host) if key.kind is Kind.PORT)
        subnets = _subnets(ports) | set(attached.get(host, ()))
        for key, entry in neighbors.items():
            if shared[host][key] != whole[key]:
                continue  # it was older: its types are those of other fixed ips
            for i, ip in _fixed_ips(entry):
                if ip.neighbor_type != _derived(ip, subnets):
                    section.explicit_neighbor_types.add(
                        neighbor_id=key.id, fixed_ip=i, type=ip.neighbor_type
                    )
        section.explicit_neighbor_types.extend(spare)
    return result


def _check(state: GoalState | GoalStateV2, host: str | None) -> None:
    check(state)
    fields = UnknownFieldSet(state)
    if len(fields):
        raise ConversionError(
            f"field {fields[0].field_number} of {type(state).__name__} is unknown", host=host
        )


def _kind(number: int, id_: str) -> Kind:
    try:
        kind = Kind(number)
    except ValueError:
        raise UnknownKind(number, id_) from None
    if kind not in _LISTS:
        raise UnknownKind(number, id_)
    return kind


def _reference(key: _Key) -> ResourceIdType:
    return ResourceIdType(type=_TYPES[key.kind], id=key.id)


def _listed(state: GoalState) -> Iterator[tuple[_Key, Any]]:
    """Every state of a v1, in the order that stands for the host's references."""
    for kind, name in _LISTS.items():
        for entry in getattr(state, name):
            yield _Key(kind, entry.configuration.id), entry


def _referenced(state: GoalStateV2, host: str) -> Iterator[tuple[_Key, Any]]:
    """Every state of a v2 that the host refers to, once, in the order of its references."""
    references = state.host_resources[host].resources
    for key in dict.fromkeys(_Key(_kind(r.type, r.id), r.id) for r in references):
        states = getattr(state, _LISTS[key.kind])
        if key.id in states:
            yield key, states[key.id]


def _unclaimed(state: GoalStateV2) -> list[_Key]:
    """What no host refers to, by kind and id."""
    claimed = {
        _Key(_kind(r.type, r.id), r.id)
        for section in state.host_resources.values()
        for r in section.resources
    }
    every = (
        _Key(kind, id_) for kind, name in _LISTS.items() for id_ in sorted(getattr(state, name))
    )
    return [key for key in every if key not in claimed]


def _newest(entries: Iterable[tuple[str, _Key, Any]]) -> dict[_Key, Any]:
    """Of each resource the state with the highest revision, whatever order they come in.

    Raises ConversionError if two of that revision differ.
    """
    newest: dict[_Key, Any] = {}
    disputed: dict[_Key, str] = {}
    for host, key, entry in entries:
        kept = newest.setdefault(key, entry)
        revision, known = (e.configuration.revision_number for e in (entry, kept))
        if revision > known:
            newest[key] = entry
            disputed.pop(key, None)
        elif revision == known and entry != kept:
            disputed.setdefault(key, host)
    for key, host in disputed.items():
        raise ConversionError(
            "it differs from another state of the same resource and revision",
            host=host,
            resource=str(key),
        )
    return newest


def _fixed_ips(entry: Any) -> Iterator[tuple[int, Any]]:
    return enumerate(entry.configuration.fixed_ips)


def _untyped(kind: Kind, entry: Any) -> Any:
    """What of a v1's state does not depend on the host: a copy where anything has to go."""
    if kind is not Kind.NEIGHBOR or not any(ip.neighbor_type for _, ip in _fixed_ips(entry)):
        return entry
    copy = resources_pb2.NeighborState()
    copy.CopyFrom(entry)
    for _, ip in _fixed_ips(copy):
        ip.ClearField("neighbor_type")
    return copy


def _subnets(ports: Iterable[Any]) -> set[str]:
    """The subnets that these ports are in, as far as they stay."""
    return {
        ip.subnet_id
        for port in ports
        if port.operation_type != resources_pb2.DELETE
        for ip in port.configuration.fixed_ips
    }


def _derived(ip: Any, subnets: Collection[str]) -> resources_pb2.NeighborType.ValueType:
    return resources_pb2.L2 if ip.subnet_id in subnets else resources_pb2.L3
