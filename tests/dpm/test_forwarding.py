"""A call that reaches a publisher that stands by is answered by the one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from goalstate.dpm import forwarding as forwarding_module
from goalstate.dpm.forwarding import FORWARDED_BY, Forwarding
from goalstate.dpm.metrics import Metrics
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.process import ACTIVE_ADDRESS, bind, grpc_server
from tests.dpm.test_path_independence import HOSTS, build, port
from tests.dpm.test_service import BOUND, CODES, Served, error_of, report_all, served, violations
from tests.dpm.wires import Region, until

DIRECTLY = [("grpc.enable_http_proxy", 0)]
NOBODY = "127.0.0.1:1"


# --- two publishers of one region ---


def play(scenario: Callable[[Served, Served], Coroutine[None, None, None]]) -> None:
    """With the publisher that serves, and one that stands by."""

    async def main() -> None:
        region = Region()
        async with served(region, writer="one") as one, served(region, writer="two") as two:
            await scenario(one, two)

    asyncio.run(main())


def test_an_intent_is_taken_whichever_publisher_it_is_given_to() -> None:
    async def scenario(one: Served, two: Served) -> None:
        for change, (intent, to) in enumerate(zip(build(), (two, one, two, two), strict=True), 1):
            reply = await to.apply(intent)
            assert (reply.change, reply.changed_objects > 0) == (change, True)
        assert (await one.status()).change == len(build())
        assert one.region.logged() == list(range(1, len(build()) + 1))
        assert {r.incarnation.writer for r in one.region.log() if r.HasField("incarnation")} == {
            "one"
        }

    play(scenario)


def test_a_refusal_comes_back_with_every_detail() -> None:
    async def scenario(one: Served, two: Served) -> None:
        await one.apply(*build())
        wrong = Intent(ports=(port(1, 9, "nowhere"), port(1, 0, "h0")._replace(vpc_id="v2")))
        here, there = await error_of(one.apply(wrong)), await error_of(two.apply(wrong))
        assert (there.code(), there.details()) == (CODES.INVALID_ARGUMENT, here.details())
        assert violations(there) == violations(here)
        assert rpc_status.from_call(there) == rpc_status.from_call(here)

    play(scenario)


def test_a_stream_of_intents_is_answered_in_order_and_goes_on_after_a_refusal() -> None:
    async def scenario(one: Served, two: Served) -> None:
        wrong = Intent(ports=(port(1, 9, "nowhere"),))

        async def requests() -> AsyncIterator[api.ApplyRequest]:
            for number, intent in enumerate([build()[0], wrong, *build()[1:]]):
                message = intent_codec.to_proto(intent)
                yield api.ApplyRequest(intent=message, request_id=str(number))

        replies = [reply async for reply in two.stub.ApplyStream(requests(), timeout=BOUND)]
        assert [(r.request_id, r.change, bool(r.violations)) for r in replies] == [
            ("0", 1, False),
            ("1", 0, True),
            ("2", 2, False),
            ("3", 3, False),
            ("4", 4, False),
        ]

    play(scenario)


def test_what_came_before_malformed_bytes_of_a_stream_is_done() -> None:
    async def scenario(one: Served, two: Served) -> None:
        good = api.ApplyRequest(intent=intent_codec.to_proto(HOSTS)).SerializeToString()
        error = await error_of(two.raw("ApplyStream", good, b"\xff", good))
        assert error.code() is CODES.INVALID_ARGUMENT
        assert "these bytes are no request" in str(error.details())
        assert one.region.logged() == [1]

    play(scenario)


def test_waits_and_questions_are_answered_by_the_one_that_knows() -> None:
    async def scenario(one: Served, two: Served) -> None:
        await two.apply(*build())
        everything = api.WaitRequest(all=True, timeout_s=BOUND)
        waiting = asyncio.ensure_future(two.stub.Wait(everything, timeout=BOUND))
        watching = two.stub.Watch(everything, timeout=BOUND)
        steps = aiter(watching)
        first = await anext(steps)
        assert (first.converged, first.hosts, first.hosts_applied) == (False, 5, 0)
        report_all(one, await one.status(), "h0", "h1", "h2", "h3", "h4")
        assert (await waiting).converged
        assert [step async for step in steps][-1].hosts_applied == 5

        found = intent_pb2.Intent()
        async for piece in two.stub.GetIntent(api.GetIntentRequest(vpc_id="v2"), timeout=BOUND):
            found.MergeFrom(piece)
        assert [vpc.id for vpc in found.vpcs] == ["v2"]
        for call in (
            two.stub.Wait(api.WaitRequest(vpc_id="v9", timeout_s=0), timeout=BOUND),
            two.stub.GetIntent(api.GetIntentRequest(kind=intent_pb2.PORT, id="p9")),
        ):
            assert (await error_of(call)).code() is CODES.NOT_FOUND
        assert (await two.status()).role == api.StatusReply.STANDBY, "it says of itself"

    play(scenario)


def test_a_trace_goes_through_to_the_log() -> None:
    async def scenario(one: Served, two: Served) -> None:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        request = api.ApplyRequest(intent=intent_codec.to_proto(HOSTS))
        await two.stub.Apply(request, metadata=[("traceparent", trace)], timeout=BOUND)
        assert [r.change.traceparent for r in one.region.log() if r.HasField("change")] == [trace]

    play(scenario)


def test_calls_follow_whoever_serves() -> None:
    async def main() -> None:
        region = Region()
        first = AsyncExitStack()
        one = await first.enter_async_context(served(region, writer="one"))
        async with served(region, writer="two") as two, served(region, writer="three") as three:
            await two.apply(HOSTS)
            await first.aclose()
            async with asyncio.timeout(BOUND):
                while len(
                    told := {(await s.status()).active_address for s in (two, three)}
                ) > 1 or (one.facts["listen"] in told):
                    await asyncio.sleep(0)
            for change, to in ((2, two), (3, three)):
                assert (await to.apply(build()[change - 1])).change == change

    asyncio.run(main())


# --- one whose other one is played ---


class Other(api_grpc.DataPlaneManagerServicer):
    """The publisher that serves: what it was called with, and an answer when the test lets it."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.remaining: float | None = None
        self.called = asyncio.Event()
        self.answers = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.intents = 0
        self.waits = 0

    async def Apply(self, request: api.ApplyRequest, context: Any) -> api.ApplyReply:
        self.metadata = dict(context.invocation_metadata())
        self.remaining = context.time_remaining()
        self.intents += 1
        self.called.set()
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        context.set_trailing_metadata((("says", "the other"),))
        return api.ApplyReply(request_id=request.request_id, change=7)

    async def ApplyStream(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            yield await self.Apply(request, context)

    async def Wait(self, request: api.WaitRequest, context: Any) -> api.WaitReply:
        self.waits += 1
        await asyncio.Event().wait()
        return api.WaitReply()


class Rig:
    """A publisher that stands by, a client of it, and the other one."""

    def __init__(self) -> None:
        self.other = Other()  # type: ignore[abstract]
        self.servers: list[Any] = []
        self.metrics = Metrics()
        self.engine = SimpleNamespace(serving=False, address="", problem="standing by", active=None)
        self.forwarding = Forwarding([self.engine], self.metrics)  # type: ignore[list-item]
        self.own = Other()  # type: ignore[abstract]
        self.stub: Any = None

    async def serve(self, servicer: Other, *interceptors: Any, **limits: int) -> str:
        server = grpc_server(1 << 20, *interceptors, **limits)
        api_grpc.add_DataPlaneManagerServicer_to_server(servicer, server)
        address = bind(server, "127.0.0.1:0")
        await server.start()
        self.servers.append(server)
        return address

    def active(self, address: str) -> None:
        self.engine.active = log_pb2.Alive(writer="other", address=address)

    def begin(self, **more: Any) -> asyncio.Future[Any]:
        call: Any = self.stub.Apply(api.ApplyRequest(request_id="r"), timeout=BOUND, **more)
        begun: asyncio.Future[Any] = asyncio.ensure_future(call)
        return begun

    def counted(self, code: str) -> float:
        return (
            self.metrics.registry.get_sample_value("goalstate_dpm_forwarded_total", {"code": code})
            or 0.0
        )


@asynccontextmanager
async def rigged() -> AsyncIterator[Rig]:
    rig = Rig()
    try:
        rig.active(await rig.serve(rig.other))
        rig.engine.address = await rig.serve(rig.own, rig.forwarding)
        async with grpc.aio.insecure_channel(rig.engine.address, options=DIRECTLY) as channel:
            rig.stub = api_grpc.DataPlaneManagerStub(channel)
            yield rig
    finally:
        for server in rig.servers:
            await server.stop(None)
        await rig.forwarding.close()


def alone(scenario: Callable[[Rig], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        async with rigged() as rig:
            await scenario(rig)

    asyncio.run(main())


def test_the_other_one_gets_metadata_and_deadline_and_a_mark_of_who_passed_it_on() -> None:
    async def scenario(rig: Rig) -> None:
        rig.other.answers.set()
        call = rig.stub.Apply(
            api.ApplyRequest(request_id="r"),
            metadata=[("traceparent", "00-1"), ("tenant-bin", b"\xff")],
            timeout=BOUND,
        )
        reply = await call
        assert (reply.request_id, reply.change) == ("r", 7)
        assert dict(await call.trailing_metadata())["says"] == "the other"
        assert rig.other.metadata["traceparent"] == "00-1"
        assert rig.other.metadata["tenant-bin"] == b"\xff"
        assert rig.other.metadata[FORWARDED_BY] == rig.engine.address
        assert rig.other.remaining is not None
        # Not by one clock: gRPC's own is coarser, and is set right now and then.
        assert 0 < rig.other.remaining <= BOUND + 1
        assert rig.counted("OK") == 1

        await rig.stub.Apply(api.ApplyRequest())
        assert rig.other.remaining is None

    alone(scenario)


def test_a_client_that_goes_away_ends_the_call_at_the_other_one() -> None:
    async def scenario(rig: Rig) -> None:
        call = rig.stub.Apply(api.ApplyRequest(), timeout=BOUND)
        await asyncio.wait_for(rig.other.called.wait(), BOUND)
        call.cancel()
        await asyncio.wait_for(rig.other.cancelled.wait(), BOUND)

    alone(scenario)


def test_what_was_shed_unread_is_not_passed_on() -> None:
    class Overloaded(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = await continuation(details)
            return handler._replace(request_deserializer=RuntimeError, unary_unary=shed)

    async def shed(request: Any, context: Any) -> None:
        assert isinstance(request, RuntimeError)
        await context.abort(CODES.RESOURCE_EXHAUSTED, "shed")

    async def scenario(rig: Rig) -> None:
        address = await rig.serve(rig.own, rig.forwarding, Overloaded())
        async with grpc.aio.insecure_channel(address, options=DIRECTLY) as channel:
            stub: Any = api_grpc.DataPlaneManagerStub(channel)
            error = await error_of(stub.Apply(api.ApplyRequest(), timeout=BOUND))
        assert error.code() is CODES.RESOURCE_EXHAUSTED
        assert rig.other.intents == 0

    alone(scenario)


def test_a_call_that_was_passed_on_is_not_passed_on_again() -> None:
    async def scenario(rig: Rig) -> None:
        rig.own.answers.set()
        await rig.begin(metadata=[(FORWARDED_BY, "three:1")])
        assert (rig.own.intents, rig.other.intents) == (1, 0)

    alone(scenario)


@pytest.mark.parametrize("address", ["", "its own"])
def test_one_that_knows_of_no_other_answers_itself(address: str) -> None:
    async def scenario(rig: Rig) -> None:
        rig.active(rig.engine.address if address else "")
        rig.own.answers.set()
        await rig.begin()
        assert (rig.own.intents, rig.other.intents) == (1, 0)

    alone(scenario)


def test_where_nobody_answers_it_is_said_that_nothing_was_done() -> None:
    async def scenario(rig: Rig) -> None:
        rig.active(NOBODY)
        error = await error_of(rig.begin())
        assert error.code() is CODES.UNAVAILABLE
        assert error.details() == (
            "the publisher is not serving just now: standing by; nobody answers there, and nothing "
            "was done"
        )
        assert dict(error.trailing_metadata())[ACTIVE_ADDRESS] == NOBODY
        assert rig.counted("UNAVAILABLE") == 1

    alone(scenario)


async def _is_gone(rig: Rig) -> None:
    await rig.servers[0].stop(None)


async def _serves_no_more(rig: Rig) -> None:
    rig.active(NOBODY)


@pytest.mark.parametrize("happens", [_is_gone, _serves_no_more])
def test_without_an_answer_it_is_said_that_it_may_have_been_done(
    happens: Callable[[Rig], Coroutine[None, None, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding_module, "LOOK_S", 0.001)

    async def scenario(rig: Rig) -> None:
        there = rig.engine.active.address
        calling = rig.begin()
        await asyncio.wait_for(rig.other.called.wait(), BOUND)
        await happens(rig)
        error = await error_of(calling)
        assert error.code() is CODES.UNAVAILABLE
        assert "no answer came from there" in str(error.details())
        assert "may have been done" in str(error.details())
        assert dict(error.trailing_metadata())[ACTIVE_ADDRESS] == there

    alone(scenario)


class _Broken:
    """A call as gRPC has it where the connection breaks as something is written to it."""

    async def write(self, request: bytes) -> None:
        raise asyncio.InvalidStateError

    def cancel(self) -> None:
        pass

    async def code(self) -> grpc.StatusCode:
        return CODES.INTERNAL

    async def details(self) -> str:
        return "Internal error from Core"

    async def trailing_metadata(self) -> tuple[()]:
        return ()

    def __aiter__(self) -> _Broken:
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration


def test_a_connection_that_breaks_as_it_is_written_to_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding_module._Peer, "call", lambda *args, **more: _Broken())

    async def scenario(rig: Rig) -> None:
        error = await error_of(rig.begin())
        assert error.code() is CODES.UNAVAILABLE
        assert "may have been done" in str(error.details())

    alone(scenario)


def test_of_a_stream_that_breaks_one_intent_is_in_doubt() -> None:
    async def scenario(rig: Rig) -> None:
        rig.other.answers.set()

        async def requests() -> AsyncIterator[api.ApplyRequest]:
            for number in range(5):
                yield api.ApplyRequest(request_id=str(number))

        call = rig.stub.ApplyStream(requests(), timeout=BOUND)
        assert [(await call.read()).request_id for _ in range(2)] == ["0", "1"]
        assert [(await call.read()).request_id for _ in range(3)] == ["2", "3", "4"]
        assert await call.read() is grpc.aio.EOF

        rig.other.answers.clear()
        rig.other.called.clear()
        before = rig.other.intents
        call = rig.stub.ApplyStream(requests(), timeout=BOUND)
        await asyncio.wait_for(rig.other.called.wait(), BOUND)
        await rig.servers[0].stop(None)
        error = await error_of(call)
        assert "may have been done" in str(error.details())
        assert rig.other.intents == before + 1

    alone(scenario)


def test_waits_take_no_place_of_an_intent() -> None:
    async def scenario(rig: Rig) -> None:
        rig.active(await rig.serve(rig.other, calls=2))
        rig.other.answers.set()
        waits = [
            asyncio.ensure_future(rig.stub.Wait(api.WaitRequest(), timeout=BOUND)) for _ in range(3)
        ]
        await until(lambda: rig.other.waits == 2, "as many wait as one connection carries")
        await rig.begin()
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)

    alone(scenario)


def test_calls_share_a_channel_and_one_that_serves_no_more_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(forwarding_module, "LOOK_S", 0.001)

    async def scenario(rig: Rig) -> None:
        rig.other.answers.set()
        await asyncio.gather(*(rig.begin() for _ in range(20)))
        assert rig.other.intents == 20
        assert list(rig.forwarding._peers) == [rig.engine.active.address]
        rig.active(rig.engine.address)
        await until(lambda: not rig.forwarding._peers, "its channel is closed")

    alone(scenario)
