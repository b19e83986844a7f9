from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from goalstate.agent import fleet as fleets
from goalstate.agent import readers
from goalstate.agent.actions import Action
from goalstate.agent.dataplanes import Done, MemoryDataPlane, ModelledDataPlane, ProgrammingModel
from goalstate.agent.fleet import Member, counts
from goalstate.bus.errors import BrokerUnreachable, BusClosed, PositionGone
from goalstate.gs.pb.alcor.schema.resources_pb2 import NeighborConfiguration
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import host_reports
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import inbox_stream
from tests.agent.fleet_rig import FleetRig, wait_until
from tests.agent.rig import (
    STREAM,
    TOPICS,
    Publisher,
    checkpoint,
    gone,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)

MEMBERS = [Member(f"h{n}", f"rack-{n // 4}") for n in range(8)]


def inboxes(members: list[Member]) -> dict[str, Publisher]:
    return {member.group: Publisher(inbox_stream(member.group)) for member in members}


def subscribe(rig: FleetRig, members: list[Member]) -> dict[str, Publisher]:
    racks = inboxes(members)
    for member in members:
        rig.put(racks[member.group].publish(subscription(), host=member.host))
    return racks


def test_every_host_applies_what_comes_and_reports_it() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        rig.put(publisher.publish(vpc(), subnet()))
        async with rig.fleet(MEMBERS) as fleet:
            racks = subscribe(rig, MEMBERS)
            rig.put(racks["rack-0"].publish(port(1), host="h1"))
            rig.put(publisher.publish(*(neighbor(n) for n in range(10))))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 2) for m in MEMBERS),
                "all hosts report 1/2",
            )
            for host in fleet.hosts.values():
                plane = host.data_plane
                assert isinstance(plane, MemoryDataPlane)
                assert len(plane.tables[Kind.NEIGHBOR]) == 10
                assert len(plane.tables[Kind.PORT]) == (host.core.host == "h1")
            assert fleet.readers.open == fleet.readers.wanted == 16
            # Each message was read once for all hosts that got it.
            assert fleet.decoder.read == 2 + 8 + 1
            report = rig.reports[-1]
            assert report.clock_id == "clock-1"
            assert report.sent_unix_ns > 0
            assert next(host_reports(report)).inspection_address == "127.0.0.1:1"
        assert fleet.readers.open == 0

    asyncio.run(scenario())


def test_hosts_make_themselves_known_at_once_and_again_within_each_third_of_their_lease() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        async with rig.fleet(MEMBERS, lease_s=1.2):
            await wait_until(lambda: len(rig.hosts) == 8, "all hosts reported")
            assert all(report.full for report in rig.hosts.values())
            await wait_until(
                lambda: all(report.number > 2 for report in rig.hosts.values()), "heartbeats"
            )
            assert all(report.full and report.lease_s == 1.2 for report in rig.hosts.values())

    asyncio.run(scenario())


def test_the_news_of_many_hosts_are_one_message() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        async with rig.fleet(MEMBERS):
            subscribe(rig, MEMBERS)
            rig.put(publisher.publish(vpc()))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 1) for m in MEMBERS), "1/1"
            )
            before = len(rig.reports)
            rig.put(publisher.publish(subnet()))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 2) for m in MEMBERS), "1/2"
            )
            assert len(rig.reports) - before <= 3

    asyncio.run(scenario())


async def moved(rig: FleetRig, publisher: Publisher) -> list[agent_pb2.Report]:
    """What hosts that follow the VPC report of one message more."""
    before = len(rig.reports)
    sent = publisher.publish(neighbor(99))
    rig.put(sent)
    mark = tuple(publisher.mark)
    await wait_until(
        lambda: all(rig.told(m.host, "vpc/vpc-1") == mark for m in MEMBERS), "all hosts report it"
    )
    return rig.reports[before:]


@pytest.mark.parametrize(("limit", "messages"), [(512 * 1024, 1), (200, 2)])
def test_hosts_that_got_to_the_same_place_share_an_entry_of_a_report(
    monkeypatch: pytest.MonkeyPatch, limit: int, messages: int
) -> None:
    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        rig.put(publisher.publish(vpc(), subnet()))
        async with rig.fleet(MEMBERS, lease_s=3600):  # no heartbeat meanwhile
            subscribe(rig, MEMBERS)
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 1) for m in MEMBERS), "all follow"
            )
            monkeypatch.setattr("goalstate.agent.reporting.MESSAGE_BYTES", limit)
            reports = await moved(rig, publisher)
            assert len(reports) == messages
            assert not any(report.hosts for report in reports)
            told = [host for report in reports for host in host_reports(report)]
            assert {host.host for host in told} == {member.host for member in MEMBERS}
            assert all(len(host.streams) == 1 and host.streams[0].digest for host in told)

    asyncio.run(scenario())


