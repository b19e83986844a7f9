"""Reports: tables line up, and a goal is met or missed by the median, at its own size."""

from __future__ import annotations

import json

from bench import report
from bench.report import Goal, Section, Table
from bench.samples import Samples


def test_columns_line_up_and_numbers_are_set_to_the_right() -> None:
    rendered = report.table(Table(("name", "ports#"), [("a", "1"), ("longer", "1,000")]))
    assert rendered.splitlines() == [
        "| name   | ports |",
        "| ------ | ----: |",
        "| a      |     1 |",
        "| longer | 1,000 |",
    ]


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert "a\\|b" in report.table(Table(("x",), [("a|b",)]))


def test_a_goal_is_judged_by_the_median_on_the_side_that_it_is_for() -> None:
    most = Goal("time", 2.0, "s", Samples.of([1, 2, 9]))
    assert most.met
    assert not Goal("time", 1.9, "s", Samples.of([1, 2, 9])).met
    least = Goal("rate", 2.0, "/s", Samples.of([1, 2, 9]), at_least=True)
    assert least.met
    assert not Goal("rate", 2.1, "/s", Samples.of([1, 2, 9]), at_least=True).met


def test_a_smaller_run_neither_meets_nor_misses_a_goal() -> None:
    goal = Goal("time", 2.0, "s", Samples.of([1]), at_size=False)
    assert goal.met is None
    assert goal.verdict == "not at this size"


def test_a_missed_goal_is_seen_in_the_table() -> None:
    rendered = report.table(report.goals([Goal("time", 2.0, "s", Samples.of([3]))]))
    assert "≤ 2.00 s" in rendered
    assert "MISSED" in rendered


def test_a_section_says_how_it_was_measured_and_its_document_holds_every_value() -> None:
    goal = Goal("rate", 2.0, "/s", Samples.of([1, 2, 9]), at_least=True)
    section = Section("x", "Title", "How. " * 30, [goal], [Table(("a",), [("b",)])], {"k": 1})
    rendered = report.section(section)
    assert rendered.startswith("## Title\n\nHow.")
    assert max(map(len, rendered.splitlines())) <= 100
    document = json.loads(json.dumps(report.document(section)))
    assert document["goals"][0]["values"] == [1, 2, 9]
    assert document["goals"][0]["met"] is True
    assert document["data"] == {"k": 1}
