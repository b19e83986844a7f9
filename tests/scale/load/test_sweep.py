"""Sweeps: the grid, names of its points, and curves along numeric axes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from goalstate.scale.load import sweep as sweeps
from goalstate.scale.load import sweep_page, workload
from goalstate.scale.load.compare import Spread
from goalstate.scale.load.results import Result
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.sweep import Axis, Point, Sweep
from goalstate.scale.load.workload import WorkloadError
from tests.scale.load import made_results
from tests.scale.load.pages import Page


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("region.hosts=10,200", [10, 200]),
        ("layout.compression=none,zstd", ["none", "zstd"]),
        ('region.vpcs="1x10,2x20","3x30"', ["1x10,2x20", "3x30"]),
        ("fleet.counting_share=0.5", [0.5]),
        ("region.uuids=true,false", [True, False]),
    ],
)
def test_values_of_an_axis_are_yaml(text: str, values: list[Any]) -> None:
    axis = sweeps.parse_axis(text)
    assert axis.path == text.partition("=")[0]
    assert axis.values == values


@pytest.mark.parametrize(
    "text", ["region.hosts", "=1", "a=", "a=[1,2]", "a={b: 1}", "a=1,1", "a=null", "a='", "a=1,]["]
)
def test_what_is_no_axis_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape(repr(text))):
        sweeps.parse_axis(text)


def test_a_grid_is_of_all_combinations_and_the_last_axis_changes_fastest() -> None:
    points = sweeps.grid([Axis(path="a", values=[1, 2]), Axis(path="b", values=["x", "y"])])
    assert [str(point) for point in points] == ["a=1, b=x", "a=1, b=y", "a=2, b=x", "a=2, b=y"]


def test_a_grid_over_nothing_or_twice_over_the_same_is_an_error() -> None:
    with pytest.raises(WorkloadError):
        sweeps.grid([])
    with pytest.raises(WorkloadError, match="twice"):
        sweeps.grid([Axis(path="a", values=[1]), Axis(path="a", values=[2])])


def test_overrides_of_a_point_are_what_the_workload_gets() -> None:
    point = Point((("region.hosts", 40), ("region.vpcs", "1x10,1x20"), ("about", "a: [b")))
    wanted = workload.parse(made_results.WORKLOAD, "made", point.overrides)
    assert wanted.region.hosts == 40
    assert wanted.region.vpcs == "1x10,1x20"
    assert wanted.about == "a: [b"


def test_names_of_directories_are_plain_short_and_differ() -> None:
    values = ["1x10", "../../etc", ".. ..", "a/b", "a b", "é" * 300, "é" * 301]
    names = [Point((("region.vpcs", value),)).name for value in values]
    assert names[0] == "region.vpcs=1x10"
    assert len(set(names)) == len(names)
    for name in names:
        assert "/" not in name
        assert len(name) < 150


AXES = [Axis(path="region.hosts", values=[400, 20, 100]), Axis(path="name", values=["x", "y"])]


def found(repeats: int = 2, *, without: tuple[Point, ...] = ()) -> Sweep:
    """Latency is as many ms as there are hundreds of hosts; a second run takes twice as long."""
    results: dict[Point, list[Result]] = {}
    for point in sweeps.grid(AXES):
        if point not in without:
            hosts = float(point.values[0][1])
            results[point] = [
                made_results.result(ms=hosts / 100 * (run + 1)) for run in range(repeats)
            ]
    failed = {point: ["it did not begin"] * repeats for point in without}
    return sweeps.sweep("made", ["broker=embedded"], AXES, repeats, results, failed)


def test_a_point_has_the_spread_of_its_repeats() -> None:
    point = found().points[0]
    assert point.values == {"region.hosts": 400, "name": "x"}
    assert point.stages[Stage.SENT]["p50"] == Spread(median=6, low=4, high=8, runs=2)
    assert point.processors["fleet"].median == 0.5
    assert (point.runs, point.passed) == (2, 2)


def test_curves_are_of_numeric_axes_by_value_one_for_each_of_the_other_values() -> None:
    sweep = found()
    assert [(curve.axis, curve.others) for curve in sweep.curves] == [
        ("region.hosts", {"name": "x"}),
        ("region.hosts", {"name": "y"}),
    ]
    assert [sweep.points[place].values["region.hosts"] for place in sweep.curves[0].points] == [
        *(20, 100, 400)
    ]


def test_a_point_that_failed_is_kept_with_its_reason_and_is_on_no_curve() -> None:
    missing = sweeps.grid(AXES)[2]
    sweep = found(without=(missing,))
    assert sweep.points[2].failed == ["it did not begin"] * 2
    assert sweep.points[2].runs == 0
    assert all(2 not in curve.points for curve in sweep.curves)
    assert not sweep.passed
    assert found().passed


def test_a_sweep_that_did_not_run_to_its_end_has_not_passed() -> None:
    some = found(1)
    assert some.passed
    assert not some.model_copy(update={"repeats": 2}).passed


def test_one_value_makes_no_curve() -> None:
    axes = [Axis(path="region.hosts", values=[20])]
    (point,) = sweeps.grid(axes)
    sweep = sweeps.sweep("made", [], axes, 1, {point: [made_results.result()]}, {})
    assert sweep.curves == []
    assert set(Page(sweep_page.render(sweep)).plots) == set()


def test_the_page_of_a_sweep_has_a_plot_for_each_axis_and_fetches_nothing() -> None:
    hostile = "</script><img src=//evil onerror=x>"
    axes = [Axis(path="region.hosts", values=[1, 100]), Axis(path="name", values=[hostile])]
    results = {point: [made_results.result()] for point in sweeps.grid(axes)}
    sweep = sweeps.sweep(hostile, [], axes, 2, results, {})
    read = Page(sweep_page.render(sweep))
    assert set(read.plots) == {"latency-0", "processors-0", "mib-0"}
    assert read.plots["latency-0"]["figures"][0]["layout"]["xaxis"]["type"] == "log"
    assert hostile in read.text
    assert "img" not in read.tags
    assert all(address.startswith("#") for address in read.addresses)


def test_runs_that_failed_are_listed_on_the_page() -> None:
    read = Page(sweep_page.render(found(without=(sweeps.grid(AXES)[0],))))
    assert "it did not begin" in read.text
    assert "0 of 0, 2 failed" in read.text


def test_the_document_of_a_sweep_is_read_as_it_was_written() -> None:
    sweep = found()
    assert Sweep.model_validate_json(sweep.model_dump_json()) == sweep
