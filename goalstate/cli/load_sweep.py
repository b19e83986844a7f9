"""`load sweep`: runs over a grid, one after the other, and what grows with what."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from goalstate.cli import load
from goalstate.cli.errors import CommandError, ExitCode, InputError
from goalstate.cli.output import Output
from goalstate.scale.load import results, sweep_page
from goalstate.scale.load import sweep as sweeps
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.results import Result
from goalstate.scale.load.sweep import Axis, Point, Sweep
from goalstate.scale.load.workload import Workload, WorkloadError


def sweep(
    where: str, overrides: list[str], over: list[str], directory: Path, repeats: int, out: Output
) -> ExitCode:
    """Runs what is not there yet. Raises InputError."""
    try:
        axes = [sweeps.parse_axis(one) for one in over]
        points = sweeps.grid(axes)
    except WorkloadError as error:
        raise InputError(str(error), "e.g. --over region.hosts=100,200,400") from None
    # Before anything runs: each point is a workload, and what is there is of the same.
    wanted = {point: load.read(where, [*overrides, *point.overrides]) for point in points}
    name = wanted[points[0]].name
    there: dict[tuple[Point, int], Result] = {}
    for point in points:
        for repeat in range(1, repeats + 1):
            found = _there(directory / point.name / str(repeat), wanted[point])
            if found is not None:
                there[point, repeat] = found
    whole = len(points) * repeats
    if there:
        out.note(f"{len(there)} of {whole} runs are there already")
    failed: dict[Point, list[str]] = defaultdict(list)
    number = len(there)
    # Repeats last, so that a sweep that is cut short has something of each point.
    for repeat in range(1, repeats + 1):
        for point in points:
            if (point, repeat) in there:
                continue
            number += 1
            out.note(f"run {number} of {whole}: {point}")
            place = directory / point.name / str(repeat)
            _put_aside(place)
            try:
                there[point, repeat] = load.execute(wanted[point], place, out)
            except CommandError as error:
                failed[point].append(error.message)
                out.note(f"it failed: {error.message}", style="red")
            _keep(directory, _sweep(name, overrides, axes, repeats, there, failed))
    done = _sweep(name, overrides, axes, repeats, there, failed)
    _keep(directory, done)
    show(done, out)
    out.text(f"all of it is in {directory}; for people: {directory / sweep_page.FILE}")
    out.result(json.loads(done.model_dump_json()))
    return ExitCode.OK if done.passed else ExitCode.REFUSED


def show(found: Sweep, out: Output) -> None:
    out.table(sweep_page.columns(found), sweep_page.rows(found))
    for point in found.points:
        for why in point.failed:
            out.text(f"{point.directory} failed: {why}", style="red")


def _there(place: Path, wanted: Workload) -> Result | None:
    if not (place / "result.json").exists():
        return None
    try:
        found = results.load(place)
    except LoadError as error:
        raise InputError(str(error), "move it away, and it is run again") from None
    if found.workload != wanted.model_dump(mode="json"):
        raise InputError(
            f"{place} is of another workload than is to be swept", "give another --out"
        )
    return found


def _put_aside(place: Path) -> None:
    """What a run that was cut short left: its logs may be wanted."""
    if place.exists():
        number = 1
        while (aside := place.with_name(f"{place.name}.cut-{number}")).exists():
            number += 1
        place.rename(aside)


def _sweep(
    name: str,
    overrides: list[str],
    axes: list[Axis],
    repeats: int,
    there: dict[tuple[Point, int], Result],
    failed: dict[Point, list[str]],
) -> Sweep:
    of_points: dict[Point, list[Result]] = defaultdict(list)
    for (point, _), found in sorted(there.items(), key=lambda one: one[0][1]):
        of_points[point].append(found)
    return sweeps.sweep(name, overrides, axes, repeats, of_points, failed)


def _keep(directory: Path, found: Sweep) -> None:
    document = found.model_dump_json(indent=1) + "\n"
    (directory / sweep_page.DOCUMENT).write_text(document, "utf-8")
    (directory / sweep_page.FILE).write_text(sweep_page.render(found), "utf-8")
