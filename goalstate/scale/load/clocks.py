"""How far another machine's clock is from ours, and how surely that is known. Pure.

A question is sent at `sent`, answered there at `there` by their clock, and the answer comes at
`came`: their clock was read somewhere between, so it is ahead of ours by `there - (sent + came)/2`,
give or take half of the time that question and answer took (as NTP has it, RFC 5905 section 8; no
clock is set here). Of several questions the one that took the shortest is the best.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Exchange(NamedTuple):
    """A question and its answer; all in ns since the Unix epoch, `there` by the other clock."""

    sent_ns: int
    there_ns: int
    came_ns: int


class Offset(NamedTuple):
    """Their clock minus ours, which is within `error_ns` of `ahead_ns`."""

    ahead_ns: int = 0
    error_ns: int = 0

    def to_ours(self, theirs_ns: int) -> int:
        return theirs_ns - self.ahead_ns


#: Of two processes on one machine.
SAME = Offset()


def offset(exchanges: Iterable[Exchange]) -> Offset:
    """From at least one exchange. Raises ValueError."""
    best = min(exchanges, key=lambda one: one.came_ns - one.sent_ns, default=None)
    if best is None:
        raise ValueError("no question was answered")
    middle = (best.sent_ns + best.came_ns) // 2
    return Offset(best.there_ns - middle, max(0, best.came_ns - best.sent_ns + 1) // 2)


def over(begin: Offset, end: Offset) -> Offset:
    """Of a time between two measurements: the middle, and an error that covers both."""
    low = min(begin.ahead_ns - begin.error_ns, end.ahead_ns - end.error_ns)
    high = max(begin.ahead_ns + begin.error_ns, end.ahead_ns + end.error_ns)
    return Offset((low + high) // 2, (high - low + 1) // 2)
