"""Plots of results, as plotly's figures: plain documents, which the page draws. Pure.

Plotly reads some HTML in names and labels, so that all words of users are escaped here too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from goalstate.scale.load.compare import Spread, role
from goalstate.scale.load.results import Figures, PhaseResult, Process, Result, StageResult
from goalstate.scale.load.stages import Stage

Figure = dict[str, Any]

#: Told apart also by those who see some colours alike (Okabe and Ito's, darkened for lines).
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#c2578f", "#b8860b", "#3a9bd0", "#5f4b8b", "#4a4a4a"),
    *("#8c2d04", "#4c7a34"),
)
_OF_STAGE = dict(zip(Stage, COLOURS, strict=False))
_OF_ROLE = {"dpm": COLOURS[0], "broker": COLOURS[1], "fleet": COLOURS[2], "generator": COLOURS[3]}
_OF_OUTCOME = {
    "accepted": "#2e8b6b",
    "refused": "#b42318",
    "unanswered": "#e08b3e",
    "starved": "#8a8f98",
}
#: On a path one after the other. That a change is accepted is told to the client beside it.
_PATH = (Stage.SENT, Stage.PUBLISHED, Stage.FIRST_HOST, Stage.LAST_HOST)
#: So many processes at most are each named in a legend.
_NAMED = 8
#: So many points at most are drawn along the time.
_POINTS = 1800
#: Below this, a generator is on time; a logarithmic axis would be mostly of that.
_LEAST_MS = 0.01


def layout(*, x: str, y: str, **more: Any) -> Figure:
    """What all plots have in common."""
    axis = {"gridcolor": "#e8ebef", "linecolor": "#b8c0ca", "zeroline": False, "automargin": True}
    found: Figure = {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1f2933"},
        "paper_bgcolor": "#fff",
        "plot_bgcolor": "#fff",
        "margin": {"l": 60, "r": 16, "t": 34, "b": 84},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "hoverlabel": {"font": {"size": 12}},
        "xaxis": axis | {"title": {"text": x}},
        "yaxis": axis | {"title": {"text": y}},
    }
    for key in ("xaxis", "yaxis"):
        found[key] |= more.pop(key, {})
    return found | more


def word(text: str, longest: int = 60) -> str:
    """A user's word, for a plot."""
    return escape(text if len(text) <= longest else f"{text[: longest - 1]}…")


# --- over time ---


def worst(seconds: Sequence[tuple[int, Figures]], step: int) -> list[tuple[int, Figures | None]]:
    """The worst second of each `step`, as far as there is something: honest where it is thinned.

    Where there is nothing, there is None: a line must not be drawn through a stall.
    """
    if not seconds:
        return []
    parts: dict[int, list[Figures]] = {}
    for at, figures in seconds:
        parts.setdefault(at // step, []).append(figures)
    found: list[tuple[int, Figures | None]] = []
    for part in range(min(parts), max(parts) + 1):
        inside = parts.get(part)
        found.append((part * step, max(inside, key=lambda one: one.max_ms) if inside else None))
    return found


def step_of(last: int) -> int:
    """Seconds for one point, of a plot up to second `last`."""
    return max(1, math.ceil((last + 1) / _POINTS))


def over_time(result: Result, stage: StageResult) -> Figure:
    lines = (
        ("p50", "#7fb2dd", 1.5),
        ("p90", "#2f7fc1", 1.5),
        ("p99", "#d55e00", 2.0),
        ("highest", "#6b7280", 1.0),
    )
    points = worst(stage.seconds, step_of(stage.seconds[-1][0]))
    data = []
    for name, colour, width in lines:
        ys = [
            None
            if of is None
            else of.max_ms
            if name == "highest"
            else of.percentiles_ms[name.removeprefix("p")]
            for _, of in points
        ]
        xs = [at for at, _ in points]
        data.append(line(name, colour, xs, ys, "%{y:,.2f} ms", width))
    return {"data": data, "layout": timed(result.phases, "ms from intended start")}


def line(
    name: str,
    colour: str,
    xs: Sequence[float],
    ys: Sequence[float | None],
    form: str,
    width: float = 1.5,
) -> Figure:
    """Along the time; `form` is of a value, for the pointer."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(xs) <= 120 else "lines",
        "name": word(name),
        "x": list(xs),
        "y": list(ys),
        "line": {"color": colour, "width": width},
        "marker": {"size": 4},
        "hovertemplate": form,
    }


def error_bars(spreads: Sequence[Spread]) -> Figure:
    """From the lowest to the highest, around the median."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [one.high - one.median for one in spreads],
        "arrayminus": [one.median - one.low for one in spreads],
        "thickness": 1.2,
        "width": 3,
    }


