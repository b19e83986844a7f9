"""`simulate-faults`: runs of the fault simulator, seed after seed, up to the first that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.files import write_bytes
from goalstate.cli.output import Output
from goalstate.process import ended_alike
from goalstate.scale.simulate.many import play_many
from goalstate.scale.simulate.plan import Plan, plan
from goalstate.scale.simulate.run import Result, Run
from goalstate.scale.simulate.shrink import shrink


@ended_alike()
def simulate_faults(
    seed: int,
    runs: int,
    only: str,
    tries: int,
    transcript: Path | None,
    out: Output,
    *,
    jobs: int = 1,
) -> ExitCode:
    """Play the seeds from `seed` on; `only`: steps of the plan, as 1,4,7, and no others."""
    steps = _steps(only)
    if steps is not None and runs != 1:
        raise InputError("--only is of one run", "leave --runs out")
    counts = Counter[str]()
    seconds = 0.0
    played = 0
    failed: Result | None = None
    # A single run may be wanted for its transcript alone.
    results = _alone(_plan(seed, steps)) if runs == 1 else play_many(seed, runs, jobs)
    with out.progress("runs", runs) as bar, closing(results):
        for result in results:
            counts += result.counts
            seconds += result.seconds
            played += 1
            bar.advance()
            if result.violation:
                failed = result
                break
            last = result
    if failed is not None and steps is None:
        out.note(f"seed {failed.plan.seed} fails: {failed.violation}", style="red")
        out.note(f"leaving steps out, in at most {tries} runs")
        failed = shrink(failed, tries=tries)
    shown = failed if failed is not None else last
    if transcript is not None:
        if not shown.transcript:
            shown = Run(shown.plan, record=True).play()
        write_bytes(transcript, ("\n".join(shown.transcript) + "\n").encode())
    again = replay(failed.plan) if failed is not None else ""
    out.result(
        {
            "seed": seed,
            "runs": played,
            "virtual_seconds": round(seconds, 3),
            "counts": dict(sorted(counts.items())),
            "failed_seed": failed.plan.seed if failed is not None else None,
            "violation": failed.violation if failed is not None else "",
            "transcript": failed.transcript if failed is not None else [],
            "replay": again,
        }
    )
    if failed is not None:
        for line in failed.transcript:
            out.text(line)
        out.text()
    out.table(("happened", "times#"), [*sorted(counts.items()), ("virtual hours", _hours(seconds))])
    out.text()
    if failed is None:
        out.text(f"{played} runs, seeds {seed} to {seed + played - 1}: no law was broken")
        return ExitCode.OK
    out.text(f"seed {failed.plan.seed}: {failed.violation}", style="red")
    out.text(f"again: {again}")
    return ExitCode.REFUSED


def _alone(one: Plan) -> Generator[Result, None, None]:
    yield Run(one, record=True).play()


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f}"


def _steps(only: str) -> frozenset[int] | None:
    try:
        return frozenset(int(number) for number in only.split(",")) if only else None
    except ValueError:
        raise InputError(f"{only!r} is no list of steps", "give --only as 1,4,7") from None


def _plan(seed: int, steps: frozenset[int] | None) -> Plan:
    whole = plan(seed)
    return whole if steps is None else whole.only(steps)


def replay(failed: Plan) -> str:
    """The command that plays a plan of a seed, or some of its steps, once more."""
    command = f"goalstate simulate-faults --seed {failed.seed}"
    if len(failed.steps) < len(plan(failed.seed).steps):
        command += f" --only {','.join(str(step.number) for step in failed.steps) or 0}"
    return command
