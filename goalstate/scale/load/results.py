"""A result: what came of a run, as one document, and the directory that it is kept in.

<directory>/result.json      all figures (`Result`)
            workload.yaml    what was done, overrides included
            latency/*.hlog   HDR histogram logs, one for each stage, a histogram for each second
            report.html      the same for people
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter
from pydantic import BaseModel, ConfigDict

from goalstate import __version__
from goalstate.scale.load import clocks, thresholds
from goalstate.scale.load.collecting import Collected
from goalstate.scale.load.coordinator import Finished
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.generator import Outcome
from goalstate.scale.load.recording import Recorded
from goalstate.scale.load.stages import PERCENTILES, Stage
from goalstate.scale.load.thresholds import Verdict

FORMAT = 1
#: A worker is one process with one event loop: above this share of a core it lags behind.
BUSY = 0.85
OF_WORKERS = ("fleet ", "generator ")
_LIBRARIES = ("pulsar-client", "protobuf", "grpcio", "hdrhistogram")
#: Shares of a distribution at which its curve is drawn.
_CURVE = (
    *(float(n) for n in range(0, 100, 2)),
    *(98.5, 99.0, 99.25, 99.5, 99.7, 99.8, 99.9, 99.95, 99.99, 99.999, 100.0),
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Figures(_Model):
    """Of a distribution; milliseconds."""

    count: int
    mean_ms: float
    min_ms: float
    max_ms: float
    #: By percentile, as "99.9".
    percentiles_ms: dict[str, float]

    @classmethod
    def of(cls, histogram: HdrHistogram) -> Figures:
        count = histogram.get_total_count()
        recorded = Recorded(histogram)
        return cls(
            count=count,
            mean_ms=round(recorded.mean() / 1000, 4),
            min_ms=histogram.get_min_value() / 1000 if count else 0.0,
            max_ms=histogram.get_max_value() / 1000 if count else 0.0,
            percentiles_ms={f"{p:g}": recorded.percentile(p) / 1000 for p in PERCENTILES},
        )


class StageResult(_Model):
    stage: Stage
    #: Over all measured phases.
    whole: Figures
    by_phase: dict[str, Figures]
    #: (percentile, ms), ascending.
    curve: list[tuple[float, float]]
    #: Each second in which something was recorded, with its figures.
    seconds: list[tuple[int, Figures]]


class PhaseResult(_Model):
    name: str
    measured: bool
    begin_s: float
    seconds: float
    offered: int
    #: By outcome.
    outcomes: dict[str, int]
    #: By kind of change: accepted ones.
    accepted: dict[str, int]


class Process(_Model):
    """What a process used, by second since the first phase began."""

    name: str
    #: (second, processors that it kept busy, resident bytes)
    used: list[tuple[int, float, int]]
    #: Processor seconds in measured phases.
    cpu_s: float
    #: Resident bytes when measuring began, and at its end.
    begin_bytes: int
    end_bytes: int


class ClockResult(_Model):
    worker: str
    role: str
    machine: str
    same: bool
    ahead_ms: float
    error_ms: float


class Result(_Model):
    format: int = FORMAT
    run: str
    workload: dict[str, Any]
    began: str
    #: Seconds to make the region before.
    build_s: float
    goalstate: str
    machine: dict[str, str]
    broker: str
    phases: list[PhaseResult]
    stages: list[StageResult]
    processes: list[Process]
    #: Of all fleets: messages, bytes, gaps, resyncs, refused.
    fleet: dict[str, int]
    loopback_bytes: int
    #: Bytes while it was measured, by what (`System.traffic`).
    traffic_bytes: dict[str, int] = {}
    clocks: list[ClockResult]
    #: Host, mean ms from intended start to applied, changes.
    slowest_hosts: list[tuple[str, float, int]]
    #: Changes that some host did not get, or nobody did.
    lost: int
    lost_named: list[str]
    not_joined: int
    #: What hosts lack at the end, by the DPM; empty: nothing.
    behind: str
    refusals: list[str]
    #: Why the figures may be of the load tool, and not of what it measures.
    doubts: list[str] = []
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        return all(verdict.held for verdict in self.verdicts)

    @property
    def offered(self) -> int:
        return sum(phase.offered for phase in self.phases if phase.measured)

    @property
    def accepted(self) -> int:
        return sum(sum(p.accepted.values()) for p in self.phases if p.measured)

    @property
    def measured_s(self) -> float:
        return sum(phase.seconds for phase in self.phases if phase.measured)

    def stage(self, stage: Stage) -> StageResult | None:
        return next((one for one in self.stages if one.stage is stage), None)

    def process(self, name: str) -> Process | None:
        return next((one for one in self.processes if one.name == name), None)


def result(finished: Finished) -> Result:
    workload, collected = finished.workload, finished.collected
    phases = _phases(finished)
    stages = _stages(finished)
    processes = _processes(finished)
    losses = _losses(finished)
    lost = len({tuple(one.seen[:2]) for one in collected.lost}) + finished.unseen
    found = Result(
        run=finished.settings.run,
        workload=workload.model_dump(mode="json"),
        began=datetime.fromtimestamp(finished.began_unix_s, UTC).isoformat(timespec="seconds"),
        build_s=round(finished.build_s, 3),
        goalstate=__version__,
        machine=machine(),
        broker=finished.broker,
        phases=phases,
        stages=stages,
        processes=processes,
        fleet=_fleet(collected),
        loopback_bytes=_loopback(finished),
        traffic_bytes=_traffic(collected),
        clocks=_clocks(finished),
        slowest_hosts=[(h, round(ms, 3), n) for h, ms, n in collected.slowest[:20]],
        lost=lost,
        lost_named=losses,
        not_joined=collected.not_joined,
        behind=finished.behind,
        refusals=collected.refusals[:20],
        doubts=_doubts(finished, processes),
        verdicts=[],
    )
    return found.model_copy(update={"verdicts": thresholds.judge(workload, found)})


def machine() -> dict[str, str]:
    """What a reader must know to compare figures with others."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "machine": f"{os.cpu_count()} cores, {model or platform.machine()}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
    }


