"""Latencies as HDR histograms: of an interval, of a phase, of a whole run. Pure.

Histograms of workers are added up, which loses nothing: the sum is what one histogram of all values
would have been. Values are microseconds, from 1 to an hour, to three significant digits; what is
above counts as an hour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from goalstate.scale.load.stages import Stage

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3


def histogram() -> HdrHistogram:
    return HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)


def record_all(into: HdrHistogram, latencies_ns: NDArray[np.int64]) -> None:
    """Latencies, none of which is negative: those that are the same to the histogram, at once."""
    values = np.clip(latencies_ns // 1000, LOWEST_US, HIGHEST_US)
    # It keeps so many of the highest bits of a value.
    bits = into.sub_bucket_count.bit_length() - 1
    shifts = np.maximum(np.frexp(values)[1] - bits, 0)
    counts = np.bincount((shifts << bits) + (values >> shifts))
    for slot in map(int, np.flatnonzero(counts)):
        shift, kept = divmod(slot, 1 << bits)
        into.record_value(kept << shift, int(counts[slot]))


class Recorded:
    """What a histogram holds, slot by slot. The library walks through all of its slots in Python to
    tell one thing; a run asks for the figures of each second of each stage."""

    def __init__(self, histogram: HdrHistogram) -> None:
        self._histogram = histogram
        counts = np.ctypeslib.as_array(histogram.counts)
        slots = np.flatnonzero(counts)
        self._counts = counts[slots]
        self._lowest = [histogram.get_value_from_index(slot) for slot in map(int, slots)]
        self._sums = np.cumsum(self._counts)

    def mean(self) -> float:
        """As `HdrHistogram.get_mean_value`: each value counts as the middle of its slot."""
        if not self._lowest:
            return 0.0
        highest = self._histogram.get_highest_equivalent_value
        # The library's middle of a slot of one value is that value, and of 2n the upper of two.
        middle = [low + (highest(low) - low + 1) // 2 for low in self._lowest]
        return float(np.dot(self._counts, middle) / self._sums[-1])

    def percentile(self, share: float) -> int:
        """As `HdrHistogram.get_value_at_percentile`, for a share above 0 and up to 100."""
        if not self._lowest:
            return 0
        wanted = self._histogram.get_target_count_at_percentile(share)
        place = int(np.searchsorted(self._sums, wanted))
        value: int = self._histogram.get_highest_equivalent_value(self._lowest[place])
        return value


class Key(NamedTuple):
    """What a histogram is of: a phase by its place, and a stage."""

    phase: int
    stage: Stage

    def __str__(self) -> str:
        return f"{self.phase}/{self.stage}"

    @classmethod
    def parse(cls, text: str) -> Key:
        """Raises ValueError."""
        phase, _, stage = text.partition("/")
        return cls(int(phase), Stage(stage))


class Recorder:
    """Latencies of one worker, until they are taken."""

    def __init__(self) -> None:
        self._single: dict[Key, list[int]] = defaultdict(list)
        self._many: dict[Key, list[NDArray[np.int64]]] = defaultdict(list)

    def record(self, phase: int, stage: Stage, latency_ns: int) -> None:
        self._single[Key(phase, stage)].append(latency_ns)

    def record_all(self, phase: int, stage: Stage, latencies_ns: NDArray[np.int64]) -> None:
        self._many[Key(phase, stage)].append(latencies_ns.ravel())

    def take(self) -> dict[str, str]:
        """What was recorded since the last time, encoded, by key; then there is none."""
        single, self._single = self._single, defaultdict(list)
        many, self._many = self._many, defaultdict(list)
        taken = {}
        for key in sorted(single.keys() | many.keys()):
            one = histogram()
            found = [*many.get(key, ()), np.array(single.get(key, ()), dtype=np.int64)]
            record_all(one, np.concatenate(found))
            taken[str(key)] = one.encode().decode("ascii")
        return taken


class Distributions:
    """Of a run: histograms of each stage of each phase, and of each second of it.

    Those of seconds are kept encoded: there are thousands, and few bytes of each are not zeros.
    """

    def __init__(self) -> None:
        self.whole: dict[Key, HdrHistogram] = {}
        #: By the second in which the values were recorded, since the first phase began.
        self._seconds: dict[Stage, dict[int, list[str]]] = {}

    def add(self, second: int, encoded: Mapping[str, str]) -> None:
        """What a worker recorded in that second, as `Recorder.take` gives it. Raises ValueError."""
        for name, text in encoded.items():
            self._add(second, Key.parse(name), HdrHistogram.decode(text), text)

    def add_values(self, key: Key, values: Iterable[tuple[int, int]]) -> None:
        """Latencies (ns), each with the second in which it was recorded."""
        by_second: dict[int, list[int]] = {}
        for second, latency_ns in values:
            by_second.setdefault(second, []).append(latency_ns)
        for second, latencies in by_second.items():
            one = histogram()
            record_all(one, np.array(latencies, dtype=np.int64))
            self._add(second, key, one, one.encode().decode("ascii"))

    def of(self, stage: Stage, phases: Iterable[int]) -> HdrHistogram:
        """All of a stage in these phases."""
        total = histogram()
        for phase in phases:
            found = self.whole.get(Key(phase, stage))
            if found is not None:
                total.add(found)
        return total

    def second(self, stage: Stage, at: int) -> HdrHistogram | None:
        """Of one second; None where nothing was recorded in it."""
        texts = self._seconds.get(stage, {}).get(at)
        return _sum(texts) if texts else None

    def seconds(self, stage: Stage) -> Iterator[tuple[int, HdrHistogram]]:
        """Of each second in which something was recorded, in order."""
        for second, texts in sorted(self._seconds.get(stage, {}).items()):
            yield second, _sum(texts)

    def _add(self, second: int, key: Key, of: HdrHistogram, encoded: str) -> None:
        if key not in self.whole:
            self.whole[key] = histogram()
        self.whole[key].add(of)
        self._seconds.setdefault(key.stage, {}).setdefault(second, []).append(encoded)


def _sum(encoded: Iterable[str]) -> HdrHistogram:
    total = histogram()
    for text in encoded:
        total.add(HdrHistogram.decode(text))
    return total
