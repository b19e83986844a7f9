"""Fixtures for the simulator of faults, and its thousands of runs beside the other tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from goalstate.scale.simulate.run import Result
from goalstate.testkit import Simulation

FirstViolation = Callable[[Iterable[int]], Result | None]

ROOT = Path(__file__).resolve().parents[2]
#: Test that waits for them.
MANY = "test_ten_thousand_runs_break_no_law"
#: In processes of their own: in the tests' each step would be traced for the coverage.
COMMAND = ("simulate-faults", "--seed", "10000", "--runs", "10000", "--json")


@pytest.fixture
def first_violation(goalstate_simulation: Simulation, no_cover: None) -> FirstViolation:
    """Plays these seeds up to the first in which a law is broken; gives that run, or None.

    Not traced for the coverage, which takes twice as long as the runs themselves.
    """
    return goalstate_simulation.first_violation


ManyRuns = subprocess.Popen[str]
_MANY_RUNS = pytest.StashKey[ManyRuns]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """They take some minutes: let them begin when the tests do, on the cores that are left."""
    if session.config.option.collectonly or all(item.name != MANY for item in session.items):
        return
    jobs = str(max(1, (os.cpu_count() or 1) - 1))
    session.stash[_MANY_RUNS] = subprocess.Popen(
        [sys.executable, "-m", "goalstate.cli", *COMMAND, "--jobs", jobs],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    runs = session.stash.get(_MANY_RUNS, None)
    if runs is not None:
        runs.terminate()
        runs.communicate()


@pytest.fixture
def many_runs(request: pytest.FixtureRequest) -> ManyRuns:
    return request.session.stash[_MANY_RUNS]
