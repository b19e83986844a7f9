"""Resources: their names, their configurations, and what each must find before it is applied."""

from __future__ import annotations

from typing import Any

import pytest

from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import (
    CONFIGURATION,
    STATES_FIELD,
    Kind,
    Resource,
    configuration,
    references,
)


def config(kind: Kind, **fields: Any) -> Any:
    return CONFIGURATION[kind](**fields)


def test_every_kind_has_a_configuration_and_all_but_subscriptions_a_map() -> None:
    assert CONFIGURATION.keys() == set(Kind)
    assert STATES_FIELD.keys() == set(Kind) - {Kind.SUBSCRIPTION}
    maps: Any = goalstate_pb2.GoalStateV2.DESCRIPTOR.fields_by_name
    for kind, name in STATES_FIELD.items():
        state: Any = maps[name].message_type.fields_by_name["value"].message_type
        held = state.fields_by_name["configuration"].message_type
        assert held.full_name == CONFIGURATION[kind].DESCRIPTOR.full_name


def test_kinds_are_alcors_resource_types_and_ours_is_beyond_them() -> None:
    alcors = set(resources_pb2.ResourceType.values())
    assert {int(kind) for kind in STATES_FIELD} <= alcors
    assert int(Kind.SUBSCRIPTION) not in alcors


@pytest.mark.parametrize("kind", STATES_FIELD)
def test_the_configuration_of_a_resource_is_what_its_payload_says(kind: Kind) -> None:
    given = config(kind, id="x", revision_number=3)
    resource = Resource(kind, "x", 3, given.SerializeToString())
    assert configuration(resource) == given
    assert not resource.deleted
    assert resource.name == f"{kind.name.lower()}/x"


def test_a_resource_without_a_payload_is_a_deletion() -> None:
    assert Resource(Kind.PORT, "p", 2, b"").deleted


def test_a_port_needs_its_vpc_its_subnets_and_its_security_groups() -> None:
    port = config(Kind.PORT, id="p", vpc_id="v")
    port.fixed_ips.add(subnet_id="s", ip_address="10.0.0.1")
    port.fixed_ips.add(subnet_id="t", ip_address="fd00::1")
    port.security_group_ids.add(id="g")
    assert list(references(Kind.PORT, port)) == [
        (Kind.VPC, "v"),
        (Kind.SUBNET, "s"),
        (Kind.SUBNET, "t"),
        (Kind.SECURITY_GROUP, "g"),
    ]


def test_a_neighbor_needs_its_subnets_and_not_its_security_groups() -> None:
    neighbor = config(Kind.NEIGHBOR, id="n", vpc_id="v", security_group_ids=["g"])
    neighbor.fixed_ips.add(subnet_id="s", ip_address="10.0.0.1")
    assert list(references(Kind.NEIGHBOR, neighbor)) == [(Kind.SUBNET, "s")]


def test_a_dhcp_answer_needs_its_subnet() -> None:
    answer = config(Kind.DHCP, id="d", subnet_id="s")
    assert list(references(Kind.DHCP, answer)) == [(Kind.SUBNET, "s")]


def test_a_router_needs_the_subnets_that_it_joins() -> None:
    router = config(Kind.ROUTER, id="r", vpc_id="v")
    router.subnet_routing_tables.add(subnet_id="s")
    router.subnet_routing_tables.add(subnet_id="t")
    assert list(references(Kind.ROUTER, router)) == [
        (Kind.VPC, "v"),
        (Kind.SUBNET, "s"),
        (Kind.SUBNET, "t"),
    ]


@pytest.mark.parametrize("kind", [Kind.SUBNET, Kind.SECURITY_GROUP, Kind.GATEWAY, Kind.ROUTER])
def test_what_is_of_a_vpc_needs_it_where_it_says_so(kind: Kind) -> None:
    assert list(references(kind, config(kind, id="x", vpc_id="v"))) == [(Kind.VPC, "v")]
    # A writer of plain Alcor does not say it of routers and gateways.
    assert list(references(kind, config(kind, id="x"))) == []


@pytest.mark.parametrize("kind", [Kind.VPC, Kind.SUBSCRIPTION])
def test_a_vpc_and_a_subscription_need_nothing(kind: Kind) -> None:
    assert list(references(kind, config(kind))) == []


def test_a_rules_remote_group_is_not_needed() -> None:
    group = config(Kind.SECURITY_GROUP, id="g", vpc_id="v")
    group.security_group_rules.add(id="r", remote_group_id="h")
    assert list(references(Kind.SECURITY_GROUP, group)) == [(Kind.VPC, "v")]
