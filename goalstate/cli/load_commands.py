"""The options of `load …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from goalstate.cli.options import BrokerUrl, Json, end
from goalstate.cli.output import Output

# Modules of commands are imported where a command runs: `--help` must not wait for gRPC.
# ruff: noqa: PLC0415

WorkloadArgument = Annotated[
    str, typer.Argument(metavar="WORKLOAD", help="A file, or the name of one that is shipped.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Instead of what the file says, e.g. region.hosts=100; may be repeated.",
    ),
]

Results = Annotated[
    list[Path], typer.Argument(metavar="A B …", help="Result directories, or directories of them.")
]
ResultDirectory = Annotated[
    Path, typer.Argument(metavar="DIR", help="A result directory, as `load run` writes it.")
]


def run(
    workload: WorkloadArgument,
    set_: Set = None,
    broker: Annotated[
        str | None, typer.Option(help="auto, apache, docker, embedded, or a URL.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The result directory; by default a new one here.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option("--run", help="The run's id; by default by chance.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(min=0, help="So many workers come by themselves (`load worker`)."),
    ] = 0,
    dpm: Annotated[
        str | None, typer.Option(help="HOST:PORT of a DPM that runs, instead of a new one.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="The region that it serves.")] = None,
    listen: Annotated[
        str, typer.Option(help="Where a new DPM listens, for workers elsewhere: 0.0.0.0:0.")
    ] = "127.0.0.1:0",
    as_json: Json = False,
) -> None:
    """Put a workload on a region; measure each stage of each change's path; keep the result.

    The exit code says whether the workload's thresholds held.
    """
    from goalstate.cli import load

    overrides = [*(set_ or ()), *([f"broker={broker}"] if broker else ())]
    end(
        load.run(
            workload,
            overrides,
            out,
            run_id=run_id,
            external=workers,
            dpm=dpm,
            region=region,
            listen=listen,
            out=Output(as_json),
        )
    )


def worker(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    broker: BrokerUrl = None,
) -> None:
    """Take part in a run: play hosts, or make changes, as its coordinator says."""
    from goalstate.cli import load
    from goalstate.cli.errors import InputError

    if broker is None:
        raise InputError("which broker?", "give its URL with --broker (GOALSTATE_BROKER_URL)")
    end(load.work(run_id, broker))


def show(directory: ResultDirectory, as_json: Json = False) -> None:
    """The tables of a result."""
    from goalstate.cli import load_results

    end(load_results.show_result(directory, Output(as_json)))


def report(directory: ResultDirectory, as_json: Json = False) -> None:
    """Make the page of a result anew: report.html, one file that fetches nothing."""
    from goalstate.cli import load_results

    end(load_results.report(directory, Output(as_json)))


def compare(
    results: Results,
    group: Annotated[
        bool,
        typer.Option("--group", help="Results made in the same way are repeats of each other."),
    ] = False,
    phase: Annotated[
        str, typer.Option(help="Only this phase's latencies; by default all that was measured.")
    ] = "",
    html: Annotated[Path | None, typer.Option(help="Write a page with plots as well.")] = None,
    as_json: Json = False,
) -> None:
    """Compare results with the first, and say what was not the same.

    A directory with several result directories in it is one group: of repeats there is a median,
    with the lowest and the highest.
    """
    from goalstate.cli import load_results

    end(
        load_results.compare_results(
            results, group=group, phase=phase, html=html, out=Output(as_json)
        )
    )


def sweep(
    workload: WorkloadArgument,
    over: Annotated[
        list[str],
        typer.Option(
            metavar="PATH=V1,V2,…",
            help="Values of one place in the workload; quotes keep a comma in one. "
            "With several, all combinations are run.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="The directory; what is there of the same sweep is not run again.")
    ],
    repeats: Annotated[int, typer.Option(min=1, help="So many runs of each point.")] = 1,
    set_: Set = None,
    broker: Annotated[
        str | None, typer.Option(help="auto, apache, docker, embedded, or a URL.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a workload over a grid of values; show how latency and CPU grow along each axis.

    A run that fails is told, and the others go on.
    """
    from goalstate.cli import load_sweep

    overrides = [*(set_ or ()), *([f"broker={broker}"] if broker else ())]
    end(load_sweep.sweep(workload, overrides, over, out, repeats, Output(as_json)))


def workloads(
    name: Annotated[str | None, typer.Argument(help="Print this one, in YAML.")] = None,
    as_json: Json = False,
) -> None:
    """The workloads that are shipped."""
    from goalstate.cli import load_results

    end(load_results.workloads(name, Output(as_json)))


def schema(as_json: Json = False) -> None:
    """The JSON schema of workload files."""
    from goalstate.cli import load_results

    end(load_results.schema(Output(as_json)))
