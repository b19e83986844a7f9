"""`chaos`: a region of real processes under faults, and a table of what came of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import uvloop

from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.files import write_bytes
from goalstate.cli.output import SHOWN, Output
from goalstate.scale.chaos.ledger import Law
from goalstate.scale.chaos.run import Result, Settings, run


def chaos(
    settings: dict[str, Any], directory: Path | None, report: Path | None, out: Output
) -> ExitCode:
    """Play one run. Raises InputError, BrokerNotFound, BrokerFailed."""
    if settings["broker"] not in ("apache", "embedded"):
        raise InputError(
            f"a run kills its broker, and so starts it: {settings['broker']!r} is none that it can",
            "use apache or embedded",
        )
    if settings["hosts"] < settings["agents"]:
        raise InputError(
            f"{settings['agents']} agent processes need at least as many hosts",
            "give more --hosts, or fewer --agents",
        )
    place = directory or Path(tempfile.mkdtemp(prefix="goalstate-chaos-"))
    place.mkdir(parents=True, exist_ok=True)
    result = None
    try:
        result = uvloop.run(_interruptible(Settings(**settings, directory=place), out))
    finally:
        if directory is None and result is not None and result.held:
            shutil.rmtree(place, ignore_errors=True)
        elif result is None:
            out.note(f"transcript and logs are in {place}")
    found = document(result)
    if report is not None:
        write_bytes(report, (json.dumps(found, indent=1) + "\n").encode())
    out.result(found)
    _show(result, out)
    if result.held:
        out.text("everything held", style="green")
        return ExitCode.OK
    _findings(result, out)
    out.text(f"seed {result.settings.seed}; transcript and logs are in {place}", style="red")
    return ExitCode.REFUSED


async def _interruptible(settings: Settings, out: Output) -> Result:
    """SIGTERM ends a run as Ctrl-C does: with everything that it started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await run(settings, out.note)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def document(result: Result) -> dict[str, Any]:
    """The whole of it, for programs."""
    settings = {**result.settings._asdict(), "directory": str(result.settings.directory)}
    return {
        "settings": settings,
        "held": result.held,
        "findings": [{"law": one.law.value, "what": one.what} for one in result.findings],
        "faults": {fault.value: count for fault, count in sorted(result.faults.items())},
        "mended_s": {
            fault.value: [round(one, 3) for one in seconds]
            for fault, seconds in sorted(result.mended.items())
        },
        "changes": [
            {"what": what, "result": how, "count": count}
            for (what, how), count in sorted(result.changes.items())
        ],
        "waits": dict(sorted(result.waits.items())),
        "accepted": result.accepted,
        "seconds": round(result.seconds, 3),
        "rate": round(result.rate, 2),
        "rate_while_served": round(result.rate_served, 2),
        "outages_s": [[round(since, 3), round(until, 3)] for since, until in result.outages],
        "hosts_compared": result.hosts_compared,
        "ports": result.ports,
        "laws": {law.value: result.count(law) for law in Law},
    }


def _show(result: Result, out: Output) -> None:
    out.table(
        ("fault", "times#", "mended after s, median#", "most#"),
        [
            (fault.value, count, *_spread(result.mended.get(fault, [])))
            for fault, count in sorted(result.faults.items())
        ],
    )
    out.text()
    by_what: dict[str, Counter[str]] = defaultdict(Counter)
    for (what, how), count in result.changes.items():
        by_what[what][how] += count
    hows = sorted({how for _, how in result.changes})
    out.table(
        ("change", *(f"{how}#" for how in hows)),
        [(what, *(count[how] for how in hows)) for what, count in sorted(by_what.items())],
    )
    out.text()
    out.table(("waits", "#"), sorted(result.waits.items()))
    out.text()
    longest = max((until - since for since, until in result.outages), default=0.0)
    out.table(
        ("of the whole run", "#"),
        [
            ("seconds", f"{result.seconds:.1f}"),
            ("changes accepted", result.accepted),
            ("a second", f"{result.rate:.1f}"),
            ("a second while somebody served", f"{result.rate_served:.1f}"),
            ("outages, as clients saw them", len(result.outages)),
            ("longest of them, s", f"{longest:.1f}"),
            ("ports at the end", result.ports),
            ("hosts compared at the end", result.hosts_compared),
            *((law.value, result.count(law)) for law in Law),
        ],
    )
    out.text()


def _spread(seconds: list[float]) -> tuple[str, str]:
    ordered = sorted(max(0.0, one) for one in seconds)
    if not ordered:
        return "", ""
    return f"{ordered[len(ordered) // 2]:.1f}", f"{ordered[-1]:.1f}"


def _findings(result: Result, out: Output) -> None:
    for finding in result.findings[:SHOWN]:
        out.text(f"{finding.law.value}: {finding.what}", style="red")
    if len(result.findings) > SHOWN:
        out.text(f"… and {len(result.findings) - SHOWN} more, in the transcript")
