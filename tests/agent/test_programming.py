"""What is programmed, in which order, and what waits: references, revocations, refusals."""

from __future__ import annotations

import pytest

from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Mark, security_group_stream, vpc_stream
from tests.agent.rig import (
    INBOX,
    STREAM,
    Publisher,
    Rig,
    dhcp,
    gone,
    group,
    neighbor,
    port,
    router,
    subnet,
    subscription,
    vpc,
)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.programs.clear()
    return rig


# --- what went from one VPC to another ---


OTHER = vpc_stream("vpc-2")


@pytest.mark.parametrize("together", [False, True])
def test_how_an_id_came_and_went_in_another_vpc_does_not_take_it_away(
    rig: Rig, together: bool
) -> None:
    old = Publisher(OTHER)
    there = (vpc(id_="vpc-2"), subnet("subnet-2", vpc_id="vpc-2"))
    was = neighbor(1, revision=2, subnets=["subnet-2"], vpc_id="vpc-2")
    now = neighbor(1, revision=4)
    rig.on_vpc(now, neighbor(2))
    stays = neighbor(3, subnets=["subnet-2"], vpc_id="vpc-2")
    for sent in (old.publish(*there), old.publish(was, stays), old.publish(gone(was))):
        rig.put(sent)
    rig.slow = together
    rig.on_inbox(subscription(OTHER))
    rig.slow = False
    while rig.waiting:
        rig.finish()
    assert rig.agrees()
    assert not rig.exceptions()
    assert rig.plane.tables[Kind.NEIGHBOR]["port-1"] == now.payload
    rig.on_inbox(gone(subscription(OTHER)))
    assert rig.plane.tables[Kind.NEIGHBOR].keys() == {"port-1", "port-2"}
    rig.on_vpc(gone(now))
    assert rig.plane.tables[Kind.NEIGHBOR].keys() == {"port-2"}


def test_an_id_that_came_from_another_vpc_survives_that_one(rig: Rig) -> None:
    old = Publisher(OTHER)
    there = (vpc(id_="vpc-2"), subnet("subnet-2", vpc_id="vpc-2"))
    was = neighbor(1, revision=2, subnets=["subnet-2"], vpc_id="vpc-2")
    rig.put(old.publish(*there, was))
    rig.on_inbox(subscription(OTHER))
    assert "neighbor/port-1" in rig.in_plane()
    now = neighbor(1, revision=4)
    rig.on_vpc(now)  # before it is known that it is gone there
    rig.on_inbox(gone(subscription(OTHER)))
    assert rig.plane.tables[Kind.NEIGHBOR] == {"port-1": now.payload}


WAS = neighbor(1, revision=2, subnets=["subnet-2"], vpc_id="vpc-2")
NOW = neighbor(1, revision=4)


@pytest.fixture
def old(rig: Rig) -> Publisher:
    """Of a VPC that the host follows beside the first one, with what is to go from there."""
    old = Publisher(OTHER)
    rig.put(old.publish(vpc(id_="vpc-2"), subnet("subnet-2", vpc_id="vpc-2"), WAS))
    rig.on_inbox(subscription(OTHER))
    return old


def on_old(rig: Rig, old: Publisher, *resources: Resource) -> None:
    rig.put(old.publish(*resources))
    rig.run()


def test_that_an_id_went_counts_when_what_it_is_now_is_in_the_data_plane(
    rig: Rig, old: Publisher
) -> None:
    before = old.mark
    rig.slow = True
    rig.on_vpc(neighbor(2))
    on_old(rig, old, gone(WAS))
    rig.on_vpc(NOW)
    rig.finish()
    assert rig.core.streams[OTHER].watermark == before
    assert rig.plane.tables[Kind.NEIGHBOR]["port-1"] == WAS.payload
    rig.finish()
    assert rig.core.streams[OTHER].watermark == old.mark
    assert rig.plane.tables[Kind.NEIGHBOR]["port-1"] == NOW.payload
    assert not rig.waiting


def test_an_id_that_went_is_gone_where_what_it_is_now_is_refused(rig: Rig, old: Publisher) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(2))
    on_old(rig, old, gone(WAS))
    rig.on_vpc(NOW)
    rig.finish()
    rig.refuse.add("port-1")
    rig.finish()
    rig.refuse.clear()
    rig.finish()
    assert rig.core.streams[OTHER].watermark == old.mark
    assert rig.plane.tables[Kind.NEIGHBOR].keys() == {"port-2"}
    assert len(rig.exceptions()) == 1


