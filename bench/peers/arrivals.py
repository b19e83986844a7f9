"""When what was sent reached the first and the last of many hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple


class Reached(NamedTuple):
    """Of one step: when the first, and when the last host had all of it."""

    first: int
    last: int


class Arrivals:
    """Counts units until each of the hosts has every step. From any thread.

    Each step takes the same number of units to each host, and they come in the order of steps: so
    a host's unit tells its step by its number.
    """

    def __init__(
        self, hosts: int, steps: int, units: int, clock: Callable[[], int], first: int = 0
    ) -> None:
        """The hosts are numbered from `first` on. `clock`: ns since the epoch."""
        self.complete = threading.Event()
        self._first = first
        self._hosts = hosts
        self._units = units
        self._clock = clock
        self._lock = threading.Lock()
        self._got = [0] * hosts
        self._reached: list[Reached | None] = [None] * steps
        self._left = hosts * steps

    def arrived(self, host: int, units: int) -> None:
        now = self._clock()
        place = host - self._first
        with self._lock:
            had = self._got[place]
            self._got[place] = got = had + units
            for step in range(had // self._units, got // self._units):
                if step < len(self._reached):
                    begun = self._reached[step]
                    self._reached[step] = Reached(begun.first if begun else now, now)
                    self._left -= 1
            if not self._left:
                self.complete.set()

    def reached(self) -> list[Reached]:
        """Of every step, once it is complete. Raises ValueError before that."""
        with self._lock:
            found = [one for one in self._reached if one is not None]
            if self._left:
                raise ValueError(self._missing())
            return found

    def missing(self) -> str:
        with self._lock:
            return self._missing()

    def _missing(self) -> str:
        wanted = self._units * len(self._reached)
        lacking = sum(got < wanted for got in self._got)
        return (
            f"{lacking} of {self._hosts} hosts lack something; the one with least has "
            f"{min(self._got)} of {wanted} units"
        )
