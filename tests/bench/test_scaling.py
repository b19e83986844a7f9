"""The measurement of limits: each part still measures, and goals are about what they say."""

from __future__ import annotations

from itertools import islice

import pytest

from bench import scaling
from bench.change_cost import Cost, Crowd, by_followers, by_ports
from bench.fanout import COUNT, Cell
from bench.report import section as rendered
from bench.scaling import _FULL, _QUICK, Sizes, section
from bench.system import Brokers
from bench.topic_load import Throughput, by_vpcs, changes
from goalstate.bus.brokers import Broker
from goalstate.gs import intent_codec
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale.generate import Region


def silent(_: str) -> None:
    """Progress that nobody wants to see."""


@pytest.fixture
def brokers(apache_broker: Broker) -> Brokers:
    return Brokers(apache_broker.url, apache_broker.admin_url, silent)


def test_a_change_costs_something_alone_and_with_reports(brokers: Brokers) -> None:
    costs = by_ports(brokers, silent, (3, 30), 2, (2, 1))
    assert [(cost.ports, cost.hosts) for cost in costs] == [(3, 2), (30, 2)]
    for cost in costs:
        assert len(cost.alone) == 2
        assert len(cost.reported) == 1
        assert min(*cost.alone, *cost.reported) > 0


def test_hosts_of_one_process_subscribe_and_changes_reach_ever_more(brokers: Brokers) -> None:
    costs, crowd = by_followers(brokers, silent, (1, 4), 4, (1, 1))
    assert [(cost.ports, cost.hosts) for cost in costs] == [(4, 1), (4, 4)]
    assert (crowd.hosts, crowd.ports) == (4, 4)
    assert crowd.applied_s > 0
    assert all(cost.alone and cost.reported for cost in costs)


def test_changes_are_published_over_few_and_over_many_topics(brokers: Brokers) -> None:
    found = by_vpcs(brokers, silent, (2, 5), 0.1, 0.5)
    assert [one.vpcs for one in found] == [2, 5]
    for one in found:
        assert one.accepted > 0
        assert one.published > 0
        assert one.publisher_cpu_s > 0
        assert one.broker_cpu_s == 0  # this broker was there before


def test_each_of_these_changes_changes_something_in_one_of_the_vpcs() -> None:
    region = Region(hosts=3, vpcs=(2,) * 5)
    intents = [
        intent_codec.from_proto(api.ApplyRequest.FromString(request).intent)
        for request in islice(changes(region, 4), 100)
    ]
    ports = [port for intent in intents for port in intent.ports]
    assert len({port.mac_address for port in ports}) == len(ports) == 100
    assert {port.vpc_id for port in ports} == {region.vpc_id(n) for n in (1, 2, 3, 4)}


def _cell(how: str, first: float, last: float) -> Cell:
    return Cell(1000, how, None, first=[first] * 100, last=[*[last] * 98, 2 * last, 9 * last])


def _judged(sizes: Sizes) -> dict[str, bool | None]:
    """Dear with reports, slow with many topics, and a slow last host."""
    costs = [
        Cost(n, size, size, alone=[100.0 + n], reported=[100.0 * n])
        for n, size in ((1, 10), (2, 99))
    ]
    topics = [
        Throughput(vpcs, 1.0, 2.0, 100, published, 0.1, 0.1, 0.1)
        for vpcs, published in ((10, 100.0), (100, 80.0))
    ]
    one = section(
        sizes,
        costs,
        costs,
        Crowd(99, 99, 61.0),
        topics,
        _cell(COUNT, 9.0, 40.0),
        _cell("plain", 4.5, 25.0),
    )
    assert "| plain Pulsar client |" in rendered(one)
    assert [plot.name for plot in one.plots] == ["scaling-ports", "scaling-followers"]
    assert one.plots[0].rows == [("10", (101.0, 100.0)), ("99", (102.0, 200.0))]
    return {goal.what: goal.met for goal in one.goals}


def test_what_misses_a_goal_is_told_by_name() -> None:
    judged = _judged(_FULL)
    assert {what for what, met in judged.items() if met is False} == {
        "99 hosts of one process subscribe to one VPC",
        "changes/s over 100 VPCs against 10",
        "port added to 100,000: p99 of the last of 1,000 hosts over the plain client's",
    }
    assert set(_judged(_QUICK).values()) == {None}


def test_a_quick_run_is_smaller_in_everything() -> None:
    for name in Sizes._fields:
        quick, full = getattr(scaling._QUICK, name), getattr(_FULL, name)
        assert quick < full, name
