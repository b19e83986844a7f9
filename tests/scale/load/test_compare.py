"""Comparisons: figures against the first, spreads of repeats, and what was not the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from goalstate.scale.load import compare, compare_page
from goalstate.scale.load.compare import Comparison, Group, Spread
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.results import Result
from goalstate.scale.load.stages import Stage
from tests.scale.load import made_results
from tests.scale.load.pages import Page


def group(label: str, *results: Result) -> Group:
    return Group(label, results)


def times(*ms: float) -> tuple[Result, ...]:
    return tuple(made_results.result(ms=one) for one in ms)


def cell(found: Comparison, stage: Stage, what: str, number: int) -> compare.Cell:
    rows = next(rows for rows in found.stages if rows.stage is stage)
    of = next(row for row in rows.rows if row.what == what).cells[number]
    assert of is not None
    return of


def resource(found: Comparison, what: str) -> list[compare.Cell | None]:
    return next(row for row in found.resources if row.what == what).cells


def test_figures_are_compared_with_those_of_the_first() -> None:
    found = compare.compare([Group("a", times(2.0)), Group("b", times(3.0))])
    first, second = (cell(found, Stage.ACCEPTED, "p99", n) for n in (0, 1))
    assert first.spread.median == 4 * 4 * 2.0
    assert first.change_percent is None
    assert second.change_percent == pytest.approx(50.0)
    assert cell(found, Stage.LAST_HOST, "highest", 1).spread.median == 10 * 10 * 3.0


def test_of_single_runs_it_is_not_said_whether_they_overlap() -> None:
    found = compare.compare([Group("a", times(2.0)), Group("b", times(3.0))])
    assert cell(found, Stage.SENT, "p50", 1).overlaps is None
    assert not found.repeated
    assert "repeat it" in compare_page.notes(found)


def test_repeats_have_median_and_range_and_overlap_or_not() -> None:
    found = compare.compare(
        [
            Group("a", times(2.0, 4.0, 3.0)),
            Group("overlaps", times(3.5, 6.0)),
            Group("apart", times(5.0, 6.0)),
        ]
    )
    assert cell(found, Stage.SENT, "p50", 0).spread == Spread(median=3, low=2, high=4, runs=3)
    assert cell(found, Stage.SENT, "p50", 1).overlaps is True
    assert cell(found, Stage.SENT, "p50", 2).overlaps is False
    assert found.repeated


def test_a_range_is_printed_where_it_is_one() -> None:
    assert str(Spread(median=2, low=1, high=1234.5, runs=3)) == "2.00 (1.00–1,234.50)"
    assert str(Spread(median=2, low=2, high=2.001, runs=2)) == "2.00"


def test_processes_of_a_role_are_taken_together() -> None:
    found = compare.compare([group("a", made_results.result(dpm_cpu_s=4.0))])
    (fleets,) = resource(found, "processors of fleets")
    assert fleets is not None
    assert fleets.spread.median == (3.0 + 1.0) / 8
    (a_change,) = resource(found, "CPU ms of the DPM for an accepted change")
    assert a_change is not None
    assert a_change.spread.median == pytest.approx(4000 / 99)


def test_a_stage_that_one_has_not_is_no_difference() -> None:
    without = made_results.result()
    without = without.model_copy(update={"stages": without.stages[:2]})
    found = compare.compare([group("a", without), group("b", made_results.result())])
    rows = next(rows for rows in found.stages if rows.stage is Stage.APPLIED)
    first, second = rows.rows[0].cells
    assert first is None
    assert second is not None
    assert second.change_percent is None


def test_what_was_not_the_same_is_named_by_its_place() -> None:
    other = made_results.result(
        overrides=["region.hosts=40", "about=other words"],
        goalstate="2.0",
        machine={"machine": "4 cores", "system": "Linux", "libraries": "one 1.0"},
    )
    found = compare.compare([group("a", made_results.result()), group("b", other)])
    assert {one.what: one.values for one in found.differences} == {
        "workload: region.hosts": ["20", "40"],
        "goalstate": ["1.0", "2.0"],
        "machine": ["2 cores", "4 cores"],
    }


def test_runs_of_a_group_that_are_not_the_same_are_told() -> None:
    found = compare.compare(
        [group("a", made_results.result(), made_results.result(goalstate="2.0"))]
    )
    assert [(one.what, one.values) for one in found.differences] == [("goalstate", ["1.0 | 2.0"])]


def test_a_broker_of_the_same_kind_at_another_port_is_the_same() -> None:
    other = made_results.result(broker="a broker at pulsar://127.0.0.1:7777")
    found = compare.compare([group("a", made_results.result()), group("b", other)])
    assert found.differences == []


def test_verdicts_say_how_many_runs_held_them() -> None:
    runs = (made_results.result(), made_results.result(held=False))
    found = compare.compare([Group("a", runs), group("b", made_results.result(verdicts=[]))])
    (row,) = found.verdicts
    assert row.held == [1, None]
    assert row.found == ["0 (≤ 0)", ""]
    assert found.groups[0].passed == 1


def test_one_phase_is_compared_and_a_missing_one_is_named() -> None:
    groups = [Group("a", times(2.0)), Group("b", times(3.0))]
    found = compare.compare(groups, "steady")
    assert cell(found, Stage.SENT, "p50", 0).spread.median == 2.0
    with pytest.raises(LoadError, match="a has no measured phase 'warm'"):
        compare.compare(groups, "warm")


def test_results_made_in_the_same_way_become_repeats() -> None:
    one, two = times(1.0, 2.0)
    other = made_results.result(overrides=["region.hosts=40"])
    groups = compare.grouped([group("a", one), group("x", other), group("b", two)])
    assert groups == [Group("a", (one, two)), Group("x", (other,))]


def keep(result: Result, directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(result.model_dump_json(), "utf-8")
    return directory


def test_a_directory_of_results_is_a_group_of_repeats(tmp_path: Path) -> None:
    for number, ms in enumerate((1.0, 2.0)):
        keep(made_results.result(ms=ms), tmp_path / "before" / str(number))
    after = keep(made_results.result(ms=3.0), tmp_path / "after")
    (tmp_path / "before" / "1.cut-1").mkdir()
    before, single = compare.read([tmp_path / "before", after])
    assert (before.label, len(before.results)) == ("before", 2)
    assert (single.label, len(single.results)) == ("after", 1)


def test_results_of_different_workloads_are_no_repeats(tmp_path: Path) -> None:
    keep(made_results.result(), tmp_path / "a" / "1")
    keep(made_results.result(overrides=["region.hosts=40"]), tmp_path / "a" / "2")
    with pytest.raises(LoadError, match="different workloads"):
        compare.read([tmp_path / "a"])


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=str(tmp_path)):
        compare.read([tmp_path])
    (tmp_path / "result.json").write_text('{"format": 99}')
    with pytest.raises(LoadError, match="format 99"):
        compare.read([tmp_path])


def test_directories_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    places = [keep(made_results.result(), tmp_path / one / "run") for one in ("a", "b")]
    assert [group.label for group in compare.read(places)] == [str(place) for place in places]


def test_long_labels_are_numbered_in_the_titles_of_columns() -> None:
    long = "a-label-that-is-far-too-long-for-a-column"
    found = compare.compare([Group("a", times(1.0)), Group(long, times(2.0))])
    assert found.titles == ["[1]", "[2]"]
    assert found.named == ["[1] a", f"[2] {long}"]


def test_the_page_of_a_comparison_has_all_and_fetches_nothing() -> None:
    hostile = "</script><img src=//evil onerror=x>"
    groups = [Group("a", times(1.0, 2.0)), group(hostile, made_results.result(goalstate="9.9"))]
    text = compare_page.render(groups, compare.compare(groups))
    read = Page(text)
    sections = ["runs", "differences", "stages", "percentiles", "distribution", "time"]
    assert [id_ for id_ in read.ids if id_ in sections] == sections
    assert set(read.plots) == {"bars", "tail", "latency", "used"}
    assert "9.9" in read.text
    assert hostile in read.text
    assert "img" not in read.tags
    assert all(address.startswith("#") for address in read.addresses)
