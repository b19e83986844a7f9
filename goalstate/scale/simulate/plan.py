"""What is to happen in a run: intents and faults, each at its time, all from the seed.

A run is its plan and its seed. Leaving steps out gives another run, which may fail in the same way
with less in it. Each seed takes a few kinds of faults only, so that they meet in many ways, and
none hides another by being there always.
"""

from __future__ import annotations

from enum import StrEnum
from random import Random
from typing import NamedTuple

from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.gs.intent import ChannelChoice, Intent
from goalstate.scale.random_intents import IntentSource, Size, region

#: Intents beside those that the region begins with.
INTENTS = (8, 22)
#: Intents that say what a VPC is to travel on, in a region with sessions.
SWITCHES = (2, 8)
#: The share of runs whose region has sessions.
SESSIONS = 0.4


class Fault(StrEnum):
    """Kinds of faults; the texts are what a transcript and the summary call them."""

    LOSSES = "deliveries dropped, repeated, reordered"
    SENDS = "sends lost, unanswered, repeated"
    HOST_CUT = "host cut off"
    PUBLISHER_CUT = "publisher cut off"
    TOPIC_CUT = "topic cut off"
    BROKER_DOWN = "broker down"
    RECONNECT = "connection of a host broken"
    CRASH = "publisher crashed"
    CRASH_BEFORE_LOG = "publisher crashed before an append to the log"
    CRASH_AFTER_LOG = "publisher crashed after an append to the log"
    CRASH_BEFORE_PUBLISH = "publisher crashed before publishing"
    CRASH_AFTER_PUBLISH = "publisher crashed after publishing"
    PAUSE = "publisher paused"
    RESTART = "agent restarted"
    HOST_CLOCK = "clock of a host set"
    PUBLISHER_CLOCK = "clock of a publisher set"
    STALE_WRITER = "former publisher published"
    SLOW = "data plane slow"
    SESSION_CUT = "session of a rack cut"


#: How long a fault lasts, in milliseconds, at least and at most. Jumps of clocks go both ways; a
#: former publisher publishes that much later.
_LASTS: dict[Fault, tuple[int, int]] = {
    Fault.LOSSES: (500, 8000),
    Fault.SENDS: (300, 6000),
    Fault.HOST_CUT: (5, 15_000),
    Fault.PUBLISHER_CUT: (5, 6000),
    Fault.TOPIC_CUT: (5, 4000),
    Fault.BROKER_DOWN: (5, 5000),
    Fault.RECONNECT: (0, 0),
    Fault.CRASH: (50, 2000),
    Fault.CRASH_BEFORE_LOG: (50, 2000),
    Fault.CRASH_AFTER_LOG: (50, 2000),
    Fault.CRASH_BEFORE_PUBLISH: (50, 2000),
    Fault.CRASH_AFTER_PUBLISH: (50, 2000),
    Fault.PAUSE: (50, 8000),
    Fault.RESTART: (5, 3000),
    Fault.HOST_CLOCK: (1, 60_000),
    Fault.PUBLISHER_CLOCK: (1, 60_000),
    Fault.STALE_WRITER: (100, 4000),
    Fault.SLOW: (200, 4000),
    Fault.SESSION_CUT: (0, 6000),
}


class Step(NamedTuple):
    """An intent or a fault. `choice` in 0..1 says which host, topic or publisher it meets."""

    number: int
    at_ms: int
    intent: Intent | None = None
    fault: Fault | None = None
    lasts_ms: int = 0
    choice: float = 0.0
    #: In 0..1; of losses and lost sends, how many.
    strength: float = 0.0


class Plan(NamedTuple):
    seed: int
    size: Size
    security_groups_own_stream: bool
    #: With two, one stands by. Each has VPCs on sessions as its own policy says: they go to and fro
    #: as ports come and go, as intents say, and where the other one takes over.
    publishers: tuple[ChannelPolicy, ...]
    #: Bytes of a record of the log in one message; None: as much as a message takes.
    log_part_bytes: int | None
    #: Between two groups of changes that share a record of the log, at least.
    group_interval_ms: int
    steps: tuple[Step, ...]

    @property
    def has_sessions(self) -> bool:
        return self.publishers[0].has_sessions

    @property
    def ends_ms(self) -> int:
        """When the last fault has ended by itself."""
        return max((step.at_ms + step.lasts_ms for step in self.steps if step.fault), default=0)

    def only(self, numbers: frozenset[int]) -> Plan:
        """The same with these steps alone."""
        return self._replace(steps=tuple(s for s in self.steps if s.number in numbers))


def plan(seed: int) -> Plan:
    random = Random(f"plan/{seed}")
    size = Size(random.randint(3, 6), random.choice((1, 2, 2)), random.randint(3, 4))
    has_sessions = random.random() < SESSIONS
    channels = [NEVER, NEVER]
    if has_sessions:
        # A VPC begins with two or three ports, all in one security group: most often on sessions.
        ports, members = random.randint(2, 4), random.randint(3, 5)
        channels = [ChannelPolicy(ports, members), ChannelPolicy(6 - ports, 8 - members)]
        size = size._replace(channels=tuple(ChannelChoice))
    source = IntentSource(random, size)
    begin = region(size)
    at = 0
    steps: list[Step] = []
    for intent in begin:
        at += random.randint(1, 30)
        steps.append(Step(0, at, intent))
    started = at
    gap = random.choice((5, 60, 250))
    for _ in range(random.randint(*INTENTS)):
        at += int(random.expovariate(1 / gap))
        steps.append(Step(0, at, source.intent()))
    # Sessions are cut as often as all else, though few runs have any.
    of_sessions = 3 if has_sessions else 0
    faults = [
        *(f for f in Fault if f is not Fault.SESSION_CUT),
        *of_sessions * (Fault.SESSION_CUT,),
    ]
    if has_sessions:
        for _ in range(random.randint(*SWITCHES)):
            steps.append(Step(0, random.randint(started, at), source.switch()))
    for fault in random.sample(faults, random.randint(1, 5)):
        for _ in range(random.randint(1, 3)):
            steps.append(
                Step(
                    0,
                    random.randint(started // 2, at),
                    None,
                    fault,
                    _lasting(random, fault),
                    random.random(),
                    random.random(),
                )
            )
    steps.sort(key=lambda step: step.at_ms)
    return Plan(
        seed,
        size,
        random.random() < 0.4,
        tuple(channels[: random.choice((1, 1, 2))]),
        random.choice((None, 60, 400)),
        Random(f"groups/{seed}").choice((0, 0, 20, 400)),
        tuple(step._replace(number=number) for number, step in enumerate(steps, 1)),
    )


def _lasting(random: Random, fault: Fault) -> int:
    least, most = _LASTS[fault]
    lasts = int(least + (most - least) * random.random() ** 2)
    if fault in (Fault.HOST_CLOCK, Fault.PUBLISHER_CLOCK):
        lasts *= random.choice((-1, 1))
    return lasts
