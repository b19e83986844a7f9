"""One data plane that several cores program: those of a host's shards, where a region is divided.

Laws:

1.  The data plane does one thing at a time, so programs and readings take turns, in the order in
    which they were asked for.
2.  What is in it belongs to the share that put it there last, and only that one can delete it: to
    another one the deletion is done without more. So no core takes away what another one wants.
3.  A share reads back what is its own. What nobody put there, the first share has to look after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from goalstate.agent.dataplanes import DataPlane, Done, Readable, Refused
from goalstate.gs.resources import Kind, Resource


class Whole(DataPlane, Readable, Protocol):
    """What can be shared."""


class SharedDataPlane:
    """Give each core a `share` of it."""

    def __init__(self, data_plane: Whole) -> None:
        self.data_plane = data_plane
        #: Which share each entry belongs to.
        self.owners: dict[tuple[Kind, str], Share] = {}
        self._shares = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = False

    def share(self) -> Share:
        self._shares += 1
        return Share(self, first=self._shares == 1)

    def in_turn(self, begin: Callable[[], None]) -> None:
        """Have something begun when it is its turn; it calls `over` at its end."""
        self._waiting.append(begin)
        self._go_on()

    def over(self, answer: Callable[[], None]) -> None:
        """The turn is over: tell whoever had it, then go on."""
        self._busy = False
        answer()
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and not self._busy:
            self._busy = True
            self._waiting.popleft()()


class Share:
    """A data plane, for one of the cores."""

    def __init__(self, whole: SharedDataPlane, *, first: bool) -> None:
        self._whole = whole
        self._first = first

    def program(self, operations: Sequence[Resource], done: Done) -> None:
        self._whole.in_turn(partial(self._program, operations, done))

    def read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        self._whole.in_turn(partial(self._read_back, kind, done))

    def _program(self, operations: Sequence[Resource], done: Done) -> None:
        places = [
            place
            for place, (kind, id_, _, payload) in enumerate(operations)
            if payload or self._whole.owners.get((kind, id_), self) is self
        ]

        def programmed(refused: Refused) -> None:
            said = {places[place]: refusal for place, refusal in refused.items()}
            for place in places:
                kind, id_, _, payload = operations[place]
                if place in said:
                    continue
                if payload:
                    self._whole.owners[kind, id_] = self
                else:
                    self._whole.owners.pop((kind, id_), None)
            self._whole.over(partial(done, said))

        self._whole.data_plane.program([operations[place] for place in places], programmed)

    def _read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        def read(table: Mapping[str, bytes]) -> None:
            other: Share | None = self if self._first else None
            owners = self._whole.owners
            mine = {i: p for i, p in table.items() if owners.get((kind, i), other) is self}
            self._whole.over(partial(done, mine))

        self._whole.data_plane.read_back(kind, read)
