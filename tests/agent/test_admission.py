"""Who may read a checkpoint: so many at a time, and those first that have nothing."""

from __future__ import annotations

from goalstate.agent.admission import Admission, Ticket


def held(*tickets: Ticket) -> list[bool]:
    return [ticket.held for ticket in tickets]


def test_not_more_than_there_are_places_are_admitted() -> None:
    admission = Admission(2)
    tickets = [admission.ask(empty=True) for _ in range(4)]
    assert held(*tickets) == [True, True, False, False]
    assert admission.waiting == 2


def test_a_place_that_is_given_back_goes_to_who_asked_first() -> None:
    admission = Admission(1)
    first, second, third = (admission.ask(empty=True) for _ in range(3))
    admission.leave(first)
    assert held(first, second, third) == [False, True, False]
    admission.leave(first)  # twice is harmless
    assert held(second, third) == [True, False]


def test_who_has_nothing_comes_before_who_has_something() -> None:
    admission = Admission(1)
    reading = admission.ask(empty=True)
    renewing, new = admission.ask(empty=False), admission.ask(empty=True)
    admission.leave(reading)
    assert held(renewing, new) == [False, True]
    admission.leave(new)
    assert held(renewing) == [True]


def test_one_that_does_not_want_to_wait_any_more_takes_no_place() -> None:
    admission = Admission(1)
    reading, gone, next_ = (admission.ask(empty=True) for _ in range(3))
    admission.leave(gone)
    admission.leave(reading)
    assert held(gone, next_) == [False, True]
    assert admission.waiting == 0
