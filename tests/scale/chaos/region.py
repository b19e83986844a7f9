"""A publisher and hosts that are what a test says, in place of real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from goalstate.gs import intent_codec
from goalstate.gs.desired import Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Dhcp, Host, Intent, ObjectKind, Vpc
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.scale.chaos.changes import Tenant, hosts, message, shapes
from goalstate.scale.chaos.publishers import AnswerLost, Publishers, Refused

HOSTS: list[Host] = hosts(6, 3)


def tenants() -> list[Tenant]:
    return [Tenant(shape, HOSTS, 1) for shape in shapes(len(HOSTS), 60)]


class OnePublisher(Publishers):
    """Accepts what is valid, and answers at once; `apply` may be told to do otherwise.

    `lose`, asked for each request, says what is done with one whose answer is lost: "" none is
    lost; "before": nothing of it is done; "after": all of it; "half": some of it.
    """

    def __init__(self) -> None:
        self.active, self.last, self.epoch = "dpm", "dpm", 1
        self.desired = Desired()
        self.number = 0
        self.lose: Callable[[intent_pb2.Intent], str] = lambda intent: ""
        self.replies: list[api.WaitReply] = []
        self.take(Intent(hosts=HOSTS))

    def take(self, intent: Intent) -> None:
        self.desired.commit(self.desired.plan(intent))
        self.number += 1

    async def serving(self) -> str:
        return self.active

    async def apply(self, intent: intent_pb2.Intent, request_id: str) -> api.ApplyReply:
        await asyncio.sleep(0)
        how = self.lose(intent)
        whole = intent_codec.from_proto(intent)
        if how == "before":
            raise AnswerLost("before")
        if how == "half":
            self.take(whole._replace(ports=whole.ports[:1], deletes=whole.deletes[:1]))
            raise AnswerLost("half")
        try:
            self.take(whole)
        except IntentRejected as error:
            raise Refused(str(error)) from None
        if how == "after":
            raise AnswerLost("after")
        return api.ApplyReply(request_id=request_id, change=self.number, changed_objects=1)

    async def object(self, kind: ObjectKind, id_: str) -> Any:
        found = self.desired.get(kind, id_)
        if found is None:
            return None
        whole = message([found])
        return next(one for objects in _lists(whole) for one in objects)

    async def intent(self, vpc: str = "") -> intent_pb2.Intent:
        objects = [one for kind in ObjectKind for one in self.desired.objects(kind)]
        return message(one for one in objects if not vpc or self._vpc_of(one) == vpc)

    def _vpc_of(self, one: Any) -> str:
        if isinstance(one, Dhcp):
            one = self.desired.get(ObjectKind.PORT, one.port_id)
        return str(one.id if isinstance(one, Vpc) else getattr(one, "vpc_id", ""))

    async def wait(self, request: api.WaitRequest) -> api.WaitReply | None:
        return api.WaitReply(converged=True, hosts=len(HOSTS), hosts_applied=len(HOSTS))

    async def status(self, *, hosts: bool = False) -> api.StatusReply:
        return api.StatusReply(hosts_live=len(HOSTS))


def _lists(whole: intent_pb2.Intent) -> Iterable[Any]:
    return (
        getattr(whole, field.name)
        for field in intent_pb2.Intent.DESCRIPTOR.fields
        if field.name != "deletes"
    )
