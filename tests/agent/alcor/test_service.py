"""An agent that is pushed to, driven by a publisher that has the schema's stubs only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from goalstate.gs.naming import simulated_host
from goalstate.gs.packing import unpack
from goalstate.gs.pb.alcor.schema import goalstate_pb2, provisioner_pb2_grpc
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.resources import Resource
from tests.agent.alcor.rig import (
    FAILURE,
    INVALID_ARG,
    OUT_OF_ORDER,
    PENDING,
    SUCCESS,
    agent,
    statuses,
    v1,
    v2,
)
from tests.agent.fleet_rig import FleetRig
from tests.agent.rig import STREAM, TOPICS, Publisher, gone, neighbor, port, subnet, vpc

HOST = simulated_host(0).id
OTHER = simulated_host(1).id
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED


class Pushing:
    """The raw stubs, and a look at what the agent has applied."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.push = provisioner_pb2_grpc.GoalStateProvisionerStub(channel)
        self.subscribe = provisioner_pb2_grpc.SubscribeInfoProvisionerStub(channel)
        self.inspection = agent_pb2_grpc.InspectionStub(channel)
        self.capabilities = agent_pb2_grpc.CapabilitiesStub(channel)

    async def applied(self, host: str = HOST) -> dict[str, Resource]:
        found = {}
        async for piece in self.inspection.GetApplied(agent_pb2.GetAppliedRequest(hosts=[host])):
            for resource, _ in unpack(piece.state):
                found[resource.name] = resource
        return found


@asynccontextmanager
async def driven(bus: Any = None, **settings: Any) -> AsyncIterator[Pushing]:
    async with (
        agent(bus, source="alcor", **settings) as facts,
        grpc.aio.insecure_channel(facts["listen"]) as channel,
    ):
        yield Pushing(channel)


