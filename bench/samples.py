"""Repeated measurements of one thing: their middle, their spread, and how numbers are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: a value that was seen, not one between two. `share` is from 0 to 1.

    Raises ValueError if there are no values.
    """
    if not values:
        raise ValueError("nothing was measured")
    rank = math.ceil(share * len(values) - 1e-9)
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True)
class Samples:
    """What the repeats of a measurement gave, in their order."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Samples:
        """Raises ValueError if there are none."""
        samples = cls(tuple(values))
        if not samples.values:
            raise ValueError("nothing was measured")
        return samples

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float:
        return percentile(self.values, 0.99)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    def __str__(self) -> str:
        """Median, and lowest to highest if there are several."""
        if len(self.values) == 1:
            return written(self.median)
        return f"{written(self.median)} ({written(self.lowest)}–{written(self.highest)})"


def written(value: float) -> str:
    """With three digits that mean something, and thousands set apart."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1 or not size:
        return f"{value:.2f}"
    return f"{value:.3g}"
