"""A failing run made smaller: the same seed with fewer steps, which still breaks a law."""

from __future__ import annotations

from goalstate.scale.simulate.run import TYPES, Result, Run, Types

#: Runs that shrinking may take, unless told otherwise.
TRIES = 150


def shrink(failed: Result, types: Types = TYPES, tries: int = TRIES) -> Result:
    """The smallest failing run that was found, recorded. Leaving steps out may break another law.

    Steps go from the end first, then in ever smaller pieces from anywhere. Raises ValueError for a
    run that did not fail.
    """
    if not failed.violation:
        raise ValueError(f"the run of seed {failed.plan.seed} did not fail")
    best = failed.plan
    size = max(len(best.steps) // 2, 1)
    while tries > 0:
        end = len(best.steps)
        found = False
        while end > 0 and tries > 0:
            begin = max(end - size, 0)
            kept = best.steps[:begin] + best.steps[end:]
            candidate = best._replace(steps=kept)
            tries -= 1
            if Run(candidate, types).play().violation:
                best = candidate
                found = True
            end = begin
        if size == 1 and not found:
            break
        size = max(size // 2, 1)
    return Run(best, types, record=True).play()