async def failure(call: Any) -> tuple[Any, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details() or ""


def test_a_publisher_of_v1_drives_a_host_without_any_broker() -> None:
    async def scenario() -> None:
        async with driven() as one:
            reply = await one.push.PushNetworkResourceStates(
                v1(neighbor(1), port(), subnet(), vpc())
            )
            assert set(statuses(reply).values()) == {SUCCESS}
            assert reply.format_version == 101
            assert set(await one.applied()) == {
                "vpc/vpc-1",
                "subnet/subnet-1",
                "port/port-1",
                "neighbor/port-1",
            }
            reply = await one.push.PushNetworkResourceStates(v1(gone(port())))
            assert statuses(reply) == {"port/port-1": SUCCESS}
            assert "port/port-1" not in await one.applied()

    asyncio.run(scenario())


def test_each_message_of_a_stream_has_its_reply_in_order() -> None:
    async def scenario() -> None:
        async with driven() as one:
            call = one.push.PushGoalStatesStream()
            first = v2(vpc(), subnet(), hosts=[HOST])
            await call.write(first)
            for number in range(100):
                await call.write(v2(neighbor(number), hosts=[HOST]))
            await call.done_writing()
            replies = [reply async for reply in call]
            assert statuses(replies[0]) == {"vpc/vpc-1": SUCCESS, "subnet/subnet-1": SUCCESS}
            assert [statuses(reply) for reply in replies[1:]] == [
                {f"neighbor/port-{number}": SUCCESS} for number in range(100)
            ]
            assert len(await one.applied()) == 102

    asyncio.run(scenario())


def test_a_host_takes_its_slice_and_what_is_for_nobody_here_is_refused() -> None:
    async def scenario() -> None:
        async with driven(hosts=2) as one:
            message = v2(vpc(), subnet())  # for both
            for resource, host in ((port(1), HOST), (port(2), OTHER), (port(3), "elsewhere")):
                message.MergeFrom(v2(resource, hosts=[host]))
            call = one.push.PushGoalStatesStream()
            await call.write(message)
            told = statuses(await call.read())
            assert told.pop("port/port-3") == INVALID_ARG
            assert set(told.values()) == {SUCCESS}
            assert {"vpc/vpc-1", "port/port-1"} <= set(await one.applied(HOST))
            assert "port/port-2" in await one.applied(OTHER)
            assert "port/port-1" not in await one.applied(OTHER)
            code, text = await failure(one.push.PushNetworkResourceStates(v1(vpc())))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "2 hosts" in text
            call.cancel()

    asyncio.run(scenario())


def test_what_is_refused_or_waits_or_comes_late_has_its_status() -> None:
    async def scenario() -> None:
        settings = {"data_plane": "modelled", "model": {"program_ms": 0, "refuse_ids": ["bad"]}}
        async with driven(alcor_pending_s=0, pending_deadline_s=3600, **settings) as one:
            push = one.push.PushNetworkResourceStates
            reply = await push(v1(vpc(), subnet("bad"), port(subnet_id="absent")))
            assert statuses(reply) == {
                "vpc/vpc-1": SUCCESS,
                "subnet/bad": FAILURE,
                "port/port-1": PENDING,
            }
            reasons = {one.resource_id: one.reason for one in reply.operation_statuses}
            assert "injected failure" in reasons["bad"]
            assert "subnet/absent" in reasons["port-1"]
            assert statuses(await push(v1(subnet("absent")))) == {"subnet/absent": SUCCESS}
            assert "port/port-1" in await one.applied()
            assert statuses(await push(v1(vpc(7)))) == {"vpc/vpc-1": SUCCESS}
            assert statuses(await push(v1(vpc(6)))) == {"vpc/vpc-1": OUT_OF_ORDER}

    asyncio.run(scenario())


def test_a_format_that_is_not_to_be_taken_is_not_there() -> None:
    async def scenario() -> None:
        async with driven(alcor_formats=("v2",)) as one:
            code, _ = await failure(one.push.PushNetworkResourceStates(v1(vpc())))
            assert code is UNIMPLEMENTED
            told = await one.capabilities.GetCapabilities(agent_pb2.GetCapabilitiesRequest())
            assert (told.follows, list(told.push_formats)) == (False, [102])
            assert list(told.hosts) == [HOST]
            for call in (
                one.push.RequestGoalStates(goalstate_pb2.HostRequest()),
                one.push.PushGoalstates(goalstate_pb2.NeighborRulesRequest()),
            ):
                code, _ = await failure(call)
                assert code is UNIMPLEMENTED
        async with driven(alcor_formats=("v1",)) as one:
            call = one.push.PushGoalStatesStream()
            with suppress(grpc.aio.AioRpcError):  # it may be refused before that is written
                await call.write(v2(vpc()))
            assert await call.code() is UNIMPLEMENTED

    asyncio.run(scenario())


def test_a_message_of_the_other_format_is_refused_by_name() -> None:
    async def scenario() -> None:
        async with driven() as one:
            message = v1(vpc())
            message.format_version = 102
            code, text = await failure(one.push.PushNetworkResourceStates(message))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "101" in text
            call = one.push.PushGoalStatesStream()
            await call.write(v2(vpc()))
            other = v2(subnet())
            other.format_version = 103
            await call.write(other)
            assert statuses(await call.read()) == {"vpc/vpc-1": SUCCESS}
            code, text = await failure(call.read())
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "103" in text

    asyncio.run(scenario())


def test_bytes_that_are_no_message_are_an_invalid_argument() -> None:
    async def scenario() -> None:
        async with (
            agent(source="alcor") as facts,
            grpc.aio.insecure_channel(facts["listen"]) as channel,
        ):
            service = "/alcor.schema.GoalStateProvisioner"
            call = channel.unary_unary(f"{service}/PushNetworkResourceStates")(b"\x0a\xff")
            code, text = await failure(call)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "PushNetworkResourceStates" in text
            stream = channel.stream_stream(f"{service}/PushGoalStatesStream")()
            await stream.write(b"\x0a\xff")
            code, _ = await failure(stream.read())
            assert code is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(scenario())


def test_a_fact_of_a_subscription_makes_the_host_follow_its_topic() -> None:
    async def scenario() -> None:
        rig = FleetRig()
        async with driven(rig.bus) as one:
            fact = goalstate_pb2.NodeSubscribeInfo(topic=TOPICS.of_stream(STREAM), key="k")
            reply = await one.subscribe.PushNodeSubscribeInfo(fact)
            assert reply.operationStatus == SUCCESS
            publisher = Publisher(STREAM)
            rig.put(publisher.publish(vpc(), subnet(), neighbor(1)))
            # A port that is pushed finds what came over the topic.
            reply = await one.push.PushNetworkResourceStates(v1(port()))
            assert statuses(reply) == {"port/port-1": SUCCESS}
            assert len(await one.applied()) == 4
            fact.subscribe_operation = goalstate_pb2.Unsubscribe
            reply = await one.subscribe.PushNodeSubscribeInfo(fact)
            assert reply.operationStatus == SUCCESS
            assert set(await one.applied()) == {"port/port-1"}
            fact.topic = "persistent://elsewhere/else"
            reply = await one.subscribe.PushNodeSubscribeInfo(fact)
            assert reply.operationStatus == INVALID_ARG
            assert not rig.reports, "a host that is pushed to reports nothing"
        await rig.bus.close()

    asyncio.run(scenario())


def test_an_agent_without_a_broker_says_that_it_cannot_follow() -> None:
    async def scenario() -> None:
        async with driven() as one:
            call = one.subscribe.PushNodeSubscribeInfo(
                goalstate_pb2.NodeSubscribeInfo(topic=TOPICS.of_stream(STREAM))
            )
            assert (await call).operationStatus == FAILURE
            trailing = dict(await call.trailing_metadata())
            assert "without a broker" in str(trailing["goalstate-reason"])

    asyncio.run(scenario())


def test_a_process_that_stops_answers_what_waits() -> None:
    async def scenario() -> None:
        async with agent(source="alcor", alcor_pending_s=3600) as facts:
            channel = grpc.aio.insecure_channel(facts["listen"])
            stub = provisioner_pb2_grpc.GoalStateProvisionerStub(channel)
            call = asyncio.ensure_future(_reply(stub.PushNetworkResourceStates(v1(port()))))
            inspection = agent_pb2_grpc.InspectionStub(channel)
            pending: list[Any] = []

            while not pending:
                hosts = (await inspection.ListHosts(agent_pb2.ListHostsRequest())).hosts
                pending = list(hosts[0].exceptions)
        assert statuses(await call) == {"port/port-1": PENDING}
        await channel.close()

    asyncio.run(scenario())


async def _reply(call: Any) -> Any:
    return await call


def test_what_is_pushed_is_kept_over_a_restart_where_there_is_a_state_dir(tmp_path: Any) -> None:
    async def scenario() -> None:
        async with driven(state_dir=tmp_path) as one:
            await one.push.PushNetworkResourceStates(v1(vpc(), subnet(), neighbor(1)))
        async with driven(state_dir=tmp_path) as one:
            assert set(await one.applied()) == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"}
            reply = await one.push.PushNetworkResourceStates(v1(port(), gone(neighbor(1))))
            assert set(statuses(reply).values()) == {SUCCESS}
            assert set(await one.applied()) == {"vpc/vpc-1", "subnet/subnet-1", "port/port-1"}

    asyncio.run(scenario())
