"""Has snapshots of the intent log written when they are due, one at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from goalstate.bus.base import Bus
from goalstate.dpm.snapshot import SnapshotPolicy, newest_end
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.topics import Topics

log = structlog.get_logger()


class SnapshotUpkeep:
    """Nothing depends on it but how long the next start takes."""

    def __init__(
        self, bus: Bus, topics: Topics, policy: SnapshotPolicy, write: Callable[[], Awaitable[None]]
    ) -> None:
        """`write` writes one, here or elsewhere."""
        #: The end of the newest one that is known.
        self.newest: log_pb2.SnapshotEnd | None = None
        #: Bytes of the log when the last one was begun, whatever came of it.
        self.tried = 0
        self._bus = bus
        self._topics = topics
        self._policy = policy
        self._write = write
        self._writing = False

    def is_due(self, log_bytes: int) -> bool:
        """`log_bytes`: of the whole log."""
        covered = self.newest.log.bytes if self.newest is not None else 0
        grown = log_bytes - max(covered, self.tried)
        return not self._writing and self._policy.is_due(grown, self.newest)

    async def take(self, log_bytes: int) -> None:
        """Have one written, of a log of so many bytes."""
        self._writing = True
        self.tried = log_bytes
        try:
            await self._write()
            end = await newest_end(self._bus, self._topics)
            if end is not None and end != self.newest:
                self.newest = end
                log.info("snapshot written", change=end.change, bytes=end.bytes)
        except Exception as error:
            log.warning("no snapshot of the intent log was written", error=str(error))
        finally:
            self._writing = False
