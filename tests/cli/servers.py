"""A publisher and an agent process that answer what a test tells them to, over real gRPC."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2_grpc import (
    InspectionServicer,
    add_InspectionServicer_to_server,
)
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2_grpc import (
    DataPlaneManagerServicer,
    add_DataPlaneManagerServicer_to_server,
)
from tests.cli import region


class Publisher(DataPlaneManagerServicer):
    """Answers from its attributes, and remembers what it was asked."""

    def __init__(self) -> None:
        self.address = ""
        self.intent = region.intent()
        self.status = api.StatusReply(
            writer="dpm-1", epoch=3, change=7, broker="pulsar://b:1", serving=True
        )
        self.waits: list[api.WaitReply] = [
            api.WaitReply(converged=True, hosts=3, hosts_applied=3, hosts_needed=3)
        ]
        #: What Apply says to an intent; None: it ends the stream.
        self.answer: Callable[[intent_pb2.Intent], api.ApplyReply | None] = self.accept
        #: A status with which every call fails.
        self.failure: tuple[grpc.StatusCode, str] | None = None
        #: What every call is refused with.
        self.violations: error_details_pb2.BadRequest | None = None
        #: The newest change from the second status on; 0: as in the first.
        self.next_change = 0
        self.applied: list[intent_pb2.Intent] = []
        self.waited: list[api.WaitRequest] = []
        self.asked: list[api.StatusRequest] = []
        self.republished: list[list[intent_pb2.ResourceName]] = []

    def accept(self, intent: intent_pb2.Intent) -> api.ApplyReply:
        change = len(self.applied)
        at = api.StreamPosition(stream=region.STREAM, epoch=3, sequence=change)
        return api.ApplyReply(change=change, changed_objects=2, streams=[at])

    def _check(self, context: Any) -> None:
        if self.failure is not None:
            context.abort(*self.failure)
        if self.violations is not None:
            detail = any_pb2.Any()
            detail.Pack(self.violations)
            refused = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, details=[detail])
            context.abort_with_status(rpc_status.to_status(refused))

    def Apply(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("the command line uses the stream")

    def ApplyStream(self, request_iterator: Any, context: Any) -> Any:
        for request in request_iterator:
            self._check(context)
            self.applied.append(request.intent)
            reply = self.answer(request.intent)
            if reply is None:
                return
            reply.request_id = request.request_id
            yield reply

    def Republish(self, request: Any, context: Any) -> Any:
        self._check(context)
        self.republished.append(list(request.resources))
        return api.RepublishReply(change=8)

    def Wait(self, request: Any, context: Any) -> Any:
        self._check(context)
        self.waited.append(request)
        return self.waits[-1]

    def Watch(self, request: Any, context: Any) -> Any:
        self._check(context)
        self.waited.append(request)
        yield from self.waits

    def GetStatus(self, request: Any, context: Any) -> Any:
        self._check(context)
        self.asked.append(request)
        reply = api.StatusReply()
        reply.CopyFrom(self.status)
        if not request.hosts:
            del reply.host_list[:]
        if not request.exceptions:
            del reply.exception_list[:]
        if self.next_change:
            self.status.change = self.next_change
        return reply

    def GetIntent(self, request: Any, context: Any) -> Any:
        self._check(context)
        for field, objects in self.intent.ListFields():
            for object_ in objects:
                if self._asked_for(request, field.name, object_):
                    piece = intent_pb2.Intent()
                    getattr(piece, field.name).add().CopyFrom(object_)
                    yield piece

    @staticmethod
    def _asked_for(request: Any, field: str, object_: Any) -> bool:
        kind = intent_pb2.ObjectKind.Name(request.kind).lower() + "s" if request.kind else field
        vpc = object_.id if field == "vpcs" else getattr(object_, "vpc_id", "")
        return kind == field and request.id in ("", object_.id) and request.vpc_id in ("", vpc)

    def play(self, agent: Agent) -> None:
        """Say of all hosts that this agent process plays them."""
        for host in region.HOST_IPS:
            self.status.host_list.add(
                host=host,
                group=f"{host}-rack",
                lease="live",
                ports=1,
                inspection_address=agent.address,
            )


class Agent(InspectionServicer):
    """Hosts that hold what a test gives them: host → stream → state; by default all is right."""

    def __init__(self) -> None:
        self.address = ""
        self.hosts: dict[str, dict[str, goalstate_pb2.GoalStateV2]] = {
            host: {
                f"inbox/{host}-rack": region.inbox_state(host),
                region.STREAM: region.vpc_state(),
            }
            for host in region.HOST_IPS
        }
        self.counting: set[str] = set()
        self.exceptions: dict[str, list[agent_pb2.ResourceException]] = {}
        self.failure: tuple[grpc.StatusCode, str] | None = None

    def ListHosts(self, request: Any, context: Any) -> Any:
        reply = agent_pb2.ListHostsReply()
        for host, streams in self.hosts.items():
            summary = reply.hosts.add(host=host, counting=host in self.counting, resources=9)
            summary.exceptions.extend(self.exceptions.get(host, []))
            for stream in streams:
                summary.streams.add(stream=stream, epoch=3, sequence=5, digest=b"\x0a\xff")
        return reply

    def GetApplied(self, request: Any, context: Any) -> Any:
        if self.failure is not None:
            context.abort(*self.failure)
        for host in request.hosts:
            for stream, state in self.hosts[host].items():
                if request.stream not in ("", stream):
                    continue
                hidden = host in self.counting and not stream.startswith("inbox/")
                # In two pieces, as a long stream comes.
                yield agent_pb2.Applied(host=host, stream=stream)
                yield agent_pb2.Applied(
                    host=host,
                    stream=stream,
                    state=None if hidden else state,
                    last=True,
                    counting=hidden,
                )


@contextmanager
def serving(add: Callable[[Any, Any], None], servicer: Any) -> Iterator[str]:
    """Serve on a free port, whose address is given, until the end of the block."""
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        add(servicer, server)
        servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield servicer.address
        finally:
            stopped: threading.Event = server.stop(None)
            stopped.wait(10)


def serving_publisher(publisher: Publisher) -> Any:
    return serving(add_DataPlaneManagerServicer_to_server, publisher)


def serving_agent(agent: Agent) -> Any:
    return serving(add_InspectionServicer_to_server, agent)
