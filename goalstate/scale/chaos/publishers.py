"""The DPMs as a client sees them: which one serves, and calls to that one.

A client of a region with a standby looks for the one that serves, and when a call fails it looks
again. It never sends the same change twice: what became of it is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from goalstate.gs.intent import FIELDS, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.process import DIRECTLY

#: Seconds between two looks at who serves, and for the answer to one.
LOOK_S = 0.2
ANSWER_S = 1.0
#: Seconds for a change, and for a question. A change that is held up for less than this is not
#: given up: it comes to its end before anything is asked about it.
APPLY_S = 15.0
ASK_S = 5.0
MESSAGE_BYTES = 256 * 1024 * 1024
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    DIRECTLY,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)


class Refused(Exception):
    """The publisher said that a change is not valid."""


class Shed(Exception):
    """The publisher has more to do than it can, and has taken nothing of a change."""


class AnswerLost(Exception):
    """Nobody knows what became of a change."""


class Publishers:
    """All DPMs of the region, by name; `addresses` are where a client calls them."""

    def __init__(self, addresses: Mapping[str, str], probe: str) -> None:
        """`probe`: a small VPC, whose status is asked for to learn who serves; it is cheap."""
        self._probe = probe
        self._channels = {
            name: grpc.aio.insecure_channel(address, options=OPTIONS)
            for name, address in addresses.items()
        }
        self._stubs = {
            name: api_grpc.DataPlaneManagerStub(channel) for name, channel in self._channels.items()
        }
        #: Who serves, and under which epoch; "" while nobody is known to.
        self.active = ""
        self.epoch = 0
        #: Who served last.
        self.last = ""
        #: Times in which nobody was known to serve, by the monotonic clock; the last may go on.
        self.outages: list[tuple[float, float]] = []
        self._since: float | None = time.monotonic()
        self._serves = asyncio.Event()
        self._look = asyncio.Event()

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()

    # --- who serves ---

    async def watch(self) -> None:
        """Look, for as long as the run is, who serves."""
        while True:
            names = sorted(self._stubs, key=lambda name: name != self.last)
            found = await asyncio.gather(*(self._serving(name) for name in names))
            # Of two that say so (one does not know yet), the one of the higher epoch.
            epoch, name = max(zip(found, names, strict=True))
            self._found(name if epoch else "", epoch)
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look.wait()

    async def _serving(self, name: str) -> int:
        """The epoch under which it serves; 0: it does not, or does not answer."""
        for vpc in (self._probe, ""):
            try:
                status = await self._stubs[name].GetStatus(
                    api.StatusRequest(vpc_id=vpc), timeout=ANSWER_S
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    continue  # not made yet
                return 0
            return int(status.epoch) if status.role == api.StatusReply.ACTIVE else 0
        return 0

    def _found(self, name: str, epoch: int) -> None:
        now = time.monotonic()
        if name and self._since is not None:
            self.outages.append((self._since, now))
            self._since = None
        elif not name and self._since is None:
            self._since = now
        self.active, self.epoch = name, epoch or self.epoch
        if name:
            self.last = name
            self._serves.set()
        else:
            self._serves.clear()

    def _failed(self, name: str) -> None:
        """A call failed: do not use it before it was looked at."""
        if self.active == name:
            self._found("", 0)
        self._look.set()

    @property
    def all_outages(self) -> list[tuple[float, float]]:
        """Also the one that goes on."""
        going_on = [(self._since, time.monotonic())] if self._since is not None else []
        return [*self.outages, *going_on]

    async def serving(self) -> str:
        """Wait for one that serves; gives its name."""
        while not self.active:
            await self._serves.wait()
        return self.active

    # --- calls ---

    async def apply(self, intent: intent_pb2.Intent, request_id: str) -> api.ApplyReply:
        """Raises Refused, Shed, AnswerLost."""
        name = await self.serving()
        try:
            request = api.ApplyRequest(intent=intent, request_id=request_id)
            reply: api.ApplyReply = await self._stubs[name].Apply(request, timeout=APPLY_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise Refused(error.details()) from None
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Shed(error.details()) from None
            self._failed(name)
            raise AnswerLost(f"{error.code().name}: {error.details()}") from None
        return reply

    async def _asked(self, call: Callable[[Any], Any]) -> Any:
        """The answer of whoever serves, whenever that is."""
        while True:
            name = await self.serving()
            try:
                return await call(self._stubs[name])
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return None
                self._failed(name)

    async def object(self, kind: ObjectKind, id_: str) -> Any:
        """An object as it stands (a message), None if there is none."""
        whole = await self._intent(
            api.GetIntentRequest(kind=int(kind), id=id_)  # type: ignore[arg-type]
        )
        found = getattr(whole, FIELDS[kind])
        return found[0] if found else None

    async def intent(self, vpc: str = "") -> intent_pb2.Intent:
        """All that stands, or all of a VPC."""
        return await self._intent(api.GetIntentRequest(vpc_id=vpc))

    async def _intent(self, request: api.GetIntentRequest) -> intent_pb2.Intent:
        async def call(stub: Any) -> intent_pb2.Intent:
            whole = intent_pb2.Intent()
            async for piece in stub.GetIntent(request, timeout=6 * ASK_S):
                whole.MergeFrom(piece)
            return whole

        return (await self._asked(call)) or intent_pb2.Intent()

    async def wait(self, request: api.WaitRequest) -> api.WaitReply | None:
        """The answer of whoever serves now; None: it gave none."""
        name = await self.serving()
        try:
            reply: api.WaitReply = await self._stubs[name].Wait(
                request, timeout=request.timeout_s + ASK_S
            )
        except grpc.aio.AioRpcError:
            self._look.set()
            return None
        return reply

    async def status(self, *, hosts: bool = False) -> api.StatusReply:
        async def call(stub: Any) -> Any:
            return await stub.GetStatus(api.StatusRequest(hosts=hosts), timeout=ASK_S)

        reply: api.StatusReply = await self._asked(call)
        return reply
