"""What grows with ports, with hosts and with VPCs, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from bench import fanout
from bench.change_cost import BLOCK, Cost, Crowd, by_followers, by_ports
from bench.fanout import Cell
from bench.plots import Plot
from bench.report import Goal, Section, Table
from bench.samples import Samples, percentile, written
from bench.system import Brokers, Progress
from bench.topic_load import CALLERS, HOSTS, PORTS, Throughput, by_vpcs

GOAL_FLAT = 1.3
GOAL_CROWD_S = 60.0
GOAL_TOPICS = 0.9
GOAL_LAST_RAW = 1.5
GOAL_FIRST_MS = 5.0


class Sizes(NamedTuple):
    """How much is measured."""

    #: Of VPCs that few hosts follow.
    ports: tuple[int, ...]
    few: int
    #: Hosts that follow VPCs of as many ports as there are hosts at most.
    followers: tuple[int, ...]
    #: Of changes, without and with reports.
    blocks: tuple[int, int]
    vpcs: tuple[int, ...]
    warm_up_s: float
    seconds: float
    #: One large VPC: its ports, the hosts that follow it, and additions to it.
    large: int
    hosts: int
    additions: int


_FULL = Sizes(
    ports=(10, 1000, 10_000, 100_000),
    few=10,
    followers=(10, 200, 1000, 5000),
    blocks=(10, 2),
    vpcs=(1000, 10_000),
    warm_up_s=5.0,
    seconds=20.0,
    large=100_000,
    hosts=1000,
    additions=100,
)
_QUICK = Sizes(
    ports=(10, 1000),
    few=5,
    followers=(5, 100),
    blocks=(2, 1),
    vpcs=(20, 200),
    warm_up_s=1.0,
    seconds=3.0,
    large=2000,
    hosts=100,
    additions=20,
)

METHOD = """\
Publisher, hosts and client are processes of their own on this machine; hosts are played in one
process, and count: they check order and checksum of each message of their VPCs, decode their
inboxes, report, and hold no neighbors.

*Cost of a change.* A port is created. The processor time is the publisher's, of all its threads,
user and system, in blocks of {block} creations on one stream of intents, each answered before the
next is sent; then the ports are deleted in one intent, which does not count, so that VPCs keep
their size. VPCs take turns, block by block, in one region, after a block of each that does not
count. `until published`: nobody plays the hosts, so that nothing is reported ({alone} changes to
each VPC). That is the line of the goals: reports are a cost for each host and message, whatever
carries them. `with reports`: hosts are there, and each change is waited for ({reported} of them);
leases that hosts renew meanwhile, and the wait, are in it. By ports: VPCs that {few} hosts follow.
By followers: VPCs of {most:,} ports on the first so many of {most:,} hosts.

*Subscribing.* There is one VPC, with a port on each of {most:,} hosts. From before their process is
started until the last of them has applied the VPC: the start of Python, the connection, a reader on
its inbox for each host, its subscription, a reader on the VPC, and all that is on either.

*Topics.* {callers} callers each send the next change, of one port's address, when the last is
answered, for {seconds:g} s; each change is to a VPC drawn anew. VPCs have {ports} ports, on two of
{hosts} hosts that nobody plays. Before, the topics of all VPCs are opened, and callers have called
for {warm_up:g} s. Published is what was accepted, less what the broker had not confirmed in the end
and had in the beginning, by a gauge that is a second old at most. `all confirmed` is how long that
took afterwards.

