"""Numbers of repeats: what is in the middle, what is at the end, and how they are written."""

from __future__ import annotations

import pytest

from bench.samples import Samples, percentile, written


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 0.99) == 99
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0) == 1
    assert percentile(values, 1) == 100


def test_the_99th_percentile_of_few_values_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3


def test_the_median_of_an_even_number_lies_between_two() -> None:
    assert Samples.of([4, 1, 3, 2]).median == 2.5


def test_of_nothing_there_is_no_median() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Samples.of([])
    with pytest.raises(ValueError, match="nothing was measured"):
        percentile([], 0.5)


def test_several_values_are_written_with_their_spread_and_one_without() -> None:
    assert str(Samples.of([30_000, 25_000, 27_500])) == "27,500 (25,000–30,000)"
    assert str(Samples.of([0.5])) == "0.5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567.8, "1,234,568"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.12345, "0.123"),
        (0.0, "0.00"),
        (-12.34, "-12.3"),
    ],
)
def test_three_digits_are_written(value: float, text: str) -> None:
    assert written(value) == text
