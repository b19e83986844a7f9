"""Which fault comes when: all from the seed, before anything is started. Pure.

Laws:

1.  The same seed, duration and parts give the same plan. When a fault really happens also depends
    on how long earlier ones took to mend; the order does not.
2.  Every part is killed before any fault comes twice: a short run, too, has killed all of them.
    A broker that takes long to start is killed in some rounds only.
3.  At most one fault of a part is under way at a time, and now and then two parts have one at once.
    What two faults of one part would mean nobody could say: a process that is killed while it is
    stopped is only killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from itertools import count
from random import Random
from typing import NamedTuple


class Fault(StrEnum):
    """Kinds of faults; the texts are what a transcript and the summary call them."""

    KILL_ACTIVE = "active DPM killed"
    KILL_STANDBY = "standby DPM killed"
    KILL_AGENT = "agent process killed"
    KILL_BROKER = "broker killed"
    PAUSE_ACTIVE = "active DPM stopped and continued"
    PAUSE_AGENT = "agent process stopped and continued"
    PAUSE_BROKER = "broker stopped and continued"
    CUT_ACTIVE = "active DPM cut off from the broker"
    CUT_AGENT = "agent process cut off from the broker"
    CUT_CLIENT = "client cut off from the active DPM"
    RESET_ACTIVE = "connections of the active DPM to the broker reset"
    RESET_AGENT = "connections of an agent process to the broker reset"
    RESET_CLIENT = "connections of the client to the DPMs reset"
    DELAY_ACTIVE = "active DPM far from the broker"
    DELAY_AGENT = "agent process far from the broker"


KILLS = (Fault.KILL_ACTIVE, Fault.KILL_AGENT, Fault.KILL_BROKER, Fault.KILL_STANDBY)
#: Seconds that a fault lasts, at least and at most; of a kill, until the part is started again.
_LASTS: dict[Fault, tuple[float, float]] = {
    Fault.KILL_ACTIVE: (0.2, 4.0),
    Fault.KILL_STANDBY: (0.2, 2.0),
    Fault.KILL_AGENT: (0.2, 5.0),
    Fault.KILL_BROKER: (0.2, 2.0),
    # Beyond the silence after which the other takes over; added to it.
    Fault.PAUSE_ACTIVE: (1.0, 5.0),
    Fault.PAUSE_AGENT: (1.0, 8.0),
    Fault.PAUSE_BROKER: (1.0, 6.0),
    Fault.CUT_ACTIVE: (1.0, 10.0),
    # For longer than its hosts' lease, too: they count for nothing then, and come back.
    Fault.CUT_AGENT: (1.0, 20.0),
    Fault.CUT_CLIENT: (1.0, 6.0),
    Fault.RESET_ACTIVE: (0.0, 0.0),
    Fault.RESET_AGENT: (0.0, 0.0),
    Fault.RESET_CLIENT: (0.0, 0.0),
    Fault.DELAY_ACTIVE: (2.0, 8.0),
    Fault.DELAY_AGENT: (2.0, 8.0),
}
#: Seconds from the end of a fault to the next one, at most.
_QUIET_S = 5.0
#: Share of the faults that begin while the one before lasts.
_OVERLAPS = 0.25
#: What a kill of the DPM or of an agent process takes beside the time until it is started again.
_START_S = 2.0


class Step(NamedTuple):
    """A fault. `choice` in 0..1 says which of several parts it meets."""

    number: int
    at_s: float
    fault: Fault
    lasts_s: float
    choice: float


def plan(
    seed: int, seconds: float, *, failover_after_s: float, broker_start_s: float
) -> list[Step]:
    """The faults of a run of so many seconds, in order; the last ends before the run does.

    `broker_start_s`: what it takes to start the broker again.
    """
    random = Random(f"chaos/{seed}")
    steps: list[Step] = []
    at = random.uniform(0.5, 2.0)
    for number in count():
        for fault in _round(random):
            if fault is Fault.KILL_BROKER and number % max(1, round(broker_start_s / 8)):
                continue  # else one that starts slowly would be away for most of the time
            lasts = random.uniform(*_LASTS[fault])
            if fault is Fault.PAUSE_ACTIVE:
                lasts += failover_after_s
            takes = lasts
            if fault is Fault.KILL_BROKER:
                takes += broker_start_s
            elif fault in KILLS:
                takes += _START_S
            if at + takes > seconds:
                return steps
            steps.append(
                Step(len(steps) + 1, round(at, 3), fault, round(lasts, 3), random.random())
            )
            # A run begins with all kills, one after the other, so that none is left out.
            overlaps = len(steps) >= len(KILLS) and random.random() < _OVERLAPS
            gap = (
                random.uniform(0.5, 1.5) if len(steps) < len(KILLS) else random.uniform(1, _QUIET_S)
            )
            at += max(0.3, random.uniform(0.2, 0.9) * takes) if overlaps else takes + gap
    raise AssertionError("rounds never end")


def _round(random: Random) -> Iterator[Fault]:
    """Every kind once: kills first, since these are what a short run must have; then what shows
    an answer that came before the change was safe."""
    kills = list(KILLS)
    others = [fault for fault in Fault if fault not in (*KILLS, Fault.CUT_ACTIVE)]
    random.shuffle(kills)
    random.shuffle(others)
    yield from (*kills, Fault.CUT_ACTIVE, *others)