def resources(result: Result, what: str) -> Figure:
    """`what`: "processors" or "MiB". Of many processes the legend has roles alone."""
    last = max((one.used[-1][0] for one in result.processes if one.used), default=0)
    step = step_of(last)
    many = len(result.processes) > _NAMED
    roles = Counter(role(one.name) for one in result.processes)
    data = []
    for of, count in roles.items() if many else ():
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": word(of if count == 1 else f"{of}: {count} processes"),
                "x": [None],
                "y": [None],
                "legendgroup": word(of),
                "line": {"color": _of_role(of)},
            }
        )
    for process in result.processes:
        points = of_resource(process, what, step)
        form = "%{y:,.2f}" if what == "processors" else "%{y:,.0f} MiB"
        xs, ys = [at for at, _ in points], [value for _, value in points]
        drawn = line(process.name, _of_role(role(process.name)), xs, ys, form)
        if many:
            drawn |= {"legendgroup": word(role(process.name)), "showlegend": False}
        data.append(drawn)
    shape = timed(result.phases, what)
    if many:
        shape |= {"hovermode": "closest"}
    return {"data": data, "layout": shape}


def _of_role(of: str) -> str:
    return _OF_ROLE.get(of, COLOURS[7])


def of_resource(process: Process, what: str, step: int) -> list[tuple[int, float]]:
    """Processors on average, or the highest memory, of each `step` seconds."""
    parts: dict[int, list[float]] = {}
    for at, processors, rss in process.used:
        value = processors if what == "processors" else rss / 2**20
        parts.setdefault(at // step, []).append(value)
    if what == "processors":
        return [(p * step, sum(of) / len(of)) for p, of in sorted(parts.items())]
    return [(part * step, max(of)) for part, of in sorted(parts.items())]


def timed(phases: Sequence[PhaseResult], y: str) -> Figure:
    """Along the time, with phases shaded and named."""
    whole = sum(phase.seconds for phase in phases)
    shapes, names = [], []
    for number, phase in enumerate(phases):
        colour = ("#eaf2fa", "#f6f9fc")[number % 2] if phase.measured else "#ececec"
        shapes.append(
            {
                "type": "rect",
                "layer": "below",
                "xref": "x",
                "yref": "paper",
                "x0": phase.begin_s,
                "x1": phase.begin_s + phase.seconds,
                "y0": 0,
                "y1": 1,
                "fillcolor": colour,
                "line": {"width": 0},
            }
        )
        # What fits above its part of a narrow page; the whole is there for the pointer.
        room = int(phase.seconds / whole * 90)
        name = {
            "text": word(phase.name, room),
            "hovertext": word(phase.name),
            "x": phase.begin_s,
            "xanchor": "left",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 12, "color": "#616e7c"},
        }
        if room >= 4:
            names.append(name)
        if not phase.measured:
            turned = {"text": "warm-up", "textangle": -90, "yanchor": "top"}
            names.append(name | turned)
    return layout(
        x="seconds since the first phase began",
        y=y,
        shapes=shapes,
        annotations=names,
        hovermode="x unified",
        xaxis={"rangemode": "nonnegative"},
        yaxis={"rangemode": "tozero"},
        # Names of phases below the buttons.
        margin={"l": 60, "r": 16, "t": 56, "b": 84},
    )


# --- distributions ---


def tail(stage: StageResult) -> list[tuple[float, float]]:
    """(1/(1 − share), ms) up to what so many values can say: one of n is the highest."""
    end = max(1, stage.whole.count)
    points = [(1 / (1 - p / 100), ms) for p, ms in stage.curve if p < 100 and ms >= _LEAST_MS]
    return [*((x, ms) for x, ms in points if round(x, 6) < end), (float(end), stage.whole.max_ms)]


def distribution(lines: Iterable[tuple[str, str, StageResult]]) -> Figure:
    """Curves by name and colour, on the tail's logarithmic axis."""
    data, most = [], 1.0
    for name, colour, stage in lines:
        points = tail(stage)
        most = max(most, points[-1][0])
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": word(name),
                "x": [x for x, _ in points],
                "y": [ms for _, ms in points],
                "customdata": [f"{100 * (1 - 1 / x):.6g}" for x, _ in points],
                "line": {"color": colour, "width": 1.8},
                "hovertemplate": "p%{customdata}: %{y:,.2f} ms",
            }
        )
    powers = range(math.ceil(math.log10(most)) + 1)
    axis = {
        "type": "log",
        "tickvals": [10**n for n in powers],
        "ticktext": ["0 %"] + [f"{100 * (1 - 10**-n):.{max(n - 2, 0)}f} %" for n in powers[1:]],
    }
    shape = layout(
        x="share of the values that are at most so slow",
        y="ms from intended start",
        xaxis=axis,
        yaxis={"type": "log"},
        hovermode="closest",
    )
    return {"data": data, "layout": shape}


