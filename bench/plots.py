"""Pictures of results, as SVG: bars of what has names, curves over what has sizes.

A picture is a function of its values alone: the same results give the same bytes. It brings its own
white ground, for pages that are dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from bench.samples import written

#: Where values differ by more than this, the scale is logarithmic.
LOG_FROM = 50.0
_WIDTH, _TOP, _LEFT, _SPAN = 800, 64, 210, 490
_BAR, _GAP = 14, 8
#: Of curves.
_HEIGHT, _BOTTOM = 260, 56
_COLOURS = ("#1f6fb4", "#d9822b", "#3a8f4d")
_TEXT, _LINE, _FAINT = "#222222", "#dddddd", "#777777"
_MISSING = "not measured"


class Plot(NamedTuple):
    """One question, and its answers."""

    #: Of its file, without `.svg`.
    name: str
    title: str
    unit: str
    #: Each has a value in every row.
    series: Sequence[str]
    #: Names with their values. None: not measured.
    rows: Sequence[tuple[str, Sequence[float | None]]]
    #: Names are numbers of this, and values are on curves over them; empty: values are bars.
    over: str = ""

    @property
    def alt(self) -> str:
        """The same in words."""
        told = "; ".join(
            f"{name} {' and '.join(dict.fromkeys(map(_written, values)))}"
            for name, values in self.rows
        )
        series = f" ({' and '.join(self.series)})" if len(self.series) > 1 else ""
        return f"{self.title}, {self.unit}{series}: {told}"


class Scale(NamedTuple):
    """From values to shares of the span."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """From 0, or from a power of ten below all values that are more than that."""
        some = [value for value in values if value > 0] or [1.0]
        if max(some) / min(some) <= LOG_FROM:
            return cls(0.0, max(some), False)
        low, high = math.ceil(math.log10(min(some))) - 1, math.ceil(math.log10(max(some)))
        return cls(10.0**low, 10.0**high, True)

    def share(self, value: float) -> float:
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= self.low:
            return 0.0
        return math.log(value / self.low) / math.log(self.high / self.low)

    @property
    def ticks(self) -> list[float]:
        """Powers of ten, or some round values from 0 on."""
        if self.log:
            decades = round(math.log10(self.high / self.low))
            return [self.low * 10.0**n for n in range(decades + 1)]
        rough = self.high / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * n for n in (1, 2, 5, 10) if unit * n >= rough)
        return [step * n for n in range(int(self.high / step + 1e-9) + 1)]


def drawn(plot: Plot) -> str:
    """The picture."""
    values = [value for _, of_row in plot.rows for value in of_row if value is not None]
    scale = Scale.of(values)
    height, body = (_curves if plot.over else _bars)(plot, scale)
    note = f"{plot.unit}, logarithmic scale" if scale.log else plot.unit
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(plot.title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(16, 24, plot.title, 'font-size="15" font-weight="bold"'),
        _text(16, 44, note, fill=_FAINT),
        *(_legend(plot.series) if len(plot.series) > 1 else ()),
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _bars(plot: Plot, scale: Scale) -> tuple[int, list[str]]:
    each = _BAR * len(plot.series)
    bottom = _TOP + len(plot.rows) * (each + _GAP)
    body = []
    for tick in scale.ticks:
        x = _LEFT + _SPAN * scale.share(tick)
        body.append(_line(x, _TOP, x, bottom))
        body.append(_text(x, bottom + 16, f"{tick:,.10g}", 'text-anchor="middle"', _FAINT))
    for place, (name, values) in enumerate(plot.rows):
        top = _TOP + place * (each + _GAP) + _GAP / 2
        weight = ' font-weight="bold"' if name.startswith("goalstate") else ""
        body.append(_text(_LEFT - 8, top + each / 2 + 4, name, f'text-anchor="end"{weight}'))
        for number, value in enumerate(values):
            y = top + number * _BAR
            width = 0.0 if value is None else _SPAN * scale.share(value)
            body.append(
                f'<rect x="{_LEFT}" y="{y:.1f}" width="{width:.2f}" height="{_BAR - 2}" '
                f'fill="{_COLOURS[number]}" class="bar"/>'
            )
            fill = _FAINT if value is None else _TEXT
            body.append(_text(_LEFT + width + 6, y + 10, _written(value), fill=fill))
    return bottom + 28, body


def _curves(plot: Plot, scale: Scale) -> tuple[int, list[str]]:
    sizes = [float(name) for name, _ in plot.rows]
    across = Scale(min(sizes), max(sizes), log=True)
    bottom = _TOP + 16 + _HEIGHT
    left, span = 80, _WIDTH - 160
    # Values at the ends are not written into what is beside.
    first, reach = left + 24, span - 48
    body = []
    for tick in scale.ticks:
        y = bottom - _HEIGHT * scale.share(tick)
        body.append(_line(left, y, left + span, y))
        body.append(_text(left - 8, y + 4, f"{tick:,.10g}", 'text-anchor="end"', _FAINT))
    for size in sizes:
        x = first + reach * across.share(size)
        body.append(_text(x, bottom + 18, f"{size:,.0f}", 'text-anchor="middle"', _FAINT))
    body.append(_text(left + span / 2, bottom + 40, plot.over, 'text-anchor="middle"', _FAINT))
    for number in range(len(plot.series)):
        points = [
            (first + reach * across.share(size), bottom - _HEIGHT * scale.share(value), value)
            for size, (_, values) in zip(sizes, plot.rows, strict=True)
            if (value := values[number]) is not None
        ]
        way = " ".join(f"{x:.2f},{y:.2f}" for x, y, _ in points)
        colour = _COLOURS[number]
        body.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, value in points:
            body.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="4" fill="{colour}" class="point"/>')
            body.append(_text(x, y - 9, _written(value), 'text-anchor="middle"'))
    return bottom + _BOTTOM, body


def _legend(series: Sequence[str]) -> Iterator[str]:
    for number, name in enumerate(series):
        x = _WIDTH - 150 * (len(series) - number)
        yield f'<rect x="{x}" y="35" width="10" height="10" fill="{_COLOURS[number]}"/>'
        yield _text(x + 16, 44, name)


def _written(value: float | None) -> str:
    return _MISSING if value is None else written(value)


def _text(x: float, y: float, text: str, how: str = "", fill: str = _TEXT) -> str:
    how = f" {how}" if how else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}"{how}>{escape(text)}</text>'


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{_LINE}"/>'
