"""Stamps in trace contexts; offsets of clocks."""

from __future__ import annotations

import re
from random import Random

import pytest

from goalstate.scale.load import clocks
from goalstate.scale.load.clocks import Exchange, Offset
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.stamps import Stamp, Stamps


@pytest.mark.parametrize(
    "stamp", [Stamp(0, 0, 1), Stamp(255, (1 << 32) - 1, 1_795_000_000_123_456_789)]
)
def test_a_stamp_is_read_as_it_was_written_and_is_a_valid_trace_context(stamp: Stamp) -> None:
    text = Stamps("run-1").write(stamp)
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-00", text)
    assert Stamps("run-1").read(text) == stamp
    assert Stamps("run-2").read(text) is None


def test_other_traces_are_nobodys() -> None:
    stamps = Stamps("run-1")
    for text in ("", "00-", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"):
        assert stamps.read(text) is None


def test_what_has_no_room_is_refused() -> None:
    for stamp in (Stamp(256, 0, 0), Stamp(0, 1 << 32, 0)):
        with pytest.raises(LoadError, match="no room"):
            Stamps("r").write(stamp)


@pytest.mark.parametrize("seed", range(20))
def test_the_true_offset_is_within_the_error_however_the_ways_differ(seed: int) -> None:
    random = Random(seed)
    ahead = random.randrange(-(10**10), 10**10)
    now, exchanges = 10**18, []
    for _ in range(16):
        there, back = (round(random.expovariate(1 / 2e6)) for _ in range(2))
        exchanges.append(Exchange(now, now + there + ahead, now + there + back))
        now += 10**7
    found = clocks.offset(exchanges)
    assert abs(found.ahead_ns - ahead) <= found.error_ns
    shortest = min(one.came_ns - one.sent_ns for one in exchanges)
    assert found.error_ns <= shortest // 2 + 1
    assert abs(found.to_ours(now + ahead) - now) <= found.error_ns


def test_between_two_measurements_both_are_covered() -> None:
    assert clocks.over(Offset(100, 10), Offset(200, 20)) == Offset(155, 65)
    assert clocks.over(clocks.SAME, clocks.SAME) == clocks.SAME


def test_without_an_answer_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="no question"):
        clocks.offset([])