def _phases(finished: Finished) -> list[PhaseResult]:
    outcomes = finished.collected.outcomes
    found = []
    for place, (phase, begin_s) in enumerate(finished.workload.spans()):
        of_phase = {key: n for key, n in outcomes.items() if key[0] == place}
        by_outcome = {
            str(outcome): sum(n for key, n in of_phase.items() if key[2] is outcome)
            for outcome in Outcome
        }
        accepted = {
            str(kind): n
            for (_, kind, outcome), n in of_phase.items()
            if outcome is Outcome.ACCEPTED
        }
        found.append(
            PhaseResult(
                name=phase.name,
                measured=phase.measured,
                begin_s=begin_s,
                seconds=phase.seconds,
                offered=sum(of_phase.values()),
                outcomes=by_outcome,
                accepted=accepted,
            )
        )
    return found


def _stages(finished: Finished) -> list[StageResult]:
    distributions, workload = finished.collected.distributions, finished.workload
    measured = {n: p.name for n, p in enumerate(workload.phases) if p.measured}
    found = []
    for stage in Stage:
        whole = distributions.of(stage, measured)
        if not whole.get_total_count():
            continue
        curve = whole.get_percentile_to_value_dict(list(_CURVE))
        found.append(
            StageResult(
                stage=stage,
                whole=Figures.of(whole),
                by_phase={
                    name: Figures.of(distributions.of(stage, [place]))
                    for place, name in measured.items()
                },
                curve=[(share, curve[share] / 1000) for share in _CURVE],
                seconds=[(at, Figures.of(one)) for at, one in distributions.seconds(stage)],
            )
        )
    return found


