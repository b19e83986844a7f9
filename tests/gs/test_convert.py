"""v1 and v2 say the same: conversion of a host's slice loses nothing, either way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs.convert import address, hosts, split, to_v1, to_v2
from goalstate.gs.errors import ConversionError, FormatMismatch, UnknownFormatVersion, UnknownKind
from goalstate.gs.pb.alcor.schema import resources_pb2 as r
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalState, GoalStateV2
from goalstate.gs.resources import STATES_FIELD, Kind
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2
from tests.gs.messages import HOSTS, IDS, v1_states, v2_states

#: An unknown field (number 2000), as a later version of the schema may add.
UNKNOWN = b"\x82\x7d\x01x"
SUBNETS = st.frozensets(st.sampled_from(IDS))


def fixed_ips(state: GoalState) -> Iterator[tuple[str, int, Any]]:
    for neighbor in state.neighbor_states:
        for i, ip in enumerate(neighbor.configuration.fixed_ips):
            yield neighbor.configuration.id, i, ip


def v1_of(ports: dict[str, str], neighbors: dict[str, tuple[str, int]]) -> GoalState:
    """A v1 with these ports (id: subnet) and neighbors (id: subnet, type)."""
    state = GoalState(format_version=FORMAT_V1)
    for id_, subnet in ports.items():
        port = state.port_states.add().configuration
        port.id = id_
        port.fixed_ips.add(subnet_id=subnet)
    for id_, (subnet, type_) in neighbors.items():
        neighbor = state.neighbor_states.add().configuration
        neighbor.id = id_
        ip = neighbor.fixed_ips.add(subnet_id=subnet)
        setattr(ip, "neighbor_type", type_)  # noqa: B010 - any number, enums are open
    return state


def types(state: GoalState) -> dict[str, int]:
    return {id_: int(ip.neighbor_type) for id_, _, ip in fixed_ips(state)}


def explicit(state: GoalStateV2, host: str) -> list[tuple[str, int, int]]:
    entries = state.host_resources[host].explicit_neighbor_types
    return [(e.neighbor_id, e.fixed_ip, int(e.type)) for e in entries]


# ---------------------------------------------------------------------------------- round trips


@given(v1_states(), SUBNETS)
def test_v1_to_v2_to_v1_is_the_same_but_for_the_host_id(
    state: GoalState, attached: frozenset[str]
) -> None:
    back = to_v1(to_v2({"h": state}, {"h": attached}), "h", attached)
    state.host_id = "h"
    assert back == state


@given(v2_states(), SUBNETS)
def test_v2_to_v1_to_v2_keeps_a_slice_but_for_how_neighbor_types_are_said(
    state: GoalStateV2, attached: frozenset[str]
) -> None:
    for host, part in split(state).items():
        back = to_v2({host: to_v1(part, host, attached)}, {host: attached})
        assert without_types(back) == without_types(part)
        assert not any(
            ip.neighbor_type
            for neighbor in back.neighbor_states.values()
            for ip in neighbor.configuration.fixed_ips
        )
        assert to_v1(back, host, attached) == to_v1(part, host, attached)
        # And nothing moves any more.
        assert to_v2({host: to_v1(back, host, attached)}, {host: attached}) == back


def without_types(state: GoalStateV2) -> GoalStateV2:
    result = GoalStateV2()
    result.CopyFrom(state)
    for section in result.host_resources.values():
        del section.explicit_neighbor_types[:]
    for neighbor in result.neighbor_states.values():
        for ip in neighbor.configuration.fixed_ips:
            ip.ClearField("neighbor_type")
    return result


@given(v2_states())
def test_v2_of_many_hosts_comes_back_whole(state: GoalStateV2) -> None:
    back = to_v2({host: to_v1(state, host) for host in hosts(state)})
    assert without_types(back) == without_types(state)
    for host in hosts(state):
        assert to_v1(back, host) == to_v1(state, host)


@given(v2_states())
def test_a_slice_gives_the_same_v1_as_the_whole(state: GoalStateV2) -> None:
    parts = split(state)
    assert sorted(parts) == hosts(state) == sorted(HOSTS)
    for host, part in parts.items():
        assert hosts(part) == [host]
        assert to_v1(part, host) == to_v1(state, host)


def test_the_order_of_v1_survives() -> None:
    state = v1_of({}, {id_: ("s", r.L3) for id_ in ("z", "a", "m")})
    assert list(types(to_v1(to_v2({"h": state}), "h"))) == ["z", "a", "m"]


def test_unknown_fields_of_states_sections_and_references_survive() -> None:
    state = v1_of({"p": "s"}, {"n": ("s", r.L3)})
    state.vpc_states.add().MergeFromString(UNKNOWN)
    state.vpc_states[0].configuration.id = "v"
    for part in (state.port_states[0].configuration, state.neighbor_states[0].configuration):
        part.MergeFromString(UNKNOWN)
    state.neighbor_states[0].configuration.fixed_ips[0].MergeFromString(UNKNOWN)
    state.host_resources.MergeFromString(UNKNOWN)
    state.host_id = "h"
    whole = to_v2({"h": state})
    assert to_v1(whole, "h") == state

    whole.host_resources["h"].resources[0].MergeFromString(UNKNOWN)
    assert to_v2({"h": to_v1(whole, "h")}) == whole


def test_digest_subscriptions_and_dangling_references_travel_in_v1() -> None:
    state = GoalStateV2(format_version=FORMAT_V2)
    section = state.host_resources["h"]
    section.digest = bytes(16)
    section.subscriptions.add(topic="t", stream="vpc/v")
    section.resources.add(type=r.PORT, id="held already")
    section.explicit_neighbor_types.add(neighbor_id="held already", fixed_ip=1, type=r.L3)
    v1 = to_v1(state, "h")
    assert v1.host_id == "h"
    assert v1.host_resources == section
    assert to_v2({"h": v1}) == state


def test_references_are_not_repeated_in_v1_where_its_lists_say_them() -> None:
    v1 = to_v1(to_v2({"h": v1_of({"p": "s"}, {"n": ("s", r.L2)})}), "h")
    assert not v1.HasField("host_resources")


def test_references_that_a_v1_lacks_are_added() -> None:
    state = v1_of({"p": "s", "q": "s"}, {})
    state.host_resources.resources.add(type=r.PORT, id="q")
    section = to_v2({"h": state}).host_resources["h"]
    assert [reference.id for reference in section.resources] == ["q", "p"]


# ---------------------------------------------------------------------------------- neighbor types


@given(v2_states(), SUBNETS)
def test_a_v1_says_l2_exactly_where_the_host_has_a_port_in_the_subnet(
    state: GoalStateV2, attached: frozenset[str]
) -> None:
    plain = without_types(state)
    for host in hosts(plain):
        v1 = to_v1(plain, host, attached)
        near = set(attached)
        for port in v1.port_states:
            if port.operation_type != r.DELETE:
                near |= {ip.subnet_id for ip in port.configuration.fixed_ips}
        for _, _, ip in fixed_ips(v1):
            assert ip.neighbor_type == (r.L2 if ip.subnet_id in near else r.L3)


def test_what_can_be_derived_is_not_sent() -> None:
    v2 = to_v2({"h": v1_of({"p": "s"}, {"near": ("s", r.L2), "far": ("t", r.L3)})})
    assert explicit(v2, "h") == []
    assert v2 == without_types(v2)
    assert types(to_v1(v2, "h")) == {"near": r.L2, "far": r.L3}


@pytest.mark.parametrize("other", [2, 7])
def test_a_type_that_contradicts_the_derivation_is_kept_also_l2(other: int) -> None:
    state = v1_of({"p": "s"}, {"near": ("s", r.L3), "far": ("t", r.L2), "odd": ("s", other)})
    v2 = to_v2({"h": state})
    assert explicit(v2, "h") == [("near", 0, r.L3), ("far", 0, r.L2), ("odd", 0, other)]
    assert without_types(v2).neighbor_states == v2.neighbor_states
    assert types(to_v1(v2, "h")) == types(state)


def test_neighbors_alone_need_the_subnets_of_the_host_or_keep_their_type() -> None:
    state = v1_of({}, {"n": ("s", r.L2)})
    assert explicit(to_v2({"h": state}), "h") == [("n", 0, r.L2)]
    v2 = to_v2({"h": state}, {"h": {"s"}})
    assert explicit(v2, "h") == []
    assert types(to_v1(v2, "h", {"s"})) == {"n": r.L2}
    assert types(to_v1(v2, "h")) == {"n": r.L3}


def test_a_v1_is_believed_for_the_fixed_ips_that_it_holds() -> None:
    state = v1_of({"p": "s"}, {"n": ("s", r.L2)})
    state.host_resources.explicit_neighbor_types.add(neighbor_id="n", type=r.L3)
    v2 = to_v2({"h": state})
    assert explicit(v2, "h") == []
    assert types(to_v1(v2, "h")) == {"n": r.L2}


def test_a_port_that_is_deleted_makes_no_neighbor_l2() -> None:
    state = v1_of({"p": "s"}, {"n": ("s", r.L2)})
    state.port_states[0].operation_type = r.DELETE
    assert explicit(to_v2({"h": state}), "h") == [("n", 0, r.L2)]


def test_one_neighbor_seen_differently_by_two_hosts_is_held_once() -> None:
    near = v1_of({"p": "s"}, {"n": ("s", r.L2)})
    far = v1_of({"q": "t"}, {"n": ("s", r.L3)})
    odd = v1_of({"o": "t"}, {"n": ("s", r.L2)})
    v2 = to_v2({"near": near, "far": far, "odd": odd})
    assert list(v2.neighbor_states) == ["n"]
    assert [explicit(v2, host) for host in ("near", "far", "odd")] == [[], [], [("n", 0, r.L2)]]
    for host, state in {"near": near, "far": far, "odd": odd}.items():
        assert types(to_v1(v2, host)) == types(state)


def test_a_type_in_the_fixed_ip_of_a_v2_is_respected() -> None:
    state = address(GoalStateV2(format_version=FORMAT_V2), "h")
    neighbor = state.neighbor_states["n"].configuration
    neighbor.id = "n"
    neighbor.fixed_ips.add(subnet_id="s", neighbor_type=r.L3)
    port = state.port_states["p"].configuration
    port.id = "p"
    port.fixed_ips.add(subnet_id="s")
    v1 = to_v1(address(state, "h"), "h")
    assert types(v1) == {"n": r.L3}
    back = to_v2({"h": v1})
    assert explicit(back, "h") == [("n", 0, r.L3)]
    assert to_v1(back, "h") == v1


# ---------------------------------------------------------------------------------- several hosts


def revision(number: int, name: str = "") -> GoalState:
    state = GoalState(format_version=FORMAT_V1)
    vpc = state.vpc_states.add().configuration
    vpc.id, vpc.revision_number, vpc.name = "v", number, name
    return state


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_the_newest_revision_wins_in_any_order(order: tuple[str, ...]) -> None:
    given_states = {"a": revision(1, "x"), "b": revision(1, "y"), "c": revision(2)}
    v2 = to_v2({host: given_states[host] for host in order})
    assert v2.vpc_states["v"].configuration.revision_number == 2
    for host in order:
        assert to_v1(v2, host).vpc_states[0].configuration.revision_number == 2


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_hosts_that_disagree_at_the_newest_revision_are_refused(order: tuple[str, ...]) -> None:
    given_states = {"a": revision(2, "x"), "b": revision(2, "y"), "c": revision(1)}
    with pytest.raises(ConversionError, match="vpc/v: it differs") as caught:
        to_v2({host: given_states[host] for host in order})
    assert caught.value.host in ("a", "b")
    assert caught.value.resource == "vpc/v"


def test_types_of_an_older_neighbor_are_not_laid_over_the_newer_ones_ips() -> None:
    old = v1_of({}, {"n": ("s", r.L2)})
    new = v1_of({}, {"n": ("t", r.L3)})
    new.neighbor_states[0].configuration.revision_number = 1
    v2 = to_v2({"old": old, "new": new})
    assert explicit(v2, "old") == []
    assert types(to_v1(v2, "old")) == {"n": r.L3}


def test_a_resource_that_a_v1_holds_twice_is_there_once() -> None:
    state = v1_of({"p": "s"}, {})
    state.port_states.add().CopyFrom(state.port_states[0])
    assert len(to_v1(to_v2({"h": state}), "h").port_states) == 1
    state.port_states[1].configuration.name = "another"
    with pytest.raises(ConversionError, match="host 'h', port/p"):
        to_v2({"h": state})
    state.port_states[1].configuration.revision_number = 1
    assert to_v2({"h": state}).port_states["p"].configuration.name == "another"


def test_a_v1_that_says_two_types_of_one_fixed_ip_is_refused() -> None:
    state = v1_of({}, {"n": ("s", r.L2)})
    state.neighbor_states.add().CopyFrom(state.neighbor_states[0])
    state.neighbor_states[1].configuration.fixed_ips[0].neighbor_type = r.L3
    with pytest.raises(ConversionError, match="neighbor/n"):
        to_v2({"h": state})


def test_a_reference_to_what_another_host_holds_finds_it() -> None:
    refers = GoalState(format_version=FORMAT_V1)
    refers.host_resources.resources.add(type=r.VPC, id="v")
    refers.host_resources.resources.add(type=r.PORT, id="p")
    refers.neighbor_states.extend(v1_of({}, {"n": ("s", r.L3)}).neighbor_states)
    holds = revision(1)
    holds.port_states.extend(v1_of({"p": "s"}, {}).port_states)
    v1 = to_v1(to_v2({"a": refers, "b": holds}), "a")
    assert v1.vpc_states == holds.vpc_states
    assert types(v1) == {"n": r.L3}


# -------------------------------------------------------------------------- multicast and errors


def multicast() -> GoalStateV2:
    state = GoalStateV2(format_version=FORMAT_V2)
    for id_ in ("n2", "n1"):
        state.neighbor_states[id_].configuration.id = id_
    state.vpc_states["v"].configuration.id = "v"
    return state


def test_a_multicast_state_is_addressed_before_it_is_sliced() -> None:
    state = multicast()
    with pytest.raises(ConversionError, match="vpc/v: no host refers to it"):
        split(state)
    with pytest.raises(ConversionError, match="host 'h': the state has no section"):
        to_v1(state, "h")
    addressed = address(state, "h")
    assert not state.host_resources
    assert [x.id for x in addressed.host_resources["h"].resources] == ["v", "n1", "n2"]
    assert len(to_v1(addressed, "h").neighbor_states) == 2
    assert split(addressed) == {"h": addressed}
    assert address(addressed, "g").host_resources["g"].ByteSize() == 0


def test_a_key_that_is_not_the_id_inside_is_refused() -> None:
    state = multicast()
    state.neighbor_states["n1"].configuration.id = "other"
    with pytest.raises(ConversionError, match=r"host 'h', neighbor/n1: .* the id 'other'"):
        to_v1(address(state, "h"), "h")


def test_unknown_fields_of_the_message_are_refused() -> None:
    v1, v2 = revision(1), address(multicast(), "h")
    v1.MergeFromString(UNKNOWN)
    v2.MergeFromString(UNKNOWN)
    with pytest.raises(ConversionError, match="field 2000 of GoalState is unknown"):
        to_v2({"h": v1})
    with pytest.raises(ConversionError, match="field 2000 of GoalStateV2 is unknown"):
        to_v1(v2, "h")
    with pytest.raises(ConversionError, match="field 2000"):
        split(v2)


@pytest.mark.parametrize("number", [8, int(Kind.SUBSCRIPTION)])
def test_a_reference_to_an_unknown_kind_is_refused(number: int) -> None:
    state = multicast()
    reference = state.host_resources["h"].resources.add(id="x")
    setattr(reference, "type", number)  # noqa: B010 - any number, enums are open
    for convert in (split, hosts_of_v1):
        with pytest.raises(UnknownKind, match=f"{number} .x."):
            convert(state)


def hosts_of_v1(state: GoalStateV2) -> GoalState:
    return to_v1(state, "h")


def test_the_state_of_another_host_is_refused() -> None:
    state = revision(1)
    state.host_id = "g"
    with pytest.raises(ConversionError, match="host 'h': the state is for host 'g'"):
        to_v2({"h": state})


def test_a_state_of_the_wrong_or_no_version_is_refused() -> None:
    for v2 in (GoalStateV2(), GoalStateV2(format_version=1)):
        with pytest.raises(UnknownFormatVersion):
            to_v1(v2, "h")
    with pytest.raises(FormatMismatch):
        to_v1(GoalStateV2(format_version=FORMAT_V1), "h")
    with pytest.raises(FormatMismatch):
        to_v2({"h": GoalState(format_version=FORMAT_V2)})


def test_every_kind_of_resource_is_converted() -> None:
    state = GoalState(format_version=FORMAT_V1, host_id="h")
    for name in STATES_FIELD.values():
        getattr(state, name).add().configuration.id = name
    v2 = to_v2({"h": state})
    for name in STATES_FIELD.values():
        assert list(getattr(v2, name)) == [name]
    assert to_v1(v2, "h") == state


def test_no_host_gives_an_empty_state() -> None:
    assert to_v2({}) == GoalStateV2(format_version=FORMAT_V2)
    assert split(to_v2({})) == {}
