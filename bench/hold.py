"""How fast one agent takes in a large VPC, and how much memory that takes: real messages, its pure
core and the memory data plane."""

from __future__ import annotations

import pickle
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import time_ns
from typing import Any, NamedTuple

from bench.alone import Stages, alone
from bench.machine import resident_bytes
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import MeasurementFailed, Progress
from goalstate.agent.actions import Action, Program
from goalstate.agent.core import HostCore, HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.decoding import Decoder
from goalstate.dpm.core import Core
from goalstate.dpm.inventory import Publication
from goalstate.gs import envelope as envelopes
from goalstate.gs.intent import Host
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamId, StreamKind, inbox_stream, vpc_stream
from goalstate.gs.topics import Topics
from goalstate.process import relax_garbage_collection
from goalstate.scale.generate import Region

#: Neighbors, and the seconds within which an agent must have applied them.
GOALS_S = {100_000: 0.4, 1_000_000: 5.0}
HOSTS = 1000
STAGES = ("parse", "hold", "program")
_PIECE = 10_000

METHOD = """\
Single thread, in a process of its own. The messages are what the publisher's core makes of one VPC
of that many ports on {hosts} hosts, created in intents of {piece:,} ports: messages of about
512 KB. One host that follows the VPC gets them one after the other, its inbox first (not measured).
Inside the interval: from payload and properties of the first message until the last neighbor is in
the tables of the memory data plane and the watermark is at the last message. Parse: envelope,
checksum, version, protobuf, hashes. Hold: order, digest (compared with the publisher's after each
message), what is wanted, references, settlement. Program: the data plane's part. What the client
library does before (decompression) is not in it. Seconds are of processor time, which is the time
on a core that does nothing else. Memory is what the process grew by, divided by the neighbors, with
the messages themselves gone."""


class Sent(NamedTuple):
    """A message, as it reaches an agent."""

    properties: dict[str, str]
    payload: bytes


def measure(progress: Progress, *, quick: bool) -> Section:
    goals, rows, data = [], [], {}
    for neighbors, goal in GOALS_S.items():
        if quick and neighbors > 100_000:
            continue
        progress(f"one agent: deriving {neighbors:,} neighbors")
        with tempfile.NamedTemporaryFile(prefix="goalstate-bench-") as file:
            alone(_derive, neighbors, file.name)
            progress(f"one agent: applying {neighbors:,} neighbors")
            run = alone(_apply, neighbors, file.name, 3 if quick or neighbors > 100_000 else 7)
        data[str(neighbors)] = run
        cpu = Samples.of(sum(one.values()) for one in run["cpu"])
        goals.append(Goal(f"decode and apply {neighbors:,} neighbors", goal, "s", cpu))
        rows.append(
            (
                f"{neighbors:,}",
                run["messages"],
                cpu,
                written(Samples.of(sum(one.values()) for one in run["wall"]).median),
                *(written(Samples.of(one[stage] for one in run["cpu"]).median) for stage in STAGES),
                written(run["resident"] / neighbors),
            )
        )
    columns = (
        "neighbors#",
        "messages#",
        "CPU s#",
        "wall s#",
        *(f"{stage} s#" for stage in STAGES),
        "resident bytes a neighbor#",
    )
    return Section(
        "hold",
        "One agent: decode and apply",
        METHOD.format(hosts=f"{HOSTS:,}", piece=_PIECE),
        goals,
        [Table(columns, rows)],
        data,
    )


def _region(neighbors: int) -> Region:
    return Region(hosts=HOSTS, vpcs=(neighbors,), dhcp_share=0)


def _follower(region: Region) -> Host:
    """A host that has a port of the VPC."""
    id_ = region.port(1, 0).host_id
    return next(host for host in map(region.host, range(region.hosts)) if host.id == id_)


def messages(region: Region, piece: int = _PIECE) -> list[Publication]:
    """What the publisher's core publishes for a region."""
    core = Core(Topics())
    core.begin_epoch(1)
    published: list[Publication] = []
    for intent in region.intents(piece):
        published += core.accept(core.plan(intent), time_ns()).publications
    return published


