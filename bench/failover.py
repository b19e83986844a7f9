"""How long a region is not served when its publisher is gone, or is silent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from time import monotonic

from bench.large import LargeVpc
from bench.report import Goal, Section, Table
from bench.samples import Samples
from bench.system import Brokers, Progress, Publisher, System

GOAL_S = 5.0

METHOD = """\
Two publishers of a region with a VPC of {ports:,} ports; one serves, the other stands by and
follows the log. The one that serves is killed (kill -9), or stopped as a whole (SIGSTOP: its
connections stay, and the broker does not see that it is gone). Inside the interval: from before
the signal until the other one has served an `Apply`, which a client tries again and again,
{each:g} s apart at least. After each run a new second publisher is started, and is known to
stand by before the next."""
_EACH_S = 0.01


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    ports = 2000 if quick else 100_000
    runs = 2 if quick else 10
    ways: dict[str, Callable[[Publisher], None]] = {
        "kill -9": lambda one: one.child.kill(),
        "SIGSTOP": lambda one: os.kill(one.pid, signal.SIGSTOP),
    }
    vpc = LargeVpc(ports)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with System(brokers.get(), "failover", progress) as system:
        vpc.build(system)
        for way, end in ways.items():
            for number in range(runs):
                progress(f"failover: {way}, {number + 1} of {runs}")
                other = system.publisher()
                begun = monotonic()
                end(system.dpm)
                seconds[way].append(other.apply_soon(vpc.more(vpc.first_guest)) - begun)
                # It must not come back and be a third one.
                system.dpm.child.kill()
                system.dpm = other
    goals = [
        Goal(
            f"failover, {way}, {ports:,} ports",
            GOAL_S,
            "s",
            Samples.of(found),
            at_size=not quick,
        )
        for way, found in seconds.items()
    ]
    rows = [(way, len(found), Samples.of(found)) for way, found in seconds.items()]
    return Section(
        "failover",
        "Failover to a standby",
        METHOD.format(ports=ports, each=_EACH_S),
        goals,
        [Table(("the active one", "runs#", "until the other served s#"), rows)],
        {"ports": ports, "seconds": seconds},
    )
