"""What is fuzzed: each target reads bytes as its part of the product would read them.

Law of all targets: whatever the bytes are, the part answers, or refuses them by the errors that it
names; it changes nothing when it refuses. Anything else that is raised is a finding.

Each target has samples: inputs that are good, to begin from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import grpc
from google.protobuf.message import DecodeError

from goalstate.agent.alcor import pushes
from goalstate.agent.alcor.pushes import Push
from goalstate.agent.core import HostCore, HostSettings
from goalstate.bus.memory import MemoryBroker, MemoryBus
from goalstate.dpm.convergence import Convergence
from goalstate.dpm.core import Core
from goalstate.dpm.engine import Engine
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.service import NorthboundService
from goalstate.gs import convert, digest, envelope, intent_codec, versions
from goalstate.gs.desired import Desired
from goalstate.gs.errors import (
    ConversionError,
    EnvelopeError,
    GoalStateError,
    IntentError,
    IntentSyntaxError,
    MessageError,
)
from goalstate.gs.intent import Host
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import StreamId, inbox_stream, pushed_stream, vpc_stream
from goalstate.gs.topics import Topics
from goalstate.scale.generate import Region

#: A region of everything, small enough for thousands of runs.
_REGION = Region(hosts=4, vpcs=(6, 3))
_NOW_NS = 1_700_000_000 * 10**9


class Target(NamedTuple):
    run: Callable[[bytes], None]
    samples: Callable[[], list[bytes]]


# --- samples ---


@lru_cache(1)
def _publications() -> list[tuple[dict[str, str], bytes]]:
    """Properties and payload of all that is published for the region."""
    core = Core(Topics())
    core.begin_epoch(1)
    return [
        (envelope.to_properties(publication.envelope), publication.payload)
        for intent in _REGION.intents()
        for publication in core.accept(core.plan(intent), _NOW_NS).publications
    ]


def _lines(properties: Mapping[str, str]) -> bytes:
    return "\n".join(f"{name}={value}" for name, value in properties.items()).encode()


def _properties(data: bytes) -> dict[str, str]:
    pairs = (line.partition("=") for line in data.decode("utf-8", "surrogateescape").split("\n"))
    return {name: value for name, _, value in pairs}


# --- targets ---


def read_envelope(data: bytes) -> None:
    try:
        read = envelope.from_properties(_properties(data))
    except EnvelopeError:
        return
    if envelope.from_properties(envelope.to_properties(read)) != read:
        raise AssertionError(f"{read} is not read as it was written")


def read_message(data: bytes) -> None:
    """A host gets the bytes with an envelope that fits them, on its inbox and on a VPC's stream."""
    host = _host()
    for stream in (inbox_stream(host.group), vpc_stream(_REGION.vpc_id(1))):
        core = HostCore(host.id, inbox_stream(host.group), HostSettings(Topics()))
        core.start(_NOW_NS)
        if stream != core.inbox:
            for number, (before, payload) in enumerate(_published_on(core.inbox)):
                core.receive(core.inbox, before, payload, bytes([number + 1]), _NOW_NS)
            if stream not in core.streams:
                raise AssertionError(f"{host.id} does not follow {stream}")
        properties, good = _published_on(stream)[0]
        fitting = {**properties, "checksum": digest.checksum(data)}
        core.receive(stream, fitting, data, b"\1", _NOW_NS)
        core.receive(stream, properties, good, b"\2", _NOW_NS)
        list(core.exceptions())


@lru_cache(1)
def _host() -> Host:
    """One that has a port of the first VPC."""
    id_ = _REGION.port(1, 0).host_id
    return next(host for host in map(_REGION.host, range(_REGION.hosts)) if host.id == id_)


@lru_cache
def _published_on(stream: StreamId) -> list[tuple[dict[str, str], bytes]]:
    return [
        (properties, payload)
        for properties, payload in _publications()
        if properties["stream"] == str(stream)
    ]


