"""A sweep: one workload over a grid of values, and how figures grow along each axis. Pure.

<directory>/<point>/<repeat>/   a result each
            sweep.json          all points (`Sweep`)
            sweep.html          the same for people
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from goalstate.scale.load import compare
from goalstate.scale.load.compare import ROLES, Spread
from goalstate.scale.load.results import Result
from goalstate.scale.load.stages import PERCENTILES, Stage
from goalstate.scale.load.workload import WorkloadError

FORMAT = 1
Value = int | float | str | bool
#: What a name of a directory is made of, and how long it may be.
_UNUSUAL = re.compile(r"[^A-Za-z0-9._=,-]+")
_LONGEST = 120


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Axis(_Model):
    #: Into the workload, dotted.
    path: str
    values: list[Value]

    @property
    def numeric(self) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)


class Point(NamedTuple):
    """Of the grid: a value for each axis."""

    values: tuple[tuple[str, Value], ...]

    @property
    def overrides(self) -> list[str]:
        """As `workload.load` takes them: JSON is YAML."""
        return [f"{path}={json.dumps(value)}" for path, value in self.values]

    @property
    def name(self) -> str:
        """Of its directory; two points never have the same."""
        whole = ",".join(f"{path}={value}" for path, value in self.values)
        usual = _UNUSUAL.sub("_", whole)
        if usual == whole and len(whole) <= _LONGEST:
            return whole
        told_apart = hashlib.sha256("\n".join(self.overrides).encode()).hexdigest()[:8]
        return f"{usual[:_LONGEST]}-{told_apart}"

    def __str__(self) -> str:
        return ", ".join(f"{path}={value}" for path, value in self.values)


def parse_axis(text: str) -> Axis:
    """`PATH=V1,V2,…`, values as in YAML: quotes keep a comma in one. Raises WorkloadError."""
    path, equals, values = text.partition("=")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        parsed = None
    if not path or not equals or not parsed:
        raise WorkloadError(f"{text!r} is no PATH=V1,V2,… (as region.hosts=100,200)")
    for value in parsed:
        if not isinstance(value, int | float | str):
            raise WorkloadError(f"{text!r}: {value!r} is no number, no text, and not true or false")
    if len(set(parsed)) < len(parsed):
        raise WorkloadError(f"{text!r} has a value twice")
    return Axis(path=path, values=parsed)


def grid(axes: Sequence[Axis]) -> list[Point]:
    """All points, the last axis changing fastest. Raises WorkloadError."""
    paths = [axis.path for axis in axes]
    if not paths:
        raise WorkloadError("a sweep is over something: --over PATH=V1,V2,…")
    if len(set(paths)) < len(paths):
        raise WorkloadError(f"a path is swept twice: {', '.join(paths)}")
    return [
        Point(tuple(zip(paths, values, strict=True)))
        for values in product(*(axis.values for axis in axes))
    ]


# --- what came of it ---


class PointResult(_Model):
    values: dict[str, Value]
    #: In the sweep's directory.
    directory: str
    runs: int
    passed: int
    #: Why runs of it have no result.
    failed: list[str]
    #: By stage, by "p50" or "highest"; ms.
    stages: dict[Stage, dict[str, Spread]]
    #: By role, all processes of it together.
    processors: dict[str, Spread]
    mib: dict[str, Spread]
    #: Changes a second.
    accepted_rate: Spread | None
    lost: int


class Curve(_Model):
    """Along one axis, all else being the same."""

    axis: str
    #: Values of the other axes.
    others: dict[str, Value]
    #: Places of its points, by ascending value.
    points: list[int]


class Sweep(_Model):
    format: int = FORMAT
    workload: str
    overrides: list[str]
    axes: list[Axis]
    repeats: int
    points: list[PointResult]
    curves: list[Curve]

    @property
    def passed(self) -> bool:
        """Everything ran, and what must hold held."""
        return all(p.passed == p.runs == self.repeats and not p.failed for p in self.points)


def sweep(
    workload: str,
    overrides: Sequence[str],
    axes: Sequence[Axis],
    repeats: int,
    results: Mapping[Point, Sequence[Result]],
    failed: Mapping[Point, Sequence[str]],
) -> Sweep:
    """What there is of each point of the grid; some may not have run yet."""
    points = [_point(one, results.get(one, ()), failed.get(one, ())) for one in grid(axes)]
    return Sweep(
        workload=workload,
        overrides=list(overrides),
        axes=list(axes),
        repeats=repeats,
        points=points,
        curves=curves(axes, points),
    )


def curves(axes: Sequence[Axis], points: Sequence[PointResult]) -> list[Curve]:
    """Of each numeric axis; a curve has two points at least."""
    found = []
    for axis in axes:
        if not axis.numeric:
            continue
        lines: dict[str, list[int]] = {}
        for place, point in enumerate(points):
            if point.runs:
                others = {path: v for path, v in point.values.items() if path != axis.path}
                lines.setdefault(json.dumps(others), []).append(place)
        for others_text, places in lines.items():
            if len(places) > 1:
                places.sort(key=lambda place: float(points[place].values[axis.path]))
                others = json.loads(others_text)
                found.append(Curve(axis=axis.path, others=others, points=places))
    return found


def _point(point: Point, found: Sequence[Result], failed: Sequence[str]) -> PointResult:
    names = [*(f"p{percentile:g}" for percentile in PERCENTILES), "highest"]
    stages: dict[Stage, dict[str, Spread]] = {}
    for stage in Stage:
        spreads = {
            name: _spread([compare.latency(r, stage, name) for r in found]) for name in names
        }
        there = {name: spread for name, spread in spreads.items() if spread is not None}
        if there:
            stages[stage] = there
    busy = {role: _spread([compare.processors(r, role) for r in found]) for role in ROLES}
    mib = {role: _spread([compare.mib(r, role) for r in found]) for role in ROLES}
    return PointResult(
        values=dict(point.values),
        directory=point.name,
        runs=len(found),
        passed=sum(result.passed for result in found),
        failed=list(failed),
        stages=stages,
        processors={role: spread for role, spread in busy.items() if spread is not None},
        mib={role: spread for role, spread in mib.items() if spread is not None},
        accepted_rate=_spread([compare.accepted_rate(r) for r in found]),
        lost=sum(result.lost for result in found),
    )


def _spread(values: Sequence[float | None]) -> Spread | None:
    return Spread.of([value for value in values if value is not None])
