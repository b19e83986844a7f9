"""The agent process: wiring, inspection, metrics, registration."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from goalstate.agent.__main__ import run
from goalstate.agent.config import AgentConfig
from goalstate.agent.fleet import Member
from goalstate.agent.inspection import InspectionService
from goalstate.agent.registration import register
from goalstate.bus.errors import BusError
from goalstate.gs.naming import simulated_host
from goalstate.gs.packing import subscriptions, unpack
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.resources import Resource
from goalstate.gs.streams import inbox_stream
from goalstate.process import RETRY_AFTER, StartError
from tests.agent.fleet_rig import FleetRig, wait_until
from tests.agent.rig import STREAM, TOPICS, Publisher, neighbor, port, subnet, subscription, vpc

HOSTS = [simulated_host(number) for number in range(4)]


def config(**settings: Any) -> AgentConfig:
    # The rig's topics are those of the region that Topics() has.
    return AgentConfig.load(
        broker="memory", region="region", inspect="127.0.0.1:0", metrics_port=0, **settings
    )


@asynccontextmanager
async def running(rig: FleetRig, settings: AgentConfig) -> AsyncIterator[dict[str, Any]]:
    ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    process = asyncio.create_task(run(settings, ready=ready.set_result, stop=stop, bus=rig.bus))
    await asyncio.wait((ready, process), return_when=asyncio.FIRST_COMPLETED)
    if process.done():
        await process
    try:
        yield ready.result()
    finally:
        stop.set()
        await process
        await rig.bus.close()


async def set_up(rig: FleetRig) -> Publisher:
    """Subscriptions for all, and a port on the first host; waits until it is applied."""
    inbox = Publisher(inbox_stream(HOSTS[0].group))
    for host in HOSTS:
        rig.put(inbox.publish(subscription(), host=host.id))
    rig.put(inbox.publish(port(1), host=HOSTS[0].id))
    publisher = Publisher(STREAM)
    rig.put(publisher.publish(vpc(), subnet()))
    rig.put(publisher.publish(*(neighbor(n) for n in range(3))))
    await wait_until(
        lambda: all(rig.told(host.id, "vpc/vpc-1") == (1, 2) for host in HOSTS), "1/2 on all hosts"
    )
    return publisher


async def applied(
    stub: agent_pb2_grpc.InspectionStub, **request: Any
) -> tuple[list[agent_pb2.Applied], set[str]]:
    pieces = [piece async for piece in stub.GetApplied(agent_pb2.GetAppliedRequest(**request))]
    resources: list[Resource] = []
    for piece in pieces:
        resources += [resource for resource, _ in unpack(piece.state)]
        for section in piece.state.host_resources.values():
            resources += [resource for resource, _ in subscriptions(section)]
    return pieces, {resource.name for resource in resources}


def test_what_hosts_have_applied_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goalstate.gs.packing.CHUNK_BYTES", 100)
    file = tmp_path / "ready.json"

    async def scenario() -> None:
        rig = FleetRig()
        settings = config(hosts=4, counting_share=0.25, ready_file=file)
        async with running(rig, settings) as facts:
            assert (facts["counting_hosts"], facts["decoding_hosts"]) == (1, 3)
            assert json.loads(file.read_text())["listen"] == facts["listen"]
            await set_up(rig)
            async with grpc.aio.insecure_channel(facts["listen"]) as channel:
                await look(channel)
            assert rig.hosts[HOSTS[0].id].inspection_address == facts["listen"]
            text = await asyncio.to_thread(scrape, facts["metrics"])
            assert 'goalstate_agent_hosts{mode="counting"} 1.0' in text
            assert 'goalstate_agent_messages_total{stream_kind="vpc"} 8.0' in text
            assert 'goalstate_agent_resources_applied_total{kind="neighbor"} 9.0' in text
            assert "goalstate_agent_resources_held 20.0" in text
            assert 'goalstate_agent_exceptions{status="pending"} 0.0' in text
            assert "goalstate_agent_readers 8.0" in text
            assert 'goalstate_agent_apply_delay_seconds_bucket{le="+Inf"}' in text

    asyncio.run(scenario())


async def look(channel: grpc.aio.Channel) -> None:
    stub = agent_pb2_grpc.InspectionStub(channel)
    reply = await stub.ListHosts(agent_pb2.ListHostsRequest())
    assert [(one.host, one.counting, one.resources) for one in reply.hosts] == [
        (HOSTS[0].id, False, 7),
        (HOSTS[1].id, False, 6),
        (HOSTS[2].id, False, 6),
        (HOSTS[3].id, True, 1),
    ]
    assert {p.stream: (p.epoch, p.sequence) for p in reply.hosts[0].streams} == {
        "inbox/host-rack-00000": (1, 5),
        "vpc/vpc-1": (1, 2),
    }
    pieces, names = await applied(stub, hosts=[HOSTS[0].id])
    assert names == {
        *("vpc/vpc-1", "subnet/subnet-1", "port/port-1", "subscription/vpc/vpc-1"),
        *(f"neighbor/port-{n}" for n in range(3)),
    }
    last = [piece.stream for piece in pieces if piece.last]
    assert last == ["inbox/host-rack-00000", "vpc/vpc-1"]
    assert pieces[-1].last
    assert pieces[-1].position.sequence == 2

    pieces, names = await applied(stub, stream="vpc/vpc-1", type=1, filter_type=True)
    assert names == {"subnet/subnet-1"}
    assert [(piece.host, piece.counting) for piece in pieces] == [
        (host.id, host is HOSTS[3]) for host in HOSTS
    ]
    pieces, names = await applied(stub, summary=True)
    assert len(pieces) == 8
    assert not names
    for request, code in (
        ({"hosts": ["nobody"]}, grpc.StatusCode.NOT_FOUND),
        ({"stream": "nothing"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"type": 77, "filter_type": True}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await applied(stub, **request)
        assert error.value.code() == code
    health = health_pb2_grpc.HealthStub(channel)
    status = await health.Check(
        health_pb2.HealthCheckRequest(service="goalstate.agent.v1.Inspection")
    )
    assert status.status == health_pb2.HealthCheckResponse.SERVING


def test_what_hosts_have_applied_is_told_without_those_that_are_released_meanwhile() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        members = [Member(host.id, host.group) for host in HOSTS[:3]]
        async with rig.fleet(members) as fleet:
            inbox = Publisher(inbox_stream(HOSTS[0].group))
            rig.put(inbox.publish(*(port(n) for n in range(3)), host=HOSTS[0].id))
            await wait_until(
                lambda: all(rig.told(m.host, str(inbox.stream)) for m in members), "all have it"
            )
            told: list[str] = []
            request = agent_pb2.GetAppliedRequest()
            async for piece in InspectionService(fleet).GetApplied(request, SimpleNamespace()):
                if not told:
                    fleet.release(fleet.hosts[HOSTS[1].id])
                told.append(piece.host)
            assert told == [HOSTS[0].id, HOSTS[2].id]
        await rig.bus.close()

    asyncio.run(scenario())


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_a_modelled_data_plane_can_be_chosen() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        settings = config(hosts=4, data_plane="modelled", model={"refuse_ids": ["port-2"]})
        async with running(rig, settings) as facts:
            assert facts["data_plane"] == "modelled"
            await set_up(rig)
            exceptions = rig.hosts[HOSTS[3].id].exceptions
            assert [one.reason for one in exceptions] == [
                "DATA_PLANE: injected failure: the id matches"
            ]

    asyncio.run(scenario())


def test_a_taken_port_is_an_error_that_says_what_to_do() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port_number = taken.getsockname()[1]
            settings = config(hosts=1).model_copy(update={"metrics_port": port_number})
            with pytest.raises(StartError, match="give another --metrics-port"):
                async with running(FleetRig(), settings):
                    pass
            settings = config().model_copy(update={"inspect": f"127.0.0.1:{port_number}"})
            with pytest.raises(StartError, match="the port is taken"):
                async with running(FleetRig(), settings):
                    pass

    asyncio.run(scenario())


def test_a_process_can_be_stopped_while_it_waits_for_its_broker() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        rig.bus.gate.clear()
        stop = asyncio.Event()
        settings = config(hosts=2).model_copy(update={"metrics_port": None, "inspect": None})
        process = asyncio.create_task(run(settings, stop=stop, bus=rig.bus))
        await wait_until(lambda: rig.bus.opening == 2, "readers are opening")
        stop.set()
        await process
        assert not rig.bus.readers

    asyncio.run(scenario())


def test_a_broker_url_of_another_kind_is_refused() -> None:
    with pytest.raises(BusError, match="is no broker's URL"):
        asyncio.run(run(config(hosts=1)))


class Registry(api_grpc.DataPlaneManagerServicer):
    """Takes hosts, after it failed so many times."""

    def __init__(self, failures: int, code: grpc.StatusCode, after_ms: str = "") -> None:
        self.failures = failures
        self.code = code
        self.after_ms = after_ms
        self.batches: list[list[str]] = []

    async def Apply(self, request: api.ApplyRequest, context: Any) -> api.ApplyReply:
        if self.failures:
            self.failures -= 1
            if self.after_ms:
                context.set_trailing_metadata(((RETRY_AFTER, self.after_ms),))
            await context.abort(self.code, "not now")
        self.batches.append([host.id for host in request.intent.hosts])
        return api.ApplyReply(change=1)

    def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("nobody calls this")

    def ApplyStream(self, request_iterator: Any, context: Any) -> Any:
        return self._unused(request_iterator, context)

    def Wait(self, request: Any, context: Any) -> Any:
        return self._unused(request, context)

    def Watch(self, request: Any, context: Any) -> Any:
        return self._unused(request, context)

    def Republish(self, request: Any, context: Any) -> Any:
        return self._unused(request, context)

    async def GetStatus(self, request: api.StatusRequest, context: Any) -> api.StatusReply:
        return api.StatusReply()

    def GetIntent(self, request: Any, context: Any) -> Any:
        return self._unused(request, context)


@asynccontextmanager
async def dpm(registry: Registry) -> AsyncIterator[str]:
    server = grpc.aio.server()
    api_grpc.add_DataPlaneManagerServicer_to_server(registry, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goalstate.agent.registration.RETRY_S", 0.01)


def test_hosts_are_made_known_in_batches_and_again_while_the_dpm_is_not_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goalstate.agent.registration.BATCH", 3)

    async def scenario() -> None:
        registry = Registry(2, grpc.StatusCode.UNAVAILABLE)
        async with dpm(registry) as address:
            rig = FleetRig()
            async with running(rig, config(hosts=4, register=address)):
                assert registry.batches == [[h.id for h in HOSTS[:3]], [HOSTS[3].id]]

    asyncio.run(scenario())


def test_a_dpm_that_refuses_the_hosts_or_does_not_answer_is_named() -> None:
    async def scenario() -> None:
        async with dpm(Registry(1, grpc.StatusCode.INVALID_ARGUMENT)) as address:
            with pytest.raises(StartError, match=f"{address} does not take the hosts: not now"):
                await register(HOSTS, address, 10)
        async with dpm(Registry(10**6, grpc.StatusCode.UNAVAILABLE)) as address:
            with pytest.raises(StartError, match="in time: not now; is it up"):
                await register(HOSTS, address, 0.5)

    asyncio.run(scenario())


def test_hosts_that_are_shed_are_made_known_when_the_dpm_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goalstate.agent.registration.RETRY_S", 3600)

    async def scenario() -> None:
        registry = Registry(2, grpc.StatusCode.RESOURCE_EXHAUSTED, after_ms="7")
        async with dpm(registry) as address:
            await register(HOSTS, address, 10)
        assert len(registry.batches) == 1

    asyncio.run(scenario())


def test_no_proxy_is_asked_for_the_dpm(through_a_proxy: None) -> None:
    async def scenario() -> None:
        registry = Registry(0, grpc.StatusCode.OK)
        async with dpm(registry) as address:
            await register(HOSTS, address, 0.5)
        assert len(registry.batches) == 1

    asyncio.run(scenario())


def test_the_rig_and_the_process_mean_the_same_topics() -> None:
    assert TOPICS.prefix == "persistent://goalstate/region"
