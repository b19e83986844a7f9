"""Admission: latency stays bounded, whatever is offered; what is shed leaves no trace."""

from __future__ import annotations

import pytest

from goalstate.dpm.admission import BASE_BYTES, Admission, AdmissionPolicy
from goalstate.dpm.errors import Overloaded

POLICY = AdmissionPolicy(longest_s=0.5, at_least=10, under_way_bytes=10**6, unconfirmed_bytes=50)
SIZE = 1000 - BASE_BYTES


def answering(per_s: int) -> Admission:
    """One that answered intents at a rate for a second, always with one more under way."""
    admission = Admission(POLICY)
    admission.enter(SIZE, 0, 0.0)
    for number in range(1, per_s):
        admission.enter(SIZE, 0, number / per_s)
        admission.leave(SIZE, number / per_s)
    admission.leave(SIZE, 1.0)
    return admission


def admitted(admission: Admission, offered: int, now: float) -> int:
    """How many of so many intents at once are admitted."""
    for number in range(offered):
        try:
            admission.enter(SIZE, 0, now)
        except Overloaded:
            return number
    return offered


def busy(per_s: int, seconds: float, offered: int) -> tuple[Admission, float, float]:
    """Offer a rate to one that answers `per_s`, in order; gives it, the longest wait, the share
    that was admitted of what could be answered."""
    admission = Admission(POLICY)
    queue: list[float] = []
    longest, answered = 0.0, 0
    events = sorted(
        [(n / offered, "offer") for n in range(int(offered * seconds))]
        + [(n / per_s, "answer") for n in range(1, int(per_s * seconds))]
    )
    for now, what in events:
        if what == "answer":
            if queue:
                admission.leave(SIZE, now)
                longest = max(longest, now - queue.pop(0))
                answered += 1
        else:
            try:
                admission.enter(SIZE, 0, now)
            except Overloaded:
                continue
            queue.append(now)
    return admission, longest, answered / (per_s * seconds)


def test_few_at_once_are_admitted_though_no_rate_is_known() -> None:
    assert admitted(Admission(POLICY), 10, 0.0) == 10


def test_the_work_under_way_is_bounded_in_seconds() -> None:
    # A hundred a second: half a second of them, and the one that finds no more than that.
    assert admitted(answering(100), 100, 1.0) == 50


@pytest.mark.parametrize("per_s", [40, 400])
def test_ten_times_the_load_leaves_latency_and_throughput_as_they_are(per_s: int) -> None:
    _, longest, share = busy(per_s, 20.0, 10 * per_s)
    assert longest <= 2 * POLICY.longest_s
    assert share > 0.95


def test_where_nothing_is_answered_any_more_only_a_few_are_admitted() -> None:
    admission = Admission(POLICY)
    assert admitted(admission, 10, 0.0) == 10
    assert admitted(admission, 5, 0.4) == 5
    assert admitted(admission, 5, 0.6) == 0


def test_a_caller_is_told_when_to_come_back() -> None:
    admission = answering(100)
    admitted(admission, 100, 1.0)
    with pytest.raises(Overloaded, match=r"50 intents are under way, 0\.5 s of work") as error:
        admission.enter(SIZE, 0, 1.0)
    assert 0 < error.value.retry_after_s <= 0.1


def test_bytes_under_way_are_bounded_but_a_large_one_alone_is_admitted() -> None:
    admission = Admission(POLICY)
    admission.enter(10**9, 0, 0.0)
    with pytest.raises(Overloaded, match="bytes of intents are under way"):
        admission.enter(1, 0, 0.0)
    admission.leave(10**9, 1.0)
    admission.enter(1, 0, 1.0)


def test_what_a_slow_broker_has_not_confirmed_is_bounded() -> None:
    admission = Admission(POLICY)
    for _ in range(2):
        with pytest.raises(Overloaded, match="has not confirmed 51 bytes"):
            admission.enter(1, 51, 0.0)
        admission.enter(1, 50, 0.0)


def test_shedding_counts_nothing() -> None:
    admission = answering(100)
    under_way = admitted(admission, 1000, 1.0)
    assert admission.under_way == under_way
    for _ in range(under_way):
        admission.leave(SIZE, 1.0)
    assert admission.under_way == 0
    assert admitted(admission, 10, 5.0) == 10
