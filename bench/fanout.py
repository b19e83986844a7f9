"""How long a change takes from request to the last of many hosts, for VPCs of different sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from time import time_ns

from bench.raw import Yardstick
from bench.report import Goal, Section, Table
from bench.samples import Samples, percentile, written
from bench.system import Brokers, Fleet, MeasurementFailed, Progress, System, newest
from goalstate.bus.pulsar_client import packed
from goalstate.gs.intent import Intent
from goalstate.gs.streams import Mark, vpc_stream
from goalstate.scale.generate import Region

GOAL_GROWTH = 1.3
GOAL_RAW = 2.0
#: Hosts that decode everything, where the others count.
DECODING = 10
#: How hosts are played, see METHOD.
COUNT, SHARED, OWN = "count", "decode, shared", "decode, own"
_WARM_UP = 5
_PIECE = 5000

METHOD = """\
One port is added to a VPC that {hosts} hosts follow; publisher, fleet and client are processes of
their own on this machine, and all times are by its one clock. Inside the interval: from before the
client calls `Apply` until a host's data plane (`memory`) has the port and the host says so with a
watermark at the change or beyond: validation, a durable entry in the intent log, derivation,
publication, delivery to each host's own readers, order and checksum, programming. "Last host" is
the interval to the last of all hosts; of it the median and the 99th percentile over the additions
are given. After {warm_up} unmeasured rounds, the VPCs take turns within each round, and in each
round the yardstick takes a turn as well.

A VPC that all hosts follow has at least a port on each of them, so the sizes are of the ports that
it has *beyond* that one for each host. Hosts are played in three ways: `count` ({decoding} hosts
decode everything, all others check order and checksum of each message of their VPCs, decode their
inboxes, and hold no neighbors: one machine cannot hold {largest} neighbors for each of 1,000
hosts), `decode, shared` (every host decodes and holds all; what several of them read is parsed once
in the process) and `decode, own` (every host parses each message itself).

The yardstick is the plain Pulsar client without any code of ours: as many non-durable readers in
one process on one connection, each with a listener that only notes the time; the message is a copy
of ours (payload and properties); from the call of `send` to the last reader's callback."""


@dataclass
class Cell:
    """What was measured of one way of delivery; milliseconds, one value for each addition."""

    hosts: int
    how: str
    #: Ports of the VPC beyond one for each host; None: it is the yardstick.
    beyond: int | None
    message_bytes: int = 0
    answered: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    middle: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)

    def add(self, latencies_ns: list[int], answered_ns: int) -> None:
        ordered = sorted(latencies_ns)
        self.answered.append(answered_ns / 1e6)
        self.first.append(ordered[0] / 1e6)
        self.middle.append(percentile(ordered, 0.5) / 1e6)
        self.last.append(ordered[-1] / 1e6)

    @property
    def last_host(self) -> float:
        return Samples.of(self.last).median


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    rounds = 15 if quick else 30
    sizes = (10, 1000, 10_000) if quick else (10, 1000, 100_000)
    fleets = (200,) if quick else (200, 1000)
    hows = (COUNT, SHARED) if quick else (COUNT, SHARED, OWN)
    goals: list[Goal] = []
    rows: list[tuple[object, ...]] = []
    cells: list[Cell] = []
    for hosts, how in product(fleets, hows):
        of_ours = sizes if how == COUNT else sizes[:2]
        ours, raw = additions(brokers, progress, hosts, how, of_ours, rounds)
        rows += [_row(cell, ours[0], raw) for cell in (*ours, raw)]
        cells += [*ours, raw]
        if how == COUNT:
            growth = Samples.of([ours[-1].last_host / ours[0].last_host])
            goals.append(
                Goal(
                    f"last of {hosts:,} hosts, {how}: {of_ours[-1]:,} ports against 10",
                    GOAL_GROWTH,
                    "×",
                    growth,
                    at_size=not quick,
                )
            )
        worst = Samples.of([max(cell.last_host for cell in ours) / raw.last_host])
        goals.append(
            Goal(
                f"last of {hosts:,} hosts, {how}: slowest VPC against the plain client",
                GOAL_RAW,
                "×",
                worst,
            )
        )
    method = METHOD.format(
        hosts=" or ".join(f"{number:,}" for number in fleets),
        warm_up=_WARM_UP,
        decoding=DECODING,
        largest=f"{sizes[-1]:,}",
    )
    return Section(
        "fanout",
        "From request to applied on all hosts",
        method,
        goals,
        [Table(_COLUMNS, rows)],
        {"rounds": rounds, "cells": [asdict(cell) for cell in cells]},
    )


