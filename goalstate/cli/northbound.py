"""The publisher, as the commands see it: a client of its northbound API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from goalstate.cli.errors import InputError
from goalstate.cli.rpc import CALL_S, Server
from goalstate.gs.intent import FIELDS, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2_grpc import (
    DataPlaneManagerStub,
)

#: Seconds that an answer may take beyond what the publisher was asked to wait.
_GRACE_S = 5.0
_START = "start one with `goalstate dpm serve`, or give its address with --dpm (GOALSTATE_DPM)"


@contextmanager
def connect(address: str) -> Iterator[DataPlaneManager]:
    """The publisher at HOST:PORT. Raises Unreachable, InputError."""
    server = Server("DPM", address, _START)
    with server.connected() as channel:
        yield DataPlaneManager(server, channel)


class DataPlaneManager:
    """Calls that raise CommandError, each with a deadline."""

    def __init__(self, server: Server, channel: Any) -> None:
        self.address = server.address
        self._server = server
        self._stub = DataPlaneManagerStub(channel)

    def apply(
        self, intents: Iterable[intent_pb2.Intent], *, timeout_s: float | None = None
    ) -> Iterator[api.ApplyReply]:
        """The answer to each intent, in order; a refusal has change 0.

        Unless one is given, there is no deadline on the whole: as long as it lasts, the publisher
        answers.
        """
        requests = (
            api.ApplyRequest(intent=intent, request_id=str(number))
            for number, intent in enumerate(intents)
        )
        with self._server.errors("the intent"):
            yield from self._stub.ApplyStream(requests, timeout=timeout_s)

    def wait(self, request: api.WaitRequest) -> api.WaitReply:
        with self._server.errors("the wait"):
            reply: api.WaitReply = self._stub.Wait(request, timeout=request.timeout_s + _GRACE_S)
        return reply

    def watch(self, request: api.WaitRequest) -> Iterator[api.WaitReply]:
        with self._server.errors("the watch"):
            yield from self._stub.Watch(request, timeout=request.timeout_s + _GRACE_S)

    def republish(self, names: Iterable[intent_pb2.ResourceName]) -> api.RepublishReply:
        request = api.RepublishRequest(resources=names)
        with self._server.errors("the replay"):
            reply: api.RepublishReply = self._stub.Republish(request, timeout=CALL_S)
        return reply

    def status(
        self, vpc_id: str = "", *, hosts: bool = False, exceptions: int = 0
    ) -> api.StatusReply:
        """Lists the hosts, and up to so many exceptions, where these are asked for."""
        request = api.StatusRequest(
            vpc_id=vpc_id, hosts=hosts, exceptions=exceptions > 0, max_exceptions=exceptions
        )
        with self._server.errors("the status"):
            reply: api.StatusReply = self._stub.GetStatus(request, timeout=CALL_S)
        return reply

    def shards(self) -> int:
        """Into how many the region is divided."""
        with self._server.errors("the intent"):  # which is why it is asked
            reply = self._stub.GetStatus(api.StatusRequest(brief=True), timeout=CALL_S)
        return len(reply.shards) or 1

    def vpc_of(self, kind: ObjectKind, id_: str) -> str | None:
        """The VPC of an object; None: there is no such object, or it is a host."""
        try:
            found = self.intent(kind=int(kind), id_=id_)  # type: ignore[arg-type]
        except InputError:
            return None
        for object_ in getattr(found, FIELDS[kind]):
            if kind is ObjectKind.DHCP:
                return self.vpc_of(ObjectKind.PORT, object_.port_id)
            return str(object_.id if kind is ObjectKind.VPC else getattr(object_, "vpc_id", ""))
        return None

    def intent(
        self,
        *,
        vpc_id: str = "",
        kind: intent_pb2.ObjectKind.ValueType = intent_pb2.OBJECT_KIND_UNSPECIFIED,
        id_: str = "",
        timeout_s: float | None = None,
    ) -> intent_pb2.Intent:
        """The accepted intent: all of it, one VPC's, all of a kind, or one object."""
        whole = intent_pb2.Intent()
        request = api.GetIntentRequest(vpc_id=vpc_id, kind=kind, id=id_)
        with self._server.errors("the intent"):
            for piece in self._stub.GetIntent(request, timeout=timeout_s):
                whole.MergeFrom(piece)
        return whole

    def port(self, id_: str) -> intent_pb2.Port:
        """Raises InputError where there is no such port."""
        for port in self.intent(kind=intent_pb2.PORT, id_=id_).ports:
            if port.id == id_:
                return port
        raise InputError(f"there is no port {id_!r}", "`goalstate show vpc ID` lists a VPC's ports")

    def host(self, id_: str) -> intent_pb2.Host:
        """Raises InputError where there is no such host."""
        for host in self.intent(kind=intent_pb2.HOST, id_=id_).hosts:
            if host.id == id_:
                return host
        raise InputError(f"there is no host {id_!r}", "`goalstate status --hosts` lists the hosts")
