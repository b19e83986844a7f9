"""What the agents of one process count. Plain numbers, shared by the cores of all of its hosts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamKind

#: Upper ends of the classes of `apply_delay`, in seconds.
DELAY_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


@dataclass(slots=True)
class Delays:
    """A histogram of seconds from a message's publication until a host had applied it."""

    #: One count for each of DELAY_BOUNDS, and one for what is above.
    counts: list[int] = field(default_factory=lambda: [0] * (len(DELAY_BOUNDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(DELAY_BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Counters:
    #: Accepted messages, and their payloads' bytes.
    messages: dict[StreamKind, int] = field(default_factory=lambda: dict.fromkeys(StreamKind, 0))
    bytes: int = 0
    #: Dropped: delivered before; of an epoch that is over; of no stream or another one.
    duplicates: int = 0
    stale: int = 0
    foreign: int = 0
    #: Payloads that were not what their checksum says.
    corrupted: int = 0
    #: Messages that could not be used, though they are what was sent.
    unreadable: int = 0
    gaps: int = 0
    #: Times that a stream was read again from its beginning, and why for `mismatches` of them.
    resyncs: int = 0
    mismatches: int = 0
    #: Revisions at or below the one held that came with another content.
    out_of_order: int = 0
    applied: Counter[Kind] = field(default_factory=Counter)
    refused: int = 0
    #: Programmings of what the data plane had refused for now.
    retries: int = 0
    #: Rounds of audits, and differences that they found: in what is held, in its running digest, in
    #: the data plane.
    audits: int = 0
    drifts: Counter[str] = field(
        default_factory=lambda: Counter({"held": 0, "digest": 0, "data_plane": 0})
    )
    #: Refusals written to the topic of dead letters.
    dead_letters: int = 0
    programs: int = 0
    reports: int = 0
    delays: Delays = field(default_factory=Delays)
    #: The same, of each change that took a permission away.
    revocations: Delays = field(default_factory=Delays)
