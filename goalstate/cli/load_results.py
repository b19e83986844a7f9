"""`load show`, `report`, `compare`, `workloads`, `schema`: what does not need a region."""

from __future__ import annotations

import json
from pathlib import Path

from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.output import Output
from goalstate.scale.load import compare, compare_page, page, results, workload
from goalstate.scale.load.compare import Comparison
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.results import Result

_RESULT = "give directories that `goalstate load run` wrote"


def read(directory: Path) -> Result:
    """Raises InputError."""
    try:
        return results.load(directory)
    except LoadError as error:
        raise InputError(str(error), _RESULT) from None


def report(directory: Path, out: Output) -> ExitCode:
    """Make the page of a result anew."""
    found = read(directory)
    file = (directory if directory.is_dir() else directory.parent) / page.FILE
    _write(file, page.render(found))
    out.text(str(file))
    out.result({"report": str(file)})
    return ExitCode.OK


def show_result(directory: Path, out: Output) -> ExitCode:
    found = read(directory)
    out.text(
        f"{found.workload.get('name')}, {found.run}, {found.began}, goalstate {found.goalstate}"
    )
    out.text(f"{found.machine.get('machine')}; {found.broker}")
    show(found, out)
    out.result(json.loads(found.model_dump_json()))
    return ExitCode.OK


def compare_results(
    places: list[Path], *, group: bool, phase: str, html: Path | None, out: Output
) -> ExitCode:
    try:
        groups = compare.read(places, group=group)
        found = compare.compare(groups, phase)
    except LoadError as error:
        raise InputError(str(error), _RESULT) from None
    if len(groups) == 1 and not found.repeated:
        raise InputError("there is nothing to compare it with", "give two results, or more")
    if html is not None:
        _write(html, compare_page.render(groups, found))
    show_comparison(found, out)
    if html is not None:
        out.text(f"for people: {html}")
    out.result(json.loads(found.model_dump_json()))
    return ExitCode.OK


def workloads(name: str | None, out: Output) -> ExitCode:
    """List the workloads that are shipped, or print one."""
    shipped = workload.shipped()
    if name is not None:
        if name not in shipped:
            raise InputError(
                f"no workload {name!r} is shipped", f"there are: {', '.join(shipped) or 'none'}"
            )
        out.text(shipped[name].rstrip("\n"))
        out.result({"name": name, "text": shipped[name]})
        return ExitCode.OK
    read_ones = [workload.parse(text, of) for of, text in shipped.items()]
    out.table(
        ("workload", "hosts#", "VPCs", "seconds#", "about"),
        [
            (
                one.name,
                f"{one.region.hosts:,}",
                one.region.vpcs,
                f"{one.seconds:g}",
                " ".join(one.about.split()),
            )
            for one in read_ones
        ],
    )
    out.result(
        {
            "workloads": [
                {
                    "name": one.name,
                    "about": one.about,
                    "hosts": one.region.hosts,
                    "vpcs": one.region.vpcs,
                    "seconds": one.seconds,
                }
                for one in read_ones
            ]
        }
    )
    return ExitCode.OK


def schema(out: Output) -> ExitCode:
    found = workload.schema()
    out.text(json.dumps(found, indent=2, ensure_ascii=False))
    out.result(found)
    return ExitCode.OK


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}", "") from None


# --- tables ---


def show_comparison(found: Comparison, out: Output) -> None:
    out.table(
        ("group", "runs#", "passed#"),
        [
            (named, group.runs, group.passed)
            for group, named in zip(found.groups, found.named, strict=True)
        ],
    )
    out.text()
    if found.differences:
        out.text("what was done, or by what, was not the same:", style="yellow")
        out.table(("what", *found.titles), [(one.what, *one.values) for one in found.differences])
    else:
        out.text("workload, machine, broker and versions were the same")
    out.text()
    out.text(compare_page.notes(found))
    out.text()
    out.table(
        ("stage", *compare_page.columns("ms", found)),
        [
            (rows.stage if row is shown[0] else "", row.what, *compare_page.cells(row.cells))
            for rows in found.stages
            for shown in [[row for row in rows.rows if row.what in compare_page.SHOWN]]
            for row in shown
        ],
    )
    out.text()
    out.table(
        compare_page.columns("", found),
        [(row.what, *compare_page.cells(row.cells)) for row in found.resources],
    )
    out.text()
    out.table(
        ("must hold", *found.titles),
        [(row.what, *(words for _, words in cells)) for row, cells in compare_page.verdicts(found)],
    )


def show(found: Result, out: Output) -> None:
    """The tables of a result."""
    out.text()
    out.table(
        ("stage", "values#", "p50 ms#", "p90 ms#", "p99 ms#", "p99.9 ms#", "most ms#"),
        [
            (
                one.stage,
                f"{one.whole.count:,}",
                *(f"{one.whole.percentiles_ms[p]:,.2f}" for p in ("50", "90", "99", "99.9")),
                f"{one.whole.max_ms:,.2f}",
            )
            for one in found.stages
        ],
    )
    out.text()
    out.table(
        ("phase", "seconds#", "offered#", "accepted#", "refused#", "unanswered#", "starved#"),
        [
            (
                phase.name if phase.measured else f"{phase.name} (not measured)",
                f"{phase.seconds:g}",
                f"{phase.offered:,}",
                *(
                    f"{phase.outcomes[o]:,}"
                    for o in ("accepted", "refused", "unanswered", "starved")
                ),
            )
            for phase in found.phases
        ],
    )
    out.text()
    out.table(
        ("process", "CPU s#", "processors#", "MiB at the beginning#", "at the end#"),
        [
            (
                one.name,
                f"{one.cpu_s:.1f}",
                f"{one.cpu_s / found.measured_s:.2f}",
                f"{one.begin_bytes / 2**20:,.0f}",
                f"{one.end_bytes / 2**20:,.0f}",
            )
            for one in found.processes
        ],
    )
    traffic = {**found.traffic_bytes, "on the loopback device": found.loopback_bytes}
    moved = ", ".join(f"{n / 2**20:,.1f} {name}" for name, n in traffic.items())
    out.text(f"MiB while it was measured: {moved}")
    out.text()
    for one in found.clocks:
        if not one.same:
            out.text(
                f"clock of {one.machine}: {one.ahead_ms:+.3f} ms, give or take {one.error_ms:.3f}"
            )
    for refusal in found.refusals[:3]:
        out.text(f"refused: {refusal}")
    for named in found.lost_named[:5]:
        out.text(named)
    out.table(
        ("must hold", "limit", "found", ""),
        [(v.what, v.limit, v.found, "held" if v.held else "NOT HELD") for v in found.verdicts],
    )
    for doubt in found.doubts:
        out.text(doubt, style="yellow")