def take_push(data: bytes) -> None:
    """A host is pushed the bytes, as v1 or v2, with something good before and after."""
    host = _host().id
    core = HostCore(host, pushed_stream(host), HostSettings(Topics()))
    core.start(_NOW_NS)
    for payload in (_v1_and_v2()[0], data, _v1_and_v2()[-1]):
        try:
            if payload.startswith(bytes((8, versions.FORMAT_V1))):
                entries = pushes.of_v1(goalstate_pb2.GoalState.FromString(payload))
            else:
                state = goalstate_pb2.GoalStateV2.FromString(payload)
                entries = pushes.of_v2(state, [host])[0][host]
        except (MessageError, DecodeError):
            continue
        held = core.streams[core.inbox].live
        before = held.mark
        taken = pushes.take(entries, held, ())
        if len(taken.verdicts) != len(entries):
            raise AssertionError(f"{len(taken.verdicts)} verdicts on {len(entries)} states")
        mark = pushes.next_mark(held, 1)
        core.take(core.inbox, Push(core.inbox, mark, before, taken, _NOW_NS), b"", _NOW_NS)
        for kind, id_, _, wanted in taken.resources:
            found = held.held.get(kind, {}).get(id_)
            if (found.payload if found is not None else b"") != wanted:
                raise AssertionError(f"{kind.name} {id_!r} is not held as it was taken")


def convert_goal_state(data: bytes) -> None:
    """v1 and v2, each to the other, for one host."""
    try:
        version = versions.detect(data)
        if version == versions.FORMAT_V1:
            host = _REGION.host(0).id
            convert.to_v2({host: goalstate_pb2.GoalState.FromString(data)})
        elif version == versions.FORMAT_V2:
            state = goalstate_pb2.GoalStateV2.FromString(data)
            for host in convert.hosts(state):
                convert.to_v1(state, host)
    except (MessageError, ConversionError, DecodeError):
        return


def read_yaml(data: bytes) -> None:
    try:
        read = intent_codec.load(data.decode("utf-8", "surrogateescape"), "fuzz")
    except IntentSyntaxError:
        return
    for intent in read:
        _plan(intent_codec.to_proto(intent))


def plan_intent(data: bytes) -> None:
    try:
        message = intent_pb2.Intent.FromString(data)
    except DecodeError:
        return
    _plan(message)


def _plan(message: intent_pb2.Intent) -> None:
    desired = Desired()
    for intent in _REGION.intents():
        desired.commit(desired.plan(intent))
    before = desired.counts()
    try:
        changes = desired.plan(intent_codec.from_proto(message))
    except (IntentError, GoalStateError):
        if desired.counts() != before:
            raise AssertionError("a refused intent left a trace") from None
        return
    if changes:
        core = _core()
        core.accept(core.plan(intent_codec.from_proto(message)), _NOW_NS)


def _core() -> Core:
    core = Core(Topics())
    core.begin_epoch(1)
    for intent in _REGION.intents():
        core.accept(core.plan(intent), _NOW_NS)
    return core


def take_report(data: bytes) -> None:
    try:
        report = agent_pb2.Report.FromString(data)
    except DecodeError:
        return
    convergence = Convergence(lambda host, stream: True)
    for host in report.hosts:
        try:
            convergence.report(host, _NOW_NS, same_clock=True)
        except ValueError:
            continue
        convergence.lease(host.host, _NOW_NS)
    for advance in report.advances:
        try:
            convergence.advance(advance, _NOW_NS, same_clock=True)
        except ValueError:
            continue
        for name in advance.hosts:
            convergence.lease(name, _NOW_NS)


class _Aborted(Exception):
    """The service refused a call, with a code that callers are told of."""


