"""The commands about dead letters: what they are called with, and their help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from goalstate.cli.options import (
    DPM,
    AdminUrl,
    BrokerUrl,
    Dpm,
    Json,
    Quorum,
    Timeout,
    Wait,
    end,
)
from goalstate.cli.output import Output

if TYPE_CHECKING:
    from goalstate.cli.dead_letters import Source

# What a command needs is imported where it runs: `--help` must not wait for gRPC.
# ruff: noqa: PLC0415

OfVpc = Annotated[str, typer.Option("--vpc", help="Only of this VPC.")]
OfHost = Annotated[str, typer.Option("--host", help="Only of this host.")]
OfKind = Annotated[str, typer.Option("--kind", help="Only of this kind: port, neighbor, …")]
OfId = Annotated[str, typer.Option("--id", help="Only the resource of this id.")]
Region = Annotated[str, typer.Option(help="Region of the agents.")]
Shards = Annotated[
    int, typer.Option(min=1, max=1024, help="Topics of reports, as the agents have it.")
]


def list_letters(
    vpc: OfVpc = "",
    host: OfHost = "",
    kind: OfKind = "",
    id_: OfId = "",
    outstanding: Annotated[
        bool, typer.Option("--outstanding", help="Not those that are known to be settled.")
    ] = False,
    broker: BrokerUrl = None,
    admin_url: AdminUrl = "",
    region: Region = "default",
    report_shards: Shards = 4,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """The newest letter of each host, kind and id, and whether the host still says so."""
    from goalstate.cli import dead_letters

    source = _source(broker, admin_url, region, report_shards)
    selection = dead_letters.Selection(vpc, host, kind, id_)
    end(dead_letters.list_(source, dpm, selection, outstanding, Output(json)))


def replay_letters(
    vpc: OfVpc = "",
    host: OfHost = "",
    kind: OfKind = "",
    id_: OfId = "",
    everything: Annotated[bool, typer.Option("--all", help="All that are outstanding.")] = False,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    quorum: Quorum = 1.0,
    broker: BrokerUrl = None,
    admin_url: AdminUrl = "",
    region: Region = "default",
    report_shards: Shards = 4,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Publish again what is outstanding, as one change: hosts that refused it try again."""
    from goalstate.cli import convergence, dead_letters

    source = _source(broker, admin_url, region, report_shards)
    selection = dead_letters.Selection(vpc, host, kind, id_)
    wanted = None
    if wait:
        wanted = convergence.request(everything=True, quorum=quorum, timeout_s=timeout)
    end(dead_letters.replay(source, dpm, selection, everything, wanted, Output(json)))


def _source(broker: str | None, admin_url: str, region: str, shards: int) -> Source:
    from goalstate.cli.dead_letters import Source
    from goalstate.gs.topics import Topics

    return Source(broker, admin_url, Topics(f"persistent://goalstate/{region}", shards))