def test_what_is_older_is_not_put_over_what_is_newer(rig: Rig, old: Publisher) -> None:
    rig.on_vpc(NOW)
    on_old(rig, old, WAS._replace(revision=3))
    assert rig.plane.tables[Kind.NEIGHBOR]["port-1"] == NOW.payload
    assert rig.core.streams[OTHER].watermark == old.mark


def test_what_went_in_the_older_vpc_does_not_take_away_what_is_to_change(
    rig: Rig, old: Publisher
) -> None:
    rig.on_vpc(NOW)
    rig.on_vpc(neighbor(1, revision=5, subnets=["subnet-3"]))  # which is not there
    on_old(rig, old, gone(WAS))
    assert rig.plane.tables[Kind.NEIGHBOR]["port-1"] == NOW.payload


@pytest.mark.parametrize("together", [False, True])
def test_what_the_older_vpc_still_has_is_back_where_the_newer_one_has_it_no_more(
    together: bool,
) -> None:
    rig = Rig(audit_s=1)
    rig.join(vpc(), subnet(), NOW)
    old = Publisher(OTHER)
    rig.put(old.publish(vpc(id_="vpc-2"), subnet("subnet-2", vpc_id="vpc-2")))
    rig.on_inbox(subscription(OTHER))
    rig.slow = together
    rig.on_vpc(neighbor(2))
    on_old(rig, old, WAS)
    rig.on_vpc(gone(NOW))
    rig.slow = False
    while rig.waiting:
        rig.finish()
    assert rig.plane.tables[Kind.NEIGHBOR]["port-1"] == WAS.payload
    assert not rig.exceptions()
    rig.pass_time(3)
    assert not any(rig.core.counters.drifts.values())
    on_old(rig, old, gone(WAS))
    assert rig.plane.tables[Kind.NEIGHBOR].keys() == {"port-2"}


# --- order ---


def test_additions_go_forward_in_the_order_of_dependency() -> None:
    rig = Rig()
    rig.join(neighbor(1), router(), group(), subnet(), vpc())
    order = [name.split("/")[0] for name in rig.programmed]
    assert order == ["vpc", "subnet", "security_group", "router", "neighbor"]
    assert not rig.plane.missing_references()


def test_deletions_come_after_additions_in_the_reverse_order(rig: Rig) -> None:
    rig.on_vpc(neighbor(1), group())
    rig.programs.clear()
    rig.on_vpc(
        gone(subnet()),
        gone(neighbor(1)),
        gone(group()),
        subnet("subnet-2"),
        neighbor(2, subnets=["subnet-2"]),
    )
    assert rig.programmed == [
        "subnet/subnet-2",
        "neighbor/port-2",
        "-neighbor/port-1",
        "-security_group/group-1",
        "-subnet/subnet-1",
    ]


def test_nothing_is_deleted_before_its_replacement_is_there(rig: Rig) -> None:
    rig.on_inbox(port(1))
    rig.slow = True
    rig.on_vpc(subnet("subnet-2"))
    rig.on_inbox(port(1, 2, subnet_id="subnet-2"))  # blocked: its subnet is under way
    rig.on_vpc(gone(subnet()))
    while rig.waiting:
        rig.finish()
        assert not rig.plane.missing_references()
    assert rig.programmed[-3:] == ["subnet/subnet-2", "port/port-1", "-subnet/subnet-1"]


def test_what_is_pending_does_not_hold_deletions_up(rig: Rig) -> None:
    rig.on_vpc(neighbor(1), neighbor(2, subnets=["nowhere"]))
    rig.on_vpc(gone(neighbor(1)))
    assert rig.programmed == ["neighbor/port-1", "-neighbor/port-1"]


def test_a_revocation_overtakes_a_backlog() -> None:
    rig = Rig(limit=10)
    rig.join(vpc(), subnet(), group(ports=(22, 80)))
    rig.slow = True
    rig.on_vpc(*(neighbor(n) for n in range(100)))
    rig.on_vpc(group(revision=2, ports=(22,)))
    assert len(rig.finish()) == 10
    assert rig.finish()[0].name == "security_group/group-1"
    while rig.waiting:
        assert len(rig.finish()) <= 10
    assert rig.agrees()
    assert rig.in_plane() == rig.applied(STREAM) | rig.applied(INBOX) - {"subscription/vpc/vpc-1"}
    assert len(rig.plane.tables[3]) == 100  # type: ignore[index]


def test_a_port_that_leaves_a_group_is_a_revocation_and_waits_for_no_reference(rig: Rig) -> None:
    rig.on_vpc(group("a"))
    rig.on_inbox(port(1, groups=["a"]))
    rig.on_inbox(port(1, 2, groups=["not-there"]))
    assert rig.programmed[-1] == "port/port-1"
    assert b"not-there" in rig.plane.tables[2]["port-1"]  # type: ignore[index]
    assert not rig.exceptions()


