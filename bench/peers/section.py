"""The measurement `peers`: what the systems did, in tables, and goalstate's goals beside them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from bench.peers.runner import Result, Sizes, Task, document
from bench.peers.systems import AGENTS, ALCOR, GRPC, OTHERS, PLAIN, READY, results
from bench.plots import Plot
from bench.report import Goal, Section, Table
from bench.samples import Samples, percentile, written
from bench.system import Brokers, Progress

#: Of goalstate's messages, against the others: see `goals`.
FASTER_THAN_ALCOR = 7.0
FEWER_BYTES_THAN_ALCOR = 8.0
LESS_CPU_THAN_ALCOR = 20.0
AS_FAST_AS_GRPC = 1.0
FEWER_BYTES_THAN_GRPC = 3.0
LESS_CPU_THAN_GRPC = 10.0
OF_THE_FASTEST = 1.2
OF_THE_FEWEST_BYTES = 1.0
OF_THE_FASTEST_JOIN = 1.2

METHOD = """\
The same work by each system, one at a time, all on this machine: the server, the publisher, and one
process that plays all {hosts:,} hosts. The work are the messages that goalstate's publisher makes
of one VPC. Clients are Python's, each server as Debian packages it, Pulsar with the settings that
goalstate starts it with; what each was set up like is in the last table. Times are from the call
that sends (or joins) to the first and the last host, by the one clock.

*What receivers do.* Those of the others, and plain readers, count what reaches them and decode
nothing: `parsed` is the one line in which each host parses each message (and throws it away).
`{ready}` are goalstate's messages, with their envelopes, sent by its bus to plain readers: the same
work as the others do, and the line that goals are about unless they say otherwise. `{plain}` adds
its publisher, which derives them from an intent that is first validated and made durable: the
publisher's part is more than what the others are asked for. `{agents}` is all of it:
agents check, decode, hold and program, and the time is until the last data plane has it.

*The VPC becomes known*: {ports:,} ports at once to hosts that follow already, on {rounds} VPCs one
after the other. Its network (subnets, groups) is known before. etcd and OVSDB have a key or a row
for each port. *One port*: {changes} additions, one by one. *Churn*: {rate:g} additions a second,
{churn} of them; times count from when each was due. At a higher rate most systems only queue on two
cores. *Late*: {joiners} hosts one after the other, then {hosts:,} at once, get all of the VPC;
connections that hosts share are there before, for agents even their inboxes. No repeat is begun
after {enough_s:g} s.

CPU is of whole processes with their children, user and system. Bytes are what the loopback
interface counted, acknowledgements and a broker's own traffic included. The gRPC server is
the publisher itself. The broker of all lines with Pulsar is one process, which has worked before;
the other servers are started for their line. In the goals *the five* are RabbitMQ, etcd, NATS in
both ways, and OVSDB.

