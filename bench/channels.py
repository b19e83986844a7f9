"""What a VPC costs on sessions and on a topic, over its size and its followers: where the default
thresholds of the choice between the two come from (`goalstate.dpm.channels`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from bench import channel_runs
from bench.channel_runs import QUICK, Cell, Cost, Hosts, Light, Pair, Sizes, Small
from bench.machine import kib
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, MeasurementFailed, Progress
from goalstate.bus.brokers import Broker
from goalstate.dpm.channels import SESSION_PORTS

_GIB = 2**30

METHOD = """\
VPCs come in twins that differ in nothing but their channel; publisher, broker, followers and client
are processes of their own on this machine, and the channels take turns in everything. Processor
time is the kernel's account of the publisher's process and of the broker's, all threads, less what
they use while nothing happens. A change is that a port becomes a member of a security group or
leaves it: a neighbor goes to all who follow the VPC, a port to one inbox, whichever the channel.

Followers: what costs the publisher is the number of agent processes (each has a session), and what
costs the broker the number of readers. Each light follower stands for one agent process of one
host: a session, or a client with a reader, on a connection of its own. All are in one process, and
do nothing but count. "Last" is from before the client calls `Apply` until the last follower has the
message; in a burst, {burst} changes (fewer where that were more than {deliveries:,} messages) go in
one `ApplyStream`, and what it takes to the last follower's last message is divided by the changes.
The followers' own processor time is given beside: it is on other machines in a region, here it is
on the cores of publisher and broker, and so in the latencies.

