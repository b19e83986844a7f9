"""The commands: their names, options and help; each calls its own module, imported when it runs.

Laws: a user's mistake ends with one message that says what to do next, and with an exit code of
`errors.ExitCode`; never with a traceback. With `--json`, an error is a JSON document on stdout too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from goalstate.cli.errors import EXIT_CODES, CommandError, ExitCode
from goalstate.cli.output import Output

# Modules of commands are imported where a command runs: `--help` must not wait for gRPC.
# ruff: noqa: PLC0415

_JSON = "goalstate.json"


class Commands(TyperGroup):
    """The outermost group: every error of a command passes here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            code = _report(error, Output(ctx.meta.get(_JSON, False)))
        except KeyboardInterrupt:
            Output(False).note("interrupted")
            code = ExitCode.INTERRUPTED
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("GOALSTATE_DEBUG"):
                raise
            code = _report(
                CommandError(
                    f"unexpected {type(error).__name__}: {error}",
                    "this is a defect; GOALSTATE_DEBUG=1 shows the traceback",
                ),
                Output(ctx.meta.get(_JSON, False)),
            )
        raise typer.Exit(int(code))


def _report(error: CommandError, out: Output) -> ExitCode:
    out.result(
        {
            "error": error.message,
            "next_step": error.next_step,
            "exit_code": int(error.code),
            "detail": list(error.detail),
        }
    )
    out.note(f"goalstate: {error.message}", style="red")
    for item in error.detail:
        out.note("  " + " ".join(f"{value}" for value in item.values()))
    if error.next_step:
        out.note(f"  {error.next_step}")
    return error.code


def _as_json(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[_JSON] = value
    return value


def _version(value: bool) -> None:
    if value:
        from goalstate import __version__

        typer.echo(f"goalstate {__version__}")
        raise typer.Exit


def _group(help_: str, **more: Any) -> typer.Typer:
    return typer.Typer(help=help_, no_args_is_help=True, pretty_exceptions_enable=False, **more)


app = _group(
    "Distributes the goal state of a cloud network to its hosts, and shows what they hold.",
    cls=Commands,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
broker_app = _group("Brokers: find one, or start one.")
dpm_app = _group("The data plane manager: the publisher.")
agent_app = _group("Host agents.")
show_app = _group("One VPC, host or port: intent, streams, and what hosts hold.")
for name, group in {
    "broker": broker_app,
    "dpm": dpm_app,
    "agent": agent_app,
    "show": show_app,
}.items():
    app.add_typer(group, name=name)

Json = Annotated[
    bool, typer.Option("--json", callback=_as_json, help="Print JSON, one document on a line.")
]
Dpm = Annotated[
    str, typer.Option("--dpm", envvar="GOALSTATE_DPM", help="Where the DPM answers, HOST:PORT.")
]
DPM = "127.0.0.1:50151"
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker", envvar="GOALSTATE_BROKER_URL", help="The broker, pulsar://HOST:PORT."),
]
ReadyFile = Annotated[
    Path | None, typer.Option(help="Write the addresses here, as JSON, once it serves.")
]
Quorum = Annotated[float, typer.Option(help="Share of the hosts that must have applied it.")]
Timeout = Annotated[float, typer.Option(help="Seconds; 0 asks how things are now.")]
Stragglers = Annotated[int, typer.Option(min=1, help="So many stragglers are named.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until the hosts have applied it.")]
Kind = Annotated[str, typer.Option(help="auto, apache, docker or embedded.")]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


# --- services ---


@app.command()
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

    _end(servers.demo(broker, hosts, vpcs, seed, keep, Output(json)))


@broker_app.command("start")
def broker_start(
    kind: Kind = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(help="Keep the broker's data here. Default: a temporary one.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(envvar="GOALSTATE_BROKER_URL", help="Use the broker that runs there."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port for clients; 0: any free one.")
    ] = 0,
    ready_file: ReadyFile = None,
    json: Json = False,
) -> None:
    """Find or start a broker, and keep it until Ctrl-C or SIGTERM."""
    from goalstate.cli import servers

    _end(servers.broker(kind, url, data_dir, port, ready_file, Output(json)))


@dpm_app.command("serve")
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
    config: Annotated[Path | None, typer.Option(help="All settings, as YAML.")] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Run the publisher until Ctrl-C or SIGTERM."""
    from goalstate.cli import servers

    _end(
        servers.dpm(
            config,
            broker=broker,
            admin_url=admin_url,
            listen=listen,
            metrics_port=metrics_port,
            region=region,
            ready_file=ready_file,
        )
    )


@agent_app.command("run")
def agent_run(
    broker: BrokerUrl = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="So many hosts.")] = None,
    first: Annotated[int | None, typer.Option(min=0, help="Number of the first one.")] = None,
    host_prefix: Annotated[str | None, typer.Option(help="What host names begin with.")] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Hosts of a group.")] = None,
    region: Annotated[str | None, typer.Option(help="Name of the region.")] = None,
    data_plane: Annotated[str | None, typer.Option(help="memory or modelled.")] = None,
    counting_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the hosts that check and count, undecoded."),
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
    config: Annotated[Path | None, typer.Option(help="All settings, as YAML.")] = None,
    ready_file: ReadyFile = None,
) -> None:
    """Play hosts, each with its own readers and state, until Ctrl-C or SIGTERM."""
    from goalstate.cli import servers

    _end(
        servers.agent(
            config,
            broker=broker,
            hosts=hosts,
            first=first,
            host_prefix=host_prefix,
            group_size=group_size,
            region=region,
            data_plane=data_plane,
            counting_share=counting_share,
            inspect=inspect,
            metrics_port=metrics_port,
            register=register,
            ready_file=ready_file,
        )
    )


# --- intent ---


@app.command()
def apply(
    files: Annotated[
        list[str],
        typer.Argument(help="YAML (also several documents), JSON, or a .pb Intent; - is stdin."),
    ],
    wait: Wait = False,
    timeout: Timeout = 60.0,
    quorum: Quorum = 1.0,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Send intents; each document is one change, accepted or refused whole."""
    from goalstate.cli import changes

    wanted = _wanted(timeout, quorum) if wait else None
    _end(changes.apply(dpm, files, wanted, Output(json)))