def test_only_the_newest_revision_of_a_backlog_is_programmed(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(9))
    for revision in (1, 2, 3):
        rig.on_vpc(neighbor(1, revision))
    rig.finish()
    assert [(one.name, one.revision) for one in rig.finish()] == [("neighbor/port-1", 3)]
    assert rig.watermark() == Mark(1, 5)


def test_what_is_deleted_before_it_was_programmed_is_never_programmed(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(9))
    rig.on_vpc(neighbor(1))
    rig.on_vpc(gone(neighbor(1)))
    rig.finish()
    assert rig.programmed == ["neighbor/port-9"]
    assert rig.watermark() == Mark(1, 4)


def test_what_changes_while_it_is_under_way_is_programmed_again(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(1), neighbor(2))
    rig.on_vpc(neighbor(1, 2))
    rig.on_vpc(neighbor(1, 3))
    assert rig.applied() == {"vpc/vpc-1", "subnet/subnet-1"}
    rig.finish()
    assert rig.watermark() == Mark(1, 2)
    assert [(one.name, one.revision) for one in rig.finish()] == [("neighbor/port-1", 3)]
    assert rig.watermark() == Mark(1, 4)


def test_what_is_deleted_while_it_is_under_way_is_deleted_after(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(1))
    rig.on_vpc(gone(neighbor(1)))
    rig.finish()
    assert rig.applied() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"}
    rig.finish()
    assert rig.programmed == ["neighbor/port-1", "-neighbor/port-1"]
    assert "neighbor/port-1" not in rig.applied() | rig.in_plane()


def test_what_comes_back_while_its_deletion_is_under_way_is_programmed_after(rig: Rig) -> None:
    rig.on_vpc(neighbor(1))
    rig.slow = True
    rig.on_vpc(gone(neighbor(1)))
    rig.on_vpc(neighbor(1, 3))
    rig.finish()
    rig.finish()
    assert rig.programmed == ["neighbor/port-1", "-neighbor/port-1", "neighbor/port-1"]
    assert rig.agrees()


def test_a_program_has_at_most_so_many_operations() -> None:
    rig = Rig(limit=7)
    rig.join(vpc(), subnet())
    rig.on_vpc(*(neighbor(n) for n in range(20)))
    assert [len(one) for one in rig.programs][-3:] == [7, 7, 6]
    assert rig.watermark() == Mark(1, 2)


def test_an_answer_to_another_program_is_not_taken(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(1))
    assert rig.core.programmed(1, {}, rig.now) == []
    assert rig.watermark() == Mark(1, 1)
    number = rig.waiting[0].number
    rig.finish()
    assert rig.core.programmed(number, {}, rig.now) == []
    assert rig.watermark() == Mark(1, 2)


# --- watermark ---


def test_the_watermark_stops_before_what_is_not_applied(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(1))
    rig.on_vpc()  # nothing in it
    rig.on_vpc(neighbor(2))
    assert rig.watermark() == Mark(1, 1)
    rig.finish()
    assert rig.watermark() == Mark(1, 3)
    rig.finish()
    assert rig.watermark() == Mark(1, 4)


def test_the_watermark_does_not_pass_a_message_because_its_resource_was_overtaken(
    rig: Rig,
) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(9))
    rig.on_vpc(neighbor(1))
    rig.on_vpc(neighbor(1, 2))
    rig.on_vpc(neighbor(3))
    rig.finish()
    assert rig.watermark() == Mark(1, 2)
    rig.finish()
    assert rig.watermark() == Mark(1, 5)


# --- references ---


def test_a_port_waits_for_what_it_refers_to_whichever_stream_brings_it() -> None:
    rig = Rig()
    rig.on_inbox(port(1, groups=["group-1"]), dhcp(), subscription())
    assert rig.exceptions() == {
        "port/port-1": "PENDING MISSING_REFERENCE",
        "dhcp/dhcp-1": "PENDING MISSING_REFERENCE",
    }
    assert rig.watermark(INBOX) == Mark(1, 1)
    rig.now += 10**9
    rig.on_vpc(vpc(), subnet())
    assert set(rig.exceptions()) == {"port/port-1"}
    rig.now += 10**9
    rig.on_vpc(group())
    assert not rig.exceptions()
    assert not rig.plane.missing_references()
    assert {"port/port-1", "dhcp/dhcp-1"} < rig.in_plane()
    # Only when the last exception was gone was all up to the watermark applied.
    assert rig.core.streams[INBOX].applied_ns == rig.now


