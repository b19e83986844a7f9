"""A generator: changes at their times, whatever becomes of the ones before. Open loop.

    schedule ──due──▶ queue ──▶ callers (so many at once) ──▶ target ──▶ answers

Laws:

1.  The schedule never waits: a change is due when its phase says so, and its latency counts from
    then, however long it stood in the queue since all callers were waiting.
2.  Of each change that was due there is one outcome. What could not be made, since all that it
    could be made of was under way, is said and counted (`starved`); it is not made later.
3.  Clock and target are given: nothing here knows what time is, or what a DPM is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from enum import StrEnum
from random import Random
from typing import NamedTuple, Protocol

from goalstate.scale.load import arrivals
from goalstate.scale.load.changes import Change, ChangeSource
from goalstate.scale.load.recording import Recorder
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.stamps import Stamp
from goalstate.scale.load.workload import ChangeKind, Phase, Workload

SECOND_NS = 1_000_000_000


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    #: It is not valid: a defect of the generator, or of the DPM.
    REFUSED = "refused"
    #: It was not answered, or the DPM did not serve.
    UNANSWERED = "unanswered"
    STARVED = "starved"


class Answer(NamedTuple):
    outcome: Outcome
    #: Its number in the intent log, where it was accepted.
    change: int = 0


class Clock(Protocol):
    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch, by the coordinator's clock."""
        ...

    async def sleep_until(self, when_ns: int) -> None: ...


class Target(Protocol):
    """What changes are sent to; `caller` is who does, from 0."""

    async def apply(self, caller: int, change: Change, stamp: Stamp) -> Answer: ...


class Sent(NamedTuple):
    """A change that was due in a measured phase, and what came of it."""

    stamp: Stamp
    phase: int
    kind: ChangeKind
    answer: Answer


class _Due(NamedTuple):
    phase: int
    change: Change
    stamp: Stamp


class Generator:
    """Generator `part` of `parts`."""

    def __init__(
        self,
        workload: Workload,
        source: ChangeSource,
        target: Target,
        clock: Clock,
        recorder: Recorder,
        *,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.outcomes: Counter[tuple[int, ChangeKind | None, Outcome]] = Counter()
        #: What was answered since it was taken the last time.
        self.sent: list[Sent] = []
        #: Changes that wait for a caller.
        self.waiting = 0
        self._workload = workload
        self._source = source
        self._target = target
        self._clock = clock
        self._recorder = recorder
        self._part, self._parts = part, parts
        self._number = 0

    async def run(self, start_ns: int) -> None:
        """All phases, the first of which begins at `start_ns`; returns when all is answered."""
        queue: asyncio.Queue[_Due | None] = asyncio.Queue()
        callers = [
            asyncio.ensure_future(self._call(caller, queue))
            for caller in range(self._workload.callers)
        ]
        try:
            for place, (phase, begin_s) in enumerate(self._workload.spans()):
                await self._schedule(place, phase, start_ns + round(begin_s * SECOND_NS), queue)
            for _ in callers:
                queue.put_nowait(None)
            await asyncio.gather(*callers)
        finally:
            for task in callers:
                task.cancel()

    async def _schedule(
        self, place: int, phase: Phase, begin_ns: int, queue: asyncio.Queue[_Due | None]
    ) -> None:
        share = changes_share(phase)
        random = Random(f"{self._workload.region.seed}/{place}/{self._part}")
        for at_s in arrivals.starts(
            phase.arrival, phase.seconds, random, part=self._part, parts=self._parts
        ):
            if share < 1 and random.random() >= share:
                continue  # a host joins at that time, see `joining`
            due_ns = begin_ns + round(at_s * SECOND_NS)
            await self._clock.sleep_until(due_ns)
            change = self._source.draw(phase)
            if change is None:
                self.outcomes[place, None, Outcome.STARVED] += 1
                continue
            stamp = Stamp(self._part, self._number, due_ns)
            self._number += 1
            self.waiting += 1
            queue.put_nowait(_Due(place, change, stamp))

    async def _call(self, caller: int, queue: asyncio.Queue[_Due | None]) -> None:
        while (due := await queue.get()) is not None:
            self.waiting -= 1
            phase, change, stamp = due
            sent_ns = self._clock.now_ns()
            answer = await self._target.apply(caller, change, stamp)
            outcome = answer.outcome
            answered_ns = self._clock.now_ns()
            self._source.done(change, accepted=outcome is Outcome.ACCEPTED)
            self.outcomes[phase, change.kind, outcome] += 1
            if self._workload.phases[phase].measured:
                self.sent.append(Sent(stamp, phase, change.kind, answer))
                self._recorder.record(phase, Stage.SENT, sent_ns - stamp.intended_ns)
                if outcome is Outcome.ACCEPTED:
                    self._recorder.record(phase, Stage.ACCEPTED, answered_ns - stamp.intended_ns)


def changes_share(phase: Phase) -> float:
    """The share of a phase's arrivals that are changes of intent: the others are hosts that
    join."""
    joins = phase.changes.get(ChangeKind.JOIN_HOST, 0.0)
    return 1 - joins / sum(phase.changes.values())