class _Context:
    """A call's context that says only what the service did."""

    _EXPECTED = (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return ()

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        if code not in self._EXPECTED:
            raise AssertionError(f"refused with {code}: {details}")
        raise _Aborted

    async def abort_with_status(self, status: Any) -> NoReturn:
        await self.abort(status.code, status.details)


def call_service(data: bytes) -> None:
    """The first byte chooses the call, the rest is the request."""
    calls = (
        ("Apply", api.ApplyRequest),
        ("ApplyStream", api.ApplyRequest),
        ("Wait", api.WaitRequest),
        ("Watch", api.WaitRequest),
        ("GetStatus", api.StatusRequest),
        ("GetIntent", api.GetIntentRequest),
        ("Republish", api.RepublishRequest),
    )
    name, type_ = calls[(data[0] if data else 0) % len(calls)]
    try:
        request = type_.FromString(data[1:])
    except DecodeError:
        return
    if isinstance(request, api.WaitRequest) and request.timeout_s > 0:
        request.timeout_s = 0  # who asks to wait is right to wait
    asyncio.run(_call(name, request))


async def _call(name: str, request: Any) -> None:
    bus = MemoryBus(MemoryBroker(lambda: _NOW_NS))
    metrics = Metrics()
    engine = Engine(bus, Topics(), writer="fuzz", clock_id="", metrics=metrics)
    await engine.start()
    try:
        for intent in _REGION.intents():
            await engine.apply(intent_codec.to_proto(intent))
        service = NorthboundService(engine, metrics, broker="memory")
        method = getattr(service, name)
        try:
            async with asyncio.timeout(10):
                if name == "ApplyStream":
                    async for _ in method(_once(request), _Context()):
                        pass
                elif name in ("Watch", "GetIntent"):
                    async for _ in method(request, _Context()):
                        pass
                else:
                    await method(request, _Context())
        except _Aborted:
            pass
        if not engine.serving:
            raise AssertionError(f"the request stopped the publisher: {engine.problem}")
    finally:
        await engine.stop()
        await bus.close()


async def _once(request: Any) -> Any:
    yield request


def _intents() -> list[bytes]:
    return [intent_codec.to_proto(intent).SerializeToString() for intent in _REGION.intents()]


@lru_cache(1)
def _v1_and_v2() -> list[bytes]:
    v2 = [payload for _, payload in _publications()]
    v1 = []
    for payload in v2:
        state = goalstate_pb2.GoalStateV2.FromString(payload)
        for host in convert.hosts(state)[:1]:
            v1.append(convert.to_v1(state, host).SerializeToString())
    return [*v2, *v1]


def _reports() -> list[bytes]:
    host = agent_pb2.HostReport(host="host-1", incarnation=3, number=1, full=True, lease_s=30)
    host.streams.add(stream="vpc/v", epoch=1, sequence=4, applied_unix_ns=5, digest=bytes(16))
    host.exceptions.add(stream="vpc/v", epoch=1, sequence=2, id="x", status=1, reason="r")
    host.streams[0].revoked_epoch = host.streams[0].revoked_sequence = 1
    host.streams[0].revoked_unix_ns = 5
    host.dropped.append("vpc/w")
    advance = agent_pb2.Advance(
        places=[agent_pb2.Advance.Place(stream="vpc/v", epoch=1, sequence=5)],
        lease_s=30,
        hosts=["host-1", "host-2"],
        incarnations=[3, 3],
        numbers=[2, 1],
        applied_unix_ns=[5, 6],
        digests=[bytes(16), b""],
    )
    report = agent_pb2.Report(hosts=[host], advances=[advance], clock_id="c", sent_unix_ns=1)
    return [report.SerializeToString()]


def _requests() -> list[bytes]:
    apply = [
        bytes([kind]) + api.ApplyRequest(intent=intent_codec.to_proto(i)).SerializeToString()
        for kind, i in enumerate(list(_REGION.intents())[-2:])
    ]
    vpc = _REGION.vpc_id(1)
    again = api.RepublishRequest(resources=[intent_pb2.ResourceName(type=0, id=vpc)])
    wait = api.WaitRequest(vpc_id=vpc, quorum=0.5, max_stragglers=3).SerializeToString()
    return [
        *apply,
        b"\2" + wait,
        b"\3" + api.WaitRequest(change=1).SerializeToString(),
        b"\4" + api.StatusRequest(vpc_id=vpc, hosts=True, exceptions=True).SerializeToString(),
        b"\5" + api.GetIntentRequest(kind=intent_pb2.VPC, vpc_id=vpc).SerializeToString(),
        b"\6" + again.SerializeToString(),
    ]


TARGETS: Mapping[str, Target] = {
    "envelope": Target(read_envelope, lambda: [_lines(p) for p, _ in _publications()]),
    "message": Target(read_message, lambda: [payload for _, payload in _publications()]),
    "push": Target(take_push, _v1_and_v2),
    "convert": Target(convert_goal_state, _v1_and_v2),
    "yaml": Target(
        read_yaml, lambda: [intent_codec.to_yaml(i).encode() for i in _REGION.intents()]
    ),
    "intent": Target(plan_intent, _intents),
    "report": Target(take_report, _reports),
    "service": Target(call_service, _requests),
}
