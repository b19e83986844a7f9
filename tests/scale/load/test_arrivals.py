"""When changes are to start."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from goalstate.scale.load.arrivals import expected, starts
from goalstate.scale.load.workload import Arrival, Constant, Poisson, Ramp

ARRIVALS = [
    Constant(shape="constant", rate=40),
    Poisson(shape="poisson", rate=400),
    Ramp(shape="ramp", start=0, end=80),
    Ramp(shape="ramp", start=80, end=10),
    Ramp(shape="ramp", start=30, end=30),
]


def times(arrival: Arrival, seconds: float, parts: int = 1, seed: int = 1) -> list[float]:
    found: list[float] = []
    for part in range(parts):
        found += starts(arrival, seconds, Random(f"{seed}/{part}"), part=part, parts=parts)
    return sorted(found)


def test_constant_arrivals_are_evenly_spaced_for_as_long_as_the_phase() -> None:
    found = times(Constant(shape="constant", rate=3), 1e5)
    assert len(found) == 300_000
    assert found[0] == 0
    assert found[-1] == pytest.approx(1e5 - 1 / 3)
    assert found[299_997] - found[299_994] == pytest.approx(1)


@pytest.mark.parametrize("arrival", [ARRIVALS[0], *ARRIVALS[2:]])
def test_several_generators_make_together_what_one_would(arrival: Arrival) -> None:
    assert times(arrival, 7, parts=3) == times(arrival, 7)


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("parts", [1, 4])
def test_as_many_come_as_the_rate_says(arrival: Arrival, parts: int) -> None:
    found = times(arrival, 20, parts)
    assert all(0 <= at < 20 for at in found)
    wanted = expected(arrival, 20)
    # Of a Poisson process the number varies by its root.
    assert abs(len(found) - wanted) <= (4 * wanted**0.5 if arrival.shape == "poisson" else 1)


def test_poisson_gaps_vary_as_much_as_they_are_long() -> None:
    found = times(Poisson(shape="poisson", rate=100), 100)
    gaps = [later - at for at, later in itertools.pairwise(found)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.01, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)


def test_a_ramp_has_half_of_its_changes_after_the_root_of_half_of_its_time() -> None:
    found = times(Ramp(shape="ramp", start=0, end=100), 10)
    assert len(found) == 500
    assert found[250] == pytest.approx(10 * 0.5**0.5, abs=0.01)


def test_a_ramp_that_falls_to_nothing_ends() -> None:
    found = times(Ramp(shape="ramp", start=10, end=0), 10)
    assert len(found) in (50, 51)


def test_a_seed_gives_the_same_times_again() -> None:
    arrival = Poisson(shape="poisson", rate=50)
    assert times(arrival, 10, seed=3) == times(arrival, 10, seed=3)
    assert times(arrival, 10, seed=3) != times(arrival, 10, seed=4)