Hosts are whole agents, from before the request until the last host says that it has applied the
last change; several in one process share its session, while each has its own reader on a topic. A
host joins when a port moves to it; the fleet's process has a session already. Small VPCs of two
ports on two of ten hosts are created {piece} at a time; the broker's memory is what is reachable
after a full collection of its heap, without what Pulsar has outside of it."""


# --- thresholds ---


def crossing(sessions: Sequence[float], topic: Sequence[float], at: Sequence[int]) -> float | None:
    """Up to how many followers sessions cost no more than a topic, between two that were measured
    by their difference there. 0: never; None: as far as it was measured."""
    more = [one - other for one, other in zip(sessions, topic, strict=True)]
    above = next((n for n in range(len(more)) if all(one > 0 for one in more[n:])), None)
    if above is None:
        return None
    if not above:
        return 0
    low, high = more[above - 1], more[above]
    return at[above - 1] + (at[above] - at[above - 1]) * -low / (high - low)


@dataclass(frozen=True)
class Limits:
    """Up to how many followers sessions cost no more than a topic; see `crossing`."""

    last: float | None
    last_of_burst: float | None
    cpu: float | None
    cpu_of_burst: float | None

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Limits:
        at = [cell.followers for cell in cells]

        def where(cost: Callable[[Cost], float], pairs: Sequence[Pair]) -> float | None:
            return crossing([cost(p.session) for p in pairs], [cost(p.topic) for p in pairs], at)

        single, burst = [cell.single for cell in cells], [cell.burst for cell in cells]
        return cls(
            where(lambda cost: cost.last_ms, single),
            where(lambda cost: cost.last_ms, burst),
            where(lambda cost: cost.both_ms, single),
            where(lambda cost: cost.both_ms, burst),
        )

    def lowest(self, beyond: float) -> float:
        """The first of them that is passed; `beyond`: what one is at least that was not."""
        return min(beyond if one is None else one for one in asdict(self).values())


# --- the report ---


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    """Raises MeasurementFailed for a broker whose processor time is not to be seen."""
    broker = brokers.get()
    if not broker.pids:
        raise MeasurementFailed("what the broker uses is seen only where it is started here")
    return run(broker, progress, QUICK if quick else Sizes(), quick=quick)


def run(broker: Broker, progress: Progress, sizes: Sizes, *, quick: bool) -> Section:
    light = channel_runs.light(broker, progress, sizes)
    hosts = channel_runs.hosts(broker, progress, sizes)
    small = channel_runs.small_vpcs(broker, progress, sizes)
    joins = channel_runs.joins(broker, progress, sizes)
    limits = Limits.of(light.by_followers)
    lowest = limits.lowest(sizes.followers[-1])
    goals = [
        Goal(
            "followers up to which sessions cost no more than a topic: default of session_ports",
            SESSION_PORTS,
            "",
            Samples.of([lowest]),
            at_least=True,
            at_size=not quick,
        )
    ]
    return Section(
        "channels",
        "Sessions and topics: which VPCs are to be on which",
        METHOD.format(
            burst=sizes.burst,
            deliveries=sizes.deliveries,
            piece=sizes.small // (sizes.pieces + 1),
        ),
        goals,
        [
            _last_table("Over followers, each with a port: last follower", light.by_followers),
            _cpu_table("Over followers: processor time of a change", light.by_followers),
            _limits_table(limits, sizes.followers[-1]),
            _last_table("Over ports: last follower", light.by_ports),
            _cpu_table("Over ports: processor time of a change", light.by_ports),
            _members_table(light.by_members),
            _hosts_table(hosts),
            _joins_table(joins),
            _small_table(small),
            _idle_table(light),
        ],
        {
            "sizes": asdict(sizes),
            "limits": asdict(limits),
            "by_followers": [cell.document() for cell in light.by_followers],
            "by_ports": [cell.document() for cell in light.by_ports],
            "by_members": [cell.document() for cell in light.by_members],
            "session_bytes": light.session_bytes,
            "idle": {count: idle._asdict() for count, idle in light.idle.items()},
            "hosts": [asdict(one) for one in hosts],
            "joins": [(ports, [asdict(cost) for cost in pair]) for ports, pair in joins],
            "small": [asdict(one) for one in small],
        },
    )


def _both(pair: Pair, of: Callable[[Cost], float]) -> tuple[str, str, str]:
    """On sessions, on a topic, and the first divided by the second."""
    session, topic = of(pair.session), of(pair.topic)
    return written(session), written(topic), written(session / topic)


def _last_table(title: str, cells: Sequence[Cell]) -> Table:
    columns = (
        *("followers#", "ports#", "sessions ms#", "topic ms#", "×#"),
        *("in a burst, sessions ms#", "topic ms#", "×#"),
    )
    rows = [
        (
            f"{cell.followers:,}",
            f"{cell.ports:,}",
            *_both(cell.single, lambda cost: cost.last_ms),
            *_both(cell.burst, lambda cost: cost.last_ms),
        )
        for cell in cells
    ]
    return Table(columns, rows, title)


def _cpu_table(title: str, cells: Sequence[Cell]) -> Table:
    columns = (
        *("followers#", "ports#", "sessions: DPM ms#", "broker ms#", "topic: DPM ms#"),
        *("broker ms#", "both, ×#", "in a burst, sessions ms#", "topic ms#", "both, ×#"),
        *("followers' own: sessions ms#", "topic ms#"),
    )
    rows = []
    for cell in cells:
        session, topic = cell.single
        rows.append(
            (
                f"{cell.followers:,}",
                f"{cell.ports:,}",
                *map(written, (session.dpm_ms, session.broker_ms)),
                *map(written, (topic.dpm_ms, topic.broker_ms)),
                written(session.both_ms / topic.both_ms),
                *_both(cell.burst, lambda cost: cost.both_ms),
                *map(written, (session.follower_ms, topic.follower_ms)),
            )
        )
    return Table(columns, rows, title)


def _limits_table(limits: Limits, most: int) -> Table:
    rows = [
        (what, f"more than {most:,}" if at is None else f"{at:.0f}")
        for what, at in (
            ("the last follower, a change alone", limits.last),
            ("the last follower, in a burst", limits.last_of_burst),
            ("processor time of publisher and broker, a change alone", limits.cpu),
            ("processor time of publisher and broker, in a burst", limits.cpu_of_burst),
        )
    ]
    return Table(("sessions cost no more than a topic by", "up to followers#"), rows, "Limits")


def _members_table(cells: Sequence[Cell]) -> Table:
    columns = (
        *("a change of", "last: sessions ms#", "topic ms#", "×#"),
        *("CPU of both: sessions ms#", "topic ms#", "×#"),
    )
    rows = [
        (
            cell.what,
            *_both(cell.single, lambda cost: cost.last_ms),
            *_both(cell.single, lambda cost: cost.both_ms),
        )
        for cell in cells
    ]
    title = f"Over members: security groups of {cells[0].ports:,} ports, "
    return Table(columns, rows, f"{title}{cells[0].followers:,} followers")


def _hosts_table(hosts: Sequence[Hosts]) -> Table:
    columns = (
        *("hosts#", "processes#", "ports#", "sessions ms#", "topic ms#", "×#"),
        *("in a burst, sessions ms#", "topic ms#", "×#"),
    )
    rows = []
    for one in hosts:
        row = [f"{one.hosts:,}", f"{one.processes:,}", f"{one.ports:,}"]
        for session, topic in (one.single, one.burst):
            first, second = Samples.of(session).median, Samples.of(topic).median
            row += [written(first), written(second), written(first / second)]
        rows.append(row)
    return Table(columns, rows, "Whole agents: last host has applied it")


def _joins_table(joins: Sequence[tuple[int, Pair]]) -> Table:
    columns = (
        *("ports#", "sessions ms#", "topic ms#", "×#"),
        *("DPM: sessions ms#", "topic ms#", "×#", "broker: sessions ms#", "topic ms#", "×#"),
    )
    rows = [
        (
            f"{ports:,}",
            *_both(pair, lambda cost: cost.last_ms),
            *_both(pair, lambda cost: cost.dpm_ms),
            *_both(pair, lambda cost: cost.broker_ms),
        )
        for ports, pair in joins
    ]
    return Table(columns, rows, "A host joins: time, and processor time")


def _small_table(small: tuple[Small, Small]) -> Table:
    rows = [
        (what, *(written(Samples.of(getattr(one, name)).median) for one in small))
        for what, name in (
            ("created and followed within, ms", "milliseconds"),
            ("processor time of the DPM, ms", "dpm_ms"),
            ("processor time of the broker, ms", "broker_ms"),
        )
    ]
    for what, name in (
        ("DPM, resident KiB", "dpm"),
        ("broker, reachable KiB", "broker"),
        ("agents (two hosts of one process), resident KiB", "agents"),
    ):
        if name in small[0].bytes:
            rows.append((what, *(kib(Samples.of(one.bytes[name]).median) for one in small)))
    if "broker" in small[1].bytes:
        topic = Samples.of(small[1].bytes["broker"]).median
        rows.append(("so many take a GiB of the broker's heap", "–", f"{_GIB / topic:,.0f}"))
    return Table(("", "on sessions#", "on topics#"), rows, "A small VPC, and what it takes idle")


def _idle_table(light: Light) -> Table:
    """Of what nothing happens on; a session against the fewest that were measured."""
    (few, least), (many, most) = (
        (count, light.idle[count]) for count in (min(light.idle), max(light.idle))
    )
    each = 1e6 / (many - few)
    rows = [
        ("a session, to the DPM", kib(light.session_bytes), written((most.dpm - least.dpm) * each)),
        ("a reader's connection, to the broker", "–", written((most.broker - least.broker) * each)),
    ]
    return Table(("idle", "resident KiB#", "CPU µs a second#"), rows, f"Of {many:,}: each")
