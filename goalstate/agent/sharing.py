"""One data plane that several cores program: those of a host's shards, where a region is divided.

Laws:

1.  The data plane does one thing at a time, so programs and readings take turns, in the order in
    which they were asked for.
2.  What a share put there, and did not delete, it wants. Where one deletes what another one wants
    too, that is there afterwards as the other one wants it: an id may have gone from one shard to
    another, and shards come in no order, so it may be the later one that is overwritten.
3.  A share reads back what it wants. What nobody put there, the first share has to look after.
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
        self.shares: list[Share] = []
        self._waiting: deque[Callable[[], None]] = deque()
        self._busy = False

    def share(self) -> Share:
        self.shares.append(Share(self))
        return self.shares[-1]

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

    def __init__(self, whole: SharedDataPlane) -> None:
        self._whole = whole
        #: What it put there and did not delete.
        self.wanted: dict[Kind, dict[str, Resource]] = {kind: {} for kind in Kind}

    def program(self, operations: Sequence[Resource], done: Done) -> None:
        self._whole.in_turn(partial(self._program, operations, done))

    def read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        self._whole.in_turn(partial(self._read_back, kind, done))

    def _program(self, operations: Sequence[Resource], done: Done) -> None:
        def programmed(refused: Refused) -> None:
            for place, one in enumerate(operations):
                if place in refused:
                    continue
                if one.payload:
                    self.wanted[one.kind][one.id] = one
                else:
                    self.wanted[one.kind].pop(one.id, None)
            self._whole.over(partial(done, refused))

        asked = [one if one.payload else self._as_others_want_it(one) for one in operations]
        self._whole.data_plane.program(asked, programmed)

    def _as_others_want_it(self, deletion: Resource) -> Resource:
        kind, id_, _, _ = deletion
        for share in self._whole.shares:
            if share is not self and id_ in share.wanted[kind]:
                return share.wanted[kind][id_]
        return deletion

    def _read_back(self, kind: Kind, done: Callable[[Mapping[str, bytes]], None]) -> None:
        def read(table: Mapping[str, bytes]) -> None:
            wanted = self.wanted[kind]
            mine = {id_: p for id_, p in table.items() if id_ in wanted}
            if self is self._whole.shares[0]:
                known = set().union(*(share.wanted[kind] for share in self._whole.shares))
                mine.update((id_, p) for id_, p in table.items() if id_ not in known)
            self._whole.over(partial(done, mine))

        self._whole.data_plane.read_back(kind, read)
