"""A data plane that is another agent, which is pushed to.

Laws:

1.  A program is done when the agent has answered all of it: applied, or refused with the agent's
    word for it. What it answers as PENDING is pushed again until it is one of the two, at the most
    for `pending_s` seconds, and refused then.
2.  When the session is over, nothing is answered any more. Whoever plays the host begins anew.
3.  An agent that refuses a message as a whole is given its halves, so that one resource that it
    cannot bear does not keep others from it.
4.  An agent that knows v1 only is told anew what it must see in another way: the neighbors of a
    subnet in which the host gets its first port, or loses its last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from goalstate.agent.actions import Refusal
from goalstate.agent.alcor import messages
from goalstate.agent.alcor.messages import Operation
from goalstate.agent.alcor.remote import PushRefused, Session, SessionLost
from goalstate.agent.dataplanes import Done
from goalstate.gs.resources import Kind, Resource, configuration
from goalstate.gs.versions import FORMAT_V1

log = structlog.get_logger()

#: Seconds until what is PENDING is pushed again; it doubles.
AGAIN_S = 0.05
AGAIN_MAX_S = 2.0

#: Of each resource that an agent may hold, the highest revision that was pushed.
MayHold = dict[tuple[Kind, str], int]


class PushDataPlane:
    """See the module's text. `may_hold` outlives it: what the agent may hold, of all sessions."""

    def __init__(self, host: str, session: Session, may_hold: MayHold, *, pending_s: float) -> None:
        self._host = host
        self._session = session
        self._may_hold = may_hold
        self._pending_s = pending_s
        #: What was pushed in this session and confirmed.
        self.pushed: dict[Kind, dict[str, Resource]] = {kind: {} for kind in Kind}
        self._task: asyncio.Task[None] | None = None
        # For v1: how many fixed ips the host's ports have in each subnet, and who is there.
        self._v1 = session.format == FORMAT_V1
        self._ports: dict[str, int] = {}
        self._neighbors: dict[str, dict[str, None]] = {}

    def program(self, operations: Sequence[Resource], done: Done) -> None:
        self._task = asyncio.create_task(self._program(operations, done))

    async def close(self) -> None:
        """Answer nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self, wanted: set[tuple[Kind, str]]) -> None:
        """Have deleted what the agent may hold and is not wanted. Raises SessionLost."""
        stale = [
            Resource(kind, id_, revision + 1, b"")
            for (kind, id_), revision in self._may_hold.items()
            if (kind, id_) not in wanted
        ]
        stale.sort(key=lambda one: (_DELETION_ORDER[one.kind], one.id))
        for part in messages.parts(stale):
            for place, refusal in (await self._bring(part)).items():
                log.warning("cannot delete", resource=stale[place].name, reason=refusal.reason)

    async def _program(self, operations: Sequence[Resource], done: Done) -> None:
        refused: dict[int, Refusal] = {}
        try:
            for part in messages.parts(operations):
                refused.update(await self._bring(part))
        except SessionLost:
            return
        except Exception as error:  # a defect must not keep the host waiting for ever
            log.exception("a program failed", host=self._host)
            self._session.end(f"a program failed: {error}")
            return
        done(refused)

    async def _bring(self, part: Sequence[Operation]) -> dict[int, Refusal]:
        """Push a part until all of it is answered; gives what is refused."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._pending_s
        refused: dict[int, Refusal] = {}
        wait_s = AGAIN_S
        left = list(part)
        while left:
            said = await self._push(left)
            refused.update((place, Refusal(reason)) for place, reason in said.refused.items())
            left = said.pending
            if left and loop.time() >= until:
                still = Refusal("the agent still says PENDING", transient=True)
                refused.update((one.place, still) for one in left)
                break
            if left:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, AGAIN_MAX_S)
        kind = part[0].resource.kind
        turned = self._confirm(one for one in part if one.place not in refused)
        if self._v1 and kind is Kind.PORT and turned:
            reason = await self._turn(turned)
            if reason:
                refused.update((one.place, Refusal(reason)) for one in part)
        return refused

    async def _push(self, operations: Sequence[Operation]) -> messages.Said:
        for _, resource in operations:
            key = (resource.kind, resource.id)
            self._may_hold[key] = max(resource.revision, self._may_hold.get(key, 0))
        attached = self._ports.keys() | {
            ip.subnet_id
            for _, resource in operations
            if resource.kind is Kind.PORT and not resource.deleted
            for ip in configuration(resource).fixed_ips
        }
        try:
            reply = await self._session.push(
                messages.v1(self._host, operations, self.pushed, attached)
                if self._v1
                else messages.v2(self._host, operations, self.pushed)
            )
        except PushRefused as error:
            if len(operations) == 1:
                return messages.Said({operations[0].place: str(error)}, [])
            half = len(operations) // 2
            first = await self._push(operations[:half])
            second = await self._push(operations[half:])
            return messages.Said(first.refused | second.refused, first.pending + second.pending)
        return messages.said(reply, operations)

    def _confirm(self, operations: Iterable[Operation]) -> set[str]:
        """These are applied. Gives the subnets that got their first port or lost their last."""
        before = set(self._ports)
        for _, resource in operations:
            table = self.pushed[resource.kind]
            old = table.pop(resource.id, None)
            if not resource.deleted:
                table[resource.id] = resource
            else:
                self._may_hold.pop((resource.kind, resource.id), None)
            if self._v1 and resource.kind in (Kind.PORT, Kind.NEIGHBOR):
                self._place(old, -1)
                self._place(None if resource.deleted else resource, 1)
        return before ^ self._ports.keys()

    def _place(self, resource: Resource | None, number: int) -> None:
        """Count a port or neighbor in its subnets, or no longer."""
        for ip in configuration(resource).fixed_ips if resource is not None else ():
            subnet_id = ip.subnet_id
            assert resource is not None
            if resource.kind is Kind.PORT:
                self._ports[subnet_id] = self._ports.get(subnet_id, 0) + number
                if not self._ports[subnet_id]:
                    del self._ports[subnet_id]
            elif number > 0:
                self._neighbors.setdefault(subnet_id, {})[resource.id] = None
            else:
                self._neighbors.get(subnet_id, {}).pop(resource.id, None)

    async def _turn(self, subnets: set[str]) -> str:
        """Tell the neighbors of these subnets anew; why one was refused, empty if none was."""
        ids = dict.fromkeys(id_ for subnet in subnets for id_ in self._neighbors.get(subnet, {}))
        again = [self.pushed[Kind.NEIGHBOR][id_] for id_ in ids]
        for part in messages.parts(again):
            refused = await self._bring(part)
            for place, refusal in refused.items():
                name = again[place].name
                return f"{name} cannot be told anew, now that it is here: {refusal.reason}"
        return ""


#: Deletions in the reverse order of dependency.
_DELETION_ORDER = {
    kind: place
    for place, kind in enumerate(
        (
            Kind.NEIGHBOR,
            Kind.PORT,
            Kind.GATEWAY,
            Kind.ROUTER,
            Kind.DHCP,
            Kind.SECURITY_GROUP,
            Kind.SUBNET,
            Kind.VPC,
            Kind.SUBSCRIPTION,
        )
    )
}
