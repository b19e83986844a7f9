"""What one change costs the publisher, by the ports of its VPC and by the hosts that follow it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep, time_ns
from typing import Any

from bench.large import on_host, spread
from bench.machine import cpu_s
from bench.samples import Samples
from bench.system import CONVERGE_S, Brokers, Fleet, MeasurementFailed, Progress, System
from goalstate.gs import intent_codec
from goalstate.gs.intent import Deletion, Intent, ObjectKind, Port
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.streams import vpc_stream
from goalstate.scale.generate import Region

#: Changes in one block; the cost of one is a block's by this.
BLOCK = 20
#: Seconds after the last answer of a block in which what is published gets confirmed.
_TAIL_S = 0.05
#: A publisher that uses less than this share of a core, for so many seconds, has no work left.
_QUIET_SHARE, _QUIET_S = 0.1, 0.5


@dataclass
class Cost:
    """Of one VPC: microseconds of the publisher's processor for a change, a value for a block."""

    number: int
    ports: int
    hosts: int
    #: While no host is there to report.
    alone: list[float] = field(default_factory=list)
    #: With all that its hosts report of it.
    reported: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return Samples.of(self.alone).median


@dataclass(frozen=True)
class Crowd:
    """Many hosts of one process that begin to follow one VPC."""

    hosts: int
    ports: int
    #: Seconds from before their process is started until all hosts have the VPC.
    applied_s: float


def by_ports(
    brokers: Brokers,
    progress: Progress,
    sizes: Sequence[int],
    hosts: int,
    blocks: tuple[int, int],
) -> list[Cost]:
    """VPCs of these sizes on the same few hosts. `blocks`: without and with hosts."""
    region, costs = _region([(ports, hosts) for ports in sizes], hosts)
    with System(brokers.get(), "cost-ports", progress) as system:
        system.apply_all(region.host_intents())
        for cost in costs:
            _build(system, region, cost)
        progress("scaling: cost of a change by ports, nobody reports")
        _blocks(system, region, costs, blocks[0])
        progress("scaling: cost of a change by ports, with reports")
        system.fleet(hosts, counting_share=1.0)
        system.wait()
        _blocks(system, region, costs, blocks[1], reported=True)
    return costs


def by_followers(
    brokers: Brokers,
    progress: Progress,
    followers: Sequence[int],
    ports: int,
    blocks: tuple[int, int],
) -> tuple[list[Cost], Crowd]:
    """VPCs of the same size on ever more hosts (ascending), the last of which have a port each;
    those are watched as they begin to follow, while there is no other VPC."""
    most = followers[-1]
    region, costs = _region([(ports, hosts) for hosts in followers], most)
    with System(brokers.get(), "cost-followers", progress) as system:
        system.apply_all(region.host_intents())
        _build(system, region, costs[-1])
        _await_quiet(system)
        progress(f"scaling: {most:,} hosts of one process subscribe")
        fleet, crowd = _subscribe(system, region, costs[-1])
        for cost in costs[:-1]:
            _build(system, region, cost)
        system.wait()
        progress("scaling: cost of a change by followers, with reports")
        _blocks(system, region, costs, blocks[1], reported=True)
        fleet.child.stop()
        progress("scaling: cost of a change by followers, nobody reports")
        _blocks(system, region, costs, blocks[0])
    return costs, crowd


def _region(shapes: Sequence[tuple[int, int]], hosts: int) -> tuple[Region, list[Cost]]:
    """Room for a block more than there is in each VPC."""
    region = Region(hosts=hosts, vpcs=tuple(ports + BLOCK for ports, _ in shapes), dhcp_share=0)
    return region, [Cost(number, *shape) for number, shape in enumerate(shapes, 1)]


def _build(system: System, region: Region, cost: Cost) -> None:
    system.apply_all(spread(region, cost.number, cost.ports, cost.hosts))


def _subscribe(system: System, region: Region, cost: Cost) -> tuple[Fleet, Crowd]:
    """Raises MeasurementFailed where not all hosts follow the VPC in the end."""
    begun = time_ns()
    fleet = system.fleet(cost.hosts, counting_share=1.0)
    system.wait()
    stream = str(vpc_stream(region.vpc_id(cost.number)))
    applied = [at.applied_unix_ns for _, at in fleet.positions() if at.stream == stream]
    if len(applied) != cost.hosts:
        raise MeasurementFailed(f"{len(applied)} of {cost.hosts} hosts follow {stream}")
    return fleet, Crowd(cost.hosts, cost.ports, (max(applied) - begun) / 1e9)


def _await_quiet(system: System) -> None:
    """Until what came of what was built is done. Raises MeasurementFailed."""
    end = monotonic() + CONVERGE_S
    while monotonic() < end:
        before = cpu_s(system.dpm_pid)
        sleep(_QUIET_S)
        if cpu_s(system.dpm_pid) - before < _QUIET_SHARE * _QUIET_S:
            return
    raise MeasurementFailed(f"the publisher was not quiet within {CONVERGE_S:g} s")


def _blocks(
    system: System, region: Region, costs: Sequence[Cost], blocks: int, *, reported: bool = False
) -> None:
    """So many of each VPC, in turn; one more before them is not counted."""
    _await_quiet(system)
    calls = _OneByOne(system)
    try:
        for number in range(blocks + 1):
            for cost in costs:
                spent = _block(system, calls.apply, _ports(region, cost), wait=reported)
                if number:
                    (cost.reported if reported else cost.alone).append(spent)
    finally:
        calls.close()


def _ports(region: Region, cost: Cost) -> list[Port]:
    """A block's, beyond those that the VPC has."""
    return [on_host(region, cost.number, cost.ports + n, n % cost.hosts) for n in range(BLOCK)]


def _block(
    system: System,
    apply: Callable[[Intent], api.ApplyReply],
    ports: Sequence[Port],
    *,
    wait: bool,
) -> float:
    """Create these ports one by one, and have them go again; microseconds for each creation."""
    before = cpu_s(system.dpm_pid)
    for port in ports:
        reply = apply(Intent(ports=(port,)))
        if wait:
            system.wait(reply.change)
    sleep(_TAIL_S)
    spent = cpu_s(system.dpm_pid) - before
    reply = apply(Intent(deletes=tuple(Deletion(ObjectKind.PORT, port.id) for port in ports)))
    if wait:
        system.wait(reply.change)
    sleep(_TAIL_S)
    return spent / len(ports) * 1e6


class _OneByOne:
    """Intents on one stream, each of which is answered before the next is sent."""

    def __init__(self, system: System) -> None:
        self._requests: queue.SimpleQueue[api.ApplyRequest | None] = queue.SimpleQueue()
        self._replies: Any = system.stub.ApplyStream(iter(self._requests.get, None))

    def apply(self, intent: Intent) -> api.ApplyReply:
        """Raises grpc.RpcError; MeasurementFailed when it is refused."""
        self._requests.put(api.ApplyRequest(intent=intent_codec.to_proto(intent)))
        reply: api.ApplyReply = next(self._replies)
        if reply.violations:
            first = reply.violations[0]
            raise MeasurementFailed(f"an intent was refused: {first.path}: {first.message}")
        return reply

    def close(self) -> None:
        self._requests.put(None)
