"""The gRPC service of sessions: speaks goalstate.session.v1, and carries what `sessions` queues."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc
import structlog

from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import NotServing
from goalstate.dpm.forwarding import asked_shard
from goalstate.dpm.service import Context, abort, abort_unavailable
from goalstate.dpm.sessions import Session, Sessions
from goalstate.gs.pb.goalstate.session.v1 import session_pb2, session_pb2_grpc
from goalstate.gs.sharding import SHARD
from goalstate.gs.streams import Mark, StreamId

log = structlog.get_logger()

#: Seconds between two looks whether the publisher still serves, where there is nothing to send.
LOOK_S = 1.0
#: Seconds after which an agent is told that a checkpoint cannot be built. It asks again at once.
GIVE_UP_S = 5.0


class SessionService(session_pb2_grpc.StreamSessionsServicer):
    def __init__(self, engines: Sequence[Engine]) -> None:
        """Of each shard, in their order."""
        self._engines = engines

    async def Open(
        self, request_iterator: AsyncIterator[session_pb2.Request], context: Context
    ) -> AsyncIterator[session_pb2.Carried]:
        engine = await self._engine(context)
        sessions = engine.sessions
        if sessions is None or not engine.serving:
            await abort_unavailable(context, engine, _not_serving(engine))
        # The agent hears that it is served before there is anything to tell.
        await context.send_initial_metadata(())
        session = sessions.begin()
        reading = asyncio.ensure_future(_read(request_iterator, sessions, session))
        reading.add_done_callback(lambda _: session.news.set())
        try:
            while not session.ended and engine.serving and not reading.done():
                carried = session.pop()
                if carried is not None:
                    yield carried
                    continue
                try:
                    async with asyncio.timeout(LOOK_S):
                        await session.news.wait()
                except TimeoutError:
                    pass
        finally:
            # Before the agent is told, so that whoever is told finds it ended.
            read = reading.done() and not reading.cancelled()
            reading.cancel()
            ended = session.ended
            sessions.end(session)
        if read:
            error = reading.exception()
            if isinstance(error, ValueError):
                await abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if isinstance(error, NotServing):
                await abort_unavailable(context, engine, error)
            if error is None and not ended:
                return  # the agent closes it
        await abort_unavailable(context, engine, _not_serving(engine))

    async def _engine(self, context: Context) -> Engine:
        """Of the shard that a call names, where the region is divided."""
        if len(self._engines) == 1:
            return self._engines[0]
        shard = asked_shard(context)
        if shard is None or not 0 <= shard < len(self._engines):
            await abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"{SHARD}: say which of the region's {len(self._engines)} shards is meant",
            )
        return self._engines[shard]


async def _read(
    requests: AsyncIterator[session_pb2.Request], sessions: Sessions, session: Session
) -> None:
    """Do what an agent asks for, one after the other.

    Raises ValueError for what makes no sense, NotServing.
    """
    async for request in requests:
        body = request.WhichOneof("body")
        if body == "unfollow":
            sessions.unfollow(session, request.unfollow.id)
        elif body == "follow":
            follow = request.follow
            stream = StreamId.parse(follow.stream)
            try:
                mark = Mark(follow.epoch, follow.sequence)
                await sessions.follow(session, follow.id, stream, mark)
            except RuntimeError as error:
                # A stream that cannot be rebuilt must not take the others with it.
                log.error("no checkpoint for a session", stream=str(stream), error=str(error))
                loop = asyncio.get_running_loop()
                loop.call_later(GIVE_UP_S, sessions.give_up, session, follow.id)
        else:
            raise ValueError("a request without follow or unfollow")


def _not_serving(engine: Engine) -> NotServing:
    return NotServing(f"the publisher is not serving just now: {engine.problem}")
