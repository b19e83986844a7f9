"""Results side by side: what differs in what was done, and in what came of it.

Results of one workload can be repeats of each other: of those there is a median, with the lowest
and the highest. Without repeats a difference says little, since nobody knows how far two runs of
the same differ; where there are repeats, it is said whether the ranges overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict

from goalstate.scale.load import results
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.results import Result
from goalstate.scale.load.stages import PERCENTILES, Stage

_MIB = 2**20
#: A label that is a column's title has so many characters at most.
_SHORT = 16
ROLES = ("dpm", "broker", "fleet", "generator")
#: What is said of a workload in words makes no difference to what is done.
_WORDS = frozenset(("about",))


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Spread(_Model):
    """Of a figure over repeats."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """None of no values."""
        if not values:
            return None
        return cls(median=median(values), low=min(values), high=max(values), runs=len(values))

    def overlaps(self, other: Spread) -> bool:
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        low, middle, high = (f"{one:,.2f}" for one in (self.low, self.median, self.high))
        return middle if low == high else f"{middle} ({low}–{high})"


class Group(NamedTuple):
    """Repeats of one run; at least one."""

    label: str
    results: tuple[Result, ...]


class Cell(_Model):
    """A figure of one group, against that of the first."""

    spread: Spread
    #: None: it is of the first group, or there is nothing to divide by.
    change_percent: float | None = None
    #: Whether ranges overlap; None: one of them is of a single run.
    overlaps: bool | None = None


class Row(_Model):
    what: str
    #: By group; None: there is no such figure.
    cells: list[Cell | None]


class StageRows(_Model):
    stage: Stage
    rows: list[Row]


class Difference(_Model):
    """In what was done, or by what; a value for each group, of all of its runs."""

    what: str
    values: list[str]


class VerdictRow(_Model):
    what: str
    #: By group: "4 of 5 held", and limit and figures.
    held: list[int | None]
    found: list[str]


class GroupFacts(_Model):
    label: str
    runs: int
    passed: int
    began: list[str]


class Comparison(_Model):
    #: Empty: over all that was measured.
    phase: str
    groups: list[GroupFacts]
    differences: list[Difference]
    stages: list[StageRows]
    resources: list[Row]
    verdicts: list[VerdictRow]

    @property
    def titles(self) -> list[str]:
        """Of columns: labels, or where one is long, their numbers (see `named`)."""
        if all(len(group.label) <= _SHORT for group in self.groups):
            return [group.label for group in self.groups]
        return [f"[{number}]" for number in range(1, len(self.groups) + 1)]

    @property
    def named(self) -> list[str]:
        """Labels, with the number where that is the title."""
        return [
            group.label if group.label == title else f"{title} {group.label}"
            for group, title in zip(self.groups, self.titles, strict=True)
        ]

    @property
    def repeated(self) -> bool:
        """Whether there is a group of several runs."""
        return any(group.runs > 1 for group in self.groups)


def compare(groups: Sequence[Group], phase: str = "") -> Comparison:
    """All groups with the first. Raises LoadError where a group has no such phase."""
    for group in groups:
        for result in group.results:
            if phase and phase not in (p.name for p in result.phases if p.measured):
                raise LoadError(f"{group.label} has no measured phase {phase!r}")
    return Comparison(
        phase=phase,
        groups=[
            GroupFacts(
                label=group.label,
                runs=len(group.results),
                passed=sum(result.passed for result in group.results),
                began=[result.began for result in group.results],
            )
            for group in groups
        ],
        differences=_differences(groups),
        stages=_stages(groups, phase),
        resources=_resources(groups),
        verdicts=_verdicts(groups),
    )


# --- figures ---


def _stages(groups: Sequence[Group], phase: str) -> list[StageRows]:
    names = [f"p{percentile:g}" for percentile in PERCENTILES] + ["highest"]
    found = []
    for stage in Stage:
        rows = [
            _row(name, groups, partial(latency, stage=stage, name=name, phase=phase))
            for name in names
        ]
        if any(cell is not None for row in rows for cell in row.cells):
            found.append(StageRows(stage=stage, rows=rows))
    return found


def latency(result: Result, stage: Stage, name: str, phase: str = "") -> float | None:
    """In ms, of "p99" or "highest"; None where there is nothing of it."""
    found = result.stage(stage)
    figures = found and (found.by_phase.get(phase) if phase else found.whole)
    if not figures or not figures.count:
        return None
    return figures.max_ms if name == "highest" else figures.percentiles_ms[name.removeprefix("p")]


def role(process: str) -> str:
    """Of a process by its name: dpm, broker, fleet, generator."""
    return process.partition(" ")[0]


def processors(result: Result, of: str) -> float | None:
    """That all processes of a role kept busy on average, while it was measured."""
    of_role = [one.cpu_s for one in result.processes if role(one.name) == of]
    return sum(of_role) / result.measured_s if of_role else None


def mib(result: Result, of: str) -> float | None:
    """That all processes of a role held at the end."""
    of_role = [one.end_bytes for one in result.processes if role(one.name) == of]
    return sum(of_role) / _MIB if of_role else None


def accepted_rate(result: Result) -> float:
    """Changes a second, while it was measured."""
    return result.accepted / result.measured_s


def _resources(groups: Sequence[Group]) -> list[Row]:
    figures: list[tuple[str, Callable[[Result], float | None]]] = [
        ("changes offered a second", lambda r: r.offered / r.measured_s),
        ("changes accepted a second", accepted_rate),
        ("changes lost", lambda r: r.lost),
    ]
    figures += [(f"processors of {_article(one)}", partial(processors, of=one)) for one in ROLES]
    figures.append(("CPU ms of the DPM for an accepted change", _cpu_of_change))
    figures += [(f"MiB of {_article(one)} at the end", partial(mib, of=one)) for one in ROLES]
    figures += [
        ("MiB over the loopback device", lambda r: r.loopback_bytes / _MIB or None),
        ("MiB that hosts got", lambda r: r.fleet.get("bytes", 0) / _MIB or None),
        ("seconds to make the region", lambda r: r.build_s),
        ("ms that clocks may be wrong, at most", lambda r: _clock_error(r) or None),
    ]
    rows = [_row(what, groups, figure) for what, figure in figures]
    return [row for row in rows if any(cell is not None for cell in row.cells)]


def _article(role: str) -> str:
    return {"dpm": "the DPM", "broker": "the broker", "fleet": "fleets"}.get(role, f"{role}s")


def _cpu_of_change(result: Result) -> float | None:
    dpm = result.process("dpm")
    return dpm.cpu_s * 1000 / result.accepted if dpm and result.accepted else None


def _clock_error(result: Result) -> float:
    return max((clock.error_ms for clock in result.clocks), default=0.0)


def _row(what: str, groups: Sequence[Group], figure: Callable[[Result], float | None]) -> Row:
    spreads = [
        Spread.of([v for v in map(figure, group.results) if v is not None]) for group in groups
    ]
    return Row(what=what, cells=[_cell(n, spreads) for n in range(len(spreads))])


def _cell(number: int, spreads: Sequence[Spread | None]) -> Cell | None:
    first, spread = spreads[0], spreads[number]
    if spread is None:
        return None
    if not number or first is None:
        return Cell(spread=spread)
    return Cell(
        spread=spread,
        change_percent=100 * (spread.median / first.median - 1) if first.median else None,
        overlaps=spread.overlaps(first) if min(spread.runs, first.runs) > 1 else None,
    )


def _verdicts(groups: Sequence[Group]) -> list[VerdictRow]:
    whats = dict.fromkeys(v.what for g in groups for result in g.results for v in result.verdicts)
    found = []
    for what in whats:
        of_groups = [[v for r in g.results for v in r.verdicts if v.what == what] for g in groups]
        found.append(
            VerdictRow(
                what=what,
                held=[sum(v.held for v in of) if of else None for of in of_groups],
                found=[
                    "; ".join(dict.fromkeys(f"{v.found} ({v.limit})" for v in of))
                    for of in of_groups
                ],
            )
        )
    return found


# --- what was done ---


def _differences(groups: Sequence[Group]) -> list[Difference]:
    of_groups = [[dict(_facts(result)) for result in group.results] for group in groups]
    whats = dict.fromkeys(what for runs in of_groups for facts in runs for what in facts)
    found = []
    for what in whats:
        values = [list(dict.fromkeys(f.get(what, "–") for f in runs)) for runs in of_groups]
        if len({value for of in values for value in of}) > 1:
            found.append(Difference(what=what, values=[" | ".join(of) for of in values]))
    return found


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    for path, value in _flat(result.workload):
        if path not in _WORDS:
            yield f"workload: {path}", value
    yield "goalstate", result.goalstate
    yield from result.machine.items()
    # Without its URL: the port differs each time.
    yield "broker", result.broker.rpartition(" at ")[0] or result.broker


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        inner: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    else:
        yield path, str(value)
        return
    for key, one in inner:
        yield from _flat(one, f"{path}.{key}" if path else str(key))


# --- on disk ---


def read(places: Sequence[Path], *, group: bool = False) -> list[Group]:
    """Results, each in its directory; a directory with such directories in it is of repeats.

    With `group`, results that were made in the same way become repeats of each other too.
    Raises LoadError.
    """
    names = [place.resolve().name for place in places]
    labels = names if len(set(names)) == len(names) else [str(place) for place in places]
    found = [Group(label, _repeats(place)) for label, place in zip(labels, places, strict=True)]
    return grouped(found) if group else found


def grouped(groups: Sequence[Group]) -> list[Group]:
    """With those put together whose results were made in the same way."""
    found: dict[tuple[tuple[str, str], ...], Group] = {}
    for group in groups:
        how = tuple(_facts(group.results[0]))
        before = found.get(how)
        found[how] = (
            group if before is None else Group(before.label, before.results + group.results)
        )
    return list(found.values())


def _repeats(place: Path) -> tuple[Result, ...]:
    if not place.is_dir() or (place / "result.json").exists():
        return (results.load(place),)
    inside = sorted(file.parent for file in place.glob("*/result.json"))
    if not inside:
        raise LoadError(f"{place} is no result, and there is none in its directories")
    found = tuple(results.load(one) for one in inside)
    for one, result in zip(inside, found, strict=True):
        if result.workload != found[0].workload:
            raise LoadError(
                f"{inside[0]} and {one} are of different workloads, so they are no repeats: "
                f"name the directories one by one"
            )
    return found
