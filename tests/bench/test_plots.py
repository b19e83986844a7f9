"""Pictures of results: what they show is what was measured."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree as xml

import pytest

from bench.plots import LOG_FROM, Plot, drawn

_SVG = "{http://www.w3.org/2000/svg}"
ONE = Plot("one", "How <long>?", "ms", ("median",), (("a & b", (10.0,)), ("c", (25.0,))))
TWO = Plot("two", "How long?", "s", ("p50", "p99"), (("a", (0.1, 4.0)), ("b", (None, 90.0))))
OVER = Plot("over", "Cost", "µs", ("x",), (("10", (50.0,)), ("1000", (100.0,))), "ports")


def _all(plot: Plot, tag: str, kind: str = "") -> list[dict[str, str]]:
    found = [dict(one.attrib) for one in xml.fromstring(drawn(plot)).iter(f"{_SVG}{tag}")]
    return [one for one in found if one.get("class", "") == kind]


def _texts(plot: Plot) -> set[str | None]:
    return {one.text for one in xml.fromstring(drawn(plot)).iter(f"{_SVG}text")}


def _widths(plot: Plot) -> list[float]:
    return [float(bar["width"]) for bar in _all(plot, "rect", "bar")]


@pytest.mark.parametrize("plot", [ONE, TWO, OVER])
def test_a_picture_is_a_document_on_a_white_ground_the_same_each_time(plot: Plot) -> None:
    ground = _all(plot, "rect")[0]
    root = xml.fromstring(drawn(plot))
    assert ground["fill"] == "#ffffff"
    assert (ground["width"], ground["height"]) == (root.get("width"), root.get("height"))
    assert drawn(plot) == drawn(plot)


def test_every_name_every_value_and_what_they_are_of_are_written() -> None:
    assert {"a & b", "c", "10.0", "25.0", "ms", "How <long>?"} <= _texts(ONE)
    assert {"p50", "p99", "0.1", "4.00", "90.0", "not measured"} <= _texts(TWO)
    assert {"10", "1,000", "ports", "50.0", "100"} <= _texts(OVER)


def test_bars_are_as_long_as_their_values() -> None:
    short, long = _widths(ONE)
    assert long / short == pytest.approx(25 / 10, rel=1e-3)


def test_values_that_differ_much_are_on_a_scale_of_powers_of_ten() -> None:
    values = [0.02 * 10**n for n in range(5)]
    plot = ONE._replace(rows=[(str(value), (value,)) for value in values])
    widths = _widths(plot)
    steps = [after - before for before, after in pairwise(widths)]
    assert widths[0] > 0
    assert steps == pytest.approx([steps[0]] * len(steps), abs=0.02)
    assert "ms, logarithmic scale" in _texts(plot)
    assert {"0.01", "0.1", "1", "10", "100", "1,000"} <= _texts(plot)
    near = ONE._replace(rows=(("a", (1.0,)), ("b", (LOG_FROM,))))
    assert "ms" in _texts(near)


def test_what_was_not_measured_has_no_bar() -> None:
    assert _widths(TWO)[2] == 0
    assert min(_widths(TWO)[:2]) > 0


def test_curves_rise_with_values_and_go_on_with_powers_of_sizes() -> None:
    wide = OVER._replace(rows=(*OVER.rows, ("100000", (0.0,))))
    points = [(float(at["cx"]), float(at["cy"])) for at in _all(wide, "circle", "point")]
    ground = points[2][1]
    assert (ground - points[1][1]) / (ground - points[0][1]) == pytest.approx(2)
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0])


def test_a_picture_can_be_told_in_words() -> None:
    assert ONE.alt == "How <long>?, ms: a & b 10.0; c 25.0"
    assert TWO.alt == "How long?, s (p50 and p99): a 0.1 and 4.00; b not measured and 90.0"