def test_large_reports_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goalstate.agent.reporting.MESSAGE_BYTES", 100)

    async def scenario() -> None:
        rig = FleetRig()
        async with rig.fleet(MEMBERS):
            await wait_until(lambda: len(rig.hosts) == 8, "all hosts reported")
            assert all(len(report.hosts) <= 3 for report in rig.reports)

    asyncio.run(scenario())


def test_not_more_readers_than_allowed_are_opened_at_a_time() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        async with rig.fleet(MEMBERS, open_at_a_time=3) as fleet:
            assert rig.bus.most_opening == 3
            assert fleet.readers.open == 8

    asyncio.run(scenario())


def test_an_open_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RETRY_S", 0.001)

    async def scenario() -> None:
        rig = FleetRig()
        rig.bus.failures = [BrokerUnreachable("gone")] * 5
        async with rig.fleet(MEMBERS) as fleet:
            assert fleet.readers.open == 8
            assert not rig.bus.failures

    asyncio.run(scenario())


def test_an_open_that_fails_because_the_client_closed_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "RETRY_S", 0.001)

    async def scenario() -> None:
        rig = FleetRig()
        rig.bus.failures = [BusClosed("AlreadyClosed")] * 5
        async with rig.fleet(MEMBERS) as fleet:
            assert fleet.readers.open == 8
            assert not rig.bus.failures

    asyncio.run(scenario())


def test_a_position_that_is_gone_leads_to_reading_from_the_beginning() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        rig.put(publisher.publish(vpc()))
        async with rig.fleet(MEMBERS[:1]) as fleet:
            rig.bus.failures = [PositionGone("trimmed")]
            subscribe(rig, MEMBERS[:1])
            await wait_until(lambda: rig.told("h0", "vpc/vpc-1") == (1, 1), "1/1")
            assert fleet.counters.resyncs == 1

    asyncio.run(scenario())


def test_a_fleet_joins_from_checkpoints_and_shares_the_looks_for_them() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        rig.put(publisher.publish(vpc(), subnet()))
        rig.put(publisher.publish(*(neighbor(n) for n in range(10))))
        racks = subscribe(rig, MEMBERS)
        for one in (publisher, *racks.values()):
            checkpoint(rig.broker, one)
        rig.broker.trim(
            TOPICS.of_stream(STREAM), 2
        )  # the message at its mark, and what tells of it
        rig.put(publisher.publish(neighbor(10)))
        async with rig.fleet(MEMBERS) as fleet:
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 3) for m in MEMBERS), "1/3"
            )
            for host in fleet.hosts.values():
                plane = host.data_plane
                assert isinstance(plane, MemoryDataPlane)
                assert len(plane.tables[Kind.NEIGHBOR]) == 11
            assert {rig.bus.looks[TOPICS.of_stream(one.stream)] for one in racks.values()} == {1}
            # Hosts learn one after the other that they are to follow it.
            assert 1 <= rig.bus.looks[TOPICS.of_stream(STREAM)] <= 4
            assert len(rig.bus.looks) == 3
            assert fleet.counters.gaps == fleet.counters.resyncs == 0

    asyncio.run(scenario())


def test_a_look_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "RETRY_S", 0.001)

    async def scenario() -> None:
        rig = FleetRig()
        rig.bus.look_failures = [BrokerUnreachable("gone")] * 5
        async with rig.fleet(MEMBERS) as fleet:
            assert fleet.readers.open == 8
            assert not rig.bus.look_failures

    asyncio.run(scenario())


