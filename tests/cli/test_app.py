"""The command as a whole: help, errors, exit codes, what it costs to start."""

from __future__ import annotations

import subprocess
import sys
from typing import NoReturn

import pytest

from goalstate import __version__
from goalstate.cli import plain, views
from goalstate.cli.errors import ExitCode
from goalstate.gs.pb.alcor.schema import resources_pb2
from tests.cli.conftest import Run

COMMANDS = (
    ("demo",),
    ("apply",),
    ("delete",),
    ("wait",),
    ("watch",),
    ("status",),
    ("diff",),
    ("trace",),
    ("decode",),
    ("convert",),
    ("generate",),
    ("simulate-faults",),
    ("broker", "start"),
    ("dpm", "serve"),
    ("agent", "run"),
    ("show", "vpc"),
    ("show", "host"),
    ("show", "port"),
    ("load", "run"),
    ("load", "show"),
    ("load", "report"),
    ("load", "compare"),
    ("load", "sweep"),
    ("load", "workloads"),
    ("load", "schema"),
)
PRINTING = [command for command in COMMANDS if command[0] not in ("dpm", "agent")]


def test_help_has_every_command_and_every_exit_code(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    assert {command[0] for command in COMMANDS} <= set(ran.out.split())
    for code in ExitCode:
        assert f" {int(code)} " in " ".join(ran.out.split())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(run: Run, command: tuple[str, ...]) -> None:
    ran = run(*command, "--help")
    assert ran.code == 0
    assert "Usage" in ran.out


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_everything_that_prints_can_print_json(run: Run, command: tuple[str, ...]) -> None:
    assert "--json" in run(*command, "--help").out


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").out == f"goalstate {__version__}\n"


def test_a_mistyped_command_or_option_is_a_usage_error(run: Run) -> None:
    assert run("aply", "x").code == 2
    assert run("wait", "--vcp", "v").code == 2
    assert run("broker").code == 2
    assert run("status", "--dpm").code == 2


def fail(*arguments: object) -> NoReturn:
    raise RuntimeError("a [bold]secret[/bold] state")


def test_what_is_not_installed_is_no_defect(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> NoReturn:
        raise ModuleNotFoundError("No module named 'hdrh'", name="hdrh.histogram")

    monkeypatch.setattr(views, "status", missing)
    ran = run("status")
    assert ran.code == 2
    assert "hdrh is not installed" in ran.err
    assert "goalstate[load]" in ran.err


def test_a_defect_is_one_line_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "status", fail)
    ran = run("status", "--json")
    assert ran.code == 70
    assert ran.document["error"] == "unexpected RuntimeError: a [bold]secret[/bold] state"
    assert "GOALSTATE_DEBUG=1" in ran.err
    assert "Traceback" not in ran.err


def test_a_defect_has_a_traceback_when_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "status", fail)
    monkeypatch.setenv("GOALSTATE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="secret"):
        run("status")


def test_an_interrupt_has_its_own_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(views, "status", interrupted)
    ran = run("status")
    assert ran.code == 130
    assert "interrupted" in ran.err


def test_an_error_as_json_is_on_stdout_and_its_text_on_stderr(run: Run) -> None:
    ran = run("status", "--json", "--dpm", "127.0.0.1:1")
    assert ran.code == 4
    assert ran.document == {
        "error": "no DPM answers at 127.0.0.1:1",
        "next_step": "start one with `goalstate dpm serve`, or give its address with --dpm "
        "(GOALSTATE_DPM)",
        "exit_code": 4,
        "detail": [],
    }
    assert "no DPM answers" in ran.err
    assert run("status", "--dpm", "127.0.0.1:1").out == ""


def test_help_waits_for_none_of_the_large_libraries() -> None:
    code = """
import sys
from typer.testing import CliRunner
from goalstate.cli.app import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
large = {"grpc", "google", "yaml", "pydantic", "pulsar", "structlog", "asyncio", "xxhash"}
print(sorted(large & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stderr


def test_the_module_is_the_command_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "goalstate.cli", "wait"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "exactly one of --vpc" in done.stderr


# --- messages as plain values ---


def test_plain_values_are_what_a_script_wants_to_read() -> None:
    subnet = resources_pb2.SubnetConfiguration(id="s", tunnel_id=1 << 40)
    values = plain.plain(subnet)
    assert values["tunnel_id"] == 1 << 40
    assert values["network_type"] == "vxlan"
    assert values["gateway"] is None
    assert values["dns_entry_list"] == []
    assert set(values) == {field.name for field in subnet.DESCRIPTOR.fields}


def test_a_brief_message_leaves_out_what_is_empty_and_what_is_told_elsewhere() -> None:
    port = resources_pb2.PortConfiguration(id="p", mac_address="m", admin_state_up=True)
    port.fixed_ips.add(subnet_id="s", ip_address="10.0.0.1")
    told = frozenset({"id", "update_type"})
    assert plain.brief(port, told, frozenset({"subnet_id"})) == (
        "mac_address=m admin_state_up=true fixed_ips=[{ip_address=10.0.0.1}]"
    )


def test_an_enum_number_that_no_name_has_stays_a_number() -> None:
    router = resources_pb2.VpcState()
    router.MergeFromString(b"\x08\x63")
    assert plain.plain(router)["operation_type"] == 99
