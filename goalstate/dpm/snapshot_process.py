"""A process that writes one snapshot of the intent log and ends.

It reads and writes topics and nothing else, so the publisher that serves goes on undisturbed; it
holds a whole state of its own meanwhile, as much memory as the publisher's, and most of a processor
core for seconds, if nothing else wants it. It does not outlive the publisher (see `bus/tether.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from typing import Literal

import structlog
from pydantic import BaseModel

from goalstate.bus import tether
from goalstate.bus.connect import connect
from goalstate.bus.errors import BusError
from goalstate.dpm.errors import LogUnreadable, SnapshotFailed
from goalstate.dpm.snapshot import write_snapshot
from goalstate.gs.topics import Topics
from goalstate.process import configure_logging, relax_garbage_collection

log = structlog.get_logger()

#: What is added to the process's niceness.
NICENESS = 19


class SnapshotTask(BaseModel):
    """What the process is told, as its only argument (JSON)."""

    broker: str
    topics: Topics
    writer: str
    security_groups_own_stream: bool
    compression: str
    log_format: Literal["json", "console"]
    log_level: str


async def write_in_process(task: SnapshotTask) -> None:
    """Run the process until it ends. Raises SnapshotFailed; it has said why on standard error."""
    with tempfile.TemporaryDirectory(prefix="goalstate-snapshot-") as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            tether.__file__,
            os.path.join(folder, "pid"),
            "",
            sys.executable,
            "-m",
            "goalstate.dpm.snapshot_process",
            task.model_dump_json(),
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            code = await process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()  # ends it, if it has not ended
            await process.wait()
    if code != 0:
        raise SnapshotFailed(f"the process that writes it ended with exit code {code}")


async def run(task: SnapshotTask) -> None:
    """Raises BusError, LogUnreadable."""
    bus = await connect(task.broker, compression=task.compression)
    try:
        end = await write_snapshot(
            bus,
            task.topics,
            writer=task.writer,
            security_groups_own_stream=task.security_groups_own_stream,
        )
    finally:
        await bus.close()
    log.info("snapshot process ends", written=end is not None)


def yield_processor() -> None:
    """Run only when nothing else wants to: who publishes is not held up by a slice of its time."""
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):
        # Linux may share processors among sessions first (sched(7), autogroup): then all of this
        # counts within the publisher's only, and takes what that leaves of its share from others.
        group = open("/proc/self/autogroup", "w", encoding="ascii")  # noqa: SIM115
        with group:
            os.setsid()
            group.write(str(NICENESS))


def main(argument: str) -> None:
    task = SnapshotTask.model_validate_json(argument)
    yield_processor()
    configure_logging(task.log_format, task.log_level)
    relax_garbage_collection()
    try:
        asyncio.run(run(task))
    except (BusError, LogUnreadable) as error:
        # It is tried again: nothing depends on it but how long a start takes.
        log.warning("the snapshot process ends without one", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
