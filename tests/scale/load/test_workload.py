"""Workload files: what is taken, and what is said of what is not."""

from __future__ import annotations

import json

import pytest

from goalstate.scale.load import workload
from goalstate.scale.load.workload import ChangeKind, WorkloadError, parse_numbers

GOOD = """
name: good
region: {hosts: 10, vpcs: 2x20, new_vpcs: 1x5}
fleet: {joining_hosts: 2}
phases:
- {name: a, seconds: 1, arrival: {shape: constant, rate: 2}, changes: {create-ports: 1}}
thresholds: {latency: [{stage: last host, percentile: 99, at_most_ms: 5}]}
"""


@pytest.mark.parametrize("name", workload.shipped())
def test_what_is_shipped_is_taken_and_its_name_says_its_size(name: str) -> None:
    found = workload.load(name)
    assert found.name == name
    assert found.about
    assert f"-{found.region.hosts}h-" in name
    assert len(workload.shipped()) >= 12


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("region.host=3", "region.host: Extra inputs are not permitted"),
        ("region.vpcs=2y3", "region.vpcs: Value error, '2y3' is no VPCs x ports"),
        ("region.vpcs=1x99999999", "VPC 1 with 99999999 ports does not fit"),
        ("phases.0.seconds=-1", "phases.0.seconds: Input should be greater than 0"),
        ("phases.0.arrival.shape=wave", "phases.0.arrival: Input tag 'wave'"),
        ("phases.0.arrival={shape: ramp, start: 0, end: 0}", "from 0 to 0 has no changes"),
        ("phases.0.changes={}", "phases.0.changes: Dictionary should have at least 1 item"),
        ("phases.0.changes={create-ports: 0}", "must be above 0"),
        ("phases.0.changes={explode: 1}", "phases.0.changes.explode"),
        ("phases.0.vpcs='3'", "is of VPCs 3, and there are 2"),
        ("phases.0.vpcs=0-1", "begins below 1"),
        ("phases.0.measured=false", "no phase is measured"),
        ("region.new_vpcs=''", ""),
        ("fleet.processes=9", "more processes in the fleet than hosts"),
        ("fleet.joining_hosts=10", "must be fewer than the region's hosts"),
        ("layout.shards=2", "hosts cannot join later in a region that is divided"),
        ("thresholds.latency.0.percentile=98", "must be one of 50, 75, 90, 99, 99.9, 99.99"),
        ("thresholds.latency.0.phase=b", "a threshold is of 'b', which is not measured"),
        ("name=a/b", "name: String should match pattern"),
    ],
)
def test_a_mistake_is_named_with_its_place(override: str, said: str) -> None:
    if not said:
        assert workload.parse(GOOD, "it", [override]).region.new_vpcs == ""
        return
    with pytest.raises(WorkloadError) as error:
        workload.parse(GOOD, "it", [override])
    assert str(error.value).startswith("it: ")
    assert said in str(error.value)


@pytest.mark.parametrize("kind", [ChangeKind.CREATE_VPC, ChangeKind.JOIN_HOST])
def test_kinds_that_need_something_say_so(kind: ChangeKind) -> None:
    without = ["region.new_vpcs=''", "fleet.joining_hosts=0"]
    with pytest.raises(WorkloadError, match=r"new_vpcs|joining_hosts"):
        workload.parse(GOOD, "it", [*without, f"phases.0.changes={{{kind}: 1}}"])


@pytest.mark.parametrize("override", ["nonsense", "=1", "phases.7.seconds=1", "name.x=1", "a..b=1"])
def test_an_override_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(WorkloadError, match=r"no path=value|there is no such place"):
        workload.parse(GOOD, "it", [override])


def test_overrides_reach_everything() -> None:
    found = workload.parse(
        GOOD, "it", ["region.hosts=7", "phases.0.arrival.rate=9.5", "layout.channel=session"]
    )
    assert found.region.hosts == 7
    assert found.phases[0].arrival.rate == 9.5  # type: ignore[union-attr]
    assert found.layout.channel == "session"


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "\x00"])
def test_what_is_no_workload_at_all_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match=r"it is no (YAML|workload)"):
        workload.parse(text, "it")


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(WorkloadError, match="steady-port-churn"):
        workload.load("no-such")


def test_the_schema_is_json_and_knows_every_field() -> None:
    text = json.dumps(workload.schema())
    for name in ("joining_hosts", "least_share", "new_vpcs", "poisson", "security_groups"):
        assert name in text


def test_numbers_are_parsed() -> None:
    assert parse_numbers("1-3, 7") == {1, 2, 3, 7}
    assert parse_numbers("") == frozenset()
    for wrong in ("x", "3-1", "1-", "-2"):
        with pytest.raises(ValueError, match=wrong):
            parse_numbers(wrong)
