"""The `goalstate` command put together: groups, commands, and what happens to an error.

Laws: a user's mistake ends with one message that says what to do next, and with an exit code of
`errors.ExitCode`; never with a traceback. With `--json`, an error is a JSON document on stdout too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from goalstate.cli import commands, letter_commands, load_commands, service_commands
from goalstate.cli.errors import EXIT_CODES, CommandError, ExitCode, InputError
from goalstate.cli.options import JSON
from goalstate.cli.output import SHOWN, Output

# Modules of commands are imported where a command runs: `--help` must not wait for gRPC.
# ruff: noqa: PLC0415

#: Packages that only `load …` needs: the extra of that name brings them.
_OF_LOAD = frozenset(("hdrh", "plotly", "psutil"))


class Commands(TyperGroup):
    """The outermost group: every error of a command passes here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            code = _report(error, Output(ctx.meta.get(JSON, False)))
        except KeyboardInterrupt:
            Output(False).note("interrupted")
            code = ExitCode.INTERRUPTED
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("GOALSTATE_DEBUG"):
                raise
            code = _report(_unexpected(error), Output(ctx.meta.get(JSON, False)))
        raise typer.Exit(int(code))


def _unexpected(error: Exception) -> CommandError:
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        if missing in _OF_LOAD:
            return InputError(f"{missing} is not installed", "pip install 'goalstate[load]'")
    return CommandError(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect; GOALSTATE_DEBUG=1 shows the traceback",
    )


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
    for item in error.detail[:SHOWN]:
        out.note("  " + " ".join(f"{value}" for value in item.values() if value))
    if len(error.detail) > SHOWN:
        out.note(f"  … and {len(error.detail) - SHOWN} more (--json has all)")
    if error.next_step:
        out.note(f"  {error.next_step}")
    return error.code


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


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


_GROUPS: dict[str, tuple[str, dict[str, Callable[..., None]]]] = {
    "broker": (
        "Brokers: find one, or start one.",
        {"start": service_commands.broker_start},
    ),
    "dpm": (
        "The data plane manager: the publisher.",
        {"serve": service_commands.dpm_serve},
    ),
    "agent": (
        "Host agents, and proxies of agents that must be pushed to.",
        {"run": service_commands.agent_run, "proxy": service_commands.agent_proxy},
    ),
    "dead-letters": (
        "What data planes refused for good: list it, and have it published again.",
        {"list": letter_commands.list_letters, "replay": letter_commands.replay_letters},
    ),
    "load": (
        "Load on a region: workloads, what came of them, and comparisons.",
        {
            "run": load_commands.run,
            "worker": load_commands.worker,
            "show": load_commands.show,
            "report": load_commands.report,
            "compare": load_commands.compare,
            "sweep": load_commands.sweep,
            "workloads": load_commands.workloads,
            "schema": load_commands.schema,
        },
    ),
    "show": (
        "One VPC, host or port: intent, streams, and what hosts hold.",
        {
            "vpc": commands.show_vpc,
            "host": commands.show_host,
            "port": commands.show_port,
        },
    ),
}

#: In the order of the help.
for command in (
    service_commands.demo,
    commands.apply,
    commands.delete,
    commands.wait,
    commands.watch,
    commands.status,
    commands.diff,
    commands.trace,
    commands.decode,
    commands.convert,
    commands.generate,
    commands.simulate_faults,
    commands.chaos,
):
    app.command()(command)
for group, (title, members) in _GROUPS.items():
    typer_group = _group(title)
    for name, function in members.items():
        typer_group.command(name)(function)
    app.add_typer(typer_group, name=group)
