"""Sessions beside topics: twins that differ in nothing else, changes that change something, and a
limit that is where the costs cross."""

from __future__ import annotations

import pytest

from bench import channels
from bench.channel_runs import Cell, Cost, Pair, Sizes
from bench.channels import Limits, crossing
from bench.twins import Twins, region_of
from goalstate.bus.brokers import Broker
from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.core import Accepted, Core
from goalstate.gs.intent import Intent
from goalstate.gs.streams import Channel
from goalstate.gs.topics import Topics
from tests.bench.test_run import silent


def test_the_limit_is_where_sessions_begin_to_cost_more() -> None:
    assert crossing([1, 2, 6], [3, 4, 4], [1, 10, 30]) == 20


def test_where_sessions_always_cost_more_the_limit_is_none_at_all() -> None:
    assert crossing([3, 4], [1, 2], [1, 10]) == 0


def test_where_sessions_never_cost_more_there_is_no_limit() -> None:
    assert crossing([1, 2], [3, 2], [1, 10]) is None


def test_one_value_out_of_line_is_no_limit() -> None:
    assert crossing([1, 5, 2, 6], [3, 4, 4, 4], [1, 10, 20, 40]) == 30


def cell(followers: int, last: float, dpm: float) -> Cell:
    """On sessions; a topic takes 10 ms, and 5 ms of each processor."""
    session = Cost([last], [dpm], [1.0], [1.0])
    pair = Pair(session, Cost([10.0], [5.0], [5.0], [1.0]))
    return Cell(followers, followers, "", pair, pair)


def test_the_lowest_limit_counts_and_one_that_was_not_reached_counts_as_the_most() -> None:
    limits = Limits.of([cell(1, 1, 1), cell(11, 9, 11)])
    assert limits == Limits(last=None, last_of_burst=None, cpu=9, cpu_of_burst=9)
    assert limits.lowest(11) == 9
    assert Limits(None, None, None, 20).lowest(11) == 11


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


def test_all_that_the_limit_comes_from_is_measured(apache_broker: Broker) -> None:
    sizes = Sizes(
        followers=(1, 3),
        ports=(20,),
        followers_of_ports=2,
        warm_up=5,
        single=10,
        burst=10,
        turns=1,
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
            assert min(channel["last"]) > 0
            assert min(channel["follower"]) > 0
    assert len(section.data["by_members"]) == 6
    assert all(min(one["milliseconds"]) > 0 for one in section.data["small"])
    assert all(row for table in section.tables for row in table.rows)
