"""A session with an agent that may have to be pushed to: what it speaks, and one connection.

Laws:

1.  What an agent speaks is asked, never guessed: first by our own `Capabilities`; where it has not
    got that (UNIMPLEMENTED), by an empty push of v2, and where that is UNIMPLEMENTED, of v1. Any
    other failure says nothing, and is tried again by whoever connects.
2.  A session is one connection. When that is lost, or the agent's replies show another incarnation,
    or one takes longer than `answer_s` seconds, the session is over: nothing more is pushed in it,
    and no reply counts that came over another connection.
3.  One message is under way at a time.
4.  An agent process of ours is asked again each CHECK_S seconds, so that one whose machine is gone
    without a word is found. Others get an empty push each QUIET_S seconds for that: between two
    pushes there may be no call, and gRPC asks nobody then whether he is there.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc

from goalstate.gs.pb.alcor.schema import goalstate_pb2, provisioner_pb2_grpc
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2
from goalstate.process import DIRECTLY, MAX_GRPC_BYTES

#: Seconds in which an agent must be reached, and answer what it speaks.
CONNECT_S = 5.0
CHECK_S = 10.0
QUIET_S = 300.0
_NEVER_MS = (1 << 31) - 1
_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_GRPC_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_BYTES),
    DIRECTLY,
    # A connection of its own, which is not given up because it is idle, and no hidden second try.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.client_idle_timeout_ms", _NEVER_MS),
    ("grpc.enable_retries", 0),
    # While it is tried for, soon again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
#: What says nothing, in each format.
_EMPTY: dict[int, goalstate_pb2.GoalState | goalstate_pb2.GoalStateV2] = {
    FORMAT_V2: goalstate_pb2.GoalStateV2(format_version=FORMAT_V2),
    FORMAT_V1: goalstate_pb2.GoalState(format_version=FORMAT_V1),
}
#: How a call ends that met no agent, or lost it; all others are answers.
_UNREACHED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


class RemoteError(Exception):
    """Something about an agent that is pushed to."""


class NotReached(RemoteError):
    """There is no session: nobody answers, or nothing that can be used."""


class SessionLost(RemoteError):
    """The session is over; whether the last push was taken is not known."""


class PushRefused(RemoteError):
    """The agent took nothing of a message, and the session goes on."""


class Session:
    """See the module's text. To be made with `connect`, and closed."""

    def __init__(self, address: str, channel: grpc.aio.Channel, answer_s: float) -> None:
        self.address = address
        self.channel = channel
        #: It follows streams by itself, and is not to be pushed to.
        self.follows = False
        #: Format versions that it takes, as far as they were asked for.
        self.formats: tuple[int, ...] = ()
        #: It serves what agent processes of ours do.
        self.native = False
        self.incarnation = 0
        self.pushes = 0
        self._answer_s = answer_s
        self._stub = provisioner_pb2_grpc.GoalStateProvisionerStub(channel)
        self._call: Any = None
        self._turn = asyncio.Lock()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # What leaves READY, if only for a moment, is another connection afterwards.
        self._watch = asyncio.ensure_future(
            channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        )
        self._watch.add_done_callback(lambda _: self.end("the connection was lost"))

    @property
    def format(self) -> int:
        """What is pushed: the newest format that it takes."""
        return max(self.formats)

    def end(self, reason: str) -> None:
        """The session is over."""
        if not self._over.done():
            self._over.set_result(reason)

    async def over(self) -> str:
        """Wait until the session is over; gives the reason."""
        while True:
            after_s = CHECK_S if self.native else QUIET_S
            done, _ = await asyncio.wait((self._over,), timeout=after_s)
            if done:
                return self._over.result()
            if self.native:
                await self._check()
            else:
                with suppress(PushRefused, SessionLost):  # that is an answer, or it is over
                    await self.push(_EMPTY[self.format])

    async def _check(self) -> None:
        """Is the agent still there, and the same?"""
        stub = agent_pb2_grpc.CapabilitiesStub(self.channel)
        request = agent_pb2.GetCapabilitiesRequest()
        try:
            reply = await stub.GetCapabilities(request, timeout=CONNECT_S)
        except grpc.aio.AioRpcError as error:
            self.end(f"{error.code().name}: {error.details()}")
        else:
            self._answered(reply.incarnation)

    async def push(
        self, message: goalstate_pb2.GoalState | goalstate_pb2.GoalStateV2
    ) -> goalstate_pb2.GoalStateOperationReply:
        """Push one message, and give the reply. Raises SessionLost, PushRefused."""
        async with self._turn:
            return await self._push(message)

    async def _push(
        self, message: goalstate_pb2.GoalState | goalstate_pb2.GoalStateV2
    ) -> goalstate_pb2.GoalStateOperationReply:
        if self._over.done():
            raise SessionLost(self._over.result())
        try:
            async with asyncio.timeout(self._answer_s):
                reply: goalstate_pb2.GoalStateOperationReply
                if isinstance(message, goalstate_pb2.GoalState):
                    reply = await self._stub.PushNetworkResourceStates(message)
                else:
                    reply = await self._push_v2(message)
        except TimeoutError:
            self.end(f"no reply within {self._answer_s:g} s")
            raise SessionLost(self._over.result()) from None
        except grpc.aio.AioRpcError as error:
            await self._look()
            if error.code() in _UNREACHED:
                self.end(f"{error.code().name}: {error.details()}")
            if self._over.done():
                raise SessionLost(self._over.result()) from error
            raise PushRefused(f"{error.code().name}: {error.details()}") from error
        self.pushes += 1
        self._answered(reply.incarnation)
        await self._look()
        if self._over.done():
            raise SessionLost(self._over.result())
        return reply

    def _answered(self, incarnation: int) -> None:
        """The agent answered, and may have said of which incarnation it is."""
        known, self.incarnation = self.incarnation, incarnation or self.incarnation
        if known not in (0, self.incarnation):
            self.end("another process answers than before: what was pushed is lost")

    async def _push_v2(
        self, message: goalstate_pb2.GoalStateV2
    ) -> goalstate_pb2.GoalStateOperationReply:
        if self._call is None:
            self._call = self._stub.PushGoalStatesStream()
        call = self._call
        try:
            await call.write(message)
            reply = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            reply = grpc.aio.EOF
        if reply is not grpc.aio.EOF:
            return reply  # type: ignore[no-any-return]
        self._call = None
        code = await call.code()
        if code is grpc.StatusCode.OK:
            self.end("the agent ended the stream")
            raise SessionLost(self._over.result())
        details = await call.details()
        raise grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(), details
        )

    async def _look(self) -> None:
        """Let what was lost while a reply was on its way be known."""
        await asyncio.sleep(0)
        if self.channel.get_state() is not grpc.ChannelConnectivity.READY:
            self.end("the connection was lost")

    async def close(self) -> None:
        self.end("closed")
        if self._call is not None:
            self._call.cancel()
        await self.channel.close()
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)


