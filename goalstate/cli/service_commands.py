"""The commands that start processes: what they are called with, and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from goalstate.cli.options import DPM, BrokerUrl, Json, end
from goalstate.cli.output import Output

# What a command needs is imported where it runs: `--help` must not wait for gRPC.
# ruff: noqa: PLC0415

Kind = Annotated[str, typer.Option(help="auto, apache, docker or embedded.")]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Write the addresses here, as JSON, once it serves.")
]


def demo(
    broker: Annotated[
        str, typer.Option(help="auto, apache, docker, embedded, or the URL of a running one.")
    ] = "auto",
    hosts: Annotated[int, typer.Option(min=1, help="Hosts of the fleet.")] = 200,
    vpcs: Annotated[str, typer.Option(help="VPCs × ports each.")] = "5x1000,45x100,50x10",
    seed: Annotated[int, typer.Option(help="What is random follows from it.")] = 1,
    json: Json = False,
    keep: Annotated[bool, typer.Option(help="Leave it running at the end, until Ctrl-C.")] = False,
) -> None:
    """Start broker, DPM and a fleet; apply, change and check a region; say how long it took."""
    from goalstate.cli import servers

    end(servers.demo(broker, hosts, vpcs, seed, keep, Output(json)))


def broker_start(
    kind: Kind = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the broker's data here. Default: a temporary one.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Use the broker that runs there; auto: GOALSTATE_BROKER_URL as well."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for clients; 0: any free one.")
    ] = 0,
    ready_file: ReadyFile = None,
    json: Json = False,
) -> None:
    """Find or start a broker, and keep it until Ctrl-C or SIGTERM."""
    from goalstate.cli import servers

    end(servers.broker(kind, url, data_dir, port, ready_file, Output(json)))


def dpm_serve(
    broker: BrokerUrl = None,
    admin_url: Annotated[
        str | None, typer.Option(help="Pulsar's admin REST API; makes the region's namespace.")
    ] = None,
    listen: Annotated[str | None, typer.Option(help=f"HOST:PORT, by default {DPM}.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="By default 9151; 0: any free one.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Name of the region.")] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="pulsar, or auto: small VPCs travel over sessions that agents open."),
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, max=256, help="Into so many the region is divided.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="All settings, as YAML.")] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run the publisher until Ctrl-C or SIGTERM."""
    from goalstate.cli import servers

    end(
        servers.dpm(
            config,
            broker=broker,
            admin_url=admin_url,
            listen=listen,
            metrics_port=metrics_port,
            region=region,
            channel=channel,
            shards=shards,
            ready_file=ready_file,
        )
    )


def agent_run(
    broker: BrokerUrl = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="So many hosts.")] = None,
    first: Annotated[int | None, typer.Option(min=0, help="Number of the first one.")] = None,
    host_prefix: Annotated[str | None, typer.Option(help="What host names begin with.")] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Hosts of a group.")] = None,
    region: Annotated[str | None, typer.Option(help="Name of the region.")] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, max=256, help="Into so many the region is divided.")
    ] = None,
    data_plane: Annotated[str | None, typer.Option(help="memory or modelled.")] = None,
    counting_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the hosts that check and count, undecoded."),
    ] = None,
    decoding: Annotated[
        str | None,
        typer.Option(help="shared: what several hosts get is read once; own: by each of them."),
    ] = None,
    inspect: Annotated[
        str | None, typer.Option(help="HOST:PORT of the inspection service.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="By default 9152; 0: any free one.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Make the hosts known to the DPM at HOST:PORT.")
    ] = None,
    dpm: Annotated[
        list[str] | None,
        typer.Option(
            help="HOST:PORT of a DPM to open a session to, for small VPCs; to be given once for "
            "each DPM of the region. By default the one of --register."
        ),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Store what hosts hold here, and go on from it.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="streams; or alcor: pushed to over the services of Alcor's schema."),
    ] = None,
    alcor_format: Annotated[
        list[str] | None,
        typer.Option(help="With --source alcor: v1 or v2, may be repeated. Default: both."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="All settings, as YAML.")] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Play hosts, each with its own readers and state, until Ctrl-C or SIGTERM.

    With --source alcor there are no readers: a publisher of Alcor's schema pushes to the address of
    --inspect. A broker is needed only for topics that it has the hosts follow.
    """
    from goalstate.cli import servers

    end(
        servers.agent(
            config,
            broker=broker,
            hosts=hosts,
            first=first,
            host_prefix=host_prefix,
            group_size=group_size,
            region=region,
            shards=shards,
            data_plane=data_plane,
            counting_share=counting_share,
            decoding=decoding,
            inspect=inspect,
            metrics_port=metrics_port,
            register=register,
            dpm=tuple(dpm) if dpm else None,
            state_dir=state_dir,
            source=source,
            alcor_formats=alcor_format or None,
            ready_file=ready_file,
        )
    )


def agent_proxy(
    remotes: Annotated[
        Path, typer.Argument(help="YAML: each host and the HOST:PORT of its agent.")
    ],
    broker: BrokerUrl = None,
    region: Annotated[str | None, typer.Option(help="Name of the region.")] = None,
    host_prefix: Annotated[str | None, typer.Option(help="What host names begin with.")] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Hosts of a group.")] = None,
    inspect: Annotated[
        str | None, typer.Option(help="HOST:PORT of the inspection service.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="By default 9152; 0: any free one.")
    ] = None,
    register: Annotated[
        str | None, typer.Option(help="Make the hosts known to the DPM at HOST:PORT.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="All settings, as YAML.")] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Push to hosts whose agents speak only Alcor's services, and report for them.

    An agent that follows the streams by itself is left alone, for as long as it does.
    """
    from goalstate.cli import servers

    end(
        servers.agent(
            config,
            remotes=remotes,
            broker=broker,
            region=region,
            host_prefix=host_prefix,
            group_size=group_size,
            inspect=inspect,
            metrics_port=metrics_port,
            register=register,
            ready_file=ready_file,
        )
    )