def _processes(finished: Finished) -> list[Process]:
    resources = finished.collected.resources
    begin, end = _measured(finished)
    found = []
    for name in sorted({name for of in resources.values() for name in of}):
        samples = sorted((at, of[name]) for at, of in resources.items() if name in of)
        used = [
            (at, round((use.cpu_s - before.cpu_s) / (at - earlier), 4), use.rss_bytes)
            for (earlier, before), (at, use) in pairwise(samples)
        ]
        inside = [use for at, use in samples if begin - 1 <= at <= end] or [samples[-1][1]]
        found.append(
            Process(
                name=name,
                used=used,
                cpu_s=round(inside[-1].cpu_s - inside[0].cpu_s, 3),
                begin_bytes=inside[0].rss_bytes,
                end_bytes=inside[-1].rss_bytes,
            )
        )
    return found


def _measured(finished: Finished) -> tuple[int, int]:
    """Seconds from the begin of the first measured phase to the end of the last."""
    spans = [(begin, begin + p.seconds) for p, begin in finished.workload.spans() if p.measured]
    return int(spans[0][0]), int(spans[-1][1])


def _loopback(finished: Finished) -> int:
    begin, end = _measured(finished)
    inside = [n for at, n in sorted(finished.collected.loopback.items()) if begin - 1 <= at <= end]
    return inside[-1] - inside[0] if inside else 0


def _traffic(collected: Collected) -> dict[str, int]:
    if len(collected.traffic) < 2:
        return {}
    begin, end = collected.traffic[0], collected.traffic[-1]
    return {name: number - begin.get(name, 0) for name, number in end.items()}


def _fleet(collected: Collected) -> dict[str, int]:
    found: dict[str, int] = {}
    for of_worker in collected.fleets.values():
        for name, number in of_worker.items():
            found[name] = found.get(name, 0) + number
    return found


def _clocks(finished: Finished) -> list[ClockResult]:
    found = []
    for worker, clock in finished.clocks.items():
        during = clocks.SAME if clock.same else clocks.over(clock.before, clock.after)
        found.append(
            ClockResult(
                worker=worker,
                role=finished.roles[worker],
                machine=clock.machine,
                same=clock.same,
                ahead_ms=during.ahead_ns / 1e6,
                error_ms=during.error_ns / 1e6,
            )
        )
    return found


def _losses(finished: Finished) -> list[str]:
    named = [
        f"change {one.seen[1]} of generator {one.seen[0]}: {one.seen[-1]} hosts that follow "
        f"{one.stream} did not get it"
        for one in finished.collected.lost[:20]
    ]
    if finished.unseen:
        named.append(f"{finished.unseen} accepted changes were seen by no host")
    return named


def _doubts(finished: Finished, processes: list[Process]) -> list[str]:
    begin, end = _measured(finished)
    return [
        f"{one.name} was busy for {one.cpu_s / (end - begin):.2f} of a processor core: it may be "
        "the limit, and not what it measures"
        for one in processes
        if one.name.startswith(OF_WORKERS) and one.cpu_s > BUSY * (end - begin)
    ]


# --- on disk ---


def save(found: Result, collected: Collected, directory: Path) -> None:
    """Write the directory, but for the report."""
    latency = directory / "latency"
    latency.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(found.model_dump_json(indent=1) + "\n", "utf-8")
    (directory / "workload.yaml").write_text(
        yaml.safe_dump(found.workload, sort_keys=False, allow_unicode=True), "utf-8"
    )
    for one in found.stages:
        with (latency / f"{one.stage.replace(' ', '-')}.hlog").open("w", encoding="utf-8") as file:
            log = HistogramLogWriter(file)
            log.output_log_format_version()
            log.output_base_time(collected.start_ns // 1_000_000)
            log.output_legend()
            for second, histogram in collected.distributions.seconds(one.stage):
                # The library takes a start of 0 for none.
                log.output_interval_histogram(histogram, second or 1e-9, second + 1, 1000)


def load(directory: Path) -> Result:
    """Raises LoadError."""
    file = directory / "result.json" if directory.is_dir() else directory
    try:
        document = json.loads(file.read_text("utf-8"))
        if document.get("format") != FORMAT:
            raise LoadError(
                f"{file} is of format {document.get('format')}, and this reads format {FORMAT}"
            )
        return Result.model_validate(document)
    except (OSError, ValueError, AttributeError) as error:
        raise LoadError(f"{file} is no result: {error}") from None
