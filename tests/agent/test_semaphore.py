"""Who may read a checkpoint: so many at a time, and those first that have nothing."""

from __future__ import annotations

from goalstate.agent.semaphore import PrioritySemaphore, Ticket


def held(*tickets: Ticket) -> list[bool]:
    return [ticket.held for ticket in tickets]


def test_not_more_than_there_are_places_are_admitted() -> None:
    semaphore = PrioritySemaphore(2)
    tickets = [semaphore.acquire(empty=True) for _ in range(4)]
    assert held(*tickets) == [True, True, False, False]
    assert semaphore.waiting == 2


def test_a_place_that_is_given_back_goes_to_who_asked_first() -> None:
    semaphore = PrioritySemaphore(1)
    first, second, third = (semaphore.acquire(empty=True) for _ in range(3))
    semaphore.release(first)
    assert held(first, second, third) == [False, True, False]
    semaphore.release(first)  # twice is harmless
    assert held(second, third) == [True, False]


def test_who_has_nothing_comes_before_who_has_something() -> None:
    semaphore = PrioritySemaphore(1)
    reading = semaphore.acquire(empty=True)
    renewing, new = semaphore.acquire(empty=False), semaphore.acquire(empty=True)
    semaphore.release(reading)
    assert held(renewing, new) == [False, True]
    semaphore.release(new)
    assert held(renewing) == [True]


def test_one_that_does_not_want_to_wait_any_more_takes_no_place() -> None:
    semaphore = PrioritySemaphore(1)
    reading, gone, next_ = (semaphore.acquire(empty=True) for _ in range(3))
    semaphore.release(gone)
    semaphore.release(reading)
    assert held(gone, next_) == [False, True]
    assert semaphore.waiting == 0
