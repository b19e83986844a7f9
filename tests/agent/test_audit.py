"""What is corrupted behind an agent's back is found within the interval, and mended."""

from __future__ import annotations

import asyncio

import pytest

from goalstate.agent import audit as audits
from goalstate.agent.dataplanes import ModelledDataPlane, ProgrammingModel, Readable
from goalstate.agent.fleet import Member
from goalstate.gs import digest as digests
from goalstate.gs.resources import Kind
from goalstate.gs.streams import vpc_stream
from tests.agent.fleet_rig import FleetRig, wait_until
from tests.agent.rig import (
    HOST,
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

INTERVAL_S = 60


@pytest.fixture
def rig() -> Rig:
    """A host that has been there for a while, with some of everything."""
    rig = Rig(audit_s=INTERVAL_S)
    rig.join(vpc(), subnet(), group(), router(), *(neighbor(n) for n in range(10)))
    rig.on_inbox(port(1, groups=["group-1"]), dhcp())
    rig.report(full=True)
    rig.pass_time(2.5 * INTERVAL_S)
    return rig


def drifts(rig: Rig) -> dict[str, int]:
    return {where: count for where, count in rig.core.counters.drifts.items() if count}


def test_where_nothing_is_wrong_nothing_is_sent_programmed_or_reported(rig: Rig) -> None:
    programs, follows = len(rig.programs), len(rig.follows)
    rounds = rig.core.counters.audits
    assert rounds >= 2
    rig.pass_time(10 * INTERVAL_S)
    assert rig.core.counters.audits >= rounds + 10
    assert (len(rig.programs), len(rig.follows)) == (programs, follows)
    assert rig.report() is None
    assert not drifts(rig)
    assert not rig.exceptions()


# --- held state ---


@pytest.mark.parametrize("after_s", [0, 7, 23, 41, 59])
def test_a_corrupted_resource_is_found_within_the_interval_and_read_again(
    rig: Rig, after_s: int
) -> None:
    rig.pass_time(after_s)
    held = rig.core.streams[STREAM].live.held[Kind.NEIGHBOR]
    held["port-3"] = held["port-3"]._replace(payload=b"\xff\xff")
    rig.pass_time(INTERVAL_S)
    assert held is not rig.core.streams[STREAM].live.held[Kind.NEIGHBOR]
    assert rig.core.streams[STREAM].live.held[Kind.NEIGHBOR]["port-3"] == neighbor(3)
    assert rig.core.counters.resyncs == 1
    assert drifts(rig) == {"held": 1}
    assert rig.agrees()
    assert not rig.exceptions()
    assert rig.plane.tables[Kind.NEIGHBOR]["port-3"] == neighbor(3).payload


def test_a_lost_resource_is_held_again(rig: Rig) -> None:
    del rig.core.streams[STREAM].live.held[Kind.SECURITY_GROUP]["group-1"]
    rig.pass_time(INTERVAL_S)
    assert rig.core.streams[STREAM].live.held[Kind.SECURITY_GROUP]["group-1"] == group()
    assert rig.core.counters.drifts["held"] == 1
    assert not rig.exceptions()
    assert rig.in_plane() >= rig.applied()


def test_a_resource_that_nobody_sent_is_held_no_longer(rig: Rig) -> None:
    rig.core.streams[STREAM].live.held[Kind.NEIGHBOR]["port-99"] = neighbor(99)
    rig.pass_time(INTERVAL_S)
    assert "port-99" not in rig.core.streams[STREAM].live.held[Kind.NEIGHBOR]
    rig.pass_time(INTERVAL_S)
    assert "port-99" not in rig.plane.tables[Kind.NEIGHBOR]
    assert not rig.exceptions()


def test_a_corrupted_port_of_the_inbox_is_found_too(rig: Rig) -> None:
    held = rig.core.streams[INBOX].live.held[Kind.PORT]
    held["port-1"] = held["port-1"]._replace(payload=b"\xff")
    rig.pass_time(INTERVAL_S)
    assert rig.agrees(rig.inbox)
    assert rig.plane.tables[Kind.PORT]["port-1"] == port(1, groups=["group-1"]).payload


def test_while_a_drifted_stream_is_read_again_it_is_an_exception(rig: Rig) -> None:
    rig.core.streams[STREAM].live.held[Kind.NEIGHBOR].pop("port-3")
    # Nobody reads for the host just now.
    follow, rig._follow = rig._follow, lambda follow: None  # type: ignore[method-assign]
    rig.pass_time(INTERVAL_S)
    assert rig.exceptions() == {f"{STREAM} 0/0": "PENDING DIGEST"}
    report = rig.report()
    assert report is not None
    assert len(report.exceptions) == 1
    rig._follow = follow  # type: ignore[method-assign]


# --- the running digest ---


def test_a_corrupted_running_digest_is_set_right_without_reading(rig: Rig) -> None:
    follows = len(rig.follows)
    rig.core.streams[STREAM].live.digest ^= 1 << 77
    assert not rig.agrees()
    rig.pass_time(INTERVAL_S)
    assert rig.agrees()
    assert drifts(rig) == {"digest": 1}
    assert len(rig.follows) == follows
    rig.on_vpc(neighbor(50))
    assert rig.core.counters.mismatches == 0


def test_a_running_digest_and_its_state_that_are_wrong_alike_are_found(rig: Rig) -> None:
    live = rig.core.streams[STREAM].live
    lost = live.held[Kind.NEIGHBOR].pop("port-3")
    live.digest = (live.digest - digests.item(Kind.NEIGHBOR, lost.payload)) & digests.MASK
    rig.pass_time(INTERVAL_S)
    assert rig.agrees()
    assert drifts(rig) == {"held": 1}


# --- the data plane ---


def test_what_the_data_plane_lost_is_programmed_again(rig: Rig) -> None:
    programs = len(rig.programs)
    del rig.plane.tables[Kind.NEIGHBOR]["port-3"]
    rig.plane.tables[Kind.PORT]["port-1"] = b"\x01"
    rig.pass_time(INTERVAL_S)
    assert rig.plane.tables[Kind.NEIGHBOR]["port-3"] == neighbor(3).payload
    assert rig.plane.tables[Kind.PORT]["port-1"] == port(1, groups=["group-1"]).payload
    assert drifts(rig) == {"data_plane": 2}
    assert sum(map(len, rig.programs[programs:])) == 2
    assert rig.core.counters.resyncs == 0
    assert not rig.exceptions()


def test_what_the_data_plane_has_and_nobody_wants_is_deleted(rig: Rig) -> None:
    rig.plane.tables[Kind.NEIGHBOR]["port-99"] = neighbor(99).payload
    rig.pass_time(INTERVAL_S)
    assert "port-99" not in rig.plane.tables[Kind.NEIGHBOR]
    assert rig.programmed[-1] == "-neighbor/port-99"
    assert not rig.exceptions()


def test_what_is_programmed_again_is_an_exception_until_it_is_done(rig: Rig) -> None:
    rig.slow = True
    del rig.plane.tables[Kind.NEIGHBOR]["port-3"]
    rig.plane.tables[Kind.DHCP]["none"] = b"\x01"
    rig.pass_time(INTERVAL_S)
    assert rig.exceptions()["neighbor/port-3"] == "PENDING DRIFT"
    while rig.waiting:
        rig.finish()
    rig.slow = False
    rig.pass_time(INTERVAL_S)
    assert not rig.exceptions()
    assert rig.in_plane() == rig.applied() | rig.applied(INBOX) - {"subscription/vpc/vpc-1"}


def test_a_stray_whose_deletion_is_refused_is_an_exception_and_tried_in_the_next_round(
    rig: Rig,
) -> None:
    rig.refuse = {"port-99"}
    rig.plane.tables[Kind.NEIGHBOR]["port-99"] = neighbor(99).payload
    rig.pass_time(INTERVAL_S)
    assert rig.exceptions() == {"neighbor/port-99": "REFUSED DRIFT"}
    rig.refuse = set()
    rig.pass_time(INTERVAL_S)
    assert not rig.exceptions()


def test_a_stray_that_was_refused_and_is_wanted_or_gone_is_no_exception(rig: Rig) -> None:
    rig.refuse = {"port-98", "port-99"}
    for number in (98, 99):
        rig.plane.tables[Kind.NEIGHBOR][f"port-{number}"] = neighbor(number).payload
    rig.pass_time(INTERVAL_S)
    assert len(rig.exceptions()) == 2
    rig.refuse = set()
    rig.on_vpc(neighbor(98))
    del rig.plane.tables[Kind.NEIGHBOR]["port-99"]
    rig.pass_time(INTERVAL_S)
    assert not rig.exceptions()
    assert "port-98" in rig.plane.tables[Kind.NEIGHBOR]


def test_a_stray_that_is_wanted_by_then_stays(rig: Rig) -> None:
    rig.slow = True
    rig.on_vpc(neighbor(50))  # a program is under way
    rig.core.programming.strays.found(Kind.NEIGHBOR, ["port-99"])
    rig.on_vpc(neighbor(99))
    while rig.waiting:
        rig.finish()
    assert "port-99" in rig.plane.tables[Kind.NEIGHBOR]
    assert not rig.exceptions()


def test_what_is_refused_or_on_its_way_is_no_drift(rig: Rig) -> None:
    rig.refuse = {"port-50"}
    rig.on_vpc(neighbor(50))
    rig.pass_time(3 * INTERVAL_S)
    assert not drifts(rig)
    assert rig.exceptions() == {"neighbor/port-50": "REFUSED DATA_PLANE"}


def test_what_changes_between_the_slices_is_no_drift(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "SLICE", 1)
    rounds = rig.core.counters.audits
    revision = 1
    while rig.core.counters.audits < rounds + 2:
        revision += 1
        rig.on_vpc(neighbor(revision % 10, revision))
        if revision % 5 == 0:
            rig.on_vpc(neighbor(100 + revision))
        if revision % 5 == 4 and revision > 10:
            rig.on_vpc(gone(neighbor(100 + revision - 4)))
        rig.pass_time(0.11)
        assert revision < 5000
    assert not drifts(rig)
    assert rig.core.counters.resyncs == 0


def test_what_goes_in_one_vpc_and_is_back_from_another_between_the_slices_is_no_drift(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "SLICE", 1)
    other = Publisher(vpc_stream("vpc-2"))
    was, now = neighbor(9, revision=2, vpc_id="vpc-2"), neighbor(9, revision=4)
    rig.on_vpc(now)
    rig.put(other.publish(vpc(id_="vpc-2"), was))
    rig.on_inbox(subscription(other.stream))
    asked = len(rig.read_backs)
    while Kind.NEIGHBOR not in rig.read_backs[asked:]:
        rig.pass_time(0.01)
    rig.on_vpc(gone(now))
    rig.pass_time(INTERVAL_S)
    assert rig.plane.tables[Kind.NEIGHBOR]["port-9"] == was.payload
    assert not drifts(rig)


def test_a_data_plane_that_cannot_be_read_back_is_asked_once(rig: Rig) -> None:
    rig.readable = False
    asked = len(rig.read_backs)
    rig.pass_time(3 * INTERVAL_S)
    assert len(rig.read_backs) == asked + 1
    rig.core.streams[STREAM].live.digest ^= 1
    rig.pass_time(INTERVAL_S)
    assert rig.agrees()


def test_a_counting_host_audits_what_it_holds() -> None:
    rig = Rig(audit_s=INTERVAL_S, counting=True)
    rig.on_inbox(subscription(), port(1))
    rig.on_vpc(vpc(), subnet())
    del rig.plane.tables[Kind.PORT]["port-1"]
    rig.pass_time(2 * INTERVAL_S)
    assert "port-1" in rig.plane.tables[Kind.PORT]
    assert rig.core.counters.resyncs == 0


def test_hosts_begin_their_rounds_at_different_times() -> None:
    def first(host: str) -> int:
        rig = Rig(host=host, audit_s=INTERVAL_S)
        assert rig.core.wakeup is not None
        return rig.core.wakeup

    assert len({first(f"host-{n}") for n in range(50)}) == 50


# --- with a fleet ---


def test_a_fleet_reads_its_data_planes_back() -> None:
    async def scenario() -> None:
        plane = ModelledDataPlane(
            ProgrammingModel(), lambda _, then: asyncio.get_running_loop().call_soon(then)
        )
        assert isinstance(plane, Readable)
        rig = FleetRig()
        inbox, stream = Publisher(INBOX), Publisher(STREAM)
        member = [Member(HOST, "rack-1")]
        async with rig.fleet(member, data_plane=lambda host: plane, audit_s=1) as fleet:
            rig.put(inbox.publish(subscription()))
            rig.put(stream.publish(vpc(), subnet(), neighbor(1)))
            await wait_until(lambda: rig.told(HOST, str(STREAM)) == (1, 1), "all is applied")
            del plane.table.tables[Kind.NEIGHBOR]["port-1"]
            await wait_until(lambda: plane.table.tables[Kind.NEIGHBOR], "it is there again")
            assert fleet.counters.drifts["data_plane"] == 1

    asyncio.run(scenario())
