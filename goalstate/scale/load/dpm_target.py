"""Changes sent to a DPM: each caller has an ApplyStream of its own, and one change on it at a time.

A stream costs both ends far less for each change than a call does, and what is sent on it is never
shed: an overloaded DPM lets it wait, which the latency shows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import structlog

from goalstate.gs import intent_codec
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2_grpc import (
    DataPlaneManagerStub,
)
from goalstate.process import DIRECTLY, MAX_GRPC_BYTES
from goalstate.scale.load.changes import Change
from goalstate.scale.load.generator import Answer, Outcome
from goalstate.scale.load.stamps import Stamp, Stamps

log = structlog.get_logger()

#: Seconds within which a change must be answered, however often it is sent; and between two tries.
ANSWER_S = 120.0
_AGAIN_S = 0.2
#: Connections: one is a thread of the client's and of the server's.
_CONNECTIONS = 4
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_BYTES),
    DIRECTLY,
    ("grpc.use_local_subchannel_pool", 1),
)


class DpmTarget:
    """`close` it at the end."""

    def __init__(self, addresses: Sequence[str], stamps: Stamps, callers: int) -> None:
        """`addresses` of the region's DPMs, among which callers are divided."""
        count = max(_CONNECTIONS, len(addresses))
        self._channels = [
            grpc.aio.insecure_channel(addresses[n % len(addresses)], options=OPTIONS)
            for n in range(count)
        ]
        self._stubs = [DataPlaneManagerStub(channel) for channel in self._channels]
        self._stamps = stamps
        self._streams: list[Any] = [None] * callers
        #: Why changes were refused: the first ones.
        self.refusals: list[str] = []

    async def apply(self, caller: int, change: Change, stamp: Stamp) -> Answer:
        request = api.ApplyRequest(
            intent=intent_codec.to_proto(change.intent), traceparent=self._stamps.write(stamp)
        )
        end = time.monotonic() + ANSWER_S
        while True:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + ANSWER_S):
                    reply = await self._exchange(caller, request)
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                self._drop(caller)
                if time.monotonic() > end:
                    log.warning("a change was not answered", change=change.kind, error=str(error))
                    return Answer(Outcome.UNANSWERED)
                # The same once more changes nothing, if it was taken.
                await asyncio.sleep(_AGAIN_S)
                continue
            if reply.violations:
                if len(self.refusals) < 10:
                    self.refusals.append(
                        f"{change.kind}: {reply.violations[0].path}: {reply.violations[0].message}"
                    )
                return Answer(Outcome.REFUSED)
            return Answer(Outcome.ACCEPTED, reply.change)

    async def close(self) -> None:
        for caller in range(len(self._streams)):
            self._drop(caller)
        for channel in self._channels:
            await channel.close()

    async def _exchange(self, caller: int, request: api.ApplyRequest) -> api.ApplyReply:
        stream = self._streams[caller]
        if stream is None:
            stream = self._streams[caller] = self._stubs[caller % len(self._stubs)].ApplyStream()
        await stream.write(request)
        reply = await stream.read()
        if reply is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await stream.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), "the stream ended"
            )
        answer: api.ApplyReply = reply
        return answer

    def _drop(self, caller: int) -> None:
        stream, self._streams[caller] = self._streams[caller], None
        if stream is not None:
            stream.cancel()