async def connect(address: str, host: str, answer_s: float) -> Session:
    """A session with the agent at `address`, which is to play `host`. Raises NotReached."""
    channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
    session: Session | None = None
    try:
        async with asyncio.timeout(CONNECT_S):
            await channel.channel_ready()
            session = Session(address, channel, min(answer_s, CONNECT_S))
            await _ask(session, host)
        session._answer_s = answer_s
        return session
    except BaseException as error:
        if session is not None:
            await session.close()
        else:
            await channel.close()
        if isinstance(error, TimeoutError):
            raise NotReached(f"nobody answers at {address} within {CONNECT_S:g} s") from None
        if isinstance(error, (RemoteError, grpc.aio.AioRpcError)):
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
            raise NotReached(f"{address}: {reason}") from error
        raise


async def _ask(session: Session, host: str) -> None:
    """Find out what the agent speaks. Raises RemoteError, AioRpcError."""
    stub = agent_pb2_grpc.CapabilitiesStub(session.channel)
    try:
        reply = await stub.GetCapabilities(agent_pb2.GetCapabilitiesRequest())
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise
        session.formats = (await _probe(session),)
        return
    if host not in reply.hosts:
        raise NotReached(f"that process does not play {host}")
    session.native = True
    session.follows = reply.follows
    session.incarnation = reply.incarnation
    known = {FORMAT_V1, FORMAT_V2}
    session.formats = tuple(number for number in reply.push_formats if number in known)
    if not session.follows and not session.formats:
        raise NotReached("it neither follows streams nor takes a format that is known here")


async def _probe(session: Session) -> int:
    """The format that an agent takes which has nothing but the schema's services."""
    for number, empty in _EMPTY.items():
        try:
            await session.push(empty)
        except PushRefused as error:
            cause = error.__cause__
            assert isinstance(cause, grpc.aio.AioRpcError)
            if cause.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
        else:
            return number
    raise NotReached("it takes neither GoalStateV2 nor GoalState")
