"""The publisher as a process sees it: over gRPC, with its limits, errors, health and metrics."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from goalstate.dpm.__main__ import run
from goalstate.dpm.config import DpmConfig
from goalstate.dpm.errors import LogUnreadable
from goalstate.dpm.forwarding import FORWARDED_BY
from goalstate.dpm.service import SERVICE
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent, Port, Vpc
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import Mark, StreamId, inbox_stream, vpc_stream
from goalstate.gs.topics import Topics
from goalstate.process import RETRY_AFTER, StartError, clock_id
from tests.dpm.test_engine import append, host_report
from tests.dpm.test_path_independence import HOSTS, RACKS, build, host, port
from tests.dpm.wires import Region, Wire, until

CODES = grpc.StatusCode
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
#: Seconds after which a call that does not come to an end has failed.
BOUND = 20.0


class Served:
    """A publisher that serves, and a client of it."""

    def __init__(self, facts: dict[str, Any], channel: Any, region: Region) -> None:
        self.facts = facts
        self.channel = channel
        self.region = region
        self.stub: Any = api_grpc.DataPlaneManagerStub(channel)

    async def apply(self, *intents: Intent) -> api.ApplyReply:
        reply = api.ApplyReply()
        for intent in intents:
            message = intent_codec.to_proto(intent)
            reply = await self.stub.Apply(api.ApplyRequest(intent=message), timeout=BOUND)
        return reply

    async def status(self, **request: Any) -> api.StatusReply:
        reply: api.StatusReply = await self.stub.GetStatus(
            api.StatusRequest(**request), timeout=BOUND
        )
        return reply

    async def raw(self, method: str, *requests: bytes) -> None:
        """Send bytes as they are. Raises what the server answers."""
        name = f"/{SERVICE}/{method}"
        if method == "ApplyStream":

            async def all_of_them() -> AsyncIterator[bytes]:
                for request in requests:
                    yield request

            call = self.channel.stream_stream(name)(all_of_them(), timeout=BOUND)
            async for _ in call:
                pass
        elif method in ("Watch", "GetIntent"):
            async for _ in self.channel.unary_stream(name)(requests[0], timeout=BOUND):
                pass
        else:
            await self.channel.unary_unary(name)(requests[0], timeout=BOUND)

    def metrics(self) -> dict[str, float]:
        return metrics_at(self.facts["metrics"])


def metrics_at(address: str) -> dict[str, float]:
    """By name, with the value of the only label behind it."""
    with DIRECT.open(f"http://{address}/metrics", timeout=BOUND) as answer:
        text = answer.read().decode()
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def config(**more: Any) -> DpmConfig:
    given = {
        "broker": "memory://",
        "listen": "127.0.0.1:0",
        "metrics_port": None,
        "report_shards": 1,
        "region": "region",
        "writer": "dpm-1",
    }
    return DpmConfig(**{**given, **more})


@asynccontextmanager
async def served(region: Region, **more: Any) -> AsyncIterator[Served]:
    ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    bus = region.bus()
    serving = asyncio.ensure_future(run(config(**more), ready=ready.set_result, stop=stop, bus=bus))
    waits: list[asyncio.Future[Any]] = [serving, ready]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving
    facts = ready.result()
    options = [("grpc.enable_http_proxy", 0)]
    try:
        async with grpc.aio.insecure_channel(facts["listen"], options=options) as channel:
            yield Served(facts, channel, region)
    finally:
        stop.set()
        try:
            await serving
        finally:
            await bus.close()


def play(scenario: Callable[[Served], Coroutine[None, None, None]], **more: Any) -> None:
    """Run a scenario against a publisher."""

    async def main() -> None:
        async with served(Region(), **more) as one:
            await scenario(one)

    asyncio.run(main())


async def error_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if isinstance(call, AsyncIterator) or hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return caught.value


def violations(error: grpc.aio.AioRpcError) -> list[Any]:
    status: Any = rpc_status.from_call(error)
    detail = error_details_pb2.BadRequest()
    assert [found.Unpack(detail) for found in status.details] == [True]
    return list(detail.field_violations)


async def nothing_changed(one: Served, change: int = 0) -> None:
    """Nothing is accepted, logged or published, and the server is alive."""
    status = await one.status()
    assert status.change == change
    assert one.region.logged() == list(range(1, change + 1))


def report_all(one: Served, status: api.StatusReply, *names: str, number: int = 1) -> None:
    """These hosts say that they have everything."""
    marks = {StreamId.parse(s.stream): Mark(s.epoch, s.sequence) for s in status.streams}
    hosts = [
        host_report(
            name,
            number,
            {s: m for s, m in marks.items() if str(s) in FOLLOWS[name]},
            applied_ns=0,
        )
        for name in names
    ]
    report = agent_pb2.Report(hosts=hosts, clock_id=clock_id())
    one.region.broker.publish(one.region.topics.reports(0), report.SerializeToString())


FOLLOWS = {
    "h0": {"inbox/r0", "vpc/v1", "vpc/v2"},
    "h1": {"inbox/r0", "vpc/v1"},
    "h2": {"inbox/r1", "vpc/v1"},
    "h3": {"inbox/r1", "vpc/v1"},
    "h4": {"inbox/r2", "vpc/v2"},
}


# --- intent ---


def test_an_accepted_intent_is_answered_with_its_change_and_streams() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build()[:3])
        message = intent_codec.to_proto(build()[3])
        reply = await one.stub.Apply(
            api.ApplyRequest(intent=message, request_id="r-7"), timeout=BOUND
        )
        assert (reply.request_id, reply.change) == ("r-7", 4)
        assert reply.changed_objects == 1 + 2 + 2 + 1 + 2
        heads = {s.stream: (s.epoch, s.sequence) for s in (await one.status()).streams}
        told = {s.stream: (s.epoch, s.sequence) for s in reply.streams}
        assert told.keys() == {"vpc/v2", "inbox/r0", "inbox/r2"}
        assert told.items() <= heads.items()
        again = await one.stub.Apply(api.ApplyRequest(intent=message), timeout=BOUND)
        assert (again.change, again.changed_objects, list(again.streams)) == (4, 0, [])

    play(scenario)


def test_a_refusal_names_every_violation_with_its_path_and_changes_nothing() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        wrong = Intent(ports=(port(1, 9, "nowhere"), port(1, 0, "h0")._replace(vpc_id="v2")))
        error = await error_of(one.apply(wrong))
        assert error.code() is CODES.INVALID_ARGUMENT
        found = {(v.field, v.reason): v.description for v in violations(error)}
        assert ("ports[0].host_id", "UNKNOWN_REFERENCE") in found
        assert ("ports[1].vpc_id", "IMMUTABLE") in found
        for (_, reason), description in found.items():
            assert description.startswith(f"{reason}: ")
        assert f"{len(found)} violation" in str(error.details())
        await nothing_changed(one, len(build()))

    play(scenario)


@pytest.mark.parametrize("size", [10, 300, 100_000])
def test_a_refusal_fits_into_its_reply_however_much_is_wrong(size: int) -> None:
    async def scenario(one: Served) -> None:
        ports = tuple(Port(f"{'é' * 90}{n}", "v" * size) for n in range(100))
        error = await error_of(one.apply(Intent(ports=ports)))
        assert error.code() is CODES.INVALID_ARGUMENT
        found = violations(error)
        assert found[0].field == "ports[0].vpc_id"
        assert 0 < len(found) < 200
        assert f"200 violation(s), of which {len(found)} are given" in str(error.details())
        await nothing_changed(one)

    play(scenario)


def test_a_stream_of_intents_goes_on_after_a_refusal() -> None:
    async def scenario(one: Served) -> None:
        wrong = Intent(ports=(port(1, 9, "nowhere"),))
        intents = [build()[0], wrong, *build()[1:]]

        async def requests() -> AsyncIterator[api.ApplyRequest]:
            for number, intent in enumerate(intents):
                message = intent_codec.to_proto(intent)
                yield api.ApplyRequest(intent=message, request_id=str(number))

        replies = [reply async for reply in one.stub.ApplyStream(requests(), timeout=BOUND)]
        assert [reply.request_id for reply in replies] == ["0", "1", "2", "3", "4"]
        assert [reply.change for reply in replies] == [1, 0, 2, 3, 4]
        assert {v.path for v in replies[1].violations} >= {"ports[0].vpc_id", "ports[0].host_id"}
        assert {v.reason for v in replies[1].violations} == {"UNKNOWN_REFERENCE"}
        assert not any(reply.violations for reply in replies[2:])

    play(scenario)


def test_a_request_in_a_stream_has_a_trace_of_its_own_or_the_calls() -> None:
    async def scenario(one: Served) -> None:
        own, too_long = "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "0" * 201
        messages = [intent_codec.to_proto(intent) for intent in build()[:3]]
        requests = [
            api.ApplyRequest(intent=message, traceparent=trace)
            for message, trace in zip(messages, ("", own, too_long), strict=True)
        ]

        async def all_of_them() -> AsyncIterator[api.ApplyRequest]:
            for request in requests:
                yield request

        call = one.stub.ApplyStream(
            all_of_them(), metadata=[("traceparent", "00-of-the-call")], timeout=BOUND
        )
        assert len([reply async for reply in call]) == 3
        assert [r.change.traceparent for r in one.region.log() if r.HasField("change")] == [
            "00-of-the-call",
            own,
            "",
        ]

    play(scenario)


def test_a_trace_goes_with_the_change_to_the_hosts() -> None:
    async def scenario(one: Served) -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for intent in build()[:2]:
            message = intent_codec.to_proto(intent)
            await one.stub.Apply(
                api.ApplyRequest(intent=message), metadata=[("traceparent", trace)], timeout=BOUND
            )
        v1 = vpc_stream("v1")
        await until(lambda: one.region.stream(v1), "it is published")
        assert one.region.stream(v1)[0][0].traceparent == trace
        assert [r.change.traceparent for r in one.region.log() if r.HasField("change")] == [
            trace,
            trace,
        ]

    play(scenario)


# --- what is no request ---

MALFORMED = {
    "garbage": b"\xff\xff\xff\xff",
    "truncated": api.ApplyRequest(request_id="long enough").SerializeToString()[:-3],
    "invalid UTF-8": b"\x12\x02\xff\xfe",
    "invalid UTF-8 within": b"\x0a\x06\x12\x04\x0a\x02\xff\xfe",
}


@pytest.mark.parametrize("method", ["Apply", "ApplyStream"])
@pytest.mark.parametrize("name", MALFORMED)
def test_bytes_that_are_no_intent_are_refused_and_the_server_goes_on(
    name: str, method: str
) -> None:
    async def scenario(one: Served) -> None:
        error = await error_of(one.raw(method, MALFORMED[name]))
        assert error.code() is CODES.INVALID_ARGUMENT
        assert "these bytes are no request" in str(error.details())
        await nothing_changed(one)
        assert (await one.apply(HOSTS)).change == 1

    play(scenario)


@pytest.mark.parametrize("method", ["Wait", "Watch", "GetStatus", "GetIntent"])
def test_bytes_that_are_no_question_are_refused_and_the_server_goes_on(method: str) -> None:
    async def scenario(one: Served) -> None:
        error = await error_of(one.raw(method, b"\xff\xff"))
        assert error.code() is CODES.INVALID_ARGUMENT
        await nothing_changed(one)

    play(scenario)


def test_what_came_before_malformed_bytes_stays() -> None:
    async def scenario(one: Served) -> None:
        good = api.ApplyRequest(intent=intent_codec.to_proto(HOSTS)).SerializeToString()
        error = await error_of(one.raw("ApplyStream", good, b"\xff", good))
        assert error.code() is CODES.INVALID_ARGUMENT
        await nothing_changed(one, 1)

    play(scenario)


def test_an_unknown_method_is_said_to_be_one() -> None:
    async def scenario(one: Served) -> None:
        error = await error_of(one.raw("Guess", b""))
        assert error.code() is CODES.UNIMPLEMENTED

    play(scenario)


@pytest.mark.parametrize("method", ["Apply", "ApplyStream"])
def test_an_intent_over_the_limit_is_refused_whole(method: str) -> None:
    async def scenario(one: Served) -> None:
        large = Intent(vpcs=(Vpc("v", "n" * 3000, cidr="10.0.0.0/8", tunnel_id=1),))
        request = api.ApplyRequest(intent=intent_codec.to_proto(large)).SerializeToString()
        error = await error_of(one.raw(method, request))
        assert error.code() is CODES.RESOURCE_EXHAUSTED
        assert "larger than max" in str(error.details())
        await nothing_changed(one)
        assert (await one.apply(HOSTS)).change == 1

    play(scenario, max_intent_bytes=2000)


def test_what_is_too_much_is_shed_leaves_nothing_and_may_be_tried_again() -> None:
    async def scenario(one: Served) -> None:
        log = one.region.topics.intent_log
        one.region.cut(Wire.LATE, log)
        asked = [asyncio.ensure_future(one.apply(Intent(vpcs=[vpc(n)]))) for n in range(1000)]
        await until(lambda: sum(call.done() for call in asked) > 0, "something is shed")
        # What is shed is not even parsed: these bytes are no intent.
        unread = await error_of(one.raw("Apply", b"\xff"))
        assert unread.code() is CODES.RESOURCE_EXHAUSTED
        one.region.mend()
        one.region.release()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        shed = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        assert {error.code() for error in shed} == {CODES.RESOURCE_EXHAUSTED}
        assert "nothing of the intent was taken" in str(shed[0].details())
        after_ms = int(dict(shed[0].trailing_metadata())[RETRY_AFTER])
        assert 1 <= after_ms <= 2000
        status = await one.status()
        assert status.objects["vpc"] == len(answers) - len(shed) == status.change
        assert one.metrics()["goalstate_dpm_changes_total/shed"] == len(shed) + 1

        async def all_of_them() -> AsyncIterator[api.ApplyRequest]:
            for number in range(1000):
                message = intent_codec.to_proto(Intent(vpcs=[vpc(number)]))
                yield api.ApplyRequest(intent=message)

        # What is sent in one stream waits instead.
        replies = [reply async for reply in one.stub.ApplyStream(all_of_them(), timeout=BOUND)]
        assert sum(reply.changed_objects for reply in replies) == len(shed)
        assert (await one.status()).objects["vpc"] == 1000

    def vpc(number: int) -> Vpc:
        return Vpc(f"v{number}", cidr="10.0.0.0/16", tunnel_id=number + 1)

    play(scenario, longest_wait_s=0.01, metrics_port=0)


def test_an_object_that_fits_into_no_message_is_refused_as_such() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        huge = port(1, 0, "h0", "v1-web", name="n" * 3_000_000)
        error = await error_of(one.apply(Intent(ports=(huge,))))
        assert error.code() is CODES.INVALID_ARGUMENT
        assert [(v.field, v.reason) for v in violations(error)] == [("ports[0]", "TOO_LARGE")]
        await nothing_changed(one, len(build()))

    play(scenario)


# --- a log that is away ---


def test_without_its_log_a_publisher_is_unavailable_and_says_so() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build()[:2])
        one.region.cut(Wire.FAILS, one.region.topics.intent_log)
        for _ in range(2):
            error = await error_of(one.apply(build()[2]))
            assert error.code() is CODES.UNAVAILABLE
        request = api.ApplyRequest(intent=intent_codec.to_proto(build()[2])).SerializeToString()
        error = await error_of(one.raw("ApplyStream", request))
        assert error.code() is CODES.UNAVAILABLE
        # What is known can be asked for meanwhile.
        assert (await one.status()).objects["vpc"] == 1
        health = health_pb2_grpc.HealthStub(one.channel)
        question = health_pb2.HealthCheckRequest(service=SERVICE)
        states = health_pb2.HealthCheckResponse
        async for answer in health.Watch(question, timeout=BOUND):
            if answer.status == states.NOT_SERVING:
                break
        one.region.mend()
        async for answer in health.Watch(question, timeout=BOUND):
            if answer.status == states.SERVING:
                break
        assert (await one.apply(build()[2])).change == 3
        assert (await one.status()).epoch > 1

    play(scenario)


# --- waiting ---


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (api.WaitRequest(), CODES.INVALID_ARGUMENT, "target"),
        (api.WaitRequest(all=True, quorum=1.5), CODES.INVALID_ARGUMENT, "quorum: 1.5"),
        (api.WaitRequest(all=True, quorum=-0.1), CODES.INVALID_ARGUMENT, "quorum"),
        (api.WaitRequest(all=True, quorum=float("nan")), CODES.INVALID_ARGUMENT, "quorum: nan"),
        (api.WaitRequest(all=True, timeout_s=-1), CODES.INVALID_ARGUMENT, "timeout_s: -1"),
        (api.WaitRequest(all=True, timeout_s=float("inf")), CODES.INVALID_ARGUMENT, "timeout_s"),
        (api.WaitRequest(all=True, timeout_s=float("nan")), CODES.INVALID_ARGUMENT, "timeout_s"),
        (api.WaitRequest(change=1, shard=3), CODES.INVALID_ARGUMENT, "there is no shard 3"),
        (api.WaitRequest(vpc_id="v9"), CODES.NOT_FOUND, "no VPC 'v9', and never was"),
        (api.WaitRequest(vpc_id="v" * 100_000), CODES.NOT_FOUND, "no VPC 'vvv"),
        (api.WaitRequest(change=99), CODES.NOT_FOUND, "change 99 is not known"),
        (api.WaitRequest(change=0), CODES.NOT_FOUND, "change 0 is not known"),
    ],
)
def test_a_wait_for_what_cannot_be_is_refused_at_once(
    request_: api.WaitRequest, code: grpc.StatusCode, words: str
) -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        for call in (one.stub.Wait, one.stub.Watch):
            error = await error_of(call(request_, timeout=BOUND))
            assert error.code() is code
            assert words in str(error.details())

    play(scenario)


def test_a_wait_names_who_is_missing_and_why() -> None:
    async def scenario(one: Served) -> None:
        reply = await one.apply(*build())
        status = await one.status()
        report_all(one, status, "h0")
        refused = host_report(
            "h4", 1, {vpc_stream("v2"): Mark(1, 1), inbox_stream("r2"): Mark(1, 1)}
        )
        refused.exceptions.add(
            stream="vpc/v2",
            epoch=1,
            sequence=1,
            type=resources_pb2.NEIGHBOR,
            id="v2-p0",
            status=agent_pb2.ResourceException.REFUSED,
            reason="table full",
        )
        report = agent_pb2.Report(hosts=[refused], clock_id="elsewhere")
        one.region.broker.publish(one.region.topics.reports(0), report.SerializeToString())
        wanted = api.WaitRequest(change=reply.change, timeout_s=0.3)
        waited = await one.stub.Wait(wanted, timeout=BOUND)
        assert not waited.converged
        assert (waited.hosts, waited.hosts_applied, waited.hosts_needed) == (2, 1, 2)
        assert waited.stragglers_total == 1
        [straggler] = waited.stragglers
        assert straggler.host == "h4"
        assert straggler.why == api.Straggler.REFUSED
        assert (straggler.stream, straggler.resource) == ("vpc/v2", "neighbor/v2-p0")
        assert straggler.reason == "table full"
        assert waited.elapsed_s >= 0.3
        everybody = await one.stub.Wait(api.WaitRequest(all=True, max_stragglers=2), timeout=BOUND)
        assert everybody.stragglers_total == 4
        assert [s.host for s in everybody.stragglers] == ["h1", "h2"]
        assert {s.why for s in everybody.stragglers} == {api.Straggler.NEVER_REPORTED}
        assert {s.applied for s in everybody.stragglers} == {""}

    play(scenario)


def test_a_wait_says_how_long_it_took_to_the_last_host() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        change = await one.apply(Intent(ports=(port(1, 0, "h0", "v1-web", name="new"),)))
        accepted = next(
            r.change.accepted_unix_ns
            for r in one.region.log()
            if r.HasField("change") and r.change.change == change.change
        )
        status = await one.status()
        marks = {StreamId.parse(s.stream): Mark(s.epoch, s.sequence) for s in status.streams}
        told = host_report("h0", 1, marks, applied_ns=accepted + 7_000_000)
        report = agent_pb2.Report(hosts=[told], clock_id=clock_id())
        one.region.broker.publish(one.region.topics.reports(0), report.SerializeToString())
        wanted = api.WaitRequest(change=change.change, timeout_s=BOUND)
        waited = await one.stub.Wait(wanted, timeout=BOUND)
        *_, watched = [step async for step in one.stub.Watch(wanted, timeout=BOUND)]
        for reply in (waited, watched):
            assert reply.converged
            latency = reply.latency
            assert (latency.count, latency.clock) == (1, "same clock")
            assert latency.p50_ms == latency.p99_ms == latency.max_ms == 7.0
        counted = await asyncio.to_thread(one.metrics)
        assert counted["goalstate_dpm_convergence_seconds_count"] == 2
        assert counted["goalstate_dpm_convergence_seconds_sum"] == pytest.approx(0.014)

    play(scenario, metrics_port=0)


def test_a_watch_tells_every_step_and_ends_with_the_last() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        status = await one.status()
        steps: list[int] = []
        names = iter(RACKS)
        watch = one.stub.Watch(api.WaitRequest(all=True, timeout_s=BOUND), timeout=BOUND)
        async for reply in watch:
            if not steps or reply.hosts_applied > steps[-1]:
                steps.append(reply.hosts_applied)
                report_all(one, status, *[name for name in [next(names, "")] if name])
        assert steps == [0, 1, 2, 3, 4, 5]
        assert reply.converged

    play(scenario)


def test_a_watch_ends_at_its_time_and_when_nobody_listens_any_more() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        watch = one.stub.Watch(api.WaitRequest(all=True, timeout_s=0.05), timeout=BOUND)
        replies = [reply async for reply in watch]
        assert not replies[-1].converged
        left = one.stub.Watch(api.WaitRequest(all=True, timeout_s=BOUND), timeout=BOUND)
        async for _ in left:
            left.cancel()
            break
        assert (await one.status()).change == len(build())

    play(scenario)


# --- what is ---


def test_the_status_counts_objects_streams_and_hosts() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        status = await one.status()
        assert (status.writer, status.epoch, status.change) == ("dpm-1", 1, 4)
        assert status.broker == "memory://"
        assert status.objects["host"] == 5
        assert status.objects["port"] == 8
        assert status.hosts_never_reported == 5
        assert not status.host_list
        streams = {s.stream: s for s in status.streams}
        assert streams.keys() == {"vpc/v1", "vpc/v2", "inbox/r0", "inbox/r1", "inbox/r2"}
        assert streams["vpc/v1"].topic == Topics("persistent://goalstate/region").of_stream(
            vpc_stream("v1")
        )
        assert {name: s.followers for name, s in streams.items()} == {
            "vpc/v1": 4,
            "vpc/v2": 2,
            "inbox/r0": 2,
            "inbox/r1": 2,
            "inbox/r2": 1,
        }
        report_all(one, status, "h0", "h4")
        await one.stub.Wait(api.WaitRequest(vpc_id="v2", timeout_s=BOUND), timeout=BOUND)
        status = await one.status(hosts=True)
        assert (status.hosts_live, status.hosts_never_reported) == (2, 3)
        current = {s.stream: s.followers_current for s in status.streams}
        assert current == {"vpc/v1": 1, "vpc/v2": 2, "inbox/r0": 1, "inbox/r1": 0, "inbox/r2": 1}
        hosts = {h.host: h for h in status.host_list}
        assert hosts.keys() == RACKS.keys()
        assert (hosts["h0"].lease, hosts["h1"].lease) == ("live", "never reported")
        assert hosts["h1"].last_report_age_s == -1
        assert 0 <= hosts["h0"].last_report_age_s < BOUND
        assert {h.group for h in hosts.values()} == set(RACKS.values())
        assert (hosts["h0"].ports, hosts["h4"].ports) == (3, 1)

    play(scenario)


def test_the_status_of_a_vpc_is_of_its_streams_and_hosts() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        status = await one.status(vpc_id="v2", hosts=True)
        assert {s.stream for s in status.streams} == {"vpc/v2", "inbox/r0", "inbox/r2"}
        assert {h.host for h in status.host_list} == {"h0", "h4"}
        error = await error_of(one.status(vpc_id="v9"))
        assert error.code() is CODES.NOT_FOUND

    play(scenario)


async def intent(one: Served, **request: Any) -> tuple[Intent, int]:
    """The intent that is given, and in how many pieces."""
    whole = intent_pb2.Intent()
    pieces = 0
    async for piece in one.stub.GetIntent(api.GetIntentRequest(**request), timeout=BOUND):
        whole.MergeFrom(piece)
        pieces += 1
    return intent_codec.from_proto(whole), pieces


def test_the_accepted_intent_is_given_back_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goalstate.dpm.service.PIECE_OBJECTS", 2)

    async def scenario(one: Served) -> None:
        await one.apply(*build())
        whole, pieces = await intent(one)
        assert pieces > 8
        assert [len(objects) for objects in whole] == [5, 2, 4, 4, 2, 0, 8, 1, 0]
        async with served(Region()) as fresh:
            await fresh.apply(whole)
            assert (await intent(fresh))[0] == whole

    play(scenario)


def test_an_intent_is_not_given_back_before_it_is_durable() -> None:
    async def scenario(one: Served) -> None:
        hosts, *_ = build()
        log = one.region.topics.intent_log
        one.region.cut(Wire.HELD, log)
        accepted = asyncio.ensure_future(one.apply(hosts))
        await until(lambda: one.region.held, "it is on its way into the log")
        asked = asyncio.ensure_future(intent(one))
        while not (await one.status()).objects["host"]:
            pass
        await one.status()  # was asked later, and is answered
        assert not asked.done()
        assert not accepted.done()
        one.region.mend()
        one.region.release()
        assert list((await asked)[0].hosts) == sorted(hosts.hosts)
        await accepted

    play(scenario)


def test_the_intent_of_a_vpc_of_a_kind_or_of_one_object_is_given_alone() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        of_v2, _ = await intent(one, vpc_id="v2")
        assert [len(objects) for objects in of_v2] == [0, 1, 2, 2, 1, 0, 2, 0, 0]
        of_v1, _ = await intent(one, vpc_id="v1")
        assert [dhcp.id for dhcp in of_v1.dhcps] == ["v1-d0"]
        hosts, _ = await intent(one, kind=intent_pb2.HOST)
        assert hosts == Intent(hosts=tuple(HOSTS.hosts))
        single, _ = await intent(one, kind=intent_pb2.PORT, id="v1-p0")
        assert [p.id for p in single.ports] == ["v1-p0"]
        assert await intent(one, kind=intent_pb2.GATEWAY) == (Intent(), 0)

    play(scenario)


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        ({"kind": intent_pb2.PORT, "id": "p"}, CODES.NOT_FOUND, "there is no port 'p'"),
        ({"id": "p"}, CODES.NOT_FOUND, "there is no object 'p'"),
        ({"kind": 99}, CODES.INVALID_ARGUMENT, "there is no kind 99"),
    ],
)
def test_the_intent_of_what_is_not_there_is_an_error(
    request_: dict[str, Any], code: grpc.StatusCode, words: str
) -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        error = await error_of(intent(one, **request_))
        assert error.code() is code
        assert words in str(error.details())

    play(scenario)


def test_health_and_reflection_are_served() -> None:
    async def scenario(one: Served) -> None:
        health = health_pb2_grpc.HealthStub(one.channel)
        for service in ("", SERVICE):
            answer = await health.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=BOUND
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(one.channel)
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        answers = [a async for a in reflection.ServerReflectionInfo(iter(questions))]
        names = {service.name for service in answers[0].list_services_response.service}
        assert SERVICE in names
        files = [
            FileDescriptorProto.FromString(found).package
            for found in answers[1].file_descriptor_response.file_descriptor_proto
        ]
        assert "goalstate.northbound.v1" in files

    play(scenario)


def test_metrics_count_what_happened() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build(), HOSTS)
        await error_of(one.apply(Intent(ports=(port(1, 9, "nowhere"),))))
        region = one.region

        def fetched() -> dict[str, float]:
            return one.metrics()

        counted: dict[str, float] = {}

        async def shows(name: str, value: float) -> None:
            nonlocal counted
            for _ in range(1000):
                counted = await asyncio.to_thread(fetched)
                if counted.get(name) == value:
                    return
            raise AssertionError(f"{name} is {counted.get(name)}, not {value}")

        await shows("goalstate_dpm_changes_total/accepted", 4)
        assert counted["goalstate_dpm_changes_total/unchanged"] == 1
        assert counted["goalstate_dpm_changes_total/refused"] == 1
        assert counted["goalstate_dpm_apply_seconds_count"] == 5
        assert counted["goalstate_dpm_epoch/0"] == 1
        sent = sum(len(region.stream(s)) for s in (vpc_stream("v1"), vpc_stream("v2")))
        assert counted["goalstate_dpm_published_messages_total/vpc"] == sent
        size = sum(
            len(payload) for s in ("v1", "v2") for _, payload in region.stream(vpc_stream(s))
        )
        assert counted["goalstate_dpm_published_bytes_total/vpc"] == size
        status = await one.status()
        report_all(one, status, *RACKS)
        await one.stub.Wait(api.WaitRequest(all=True, timeout_s=BOUND), timeout=BOUND)
        refusing = host_report("h0", 2, {})
        one_of = agent_pb2.ResourceException
        for state in (one_of.REFUSED, one_of.PENDING):
            refusing.exceptions.add(
                stream="vpc/v1",
                epoch=1,
                sequence=1,
                type=resources_pb2.NEIGHBOR,
                id="x",
                status=state,
            )
        gone = host_report("stranger", 1, {}, lease_s=0)
        report = agent_pb2.Report(hosts=[refusing, gone], clock_id=clock_id())
        region.broker.publish(region.topics.reports(0), report.SerializeToString())
        await shows("goalstate_dpm_exceptions/refused", 1)
        assert counted["goalstate_dpm_exceptions/pending"] == 1
        assert counted["goalstate_dpm_hosts/live"] == 5
        assert counted["goalstate_dpm_objects/port"] == 8
        assert counted["goalstate_dpm_reports_total/taken"] == 7
        assert counted["goalstate_dpm_publish_backlog"] == 0

    play(scenario, metrics_port=0)


# --- starting and stopping ---


def test_it_says_in_a_file_where_it_serves(tmp_path: Path) -> None:
    file = tmp_path / "ready.json"

    async def scenario(one: Served) -> None:
        facts = json.loads(file.read_text("utf-8"))
        assert facts.pop("pid") > 0
        assert facts == one.facts
        assert facts["listen"] != "127.0.0.1:0"

    play(scenario, ready_file=file)


@pytest.mark.parametrize("port_of", ["listen", "metrics"])
def test_a_busy_port_is_said_and_costs_no_epoch(port_of: str) -> None:
    async def main() -> None:
        region = Region()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            number = taken.getsockname()[1]
            more: dict[str, Any] = (
                {"listen": f"127.0.0.1:{number}"}
                if port_of == "listen"
                else {"metrics_port": number}
            )
            bus = region.bus()
            with pytest.raises(StartError, match=f"127.0.0.1:{number}.*give another"):
                await run(config(**more), bus=bus)
            assert not region.log()
            await bus.close()
        async with served(region) as one:
            assert (await one.status()).epoch == 1

    asyncio.run(main())


def test_a_second_publisher_stands_by_and_says_to_another_who_serves() -> None:
    async def main() -> None:
        region = Region()
        async with served(region, writer="one") as one, served(region, writer="two") as two:
            await one.apply(HOSTS)
            address = one.facts["listen"]
            asked = {"metadata": [(FORWARDED_BY, "three:1")], "timeout": BOUND}
            for call in (
                two.stub.Apply(api.ApplyRequest(), **asked),
                two.stub.ApplyStream(iter([api.ApplyRequest()]), **asked),
                two.stub.Wait(api.WaitRequest(all=True), **asked),
                two.stub.Watch(api.WaitRequest(all=True), **asked),
                two.stub.GetIntent(api.GetIntentRequest(), **asked),
            ):
                error = await error_of(call)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert f"standing by; one at {address} serves the region" in error.details()
                assert dict(error.trailing_metadata())["goalstate-active-address"] == address
            for who, role in ((one, api.StatusReply.ACTIVE), (two, api.StatusReply.STANDBY)):
                status = await who.status()
                assert (status.role, status.epoch) == (role, 1)
                assert (status.active_writer, status.active_address) == ("one", address)
                assert status.serving is (who is one)

    asyncio.run(main())


def test_a_publisher_is_called_where_it_says() -> None:
    async def scenario(one: Served) -> None:
        assert (await one.status()).active_address == "dpm.example:50151"

    play(scenario, advertise="dpm.example:50151")


def test_a_log_that_becomes_unreadable_ends_the_process_with_the_reason() -> None:
    async def main() -> None:
        region = Region()
        with pytest.raises(LogUnreadable, match="says nothing that is known"):
            async with served(region) as one:
                region.cut(Wire.FAILS, region.topics.intent_log)
                await error_of(one.apply(HOSTS))
                append(region, log_pb2.Record())
                region.mend()
                channel = one.channel
                await until(
                    lambda: (
                        channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE
                        or channel.get_state(try_to_connect=True)
                        is grpc.ChannelConnectivity.TRANSIENT_FAILURE
                    ),
                    "it does not listen any more",
                )

    asyncio.run(main())


def test_a_host_that_is_given_a_site_only_is_a_change_without_streams() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        reply = await one.apply(Intent(hosts=(host(0)._replace(site="other"),)))
        assert (reply.changed_objects, list(reply.streams)) == (1, [])
        waited = await one.stub.Wait(api.WaitRequest(change=reply.change), timeout=BOUND)
        assert (waited.converged, waited.hosts) == (True, 0)

    play(scenario)