def test_a_missing_reference_is_refused_after_the_deadline_and_still_applied_when_it_comes() -> (
    None
):
    rig = Rig(deadline_s=10)
    rig.join(vpc())
    rig.on_vpc(neighbor(1))
    assert rig.core.wakeup == rig.now + 10 * 10**9
    rig.pass_time(9.9)
    assert rig.exceptions() == {"neighbor/port-1": "PENDING MISSING_REFERENCE"}
    rig.pass_time(0.2)
    assert rig.exceptions() == {"neighbor/port-1": "REFUSED MISSING_REFERENCE"}
    assert "subnet/subnet-1" in rig.faults()["neighbor/port-1"].reason
    assert rig.watermark() == Mark(1, 2)
    rig.on_vpc(subnet())
    assert not rig.exceptions()
    assert "neighbor/port-1" in rig.in_plane()


def test_a_new_revision_of_what_is_pending_keeps_the_deadline() -> None:
    rig = Rig(deadline_s=10)
    rig.join(vpc(), neighbor(1))
    rig.pass_time(6)
    rig.on_vpc(neighbor(1, 2))
    rig.pass_time(5)
    assert rig.exceptions() == {"neighbor/port-1": "REFUSED MISSING_REFERENCE"}
    assert rig.faults()["neighbor/port-1"].revision == 2
    # It stands for the first message that is not applied.
    assert rig.faults()["neighbor/port-1"].mark == Mark(1, 1)


def test_what_refers_to_something_pending_is_pending_too() -> None:
    rig = Rig(deadline_s=10)
    rig.join(subnet(), neighbor(1))
    assert rig.exceptions() == {
        "subnet/subnet-1": "PENDING MISSING_REFERENCE",
        "neighbor/port-1": "PENDING MISSING_REFERENCE",
    }
    rig.pass_time(11)
    assert set(rig.exceptions().values()) == {"REFUSED MISSING_REFERENCE"}
    rig.on_vpc(vpc())
    assert not rig.exceptions()
    assert rig.programmed == ["vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"]


def test_deleting_what_is_pending_ends_the_exception(rig: Rig) -> None:
    rig.on_vpc(neighbor(1, subnets=["nowhere"]))
    rig.on_vpc(gone(neighbor(1)))
    assert not rig.exceptions()
    rig.on_vpc(subnet("nowhere"))
    assert rig.programmed == ["subnet/nowhere"]


def test_many_in_one_message_wait_each_for_its_own_reference(rig: Rig) -> None:
    rig.on_vpc(
        *(neighbor(n) for n in range(5)),
        *(neighbor(n, subnets=["subnet-2"]) for n in range(5, 10)),
        neighbor(10, subnets=["subnet-1", "subnet-2"]),
        neighbor(11, subnets=[]),
    )
    assert set(rig.exceptions()) == {f"neighbor/port-{n}" for n in range(5, 11)}
    assert len(rig.plane.tables[3]) == 6  # type: ignore[index]
    rig.on_vpc(neighbor(7, 2, subnets=["subnet-2"]), gone(neighbor(8)))
    rig.on_vpc(subnet("subnet-2"))
    assert not rig.exceptions()
    assert rig.in_plane() >= {f"neighbor/port-{n}" for n in range(12) if n != 8}
    assert rig.agrees()


def test_a_reference_that_goes_while_it_is_used_leaves_its_users_applied(rig: Rig) -> None:
    rig.on_vpc(neighbor(1))
    rig.on_vpc(gone(subnet()))
    assert "neighbor/port-1" in rig.in_plane()
    rig.on_vpc(neighbor(1, 2))
    assert rig.exceptions() == {"neighbor/port-1": "PENDING MISSING_REFERENCE"}
    assert "neighbor/port-1" in rig.applied()  # at its first revision
    rig.on_vpc(subnet(revision=3))
    assert not rig.exceptions()


def test_a_reference_that_goes_while_something_waits_for_it_makes_that_pending(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(9))
    rig.on_vpc(subnet("subnet-2"), neighbor(1, subnets=["subnet-2"]))
    assert not rig.exceptions()
    rig.on_vpc(gone(subnet("subnet-2")))
    assert rig.exceptions() == {"neighbor/port-1": "PENDING MISSING_REFERENCE"}
    rig.finish()
    assert not rig.waiting


