"""goalstate itself: its publisher, with its agents, or with plain readers in their place."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import islice
from time import time_ns
from typing import Any

import grpc

from bench.large import LargeVpc
from bench.peers.base import Hosts, Place, Source, Work, intents, region_of
from bench.peers.pulsar_client import Readers, version
from bench.peers.runner import Meter, Result, Sizes, Task
from bench.system import CONVERGE_S, Fleet, MeasurementFailed, Progress, System
from goalstate import __version__
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2_grpc import (
    DataPlaneManagerStub,
)
from goalstate.gs.streams import Mark, StreamId, vpc_stream
from goalstate.gs.topics import Topics

NAME = "goalstate with its agents"
#: Seconds between two looks.
_LOOK_S = 0.01


@dataclass(frozen=True)
class Published:
    """Its publisher, from intent on; its messages go to plain readers."""

    url: str
    address: str
    prefix: str
    version: str
    servers: tuple[int, ...]
    publishers: tuple[int, ...]
    sizes: Sizes
    name: str = "goalstate from intent on"
    how: str = (
        "`goalstate dpm serve` is given an intent, with all that it does (validation, intent log, "
        "derivation); plain readers, on one connection, read what it publishes for the VPC"
    )
    no_late: str | None = "as with its messages alone"

    def units(self, work: Work) -> int:
        return len(work.state)

    def source(self, work: Work, hosts: int) -> Source:
        return _Client(self)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        region = region_of(self.sizes.ports, self.sizes.hosts, self.sizes.changed)
        stream = vpc_stream(region.vpc_id(_number(vpc)))
        topics = [Topics(self.prefix).of_stream(stream)] * number
        return Readers(self.url, topics, first, late=late)


def start(place: Place, sizes: Sizes) -> Published:
    broker = place.broker()
    system = place.stack.enter_context(System(broker, "peers-plain", place.progress))
    found = f"goalstate {__version__}, {version(broker.describe())}"
    prefix, address = system.topics.prefix, system.address
    publishers = (system.dpm_pid,)
    return Published(broker.url, address, prefix, found, broker.pids, publishers, sizes)


def _number(vpc: str) -> int:
    return int(vpc.rpartition("-")[2]) + 1


class _Client:
    """The publisher's client."""

    def __init__(self, peer: Published) -> None:
        self._peer = peer
        self._sizes = peer.sizes
        sizes = peer.sizes
        self._region = region_of(sizes.ports, sizes.hosts, sizes.changed, sizes.rounds)
        self._of_vpc: dict[str, tuple[api.ApplyRequest, ...]] = {}

    async def open(self) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.aio.insecure_channel(self._peer.address, options=options)
        self._stub: Any = DataPlaneManagerStub(self._channel)
        for intent in self._region.host_intents():
            await self._apply(_request(intent))

    async def begin(self, vpc: str) -> None:
        some = intents(self._region, _number(vpc), self._sizes.ports, self._sizes.changed)
        self._of_vpc[vpc] = tuple(map(_request, some))
        (stream,) = (await self._apply(self._of_vpc[vpc][0])).streams
        # It is answered when it is durable; who follows from now on shall not hear of it.
        topic = Topics(self._peer.prefix).of_stream(StreamId.parse(stream.stream))
        bus = await connect(self._peer.url)
        while await bus.last(topic) is None:
            await asyncio.sleep(_LOOK_S)
        await bus.close()

    async def state(self, vpc: str) -> None:
        await self._apply(self._of_vpc[vpc][1])

    async def change(self, vpc: str, number: int) -> None:
        await self._apply(self._of_vpc[vpc][2 + number])

    async def _apply(self, request: api.ApplyRequest) -> api.ApplyReply:
        reply: api.ApplyReply = await self._stub.Apply(request, timeout=CONVERGE_S)
        return reply

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        await self._channel.close()


def _request(intent: Intent) -> api.ApplyRequest:
    return api.ApplyRequest(intent=intent_codec.to_proto(intent))


def run_agents(place: Place, sizes: Sizes) -> Result:
    """Its publisher and its agents, which decode and hold everything.

    Raises MeasurementFailed, BusError.
    """
    broker = place.broker()
    result = Result(
        NAME,
        f"goalstate {__version__}, {version(broker.describe())}",
        "`goalstate dpm serve` is given an intent; `goalstate agent run` plays all hosts, each of "
        "which checks, decodes (shared), holds and programs everything (memory data plane)",
    )
    _Agents(broker, sizes, place.progress, result).run()
    _join(broker, sizes, place.progress, result)
    return result


