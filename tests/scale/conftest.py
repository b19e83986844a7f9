"""Fixtures for the simulator of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from goalstate.scale.simulate.plan import plan
from goalstate.scale.simulate.run import Result, Run

FirstViolation = Callable[[Iterable[int]], Result | None]


@pytest.fixture
def first_violation() -> FirstViolation:
    """Plays these seeds up to the first in which a law is broken; gives that run, or None."""

    def play(seeds: Iterable[int]) -> Result | None:
        results = (Run(plan(seed)).play() for seed in seeds)
        return next((result for result in results if result.violation), None)

    return play
