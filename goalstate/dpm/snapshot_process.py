"""A process that writes one snapshot of the intent log and ends.

It reads and writes topics and nothing else, so the publisher that serves goes on undisturbed; it
holds a whole state of its own meanwhile, as much memory as the publisher's, and most of a processor
core for seconds, or what others leave of one. It does not outlive the publisher (`bus/tether.py`).
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
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
#: What this process's session weighs; how often, and how many seconds apart, it is written.
_AUTOGROUP = "/proc/self/autogroup"
_TRIES = 50
_TRY_S = 0.15


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
    """Leave the processor to who wants it: who publishes is not held up by a slice of its time."""
    os.nice(NICENESS)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # Linux may share processors among sessions first (sched(7), autogroup). All of this counts
    # within the publisher's only, and would take what that leaves of its share from other sessions:
    # one of its own has the least weight, about a hundredth of another's.
    try:
        group = os.open(_AUTOGROUP, os.O_WRONLY)
    except OSError:
        return  # they are not shared so
    try:
        os.setsid()
        _write_soon(group, str(NICENESS).encode())
    except OSError as error:
        log.warning("the snapshot process has a share of the processors", error=str(error))
    finally:
        os.close(group)


def _write_soon(file: int, text: bytes) -> None:
    """Without a privilege it can be written ten times a second, by all of a machine. Raises
    OSError."""
    for _ in range(_TRIES):
        try:
            os.write(file, text)
        except BlockingIOError as error:
            refused = error
            time.sleep(_TRY_S)
        else:
            return
    raise refused


def main(argument: str) -> None:
    task = SnapshotTask.model_validate_json(argument)
    configure_logging(task.log_format, task.log_level)
    yield_processor()
    relax_garbage_collection()
    try:
        asyncio.run(run(task))
    except (BusError, LogUnreadable) as error:
        # It is tried again: nothing depends on it but how long a start takes.
        log.warning("the snapshot process ends without one", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
