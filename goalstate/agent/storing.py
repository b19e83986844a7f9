"""Stores what hosts hold while they run: batches, off the hot path.

What changed is gathered from all hosts in one go, as of one moment, and written by a thread. The
next batch is begun when that is done, and not sooner than DELAY_S after the one before. A batch
that cannot be written is tried again, with everything that is held, ever less often.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence

import structlog

from goalstate.agent.core import HostCore
from goalstate.agent.state_file import StateFile

log = structlog.get_logger()

DELAY_S = 0.2
RETRY_S = 1.0
RETRY_MAX_S = 60.0


class Storing:
    """Stores what the journals of some hosts say. `start`, then `stop`."""

    def __init__(self, file: StateFile, cores: Sequence[HostCore]) -> None:
        self._file = file
        self._cores = cores
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Batches written.
        self.batches = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Store what is left, and stop. The file stays open."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        failures = 0
        stopping = False
        while not stopping:
            wait = DELAY_S
            if failures:
                wait = min(RETRY_S * 2 ** min(failures - 1, 10), RETRY_MAX_S)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait)
            stopping = self._stopping.is_set()
            failures = 0 if await self._store() else failures + 1

    async def _store(self) -> bool:
        """Write a batch; did it succeed?"""
        updates = []
        try:
            for core in self._cores:
                if core.journal:
                    updates += core.journal.take(core.host, core.streams)
            if not updates:
                return True
            await asyncio.to_thread(self._file.write, updates)
        except Exception as error:  # also a defect must not end the storing for good
            defect = not isinstance(error, sqlite3.Error)
            log.warning("what hosts hold is not stored", error=repr(error), exc_info=defect)
            for core in self._cores:
                if core.journal is not None:
                    core.journal.failed(core.streams)
            return False
        self.batches += 1
        return True
