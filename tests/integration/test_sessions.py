"""Sessions as they are: a publisher and a fleet that speak gRPC over loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from goalstate.agent.core import HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Fleet, FleetSettings, Member
from goalstate.agent.session import SessionClient
from goalstate.dpm import session_service
from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import NotServing
from goalstate.dpm.session_service import SessionService
from goalstate.dpm.sessions import CheckpointBuilder
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.session.v1 import session_pb2, session_pb2_grpc
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Channel, StreamId
from goalstate.process import ACTIVE_ADDRESS, bind, grpc_server
from tests.dpm.test_channels import V1, ports, without
from tests.dpm.test_engine import CLOCK_ID, Clock, apply, crash, new_engine, wait
from tests.dpm.test_path_independence import HOSTS, RACKS, network, port
from tests.dpm.wires import Region, until

FEW = ChannelPolicy(6, 100)
#: What all of these tests begin with: a VPC of four ports, on four hosts.
BEGIN = (HOSTS, network(1), ports(1, 4, "v1-web"))


def run(test: Callable[[Region], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test(Region()))


class Counting(MemoryDataPlane):
    """Counts operations that change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.repeated = 0
        self._seen: dict[tuple[int, str], Resource] = {}

    def program(self, operations: Any, done: Any) -> None:
        for one in operations:
            before = self._seen.pop((one.kind, one.id), None)
            if one.payload:
                self._seen[one.kind, one.id] = one
            self.repeated += before == (one if one.payload else None)
        super().program(operations, done)


@asynccontextmanager
async def publisher(region: Region, name: str = "dpm-1", **more: Any) -> AsyncIterator[Engine]:
    """An engine whose sessions are served."""
    engine = new_engine(region, Clock(), writer=name, channels=FEW, **more)
    server = grpc_server()
    engine.address = bind(server, "127.0.0.1:0")
    session_pb2_grpc.add_StreamSessionsServicer_to_server(SessionService([engine]), server)
    await engine.start()
    await server.start()
    try:
        yield engine
    finally:
        if engine.sessions is not None:
            await engine.sessions.close()
        await server.stop(0)
        await engine.stop()
        await engine._bus.close()


@asynccontextmanager
async def fleet(region: Region, *addresses: str) -> AsyncIterator[Fleet]:
    """All hosts, in one process; without an address it can have no session."""
    client = SessionClient(addresses) if addresses else None
    bus = region.bus("fleet")
    settings = FleetSettings(
        HostSettings(region.topics, sessions=bool(addresses)),
        report_topic=region.topics.reports(0),
        clock_id=CLOCK_ID,
    )
    members = [Member(name, rack) for name, rack in RACKS.items()]
    one = Fleet(bus, members, settings, lambda host: Counting(), sessions=client)
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
        await bus.close()


async def converged(engine: Engine) -> None:
    progress = await wait(engine, 20)
    assert progress.converged, progress.stragglers


def assert_agrees(one: Fleet, engine: Engine) -> None:
    head = engine.core.streams[V1]
    for name in head.followers:
        live = one.hosts[name].core.streams[V1].live
        assert (live.mark, live.digest) == (head.mark, head.digest), name
    planes = [host.data_plane for host in one.hosts.values()]
    assert sum(plane.repeated for plane in planes if isinstance(plane, Counting)) == 0


def test_a_vpc_travels_over_a_session_goes_to_pulsar_and_comes_back() -> None:
    async def test(region: Region) -> None:
        async with publisher(region) as engine, fleet(region, engine.address) as one:
            await apply(engine, *BEGIN)
            await converged(engine)
            assert engine.core.channel_of_vpc("v1") is Channel.SESSION
            assert region.stream(V1) == [], "nothing of it is on its topic"
            for _ in range(3):
                await apply(engine, ports(5, 7))
                await converged(engine)
                assert engine.core.channel_of_vpc("v1") is Channel.PULSAR
                assert_agrees(one, engine)
                await apply(engine, without(5, 7))
                assert engine.core.channel_of_vpc("v1") is Channel.SESSION
                await converged(engine)
                assert_agrees(one, engine)
            assert one.sessions is not None
            assert (one.sessions.opened, len(one.sessions.follows)) == (1, 1)

    run(test)


def test_a_switch_under_load_both_ways() -> None:
    async def test(region: Region) -> None:
        async with publisher(region) as engine, fleet(region, engine.address) as one:
            await apply(engine, *BEGIN)
            for turn in range(60):
                size = 4 + turn % 5
                await apply(
                    engine,
                    Intent(ports=(port(1, 1, "h1", "v1-web", ip=20 + turn),)),
                    ports(5, size) if size > 4 else without(5, 8 if turn else 4),
                )
                await asyncio.sleep(0)
            await converged(engine)
            assert_agrees(one, engine)
            assert engine.core.streams[V1].began.sequence > 100, "it switched to the last"

    run(test)


