"""Sessions beside topics: twins that differ in nothing else, changes that change something, and a
limit that is where the costs cross."""

from __future__ import annotations

import pytest

from bench import channel_runs, channels
from bench.channel_runs import Cell, Cost, Pair, Sizes
from bench.channels import CHANGES_A_JOIN, crossing, limits, line
from bench.twins import Twins, region_of
from goalstate.bus.brokers import Broker
from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.core import Accepted, Core
from goalstate.gs.intent import Intent
from goalstate.gs.streams import Channel
from goalstate.gs.topics import Topics
from tests.bench.test_run import silent


def test_costs_are_a_part_that_is_always_there_and_a_part_for_each_follower() -> None:
    assert line([1, 10, 100], [2.5, 7, 52]) == pytest.approx((2, 0.5))


def test_few_followers_count_as_much_as_many() -> None:
    # A tenth too much of the many, which is more than all that the few cost.
    by_itself, each = line([1, 2, 1000], [1.1, 1.2, 111.1])
    assert by_itself == pytest.approx(1, abs=0.02)
    assert each == pytest.approx(0.11, abs=0.01)


def test_the_limit_is_where_sessions_begin_to_cost_more() -> None:
    assert crossing([1, 100], [2 + 1, 2 + 100], [21.5 + 0.5, 21.5 + 50]) == pytest.approx(39)


def test_where_sessions_always_cost_more_there_is_no_number_of_followers() -> None:
    assert crossing([1, 10], [3, 13], [1, 2]) == 0


def test_where_sessions_never_cost_more_it_is_as_many_as_there_were() -> None:
    assert crossing([1, 10], [1, 2], [3, 4]) == 10


def test_each_turn_gives_a_limit_by_each_of_the_costs() -> None:
    def cell(followers: int) -> Cell:
        session = Cost(
            last=[1.0, 1.0], dpm=[1.0 + followers, 1.0 + 2 * followers], broker=[0.0, 0.0]
        )
        pair = Pair(session, Cost(last=[2.0, 2.0], dpm=[3.0, 3.0], broker=[8.0, 8.0]))
        return Cell(followers, followers, "", pair, pair)

    alone, cpu, burst = limits([cell(1), cell(51)], 2.0 * CHANGES_A_JOIN)
    assert (alone.followers, alone.turns.values) == (51, (51, 51))
    assert cpu.turns.values == pytest.approx((10, 5))
    assert cpu.followers == pytest.approx(10 / 1.5)
    # A join saves as much as sessions cost more in ten changes to two followers.
    assert burst.turns.values == pytest.approx((12, 6))


@pytest.mark.parametrize("ports", [2, 150])
def test_twins_differ_in_their_channel_and_each_change_is_a_message_of_theirs(ports: int) -> None:
    region = region_of(3, [ports])
    core = Core(Topics())
    core.begin_epoch(1, ChannelPolicy(1, 1))

    def accept(intent: Intent) -> Accepted:
        return core.accept(core.plan(intent), 1_000)

    for intent in region.host_intents():
        accept(intent)
    twins = Twins.of(region, 0, range(3))
    for vpc, channel in zip(twins, (Channel.SESSION, Channel.PULSAR), strict=True):
        for intent in vpc.intents():
            accept(intent)
        assert len(core.desired.ports_of_vpc(vpc.stream.id)) == ports
        for change in (vpc.membership, vpc.rule) * 3:
            for group in ("db", "db", "default"):
                published = accept(change(group)).publications
                ours = [one for one in published if one.envelope.stream == vpc.stream]
                assert [one.channel for one in ours] == [channel]
        assert len(core.desired.ports_of_group(f"sg-{vpc.number:04d}-db")) == vpc.members("db")


def test_all_that_the_limit_comes_from_is_measured(
    apache_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_runs, "_IDLE_S", 0.05)
    sizes = Sizes(
        followers=(1, 3),
        ports=(20,),
        followers_of_ports=2,
        warm_up=5,
        single=10,
        burst=10,
        turns=2,
        deliveries=12,
        fleets=((2, 2, 4),),
        host_single=2,
        host_burst=2,
        host_turns=1,
        small=4,
        pieces=1,
        joined=(10,),
        joins=1,
    )
    section = channels.run(apache_broker, silent, sizes, quick=True)
    assert [cell["followers"] for cell in section.data["by_followers"]] == [1, 3]
    for cell in (*section.data["by_followers"], *section.data["by_ports"]):
        for channel in (*cell["single"], *cell["burst"]):
            assert {len(values) for values in channel.values()} == {2}
            assert min(channel["last"]) > 0
            assert min(channel["follower"]) > 0
    assert len(section.data["by_members"]) == 6
    assert all(min(one["milliseconds"]) > 0 for one in section.data["small"])
    assert all(row for table in section.tables for row in table.rows)
