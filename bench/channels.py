"""What a VPC costs on sessions and on a topic, over its size and its followers: where the default
thresholds of the choice between the two come from (`goalstate.dpm.channels`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from bench import channel_runs
from bench.channel_runs import QUICK, Cell, Cost, Hosts, Light, Pair, Sizes, Small
from bench.machine import kib
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, MeasurementFailed, Progress
from goalstate.bus.brokers import Broker
from goalstate.dpm.channels import SESSION_PORTS

_GIB = 2**30
#: So many changes to a VPC are made in bursts for each host that joins it.
CHANGES_A_JOIN = 10

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

The limit is the number of followers up to which a change costs no more over sessions than over a
topic, by whichever is passed first: the time to the last follower, or the processor time of
publisher and broker together. Costs are a part that is always there and a part for each follower;
the limit is where the lines of the two channels cross that fit best (least squares of the relative
deviations, of the medians of all turns). What changes in bursts is what is being built, where hosts
join; so of what a host's joining costs more on a topic, a tenth is counted with each change of a
burst. The choice goes by ports, which a publisher knows before anybody follows. They are as many as
the followers at the most: where each port is on a host of its own, and each host an agent process
of its own.

Hosts are whole agents, from before the request until the last host says that it has applied the
last change; several in one process share its session, while each has its own reader on a topic. A
host joins when a port moves to it; the fleet's process has a session already. Small VPCs of two
ports on two of ten hosts are created {piece} at a time; the broker's memory is what is reachable
after a full collection of its heap, without what Pulsar has outside of it."""


# --- thresholds ---


def line(at: Sequence[int], costs: Sequence[float]) -> tuple[float, float]:
    """What a change costs by itself, and for each follower. The line whose deviations are least in
    relation to the costs: few followers count as much as many."""
    weights = [1 / max(cost, 1e-3) ** 2 for cost in costs]
    whole = sum(weights)
    x = sum(w * n for w, n in zip(weights, at, strict=True)) / whole
    y = sum(w * cost for w, cost in zip(weights, costs, strict=True)) / whole
    rise = sum(w * (n - x) * (c - y) for w, n, c in zip(weights, at, costs, strict=True))
    slope = rise / sum(w * (n - x) ** 2 for w, n in zip(weights, at, strict=True))
    return y - slope * x, slope


def crossing(at: Sequence[int], sessions: Sequence[float], topic: Sequence[float]) -> float:
    """Up to how many followers sessions cost no more than a topic; at most as many as there were.
    0: they always cost more."""
    by_itself, each = line(at, sessions)
    topic_by_itself, topic_each = line(at, topic)
    most = at[-1]
    if by_itself + each * most <= topic_by_itself + topic_each * most:
        return most
    if by_itself >= topic_by_itself:
        return 0
    return (topic_by_itself - by_itself) / (each - topic_each)


class Limit(NamedTuple):
    """Up to how many followers sessions cost no more than a topic."""

    what: str
    #: Through the medians of all turns.
    followers: float
    #: In each turn by itself.
    turns: Samples


def limits(cells: Sequence[Cell], join_ms: float) -> list[Limit]:
    """By each of the costs; `join_ms` is what a host's joining costs more on a topic."""
    at = [cell.followers for cell in cells]

    def limit(
        what: str, pairs: Sequence[Pair], of: Callable[[Cost], list[float]], more: float = 0.0
    ) -> Limit:
        sessions = [of(pair.session) for pair in pairs]
        topic = [[cost + more for cost in of(pair.topic)] for pair in pairs]
        middles = ([Samples.of(turns).median for turns in side] for side in (sessions, topic))
        turns = zip(zip(*sessions, strict=True), zip(*topic, strict=True), strict=True)
        return Limit(
            what, crossing(at, *middles), Samples.of(crossing(at, *both) for both in turns)
        )

    single, burst = [cell.single for cell in cells], [cell.burst for cell in cells]
    return [
        limit("time to the last follower, alone", single, lambda cost: cost.last),
        limit("processor time, alone", single, lambda cost: cost.both),
        limit(
            f"processor time, in a burst, with a join for every {CHANGES_A_JOIN} changes",
            burst,
            lambda cost: cost.both,
            join_ms / CHANGES_A_JOIN,
        ),
    ]


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
    join_ms = Samples.of(pair.topic.both_ms - pair.session.both_ms for _, pair in joins).median
    found = limits(light.by_followers, join_ms)
    first = min(limit.followers for limit in found)
    goals = [
        Goal(
            "followers up to which sessions cost no more than a topic (default of session_ports)",
            SESSION_PORTS,
            "",
            Samples.of([first]),
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
            _lines_table(light.by_followers),
            _limits_table(found),
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
            "limits": [{**limit._asdict(), "turns": list(limit.turns.values)} for limit in found],
            "join_ms": join_ms,
            "by_followers": [cell.document() for cell in light.by_followers],
            "by_ports": [cell.document() for cell in light.by_ports],
            "by_members": [cell.document() for cell in light.by_members],
            "session_bytes": light.session_bytes,
            "light_followers": light.followers,
            "idle": [used._asdict() for used in light.idle],
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


def _lines_table(cells: Sequence[Cell]) -> Table:
    at = [cell.followers for cell in cells]
    rows = []
    for how, pairs in (
        ("alone", [cell.single for cell in cells]),
        ("in a burst", [cell.burst for cell in cells]),
    ):
        for channel in ("session", "topic"):
            costs = [getattr(pair, channel) for pair in pairs]
            lines = [
                line(at, values)
                for values in ([c.dpm_ms for c in costs], [c.broker_ms for c in costs])
            ]
            parts = (part for by_itself, each in lines for part in (by_itself, each * 1e3))
            rows.append((how, channel, *map(written, parts)))
    columns = ("a change", "channel", "DPM: ms#", "and µs a follower#", "broker: ms#", "and µs#")
    return Table(columns, rows, "Over followers: the lines that fit best")


def _limits_table(limits: Sequence[Limit]) -> Table:
    rows = [
        (
            limit.what,
            f"{limit.followers:.0f}",
            f"{limit.turns.lowest:.0f}–{limit.turns.highest:.0f}",
        )
        for limit in limits
    ]
    return Table(("a change's", "up to followers#", "in each turn#"), rows, "Limits")


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
    each = 1e6 / light.followers
    without, beside = light.idle
    rows = [
        (
            "a session, to the DPM",
            kib(light.session_bytes),
            written((beside.dpm - without.dpm) * each),
        ),
        (
            "a client with a reader, to the broker",
            "–",
            written((beside.broker - without.broker) * each),
        ),
    ]
    title = f"Each of {light.followers:,}, idle"
    return Table(("", "resident KiB#", "CPU µs a second#"), rows, title)
