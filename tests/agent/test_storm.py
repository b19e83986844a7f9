"""Many hosts of one process begin a stream at once, or have to begin it anew."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from goalstate.agent import checkpoint_readers
from goalstate.agent import fleet as fleets
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Fleet, Host, Member
from goalstate.bus.base import Message, Sink
from goalstate.gs.resources import Kind
from goalstate.gs.streams import Mark
from tests.agent.fleet_rig import FailingBus, FleetRig, wait_until
from tests.agent.rig import STREAM, TOPICS, Publisher, checkpoint, neighbor, subnet, vpc
from tests.agent.test_fleet import subscribe

LOG = TOPICS.of_stream(STREAM)
CHECKPOINTS = TOPICS.checkpoints_of(STREAM)


def members(number: int, first: int = 0) -> list[Member]:
    return [Member(f"h{n}", f"rack-{n // 40}") for n in range(first, first + number)]


class CountingBus(FailingBus):
    """It counts the readers of each topic, and may lose the rest of a topic after some messages."""

    def __init__(self, rig: FleetRig) -> None:
        super().__init__(rig.broker, "fleet")
        self.readers_of = Counter[str]()
        #: By topic: after so many messages more, it is trimmed.
        self.trims: dict[str, int] = {}

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> Any:
        self.readers_of[topic] += 1

        def counting(message: Message) -> None:
            left = self.trims.get(topic)
            if left is not None:
                self.trims[topic] = left - 1
                if left <= 1:
                    del self.trims[topic]
                    self.broker.trim(topic, 0)
            sink(message)

        return await super().open_reader(topic, start, counting)


def region(hosts: list[Member]) -> tuple[FleetRig, CountingBus, Publisher]:
    """Hosts are subscribed to a stream of 40 neighbors, whose checkpoint has 4 chunks."""
    rig = FleetRig()
    bus = rig.bus = CountingBus(rig)
    publisher = Publisher(STREAM)
    rig.put(publisher.publish(vpc(), subnet()))
    rig.put(publisher.publish(*(neighbor(n) for n in range(40))))
    subscribe(rig, hosts)
    checkpoint(rig.broker, publisher, 4)
    return rig, bus, publisher


def at(host: Host, sequence: int) -> bool:
    stream = host.core.streams.get(STREAM)
    return stream is not None and stream.watermark == Mark(1, sequence)


def all_at(fleet: Fleet, sequence: int) -> bool:
    return all(at(host, sequence) for host in fleet.hosts.values())


def reading(fleet: Fleet) -> int:
    """So many hosts have a part of a checkpoint of the stream."""
    streams = (host.core.streams.get(STREAM) for host in fleet.hosts.values())
    return sum(s is not None and s.shadow is not None and s.shadow.chunk > 0 for s in streams)


def neighbors(host: Host) -> int:
    assert isinstance(host.data_plane, MemoryDataPlane)
    return len(host.data_plane.tables[Kind.NEIGHBOR])


def test_a_thousand_hosts_join_by_a_few_readers_and_parse_a_checkpoint_once() -> None:
    async def scenario() -> None:
        rig, bus, publisher = region(members(1000))
        async with rig.fleet(members(1000)) as fleet:
            await wait_until(lambda: all_at(fleet, 2), "all have joined")
            assert {neighbors(host) for host in fleet.hosts.values()} == {40}
            # 64 at a time have one between them; where one is late it costs one more.
            assert bus.readers_of[CHECKPOINTS] < 100
            assert fleet.readers.waiting == 0
            messages = sum(len(rig.broker.messages(topic)) for topic in rig.broker.topics)
            assert fleet.decoder.read < 1.5 * messages
            rig.put(publisher.publish(neighbor(40)))
            await wait_until(lambda: all_at(fleet, 3), "all follow the log")
            assert fleet.counters.resyncs == fleet.counters.gaps == 0

    asyncio.run(scenario())


def test_not_more_hosts_than_allowed_have_a_part_of_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_readers, "TURN_S", 0.0)

    async def scenario() -> None:
        rig, bus, _ = region(members(60))
        most = 0
        async with rig.fleet(members(60), joining=5) as fleet:

            def joined() -> bool:
                nonlocal most
                most = max(most, reading(fleet))
                return all_at(fleet, 2)

            await wait_until(joined, "all have joined")
            assert 0 < most <= 5
            assert bus.readers_of[CHECKPOINTS] >= 60 / 5

    asyncio.run(scenario())


def test_hosts_in_sync_get_their_changes_while_others_join(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_readers, "TURN_S", 0.0)

    async def scenario() -> None:
        first, others = Member("first", "rack-first"), members(400)
        rig, _, publisher = region([first])
        async with rig.fleet([first, *others], joining=16) as fleet:
            in_sync = fleet.hosts["first"]
            await wait_until(lambda: at(in_sync, 2), "one is in sync")
            subscribe(rig, others)
            await wait_until(lambda: reading(fleet), "the others have begun")
            rig.put(publisher.publish(neighbor(40)))
            await wait_until(lambda: at(in_sync, 3), "the change came")
            assert sum(not at(host, 3) for host in fleet.hosts.values()) > 200
            await wait_until(lambda: all_at(fleet, 3), "all have joined")

    asyncio.run(scenario())


def test_hosts_that_have_nothing_come_before_those_that_read_again() -> None:
    async def scenario() -> None:
        hosts = members(40)
        rig, _, publisher = region(hosts)
        async with rig.fleet(hosts[:20], joining=1) as fleet:
            await wait_until(lambda: all_at(fleet, 2), "all have joined")
            readers = fleet.readers
            assert [readers._semaphore.acquire(empty=True).held, readers.waiting] == [True, 0]
            # The one place is taken: now all drift, and one is new.
            for host in fleet.hosts.values():
                host.core.streams[STREAM].live.digest ^= 1
            rig.put(publisher.publish(neighbor(40)))
            await wait_until(lambda: readers.waiting == 20, "all are to read again")
            assert all(not ticket.empty for ticket in readers._semaphore._waiting[False])
            assert not readers._semaphore._waiting[True]

    asyncio.run(scenario())


def test_a_checkpoint_that_is_trimmed_while_it_is_read_strands_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint_readers, "STALL_S", 0.02)
    monkeypatch.setattr(fleets, "TICK_S", 0.001)
    monkeypatch.setattr("goalstate.agent.repair.RETRY_NS", 1_000_000)

    async def scenario() -> None:
        rig, bus, publisher = region(members(8))
        bus.trims[CHECKPOINTS] = 2
        async with rig.fleet(members(8)) as fleet:
            await wait_until(lambda: fleet.counters.resyncs >= 8, "nothing more of it comes")
            assert not any(neighbors(host) for host in fleet.hosts.values())
            checkpoint(rig.broker, publisher, 3)
            await wait_until(lambda: all_at(fleet, 2), "all have joined by the next one")
            assert {neighbors(host) for host in fleet.hosts.values()} == {40}
            assert fleet.readers.waiting == 0

    asyncio.run(scenario())


def test_all_hosts_come_back_from_an_outage_and_miss_nothing() -> None:
    async def scenario() -> None:
        hosts = members(200)
        rig, _, publisher = region(hosts)
        async with rig.fleet(hosts) as fleet:
            await wait_until(lambda: all_at(fleet, 2), "all have joined")
            rig.broker.partition(names=["fleet"])
            rig.put(publisher.publish(neighbor(40)))
            checkpoint(rig.broker, publisher, 3)
            rig.put(publisher.publish(neighbor(41)))
            rig.broker.trim(LOG, 2)
            rig.broker.heal()
            await wait_until(lambda: all_at(fleet, 4), "all are in sync again")
            assert {neighbors(host) for host in fleet.hosts.values()} == {42}

    asyncio.run(scenario())
