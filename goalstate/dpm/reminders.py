"""Reminders: who lacks the end of a quiet stream is told where it ends. Pure: no IO, no clock.

A host finds what it lost by the message after it, and after the last message of a stream none may
come for long. Then the stream is told its mark once more, by a message that changes nothing and
takes no place in the order: whoever is behind it reads again.

Laws:

1.  A stream is due when a live host reports that it is behind the head, and another report said so
    of the same head FIRST_NS earlier or more. So nothing was put on the stream meanwhile, and what
    is merely on its way was given time.
2.  One reminder is for all hosts that lag. While the head stays, the next one comes after a delay
    that doubles up to MOST_NS; when the stream goes on, it begins anew.
3.  There are at most PER_SECOND of them, and STREAMS are remembered, those of which a host was
    heard last: what is left out is found by a later report, since hosts repeat theirs.
"""

from __future__ import annotations

from collections import OrderedDict

from goalstate.gs.streams import Mark, StreamId

_SECOND_NS = 1_000_000_000
FIRST_NS = 5 * _SECOND_NS
MOST_NS = 300 * _SECOND_NS
PER_SECOND = 100
STREAMS = 100_000


class _Lag:
    __slots__ = ("delay_ns", "due_ns", "head")

    def __init__(self, head: Mark, now_ns: int) -> None:
        self.head = head
        self.delay_ns = FIRST_NS
        self.due_ns = now_ns + FIRST_NS


class Reminders:
    """Reports of hosts that lag in, streams to be told of out. Times by a clock that nobody sets,
    in nanoseconds."""

    def __init__(self) -> None:
        #: The stream of which a host that lags was heard last is the last.
        self._lags: OrderedDict[StreamId, _Lag] = OrderedDict()
        self._due: dict[StreamId, None] = {}
        self._second = 0
        self._given = 0

    def lags(self, stream: StreamId, head: Mark, now_ns: int) -> None:
        """A live host says that it is behind the head of a stream."""
        lag = self._lags.get(stream)
        if lag is None or lag.head != head:
            lag = self._lags[stream] = _Lag(head, now_ns)
            self._due.pop(stream, None)
        elif lag.due_ns <= now_ns:
            self._due[stream] = None
        self._lags.move_to_end(stream)
        if len(self._lags) > STREAMS:
            forgotten, _ = self._lags.popitem(last=False)
            self._due.pop(forgotten, None)

    def take(self, now_ns: int) -> list[StreamId]:
        """The streams that are to be told of now."""
        if not self._due:
            return []
        if now_ns // _SECOND_NS != self._second:
            self._second, self._given = now_ns // _SECOND_NS, 0
        taken = list(self._due)[: PER_SECOND - self._given]
        self._given += len(taken)
        # Whoever still lags says so again.
        self._due.clear()
        for stream in taken:
            lag = self._lags[stream]
            lag.delay_ns = min(2 * lag.delay_ns, MOST_NS)
            lag.due_ns = now_ns + lag.delay_ns
        return taken
