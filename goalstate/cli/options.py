"""Options that several commands have, and how a command ends."""

from __future__ import annotations

from typing import Annotated

import typer

#: Where the command's context remembers that results are to be JSON, for errors.
JSON = "goalstate.json"
#: Where the DPM answers unless told otherwise.
DPM = "127.0.0.1:50151"


def _as_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[JSON] = value
    return value


Json = Annotated[
    bool, typer.Option("--json", callback=_as_json, help="Print JSON, one document on a line.")
]
Dpm = Annotated[
    str, typer.Option("--dpm", envvar="GOALSTATE_DPM", help="Where the DPM answers, HOST:PORT.")
]
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", envvar="GOALSTATE_BROKER_URL", help="The broker, pulsar://HOST:PORT."),
]
AdminUrl = Annotated[
    str,
    typer.Option(
        envvar="GOALSTATE_BROKER_ADMIN_URL",
        help="Pulsar's admin REST API, asked first: to read a topic that is not there makes it.",
    ),
]
Quorum = Annotated[float, typer.Option(help="Share of the hosts that must have applied it.")]
Timeout = Annotated[float, typer.Option(help="Seconds; 0 asks how things are now.")]
Stragglers = Annotated[int, typer.Option(min=1, help="So many stragglers are named.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the hosts have applied it.")]
Vpc = Annotated[str, typer.Option(help="Everything published for this VPC so far.")]
Change = Annotated[int, typer.Option(min=0, help="This change, wherever it went.")]
Shard = Annotated[
    int | None, typer.Option(min=0, help="Whose change it is, where the region is divided.")
]
All = Annotated[bool, typer.Option("--all", help="Everything published so far.")]


def end(code: int) -> None:
    """Ends a command with an exit code."""
    if code:
        raise typer.Exit(int(code))
