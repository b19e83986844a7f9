"""The plan of faults follows from its seed, and leaves no part out."""

from __future__ import annotations

from itertools import pairwise

import pytest

from goalstate.scale.chaos.plan import KILLS, Fault, Step, plan

SEEDS = range(1, 40)


def planned(seed: int, seconds: float, *, broker_start_s: float = 1.0) -> list[Step]:
    return plan(seed, seconds, failover_after_s=3.0, broker_start_s=broker_start_s)


def test_a_seed_gives_one_plan_and_another_seed_another() -> None:
    assert planned(7, 600) == planned(7, 600)
    assert planned(7, 600) != planned(8, 600)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_short_run_kills_every_part_once(seed: int) -> None:
    assert sorted(step.fault for step in planned(seed, 40)[: len(KILLS)]) == sorted(KILLS)


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_minutes_have_every_kind_though_the_broker_takes_half_a_minute(seed: int) -> None:
    steps = planned(seed, 600, broker_start_s=25)
    assert {step.fault for step in steps} == set(Fault)
    assert 2 <= sum(step.fault is Fault.KILL_BROKER for step in steps) <= 4


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_are_in_order_and_end_before_the_run_does(seed: int) -> None:
    steps = planned(seed, 120)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(one.at_s < other.at_s for one, other in pairwise(steps))
    assert all(step.at_s + step.lasts_s <= 120 for step in steps)
    assert all(0 <= step.choice < 1 for step in steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_active_publisher_is_stopped_for_longer_than_the_other_one_waits(seed: int) -> None:
    pauses = [step for step in planned(seed, 600) if step.fault is Fault.PAUSE_ACTIVE]
    assert pauses
    assert all(step.lasts_s > 3.0 for step in pauses)
