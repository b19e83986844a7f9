"""What a host makes of a push: revisions, operations, deletions, parts of resources."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from goalstate.agent.alcor import pushes
from goalstate.agent.alcor.pushes import Key, Push, Taken
from goalstate.agent.stream import Reading
from goalstate.gs.errors import FormatMismatch
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import Kind, Resource, configuration
from goalstate.gs.streams import ORIGIN, Mark, pushed_stream
from tests.agent.alcor.rig import DELETE, GET, INFO, INVALID_ARG, OUT_OF_ORDER, UPDATE, v1, v2
from tests.agent.rig import group, neighbor, port, router, subnet, vpc

HOST = "host-1"
STREAM = pushed_stream(HOST)


class Held:
    """What a host holds, and pushes that it takes."""

    def __init__(self) -> None:
        self.reading = Reading()

    def push(self, message: Any, excepted: Collection[Key] = ()) -> Taken:
        taken = pushes.take(pushes.of_v1(message), self.reading, excepted)
        mark = pushes.next_mark(self.reading, 1)
        push = Push(STREAM, mark, self.reading.mark, taken, 0)
        for some in push.content(HOST).groups:
            self.reading.take(some)
        self.reading.step(push.envelope, b"")
        return taken

    def get(self, kind: Kind, id_: str) -> Resource | None:
        return self.reading.held.get(kind, {}).get(id_)


def test_a_host_numbers_what_comes_and_each_incarnation_after_the_one_before() -> None:
    reading = Reading()
    assert pushes.next_mark(reading, 5) == Mark(5, 1)
    reading.mark = Mark(5, 1)
    assert pushes.next_mark(reading, 5) == Mark(5, 2)
    assert pushes.next_mark(reading, 6) == Mark(6, 1)
    # A clock that was set back must not bring an older epoch.
    assert pushes.next_mark(reading, 4) == Mark(5, 2)
    taken = Taken([], [])
    assert reading.place(Push(STREAM, Mark(6, 1), Mark(5, 1), taken, 0).envelope).value == "next"
    assert Reading().place(Push(STREAM, Mark(6, 1), ORIGIN, taken, 0).envelope).value == "next"


def test_other_content_at_the_same_revision_is_newer_and_the_same_content_is_nothing() -> None:
    held = Held()
    assert held.push(v1(vpc(1, name="a"))).resources[0].revision == 1
    assert held.push(v1(vpc(1, name="a"))) == Taken([], [None])
    (changed,) = held.push(v1(vpc(1, name="b"))).resources
    assert changed.revision == 2
    found = held.get(Kind.VPC, "vpc-1")
    assert found is not None
    assert (configuration(found).name, configuration(found).revision_number) == ("b", 1)


def test_a_lower_revision_is_out_of_order() -> None:
    held = Held()
    held.push(v1(vpc(7, name="a")))
    (verdict,) = held.push(v1(vpc(6, name="b"))).verdicts
    assert verdict is not None
    assert verdict.status == OUT_OF_ORDER
    assert "revision 6" in verdict.reason
    (verdict,) = held.push(v1(vpc(6)._replace(payload=b""))).verdicts
    assert verdict is not None
    assert verdict.status == OUT_OF_ORDER
    found = held.get(Kind.VPC, "vpc-1")
    assert found is not None
    assert configuration(found).name == "a"


@pytest.mark.parametrize("revision", [0, 1, 2])
def test_a_deletion_and_a_new_beginning_count_whatever_their_revisions(revision: int) -> None:
    held = Held()
    held.push(v1(vpc(1)))
    gone = Resource(Kind.VPC, "vpc-1", revision, b"")
    assert held.push(v1(gone)).verdicts == [None]
    assert held.get(Kind.VPC, "vpc-1") is None
    assert held.push(v1(gone)) == Taken([], [None]), "what is absent needs no deletion"
    (again,) = held.push(v1(vpc(1))).resources
    assert again.revision == 3
    assert held.get(Kind.VPC, "vpc-1") == again


def test_what_could_not_be_applied_is_tried_again_when_it_is_pushed_again() -> None:
    held = Held()
    held.push(v1(vpc()))
    (again,) = held.push(v1(vpc()), excepted={(Kind.VPC, "vpc-1")}).resources
    assert again.revision == 2


def test_what_is_given_for_reference_brings_what_is_missing_and_changes_nothing() -> None:
    held = Held()
    (brought,) = held.push(v1(subnet(name="a"), operation=INFO)).resources
    assert brought.id == "subnet-1"
    assert held.push(v1(subnet(revision=9, name="b"), operation=INFO)) == Taken([], [None])
    # Nor does it come late: it says nothing of the present.
    assert held.push(v1(subnet(revision=0, name="b"), operation=INFO)) == Taken([], [None])


def test_what_no_host_can_do_is_an_invalid_argument_and_spoils_itself_only() -> None:
    held = Held()
    message = v1(vpc())
    message.subnet_states.add(operation_type=GET).configuration.id = "subnet-1"
    message.port_states.add(operation_type=UPDATE)
    taken = held.push(message)
    assert [resource.name for resource in taken.resources] == ["vpc/vpc-1"]
    assert [verdict and verdict.status for verdict in taken.verdicts] == [
        None,
        INVALID_ARG,
        INVALID_ARG,
    ]
    other = v2(vpc())
    other.vpc_states["vpc-1"].configuration.id = "vpc-2"
    entries, _ = pushes.of_v2(other, [HOST])
    (verdict,) = pushes.take(entries[HOST], Reading(), ()).verdicts
    assert verdict is not None
    assert verdict.status == INVALID_ARG
    assert "vpc-2" in verdict.reason


def test_of_two_states_of_one_resource_the_later_counts() -> None:
    held = Held()
    taken = held.push(v1(vpc(name="a"), vpc(name="b")))
    (only,) = taken.resources
    assert configuration(only).name == "b"
    assert taken.verdicts == [None, None]
    taken = held.push(v1(vpc(2, name="c"), Resource(Kind.VPC, "vpc-1", 2, b"")))
    assert [resource.deleted for resource in taken.resources] == [True]
    assert held.get(Kind.VPC, "vpc-1") is None


def test_a_delta_changes_the_rules_that_it_names_and_a_full_update_replaces_all() -> None:
    held = Held()
    held.push(v1(group(ports=(22, 80))))
    delta = v1(group(ports=(443,)), operation=UPDATE)
    rules = delta.security_group_states[0].configuration.security_group_rules
    rules.add(id="rule-22", operation_type=DELETE)
    held.push(delta)
    found = held.get(Kind.SECURITY_GROUP, "group-1")
    assert found is not None
    assert [rule.id for rule in configuration(found).security_group_rules] == [
        "rule-80",
        "rule-443",
    ]
    full = v1(group(ports=(53,)), operation=UPDATE)
    full.security_group_states[0].configuration.update_type = resources_pb2.FULL
    held.push(full)
    found = held.get(Kind.SECURITY_GROUP, "group-1")
    assert found is not None
    assert [rule.id for rule in configuration(found).security_group_rules] == ["rule-53"]


def test_a_delta_changes_the_routes_that_it_names_in_their_subnets_table() -> None:
    def routes(*ids: str, operation: int = UPDATE, subnet_id: str = "subnet-1") -> Any:
        message = v1(router(subnet_id=subnet_id), operation=UPDATE)
        (table,) = message.router_states[0].configuration.subnet_routing_tables
        for id_ in ids:
            table.routing_rules.add(id=id_, operation_type=operation)
        return message

    held = Held()
    held.push(routes("a", "b"))
    held.push(routes("b", operation=DELETE))
    held.push(routes("c", subnet_id="subnet-2"))
    found = held.get(Kind.ROUTER, "router-1")
    assert found is not None
    assert [
        (table.subnet_id, [rule.id for rule in table.routing_rules])
        for table in configuration(found).subnet_routing_tables
    ] == [("subnet-1", ["a"]), ("subnet-2", ["c"])]


def test_how_a_host_reaches_a_neighbor_is_not_kept() -> None:
    message = v1(neighbor(1))
    message.neighbor_states[0].configuration.fixed_ips[0].neighbor_type = resources_pb2.L3
    (taken,) = Held().push(message).resources
    assert taken.payload == neighbor(1).payload


def test_the_version_may_be_left_out_and_must_not_be_another() -> None:
    message = v1(vpc())
    message.format_version = 0
    assert pushes.of_v1(message)
    message.format_version = 102
    with pytest.raises(FormatMismatch):
        pushes.of_v1(message)


def test_a_host_takes_what_is_its_and_what_is_nobodys() -> None:
    message = v2(vpc())
    message.MergeFrom(v2(port(1), hosts=["a", "b"]))
    message.MergeFrom(v2(port(2), hosts=["c"]))
    entries, foreign = pushes.of_v2(message, ["a", "b"])
    assert {host: [one.id for one in some] for host, some in entries.items()} == {
        "a": ["vpc-1", "port-1"],
        "b": ["vpc-1", "port-1"],
    }
    assert [one.id for one in foreign] == ["port-2"]
