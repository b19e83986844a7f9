"""`load …`: workloads put on a region, and what came of them, for people."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import uvloop

from goalstate.bus.connect import connect
from goalstate.cli import load_results
from goalstate.cli.errors import CommandError, ExitCode, InputError
from goalstate.cli.load_live import Live
from goalstate.cli.output import Output
from goalstate.cli.servers import explained
from goalstate.process import configure_logging, relax_garbage_collection
from goalstate.scale.load import control, coordinator, page, results, worker, workload
from goalstate.scale.load.coordinator import Finished, RunSettings
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.results import Result
from goalstate.scale.load.workload import Workload, WorkloadError


def read(where: str, overrides: list[str]) -> Workload:
    """Raises InputError."""
    try:
        return workload.load(where, overrides)
    except WorkloadError as error:
        raise InputError(
            str(error), "`goalstate load schema` says what a workload is made of"
        ) from None


def run(
    where: str,
    overrides: list[str],
    directory: Path | None,
    *,
    run_id: str | None,
    external: int,
    dpm: str | None,
    region: str | None,
    listen: str,
    out: Output,
) -> ExitCode:
    """Raises CommandError, BrokerNotFound, BrokerFailed, BrokerUnreachable."""
    wanted = read(where, overrides)
    if dpm is not None and "://" not in wanted.broker:
        raise InputError(
            f"the DPM at {dpm} has a broker already, which the run must use too",
            "give its URL with --broker",
        )
    if (dpm is None) != (region is None):
        raise InputError("--dpm and --region belong together", "give both, or none")
    began = datetime.now(UTC)
    place = directory or Path(f"load-{wanted.name}-{began:%Y%m%d-%H%M%S}")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place} is there, and has something in it", "give another directory")
    found = execute(
        wanted, place, out, run_id=run_id, external=external, dpm=dpm, region=region, listen=listen
    )
    load_results.show(found, out)
    out.text(f"all of it is in {place}; for people: {place / page.FILE}")
    out.result(json.loads(found.model_dump_json()))
    return ExitCode.OK if found.passed else ExitCode.REFUSED


def execute(
    wanted: Workload,
    place: Path,
    out: Output,
    *,
    run_id: str | None = None,
    external: int = 0,
    dpm: str | None = None,
    region: str | None = None,
    listen: str = "127.0.0.1:0",
) -> Result:
    """Run a workload and keep its result in `place`, which has nothing in it.

    Raises CommandError, BrokerNotFound, BrokerFailed, BrokerUnreachable.
    """
    logs = place / "logs"
    logs.mkdir(parents=True)
    settings = RunSettings(
        logs, run_id or control.new_run(), external, dpm or "", region or "", listen
    )
    watch = Live(wanted, out)
    out.note(f"run {settings.run}: {wanted.name}, {wanted.seconds:g} s")
    try:
        with explained(wanted.broker), watch:
            finished = uvloop.run(_interruptible(wanted, settings, out, watch))
    except LoadError as error:
        raise CommandError(str(error), f"logs are in {logs}") from None
    except grpc.RpcError as error:
        raise CommandError(f"the DPM does not answer: {error}", f"logs are in {logs}") from None
    found = results.result(finished)
    results.save(found, finished.collected, place)
    page.write(found, place / page.FILE)
    return found


async def _interruptible(
    wanted: Workload, settings: RunSettings, out: Output, watch: Any
) -> Finished:
    """SIGTERM ends a run as Ctrl-C does: with everything that it started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await coordinator.run(wanted, settings, out.note, watch)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def work(run_id: str, broker: str) -> ExitCode:
    """Take part in a run. Raises CommandError, BrokerUnreachable."""
    configure_logging("console", "info")
    relax_garbage_collection()

    async def take_part() -> None:
        bus = await connect(broker)
        try:
            await worker.work(bus, run_id)
        finally:
            await bus.close()

    try:
        with explained(broker):
            uvloop.run(take_part())
    except LoadError as error:
        raise CommandError(str(error), "") from None
    return ExitCode.OK