*Where goalstate lost, and why* (perf and py-spy, 2 cores, 2026-11-28). Late hosts at once: both
cores were busy all the time, so the processor time decides. Of the readers' process a third was
LZ4, since each of its readers unpacks for itself what gRPC does not pack; most of the broker's is
opening so many readers (a lookup, a subscription and a cursor each). Opening more of them at once,
on two connections, and without compression was as long within the noise; what would change it is
readers on hosts of their own, or that the client unpacks once for a process. One port: see the
measurement of receiving. The publisher's CPU from intent on: it validates, derives and stores
10,000 ports, which the others are handed; sending is some hundredths of it."""


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    sizes = Sizes(
        hosts=100 if quick else 1000,
        ports=1000 if quick else 10_000,
        rounds=2 if quick else 3,
        warm_up=3,
        changes=10 if quick else 30,
        rate=20.0,
        churn=60 if quick else 200,
        joiners=3 if quick else 5,
        enough_s=20.0,
    )
    return section(list(results(brokers, sizes, progress)), sizes, at_size=not quick)


def section(found: Sequence[Result], sizes: Sizes, *, at_size: bool) -> Section:
    method = METHOD.format(
        ready=READY,
        plain=PLAIN,
        agents=AGENTS,
        **sizes._asdict(),
    )
    hosts = f"{sizes.hosts:,}"
    tables = [
        _table(
            found,
            f"A VPC of {sizes.ports:,} ports becomes known to {hosts} hosts",
            "state",
            (*_FIRST_LAST, *_COST),
            lambda task: (*_first_last(task), *_cost(task)),
        ),
        _table(
            found,
            f"One port is added, {hosts} hosts",
            "change",
            ("first ms p50#", "last ms p50#", "p99#", "most#", *_SMALL_COST),
            lambda task: (
                _median(task.first),
                _median(task.last),
                written(percentile(task.last, 0.99)),
                written(max(task.last)),
                *_cost(task, 1e3),
            ),
        ),
        _table(
            found,
            f"{sizes.rate:g} ports a second are added, {hosts} hosts",
            "churn",
            ("last ms p50#", "p99#", *_SMALL_COST),
            lambda task: (
                _median(task.last),
                written(percentile(task.last, 0.99)),
                *_cost(task, 1e3),
            ),
        ),
        _table(
            found,
            "One host joins late",
            "join",
            ("ms#", *_SMALL_COST),
            lambda task: (Samples.of(task.last), *_cost(task, 1e3)),
        ),
        _table(
            found,
            f"{hosts} hosts join late at once",
            "storm",
            (*_FIRST_LAST, *_COST),
            lambda task: (*_first_last(task), *_cost(task)),
        ),
        Table(
            ("system", "versions", "how"),
            [(one.name, one.version or f"not measured: {one.missing}", one.how) for one in found],
            "What was measured",
        ),
    ]
    by_name = {one.name: one for one in found}
    return Section(
        "peers",
        "Beside what people use instead",
        method,
        goals(by_name, at_size=at_size),
        tables,
        {"sizes": sizes._asdict(), "systems": [document(one) for one in found]},
        plots(found, sizes),
    )


_Value = Callable[[Task], float | None]


def plots(found: Sequence[Result], sizes: Sizes) -> list[Plot]:
    """A picture for each question; all of them have all systems."""

    def plot(
        name: str,
        title: str,
        unit: str,
        task: str,
        series: Mapping[str, _Value],
    ) -> Plot:
        rows = []
        for one in found:
            did = one.tasks[task]
            missing = one.missing or did.missing
            rows.append((one.name, [None if missing else value(did) for value in series.values()]))
        return Plot(f"peers-{name}", title, unit, list(series), rows)

    def median(values: Callable[[Task], Sequence[float]], unit: float = 1.0) -> _Value:
        return lambda task: Samples.of(values(task)).median / unit if values(task) else None

    hosts = f"{sizes.hosts:,}"
    known = f"a VPC of {sizes.ports:,} ports becomes known to {hosts} hosts"
    return [
        plot("last", f"Time to the last host: {known}", "ms", "state", {"median": median(_last)}),
        plot("cpu", f"Publisher's CPU: {known}", "s", "state", {"median": median(_source)}),
        plot(
            "bytes", f"Bytes on loopback: {known}", "MB", "state", {"median": median(_bytes, 1e6)}
        ),
        plot(
            "port",
            f"Time to the last host: one port is added, {hosts} hosts",
            "ms",
            "change",
            {"p50": median(_last), "p99": lambda task: percentile(task.last, 0.99)},
        ),
    ]


_FIRST_LAST = ("first host ms#", "last host ms#")
_COST = ("server CPU s#", "publisher CPU s#", "hosts CPU s#", "MB on loopback#")
_SMALL_COST = ("server CPU ms#", "publisher CPU ms#", "hosts CPU ms#", "kB on loopback#")


def _table(
    found: Sequence[Result],
    title: str,
    name: str,
    columns: Sequence[str],
    cells: Callable[[Task], Sequence[object]],
) -> Table:
    """One task. A system that did not do it has a row, and its reason is above the table."""
    rows: list[tuple[object, ...]] = []
    reasons: dict[str, list[str]] = {}
    for one in found:
        task = one.tasks[name]
        missing = one.missing or task.missing
        if missing:
            reasons.setdefault(missing, []).append(one.name)
            rows.append((one.name, "not measured", *("" for _ in columns[1:])))
        else:
            rows.append((one.name, *cells(task)))
    why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if why:
        title = f"{title}\n\n{textwrap.fill(f'Not measured: {why}.', 100)}"
    return Table(("system", *columns), rows, title)


def _median(values: Sequence[float]) -> str:
    return written(Samples.of(values).median) if values else "–"


def _first_last(task: Task) -> tuple[object, object]:
    return _median(task.first), Samples.of(task.last)


def _cost(task: Task, times: float = 1.0) -> tuple[str, ...]:
    """Seconds and MB; `times` 1,000 for smaller units."""
    cost = task.cost
    seconds = [[one * times for one in values] for values in (cost.server, cost.source, cost.hosts)]
    return (*map(_median, seconds), _median([one / 1e6 * times for one in cost.bytes]))


def goals(by_name: Mapping[str, Result], *, at_size: bool) -> list[Goal]:
    """Those for which both sides were measured."""
    found: list[Goal] = []

    def median(name: str, task: str, what: Callable[[Task], Sequence[float]]) -> float | None:
        result = by_name.get(name)
        values = () if result is None or result.missing else what(result.tasks[task])
        return Samples.of(values).median if values else None

    def goal(what: str, bound: float, over: float | None, under: float | None, least: bool) -> None:
        if over is not None and under:
            ratio = Samples.of([over / under])
            found.append(Goal(what, bound, "×", ratio, at_least=least, at_size=at_size))

    def least_of(values: Sequence[float | None]) -> float | None:
        return min((one for one in values if one is not None), default=None)

    for name, of in ((READY, "goalstate's messages"), (PLAIN, "goalstate from intent on")):
        last, cpu, sent = (
            {one: median(one, "state", what) for one in (name, ALCOR, GRPC, *OTHERS)}
            for what in (_last, _source, _bytes)
        )
        for what, bound, values in (
            ("time to the last host", FASTER_THAN_ALCOR, last),
            ("bytes", FEWER_BYTES_THAN_ALCOR, sent),
            ("publisher's CPU", LESS_CPU_THAN_ALCOR, cpu),
        ):
            goal(f"{what} of Alcor's pattern over {of}", bound, values[ALCOR], values[name], True)
        goal(
            f"time to the last host, {of}, over gRPC streams",
            AS_FAST_AS_GRPC,
            last[name],
            last[GRPC],
            False,
        )
        for what, bound, values in (
            ("bytes", FEWER_BYTES_THAN_GRPC, sent),
            ("publisher's CPU", LESS_CPU_THAN_GRPC, cpu),
        ):
            goal(f"{what} of gRPC streams over {of}", bound, values[GRPC], values[name], True)
        best = least_of([last[one] for one in OTHERS])
        fewest = least_of([sent[one] for one in (*OTHERS, ALCOR, GRPC)])
        goal(
            f"time to the last host, {of}, over the fastest of the five",
            OF_THE_FASTEST,
            last[name],
            best,
            False,
        )
        goal(f"bytes, {of}, over the fewest", OF_THE_FEWEST_BYTES, sent[name], fewest, False)
    joined = {one: median(one, "storm", _last) for one in (READY, ALCOR, GRPC, *OTHERS)}
    goal(
        "late hosts at once, goalstate's messages, over the fastest",
        OF_THE_FASTEST_JOIN,
        joined.pop(READY),
        least_of(list(joined.values())),
        False,
    )
    return found


def _last(task: Task) -> Sequence[float]:
    return task.last


def _source(task: Task) -> Sequence[float]:
    return task.cost.source


def _bytes(task: Task) -> Sequence[float]:
    return task.cost.bytes
