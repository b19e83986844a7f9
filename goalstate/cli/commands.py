"""The commands that ask and change a running region, or work on files: options and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from goalstate.cli.options import (
    DPM,
    AdminUrl,
    All,
    BrokerUrl,
    Change,
    Dpm,
    Json,
    Quorum,
    Shard,
    Stragglers,
    Timeout,
    Vpc,
    Wait,
    end,
)
from goalstate.cli.output import Output

# What a command needs is imported where it runs: `--help` must not wait for gRPC.
# ruff: noqa: PLC0415


# --- intent ---


def apply(
    files: Annotated[
        list[str],
        typer.Argument(help="YAML (also several documents), JSON, or a .pb Intent; - is stdin."),
    ],
    wait: Wait = False,
    timeout: Timeout = 60.0,
    quorum: Quorum = 1.0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Send what comes after a refused document, too.")
    ] = False,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Send intents; each document is one change, accepted or refused whole.

    The first refused document ends it: what comes after it often builds on it.
    """
    from goalstate.cli import changes

    wanted = _wanted(timeout, quorum) if wait else None
    end(changes.apply(dpm, files, wanted, Output(json), keep_going=keep_going))


def delete(
    kind: Annotated[str, typer.Argument(help="host, vpc, subnet, security-group, port, …")],
    id_: Annotated[str, typer.Argument(metavar="ID")],
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Also delete everything that refers to it.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = 60.0,
    quorum: Quorum = 1.0,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Delete an object."""
    from goalstate.cli import changes

    wanted = _wanted(timeout, quorum) if wait else None
    end(changes.delete(dpm, kind, id_, cascade, wanted, Output(json)))


def generate(
    hosts: Annotated[int, typer.Option(min=1, help="Hosts of the region.")] = 200,
    vpcs: Annotated[str, typer.Option(help="VPCs × ports each.")] = "5x1000,45x100,50x10",
    seed: Annotated[int, typer.Option(help="What is random follows from it.")] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, or a directory with --format pb.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="yaml or pb.")] = "yaml",
    host_prefix: Annotated[str, typer.Option(help="What host names begin with.")] = "host",
    group_size: Annotated[int, typer.Option(min=1, help="Hosts of a group.")] = 40,
    channel: Annotated[str, typer.Option(help="Of all VPCs: auto, pulsar or session.")] = "auto",
    json: Json = False,
) -> None:
    """Make up a region: hosts, a mix of VPCs, ports, security groups, routers."""
    from goalstate.cli import generation

    end(
        generation.generate(
            hosts,
            vpcs,
            seed,
            output,
            form,
            Output(json),
            host_prefix=host_prefix,
            group_size=group_size,
            channel=channel,
        )
    )


# --- convergence ---
def wait(
    vpc: Vpc = "",
    change: Change = 0,
    shard: Shard = None,
    all_: All = False,
    quorum: Quorum = 1.0,
    timeout: Timeout = 60.0,
    stragglers: Stragglers = 20,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Wait until the hosts concerned have applied it (exit 0) or the time is over (exit 3)."""
    from goalstate.cli import convergence

    wanted = convergence.request(
        vpc=vpc,
        change=change,
        shard=shard,
        everything=all_,
        quorum=quorum,
        timeout_s=timeout,
        stragglers=stragglers,
    )
    end(convergence.wait(dpm, wanted, Output(json)))


def watch(
    vpc: Vpc = "",
    change: Change = 0,
    shard: Shard = None,
    all_: All = False,
    quorum: Quorum = 1.0,
    timeout: Timeout = 60.0,
    stragglers: Stragglers = 20,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Like `wait`, and show every step on the way."""
    from goalstate.cli import convergence

    wanted = convergence.request(
        vpc=vpc,
        change=change,
        shard=shard,
        everything=all_,
        quorum=quorum,
        timeout_s=timeout,
        stragglers=stragglers,
    )
    end(convergence.watch(dpm, wanted, Output(json)))


# --- what is ---


def status(
    vpc: Annotated[str, typer.Option(help="Only this VPC's streams and hosts.")] = "",
    hosts: Annotated[bool, typer.Option("--hosts", help="List the hosts.")] = False,
    exceptions: Annotated[
        bool, typer.Option("--exceptions", help="List what is not applied where, and why.")
    ] = False,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """The DPM, its objects, streams and hosts."""
    from goalstate.cli import views

    end(views.status(dpm, vpc, hosts, views.LISTED if exceptions else 0, Output(json)))


def show_vpc(
    id_: Annotated[str, typer.Argument(metavar="ID")], dpm: Dpm = DPM, json: Json = False
) -> None:
    """A VPC's objects and the heads of its streams."""
    from goalstate.cli import views

    end(views.show_vpc(dpm, id_, Output(json)))


def show_host(
    id_: Annotated[str, typer.Argument(metavar="ID")], dpm: Dpm = DPM, json: Json = False
) -> None:
    """What a host has applied: ports, streams, exceptions."""
    from goalstate.cli import views

    end(views.show_host(dpm, id_, Output(json)))


def show_port(
    id_: Annotated[str, typer.Argument(metavar="ID")], dpm: Dpm = DPM, json: Json = False
) -> None:
    """A port's intent, its host, and who has it as a neighbor."""
    from goalstate.cli import views

    end(views.show_port(dpm, id_, Output(json)))


def diff(
    vpc: Annotated[str, typer.Option(help="Only hosts with ports in this VPC.")] = "",
    host: Annotated[str, typer.Option(help="Only this host.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="So many differences are printed.")] = 100,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Compare what the hosts hold with what intent says, computed independently of the DPM."""
    from goalstate.cli import comparison

    end(comparison.diff(dpm, vpc, host, limit, Output(json)))


def trace(
    source: Annotated[str, typer.Argument(metavar="SRC-PORT", help="Id of the sending port.")],
    destination: Annotated[str, typer.Argument(metavar="DST-PORT", help="Id of the receiver.")],
    protocol: Annotated[str, typer.Option(help="tcp, udp or icmp (the default).")] = "",
    dport: Annotated[
        int, typer.Option(min=0, max=65535, help="Destination port of TCP or UDP.")
    ] = 0,
    ip_version: Annotated[
        int | None, typer.Option(min=4, max=6, help="4 or 6, where a port has both.")
    ] = None,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Would a packet be delivered by what the hosts hold now? If not: what is missing where?"""
    from goalstate.cli import tracing

    out = Output(json)
    end(
        tracing.trace(
            dpm, source, destination, out, protocol=protocol, dport=dport, version=ip_version
        )
    )


# --- messages ---


def decode(
    files: Annotated[
        list[str] | None, typer.Argument(help="Serialized messages, one per file; - is stdin.")
    ] = None,
    topic: Annotated[str, typer.Option(help="Read this topic instead.")] = "",
    stream: Annotated[str, typer.Option(help="Read this stream: vpc/ID, sg/ID, inbox/ID.")] = "",
    broker: BrokerUrl = None,
    admin_url: AdminUrl = "",
    region: Annotated[str, typer.Option(help="Region of the stream.")] = "default",
    shards: Annotated[
        int, typer.Option(min=1, help="Into so many the region is divided: finds a VPC's stream.")
    ] = 1,
    shard: Annotated[
        int, typer.Option(min=0, help="Of which shard: of an inbox or a security group.")
    ] = 0,
    limit: Annotated[int, typer.Option(min=0, help="At most so many messages; 0: all.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Protobuf text format.")] = False,
    json: Json = False,
) -> None:
    """Show goal-state messages (v1 or v2, found from the bytes), with their envelopes."""
    from goalstate.cli import messages
    from goalstate.gs.topics import Topics

    end(
        messages.decode_command(
            files or [],
            topic,
            stream,
            broker,
            admin_url,
            Topics(f"persistent://goalstate/{region}", shard=shard, shards=shards),
            limit,
            follow,
            text,
            Output(json),
        )
    )


def convert(
    file: Annotated[str, typer.Argument(help="A message, binary or JSON; - is stdin.")],
    to: Annotated[str, typer.Option(help="v1 or v2.")],
    host: Annotated[str, typer.Option(help="The host that v1 is for.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file to write.")] = None,
    json: Json = False,
) -> None:
    """Convert a message between the formats; binary, or JSON with --json."""
    from goalstate.cli import conversion

    end(conversion.convert(file, to, host, output, Output(json)))


# --- simulation ---


def simulate_faults(
    seed: Annotated[int, typer.Option(help="Of the first run; each next one has the next.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="So many, up to the first that fails.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the runs.")] = 1,
    only: Annotated[str, typer.Option(help="Steps of the plan, as 1,4,7, and no others.")] = "",
    tries: Annotated[
        int, typer.Option(min=0, help="Runs to find out which steps a failure needs.")
    ] = 150,
    transcript: Annotated[
        Path | None, typer.Option(help="Write what happened in the last run, step by step.")
    ] = None,
    json: Json = False,
) -> None:
    """Play small regions under faults in virtual time, and check what must hold in each.

    The publishers, agents and waits are the real ones; the broker is the memory broker. A run
    follows from its seed alone. A failing one is made smaller, told step by step, and ends it.
    """
    from goalstate.cli import simulation

    end(simulation.simulate_faults(seed, runs, only, tries, transcript, Output(json), jobs=jobs))


def chaos(
    seed: Annotated[int, typer.Option(help="Of the plan of faults, and of the changes.")] = 1,
    minutes: Annotated[float, typer.Option(min=0.1, max=120, help="How long things fail.")] = 10,
    hosts: Annotated[int, typer.Option(min=2, help="Hosts of the fleet.")] = 500,
    ports: Annotated[int, typer.Option(min=20, help="Ports, about.")] = 20_000,
    rate: Annotated[float, typer.Option(min=0.1, help="Accepted changes a second.")] = 100,
    broker: Annotated[str, typer.Option(help="apache or embedded; it is started.")] = "apache",
    agents: Annotated[int, typer.Option(min=1, help="Agent processes.")] = 5,
    directory: Annotated[
        Path | None, typer.Option(help="For transcript and logs; stays. Else a temporary one.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the result here, as JSON.")] = None,
    json: Json = False,
) -> None:
    """Kill, stop and cut off each part of a region under load, and check that nothing is lost.

    Broker, two DPMs and the agents run as processes, each behind a proxy. At the end every host is
    compared with what the client was told; a temporary directory stays if anything did not hold.
    """
    from goalstate.cli import chaos as room
    from goalstate.cli.servers import explained

    settings = {
        "seed": seed,
        "seconds": 60 * minutes,
        "hosts": hosts,
        "ports": ports,
        "rate": rate,
        "broker": broker,
        "agents": agents,
    }
    with explained(broker):
        end(room.chaos(settings, directory, report, Output(json)))


def _wanted(timeout: float, quorum: float) -> Any:
    from goalstate.cli import convergence

    return convergence.request(everything=True, quorum=quorum, timeout_s=timeout)