*A port more in a large VPC*: {large:,} ports, {followers:,} hosts of which {decoding} decode and
hold everything. {additions} additions one by one; from before the call until the first and until
the last host has applied it, by what hosts say. Beside it in each round the plain Pulsar client
sends the same bytes (payload and properties) to as many readers in one process; `fanout` says
more."""


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    sizes = _QUICK if quick else _FULL
    ports = by_ports(brokers, progress, sizes.ports, sizes.few, sizes.blocks)
    most = sizes.followers[-1]
    followers, crowd = by_followers(brokers, progress, sizes.followers, most, sizes.blocks)
    topics = by_vpcs(brokers, progress, sizes.vpcs, sizes.warm_up_s, sizes.seconds)
    (ours,), raw = fanout.additions(
        brokers,
        progress,
        sizes.hosts,
        fanout.COUNT,
        (sizes.large - sizes.hosts,),
        sizes.additions,
    )
    return section(sizes, ports, followers, crowd, topics, ours, raw)


def section(
    sizes: Sizes,
    ports: Sequence[Cost],
    followers: Sequence[Cost],
    crowd: Crowd,
    topics: Sequence[Throughput],
    ours: Cell,
    raw: Cell,
) -> Section:
    method = METHOD.format(
        block=BLOCK,
        alone=sizes.blocks[0] * BLOCK,
        reported=sizes.blocks[1] * BLOCK,
        few=sizes.few,
        most=sizes.followers[-1],
        callers=CALLERS,
        seconds=sizes.seconds,
        ports=PORTS,
        hosts=HOSTS,
        warm_up=sizes.warm_up_s,
        large=sizes.large,
        followers=sizes.hosts,
        decoding=fanout.DECODING,
        additions=sizes.additions,
    )
    return Section(
        "scaling",
        "What grows with ports, hosts and VPCs",
        method,
        _goals(sizes, ports, followers, crowd, topics, ours, raw),
        [
            _costs("ports#", ports, lambda cost: cost.ports),
            _costs("followers#", followers, lambda cost: cost.hosts),
            _crowd(crowd),
            _topics(topics),
            _latencies(sizes, ours, raw),
        ],
        {
            "ports": [asdict(cost) for cost in ports],
            "followers": [asdict(cost) for cost in followers],
            "crowd": asdict(crowd),
            "topics": [one._asdict() for one in topics],
            "latencies": [asdict(cell) for cell in (ours, raw)],
        },
        [
            _curves("ports", ports, lambda cost: cost.ports),
            _curves("followers", followers, lambda cost: cost.hosts),
        ],
    )


def _curves(what: str, costs: Sequence[Cost], shape: Callable[[Cost], int]) -> Plot:
    return Plot(
        f"scaling-{what}",
        f"Publisher's CPU for a change, by {what}",
        "µs",
        ("until published", "with reports"),
        [(str(shape(cost)), (cost.median, Samples.of(cost.reported).median)) for cost in costs],
        f"{what} of the VPC",
    )


def _goals(
    sizes: Sizes,
    ports: Sequence[Cost],
    followers: Sequence[Cost],
    crowd: Crowd,
    topics: Sequence[Throughput],
    ours: Cell,
    raw: Cell,
) -> list[Goal]:
    at_size = sizes == _FULL

    def goal(what: str, bound: float, unit: str, value: float, *, least: bool = False) -> Goal:
        return Goal(what, bound, unit, Samples.of([value]), at_least=least, at_size=at_size)

    few, many = topics[0], topics[-1]
    last = percentile(ours.last, 0.99) / percentile(raw.last, 0.99)
    first = Samples.of(ours.first).median - Samples.of(raw.first).median
    of_large = f"port added to {sizes.large:,}"
    return [
        goal(
            f"publisher's CPU for a change, {ports[0].ports:,} to {ports[-1].ports:,} ports: "
            "dearest over cheapest",
            GOAL_FLAT,
            "×",
            _spread(ports),
        ),
        goal(
            f"publisher's CPU for a change, {followers[0].hosts:,} to {followers[-1].hosts:,} "
            "followers: dearest over cheapest",
            GOAL_FLAT,
            "×",
            _spread(followers),
        ),
        goal(
            f"{crowd.hosts:,} hosts of one process subscribe to one VPC",
            GOAL_CROWD_S,
            "s",
            crowd.applied_s,
        ),
        goal(
            f"changes/s over {many.vpcs:,} VPCs against {few.vpcs:,}",
            GOAL_TOPICS,
            "×",
            many.published_s / few.published_s,
            least=True,
        ),
        goal(
            f"{of_large}: p99 of the last of {sizes.hosts:,} hosts over the plain client's",
            GOAL_LAST_RAW,
            "×",
            last,
        ),
        goal(
            f"{of_large}: p50 of the first host beyond the plain client's",
            GOAL_FIRST_MS,
            "ms",
            first,
        ),
    ]


def _spread(costs: Sequence[Cost]) -> float:
    medians = [cost.median for cost in costs]
    return max(medians) / min(medians)


def _costs(column: str, costs: Sequence[Cost], shape: Callable[[Cost], int]) -> Table:
    least = min(cost.median for cost in costs)
    return Table(
        (column, "until published, µs#", "× of the cheapest#", "with reports, µs#"),
        [
            (
                f"{shape(cost):,}",
                Samples.of(cost.alone),
                written(cost.median / least),
                Samples.of(cost.reported),
            )
            for cost in costs
        ],
        f"Publisher's CPU for a change, by {column.removesuffix('#')}",
    )


def _crowd(crowd: Crowd) -> Table:
    return Table(
        ("hosts#", "ports#", "all applied after s#"),
        [(f"{crowd.hosts:,}", f"{crowd.ports:,}", written(crowd.applied_s))],
        "Hosts of one process subscribe",
    )


def _topics(topics: Sequence[Throughput]) -> Table:
    return Table(
        (
            "VPCs#",
            "opened in s#",
            "accepted/s#",
            "published/s#",
            "all confirmed after s#",
            "publisher CPU µs a change#",
            "broker's#",
        ),
        [
            (
                f"{one.vpcs:,}",
                written(one.opened_s),
                written(one.accepted / one.seconds),
                written(one.published_s),
                written(one.drained_s),
                written(one.publisher_cpu_s / one.accepted * 1e6),
                written(one.broker_cpu_s / one.accepted * 1e6) if one.broker_cpu_s else "–",
            )
            for one in topics
        ],
        "Changes over many topics",
    )


def _latencies(sizes: Sizes, ours: Cell, raw: Cell) -> Table:
    shares = (0.5, 0.99)
    return Table(
        ("", "first host ms p50#", "first p99#", "last host ms p50#", "last p99#"),
        [
            (
                name,
                *(written(percentile(cell.first, share)) for share in shares),
                *(written(percentile(cell.last, share)) for share in shares),
            )
            for name, cell in (("goalstate", ours), ("plain Pulsar client", raw))
        ],
        f"One port more in a VPC of {sizes.large:,}, {sizes.hosts:,} hosts",
    )
