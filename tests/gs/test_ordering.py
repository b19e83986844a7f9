"""The order of application: make before break, and revocations before everything."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs.ordering import ADD_ORDER, phase, revokes
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import CONFIGURATION, Kind, Resource, references

CHANGES = st.lists(st.tuples(st.sampled_from(Kind), st.booleans(), st.booleans()), max_size=20).map(
    lambda changes: [(n, *change) for n, change in enumerate(changes)]
)


def referring(kind: Kind) -> Any:
    """A configuration of the kind with every reference that it can have."""
    config = CONFIGURATION[kind]()
    names = config.DESCRIPTOR.fields_by_name
    if kind is not Kind.SUBSCRIPTION:
        config.id = "x"
    for name in ("vpc_id", "subnet_id"):
        if name in names:
            setattr(config, name, "y")
    if "fixed_ips" in names:
        config.fixed_ips.add(subnet_id="y")
    if "subnet_routing_tables" in names:
        config.subnet_routing_tables.add(subnet_id="y")
    if kind is Kind.PORT:
        config.security_group_ids.add(id="y")
    return config


def test_every_kind_has_a_place() -> None:
    assert sorted(ADD_ORDER) == sorted(Kind)


@pytest.mark.parametrize("kind", Kind)
def test_what_a_resource_refers_to_is_added_before_it_and_deleted_after_it(kind: Kind) -> None:
    for other, _ in references(kind, referring(kind)):
        assert phase(other, deleted=False) < phase(kind, deleted=False)
        assert phase(other, deleted=True) > phase(kind, deleted=True)


def test_every_deletion_comes_after_every_addition() -> None:
    added = [phase(kind, deleted=False) for kind in Kind]
    deleted = [phase(kind, deleted=True) for kind in Kind]
    assert max(added) < min(deleted)


def test_deletions_are_in_the_reverse_order_of_additions() -> None:
    for one, other in permutations(Kind, 2):
        assert (phase(one, False) < phase(other, False)) == (phase(one, True) > phase(other, True))


@pytest.mark.parametrize("kind", Kind)
def test_a_revocation_comes_before_everything_else(kind: Kind) -> None:
    assert phase(kind, False, revokes=True) < min(phase(other, False) for other in Kind)


@given(CHANGES)
def test_order_is_kept_within_a_phase_and_nothing_is_lost(
    changes: list[tuple[int, Kind, bool, bool]],
) -> None:
    def place(change: tuple[int, Kind, bool, bool]) -> int:
        return phase(*change[1:])

    ordered = sorted(changes, key=place)
    assert sorted(ordered) == changes
    assert ordered == sorted(changes, key=lambda change: (place(change), change[0]))


# --- what takes a permission away ---


def group(*rules: dict[str, Any], name: str = "") -> Resource:
    config = resources_pb2.SecurityGroupConfiguration(id="g", name=name)
    for number, rule in enumerate(rules):
        config.security_group_rules.add(**{"id": f"r{number}", "security_group_id": "g"} | rule)
    return Resource(Kind.SECURITY_GROUP, "g", 1, config.SerializeToString())


def port(*groups: str, up: bool = True) -> Resource:
    config = resources_pb2.PortConfiguration(id="p", admin_state_up=up)
    for one in groups:
        config.security_group_ids.add(id=one)
    return Resource(Kind.PORT, "p", 1, config.SerializeToString())


def gone(resource: Resource) -> Resource:
    return resource._replace(payload=b"")


WEB = {"port_range_min": 80, "port_range_max": 80, "remote_ip_prefix": "0.0.0.0/0"}
NARROW = {**WEB, "remote_ip_prefix": "10.0.0.0/8"}
DATA = {"port_range_min": 5432, "port_range_max": 5432}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (group(WEB, DATA), group(WEB)),
        (group(WEB), group()),
        (group(WEB), group(NARROW)),
        (group(WEB), group(DATA, NARROW)),
        (port("g", "h"), port("g")),
        (port("g"), port("h")),
        (port("g"), port("g", up=False)),
    ],
    ids=["rule", "last-rule", "narrowed", "exchanged", "left-group", "changed-group", "off"],
)
def test_taking_something_away_revokes(before: Resource, after: Resource) -> None:
    assert revokes(before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (group(WEB), group(WEB, DATA)),
        (group(WEB, DATA), group(DATA, WEB)),
        (group(WEB), group({**WEB, "id": "renamed"})),
        (group(WEB), group({**WEB, "operation_type": resources_pb2.UPDATE})),
        (group(WEB), group(WEB, name="renamed")),
        (port("g"), port("g", "h")),
        (port("g", up=False), port("g")),
        (port("g", up=False), port("g", up=False)),
    ],
    ids=["added", "reordered", "rule-id", "operation", "renamed", "joined", "on", "still-off"],
)
def test_giving_more_or_the_same_does_not(before: Resource, after: Resource) -> None:
    assert not revokes(before, after)


@pytest.mark.parametrize("resource", [group(WEB), port("g")], ids=["group", "port"])
def test_what_is_new_and_what_goes_whole_are_no_revocations(resource: Resource) -> None:
    assert not revokes(None, resource)
    assert not revokes(gone(resource), resource)
    assert not revokes(resource, gone(resource))


def test_a_neighbor_that_leaves_a_group_is_let_in_by_its_members_no_more() -> None:
    one = resources_pb2.NeighborConfiguration(id="n", security_group_ids=["g"])
    before = Resource(Kind.NEIGHBOR, "n", 1, one.SerializeToString())
    one.security_group_ids.append("h")
    assert not revokes(before, Resource(Kind.NEIGHBOR, "n", 2, one.SerializeToString()))
    del one.security_group_ids[0]
    assert revokes(before, Resource(Kind.NEIGHBOR, "n", 2, one.SerializeToString()))


def test_no_other_kind_gives_permissions() -> None:
    one = resources_pb2.SubnetConfiguration(id="s", cidr="10.0.0.0/8")
    before = Resource(Kind.SUBNET, "s", 1, one.SerializeToString())
    one.cidr = ""
    assert not revokes(before, Resource(Kind.SUBNET, "s", 2, one.SerializeToString()))
