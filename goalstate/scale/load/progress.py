"""How far a run is: what somebody who watches wants to see of the last second. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from goalstate.scale.load.collecting import Collected
from goalstate.scale.load.compare import ROLES, role
from goalstate.scale.load.generator import Outcome
from goalstate.scale.load.recording import Distributions
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.workload import Workload

#: Workers tell of a second when it is over, and some of them late.
_BACK_S = 3
_STAGES = (Stage.ACCEPTED, Stage.APPLIED)


class Latency(NamedTuple):
    """Of one second; milliseconds."""

    stage: Stage
    p50: float
    p99: float


class Progress(NamedTuple):
    #: Since the first phase began, and of all phases.
    gone_s: int
    of_s: float
    #: Empty once all phases are over, and what is under way is waited for.
    phase: str
    measured: bool
    phase_gone_s: float
    phase_of_s: float
    offered: int
    accepted: int
    #: Refused, unanswered, starved.
    other: int
    #: Changes that wait for a caller, or that hosts have not yet.
    waiting: int
    latencies: list[Latency]
    #: By role: processors that were busy.
    processors: dict[str, float]


def progress(workload: Workload, second: int, collected: Collected) -> Progress:
    """As it is at the end of a second, counted from 0 since the first phase began."""
    name, measured, begin, seconds = "", False, workload.seconds, 0.0
    for phase, begin_s in workload.spans():
        if begin_s <= second < begin_s + phase.seconds:
            name, measured, begin, seconds = phase.name, phase.measured, begin_s, phase.seconds
    outcomes = collected.outcomes
    accepted = sum(n for (_, _, outcome), n in outcomes.items() if outcome is Outcome.ACCEPTED)
    offered = sum(outcomes.values())
    return Progress(
        gone_s=second + 1,
        of_s=workload.seconds,
        phase=name,
        measured=measured,
        phase_gone_s=min(second + 1 - begin, seconds),
        phase_of_s=seconds,
        offered=offered,
        accepted=accepted,
        other=offered - accepted,
        waiting=sum(collected.waiting.values()),
        latencies=list(_latencies(collected.distributions, second)),
        processors=_processors(collected, second),
    )


def _latencies(distributions: Distributions, second: int) -> Iterator[Latency]:
    for stage in _STAGES:
        for at in range(second, second - _BACK_S, -1):
            found = distributions.second(stage, at)
            if found is not None:
                p50, p99 = (found.get_value_at_percentile(p) / 1000 for p in (50, 99))
                yield Latency(stage, p50, p99)
                break


def _processors(collected: Collected, second: int) -> dict[str, float]:
    """Of each role, by the last two samples of each of its processes."""
    samples: dict[str, list[tuple[int, float]]] = {}
    for at in range(second, second - _BACK_S - 1, -1):
        for name, use in collected.resources.get(at, {}).items():
            samples.setdefault(name, []).append((at, use.cpu_s))
    found: dict[str, float] = {}
    for name, newest in samples.items():
        if len(newest) > 1:
            (at, cpu_s), (before, cpu_before_s) = newest[:2]
            busy = (cpu_s - cpu_before_s) / (at - before)
            found[role(name)] = found.get(role(name), 0.0) + busy
    return {one: found[one] for one in ROLES if one in found}