def test_agents_follow_to_the_publisher_that_takes_over() -> None:
    async def test(region: Region) -> None:
        async with (
            publisher(region, "one") as first,
            publisher(region, "two") as second,
            # It is told the one that stands by first.
            fleet(region, second.address, first.address) as one,
        ):
            await apply(first, *BEGIN)
            await converged(first)
            sessions = first.sessions
            assert sessions is not None
            assert len(sessions.open) == 1
            await crash(first, region)
            await sessions.close()
            await until(lambda: second.serving, "the other serves")
            await apply(second, Intent(ports=(port(1, 1, "h1", ip=99),)))
            await converged(second)
            assert second.core.channel_of_vpc("v1") is Channel.SESSION
            assert second.core.streams[V1].mark.epoch == 2
            assert_agrees(one, second)

    run(test)


def test_an_agent_without_a_publisher_refuses_a_session_by_name_and_follows_what_it_can() -> None:
    async def test(region: Region) -> None:
        async with publisher(region) as engine, fleet(region) as one:
            await apply(engine, *BEGIN)
            faults = one.hosts["h1"].core.exceptions
            await until(lambda: any(not fault.pending for *_, fault in faults()), "it is refused")
            ((kind, id_, fault),) = [found[1:] for found in faults() if not found[3].pending]
            assert (kind, id_) == (Kind.SUBSCRIPTION, "vpc/v1")
            assert fault.reason.startswith("UNSUPPORTED_CHANNEL: this agent was given no publisher")
            assert not (await wait(engine, 0)).converged
            await apply(engine, ports(5, 7))
            await converged(engine)
            assert_agrees(one, engine)

    run(test)


@pytest.mark.parametrize(
    "request_",
    [
        session_pb2.Request(),
        session_pb2.Request(follow=session_pb2.Follow(id=1, stream="nonsense")),
    ],
    ids=["empty", "no-stream"],
)
def test_a_request_that_makes_no_sense_ends_the_session_with_its_reason(
    request_: session_pb2.Request,
) -> None:
    async def test(region: Region) -> None:
        async def requests() -> AsyncIterator[session_pb2.Request]:
            yield request_

        async with (
            publisher(region) as engine,
            grpc.aio.insecure_channel(engine.address) as channel,
        ):
            stub: Any = session_pb2_grpc.StreamSessionsStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in stub.Open(requests(), timeout=10):
                    pass
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert engine.sessions is not None
            assert not engine.sessions.open

    run(test)


async def followed(engine: Engine) -> AsyncIterator[session_pb2.Carried]:
    """What comes in a session that follows a stream of which the publisher remembers nothing."""
    assert engine.sessions is not None
    engine.sessions._rings._rings[V1].clear()

    async def requests() -> AsyncIterator[session_pb2.Request]:
        yield session_pb2.Request(follow=session_pb2.Follow(id=7, stream=str(V1)))
        await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(engine.address) as channel:
        stub: Any = session_pb2_grpc.StreamSessionsStub(channel)
        async for carried in stub.Open(requests(), timeout=10):
            yield carried


def test_an_agent_is_told_that_there_is_no_checkpoint_and_gets_it_once_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_service, "GIVE_UP_S", 0.01)

    async def fails(self: CheckpointBuilder, stream: StreamId) -> None:
        raise RuntimeError(f"{stream} cannot be rebuilt")

    async def test(region: Region) -> None:
        async with publisher(region) as engine:
            await apply(engine, *BEGIN)
            with monkeypatch.context() as broken:
                broken.setattr(CheckpointBuilder, "_build", fails)
                async for carried in followed(engine):
                    assert (carried.id, carried.gone) == (7, True)
                    break
            async for carried in followed(engine):
                assert carried.message.properties["kind"] == "checkpoint"
                break

    run(test)


def test_a_session_whose_publisher_serves_no_more_says_who_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def serves_no_more(self: CheckpointBuilder, stream: StreamId) -> None:
        raise NotServing("another one serves by now")

    monkeypatch.setattr(CheckpointBuilder, "_build", serves_no_more)

    async def test(region: Region) -> None:
        async with publisher(region) as engine:
            await apply(engine, *BEGIN)
            with pytest.raises(grpc.aio.AioRpcError, match="another one serves") as ended:
                async for _ in followed(engine):
                    pass
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            assert ACTIVE_ADDRESS in dict(ended.value.trailing_metadata())

    run(test)
