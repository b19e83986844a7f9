"""Plays a host whose agent has to be pushed to.

    streams ─▶ HostCore ─▶ PushDataPlane ══ Session ══▶ the host's agent
                   │                          │ over
                reports ◀── silence, release ─┘

Laws:

1.  The proxy plays the host while its agent takes pushes, and says so; an agent that follows
    streams by itself is left alone, and nothing is said in its place. What an agent does is asked
    at the beginning of each session, so that an upgrade and a rollback are both seen.
2.  With each session the host begins anew, with a higher incarnation: its agent may have lost all.
    What the proxy holds is pushed again, whole and in order, before anything that comes later;
    nothing is read from the broker again for that. Until it is there, the host says that it is not.
3.  What the agent may hold and the host no longer has is deleted first. What an agent holds of
    another proxy, or of an earlier run of this one, is known only if it has our inspection.
4.  When a session is over the host keeps following, and nothing is said for it, so that its lease
    ends as that of any host that is gone.
5.  A session is tried for again and again, with a delay that doubles up to RETRY_MAX_S and is
    spread at random. It starts from RETRY_S again after a session that held for STEADY_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import grpc
import structlog

from goalstate.agent.alcor.dataplane import MayHold, PushDataPlane
from goalstate.agent.alcor.remote import NotReached, Session, SessionLost, connect
from goalstate.agent.fleet import Fleet, Host, Member
from goalstate.agent.state import StoredStream
from goalstate.gs.errors import MessageError
from goalstate.gs.packing import unpack
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.versions import FORMAT_V1

log = structlog.get_logger()

#: What an agent is found to speak, as it is shown.
SPEAKS = ("unreachable", "native", "v1", "v2")
RETRY_S = 0.1
RETRY_MAX_S = 10.0
STEADY_S = 10.0


class Proxy:
    """See the module's text. `start`, then `stop`, while the fleet runs."""

    def __init__(
        self, fleet: Fleet, member: Member, address: str, *, answer_s: float, pending_s: float
    ) -> None:
        """`answer_s`: in which the agent must answer a message; `pending_s`: for how long it may
        answer PENDING. Both in seconds."""
        self.member = member
        self.address = address
        #: What its agent speaks, one of SPEAKS.
        self.speaks = "unreachable"
        self._fleet = fleet
        self._answer_s = answer_s
        self._pending_s = pending_s
        self._host: Host | None = None
        self._stored: Sequence[StoredStream] = ()
        self._may_hold: MayHold = {}
        self._random = Random()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Push no more. The host stays with the fleet."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            begun = loop.time()
            try:
                session = await connect(self.address, self.member.host, self._answer_s)
                failures += 1
                try:
                    await self._hold(session)
                finally:
                    await session.close()
                if loop.time() - begun > STEADY_S:
                    failures = 1
            except NotReached as error:
                failures += 1
                self._says("unreachable", str(error))
            except Exception:  # a defect must not end the host for good
                failures += 1
                log.exception("proxy failed", host=self.member.host)
            longest = min(RETRY_S * 2 ** min(failures - 1, 10), RETRY_MAX_S)
            await asyncio.sleep(longest * (0.5 + 0.5 * self._random.random()))

    async def _hold(self, session: Session) -> None:
        """Do what a session asks for, until it is over."""
        if session.follows:
            self._release()
            self._stored = ()
            self._may_hold.clear()
            self._says("native")
            reason = await session.over()
            self._says("unreachable", reason)
            return
        data_plane = PushDataPlane(
            self.member.host, session, self._may_hold, pending_s=self._pending_s
        )
        try:
            # From here on nothing is read that would not be in what is pushed.
            self._release()
            await self._ask_what_it_holds(session)
            await data_plane.sweep(
                {
                    (one.kind, one.id)
                    for some in self._stored
                    for one in some.resources
                    if one.payload
                }
            )
            self._host = self._fleet.play(self.member, data_plane, self._stored, session.formats)
            self._says("v1" if session.format == FORMAT_V1 else "v2")
            reason = await session.over()
        except SessionLost as error:
            reason = str(error)
        finally:
            await data_plane.close()
            if self._host is not None:
                self._fleet.silence(self._host)
        self._says("unreachable", reason)

    def _release(self) -> None:
        if self._host is not None:
            self._stored = self._fleet.release(self._host)
            self._host = None

    async def _ask_what_it_holds(self, session: Session) -> None:
        """Learn what an agent process of ours holds already. Raises SessionLost."""
        if not session.native:
            return
        stub = agent_pb2_grpc.InspectionStub(session.channel)
        request = agent_pb2.GetAppliedRequest(hosts=[self.member.host])
        try:
            async for piece in stub.GetApplied(request):
                for resource, _ in unpack(piece.state):
                    key = (resource.kind, resource.id)
                    self._may_hold[key] = max(resource.revision, self._may_hold.get(key, 0))
        except grpc.aio.AioRpcError as error:
            raise SessionLost(f"{error.code().name}: {error.details()}") from error
        except MessageError as error:
            raise SessionLost(f"what it holds cannot be read: {error}") from error

    def _says(self, speaks: str, reason: str = "") -> None:
        if speaks != self.speaks or (reason and speaks != "unreachable"):
            log.info(
                "agent",
                host=self.member.host,
                address=self.address,
                speaks=speaks,
                reason=reason or None,
            )
        self.speaks = speaks
