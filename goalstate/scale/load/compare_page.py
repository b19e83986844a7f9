"""The page of a comparison: the same plots, one over the other. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from goalstate.scale.load import figures, html
from goalstate.scale.load.compare import Cell, Comparison, Group, VerdictRow
from goalstate.scale.load.figures import COLOURS, Figure
from goalstate.scale.load.html import Plot, Raw, Section
from goalstate.scale.load.results import Result
from goalstate.scale.load.stages import Stage

#: Most look at these.
SHOWN = ("p50", "p90", "p99", "p99.9", "highest")
_SINGLE = (
    "Of what ran once nobody knows how far two such runs differ by themselves: repeat it before a "
    "difference is believed."
)
_OVERLAP = "~: the ranges of the repeats overlap, so the difference may be chance."


def render(groups: Sequence[Group], found: Comparison) -> str:
    labels = ", ".join(group.label for group in groups)
    of = f", phase {found.phase}" if found.phase else ""
    head = Raw(f'<div class="title"><h1>Comparison</h1></div>{html.text(labels + of)}')
    return html.page(f"Comparison: {labels}", head, _sections(groups, found))


def _sections(groups: Sequence[Group], found: Comparison) -> Iterator[Section]:
    order = [Stage.LAST_HOST, *(one for one in Stage if one is not Stage.LAST_HOST)]
    there = {rows.stage for rows in found.stages}
    stages = [stage for stage in order if stage in there]
    yield Section("runs", "Runs", [_runs(found)])
    yield Section("differences", "What was not the same", [_differences(found)])
    yield Section("stages", "Stages", [html.text(notes(found)), _stages(found)])
    if stages:
        yield Section("percentiles", "Percentiles", [_bars(found)])
        tails = {one.value: _tails(groups, one) for one in stages}
        words = html.text("All measured phases; a line for each run, a colour for each group.")
        yield Section(
            "distribution",
            "Distribution",
            [words, Plot("tail", tails, "stage", height=440, scales=True)],
        )
        times = {
            f"{stage.value}, {name}": _times(groups, stage, name)
            for stage in stages
            for name in ("p99", "p50")
        }
        over = Plot("latency", times, "stage", height=400, scales=True, link="time")
        words = html.text(f"Phases are those of {groups[0].label}.")
        yield Section("time", "Over time", [words, over])
    used = {
        f"{what}, {role}": _used(groups, role, what)
        for role in ("dpm", "broker")
        for what in ("processors", "MiB")
        if any(result.process(role) for group in groups for result in group.results)
    }
    plots = [Plot("used", used, "", height=360, link="time")] if used else []
    yield Section("resources", "Resources", [_resources(found), *plots])
    yield Section("verdicts", "What must hold", [_verdicts(found)])


def notes(found: Comparison) -> str:
    """What a reader must know of the differences."""
    first = f"Differences are from {found.named[0]}."
    if not found.repeated:
        return f"{first} {_SINGLE}"
    words = f"{first} Of repeats: the median, with lowest and highest. {_OVERLAP}"
    return words if all(group.runs > 1 for group in found.groups) else f"{words} {_SINGLE}"


# --- tables ---


def _runs(found: Comparison) -> Raw:
    rows = [
        (
            html.mark(group.passed == group.runs, f"{group.passed} of {group.runs}"),
            named,
            ", ".join(group.began),
        )
        for group, named in zip(found.groups, found.named, strict=True)
    ]
    return html.table(("passed", "group", "began"), [("", rows)])


def _differences(found: Comparison) -> Raw:
    if not found.differences:
        return html.text("Workload, machine, broker and versions were the same.")
    rows = [(one.what, *one.values) for one in found.differences]
    words = html.text("Figures differ for these reasons too:")
    return Raw(words + html.table(("what", *found.titles), [("", rows)]))


def _stages(found: Comparison) -> Raw:
    groups = [
        (rows.stage.value, [(row.what, *cells(row.cells)) for row in rows.rows])
        for rows in found.stages
    ]
    return html.table(columns("ms", found), groups)


def _resources(found: Comparison) -> Raw:
    rows = [(row.what, *cells(row.cells)) for row in found.resources]
    return html.table(columns("", found), [("", rows)], "named")


def columns(first: str, found: Comparison) -> Sequence[str]:
    titles = found.titles
    return [first, f"{titles[0]}#", *(c for title in titles[1:] for c in (f"{title}#", "#"))]


def cells(row: Sequence[Cell | None]) -> Iterator[str]:
    """The first figure; of the others the figure and its difference."""
    for number, cell in enumerate(row):
        yield str(cell.spread) if cell is not None else "–"
        if number:
            yield change(cell)


def change(cell: Cell | None) -> str:
    if cell is None or cell.change_percent is None:
        return ""
    return f"{cell.change_percent:+,.1f} %{' ~' if cell.overlaps else ''}"


def _verdicts(found: Comparison) -> Raw:
    rows = [
        (row.what, *(words if held is None else html.mark(held, words) for held, words in cells))
        for row, cells in verdicts(found)
    ]
    return html.table(("what", *found.titles), [("", rows)])


def verdicts(found: Comparison) -> Iterator[tuple[VerdictRow, list[tuple[bool | None, str]]]]:
    """Of each group, whether all of its runs held it (None: it was not asked), and the words."""
    for row in found.verdicts:
        cells: list[tuple[bool | None, str]] = []
        for group, held, values in zip(found.groups, row.held, row.found, strict=True):
            if held is None:
                cells.append((None, "–"))
            elif group.runs == 1:
                cells.append((held == 1, f"{values}: {'held' if held else 'NOT HELD'}"))
            else:
                cells.append((held == group.runs, f"{values}: held in {held} of {group.runs}"))
        yield row, cells


# --- plots ---


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _runs_of(groups: Sequence[Group]) -> Iterator[tuple[str, str, Result]]:
    """Names, colours, results."""
    for number, group in enumerate(groups):
        for run, result in enumerate(group.results, 1):
            name = group.label if len(group.results) == 1 else f"{group.label}, run {run}"
            yield name, _colour(number), result


def _tails(groups: Sequence[Group], stage: Stage) -> Figure:
    lines = ((name, colour, r.stage(stage)) for name, colour, r in _runs_of(groups))
    return figures.distribution((name, colour, of) for name, colour, of in lines if of is not None)


def _bars(found: Comparison) -> Plot:
    """Stages beside each other, a bar for each group, with the spread of repeats."""
    variants = {name: _bars_of(found, name) for name in SHOWN}
    return Plot("bars", variants, "percentile", height=380, scales=True)


def _bars_of(found: Comparison, name: str) -> Figure:
    data = []
    for number, group in enumerate(found.groups):
        of = [
            (rows.stage.value, cell.spread)
            for rows in found.stages
            for row in rows.rows
            if row.what == name and (cell := row.cells[number]) is not None
        ]
        bar: Figure = {
            "type": "bar",
            "name": figures.word(group.label),
            "x": [stage for stage, _ in of],
            "y": [spread.median for _, spread in of],
            "marker": {"color": _colour(number)},
            "hovertemplate": "%{y:,.2f} ms",
        }
        if group.runs > 1:
            bar["error_y"] = figures.error_bars([spread for _, spread in of])
        data.append(bar)
    axis = {"type": "category"}
    shape = figures.layout(x="", y="ms", xaxis=axis, barmode="group", hovermode="x unified")
    return {"data": data, "layout": shape}


def _times(groups: Sequence[Group], stage: Stage, name: str) -> Figure:
    data = []
    for label, colour, result in _runs_of(groups):
        found = result.stage(stage)
        if found is None or not found.seconds:
            continue
        points = figures.worst(found.seconds, figures.step_of(found.seconds[-1][0]))
        percentile = name.removeprefix("p")
        data.append(
            figures.line(
                label,
                colour,
                [at for at, _ in points],
                [of.percentiles_ms[percentile] if of else None for _, of in points],
                "%{y:,.2f} ms",
            )
        )
    return {"data": data, "layout": figures.timed(groups[0].results[0].phases, "ms")}


def _used(groups: Sequence[Group], role: str, what: str) -> Figure:
    data = []
    for label, colour, result in _runs_of(groups):
        process = result.process(role)
        if process is None or not process.used:
            continue
        points = figures.of_resource(process, what, figures.step_of(process.used[-1][0]))
        form = "%{y:,.2f}" if what == "processors" else "%{y:,.0f} MiB"
        xs, ys = [at for at, _ in points], [value for _, value in points]
        data.append(figures.line(label, colour, xs, ys, form))
    return {"data": data, "layout": figures.timed(groups[0].results[0].phases, what)}