def test_what_overtook_an_older_message_is_an_exception_of_that_too(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(subnet("subnet-2"))
    rig.on_vpc(neighbor(1, subnets=["subnet-2"]))  # waits for the subnet
    older = rig.core.streams[STREAM].live.mark
    rig.on_vpc(gone(subnet("subnet-2")), neighbor(1, 2, subnets=["subnet-2"]))
    while rig.waiting:
        rig.finish()
    assert rig.watermark() > older
    assert rig.faults()["neighbor/port-1"].mark == older


# --- refusals ---


def test_a_refused_resource_is_an_exception_and_the_others_are_applied(rig: Rig) -> None:
    rig.refuse = {"port-2"}
    rig.on_vpc(neighbor(1), neighbor(2), neighbor(3))
    assert rig.exceptions() == {"neighbor/port-2": "REFUSED DATA_PLANE"}
    assert rig.faults()["neighbor/port-2"].reason == "DATA_PLANE: no room"
    assert rig.watermark() == Mark(1, 2)
    assert rig.applied() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1", "neighbor/port-3"}
    assert rig.agrees()  # accepted it is


def test_what_refers_to_something_refused_is_pending(rig: Rig) -> None:
    rig.refuse = {"subnet-2"}
    rig.on_vpc(subnet("subnet-2"), neighbor(1, subnets=["subnet-2"]))
    assert rig.exceptions() == {
        "subnet/subnet-2": "REFUSED DATA_PLANE",
        "neighbor/port-1": "PENDING MISSING_REFERENCE",
    }
    rig.refuse = set()
    rig.on_vpc(subnet("subnet-2", 2))
    assert not rig.exceptions()


def test_a_refused_update_leaves_the_older_revision_applied(rig: Rig) -> None:
    rig.on_vpc(neighbor(1, host_ip="100.64.0.1"))
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1, 2, host_ip="100.64.0.2"))
    applied = rig.core.streams[STREAM].applied(neighbor(1).kind)
    assert applied["port-1"].revision == 1
    rig.refuse = set()
    rig.on_vpc(neighbor(1, 3, host_ip="100.64.0.3"))
    assert not rig.exceptions()


def test_a_refused_deletion_is_an_exception_and_the_resource_stays_applied(rig: Rig) -> None:
    rig.on_vpc(neighbor(1))
    rig.refuse = {"port-1"}
    rig.on_vpc(gone(neighbor(1)))
    assert rig.exceptions() == {"neighbor/port-1": "REFUSED DATA_PLANE"}
    assert "neighbor/port-1" in rig.applied()
    assert rig.core.streams[STREAM].resources() == 3


def test_a_refused_resource_that_was_overtaken_is_tried_at_the_newer_revision(rig: Rig) -> None:
    rig.slow = True
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1), neighbor(2))
    rig.on_vpc(neighbor(1, 2))
    rig.finish()
    assert rig.watermark() == Mark(1, 1)  # never applied at 1/2, and no exception says so
    rig.refuse = set()
    rig.finish()
    assert rig.watermark() == Mark(1, 3)
    assert not rig.exceptions()


def test_an_exception_stands_until_a_newer_revision_is_applied(rig: Rig) -> None:
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.slow, rig.refuse = True, set()
    rig.on_vpc(neighbor(1, 2))
    assert rig.exceptions() == {"neighbor/port-1": "REFUSED DATA_PLANE"}
    rig.finish()
    assert not rig.exceptions()


def test_a_refused_revision_deleted_under_way_is_gone(rig: Rig) -> None:
    rig.slow, rig.refuse = True, {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.on_vpc(gone(neighbor(1)))
    rig.finish()
    assert not rig.exceptions()
    assert not rig.waiting
    assert rig.watermark() == Mark(1, 3)


# --- a group's own stream ---


def test_a_group_that_moves_to_its_own_stream_stays_programmed(rig: Rig) -> None:
    own = security_group_stream("group-1")
    rig.on_vpc(group())
    rig.on_inbox(port(1, groups=["group-1"]), subscription(own))
    publisher = Publisher(own)
    rig.put(publisher.publish(group(revision=2)))
    rig.run()
    rig.on_vpc(gone(group()))
    assert "security_group/group-1" in rig.in_plane()
    assert rig.applied(own) == {"security_group/group-1"}
    assert rig.watermark() == Mark(1, 3)
    # And when it goes from there, it goes.
    rig.put(publisher.publish(gone(group(revision=2))))
    rig.run()
    assert "security_group/group-1" not in rig.in_plane()


def test_a_group_stream_takes_only_its_group(rig: Rig) -> None:
    own = security_group_stream("group-1")
    rig.on_inbox(subscription(own))
    publisher = Publisher(own)
    rig.put(publisher.publish(group("group-2"), neighbor(1)))
    rig.run()
    assert set(rig.exceptions().values()) == {"REFUSED WRONG_STREAM"}
