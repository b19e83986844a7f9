"""Handing shards over between the publishers of a region, so that each holds about as many.

A publisher looks from time to time at who serves what. If one of them holds at least two shards
more than itself (`spread.asks`), it asks that for one, and that gives it up in order: what was
accepted is made durable and published, then the log is let go. Whoever holds least takes it first;
while nobody has it, calls about it are answered with UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import structlog

from goalstate.dpm.engine import Engine
from goalstate.dpm.forwarding import OPTIONS
from goalstate.dpm.spread import asks, gives
from goalstate.gs.pb.goalstate.peer.v1 import peer_pb2, peer_pb2_grpc

log = structlog.get_logger()

#: Seconds between two looks. A shard changes hands within that, so that it is seen at the next.
LOOK_S = 3.0
#: Seconds within which a shard must be handed over.
ASK_S = 15.0


class PeerService(peer_pb2_grpc.PeerServicer):
    """Gives up what others ask for."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        #: One at a time, so that what is held is what it will be.
        self._giving = asyncio.Lock()

    async def HandOver(
        self, request: peer_pb2.HandOverRequest, context: Any
    ) -> peer_pb2.HandOverReply:
        if request.shard >= len(self._engines):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"there is no shard {request.shard}"
            )
        engine = self._engines[request.shard]
        # A caller that goes away does not leave it half done, and the next one waits all the same.
        given = await asyncio.shield(asyncio.ensure_future(self._give(engine, request)))
        return peer_pb2.HandOverReply(given=given)

    async def _give(self, engine: Engine, request: peer_pb2.HandOverRequest) -> bool:
        async with self._giving:
            if not gives(engine.held, request.held):
                return False
            log.info("asked to hand over", shard=request.shard, by=request.writer)
            return await engine.hand_over()


async def level(engines: Sequence[Engine]) -> None:
    """Ask others for shards as long as they hold clearly more. Never returns."""
    while True:
        await asyncio.sleep(LOOK_S)
        active = [engine.active for engine in engines]
        known = [one for one in active if one is not None and one.address]
        if len(known) < len(engines):
            continue  # while a shard changes hands, nobody's share is known
        # By address, since writers may have one name.
        shard = asks([one.address for one in known], engines[0].address)
        if shard is None:
            continue
        other = known[shard]
        try:
            async with grpc.aio.insecure_channel(other.address, options=OPTIONS) as channel:
                request = peer_pb2.HandOverRequest(
                    shard=shard, held=engines[0].held, writer=engines[0].writer
                )
                reply = await peer_pb2_grpc.PeerStub(channel).HandOver(request, timeout=ASK_S)
            log.info("asked for a shard", shard=shard, of=other.writer, given=reply.given)
        except grpc.aio.AioRpcError as error:
            log.warning("nothing was handed over", of=other.writer, error=str(error.details()))
