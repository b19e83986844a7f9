"""The simulator of faults for tests: seeds are played up to the first that breaks a law.

A run is a region in virtual time, in this process: DPMs and agents (`Types` says of which classes)
on a bus that drops, repeats, reorders, delays and is cut, with crashes, restarts and clocks that
jump. `goalstate.scale.simulate` is the simulator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from goalstate.cli.simulation import replay
from goalstate.scale.simulate.plan import plan
from goalstate.scale.simulate.run import TYPES, Result, Run, Types
from goalstate.scale.simulate.shrink import shrink
from goalstate.testkit.errors import LawBroken, hide

__tracebackhide__ = hide

#: Runs that making a failed one smaller may take.
TRIES = 60


class Simulation:
    """Plays runs of the simulator: call it with a seed and a number of runs."""

    def __call__(
        self, seed: int = 1, runs: int = 100, *, types: Types = TYPES, tries: int = TRIES
    ) -> Counter[str]:
        """Play the seeds from `seed` on; gives what happened, how often.

        `types`: the engine of the DPMs and the core of the agents to be played. Raises LawBroken
        for the first run that breaks a law, with a transcript of it, made as small as `tries` runs
        can, and the command that repeats it.
        """
        counts = Counter[str]()
        for number in range(seed, seed + runs):
            result = Run(plan(number), types).play()
            if result.violation:
                raise _broken(result, types, tries)
            counts += result.counts
        return counts

    def first_violation(self, seeds: Iterable[int], *, types: Types = TYPES) -> Result | None:
        """The first run that breaks a law; None: there is none."""
        results = (Run(plan(seed), types).play() for seed in seeds)
        return next((result for result in results if result.violation), None)


def _broken(failed: Result, types: Types, tries: int) -> LawBroken:
    small = shrink(failed, types, tries)
    lines = [
        f"seed {failed.plan.seed} breaks a law: {failed.violation}",
        f"what is left of {len(failed.plan.steps)} steps when {tries} runs made it smaller:",
        *(f"  {line}" for line in small.transcript),
    ]
    if types == TYPES:
        lines.append(f"again: {replay(small.plan)}")
    return LawBroken("\n".join(lines), small)
