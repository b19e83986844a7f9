"""Makes the hosts of an agent process known to a DPM, through its northbound API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog

from goalstate.agent.division import check_shards
from goalstate.gs.naming import SimulatedHost
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.process import DIRECTLY, RETRY_AFTER, StartError

log = structlog.get_logger()

#: Hosts in one intent.
BATCH = 1000
RETRY_S = 1.0
#: What passes by itself: the DPM starts, waits for its broker, or has more to do than it can.
_PASSING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


async def register(
    hosts: Sequence[SimulatedHost], address: str, timeout_s: float, *, shards: int = 1
) -> None:
    """Returns when the DPM at `address` has accepted all hosts, in each of the region's shards.

    Raises StartError if it refuses one, if it does not accept them within `timeout_s` seconds, or
    if its region is divided into another number of shards: then it is told of none.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with grpc.aio.insecure_channel(address, options=[DIRECTLY]) as channel:
        stub = api_grpc.DataPlaneManagerStub(channel)
        status = await _asked(stub.GetStatus, api.StatusRequest(brief=True), address, deadline)
        check_shards(len(status.shards) or 1, shards)
        for first in range(0, len(hosts), BATCH):
            batch = hosts[first : first + BATCH]
            intent = intent_pb2.Intent(
                hosts=[
                    intent_pb2.Host(
                        id=host.id,
                        ip_address=host.ip_address,
                        mac_address=host.mac_address,
                        group=host.group,
                    )
                    for host in batch
                ]
            )
            await _asked(stub.Apply, api.ApplyRequest(intent=intent), address, deadline)
            log.info("registered", hosts=first + len(batch), of=len(hosts), dpm=address)


async def _asked(call: Callable[..., Any], request: Any, address: str, deadline: float) -> Any:
    """What the DPM answers, once it does."""
    loop = asyncio.get_running_loop()
    reason = ""
    while True:
        left = deadline - loop.time()
        try:
            return await call(request, timeout=max(left, 0.001))
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise StartError(
                    f"the DPM at {address} does not take the hosts: {error.details()}"
                ) from error
            if not reason or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                reason = error.details()  # our own deadline says less than what it said before
            after_s = _after_s(error)
            if left <= after_s:
                raise StartError(
                    f"the DPM at {address} did not take the hosts in time: {reason}; "
                    "is it up? give another address, or start without --register"
                ) from error
            log.info("waiting for the DPM", dpm=address, reason=reason)
        await asyncio.sleep(after_s)


def _after_s(error: grpc.aio.AioRpcError) -> float:
    """Seconds after which to try again: as the DPM says, where it does."""
    told = dict(error.trailing_metadata() or ()).get(RETRY_AFTER, "")
    return int(told) / 1000 if isinstance(told, str) and told.isdecimal() else RETRY_S
