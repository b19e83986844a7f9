"""A semaphore for the hosts of a process that read checkpoints: so many at a time, and some first.

A checkpoint is a stream's whole state, and a host reads it into a shadow beside what it has. Each
host that does is a state more in memory, and so much work more before the first of them is done.

Laws:

1.  Not more than `places` are given away at a time.
2.  A place that is free goes to a host that holds nothing of its stream, before one that has
    something to go on with; among equals to the one that asked first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Ticket:
    """What a host got that asked: a place, or one in the row of those that wait."""

    __slots__ = ("_turn", "empty", "held")

    def __init__(self, *, empty: bool) -> None:
        #: The host holds nothing of the stream.
        self.empty = empty
        #: It has a place.
        self.held = False
        self._turn = asyncio.Event()

    async def turn(self) -> None:
        """Wait until it has a place, or has given that up."""
        await self._turn.wait()

    def call(self) -> None:
        self._turn.set()


class PrioritySemaphore:
    """See the module's text."""

    def __init__(self, places: int) -> None:
        self._free = places
        #: By `Ticket.empty`.
        self._waiting: dict[bool, OrderedDict[Ticket, None]] = {
            True: OrderedDict(),
            False: OrderedDict(),
        }

    @property
    def waiting(self) -> int:
        """So many wait."""
        return sum(map(len, self._waiting.values()))

    def acquire(self, *, empty: bool) -> Ticket:
        """Get a place at once if there is one (`Ticket.held`), else wait for one."""
        ticket = Ticket(empty=empty)
        self._waiting[empty][ticket] = None
        self._admit()
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give back the place, or the one in the row. Doing so twice is harmless."""
        if ticket.held:
            ticket.held = False
            self._free += 1
            self._admit()
        else:
            self._waiting[ticket.empty].pop(ticket, None)
        ticket.call()

    def _admit(self) -> None:
        while self._free and (row := self._waiting[True] or self._waiting[False]):
            ticket, _ = row.popitem(last=False)
            self._free -= 1
            ticket.held = True
            ticket.call()