_COLUMNS = (
    "hosts#",
    "played",
    "ports beyond 1 a host#",
    "answered ms#",
    "first host ms#",
    "middle host ms#",
    "last host ms#",
    "last host p99 ms#",
    "× of 10 ports#",
    "× of plain#",
)


def _row(cell: Cell, smallest: Cell, raw: Cell) -> tuple[object, ...]:
    plain = cell.beyond is None
    return (
        f"{cell.hosts:,}",
        cell.how,
        "–" if plain else f"{cell.beyond:,}",
        "–" if plain else written(Samples.of(cell.answered).median),
        written(Samples.of(cell.first).median),
        written(Samples.of(cell.middle).median),
        Samples.of(cell.last),
        written(Samples.of(cell.last).p99),
        "–" if plain else written(cell.last_host / smallest.last_host),
        written(cell.last_host / raw.last_host),
    )


def additions(
    brokers: Brokers,
    progress: Progress,
    hosts: int,
    how: str,
    sizes: tuple[int, ...],
    rounds: int,
) -> tuple[list[Cell], Cell]:
    """Additions to VPCs of these sizes, all of which all hosts of a new fleet follow."""
    broker = brokers.get()
    region = Region(hosts=hosts, vpcs=tuple(hosts + beyond for beyond in sizes), dhcp_share=0)
    counting = max(0.0, 1 - DECODING / hosts) if how == COUNT else 0.0
    decoding = "own" if how == OWN else "shared"
    cells = [Cell(hosts, how, beyond) for beyond in sizes]
    raw = Cell(hosts, f"plain client ({how})", None)
    progress(f"fan-out: {hosts:,} hosts, {how}: starting")
    with System(broker, f"fanout-{hosts}-{how.replace(', ', '-')}", progress) as system:
        system.apply_all(region.host_intents())
        system.apply_all(_intents(region))
        fleet = system.fleet(hosts, counting_share=counting, decoding=decoding)
        system.wait()
        topic = system.topics.of_stream(vpc_stream(region.vpc_id(1)))
        yardstick = f"{system.topics.prefix}/yardstick"
        with Yardstick(broker.url, yardstick, hosts) as plain:
            for number in range(_WARM_UP + rounds):
                if number % 10 == 0:
                    progress(f"fan-out: {hosts:,} hosts, {how}: round {number}")
                measured = number >= _WARM_UP
                for place, cell in enumerate(cells):
                    answered, latencies = _addition(system, fleet, region, place + 1, number)
                    if measured:
                        cell.add(latencies, answered)
                if not number:
                    message = asyncio.run(newest(broker.url, topic))
                    payload, properties = message.payload, dict(message.properties)
                    raw.message_bytes = len(payload) + sum(
                        len(k) + len(v) for k, v in packed(properties).items()
                    )
                latencies = plain.send(payload, properties)
                if measured:
                    raw.add(latencies, 0)
    return cells, raw


def _intents(region: Region) -> Iterator[Intent]:
    """All VPCs; the first ports of each are on one host each."""
    for number in range(1, len(region.vpcs) + 1):
        index = 0
        for intent in region.vpc_intents(number, _PIECE):
            ports = [
                port._replace(host_id=region.host(place).id) if place < region.hosts else port
                for place, port in enumerate(intent.ports, index)
            ]
            index += len(ports)
            yield intent._replace(ports=ports)


def _addition(
    system: System, fleet: Fleet, region: Region, vpc: int, number: int
) -> tuple[int, list[int]]:
    """Add a port. Nanoseconds from the request to its answer, and to each host that applied it."""
    port = region.port(vpc, region.vpcs[vpc - 1] + number)
    requested = time_ns()
    reply = system.apply(Intent(ports=(port,)))
    answered = time_ns()
    system.wait(reply.change)
    wanted = {at.stream: Mark(at.epoch, at.sequence) for at in reply.streams}
    multicast = str(vpc_stream(region.vpc_id(vpc)))
    latencies = []
    for host, at in fleet.positions():
        # Of its inbox only the port's own host has something to wait for.
        if at.stream != multicast and (host != port.host_id or at.stream not in wanted):
            continue
        if Mark(at.epoch, at.sequence) < wanted[at.stream]:
            raise MeasurementFailed(f"{host} is not at {wanted[at.stream]} of {at.stream}")
        latencies.append(at.applied_unix_ns - requested)
    if len(latencies) != region.hosts + 1:
        raise MeasurementFailed(f"{len(latencies) - 1} of {region.hosts} hosts follow {multicast}")
    return answered - requested, latencies
