"""The page of a sweep: a table of its points, and how figures grow along each axis. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape

from goalstate.scale.load import figures, html
from goalstate.scale.load.compare import ROLES, Spread
from goalstate.scale.load.figures import COLOURS, Figure
from goalstate.scale.load.html import Plot, Raw, Section
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.sweep import Curve, PointResult, Sweep

FILE, DOCUMENT = "sweep.html", "sweep.json"
#: Of these stages there are columns.
SHOWN = (Stage.ACCEPTED, Stage.LAST_HOST)


def render(found: Sweep) -> str:
    title = f"{found.workload}: sweep"
    axes = "; ".join(f"{one.path} = {', '.join(map(str, one.values))}" for one in found.axes)
    facts = [
        ("over", axes),
        ("with", ", ".join(found.overrides)),
        ("repeats", str(found.repeats)),
        ("runs", f"{sum(p.runs for p in found.points)} of {len(found.points) * found.repeats}"),
    ]
    head = f'<div class="title"><h1>{escape(title)}</h1></div>{html.facts(facts)}'
    return html.page(title, Raw(head), _sections(found))


def _sections(found: Sweep) -> Iterator[Section]:
    yield Section("points", "Points", [html.table(columns(found), [("", list(_rows(found)))])])
    for number, axis in enumerate(dict.fromkeys(curve.axis for curve in found.curves)):
        mine = [curve for curve in found.curves if curve.axis == axis]
        latency = {
            stage.value: _latency(found, mine, stage)
            for stage in (Stage.LAST_HOST, *(one for one in Stage if one is not Stage.LAST_HOST))
            if any(stage in found.points[place].stages for c in mine for place in c.points)
        }
        parts: list[Raw | Plot] = []
        if found.repeats > 1:
            parts.append(html.text("The median of the repeats, with the lowest and the highest."))
        if latency:
            parts.append(Plot(f"latency-{number}", latency, "stage", height=420, scales=True))
        for what in ("processors", "MiB"):
            used = {
                role: _used(found, mine, role, what)
                for role in ROLES
                if any(role in found.points[place].processors for c in mine for place in c.points)
            }
            if used:
                id_ = f"{what.lower()}-{number}"
                parts.append(Plot(id_, used, f"{what} of", height=360, scales=True))
        yield Section(f"axis-{number}", f"Along {axis}", parts)
    failed = [f"{point.directory}: {why}" for point in found.points for why in point.failed]
    yield Section("failed", "Runs that failed", [html.listing(failed)] if failed else [])


# --- the table ---


def columns(found: Sweep) -> list[str]:
    return [
        *(f"{axis.path}{'#' if axis.numeric else ''}" for axis in found.axes),
        *("passed", "accepted/s#"),
        *(f"{stage} {name} ms#" for stage in SHOWN for name in ("p50", "p99")),
        *("DPM processors#", "DPM MiB#", "lost#"),
    ]


def rows(found: Sweep) -> Iterator[list[str]]:
    for point in found.points:
        failed = f", {len(point.failed)} failed" if point.failed else ""
        yield [
            *(f"{point.values[axis.path]}" for axis in found.axes),
            f"{point.passed} of {point.runs}{failed}",
            number(point.accepted_rate),
            *(
                number(point.stages.get(stage, {}).get(name))
                for stage in SHOWN
                for name in ("p50", "p99")
            ),
            number(point.processors.get("dpm")),
            number(point.mib.get("dpm")),
            f"{point.lost:,}" if point.runs else "–",
        ]


def number(spread: Spread | None) -> str:
    return "–" if spread is None else str(spread)


def _rows(found: Sweep) -> Iterator[Sequence[object]]:
    at = len(found.axes)
    for point, row in zip(found.points, rows(found), strict=True):
        good = point.runs == point.passed and not point.failed
        yield [*row[:at], html.mark(good, row[at]), *row[at + 1 :]]


# --- plots ---


def _latency(found: Sweep, curves: Sequence[Curve], stage: Stage) -> Figure:
    data = []
    for n, curve in enumerate(curves):
        for name, dash in (("p50", "dot"), ("p99", "solid")):

            def of(point: PointResult, name: str = name) -> Spread | None:
                return point.stages.get(stage, {}).get(name)

            data.append(_line(found, curve, f"{name} {_others(curve)}", n, dash, of))
    return {"data": data, "layout": _layout(found, curves, "ms from intended start")}


def _used(found: Sweep, curves: Sequence[Curve], role: str, what: str) -> Figure:
    def of(point: PointResult) -> Spread | None:
        return (point.processors if what == "processors" else point.mib).get(role)

    data = [_line(found, c, _others(c) or role, n, "solid", of) for n, c in enumerate(curves)]
    return {"data": data, "layout": _layout(found, curves, what)}


def _others(curve: Curve) -> str:
    return ", ".join(f"{path}={value}" for path, value in curve.others.items())


def _line(
    found: Sweep,
    curve: Curve,
    name: str,
    n: int,
    dash: str,
    of: Callable[[PointResult], Spread | None],
) -> Figure:
    points = [found.points[place] for place in curve.points]
    there = [(p.values[curve.axis], spread) for p in points if (spread := of(p)) is not None]
    xs, spreads = [float(x) for x, _ in there], [spread for _, spread in there]
    drawn = figures.line(
        name.strip(), COLOURS[n % len(COLOURS)], xs, [s.median for s in spreads], "%{y:,.2f}", 2.0
    )
    drawn["line"]["dash"] = dash
    drawn["marker"] = {"size": 7}
    if any(spread.runs > 1 for spread in spreads):
        drawn["error_y"] = figures.error_bars(spreads)
    return drawn


def _layout(found: Sweep, curves: Sequence[Curve], y: str) -> Figure:
    axis = curves[0].axis
    xs = sorted({float(found.points[p].values[axis]) for curve in curves for p in curve.points})
    shape: Figure = {"tickvals": xs, "ticktext": [f"{x:,g}" for x in xs]}
    if xs[0] > 0 and xs[-1] / xs[0] > 15:
        shape["type"] = "log"
    return figures.layout(
        x=figures.word(axis),
        y=y,
        xaxis=shape,
        yaxis={"rangemode": "tozero"},
        hovermode="x unified",
        showlegend=True,
    )
