"""What must hold of a result. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from goalstate.scale.load.generator import Outcome
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.workload import Workload

if TYPE_CHECKING:
    from goalstate.scale.load.results import Result


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    what: str
    limit: str
    found: str
    held: bool


def judge(workload: Workload, result: Result) -> list[Verdict]:
    """Each threshold of the workload, and what always must hold."""
    wanted = workload.thresholds
    failed = sum(
        phase.outcomes[Outcome.REFUSED] + phase.outcomes[Outcome.UNANSWERED]
        for phase in result.phases
    )
    verdicts = [
        _at_most("changes lost", wanted.lost, result.lost),
        _at_most("changes refused or not answered", wanted.failed, failed),
        _at_most("hosts that did not join", 0, result.not_joined),
        Verdict(
            what="hosts have everything at the end",
            limit="all",
            found=result.behind or "all",
            held=not result.behind,
        ),
    ]
    if result.offered:
        share = result.accepted / result.offered
        verdicts.append(
            Verdict(
                what="share of the offered changes that was accepted",
                limit=f"≥ {wanted.least_share:.2%}",
                found=f"{share:.2%}",
                held=share >= wanted.least_share,
            )
        )
    for threshold in wanted.latency:
        where = f" in {threshold.phase}" if threshold.phase else ""
        what = f"{threshold.stage} p{threshold.percentile:g}{where}"
        limit = f"≤ {threshold.at_most_ms:g} ms"
        found = value(result, threshold.stage, threshold.percentile, threshold.phase)
        if found is None:
            verdicts.append(Verdict(what=what, limit=limit, found="nothing", held=False))
        else:
            held = found <= threshold.at_most_ms
            verdicts.append(Verdict(what=what, limit=limit, found=f"{found:.2f} ms", held=held))
    dpm = result.process("dpm")
    if wanted.dpm_growth is not None and dpm is not None:
        growth = dpm.end_bytes / dpm.begin_bytes
        verdicts.append(
            Verdict(
                what="the DPM's memory, at the end against the beginning",
                limit=f"≤ {wanted.dpm_growth:g} ×",
                found=f"{growth:.2f} ×",
                held=growth <= wanted.dpm_growth,
            )
        )
    return verdicts


def value(result: Result, stage: Stage, percentile: float, phase: str = "") -> float | None:
    """A percentile of a stage, in ms; None where there is nothing of it."""
    found = result.stage(stage)
    if found is None:
        return None
    figures = found.by_phase.get(phase) if phase else found.whole
    if figures is None or not figures.count:
        return None
    return figures.percentiles_ms.get(f"{percentile:g}")


def _at_most(what: str, limit: int, found: int) -> Verdict:
    return Verdict(what=what, limit=f"≤ {limit}", found=str(found), held=found <= limit)
