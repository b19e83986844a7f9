"""What a publisher does when ten times as much is offered as it can do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple

import grpc

from bench.report import Goal, Section, Table
from bench.samples import Samples, percentile, written
from bench.system import Brokers, Progress, System
from goalstate.dpm.admission import AdmissionPolicy
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale.generate import Region

HOSTS = 50
VPCS = 8
#: Ports in one intent: enough that a client can offer ten times what a publisher can do.
PORTS = 1000
OVER = 10
#: Of that one; the others only set its scale.
REPEATS = 3
#: Of what is accepted under overload, against what is accepted at most.
GOAL_SHARE = 0.7
_CALL_S = 30.0
_METHOD = "/goalstate.northbound.v1.DataPlaneManager/Apply"
_CONNECTIONS = 4
_CLOSED_LOOP = 8

METHOD = """\
The publisher is a process of its own, beside {broker}. A client calls Apply with intents that each
change all {ports} ports of one VPC, for {vpcs} VPCs in turn, in a region of {hosts} hosts (that
nobody plays: reports are another measurement). At first {closed} callers each send the next one
when the last is answered: what is accepted then per second is what the publisher can do. Then
callers who do not wait for each other send at a fixed rate, at half of that, and at {over} times
that. Latency is from the time at which a call was to be sent, until the answer that the intent is
durable. A call that is shed is answered with RESOURCE_EXHAUSTED, and counts as shed; it is not sent
again. An intent that would wait for longer than {longest:g} s is to be shed; so the latency of what
is accepted has that as its goal, and as much again for the call itself and for the machine. How
late the client itself was in sending is in that latency, and is given beside."""


class Load(NamedTuple):
    """Calls of Apply, and what became of them."""

    seconds: float
    answers: Counter[str]
    latencies_ms: list[float]
    #: How much later than they were due calls were sent.
    late_ms: list[float]

    @property
    def accepted_s(self) -> float:
        return self.answers["OK"] / self.seconds


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    seconds = 3.0 if quick else 10.0
    broker = brokers.get()
    region = Region(hosts=HOSTS, vpcs=(PORTS,) * VPCS)
    with System(broker, "overload", progress) as system:
        system.apply_all(region.host_intents())
        for number in range(VPCS):
            system.apply_all(region.vpc_intents(number + 1, PORTS))
        requests = _requests(region)

        async def run() -> tuple[Load, Load, list[Load]]:
            async with apply_calls(system.address) as stubs:
                most = await closed_loop(stubs, requests, seconds, _CLOSED_LOOP)
                progress(f"at most {most.accepted_s:.0f} intents/s are accepted")
                half = await _open_loop(stubs, requests, most.accepted_s / 2, seconds)
                over = [
                    await _open_loop(stubs, requests, most.accepted_s * OVER, seconds)
                    for _ in range(1 if quick else REPEATS)
                ]
            return most, half, over

        most, half, over = asyncio.run(run())
    longest_s = AdmissionPolicy().longest_s
    offered = (
        ("as answered", most),
        ("half of that", half),
        *((f"{OVER} times that", load) for load in over),
    )
    rows = [
        (
            name,
            written(sum(load.answers.values()) / load.seconds),
            written(load.accepted_s),
            written(load.answers["RESOURCE_EXHAUSTED"] / load.seconds),
            _others(load.answers),
            written(percentile(load.late_ms, 0.99)),
            *(written(percentile(load.latencies_ms, share)) for share in (0.5, 0.99, 1.0)),
        )
        for name, load in offered
    ]
    columns = (
        "offered",
        "intents/s#",
        "accepted/s#",
        "shed/s#",
        "other answers",
        "sent late, p99 ms#",
        "p50 ms#",
        "p99 ms#",
        "max ms#",
    )
    goals = [
        Goal(
            f"accepted at {OVER} times the load, against the most that is accepted",
            GOAL_SHARE,
            "×",
            Samples.of([load.accepted_s / most.accepted_s for load in over]),
            at_least=True,
        ),
        Goal(
            f"latency of what is accepted then, p99 of {seconds:g} s",
            2 * longest_s * 1000,
            "ms",
            Samples.of([percentile(load.latencies_ms, 0.99) for load in over]),
        ),
    ]
    method = METHOD.format(
        broker=broker.describe(),
        ports=PORTS,
        vpcs=VPCS,
        hosts=HOSTS,
        closed=_CLOSED_LOOP,
        over=OVER,
        longest=longest_s,
    )
    return Section(
        "overload",
        "Overload: ten times as much offered as can be done",
        method,
        goals,
        [Table(columns, rows)],
        {
            "loads": [
                {"offered": name} | load._asdict() | {"answers": dict(load.answers)}
                for name, load in offered
            ]
        },
    )


def _others(answers: Counter[str]) -> str:
    known = ("OK", "RESOURCE_EXHAUSTED")
    return ", ".join(f"{n} {code}" for code, n in answers.items() if code not in known) or "none"


def _requests(region: Region) -> Iterator[bytes]:
    """Intents as bytes, each of which changes something, for ever."""
    ports = [
        [port for intent in region.vpc_intents(n + 1, PORTS) for port in intent.ports]
        for n in range(VPCS)
    ]
    states = [
        [
            intent_codec.to_proto(Intent(ports=[port._replace(name=name) for port in of_vpc]))
            for name in ("even", "odd")
        ]
        for of_vpc in ports
    ]
    encoded = [
        [api.ApplyRequest(intent=intent).SerializeToString() for intent in two] for two in states
    ]
    for number in count():
        yield encoded[number % VPCS][number // VPCS % 2]


@asynccontextmanager
async def apply_calls(address: str) -> AsyncIterator[list[Any]]:
    """Apply, which takes and gives bytes, over some connections to a publisher."""
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(_CONNECTIONS)]
    try:
        yield [channel.unary_unary(_METHOD) for channel in channels]
    finally:
        for channel in channels:
            await channel.close()


async def _call(stub: Any, request: bytes, due: float, load: Load) -> None:
    load.late_ms.append((perf_counter() - due) * 1000)
    try:
        await stub(request, timeout=_CALL_S)
    except grpc.RpcError as error:
        load.answers[error.code().name] += 1
    else:
        load.answers["OK"] += 1
        load.latencies_ms.append((perf_counter() - due) * 1000)


async def closed_loop(
    stubs: list[Any], requests: Iterator[bytes], seconds: float, callers: int
) -> Load:
    """So many callers, each of whom calls again when it was answered."""
    load = Load(seconds, Counter(), [], [])
    end = perf_counter() + seconds

    async def caller(stub: Any) -> None:
        while perf_counter() < end:
            await _call(stub, next(requests), perf_counter(), load)

    await asyncio.gather(*(caller(stubs[n % len(stubs)]) for n in range(callers)))
    return load


async def _open_loop(
    stubs: list[Any], requests: Iterator[bytes], rate: float, seconds: float
) -> Load:
    load = Load(seconds, Counter(), [], [])
    begin = perf_counter()
    calls: set[asyncio.Task[None]] = set()
    for number in range(int(rate * seconds)):
        due = begin + number / rate
        ahead = due - perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        call = asyncio.ensure_future(_call(stubs[number % len(stubs)], next(requests), due, load))
        calls.add(call)
        call.add_done_callback(calls.discard)
        if number % 32 == 0:
            await asyncio.sleep(0)  # also when behind: answers are to be heard when they come
    if calls:
        await asyncio.wait(calls)
    # Somewhat longer than planned, where sending could not keep up.
    return load._replace(seconds=perf_counter() - begin)
