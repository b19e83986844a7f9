"""What a run of measurements says: goals, tables and what was inside the measured interval.

There is one form, Markdown with its columns aligned: it is read in a terminal and in a file alike.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.plots import Plot
from bench.samples import Samples, written


@dataclass(frozen=True)
class Goal:
    """A bound, and what was measured of it."""

    what: str
    bound: float
    unit: str
    measured: Samples
    #: The bound is the least that will do; else the most.
    at_least: bool = False
    #: Measured at the size that the goal is about. A smaller run proves nothing either way.
    at_size: bool = True

    @property
    def met(self) -> bool | None:
        """Does the median keep the bound? None: that cannot be said at this size."""
        if not self.at_size:
            return None
        median = self.measured.median
        return median >= self.bound if self.at_least else median <= self.bound

    @property
    def verdict(self) -> str:
        return {True: "met", False: "MISSED", None: "not at this size"}[self.met]


@dataclass(frozen=True)
class Table:
    """Rows under columns; a column named `…#` is of numbers and set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""


@dataclass(frozen=True)
class Section:
    """One measurement."""

    name: str
    title: str
    #: What ran, and what the measured interval holds.
    method: str
    goals: Sequence[Goal]
    tables: Sequence[Table]
    #: All that was measured, for programs.
    data: Mapping[str, Any] = field(default_factory=dict)
    plots: Sequence[Plot] = ()


def table(one: Table) -> str:
    """As Markdown, its columns aligned."""
    right = [column.endswith("#") for column in one.columns]
    cells = [[column.removesuffix("#") for column in one.columns]]
    cells += [[str(cell).replace("|", "\\|") for cell in row] for row in one.rows]
    widths = [max(3, *(len(row[place]) for row in cells)) for place in range(len(right))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = (
        "-" * (width - 1) + (":" if to_right else "-")
        for width, to_right in zip(widths, right, strict=True)
    )
    lines = [line(cells[0]), f"| {' | '.join(rule)} |", *map(line, cells[1:])]
    return "\n".join([f"{one.title}\n", *lines] if one.title else lines)


def goals(of: Iterable[Goal]) -> Table:
    """Each goal beside what was measured."""
    return Table(
        ("measured", "goal#", "median (lowest–highest)#", "verdict"),
        [
            (
                goal.what,
                f"{'≥' if goal.at_least else '≤'} {written(goal.bound)} {goal.unit}".rstrip(),
                goal.measured,
                goal.verdict,
            )
            for goal in of
        ],
    )


def section(one: Section) -> str:
    method = (textwrap.fill(paragraph, 100) for paragraph in one.method.split("\n\n"))
    parts = [f"## {one.title}", *method, *map(table, one.tables)]
    if one.goals:
        parts.append(table(goals(one.goals)))
    return "\n\n".join(parts) + "\n"


def head(title: str, facts: Mapping[str, str]) -> str:
    """The beginning of a report: under which circumstances it was made."""
    return f"# {title}\n\n" + "".join(f"- {name}: {fact}\n" for name, fact in facts.items())


def document(one: Section) -> dict[str, Any]:
    """The same for programs."""
    return {
        "name": one.name,
        "title": one.title,
        "goals": [
            {
                "what": goal.what,
                "bound": goal.bound,
                "at_least": goal.at_least,
                "unit": goal.unit,
                "median": goal.measured.median,
                "values": list(goal.measured.values),
                "met": goal.met,
            }
            for goal in one.goals
        ],
        "data": dict(one.data),
    }
