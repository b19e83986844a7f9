"""The frame of a page: one HTML file with everything in it, plots to be explored included.

Laws: a page fetches nothing, so it can be kept, sent and opened anywhere; its policy has the
browser see to that. Whatever is put in is escaped here or in `figures`, unless it is a `Raw`, which
is made of escaped parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

#: Of what a page consists, it has itself; nothing else may be had, from anywhere.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
_HERE = resources.files("goalstate.scale.load")


class Raw(str):
    """HTML, in which everything is escaped that has to be."""

    __slots__ = ()


class Plot(NamedTuple):
    """A figure, or several under names from which the reader chooses."""

    id: str
    variants: dict[str, dict[str, Any]]
    #: What is chosen between.
    choice: str = ""
    #: Pixels.
    height: int = 380
    #: Whether the reader may switch the vertical axis between linear and logarithmic.
    scales: bool = False
    #: Plots of one link show the same part of their horizontal axes.
    link: str = ""


class Section(NamedTuple):
    id: str
    title: str
    #: In their order; plots are put where they stand.
    parts: Sequence[Raw | Plot]


def page(title: str, head: Raw, sections: Iterable[Section]) -> str:
    """The whole file."""
    kept = [section for section in sections if section.parts]
    plots = {part.id: part for section in kept for part in section.parts if isinstance(part, Plot)}
    links = "".join(f'<a href="#{one.id}">{escape(one.title)}</a>' for one in kept)
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_asset('page.css')}</style>",
            f"</head>\n<body>\n<header>{head}</header>\n<nav>{links}</nav>\n<main>",
            *(_section(one) for one in kept),
            "</main>",
            f'<script type="application/json" id="plots">{_embedded(plots)}</script>',
            f"<script>{_plotly()}</script>" if plots else "",
            f"<script>\n{_asset('page.js')}</script>",
            "</body>\n</html>\n",
        )
    )


def text(words: str) -> Raw:
    """A paragraph."""
    return Raw(f"<p>{escape(words)}</p>")


def mark(good: bool, words: str) -> Raw:
    return Raw(f'<span class="{"good" if good else "bad"}">{escape(words)}</span>')


def listing(items: Iterable[str]) -> Raw:
    return Raw("<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")


def facts(pairs: Iterable[tuple[str, str]]) -> Raw:
    """Names and values, those without a value left out."""
    rows = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs if value)
    return Raw(f"<dl>{''.join(rows)}</dl>")


def folded(title: str, inner: Raw) -> Raw:
    return Raw(f"<details><summary>{escape(title)}</summary>{inner}</details>")


def code(words: str) -> Raw:
    return Raw(f"<pre>{escape(words)}</pre>")


def table(
    columns: Sequence[str],
    groups: Iterable[tuple[str, Iterable[Sequence[object]]]],
    kind: str = "",
) -> Raw:
    """Rows in groups, each under its title, if it has one; a column named `…#` is of numbers.

    `kind`: "named", the first column has long names; "bars", and the last one bars.
    """
    right = [column.endswith("#") for column in columns]

    def cells(tag: str, row: Sequence[object]) -> Iterator[str]:
        for number, cell in zip(right, row, strict=True):
            inner = cell if isinstance(cell, Raw) else escape(str(cell))
            kind = ' class="number"' if number else ""
            yield f"<{tag}{kind}>{inner}</{tag}>"

    parts = [f"<thead><tr>{''.join(cells('th', [c.removesuffix('#') for c in columns]))}</tr>"]
    parts.append("</thead>")
    for title, rows in groups:
        parts.append("<tbody>")
        if title:
            span = f'<th colspan="{len(columns)}" class="group">{escape(title)}</th>'
            parts.append(f"<tr>{span}</tr>")
        parts += (f"<tr>{''.join(cells('td', row))}</tr>" for row in rows)
        parts.append("</tbody>")
    return Raw(f'<div class="wide {kind}"><table>{"".join(parts)}</table></div>')


def _section(section: Section) -> str:
    inner = "\n".join(_plot(one) if isinstance(one, Plot) else one for one in section.parts)
    return (
        f'<section id="{section.id}"><h2>{escape(section.title)}</h2>\n<div>{inner}</div></section>'
    )


def _plot(plot: Plot) -> str:
    controls = ""
    if len(plot.variants) > 1:
        options = "".join(f"<option>{escape(name)}</option>" for name in plot.variants)
        controls += f'<label>{escape(plot.choice)} <select data-of="{plot.id}">{options}</select>'
        controls += "</label>"
    if plot.scales:
        controls += f'<label><input type="checkbox" data-of="{plot.id}"> logarithmic</label>'
    return (
        f'<div class="controls">{controls}</div>'
        f'<div class="plot" id="{plot.id}" style="height:{plot.height}px"></div>'
    )


def _embedded(plots: dict[str, Plot]) -> str:
    document = {
        id_: {"figures": list(plot.variants.values()), "link": plot.link}
        for id_, plot in plots.items()
    }
    # "</script>" in a name must not end the element.
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _plotly() -> str:
    # The package's own function imports all of it, which takes a second.
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
