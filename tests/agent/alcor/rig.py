"""Both ends of Alcor's services, written against the schema alone: a publisher, and an agent that
keeps tables and knows nothing of ours; and agent processes of ours in this loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from goalstate.agent import __main__ as process
from goalstate.agent.config import AgentConfig
from goalstate.bus.base import Bus
from goalstate.gs.pb.alcor.schema import goalstate_pb2, provisioner_pb2_grpc, resources_pb2
from goalstate.gs.resources import CONFIGURATION, STATES_FIELD, Kind, Resource

CREATE, UPDATE, DELETE, INFO, GET = (
    resources_pb2.CREATE,
    resources_pb2.UPDATE,
    resources_pb2.DELETE,
    resources_pb2.INFO,
    resources_pb2.GET,
)
SUCCESS, FAILURE, INVALID_ARG, PENDING, OUT_OF_ORDER = (
    resources_pb2.SUCCESS,
    resources_pb2.FAILURE,
    resources_pb2.INVALID_ARG,
    resources_pb2.PENDING,
    resources_pb2.OUT_OF_ORDER,
)
Told = dict[str, int]


def v1(*resources: Resource, operation: int = CREATE) -> goalstate_pb2.GoalState:
    """A GoalState with these; without a payload: deletions."""
    message = goalstate_pb2.GoalState(format_version=101)
    for resource in resources:
        state = getattr(message, STATES_FIELD[resource.kind]).add()
        _fill(state, resource, operation)
    return message


def v2(
    *resources: Resource, hosts: Iterable[str] = (), operation: int = CREATE
) -> goalstate_pb2.GoalStateV2:
    """A GoalStateV2 with these, for `hosts`; none: for whoever reads it."""
    message = goalstate_pb2.GoalStateV2(format_version=102)
    for resource in resources:
        _fill(getattr(message, STATES_FIELD[resource.kind])[resource.id], resource, operation)
    for host in hosts:
        for resource in resources:
            message.host_resources[host].resources.add(type=int(resource.kind), id=resource.id)
    return message


def _fill(state: Any, resource: Resource, operation: int) -> None:
    state.operation_type = operation if resource.payload else DELETE
    if resource.payload:
        state.configuration.ParseFromString(resource.payload)
    else:
        state.configuration.id = resource.id
        state.configuration.revision_number = resource.revision


def statuses(reply: goalstate_pb2.GoalStateOperationReply) -> Told:
    """Status by kind/id."""
    return {
        f"{Kind(one.resource_type).name.lower()}/{one.resource_id}": one.operation_status
        for one in reply.operation_statuses
    }


@asynccontextmanager
async def agent(bus: Bus | None = None, **settings: Any) -> AsyncIterator[dict[str, Any]]:
    """An agent process of ours in this loop."""
    settings.setdefault("inspect", "127.0.0.1:0")
    if bus is not None:
        settings.setdefault("broker", "memory")
    settings.setdefault("region", "region")
    config = AgentConfig(metrics_port=None, **settings)
    ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    running = asyncio.create_task(process.run(config, ready=ready.set_result, stop=stop, bus=bus))
    await asyncio.wait((ready, running), return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    try:
        yield ready.result()
    finally:
        stop.set()
        await running


class ForeignAgent(provisioner_pb2_grpc.GoalStateProvisionerServicer):
    """An agent of one host that knows the schema of its format, and keeps tables."""

    def __init__(self, *formats: str, refuse: Iterable[str] = ()) -> None:
        self.formats = formats
        self.tables: dict[Kind, dict[str, Any]] = {kind: {} for kind in STATES_FIELD}
        #: Ids that it refuses, and ids that it cannot bear: the whole message fails.
        self.refuse = set(refuse)
        self.chokes_on: set[str] = set()
        #: Ids that it says PENDING of, so many times.
        self.pending: dict[str, int] = {}
        self.messages: list[Any] = []
        #: What it says that it is, if it says so.
        self.incarnation = 0
        self.out_of_order: list[str] = []
        #: Answers wait for it.
        self.gate = asyncio.Event()
        self.gate.set()

    def RequestGoalStates(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def PushGoalstates(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def PushNetworkResourceStates(self, request: Any, context: Any) -> Any:
        if "v1" not in self.formats:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no v1 here")
        states = [
            (kind, one) for kind, field in STATES_FIELD.items() for one in getattr(request, field)
        ]
        return await self._take(request, states, context)

    async def PushGoalStatesStream(self, request_iterator: Any, context: Any) -> Any:
        if "v2" not in self.formats:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no v2 here")
        async for request in request_iterator:
            states = [
                (kind, getattr(request, field)[id_])
                for kind, field in STATES_FIELD.items()
                for id_ in getattr(request, field)
            ]
            yield await self._take(request, states, context)

    async def _take(self, request: Any, states: list[tuple[Kind, Any]], context: Any) -> Any:
        await self.gate.wait()
        self.messages.append(request)
        if any(one.configuration.id in self.chokes_on for _, one in states):
            await context.abort(grpc.StatusCode.INTERNAL, "cannot bear it")
        reply = goalstate_pb2.GoalStateOperationReply(incarnation=self.incarnation)
        for kind, one in states:
            if one.operation_type != INFO:
                status = reply.operation_statuses.add()
                status.resource_id = one.configuration.id
                status.resource_type = int(kind)  # type: ignore[assignment]
                status.operation_type = one.operation_type
                status.operation_status = self._status(kind, one)
        return reply

    def _status(self, kind: Kind, one: Any) -> Any:
        config = one.configuration
        table = self.tables[kind]
        if self.pending.get(config.id, 0) > 0:
            self.pending[config.id] -= 1
            return PENDING
        if config.id in self.refuse:
            return FAILURE
        known = table.get(config.id)
        if known is not None and config.revision_number < known.revision_number:
            self.out_of_order.append(f"{kind.name.lower()}/{config.id}")
            return OUT_OF_ORDER
        if one.operation_type == DELETE:
            table.pop(config.id, None)
        else:
            copy = CONFIGURATION[kind]()
            copy.CopyFrom(config)
            table[config.id] = copy
        return SUCCESS

    def ids(self, kind: Kind) -> set[str]:
        return set(self.tables[kind])

    @asynccontextmanager
    async def serving(self, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
        """Give the address while it serves."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        provisioner_pb2_grpc.add_GoalStateProvisionerServicer_to_server(self, server)
        port = server.add_insecure_port(address)
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(0)