@app.command()
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
    _end(changes.delete(dpm, kind, id_, cascade, wanted, Output(json)))


@app.command()
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
    json: Json = False,
) -> None:
    """Make up a region: hosts, a mix of VPCs, ports, security groups, routers."""
    from goalstate.cli import generation

    _end(
        generation.generate(
            hosts,
            vpcs,
            seed,
            output,
            form,
            Output(json),
            host_prefix=host_prefix,
            group_size=group_size,
        )
    )


# --- convergence ---


Vpc = Annotated[str, typer.Option(help="Everything published for this VPC so far.")]
Change = Annotated[int, typer.Option(min=0, help="This change, wherever it went.")]
All = Annotated[bool, typer.Option("--all", help="Everything published so far.")]


@app.command()
def wait(
    vpc: Vpc = "",
    change: Change = 0,
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
        everything=all_,
        quorum=quorum,
        timeout_s=timeout,
        stragglers=stragglers,
    )
    _end(convergence.wait(dpm, wanted, Output(json)))


@app.command()
def watch(
    vpc: Vpc = "",
    change: Change = 0,
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
        everything=all_,
        quorum=quorum,
        timeout_s=timeout,
        stragglers=stragglers,
    )
    _end(convergence.watch(dpm, wanted, Output(json)))


# --- what is ---


@app.command()
def status(
    vpc: Annotated[str, typer.Option(help="Only this VPC's streams and hosts.")] = "",
    hosts: Annotated[bool, typer.Option("--hosts", help="List the hosts.")] = False,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """The DPM, its objects, streams and hosts."""
    from goalstate.cli import views

    _end(views.status(dpm, vpc, hosts, Output(json)))


@show_app.command("vpc")
def show_vpc(
    id_: Annotated[str, typer.Argument(metavar="ID")], dpm: Dpm = DPM, json: Json = False
) -> None:
    """A VPC's objects and the heads of its streams."""
    from goalstate.cli import views

    _end(views.show_vpc(dpm, id_, Output(json)))


@show_app.command("host")
def show_host(
    id_: Annotated[str, typer.Argument(metavar="ID")], dpm: Dpm = DPM, json: Json = False
) -> None:
    """What a host has applied: ports, streams, exceptions."""
    from goalstate.cli import views

    _end(views.show_host(dpm, id_, Output(json)))


@show_app.command("port")
def show_port(
    id_: Annotated[str, typer.Argument(metavar="ID")], dpm: Dpm = DPM, json: Json = False
) -> None:
    """A port's intent, its host, and who has it as a neighbor."""
    from goalstate.cli import views

    _end(views.show_port(dpm, id_, Output(json)))


@app.command()
def diff(
    vpc: Annotated[str, typer.Option(help="Only hosts with ports in this VPC.")] = "",
    host: Annotated[str, typer.Option(help="Only this host.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="So many differences are printed.")] = 100,
    dpm: Dpm = DPM,
    json: Json = False,
) -> None:
    """Compare what the hosts hold with what intent says, computed independently of the DPM."""
    from goalstate.cli import comparison

    _end(comparison.diff(dpm, vpc, host, limit, Output(json)))


@app.command()
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
    _end(
        tracing.trace(
            dpm, source, destination, out, protocol=protocol, dport=dport, version=ip_version
        )
    )


# --- messages ---


@app.command()
def decode(
    files: Annotated[
        list[str] | None, typer.Argument(help="Serialized messages, one per file; - is stdin.")
    ] = None,
    topic: Annotated[str, typer.Option(help="Read this topic instead.")] = "",
    stream: Annotated[str, typer.Option(help="Read this stream: vpc/ID, sg/ID, inbox/ID.")] = "",
    broker: BrokerUrl = None,
    region: Annotated[str, typer.Option(help="Region of the stream.")] = "default",
    limit: Annotated[int, typer.Option(min=0, help="At most so many messages; 0: all.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Protobuf text format.")] = False,
    json: Json = False,
) -> None:
    """Show goal-state messages (v1 or v2, found from the bytes), with their envelopes."""
    from goalstate.cli import messages

    _end(
        messages.decode_command(
            files or [], topic, stream, broker, region, limit, follow, text, Output(json)
        )
    )


@app.command()
def convert(
    file: Annotated[str, typer.Argument(help="A message, binary or JSON; - is stdin.")],
    to: Annotated[str, typer.Option(help="v1 or v2.")],
    host: Annotated[str, typer.Option(help="The host that v1 is for.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file to write.")] = None,
    json: Json = False,
) -> None:
    """Convert a message between the formats; binary, or JSON with --json."""
    from goalstate.cli import conversion

    _end(conversion.convert(file, to, host, output, Output(json)))


def _wanted(timeout: float, quorum: float) -> Any:
    from goalstate.cli import convergence

    return convergence.request(everything=True, quorum=quorum, timeout_s=timeout)


def _end(code: int) -> None:
    if code:
        raise typer.Exit(int(code))
