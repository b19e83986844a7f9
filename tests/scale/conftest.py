"""Fixtures for the simulator of faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from goalstate.scale.simulate.run import Result
from goalstate.testkit import Simulation

FirstViolation = Callable[[Iterable[int]], Result | None]


@pytest.fixture
def first_violation(goalstate_simulation: Simulation) -> FirstViolation:
    """Plays these seeds up to the first in which a law is broken; gives that run, or None."""
    return goalstate_simulation.first_violation
