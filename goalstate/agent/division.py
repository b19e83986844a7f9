"""Checks that an agent knows into how many shards its region is divided.

One that was told too few would lack VPCs and say nothing of it, so it is worth a look at the
beginning of the region's intent log, where the publishers say it.
"""

from __future__ import annotations

import structlog
from google.protobuf.message import DecodeError

from goalstate.bus.base import EARLIEST, Bus
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.topics import Topics
from goalstate.process import StartError

log = structlog.get_logger()


async def check_division(bus: Bus, topics: Topics) -> None:
    """Raises StartError if the region says that it has another number of shards; BusError.

    A region without a publisher so far says nothing.
    """
    async for message in bus.read_to_end(topics.all_shards()[0].intent_log, EARLIEST):
        try:
            record = log_pb2.Record.FromString(message.payload)
        except DecodeError:
            break
        if not record.HasField("incarnation"):
            break  # its beginning is gone
        check_shards(record.incarnation.shards or 1, topics.shards)
        return
    log.info("the region does not say into how many shards it is divided", taken=topics.shards)


def check_shards(region: int, told: int) -> None:
    """Raises StartError unless they are the same."""
    if region != told:
        raise StartError(
            f"the region is divided into {region} shards, and this agent was told {told}: give "
            f"--shards {region}"
        )
