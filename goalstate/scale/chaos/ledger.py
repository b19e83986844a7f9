"""What the client knows: what it sent, what came of it, and what that says of the publishers. Pure.

Laws:

1.  A change is accepted, refused, or its answer was lost; whose answer was lost is, once somebody
    serves, found to be wholly there or wholly not. Nothing else may be.
2.  Change numbers never go back: one that was sent after another was answered has a higher number.
    Nor do the marks of a stream.
3.  What is found wrong is a finding with its kind and a sentence; a run without findings has held.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale.chaos.changes import Change, Key

#: So many of the newest accepted changes are there to be waited for.
_RECENT = 200


class Law(StrEnum):
    """What must hold; the texts are what a summary calls it when it does not."""

    LOST = "acknowledged change lost"
    TORN = "change neither wholly there nor wholly not"
    EARLY = "early wait"
    DIFFERENCE = "host differs from the intent"
    RESURRECTED = "deleted resource lives"
    BACK = "number or watermark went back"
    REFUSED = "valid change refused, or invalid one accepted"
    CONVERGENCE = "not converged after the faults"
    PROCESS = "process failed"
    BOUND = "not mended in time"


class Finding(NamedTuple):
    law: Law
    what: str


class Acknowledged(NamedTuple):
    """An accepted change and its answer."""

    change: Change
    number: int
    #: Stream → (epoch, sequence) at which it was published.
    marks: dict[str, tuple[int, int]]
    #: By the monotonic clock.
    sent_at: float
    answered_at: float


@dataclass
class Ledger:
    """One for a run. Times are seconds of one monotonic clock."""

    findings: list[Finding] = field(default_factory=list)
    #: (kind of change, result) → how many.
    results: Counter[tuple[str, str]] = field(default_factory=Counter)
    recent: deque[Acknowledged] = field(default_factory=lambda: deque(maxlen=_RECENT))
    #: When each change was accepted.
    accepted_at: list[float] = field(default_factory=list)
    #: The newest change that was sent for each object.
    last_sent: dict[Key, int] = field(default_factory=dict)
    #: The newest change of each VPC that was acknowledged.
    newest: dict[str, Acknowledged] = field(default_factory=dict)
    under_way: int = 0
    _highest: int = 0
    #: Stream of a VPC → the newest mark that an answer named.
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)

    def find(self, law: Law, what: str) -> None:
        self.findings.append(Finding(law, what))

    @property
    def accepted(self) -> int:
        return len(self.accepted_at)

    def send(self, change: Change) -> int:
        """It is sent now; gives what `accept` must be told."""
        self.under_way += 1
        if not change.invalid:
            for key in change.touched:
                self.last_sent[key] = change.mark
        return self._highest

    def end(self) -> None:
        """What was sent is decided."""
        self.under_way -= 1

    def accept(
        self, change: Change, reply: api.ApplyReply, floor: int, sent_at: float, now: float
    ) -> None:
        """It was answered as accepted. `floor` is what `send` gave."""
        self.results[change.what, "accepted"] += 1
        marks = {at.stream: (at.epoch, at.sequence) for at in reply.streams}
        if change.invalid:
            self.find(Law.REFUSED, f"{change.vpc}: invalid change {change.mark} was accepted")
            return
        if reply.change <= floor:
            self.find(
                Law.BACK,
                f"change {change.mark} got number {reply.change}, and {floor} was answered before",
            )
        self._highest = max(self._highest, reply.change)
        stream = f"vpc/{change.vpc}"
        if stream in marks:  # of one VPC's changes there is never more than one under way
            if marks[stream] <= self.marks.get(stream, (0, 0)):
                self.find(Law.BACK, f"{stream} is at {marks[stream]} after {self.marks[stream]}")
            self.marks[stream] = marks[stream]
        self.accepted_at.append(now)
        acknowledged = Acknowledged(change, reply.change, marks, sent_at, now)
        self.recent.append(acknowledged)
        self.newest[change.vpc] = acknowledged

    def refuse(self, change: Change, why: str) -> None:
        self.results[change.what, "refused"] += 1
        if not change.invalid:
            self.find(Law.REFUSED, f"{change.vpc}: change {change.mark} ({change.what}): {why}")

    def decide(self, change: Change, there: bool, now: float) -> None:
        """Its answer was lost, and this came of it."""
        self.results[change.what, "answer lost, there" if there else "answer lost, not there"] += 1
        if there and not change.invalid:
            self.accepted_at.append(now)


def rate(
    accepted_at: list[float], begin: float, end: float, outages: list[tuple[float, float]]
) -> tuple[float, float]:
    """Accepted changes per second from `begin` to `end`: over all of the time, and over that in
    which somebody served."""
    inside = [at for at in accepted_at if begin <= at <= end]
    out_s = sum(max(0.0, min(end, until) - max(begin, since)) for since, until in outages)
    served = [at for at in inside if not any(since <= at <= until for since, until in outages)]
    whole = max(end - begin, 1e-9)
    return len(inside) / whole, len(served) / max(whole - out_s, 1e-9)
