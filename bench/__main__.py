"""`python -m bench`: measure, and print each result beside its goal.

Everything runs on this machine and ends with this command. Measurements that need no broker come
first, before there is one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc

from bench import (
    channels,
    derive,
    failover,
    fanout,
    hold,
    join,
    kept,
    machine,
    memory,
    overload,
    publish,
    receive,
    report,
    restart,
    resume,
    scaling,
    wire,
)
from bench.peers import section as peers
from bench.report import Goal, Section
from bench.system import Brokers, MeasurementFailed
from goalstate import __version__
from goalstate.bus.errors import BusError

_TITLE = "Measurements"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    begun = time.monotonic()

    def progress(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", file=sys.stderr, flush=True)

    brokers = Brokers(options.broker, options.admin_url, progress)
    quick = options.quick
    measurements: dict[str, Callable[[], Section]] = {
        "derive": lambda: derive.measure(quick=quick),
        "hold": lambda: hold.measure(progress, quick=quick),
        "publish": lambda: publish.measure(brokers, progress, quick=quick),
        "overload": lambda: overload.measure(brokers, progress, quick=quick),
        "fanout": lambda: fanout.measure(brokers, progress, quick=quick),
        "scaling": lambda: scaling.measure(brokers, progress, quick=quick),
        "receive": lambda: receive.measure(brokers, progress, quick=quick),
        "channels": lambda: channels.measure(brokers, progress, quick=quick),
        "wire": lambda: wire.measure(brokers, progress, quick=quick),
        "memory": lambda: memory.measure(brokers, progress, quick=quick),
        "join": lambda: join.measure(brokers, progress, quick=quick),
        "resume": lambda: resume.measure(brokers, progress, quick=quick),
        "restart": lambda: restart.measure(brokers, progress, quick=quick),
        "failover": lambda: failover.measure(brokers, progress, quick=quick),
        "peers": lambda: peers.measure(brokers, progress, quick=quick),
    }
    unknown = [name for name in options.only if name not in measurements]
    if unknown:
        print(
            f"bench: there is no measurement {unknown[0]!r}: {', '.join(measurements)}",
            file=sys.stderr,
        )
        return 2
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": machine.command(options.given),
        "goalstate": __version__,
        **machine.facts(),
    }
    sections: list[Section] = []
    failures: list[str] = []
    try:
        for name, measure in measurements.items():
            if options.only and name not in options.only:
                continue
            progress(f"measuring: {name}")
            try:
                one = measure()
            except (BusError, MeasurementFailed, TimeoutError, grpc.RpcError) as error:
                failures.append(f"{name}: {error}")
                progress(f"not measured: {failures[-1]}")
                continue
            sections.append(one)
            print(report.section(one), flush=True)
            if brokers.started is not None:
                facts["broker"] = brokers.started.describe().rpartition(" at ")[0]
    except KeyboardInterrupt:
        progress("interrupted")
        return 130
    finally:
        brokers.stop()
    facts["time"] = f"{time.monotonic() - begun:.0f} s"
    goals = [goal for one in sections for goal in one.goals]
    summary = _summary(facts, goals, failures)
    print(summary)
    if options.json:
        document = {
            "facts": facts,
            "failures": failures,
            "measurements": [report.document(one) for one in sections],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if options.write:
        kept.keep(sections, facts, list(measurements))
        progress(f"written: {kept.RESULTS}")
    return 1 if failures else 0


def _summary(facts: dict[str, str], goals: Sequence[Goal], failures: Sequence[str]) -> str:
    parts = [report.head(_TITLE, facts)]
    if goals:
        parts.append(report.table(report.goals(goals)) + "\n")
    parts += [f"NOT MEASURED: {failure}\n" for failure in failures]
    return "\n".join(parts)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure goalstate on this machine, beside the plain Pulsar client and others.",
        epilog="A whole run takes some 42 minutes on two cores, a quick one 11. "
        "The exit code says whether everything could be measured, not whether goals were met.",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="derive, hold, publish, overload, fanout, scaling, channels, wire, memory, join, "
        "resume, restart, failover or peers; may be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats and smaller sizes; proves less"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument(
        "--broker", metavar="URL", help="an Apache Pulsar that runs; else one is started"
    )
    parser.add_argument("--admin-url", metavar="URL", help="its admin REST API")
    parser.add_argument(
        "--write", action="store_true", help=f"keep what was measured in {kept.RESULTS.name}"
    )
    options = parser.parse_args(arguments)
    options.given = list(sys.argv[1:] if arguments is None else arguments)
    return options


if __name__ == "__main__":
    # An orderly end, in which everything that was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
