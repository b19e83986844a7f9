"""How long a publisher that was killed takes to serve again."""

from __future__ import annotations

import json
from time import monotonic, sleep
from typing import Any

from bench.large import LargeVpc
from bench.report import Goal, Section, Table
from bench.samples import Samples
from bench.system import CONVERGE_S, Brokers, MeasurementFailed, Progress, System

GOAL_S = 10.0

METHOD = """\
A publisher that knows a VPC of {ports:,} ports is killed (kill -9) and started anew. Inside the
interval: from before the process is started until it has served an `Apply` (a port more): start
of the interpreter, connection to the broker, reading of the intent log, the look at what the
topics may lack, a new epoch, the intent itself. From the whole log: there is no snapshot, each
record is redone. From a snapshot: the newest one is restored, and the log after it (at most 4
MB) redone."""
#: The newest snapshot has at least this share of the changes.
_COVERED = 0.5
_LOOK_S = 0.1
#: No log of a measurement is as long.
_NEVER = 1 << 40
_WAYS = {"the whole log": {"snapshot_min_bytes": _NEVER}, "a snapshot": {"snapshot_factor": 0}}


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    ports = 5000 if quick else 100_000
    repeats = 2 if quick else 5
    goals, rows, data = [], [], {}
    for way, its in _WAYS.items():
        settings = {"snapshot_min_bytes": 100_000, **its} if quick else its
        progress(f"restart: {ports:,} ports, from {way}")
        seconds, recovered = _restarts(brokers, progress, ports, repeats, settings)
        if bool(recovered[-1]["of_snapshot"]) is not (way == "a snapshot"):
            raise MeasurementFailed(f"it did not recover from {way}: {recovered[-1]}")
        served = Samples.of(seconds)
        goals.append(
            Goal(
                f"restart with {ports:,} ports, from {way}", GOAL_S, "s", served, at_size=not quick
            )
        )
        rows.append(
            (
                way,
                served,
                f"{recovered[-1]['records']:,}",
                f"{recovered[-1]['of_snapshot']:,}",
            )
        )
        data[way] = {"seconds": seconds, "recovered": recovered}
    columns = ("from", "until served s#", "records#", "of these in the snapshot#")
    return Section(
        "restart",
        "Restart of the publisher",
        METHOD.format(ports=ports),
        goals,
        [Table(columns, rows)],
        {"ports": ports, "ways": data},
    )


def _restarts(
    brokers: Brokers, progress: Progress, ports: int, repeats: int, settings: dict[str, int]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Seconds until it served, and what it said of its recovery, each time."""
    vpc = LargeVpc(ports)
    seconds, recovered = [], []
    name = f"restart-{'-'.join(settings)}".replace("_", "-")
    with System(brokers.get(), name, progress, **settings) as system:
        change = vpc.build(system)
        if "snapshot_factor" in settings:
            _await_snapshot(system, _COVERED * change)
        for number in range(repeats):
            progress(f"restart: {number + 1} of {repeats}")
            system.dpm.child.kill()
            begun = monotonic()
            system.dpm = system.publisher(**settings)
            seconds.append(system.dpm.apply_soon(vpc.more(vpc.first_guest)) - begun)
            recovered += _said(system, "recovered")[-1:]
    return seconds, recovered


def _await_snapshot(system: System, change: float) -> None:
    """Wait for one as of this change, or a later one."""
    end = monotonic() + CONVERGE_S
    while not any(one["change"] >= change for one in _said(system, "snapshot written")):
        if monotonic() > end:
            raise MeasurementFailed("no snapshot of the intent log was written")
        sleep(_LOOK_S)


def _said(system: System, event: str) -> list[dict[str, Any]]:
    """Such lines of the publisher's log."""
    lines = (line for line in system.dpm.log().splitlines() if f'"{event}"' in line)
    return [json.loads(line) for line in lines]
