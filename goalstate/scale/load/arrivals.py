"""When changes are to start: open loop, a function of the phase and of a seed. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from random import Random

from goalstate.scale.load.workload import Arrival, Constant, Poisson, Ramp


def starts(
    arrival: Arrival, seconds: float, random: Random, *, part: int = 0, parts: int = 1
) -> Iterator[float]:
    """Seconds after the phase's begin at which changes are to start, ascending, all below
    `seconds`.

    Of `parts` generators each makes its share: constant arrivals interleave, so that those of all
    are evenly spaced; Poisson processes of a share of the rate each add up to one of the whole.
    """
    match arrival:
        case Constant(rate=rate):
            # From the number, not by adding up: no drift. A generator's first is its place.
            number = part
            while (at := number / rate) < seconds:
                yield at
                number += parts
        case Poisson(rate=rate):
            at = 0.0
            while (at := at + random.expovariate(rate / parts)) < seconds:
                yield at
        case Ramp(start=start, end=end):
            number = part
            while (found := _when(number, start, end, seconds)) is not None:
                yield found
                number += parts


def expected(arrival: Arrival, seconds: float) -> float:
    """How many changes a phase has, on average where that is random."""
    match arrival:
        case Ramp(start=start, end=end):
            return (start + end) / 2 * seconds
        case _:
            return arrival.rate * seconds


def _when(number: int, start: float, end: float, seconds: float) -> float | None:
    """When the rate, integrated, reaches `number`; None: not before the end."""
    # start * t + slope * t² / 2 = number
    slope = (end - start) / seconds
    if not slope:
        at = number / start
    else:
        under = start * start + 2 * slope * number
        if under < 0:
            return None  # the rate falls to where it never gets there
        # The form that does not cancel, whatever the slope's sign.
        root = math.sqrt(under)
        at = 2 * number / (start + root) if start + root else 0.0
    return at if at < seconds else None
