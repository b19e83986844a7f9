"""Hypothesis strategies for goal-state messages, drawn from their descriptors.

Ids come from a small set, so that they meet; map keys are the ids inside.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from goalstate.gs.convert import address
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalState, GoalStateV2, HostResources
from goalstate.gs.resources import STATES_FIELD, Kind
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2

IDS = ("a", "b", "ü/1")
HOSTS = ("h1", "h2", "h3")

_F = FieldDescriptor
_NUMBERS = {
    _F.TYPE_BOOL: st.booleans(),
    _F.TYPE_UINT32: st.sampled_from((0, 1, 2, 2**32 - 1)),
    _F.TYPE_UINT64: st.sampled_from((0, 1, 2**64 - 1)),
    _F.TYPE_BYTES: st.binary(max_size=3),
    _F.TYPE_STRING: st.sampled_from(("", *IDS)),
}


@st.composite
def filled(draw: st.DrawFn, message: Any, skip: tuple[str, ...] = ()) -> Any:
    """The message itself, each of its fields set or not, down to the leaves."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in skip and draw(st.booleans()):
            _fill(draw, message, field)
    return message


def _fill(draw: st.DrawFn, message: Any, field: FieldDescriptor) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key in draw(st.lists(st.sampled_from(IDS), max_size=2)):
            draw(filled(getattr(message, field.name)[key]))
    elif field.message_type is not None and field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            draw(filled(getattr(message, field.name).add()))
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
        draw(filled(getattr(message, field.name)))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=2)))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        # One number over the known ones: enums are open.
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from([*known, max(known) + 1])
    return _NUMBERS[field.type]


def any_of(type_: type[Message]) -> st.SearchStrategy[Any]:
    """Any message of the type, without regard to what it means."""
    return st.deferred(lambda: filled(type_()))


@st.composite
def states_of(draw: st.DrawFn, kind: Kind, id_: str) -> Any:
    """A state of the kind, with that id inside."""
    holder: Any = GoalState()
    state = getattr(holder, STATES_FIELD[kind]).add()
    draw(filled(state))
    if id_ or state.HasField("configuration"):
        state.configuration.id = id_
    return state


@st.composite
def sections(draw: st.DrawFn) -> HostResources:
    """What may be said of a host, its references apart."""
    section: HostResources = draw(filled(HostResources(), ("resources", "explicit_neighbor_types")))
    return section


@st.composite
def v1_states(draw: st.DrawFn) -> GoalState:
    """A v1 as `to_v1` or a sender of plain v1 may write it: each resource once."""
    result = GoalState(format_version=FORMAT_V1)
    for kind, name in STATES_FIELD.items():
        for id_ in draw(st.lists(st.sampled_from(IDS), max_size=2, unique=True)):
            getattr(result, name).add().CopyFrom(draw(states_of(kind, id_)))
    section = draw(sections())
    if section.ByteSize():
        result.host_resources.CopyFrom(section)
    return result


@st.composite
def v2_states(draw: st.DrawFn, hosts: tuple[str, ...] = HOSTS) -> GoalStateV2:
    """A v2 for these hosts: references may be twice, or to what is not there; every state is some
    host's; types of neighbors may be in the fixed ips or explicit."""
    result = GoalStateV2(format_version=FORMAT_V2)
    for kind, name in STATES_FIELD.items():
        for id_ in draw(st.lists(st.sampled_from(IDS), max_size=2, unique=True)):
            getattr(result, name)[id_].CopyFrom(draw(states_of(kind, id_)))
    references = st.tuples(st.sampled_from(list(STATES_FIELD)), st.sampled_from(IDS))
    for host in hosts:
        section = result.host_resources[host]
        section.CopyFrom(draw(sections()))
        for kind, id_ in draw(st.lists(references, max_size=6)):
            reference: Any = section.resources.add(id=id_)
            reference.type = int(kind)
        for id_ in draw(st.lists(st.sampled_from(IDS), max_size=2)):
            section.explicit_neighbor_types.add(
                neighbor_id=id_,
                fixed_ip=draw(st.integers(0, 2)),
                type=draw(st.sampled_from([0, 1])),
            )
    return address(result, draw(st.sampled_from(hosts)))


def descriptors(root: Descriptor) -> list[Descriptor]:
    """The message and those nested in it."""
    return [root, *(d for nested in root.nested_types for d in descriptors(nested))]
