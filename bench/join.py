"""How long it takes until a host that is new to a large VPC has all of it, and a thousand hosts."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter, time_ns

import pulsar

from bench.alone import alone
from bench.large import LargeVpc
from bench.machine import mib, peak_bytes, resident_bytes
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, Progress, System
from goalstate.bus.pulsar_client import message_id
from goalstate.gs.envelope import CheckpointPlace
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2
from goalstate.gs.streams import Mark

GOAL_S = 1.0
GOAL_RAW = 1.5
#: Of a thousand hosts that join at once, those that decode everything.
DECODING = 10

METHOD = """\
A VPC of {ports:,} ports on hosts that nobody plays, with a checkpoint of its stream and at most
a tenth as much on the log after it; publisher, hosts and client are processes of their own on
this machine. A host that follows its inbox only gets its first port in the VPC. Inside the
interval: from before the client calls `Apply` until that host has applied the VPC's stream as
far as that change: validation, a durable entry in the intent log, publication, the host's
subscription, the look for the newest checkpoint, its reading and decoding into a shadow, the log
after it, digest, programming of the memory data plane. Each repeat is a new process of one host.

Beside it, in the same run: the plain Pulsar client in a process of its own reads the same bytes
with the client's own `read_next`, checkpoint and log one after the other; from the call that
opens the first reader to the last message. Nothing is parsed there. "And parse" is the same with
each payload parsed by the protobuf library and thrown away, which is the least that any agent does.

Then {many:,} hosts of one process get a port each, by one intent. "Last host" is from before
`Apply` until the last of them has all; `count`: {decoding} of them decode and hold everything,
the others check order and checksum of each message; `decode, shared`: all hold everything.
"Resident before" is after they follow their inboxes, "most" the highest that the kernel saw
until they have joined."""


@dataclass(frozen=True)
class _Joined:
    """Of one host: seconds, and what it fetched."""

    seconds: float
    messages: float
    bytes: float


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    ports = 5000 if quick else 100_000
    many = 100 if quick else 1000
    repeats = 3 if quick else 7
    small = 500 if quick else 2000
    broker = brokers.get()
    vpc = LargeVpc(ports, guests=repeats + 1 + many, more=2 * many + 100)
    progress(f"join: a VPC of {ports:,} ports")
    joined: list[_Joined] = []
    raw: list[float] = []
    parsed: list[float] = []
    with System(broker, "join", progress, **vpc.settings) as system:
        vpc.build(system)
        place = vpc.await_checkpoint(system)
        for number in range(repeats + 1):
            progress(f"join: host {number}")
            one = _join(system, vpc, vpc.first_guest + number)
            plain = alone(_read_raw, broker.url, *_topics(system, vpc), place)
            least = alone(_read_raw, broker.url, *_topics(system, vpc), place, parse=True)
            if number:  # the first warms up broker and publisher
                joined.append(one)
                raw.append(plain)
                parsed.append(least)
        first = vpc.first_guest + repeats + 1
        storms = [_storm(system, vpc, first, many, max(0.0, 1 - DECODING / many), progress)]
    little = LargeVpc(small, guests=many, more=2 * many)
    with System(broker, "join-small", progress, **little.settings) as system:
        little.build(system)
        storms.append(_storm(system, little, little.first_guest, many, 0.0, progress))
    seconds = Samples.of(one.seconds for one in joined)
    plain_s = Samples.of(raw)
    ratio = Samples.of([seconds.median / plain_s.median])
    goals = [
        Goal(f"join of a VPC of {ports:,} ports", GOAL_S, "s", seconds, at_size=not quick),
        Goal(
            f"join of {ports:,} ports against reading the bytes raw",
            GOAL_RAW,
            "×",
            ratio,
            at_size=not quick,
        ),
    ]
    one_host = Table(
        ("ports#", "join s#", "plain client s#", "and parse s#", "messages#", "bytes of payload#"),
        [
            (
                f"{ports:,}",
                seconds,
                plain_s,
                Samples.of(parsed),
                f"{joined[-1].messages:,.0f}",
                mib(joined[-1].bytes),
            )
        ],
        "One new host",
    )
    columns = ("hosts#", "played", "ports#", "last host s#", "resident before#", "most#")
    return Section(
        "join",
        "Joining a large VPC",
        METHOD.format(ports=ports, many=many, decoding=DECODING),
        goals,
        [one_host, Table(columns, [storm.row() for storm in storms], "Many new hosts at once")],
        {
            "ports": ports,
            "seconds": list(seconds.values),
            "raw_seconds": raw,
            "parsed_seconds": parsed,
            "storms": [vars(storm) for storm in storms],
        },
    )


def _join(system: System, vpc: LargeVpc, host: int) -> _Joined:
    fleet = system.fleet(1, first=host)
    before = fleet.counted("messages", stream_kind="vpc"), fleet.counted("message_bytes")
    requested = time_ns()
    reply = system.apply(vpc.more(host))
    (at,) = (one for one in reply.streams if one.stream == str(vpc.stream))
    (applied,) = fleet.applied_ns(vpc.stream, Mark(at.epoch, at.sequence), 1)
    after = fleet.counted("messages", stream_kind="vpc"), fleet.counted("message_bytes")
    fleet.child.stop()
    return _Joined((applied - requested) / 1e9, after[0] - before[0], after[1] - before[1])


@dataclass(frozen=True)
class _Storm:
    """Many hosts of one process at once."""

    hosts: int
    played: str
    ports: int
    seconds: float
    before: int
    most: int

    def row(self) -> tuple[object, ...]:
        return (
            f"{self.hosts:,}",
            self.played,
            f"{self.ports:,}",
            written(self.seconds),
            mib(self.before),
            mib(self.most),
        )


def _storm(
    system: System, vpc: LargeVpc, first: int, hosts: int, counting: float, progress: Progress
) -> _Storm:
    played = "count" if counting else "decode, shared"
    progress(f"join: {hosts:,} hosts at once, {played}")
    fleet = system.fleet(hosts, first=first, counting_share=counting)
    before = resident_bytes(fleet.pid)
    requested = time_ns()
    reply = system.apply(vpc.more(*range(first, first + hosts)))
    mark = max(Mark(s.epoch, s.sequence) for s in reply.streams if s.stream == str(vpc.stream))
    applied = fleet.applied_ns(vpc.stream, mark, hosts)
    most = peak_bytes(fleet.pid)
    fleet.child.stop()
    return _Storm(hosts, played, vpc.ports, (max(applied) - requested) / 1e9, before, most)


def _topics(system: System, vpc: LargeVpc) -> tuple[str, str]:
    return system.topics.checkpoints_of(vpc.stream), system.topics.of_stream(vpc.stream)


def _read_raw(
    url: str, checkpoints: str, log: str, place: CheckpointPlace, *, parse: bool = False
) -> float:
    """Seconds for the messages of both topics, from these places to their ends."""
    client = pulsar.Client(url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"))
    begun = perf_counter()
    for topic, start in ((checkpoints, place.begin), (log, place.log)):
        position = message_id(topic, start) if start else pulsar.MessageId.earliest
        reader = client.create_reader(topic, position, receiver_queue_size=200)
        while reader.has_message_available():
            payload = reader.read_next(10_000).data()
            if parse:
                GoalStateV2.FromString(payload)
    seconds = perf_counter() - begun
    client.close()
    return seconds
