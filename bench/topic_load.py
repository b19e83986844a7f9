"""How many changes a second a publisher gets onto its topics, for few and for many VPCs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from itertools import count
from time import monotonic, sleep
from typing import NamedTuple

from bench.machine import cpu_s
from bench.overload import Load, apply_calls, closed_loop
from bench.system import CONVERGE_S, Brokers, MeasurementFailed, Progress, System, metric
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.streams import StreamKind
from goalstate.scale.generate import Region

CALLERS = 64
HOSTS = 100
PORTS = 2
#: VPCs that are made at a time, then there is a wait until their topics are open.
_BUILT = 500
#: Seconds between two looks; gauges are as of a second ago at most.
_LOOK_S = 0.2


class Throughput(NamedTuple):
    """Of changes to so many VPCs."""

    vpcs: int
    #: Seconds until all of these VPCs that were new were published.
    opened_s: float
    seconds: float
    accepted: int
    #: Of what was accepted in these seconds, or before.
    published: float
    #: Seconds from then on until the broker had confirmed all.
    drained_s: float
    publisher_cpu_s: float
    #: 0: the broker is no process of ours.
    broker_cpu_s: float

    @property
    def published_s(self) -> float:
        return self.published / self.seconds


def by_vpcs(
    brokers: Brokers,
    progress: Progress,
    numbers: Sequence[int],
    warm_up_s: float,
    seconds: float,
) -> list[Throughput]:
    """For so many VPCs (ascending), of which there is a topic each, in one region."""
    region = Region(hosts=HOSTS, vpcs=(PORTS,) * numbers[-1], dhcp_share=0)
    found = []
    with System(brokers.get(), "topics", progress) as system:
        system.apply_all(region.host_intents())
        made = 0
        for vpcs in numbers:
            progress(f"scaling: opening {vpcs:,} topics")
            begun = monotonic()
            for first in range(made, vpcs, _BUILT):
                some = range(first, min(first + _BUILT, vpcs))
                system.apply_all(i for n in some for i in region.vpc_intents(n + 1))
                await_published(system)
            made = vpcs
            opened = monotonic() - begun
            progress(f"scaling: changes to {vpcs:,} VPCs")
            found.append(_measured(system, region, vpcs, opened, warm_up_s, seconds))
    return found


def _measured(
    system: System, region: Region, vpcs: int, opened_s: float, warm_up_s: float, seconds: float
) -> Throughput:
    requests = changes(region, vpcs)

    processes = ((system.dpm_pid,), system.broker.pids)

    def used() -> tuple[float, ...]:
        return tuple(sum(map(cpu_s, pids)) for pids in processes)

    async def run() -> tuple[Load, tuple[float, float], list[float]]:
        async with apply_calls(system.address) as stubs:
            await closed_loop(stubs, requests, warm_up_s, CALLERS)
            before, cpu = _sent(system), used()
            load = await closed_loop(stubs, requests, seconds, CALLERS)
            spent = [now - then for now, then in zip(used(), cpu, strict=True)]
            after = _sent(system)
        return load, (after[0] - before[0], after[1] - before[1]), spent

    load, (sent, unconfirmed), spent = asyncio.run(run())
    if load.answers["OK"] != sum(load.answers.values()):
        raise MeasurementFailed(f"changes to {vpcs} VPCs were not accepted: {load.answers}")
    end = monotonic()
    await_published(system)
    return Throughput(
        vpcs,
        opened_s,
        seconds,
        load.answers["OK"],
        load.answers["OK"] * (1 - unconfirmed / sent),
        monotonic() - end,
        *spent,
    )


def changes(region: Region, vpcs: int) -> Iterator[bytes]:
    """For ever: one port of one of the first so many VPCs, drawn anew each time, gets another
    address."""
    draw = random.Random(vpcs)
    for number in count():
        vpc = draw.randrange(vpcs) + 1
        mac = ":".join(f"{byte:02x}" for byte in (0x12, vpcs % 251, *number.to_bytes(4)))
        port = region.port(vpc, draw.randrange(PORTS))._replace(mac_address=mac)
        intent = intent_codec.to_proto(Intent(ports=(port,)))
        yield api.ApplyRequest(intent=intent).SerializeToString()


def _sent(system: System) -> tuple[float, float]:
    """Messages that were sent so far, and those among them that are not confirmed yet."""
    address, name = system.dpm.metrics, "goalstate_dpm_published_messages_total"
    kinds = (StreamKind.VPC, StreamKind.INBOX)
    sent = sum(metric(address, name, scope=kind.value) for kind in kinds)
    return sent, metric(address, "goalstate_dpm_publish_backlog")


def await_published(system: System) -> None:
    """Until the broker has confirmed all. Raises MeasurementFailed."""
    end = monotonic() + CONVERGE_S
    sleep(1.0)  # after that the gauge is of what is asked about
    while metric(system.dpm.metrics, "goalstate_dpm_publish_backlog"):
        if monotonic() > end:
            raise MeasurementFailed(f"not everything was published within {CONVERGE_S:g} s")
        sleep(_LOOK_S)
