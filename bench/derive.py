"""How fast the publisher's core derives: bytes of intent in, bytes to publish out."""

from __future__ import annotations

from collections.abc import Sequence
from time import time_ns
from typing import Any

from bench.alone import Stages, alone
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from goalstate.dpm.core import Core
from goalstate.gs import intent_codec
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.topics import Topics
from goalstate.process import relax_garbage_collection
from goalstate.scale import generate
from goalstate.scale.generate import Region

GOAL_PORTS_S = 25_000
HOSTS = 200
STAGES = ("decode", "plan", "accept")

METHOD = """\
Single thread, in a process of its own, after one unmeasured round; each round begins with an empty
publisher that knows {hosts} hosts. Inside the interval: bytes of `goalstate.northbound.v1.Intent`
are parsed and turned into objects (decode), validated against the desired state (plan), committed,
derived into resources (a port and a neighbor for each port, subscriptions for each host, and a DHCP
entry for a fifth of the ports), given revisions and digests, and packed into the bytes of
`GoalStateV2` messages with their envelopes (accept). Rates are ports per second of processor time,
which is the time on a core that does nothing else; `wall` is what passed on this machine
meanwhile."""


def measure(*, quick: bool) -> Section:
    rounds = 3 if quick else 9
    shapes = {
        "1 VPC × 10,000 ports, 1 intent": alone(_rounds, "1x10000", 10_000, rounds),
        "10,000 ports in 100 VPCs, an intent each": alone(
            _rounds, generate.ALCOR_MIX, 10_000, rounds
        ),
        "1 VPC × 2,000 ports, an intent for each port": alone(_rounds, "1x2000", 1, rounds),
    }
    goals = [
        Goal(
            f"derivation, {shape}",
            GOAL_PORTS_S,
            "ports/s",
            Samples.of(run["ports"] / sum(cpu.values()) for cpu in run["cpu"]),
            at_least=True,
        )
        for shape, run in list(shapes.items())[:2]
    ]
    rows = []
    for shape, run in shapes.items():
        ports = run["ports"]
        rate = Samples.of(ports / sum(cpu.values()) for cpu in run["cpu"])
        wall = Samples.of(ports / sum(one.values()) for one in run["wall"])
        split = [Samples.of(cpu[stage] / ports * 1e6 for cpu in run["cpu"]) for stage in STAGES]
        rows.append(
            (
                shape,
                rate,
                written(wall.median),
                *(written(stage.median) for stage in split),
                run["messages"],
                written(run["bytes"] / ports),
            )
        )
    columns = (
        "workload",
        "ports/s#",
        "wall#",
        *(f"{stage} µs/port#" for stage in STAGES),
        "messages#",
        "bytes/port#",
    )
    return Section(
        "derive",
        "Derivation, on one core",
        METHOD.format(hosts=f"{HOSTS:,}"),
        goals,
        [Table(columns, rows)],
        shapes,
    )


def _rounds(mix: str, piece: int, rounds: int) -> dict[str, Any]:
    """CPU and wall seconds of each stage in each round."""
    region = Region(hosts=HOSTS, vpcs=generate.parse_mix(mix))
    before = list(region.host_intents())
    messages = [
        intent_codec.to_proto(intent).SerializeToString()
        for number in range(1, len(region.vpcs) + 1)
        for intent in region.vpc_intents(number, piece)
    ]
    relax_garbage_collection()  # as the publisher does
    cpu, wall = [], []
    count = size = 0
    for number in range(rounds + 1):
        core = Core(Topics())
        core.begin_epoch(1)
        for intent in before:
            core.accept(core.plan(intent), time_ns())
        stages, count, size = _round(core, messages)
        if number:
            cpu.append(stages.cpu)
            wall.append(stages.wall)
    return {
        "ports": sum(region.vpcs),
        "intents": len(messages),
        "messages": count,
        "bytes": size,
        "cpu": cpu,
        "wall": wall,
    }


def _round(core: Core, messages: Sequence[bytes]) -> tuple[Stages, int, int]:
    """Stages, and number and bytes of the messages that came of it."""
    stages = Stages()
    count = size = 0
    for message in messages:
        stages.begin()
        intent = intent_codec.from_proto(intent_pb2.Intent.FromString(message))
        stages.end("decode")
        changes = core.plan(intent)
        stages.end("plan")
        accepted = core.accept(changes, time_ns())
        stages.end("accept")
        count += len(accepted.publications)
        size += sum(len(publication.payload) for publication in accepted.publications)
    return stages, count, size
