"""Has one system do the work, and measures it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.machine import cpu_s, descendants, loopback_bytes
from bench.peers.base import Peer, Work
from bench.peers.processes import HostsProcess, SourceProcess
from bench.system import MeasurementFailed, Progress


class Sizes(NamedTuple):
    """How much of the work is done."""

    hosts: int
    ports: int
    #: VPCs that become known, one after the other; the last one gets the changes.
    rounds: int
    warm_up: int
    changes: int
    #: Changes a second, and how many.
    rate: float
    churn: int
    #: Single late hosts, one after the other; then `hosts` at once.
    joiners: int
    #: Seconds after which no further repeat of a task is begun.
    enough_s: float

    @property
    def changed(self) -> int:
        return self.warm_up + self.changes + self.churn


@dataclass
class Cost:
    """What a task took besides time, one value for each repeat: seconds of CPU, and bytes."""

    server: list[float] = field(default_factory=list)
    source: list[float] = field(default_factory=list)
    hosts: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)


@dataclass
class Task:
    """Milliseconds to the first and to the last host, one value for each repeat, and the cost.

    The cost of changes is that of all of them, divided by their number.
    """

    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    #: Why there is nothing.
    missing: str = ""

    def add(self, begun: int, first: int, last: int) -> None:
        self.first.append((first - begun) / 1e6)
        self.last.append((last - begun) / 1e6)


@dataclass
class Result:
    """All tasks of one system."""

    name: str
    version: str = ""
    how: str = ""
    state: Task = field(default_factory=Task)
    change: Task = field(default_factory=Task)
    churn: Task = field(default_factory=Task)
    join: Task = field(default_factory=Task)
    storm: Task = field(default_factory=Task)
    #: Why it was not measured at all.
    missing: str = ""

    @property
    def tasks(self) -> dict[str, Task]:
        names = ("state", "change", "churn", "join", "storm")
        return {name: getattr(self, name) for name in names}


class Meter:
    """Reads what a system's processes have used."""

    def __init__(
        self, servers: tuple[int, ...], publishers: tuple[int, ...], hosts: tuple[int, ...]
    ) -> None:
        self._pids = (servers, publishers, hosts)

    def read(self) -> tuple[float, float, float, int]:
        server, source, hosts = (
            sum(cpu_s(pid) for parent in pids for pid in descendants(parent)) for pids in self._pids
        )
        return server, source, hosts, loopback_bytes()

    @contextmanager
    def of(self, task: Task, repeats: int = 1) -> Iterator[None]:
        """What goes by inside belongs to these repeats of a task."""
        before = self.read()
        yield
        spent = [(now - then) / repeats for now, then in zip(self.read(), before, strict=True)]
        lists = (task.cost.server, task.cost.source, task.cost.hosts, task.cost.bytes)
        for values, value in zip(lists, spent, strict=True):
            values.append(value)


def run(peer: Peer, work: Work, sizes: Sizes, progress: Progress) -> Result:
    """Raises MeasurementFailed."""
    result = Result(peer.name, peer.version, peer.how)
    units = peer.units(work)
    with SourceProcess(peer, work, sizes.hosts) as source, HostsProcess(peer) as hosts:
        meter = Meter(peer.servers, peer.publishers or (source.pid,), (hosts.pid,))
        begun = time.monotonic()
        for number in range(sizes.rounds):
            vpc = f"vpc-{number}"
            progress(f"peers: {peer.name}: {vpc}")
            source.begin(vpc)
            hosts.connect(vpc, 0, sizes.hosts)
            hosts.expect(0, 1, units)
            hosts.follow(0)
            with meter.of(result.state):
                span = source.state(vpc)
                (reached,) = hosts.reached(0)
            result.state.add(span.begun, *reached)
            if number + 1 == sizes.rounds or time.monotonic() - begun > sizes.enough_s:
                break
            hosts.leave(0)
        progress(f"peers: {peer.name}: hosts join late")
        _join(peer, source, hosts, meter, vpc, units, sizes, result)
        progress(f"peers: {peer.name}: changes")
        try:
            _change(source, hosts, meter, vpc, sizes, result)
        except MeasurementFailed as error:  # what was measured before stands
            for task in (result.change, result.churn):
                task.missing = "" if task.last else str(error)
    return result


def _join(
    peer: Peer,
    source: SourceProcess,
    hosts: HostsProcess,
    meter: Meter,
    vpc: str,
    units: int,
    sizes: Sizes,
    result: Result,
) -> None:
    if peer.no_late:
        result.join.missing = result.storm.missing = peer.no_late
        return
    first = sizes.hosts
    for task, number, repeats in (
        (result.join, 1, sizes.joiners),
        (result.storm, sizes.hosts, 1),
    ):
        for _ in range(repeats):
            hosts.connect(vpc, first, number, late=True)
            hosts.expect(first, 1, units)
            try:
                with meter.of(task):
                    span = hosts.follow(first)
                    source.admit(vpc, first, number)
                    (reached,) = hosts.reached(first)
                task.add(span.begun, *reached)
            except MeasurementFailed as error:
                task.missing = str(error)
            hosts.leave(first)
            first += number


def _change(
    source: SourceProcess,
    hosts: HostsProcess,
    meter: Meter,
    vpc: str,
    sizes: Sizes,
    result: Result,
) -> None:
    durations = []
    begun = time.monotonic()
    for number in range(sizes.warm_up + sizes.changes):
        task = result.change if number >= sizes.warm_up else Task()
        hosts.expect(0, 1, 1)
        with meter.of(task):
            (span,) = source.changes(vpc, number, 1, None)
            (reached,) = hosts.reached(0)
        task.add(span.begun, *reached)
        durations.append((span.ended - span.begun) / 1e9)
        if time.monotonic() - begun > sizes.enough_s and result.change.last:
            break
    one = statistics.median(durations)
    if one * sizes.rate > 1:
        result.churn.missing = f"one change takes the publisher {one:.1f} s"
        return
    hosts.expect(0, sizes.churn, 1)
    with meter.of(result.churn, sizes.churn):
        first = sizes.warm_up + sizes.changes
        spans = source.changes(vpc, first, sizes.churn, sizes.rate)
        reached_all = hosts.reached(0)
    for span, reached in zip(spans, reached_all, strict=True):
        result.churn.add(span.begun, *reached)


def document(result: Result) -> dict[str, Any]:
    """For programs."""
    return {
        "name": result.name,
        "version": result.version,
        "missing": result.missing,
        "tasks": {
            name: vars(task) | {"cost": vars(task.cost)} for name, task in result.tasks.items()
        },
    }