def distributions(result: Result) -> Figure:
    return distribution((one.stage, _OF_STAGE[one.stage], one) for one in result.stages)


# --- where the time goes ---


def steps(of: Mapping[Stage, Figures], percentile: str) -> list[tuple[Stage, float]]:
    """Of the stages on the path, in order: how much each adds to a percentile, in ms.

    Of what is below an earlier stage's nothing is added: a percentile of one stage is of other
    changes than that of another.
    """
    found, reached = [], 0.0
    for stage in _PATH:
        if stage not in of:
            continue
        value = of[stage].percentiles_ms[percentile]
        found.append((stage, max(0.0, value - reached)))
        reached = max(reached, value)
    return found


def breakdown(of: Mapping[Stage, Figures]) -> Figure:
    """One bar for each of some percentiles, each on a scale of its own."""
    shown = ("50", "90", "99", "99.9")
    data: list[Figure] = []
    shape = layout(x="", y="", barmode="stack", bargap=0.35)
    shape |= {"grid": {"rows": len(shown), "columns": 1, "pattern": "independent", "ygap": 0.5}}
    for number, percentile in enumerate(shown):
        axis = str(number + 1) if number else ""
        ends = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "y": [f"p{percentile}"]}
        for stage, added in steps(of, percentile):
            data.append(
                ends
                | {
                    "type": "bar",
                    "orientation": "h",
                    "name": stage.value,
                    "legendgroup": stage.value,
                    "showlegend": not number,
                    "x": [added],
                    "text": [f"{added:,.2f}"],
                    "textposition": "inside",
                    "insidetextanchor": "start",
                    "textangle": 0,
                    "marker": {"color": _OF_STAGE[stage]},
                    "hovertemplate": "adds %{x:,.2f} ms",
                }
            )
        if Stage.ACCEPTED in of:
            data.append(
                ends
                | {
                    "type": "scatter",
                    "mode": "markers",
                    "name": "accepted, as the client saw it",
                    "legendgroup": "accepted",
                    "showlegend": not number,
                    "x": [of[Stage.ACCEPTED].percentiles_ms[percentile]],
                    "marker": {
                        "symbol": "line-ns",
                        "size": 34,
                        "line": {"width": 3, "color": "#1f2933"},
                    },
                    "hovertemplate": "%{x:,.2f} ms",
                }
            )
        shape[f"xaxis{axis}"] = shape["xaxis"] | {
            "rangemode": "tozero",
            "title": {"text": "ms" if number == len(shown) - 1 else ""},
        }
        shape[f"yaxis{axis}"] = shape["yaxis"] | {"type": "category", "fixedrange": True}
    return {"data": data, "layout": shape}


# --- outcomes ---


def outcomes(phases: Sequence[PhaseResult]) -> Figure:
    """Changes a second by what came of them, for each phase."""
    named = [_numbered(n, phase) for n, phase in enumerate(phases, 1)]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": outcome,
            "y": named,
            "x": [phase.outcomes.get(outcome, 0) / phase.seconds for phase in phases],
            "customdata": [phase.outcomes.get(outcome, 0) for phase in phases],
            "marker": {"color": colour},
            "hovertemplate": f"{outcome}: %{{customdata:,}} (%{{x:,.1f}}/s)<extra></extra>",
        }
        for outcome, colour in _OF_OUTCOME.items()
        if any(phase.outcomes.get(outcome) for phase in phases)
    ]
    shape = layout(
        x="changes a second",
        y="",
        barmode="stack",
        bargap=0.35,
        showlegend=True,
        yaxis={"type": "category", "autorange": "reversed"},
        hovermode="closest",
    )
    shape["legend"] |= {"traceorder": "normal"}
    return {"data": data, "layout": shape}


def _numbered(number: int, phase: PhaseResult) -> str:
    """Two phases whose names are cut alike stay apart."""
    return f"{number}. {word(phase.name, 24)}{'' if phase.measured else ' (warm-up)'}"