def test_a_checkpoint_that_is_gone_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "TICK_S", 0.001)
    monkeypatch.setattr("goalstate.agent.repair.RETRY_NS", 1_000_000)

    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        rig.put(publisher.publish(vpc()))
        checkpoint(rig.broker, publisher)
        checkpoint(rig.broker, publisher)
        rig.broker.trim(TOPICS.checkpoints_of(STREAM), 0)
        async with rig.fleet(MEMBERS[:1]) as fleet:
            subscribe(rig, MEMBERS[:1])
            await wait_until(lambda: fleet.counters.resyncs > 3, "it looks again")
            checkpoint(rig.broker, publisher)
            await wait_until(lambda: rig.told("h0", "vpc/vpc-1") == (1, 1), "1/1")

    asyncio.run(scenario())


def test_a_reader_that_is_wished_for_no_longer_during_the_look_is_not_opened() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        rig.put(Publisher(STREAM).publish(vpc()))
        async with rig.fleet(MEMBERS[:1]) as fleet:
            rack = Publisher(inbox_stream("rack-0"))
            rig.bus.look_gate.clear()
            rig.put(rack.publish(subscription(), host="h0"))
            await wait_until(lambda: rig.bus.looking == 1, "the look is under way")
            rig.put(rack.publish(gone(subscription()), host="h0"))
            await wait_until(lambda: fleet.readers.wanted == 1, "it is not wanted any more")
            opened = rig.bus.opened
            rig.bus.look_gate.set()
            await fleet.readers.settled()
            assert (fleet.readers.open, rig.bus.opened) == (1, opened)

    asyncio.run(scenario())


def test_a_fleet_can_be_stopped_during_a_look() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        async with rig.fleet(MEMBERS[:1]) as fleet:
            rig.bus.look_gate.clear()
            subscribe(rig, MEMBERS[:1])
            await wait_until(lambda: rig.bus.looking == 1, "the look is under way")
        assert rig.bus.looking == fleet.readers.open == 0

    asyncio.run(scenario())


def test_a_reader_that_is_wished_for_no_longer_while_it_opens_is_closed() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        rig.put(Publisher(STREAM).publish(vpc()))
        async with rig.fleet(MEMBERS[:1]) as fleet:
            rack = Publisher(inbox_stream("rack-0"))
            rig.bus.gate.clear()
            rig.put(rack.publish(subscription(), host="h0"))
            await wait_until(lambda: rig.bus.opening == 1, "the reader is opening")
            rig.put(rack.publish(gone(subscription()), host="h0"))
            await wait_until(lambda: fleet.readers.wanted == 1, "it is not wanted any more")
            rig.bus.gate.set()
            await fleet.readers.settled()
            assert fleet.readers.open == 1
            assert len(rig.bus.readers) == 1
            assert STREAM not in fleet.hosts["h0"].core.streams

    asyncio.run(scenario())


def test_without_a_broker_hosts_keep_what_they_have_and_report_everything_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goalstate.agent.reporting.RETRY_S", 0.01)

    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        async with rig.fleet(MEMBERS, lease_s=1) as fleet:
            subscribe(rig, MEMBERS)
            rig.put(publisher.publish(vpc(), subnet()))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 1) for m in MEMBERS), "1/1"
            )
            rig.broker.partition(names=["fleet"])
            lost = fleet.counters.reports
            await wait_until(lambda: fleet.counters.reports > lost + 8, "reports are lost")
            assert all(len(h.core.streams[STREAM].live.held) == 2 for h in fleet.hosts.values())
            rig.broker.heal()
            rig.hosts.clear()
            rig.put(publisher.publish(neighbor(1)))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 2) for m in MEMBERS), "1/2"
            )
            await wait_until(
                lambda: len(rig.hosts) == 8 and all(h.full for h in rig.hosts.values()),
                "all hosts told everything again",
            )

    asyncio.run(scenario())


def test_a_slow_data_plane_reports_when_it_is_done_and_what_it_refused() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        publisher = Publisher(STREAM)
        loop = asyncio.get_running_loop()
        model = ProgrammingModel(program_ms=1, sigma=0, refuse_ids=("port-3",))
        make: Callable[[str], ModelledDataPlane] = lambda host: ModelledDataPlane(  # noqa: E731
            model, loop.call_later, name=host
        )
        async with rig.fleet(MEMBERS[:2], data_plane=make, limit=4):
            subscribe(rig, MEMBERS[:2])
            rig.put(publisher.publish(vpc(), subnet(), *(neighbor(n) for n in range(10))))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 1) for m in MEMBERS[:2]), "1/1"
            )
            (exception,) = rig.hosts["h0"].exceptions
            assert exception.id == "port-3"

    asyncio.run(scenario())


