"""Runs the twins of `bench.channels`: changes, joins and beginnings, on both channels in turn."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic, sleep, time_ns
from typing import Any, NamedTuple

from bench.followers import Followers
from bench.machine import cpu_s, resident_bytes
from bench.samples import Samples
from bench.system import Fleet, Progress, System
from bench.twins import Twins, Vpc, region_of
from goalstate.bus.brokers import Broker
from goalstate.gs.intent import Intent
from goalstate.gs.streams import Mark

#: Hosts that nobody plays: those of ports where only light followers follow.
_UNPLAYED = 50
_WARM_UP = 3
#: Seconds over which publisher and broker are looked at while nothing happens, and how often: what
#: they finish of what was before is not to be in it.
_IDLE_S = 0.5
_IDLE_LOOKS = 4
#: No checkpoint of a stream is written: followers count messages, and the logs hold little more.
_SETTINGS = {"channel": "auto", "checkpoint_min_bytes": 1 << 30}
_NAMES = ("sessions", "topics")


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    #: Light followers, each pair of VPCs having as many ports (but at least 2).
    followers: Sequence[int] = (1, 5, 10, 20, 50, 100, 200, 500)
    #: Ports of VPCs that so many follow.
    ports: Sequence[int] = (500, 5000)
    followers_of_ports: int = 50
    #: Changes that broker and publisher are warmed up with, on each channel.
    warm_up: int = 3000
    #: Changes one after the other, and at once; and how often both channels take turns.
    single: int = 20
    burst: int = 100
    turns: int = 7
    #: Messages to followers in a burst, at most.
    deliveries: int = 4000
    #: Fleets: hosts and processes; and the ports of the VPC of each.
    fleets: Sequence[tuple[int, int, int]] = (
        *((10, 1, 10), (50, 1, 50), (200, 1, 200), (200, 4, 200), (200, 4, 5000)),
    )
    #: Changes one after the other, at once, and how often these.
    host_single: int = 20
    host_burst: int = 40
    host_turns: int = 3
    #: Small VPCs, on each channel, and in how many pieces beyond a first, which is not measured.
    small: int = 750
    pieces: int = 4
    #: Ports of VPCs that hosts join, and how many do after a first, which is not measured.
    joined: Sequence[int] = (10, 200, 5000)
    joins: int = 5


QUICK = Sizes(
    followers=(1, 10, 50),
    ports=(1000,),
    followers_of_ports=10,
    warm_up=500,
    single=5,
    burst=20,
    turns=2,
    deliveries=1000,
    fleets=((10, 1, 10), (50, 1, 50)),
    host_single=10,
    host_burst=20,
    host_turns=2,
    small=100,
    pieces=2,
    joined=(1000,),
    joins=2,
)


# --- processor time ---


class Used(NamedTuple):
    """Processor seconds."""

    dpm: float
    broker: float

    @property
    def both(self) -> float:
        return self.dpm + self.broker

    def since(self, before: Used) -> Used:
        return Used(self.dpm - before.dpm, self.broker - before.broker)

    def times(self, factor: float) -> Used:
        return Used(self.dpm * factor, self.broker * factor)


class Meter:
    """Reads what publisher and broker use beyond what they use when nothing happens."""

    def __init__(self, system: System, broker_pid: int) -> None:
        self._pids = system.dpm_pid, broker_pid
        self._idle = Used(0, 0)

    def used(self) -> Used:
        return Used(*map(cpu_s, self._pids))

    def idle(self) -> Used:
        """Look what they use now in a second, at the least, while nothing is asked of them."""
        looks = []
        for _ in range(_IDLE_LOOKS):
            before, begun = self.used(), monotonic()
            sleep(_IDLE_S)
            looks.append(self.used().since(before).times(1 / (monotonic() - begun)))
        self._idle = Used(*map(min, zip(*looks, strict=True)))
        return self._idle

    def beyond(self, before: Used, seconds: float) -> Used:
        return self.used().since(before).since(self._idle.times(seconds))


@dataclass
class Cost:
    """What changes to a VPC cost on one channel: milliseconds a change, one value for each turn."""

    last: list[float] = field(default_factory=list)
    dpm: list[float] = field(default_factory=list)
    broker: list[float] = field(default_factory=list)
    follower: list[float] = field(default_factory=list)

    @property
    def last_ms(self) -> float:
        return Samples.of(self.last).median

    @property
    def dpm_ms(self) -> float:
        return Samples.of(self.dpm).median

    @property
    def broker_ms(self) -> float:
        return Samples.of(self.broker).median

    @property
    def follower_ms(self) -> float:
        return Samples.of(self.follower).median

    @property
    def both(self) -> list[float]:
        return [dpm + broker for dpm, broker in zip(self.dpm, self.broker, strict=True)]

    @property
    def both_ms(self) -> float:
        return Samples.of(self.both).median


class Pair(NamedTuple):
    """The same on both channels."""

    session: Cost
    topic: Cost

    @classmethod
    def empty(cls) -> Pair:
        return cls(Cost(), Cost())


# --- light followers ---


class Cell(NamedTuple):
    """Changes to a pair of VPCs that light followers follow."""

    followers: int
    ports: int
    what: str
    single: Pair
    burst: Pair

    @classmethod
    def of(cls, followers: int, ports: int, what: str = "") -> Cell:
        return cls(followers, ports, what, Pair.empty(), Pair.empty())

    def document(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "single": [asdict(cost) for cost in self.single],
            "burst": [asdict(cost) for cost in self.burst],
        }


class _Followed:
    """A pair of VPCs with as many light followers each."""

    def __init__(self, system: System, twins: Twins, count: int, stack: ExitStack) -> None:
        self.vpcs = twins
        self.count = count
        self._system = system
        mark = twins.session.build(system)
        twins.topic.build(system)
        before = resident_bytes(system.dpm_pid)
        session = stack.enter_context(
            Followers.of_sessions(count, system.address, twins.session.stream, mark)
        )
        #: Bytes that the publisher grew by for the sessions.
        self.resident = resident_bytes(system.dpm_pid) - before
        topic = system.topics.of_stream(twins.topic.stream)
        self._followers = (
            session,
            stack.enter_context(Followers.of_topic(count, system.broker.url, topic)),
        )
        self.warm_up(_WARM_UP)

    def _change(self, channel: int, intents: Sequence[Intent]) -> tuple[float, float]:
        """Apply some; milliseconds from the request until the last follower has the last, and of
        the followers' processor time."""
        followers = self._followers[channel]
        used = followers.expect(len(intents))
        requested = time_ns()
        if len(intents) == 1:
            self._system.apply(intents[0])
        else:
            self._system.apply_all(intents)
        came = followers.await_all()
        return (came.last_ns - requested) / 1e6, (came.cpu_s - used) * 1e3

    def warm_up(self, changes: int) -> None:
        for channel, vpc in enumerate(self.vpcs):
            self._change(channel, [vpc.membership() for _ in range(changes)])

    def turn(
        self,
        meter: Meter,
        sizes: Sizes,
        cell: Cell,
        make: Callable[[Vpc], Intent] = Vpc.membership,
        *,
        bursts: bool = True,
    ) -> None:
        """Changes one after the other, and a burst; first on one channel, then on the other."""
        single = min(sizes.single, max(5, sizes.deliveries // self.count // 2))
        burst = min(sizes.burst, max(10, sizes.deliveries // self.count))
        for channel, vpc in enumerate(self.vpcs):
            changes = [make(vpc) for _ in range(single)]
            self._turn(meter, channel, [[one] for one in changes], cell.single[channel])
        for channel, vpc in enumerate(self.vpcs if bursts else ()):
            changes = [make(vpc) for _ in range(burst)]
            self._turn(meter, channel, [changes], cell.burst[channel])

    def _turn(self, meter: Meter, channel: int, rounds: Sequence[list[Intent]], to: Cost) -> None:
        changes = sum(map(len, rounds))
        before, begun = meter.used(), monotonic()
        results = [self._change(channel, intents) for intents in rounds]
        used = meter.beyond(before, monotonic() - begun).times(1e3 / changes)
        to.last.append(Samples.of(last for last, _ in results).median / len(rounds[0]))
        to.dpm.append(used.dpm)
        to.broker.append(used.broker)
        to.follower.append(sum(follower for _, follower in results) / changes)


@dataclass
class Light:
    """What was measured with light followers."""

    by_followers: list[Cell] = field(default_factory=list)
    by_ports: list[Cell] = field(default_factory=list)
    by_members: list[Cell] = field(default_factory=list)
    #: Of all light followers of each kind: how many they were, the bytes that the publisher grew
    #: by for each session, and what publisher and broker use in a second while nothing happens,
    #: without them and with them.
    followers: int = 0
    session_bytes: float = 0
    idle: Sequence[Used] = ()


def light(broker: Broker, progress: Progress, sizes: Sizes) -> Light:
    """All followers are there all the time, and all pairs have their turn in each round."""
    found = Light(
        [Cell.of(count, max(count, 2)) for count in sizes.followers],
        [Cell.of(sizes.followers_of_ports, ports) for ports in sizes.ports],
    )
    cells = [*found.by_followers, *found.by_ports]
    region = region_of(_UNPLAYED, [cell.ports for cell in cells])
    with System(broker, "channels", progress, **_SETTINGS) as system, ExitStack() as stack:
        system.apply_all(region.host_intents())
        meter = Meter(system, broker.pids[0])
        alone = meter.idle()
        pairs: list[_Followed] = []
        for place, cell in enumerate(cells):
            progress(f"channels: {cell.followers} followers of {cell.ports:,} ports")
            twins = Twins.of(region, place, range(_UNPLAYED))
            pairs.append(_Followed(system, twins, cell.followers, stack))
        found.followers = sum(pair.count for pair in pairs)
        found.session_bytes = sum(pair.resident for pair in pairs) / found.followers
        progress("channels: warming up")
        pairs[0].warm_up(sizes.warm_up)
        found.idle = alone, meter.idle()
        for number in range(sizes.turns):
            progress(f"channels: turn {number}")
            for pair, cell in zip(pairs, cells, strict=True):
                pair.turn(meter, sizes, cell)
        found.by_members = _groups(pairs[-1], meter, sizes, progress)
    return found


def _groups(followed: _Followed, meter: Meter, sizes: Sizes, progress: Progress) -> list[Cell]:
    """Changes of groups with few members and many."""
    vpc = followed.vpcs.session
    kinds = {
        (what, group): Cell.of(
            followed.count, vpc.ports, f"{what}, of {vpc.members(group):,} members"
        )
        for group in ("db", "web", "default")
        for what in ("a member more or less", "a rule")
    }
    for number in range(sizes.turns):
        progress(f"channels: turn {number} of groups")
        for (what, group), cell in kinds.items():
            make = Vpc.rule if what == "a rule" else Vpc.membership
            followed.turn(meter, sizes, cell, partial(make, group=group), bursts=False)
    return list(kinds.values())


# --- hosts ---


@dataclass
class Hosts:
    """Changes to a pair of VPCs that hosts follow; milliseconds from the request to the last
    host's having applied the last."""

    hosts: int
    processes: int
    ports: int
    #: By channel.
    single: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    burst: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def hosts(broker: Broker, progress: Progress, sizes: Sizes) -> list[Hosts]:
    most = max(hosts for hosts, _, _ in sizes.fleets)
    region = region_of(most, [ports for _, _, ports in sizes.fleets])
    found = []
    with System(broker, "channels-hosts", progress, **_SETTINGS) as system:
        system.apply_all(region.host_intents())
        fleets: list[Fleet] = []
        played = (0, 0)
        for pair, (hosts, processes, ports) in enumerate(sizes.fleets):
            progress(f"channels: {hosts} hosts in {processes} processes, {ports:,} ports")
            if played != (hosts, processes):
                for fleet in fleets:
                    fleet.child.stop()
                each = hosts // processes
                fleets = [system.fleet(each, first=n * each) for n in range(processes)]
                played = hosts, processes
            twins = Twins.of(region, pair, range(hosts))
            one = Hosts(hosts, processes, ports)
            marks = [vpc.build(system) for vpc in twins]
            for vpc, mark in zip(twins, marks, strict=True):
                _applied_ns(fleets, vpc, mark, hosts)
            for number in range(_WARM_UP + sizes.host_single):
                for channel, vpc in enumerate(twins):
                    latency = _change(system, fleets, vpc, [vpc.membership()], hosts)
                    if number >= _WARM_UP:
                        one.single[channel].append(latency)
            for _ in range(sizes.host_turns):
                for channel, vpc in enumerate(twins):
                    intents = [vpc.membership() for _ in range(sizes.host_burst)]
                    one.burst[channel].append(_change(system, fleets, vpc, intents, hosts))
            found.append(one)
    return found


def _change(
    system: System, fleets: Sequence[Fleet], vpc: Vpc, intents: Sequence[Intent], hosts: int
) -> float:
    requested = time_ns()
    reply = system.apply_all(intents)[-1]
    (at,) = (one for one in reply.streams if one.stream == str(vpc.stream))
    system.wait(reply.change)
    applied = _applied_ns(fleets, vpc, Mark(at.epoch, at.sequence), hosts)
    return (max(applied) - requested) / 1e6


def _applied_ns(fleets: Sequence[Fleet], vpc: Vpc, mark: Mark, hosts: int) -> list[int]:
    each = hosts // len(fleets)
    return [when for fleet in fleets for when in fleet.applied_ns(vpc.stream, mark, each)]


# --- many small VPCs ---


@dataclass
class Small:
    """What many small VPCs cost on one channel; one value for each piece of them."""

    milliseconds: list[float] = field(default_factory=list)
    dpm_ms: list[float] = field(default_factory=list)
    broker_ms: list[float] = field(default_factory=list)
    #: What they grew by: `dpm` and `agents` resident, `broker` what is reachable.
    bytes: dict[str, list[float]] = field(default_factory=dict)


def small_vpcs(broker: Broker, progress: Progress, sizes: Sizes) -> tuple[Small, Small]:
    """VPCs of two ports on two hosts, created piece by piece, on each channel in turn."""
    hosts = 10
    region = region_of(hosts, [2] * sizes.small)
    each = sizes.small // (sizes.pieces + 1)
    found = Small(), Small()
    with System(broker, "channels-small", progress, **_SETTINGS) as system:
        system.apply_all(region.host_intents())
        fleet = system.fleet(hosts)
        meter = Meter(system, broker.pids[0])
        system.wait()
        meter.idle()
        for piece in range(sizes.pieces + 1):
            pairs = [
                Twins.of(region, pair, (pair % hosts, (pair + 1) % hosts))
                for pair in range(piece * each, (piece + 1) * each)
            ]
            for channel, small in enumerate(found):
                progress(f"channels: small VPCs, piece {piece} on {_NAMES[channel]}")
                memory = _memory(system, broker, fleet)
                before, begun = meter.used(), monotonic()
                system.apply_all(one for pair in pairs for one in pair[channel].intents())
                system.wait()
                seconds = monotonic() - begun
                used = meter.beyond(before, seconds)
                if not piece:
                    continue
                small.milliseconds.append(seconds * 1e3 / each)
                small.dpm_ms.append(used.dpm * 1e3 / each)
                small.broker_ms.append(used.broker * 1e3 / each)
                for name, size in _memory(system, broker, fleet).items():
                    small.bytes.setdefault(name, []).append((size - memory[name]) / each)
    return found


def _memory(system: System, broker: Broker, fleet: Fleet) -> dict[str, int]:
    """Bytes; the broker's are not there where they cannot be seen."""
    sizes = {"dpm": resident_bytes(system.dpm_pid), "agents": resident_bytes(fleet.pid)}
    live = _live_bytes(broker.pids[0])
    return sizes if live is None else sizes | {"broker": live}


def _live_bytes(pid: int) -> int | None:
    """Bytes of the objects that are reachable in a Java process; None: it has no `jcmd` to tell."""
    jcmd = Path(f"/proc/{pid}/exe").resolve().with_name("jcmd")
    if not jcmd.is_file():
        return None
    # A histogram of live objects is made after a full collection; its last line is their sum.
    command = [str(jcmd), str(pid), "GC.class_histogram"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout.split()[-1])


# --- a host more ---


def joins(broker: Broker, progress: Progress, sizes: Sizes) -> list[tuple[int, Pair]]:
    """A host gets its first port in a VPC, by a port's move to it."""
    region = region_of(2 + sizes.joins, sizes.joined)
    found = []
    with System(broker, "channels-join", progress, **_SETTINGS) as system:
        system.apply_all(region.host_intents())
        fleet = system.fleet(2 + sizes.joins)
        meter = Meter(system, broker.pids[0])
        for pair, ports in enumerate(sizes.joined):
            progress(f"channels: hosts join a VPC of {ports:,} ports")
            twins = Twins.of(region, pair, (0,))
            for vpc in twins:
                fleet.applied_ns(vpc.stream, vpc.build(system), 1)
            meter.idle()
            costs = Pair.empty()
            for host in range(1, 2 + sizes.joins):
                for vpc, cost in zip(twins, costs, strict=True):
                    before, begun = meter.used(), monotonic()
                    intents = [Intent(ports=(vpc.port(host, host),))]
                    last = _change(system, [fleet], vpc, intents, 1 + host)
                    used = meter.beyond(before, monotonic() - begun).times(1e3)
                    if host == 1:
                        continue
                    cost.last.append(last)
                    cost.dpm.append(used.dpm)
                    cost.broker.append(used.broker)
            found.append((ports, costs))
    return found