class _Agents:
    """Hosts that follow already: one port of the VPC is on each, all others on one more host, which
    nobody plays."""

    def __init__(self, broker: Broker, sizes: Sizes, progress: Progress, result: Result) -> None:
        self._broker = broker
        self._sizes = sizes
        self._progress = progress
        self._result = result
        ports = sizes.hosts + sizes.ports
        self._region = region_of(ports, sizes.hosts + 1, sizes.changed, sizes.rounds)

    def run(self) -> None:
        sizes, result = self._sizes, self._result
        with System(self._broker, "peers-agents", self._progress) as system:
            system.apply_all(self._region.host_intents())
            fleet = system.fleet(sizes.hosts)
            meter = Meter(self._broker.pids, (system.dpm_pid,), (fleet.pid,))
            begun = time.monotonic()
            for number in range(1, sizes.rounds + 1):
                self._progress(f"peers: {NAME}: VPC {number}")
                first = next(self._region.vpc_intents(number, sizes.hosts))
                ports = [self._on(port, place) for place, port in enumerate(first.ports)]
                self._apply(system, fleet, first._replace(ports=tuple(ports)), Task())
                with meter.of(result.state):
                    self._apply(
                        system, fleet, self._more(number, sizes.hosts, sizes.ports), result.state
                    )
                if time.monotonic() - begun > sizes.enough_s:
                    break
            self._change(system, fleet, meter, number)

    def _change(self, system: System, fleet: Fleet, meter: Meter, number: int) -> None:
        sizes, result = self._sizes, self._result
        self._progress(f"peers: {NAME}: changes")
        first = sizes.hosts + sizes.ports
        for place in range(sizes.warm_up + sizes.changes):
            task = result.change if place >= sizes.warm_up else Task()
            with meter.of(task):
                self._apply(system, fleet, self._more(number, first + place, 1), task)
        result.churn.missing = (
            "agents tell when they got to where they are, not when to each change"
        )

    def _more(self, number: int, first: int, ports: int) -> Intent:
        """Ports on the host that nobody plays."""
        made = (self._region.port(number, place) for place in range(first, first + ports))
        return Intent(ports=tuple(self._on(port, self._sizes.hosts) for port in made))

    def _on(self, port: Any, host: int) -> Any:
        return port._replace(host_id=self._region.host(host).id)

    def _apply(self, system: System, fleet: Fleet, intent: Intent, task: Task) -> None:
        """Apply it, and wait until all hosts have it that are played."""
        hosts = self._sizes.hosts
        requested = time_ns()
        reply = system.apply(intent)
        (stream,) = (one for one in reply.streams if one.stream.startswith("vpc/"))
        # The one that nobody plays never has it.
        request = api.WaitRequest(
            change=reply.change, quorum=hosts / (hosts + 1) - 1e-6, timeout_s=CONVERGE_S
        )
        if not system.stub.Wait(request, timeout=CONVERGE_S + 10).converged:
            raise MeasurementFailed(f"not on {hosts} hosts within {CONVERGE_S:g} s")
        mark = Mark(stream.epoch, stream.sequence)
        applied = fleet.applied_ns(StreamId.parse(stream.stream), mark, hosts)
        task.add(requested, min(applied), max(applied))


def _join(broker: Broker, sizes: Sizes, progress: Progress, result: Result) -> None:
    """Hosts get their first port in the VPC: one after the other, then all at once."""
    guests = sizes.joiners + sizes.hosts
    vpc = LargeVpc(sizes.ports, guests=guests, more=2 * guests)
    with System(broker, "peers-join", progress, **vpc.settings) as system:
        vpc.build(system)
        vpc.await_checkpoint(system)
        places = iter(range(vpc.first_guest, vpc.first_guest + guests))
        for task, number, repeats in (
            (result.join, 1, sizes.joiners),
            (result.storm, sizes.hosts, 1),
        ):
            for _ in range(repeats):
                progress(f"peers: {NAME}: {number} hosts join late")
                hosts = list(islice(places, number))
                fleet = system.fleet(number, first=hosts[0])
                meter = Meter(broker.pids, (system.dpm_pid,), (fleet.pid,))
                with meter.of(task):
                    requested = time_ns()
                    reply = system.apply(vpc.more(*hosts))
                    mark = max(
                        Mark(at.epoch, at.sequence)
                        for at in reply.streams
                        if at.stream == str(vpc.stream)
                    )
                    applied = fleet.applied_ns(vpc.stream, mark, number)
                task.add(requested, min(applied), max(applied))
                fleet.child.stop()
