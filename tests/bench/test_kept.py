"""What is kept of measurements: each stands until it is made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import kept
from bench.plots import Plot, drawn
from bench.report import Goal, Section, Table
from bench.samples import Samples

ORDER = ["one", "two", "three"]


def section(name: str, value: float) -> Section:
    goal = Goal(f"goal of {name}", 2.0, "s", Samples.of([value]))
    plot = Plot(f"{name}-long", f"How long {name} takes", "s", ["median"], [("us", [value])])
    table = Table(("a#",), [(value,)])
    return Section(name, f"Of {name}", "How.", [goal], [table], plots=[plot])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "STORE", tmp_path / "results.json")
    monkeypatch.setattr(kept, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(kept, "PICTURES", tmp_path / "plots")
    return tmp_path


def test_a_measurement_replaces_its_own_result_and_no_other(place: Path) -> None:
    kept.keep([section("two", 1), section("one", 3)], {"date": "2026-01-01 10:00 UTC"}, ORDER)
    kept.keep([section("one", 1), section("three", 4)], {"date": "2026-02-02 10:00 UTC"}, ORDER)
    text = (place / "RESULTS.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| goal of") and "2026" in line]
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["goal of one", "≤ 2.00 s", "1.00", "met", "2026-02-02"],
        ["goal of two", "≤ 2.00 s", "1.00", "met", "2026-01-01"],
        ["goal of three", "≤ 2.00 s", "4.00", "MISSED", "2026-02-02"],
    ]
    assert text.index("## Of one") < text.index("## Of two") < text.index("## Of three")
    assert "date: 2026-01-01 10:00 UTC" in text


def test_what_is_no_measurement_any_more_is_dropped(place: Path) -> None:
    kept.keep([section("old", 1)], {"date": "d"}, ["old"])
    kept.keep([section("one", 1)], {"date": "d"}, ORDER)
    assert list(json.loads((place / "results.json").read_text("utf-8"))) == ["one"]


def test_pictures_are_of_what_is_kept_and_are_told_in_words(place: Path) -> None:
    kept.keep([section("old", 1), section("one", 3)], {"date": "d"}, ["old", "one"])
    kept.keep([section("two", 2)], {"date": "d"}, ORDER)
    names = {file.name for file in (place / "plots").iterdir()}
    assert names == {"one-long.svg", "two-long.svg"}
    text = (place / "RESULTS.md").read_text("utf-8")
    assert "![How long one takes, s: us 3.00](plots/one-long.svg)" in text


def test_the_results_of_the_project_are_made_from_what_is_kept() -> None:
    here = Path(kept.__file__).parent
    stored = json.loads((here / "results.json").read_text("utf-8"))
    assert (here / "RESULTS.md").read_text("utf-8") == kept.rendered(stored)
    pictures = {file.stem: file.read_text("utf-8") for file in (here / "plots").iterdir()}
    assert pictures == {
        plot.name: drawn(plot) for one in stored.values() for plot in kept.plots(one)
    }