def _derive(neighbors: int, file: str) -> None:
    """Write what a host of the VPC gets: its inbox stream's messages, then the VPC's."""
    relax_garbage_collection()
    region = _region(neighbors)
    inbox = inbox_stream(_follower(region).group)
    mine: dict[StreamKind, list[Sent]] = {StreamKind.INBOX: [], StreamKind.VPC: []}
    for envelope, payload, *_ in messages(region):
        if envelope.stream.kind is StreamKind.VPC or envelope.stream == inbox:
            sent = Sent(envelopes.to_properties(envelope), payload)
            mine[envelope.stream.kind].append(sent)
    with Path(file).open("wb") as out:
        pickle.dump((mine[StreamKind.INBOX], mine[StreamKind.VPC]), out)


def _apply(neighbors: int, file: str, rounds: int) -> dict[str, Any]:
    """CPU and wall seconds of each stage in each round, and memory."""
    with Path(file).open("rb") as source:
        inbox, vpc = pickle.load(source)
    relax_garbage_collection()
    cpu, wall = [], []
    for number in range(rounds + 1):
        agent = _Agent(_region(neighbors), inbox)
        stages = agent.take(vpc)
        agent.check(neighbors)
        if number:
            cpu.append(stages.cpu)
            wall.append(stages.wall)
        del agent
    return {
        "messages": len(vpc),
        "cpu": cpu,
        "wall": wall,
        "resident": alone(_resident, neighbors, file),
    }


def _resident(neighbors: int, file: str) -> int:
    """Bytes that a process grows by when one agent in it holds the VPC."""
    relax_garbage_collection()
    with Path(file).open("rb") as source:
        inbox, vpc = pickle.load(source)
    agent = _Agent(_region(neighbors), inbox)
    before = resident_bytes() - sum(len(sent.payload) for sent in vpc)
    vpc.reverse()
    while vpc:
        agent.take([vpc.pop()])
    agent.check(neighbors)
    return resident_bytes() - before


class _Agent:
    """One host: its core, its data plane, and the loop between them."""

    def __init__(self, region: Region, inbox: Sequence[Sent]) -> None:
        """`inbox` is taken in at once."""
        host = _follower(region)
        self._inbox = inbox_stream(host.group)
        self._vpc = vpc_stream(region.vpc_id(1))
        # It remembers the newest message, so that what was parsed once is not parsed again.
        self._decoder = Decoder(capacity=1)
        self._core = HostCore(host.id, self._inbox, HostSettings(Topics()), decoder=self._decoder)
        self._plane = MemoryDataPlane()
        self._stages = Stages()
        self._perform(self._core.start(time_ns()))
        for sent in inbox:
            self._receive(self._inbox, sent)

    def take(self, vpc: Sequence[Sent]) -> Stages:
        """Take messages of the VPC in; gives the time it took."""
        self._stages = Stages()
        self._stages.begin()
        for sent in vpc:
            received = self._decoder.receive(sent.properties, sent.payload)
            if received.intact:
                received.content(self._core.host)
            self._stages.end("parse")
            self._receive(self._vpc, sent)
        return self._stages

    def check(self, neighbors: int) -> None:
        """Raises MeasurementFailed unless all is applied."""
        stream = self._core.streams[self._vpc]
        held = len(self._plane.tables[Kind.NEIGHBOR])
        if (
            held != neighbors
            or stream.watermark != stream.live.mark
            or any(self._core.exceptions())
        ):
            raise MeasurementFailed(f"the agent applied {held} of {neighbors} neighbors")

    def _receive(self, stream: StreamId, sent: Sent) -> None:
        actions = self._core.receive(stream, sent.properties, sent.payload, b"1", time_ns())
        self._stages.end("hold")
        self._perform(actions)

    def _perform(self, actions: Sequence[Action]) -> None:
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            if isinstance(action, Program):
                self._plane.program(action.operations, lambda refused: None)
                self._stages.end("program")
                todo.extend(self._core.programmed(action.number, {}, time_ns()))
                self._stages.end("hold")