def test_a_data_plane_that_stands_still_holds_nobody_up_and_gets_only_the_newest() -> None:
    class Stuck(MemoryDataPlane):
        def __init__(self) -> None:
            super().__init__()
            self.programs: list[tuple[Sequence[Resource], Done]] = []

        def program(self, operations: Sequence[Resource], done: Done) -> None:
            self.programs.append((operations, done))

    async def scenario() -> None:
        rig = FleetRig()
        stuck = Stuck()
        publisher = Publisher(STREAM)
        rig.put(publisher.publish(vpc(), subnet()))
        planes = {"h0": stuck}
        async with rig.fleet(
            MEMBERS, data_plane=lambda host: planes.get(host) or MemoryDataPlane()
        ) as fleet:
            subscribe(rig, MEMBERS)
            await wait_until(lambda: stuck.programs, "the one gets its first program")
            for revision in range(1, 501):
                rig.put(publisher.publish(*(neighbor(n, revision) for n in range(5))))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 501) for m in MEMBERS[1:]),
                "all others report the last change",
            )
            assert rig.told("h0", "vpc/vpc-1") == (0, 0)
            # Of 2,500 changes that wait there are the five resources that they are of.
            (stream,) = (s for s in fleet.hosts["h0"].core.streams.values() if s.id == STREAM)
            assert len(stream.unsettled[Kind.NEIGHBOR]) == 5
            planes.clear()
            while stuck.programs:
                operations, done = stuck.programs.pop(0)
                MemoryDataPlane.program(stuck, operations, done)
            await wait_until(lambda: rig.told("h0", "vpc/vpc-1") == (1, 501), "then it catches up")
            assert {parsed(p).revision_number for p in stuck.tables[Kind.NEIGHBOR].values()} == {
                500
            }

    parsed = NeighborConfiguration.FromString
    asyncio.run(scenario())


def test_a_pending_resource_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "TICK_S", 0.001)

    async def scenario() -> None:
        rig = FleetRig()
        async with rig.fleet(MEMBERS[:1], pending_deadline_s=0.02):
            rig.put(Publisher(inbox_stream("rack-0")).publish(port(1), host="h0"))
            await wait_until(
                lambda: any(
                    exception.status == exception.REFUSED
                    for report in rig.hosts.values()
                    for exception in report.exceptions
                ),
                "it is refused",
            )

    asyncio.run(scenario())


def test_one_hosts_failure_does_not_stop_the_clock_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleets, "TICK_S", 0.001)

    async def scenario() -> None:
        rig = FleetRig()
        async with rig.fleet(MEMBERS[:2]) as fleet:
            ticked: list[int] = []

            def broken(now: int) -> None:
                raise RuntimeError("broken")

            def tick(now: int) -> list[Action]:
                ticked.append(now)
                return []

            first, second = fleet.hosts.values()
            monkeypatch.setattr(first.core, "tick", broken)
            monkeypatch.setattr(second.core, "tick", tick)
            for host in (first, second):
                host.core.wakeup = 1
                fleet.waking[host] = None
            await wait_until(lambda: ticked, "the second host's tick")

    asyncio.run(scenario())


def test_which_hosts_count_is_a_function_of_number_and_share() -> None:
    for share, number in ((0.0, 0), (0.1, 10), (0.29, 29), (0.5, 50), (1.0, 100)):
        assert sum(counts(n, share) for n in range(100)) == number
    assert [n for n in range(10) if counts(n, 0.2)] == [4, 9]


def test_counting_hosts_report_how_far_they_are() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        members = [Member("h0", "rack-0"), Member("h1", "rack-0", counting=True)]
        publisher = Publisher(STREAM)
        async with rig.fleet(members) as fleet:
            subscribe(rig, members)
            rig.put(publisher.publish(vpc(), subnet()))
            await wait_until(
                lambda: all(rig.told(m.host, "vpc/vpc-1") == (1, 1) for m in members), "1/1"
            )
            held = [h.core.streams[STREAM].resources() for h in fleet.hosts.values()]
            assert held == [2, 0]

    asyncio.run(scenario())


def test_a_host_is_played_once() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        with pytest.raises(ValueError, match="once only"):
            async with rig.fleet([MEMBERS[0], MEMBERS[0]]):
                pass

    asyncio.run(scenario())
