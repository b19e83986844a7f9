"""The results that are kept: of each measurement the last one that was written, with its machine.

They are in results.json, and RESULTS.md and its pictures are made from it, so that one measurement
can be made again without all others.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.plots import Plot, drawn
from bench.report import Section, Table

STORE = Path(__file__).with_name("results.json")
RESULTS = Path(__file__).with_name("RESULTS.md")
PICTURES = Path(__file__).with_name("plots")
_ABOUT = """\
# Measurements

Written by `python -m bench --write`, with `--only NAME` for one of them alone: each says when and
on what it was measured. A goal is met or missed by the median; beside it are the lowest and the
highest value of the repeats in that run. Everything (broker, publisher, hosts, clients) shares the
one machine.
"""


def keep(sections: Iterable[Section], facts: Mapping[str, str], order: Sequence[str]) -> None:
    """Put sections in the place of what was kept of these measurements. `order`: all names."""
    kept: dict[str, Any] = json.loads(STORE.read_text("utf-8")) if STORE.exists() else {}
    for one in sections:
        kept[one.name] = {
            "facts": dict(facts),
            "goals": [[str(cell) for cell in row] for row in report.goals(one.goals).rows],
            "text": report.section(one),
            "plots": [plot._asdict() for plot in one.plots],
        }
    kept = {name: kept[name] for name in order if name in kept}
    STORE.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", "utf-8")
    RESULTS.write_text(rendered(kept), "utf-8")
    draw(kept)


def draw(kept: Mapping[str, Any]) -> None:
    """Write all pictures, and leave no others."""
    files = {f"{plot.name}.svg": drawn(plot) for one in kept.values() for plot in plots(one)}
    PICTURES.mkdir(exist_ok=True)
    for file in PICTURES.glob("*.svg"):
        if file.name not in files:
            file.unlink()
    for name, text in files.items():
        (PICTURES / name).write_text(text, "utf-8")


def plots(one: Mapping[str, Any]) -> list[Plot]:
    """Of one measurement."""
    return [Plot(**plot) for plot in one.get("plots", ())]


def rendered(kept: Mapping[str, Any]) -> str:
    """RESULTS.md."""
    columns = ("measured", "goal#", "median (lowest–highest)#", "verdict", "on")
    rows = [
        (*row, one["facts"]["date"].partition(" ")[0])
        for one in kept.values()
        for row in one["goals"]
    ]
    parts = [_ABOUT, report.table(Table(columns, rows)) + "\n"]
    for one in kept.values():
        title, _, rest = one["text"].partition("\n")
        facts = "; ".join(f"{name}: {fact}" for name, fact in one["facts"].items())
        pictures = "".join(
            f"\n![{plot.alt}]({PICTURES.name}/{plot.name}.svg)\n" for plot in plots(one)
        )
        parts.append(f"{title}\n\n{textwrap.fill(facts, 100)}\n{pictures}{rest}")
    return "\n".join(parts)
