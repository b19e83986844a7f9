"""Answers to who pushes: what became of each state of a push. They stand for a fleet's reports.

Laws:

1.  A push is answered when all of it is settled: each state that counted is confirmed by the data
    plane, or refused. What waits for a resource that is not here is waited for during `pending_s`
    seconds from the push on, and what the data plane has not answered during `answer_s`; then it
    is answered as PENDING. It is applied when it can be all the same.
2.  Received is not applied: SUCCESS is what the data plane confirmed. (Of a resource that a later
    push overtook, it is that one's confirmation.)
3.  Pushes to one host are settled, and so answered, in their order.
4.  When the process ends, what is not settled is answered as PENDING.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from goalstate.agent.alcor import pushes
from goalstate.agent.alcor.pushes import Entry, Key, Push, Verdict
from goalstate.agent.fleet import Host
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.streams import Mark

_SUCCESS = Verdict(resources_pb2.SUCCESS)


class Outcome(NamedTuple):
    """How one entry ended. Times in seconds."""

    entry: Entry
    verdict: Verdict
    #: From its arrival to this verdict.
    elapsed_s: float


class _Open:
    """A push that is not answered yet."""

    __slots__ = ("answer", "at", "entries", "mark", "verdicts")

    def __init__(
        self, mark: Mark, at: float, entries: Sequence[Entry], verdicts: list[Verdict | None]
    ) -> None:
        self.mark = mark
        self.at = at
        self.entries = entries
        self.verdicts = verdicts
        self.answer: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()


class Answers:
    """See the module's text; it is a `fleet.Speaker`. `open` is how many pushes wait."""

    def __init__(self, *, pending_s: float, answer_s: float) -> None:
        self._pending_s = pending_s
        self._answer_s = answer_s
        self._open: dict[Host, deque[_Open]] = {}
        self.answered = 0

    @property
    def open(self) -> int:
        return sum(map(len, self._open.values()))

    def push(
        self, host: Host, entries: Sequence[Entry], epoch: int
    ) -> asyncio.Future[list[Outcome]]:
        """Put a push through a host's core. `epoch`: the process's incarnation."""
        core = host.core
        stream = core.streams[core.inbox]
        excepted: set[Key] = {
            (kind, id_) for at, kind, id_ in core.programming.exceptions.faults if at == stream.id
        }
        taken = pushes.take(entries, stream.live, excepted)
        mark = pushes.next_mark(stream.live, epoch)
        one = _Open(mark, time.monotonic(), entries, taken.verdicts)
        self._open.setdefault(host, deque()).append(one)
        host.pushed(Push(stream.id, mark, stream.live.mark, taken, time.time_ns()))
        self.dirty(host)
        return one.answer

    # --- as a fleet's reports ---

    async def start(self) -> None:
        """There is nobody to be told that it begins."""

    def dirty(self, host: Host) -> None:
        host.core.news.told()
        waiting = self._open.get(host)
        while waiting and self._settled(host, waiting[0]):
            self._answer(host, waiting.popleft())
        if waiting is not None and not waiting:
            del self._open[host]

    def heartbeats(self, now: float) -> None:
        for host in list(self._open):
            self.dirty(host)

    async def stop(self) -> None:
        for host, waiting in self._open.items():
            for one in waiting:
                self._answer(host, one)
        self._open.clear()

    def _settled(self, host: Host, one: _Open) -> bool:
        """Is there nothing more to wait for?"""
        waited = time.monotonic() - one.at
        stream = host.core.streams[host.core.inbox]
        if stream.watermark < one.mark:
            return waited >= self._answer_s
        if waited >= self._pending_s:
            return True
        return not any(
            verdict is None and self._verdict(host, entry).status == resources_pb2.PENDING
            for entry, verdict in zip(one.entries, one.verdicts, strict=True)
        )

    def _verdict(self, host: Host, entry: Entry) -> Verdict:
        """What the host says of a resource, where all that came before is settled."""
        core = host.core
        fault = core.programming.exceptions.faults.get((core.inbox, entry.kind, entry.id))
        if fault is None:
            return _SUCCESS
        status = resources_pb2.PENDING if fault.pending else resources_pb2.FAILURE
        return Verdict(status, fault.reason)

    def _answer(self, host: Host, one: _Open) -> None:
        elapsed = time.monotonic() - one.at
        stream = host.core.streams[host.core.inbox]
        early = stream.watermark < one.mark
        outcomes = []
        for entry, verdict in zip(one.entries, one.verdicts, strict=True):
            if verdict is None:
                verdict = self._verdict(host, entry)  # noqa: PLW2901
                unsettled = early and entry.id in stream.unsettled.get(entry.kind, {})
                if verdict is _SUCCESS and unsettled:
                    verdict = Verdict(  # noqa: PLW2901
                        resources_pb2.PENDING, "the data plane has not confirmed it yet"
                    )
            outcomes.append(Outcome(entry, verdict, elapsed))
        self.answered += 1
        if not one.answer.done():
            one.answer.set_result(outcomes)
