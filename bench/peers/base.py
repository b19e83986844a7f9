"""What every system under comparison is asked to do, and what it carries.

A system has three parts, in processes of their own: a server (a child, where it has one), a source
that sends, and the hosts that receive. A `Peer` is a description that can be sent to a process;
there it makes that process's part. Times are by the machine's one clock, in ns since the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.hold import Sent
from bench.system import Progress
from goalstate.bus.brokers import Broker
from goalstate.dpm.core import Core
from goalstate.gs import envelope as envelopes
from goalstate.gs.intent import Intent
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2
from goalstate.gs.streams import StreamKind
from goalstate.gs.topics import Topics
from goalstate.scale.generate import Region

#: Connections that the hosts of the one process share, where a system can share them.
CONNECTIONS = 10

#: Called with the host's number, and how many units reached it.
Arrived = Callable[[int, int], None]


class Entry(NamedTuple):
    """One resource by itself, for systems that keep a key or a row for each."""

    id: str
    payload: bytes


class Work(NamedTuple):
    """What is sent: the messages that the publisher's core makes of a VPC's stream."""

    #: So many ports of a VPC whose subnets, groups and the like are known already.
    state: tuple[Sent, ...]
    #: Each adds one port.
    changes: tuple[Sent, ...]

    def entries(self) -> list[Entry]:
        return [entry for sent in self.state for entry in entries(sent.payload)]

    def changed(self, number: int) -> Entry:
        (entry,) = entries(self.changes[number].payload)
        return entry


def entries(payload: bytes) -> list[Entry]:
    """A message's resources, each in a GoalStateV2 of its own."""
    whole = GoalStateV2.FromString(payload)
    found = []
    for field, by_id in whole.ListFields():
        if not isinstance(by_id, Mapping):
            continue
        for id_, state in by_id.items():
            one = GoalStateV2()
            getattr(one, field.name)[id_].CopyFrom(state)
            found.append(Entry(f"{field.name}/{id_}", one.SerializeToString()))
    return found


def region_of(ports: int, hosts: int, changes: int, vpcs: int = 1) -> Region:
    return Region(hosts=hosts, vpcs=(ports + changes,) * vpcs, dhcp_share=0)


def intents(region: Region, number: int, ports: int, changes: int) -> tuple[Intent, ...]:
    """Of VPC `number`: its network, so many ports at once, and so many more one by one."""
    whole = next(region.vpc_intents(number, ports))
    more = (Intent(ports=(region.port(number, ports + n),)) for n in range(changes))
    return whole._replace(ports=()), Intent(ports=whole.ports), *more


def make_work(ports: int, hosts: int, changes: int) -> Work:
    """The messages about one VPC, from the publisher's core."""
    region = region_of(ports, hosts, changes)
    core = Core(Topics())
    core.begin_epoch(1)

    def sent(intent: Intent) -> tuple[Sent, ...]:
        return tuple(
            Sent(envelopes.to_properties(one.envelope), one.payload)
            for one in core.accept(core.plan(intent), 0).publications
            if one.envelope.stream.kind is StreamKind.VPC
        )

    for intent in region.host_intents():
        sent(intent)
    network, state, *more = intents(region, 1, ports, changes)
    sent(network)
    return Work(sent(state), tuple(one for intent in more for one in sent(intent)))


class Source(Protocol):
    """Sends. In a process of its own, in whose event loop all of this is called."""

    async def open(self) -> None:
        """Connect, or serve."""

    async def begin(self, vpc: str) -> None:
        """A VPC that nobody follows yet: what there must be before somebody can."""

    async def state(self, vpc: str) -> None:
        """Send all of it; returns when that is accepted."""

    async def change(self, vpc: str, number: int) -> None:
        """Send one change; returns when that is accepted."""

    async def admit(self, vpc: str, first: int, hosts: int) -> None:
        """These hosts are new: send them the state, if they get it from nowhere else."""

    async def close(self) -> None: ...


class Hosts(Protocol):
    """Some hosts of one VPC. In a process of its own, as above."""

    async def connect(self) -> None: ...

    async def follow(self, arrived: Arrived) -> None:
        """From now on each hears of all that is sent; if they are late, first of all there is.

        Returns when all are ready. Units may arrive before, from threads of any kind.
        """

    async def close(self) -> None: ...


class Peer(Protocol):
    """How a system does the work. To be sent to processes, so that it holds plain values."""

    @property
    def name(self) -> str: ...

    #: What it is, its versions included.
    @property
    def version(self) -> str: ...

    #: How its source and its hosts were set up, in one sentence.
    @property
    def how(self) -> str: ...

    #: Why nobody can join late; None if that can be done.
    @property
    def no_late(self) -> str | None: ...

    #: Processes of its server.
    @property
    def servers(self) -> tuple[int, ...]: ...

    #: Processes of its publisher, where that is not the source.
    @property
    def publishers(self) -> tuple[int, ...]: ...

    def units(self, work: Work) -> int:
        """In how many units the whole state reaches each host; a change is one."""

    def source(self, work: Work, hosts: int) -> Source: ...

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        """Hosts from this number on."""


class Place(NamedTuple):
    """Where a system's server may be started."""

    #: Ends with the system's measurement.
    stack: ExitStack
    scratch: Path
    progress: Progress
    #: Apache Pulsar, started when it is first asked for.
    broker: Callable[[], Broker]


#: Starts a system's server. Raises MeasurementFailed, BusError, OSError: it cannot be had.
Start = Callable[[Place], Peer]
