"""Results as a run would give them, made up: every latency is a multiple of one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goalstate.scale.load import workload
from goalstate.scale.load.results import (
    ClockResult,
    Figures,
    PhaseResult,
    Process,
    Result,
    StageResult,
)
from goalstate.scale.load.stages import PERCENTILES, Stage
from goalstate.scale.load.thresholds import Verdict

_STAGES = (
    (Stage.SENT, 1.0),
    (Stage.ACCEPTED, 4.0),
    (Stage.PUBLISHED, 3.0),
    (Stage.FIRST_HOST, 5.0),
    (Stage.LAST_HOST, 10.0),
    (Stage.APPLIED, 8.0),
)
WORKLOAD = """
name: made
about: a workload of a test
region: {hosts: 20, vpcs: 2x10}
phases:
  - {name: warm, seconds: 2, measured: false, arrival: {shape: constant, rate: 10},
     changes: {create-ports: 1}}
  - {name: steady, seconds: 8, arrival: {shape: constant, rate: 10}, changes: {create-ports: 1}}
"""


def figures(ms: float, count: int = 100) -> Figures:
    """Of a distribution whose p50 is `ms`; p99 is four times as much, the highest is ten times."""
    factors = dict(zip(PERCENTILES, (1, 1.5, 2, 4, 8, 9), strict=True))
    return Figures(
        count=count,
        mean_ms=1.2 * ms,
        min_ms=0.5 * ms,
        max_ms=10 * ms,
        percentiles_ms={f"{p:g}": ms * factor for p, factor in factors.items()},
    )


def stage(
    which: Stage, ms: float, phase: str, seconds: Sequence[int] = range(2, 10)
) -> StageResult:
    of = figures(ms)
    curve = [(0.0, of.min_ms), (50.0, ms), (99.0, 4 * ms), (99.9, 8 * ms), (100.0, of.max_ms)]
    return StageResult(
        stage=which,
        whole=of,
        by_phase={phase: of},
        curve=curve,
        seconds=[(at, figures(ms, 10)) for at in seconds],
    )


def result(
    *,
    ms: float = 1.0,
    dpm_cpu_s: float = 4.0,
    held: bool = True,
    overrides: Sequence[str] = (),
    **changes: Any,
) -> Result:
    """`ms` is what `sent` takes at p50."""
    wanted = workload.parse(WORKLOAD, "made", overrides)
    measured = wanted.phases[-1].name
    phases = [
        PhaseResult(
            name=phase.name,
            measured=phase.measured,
            begin_s=begin,
            seconds=phase.seconds,
            offered=100,
            outcomes={"accepted": 99, "refused": 1, "unanswered": 0, "starved": 0},
            accepted={"create-ports": 99},
        )
        for phase, begin in wanted.spans()
    ]
    processes = [
        Process(
            name=name,
            used=[(at, cpu / 10, 2**20 * (50 + at)) for at in range(10)],
            cpu_s=cpu,
            begin_bytes=50 * 2**20,
            end_bytes=60 * 2**20,
        )
        for name, cpu in (
            ("dpm", dpm_cpu_s),
            ("broker", 2.0),
            ("fleet a", 3.0),
            ("fleet b", 1.0),
            ("generator c", 1.0),
        )
    ]
    made = Result(
        run="run-1",
        workload=wanted.model_dump(mode="json"),
        began="2030-01-01T00:00:00+00:00",
        build_s=0.5,
        goalstate="1.0",
        machine={"machine": "2 cores", "system": "Linux", "libraries": "one 1.0"},
        broker="a broker at pulsar://127.0.0.1:6650",
        phases=phases,
        stages=[stage(which, factor * ms, measured) for which, factor in _STAGES],
        processes=processes,
        fleet={"messages": 5, "bytes": 500},
        loopback_bytes=2**21,
        clocks=[
            ClockResult(
                worker="a", role="fleet", machine="m", same=False, ahead_ms=1.5, error_ms=0.25
            )
        ],
        slowest_hosts=[("host-1", 9.5, 7), ("host-2", 4.75, 6)],
        lost=0,
        lost_named=[],
        not_joined=0,
        behind="",
        refusals=[],
        verdicts=[Verdict(what="changes lost", limit="≤ 0", found="0", held=held)],
    )
    return made.model_copy(update=changes)
