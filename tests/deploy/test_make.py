"""The Makefile says what it can do, and what is missing where it cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make as from a shell, also when these tests are run by make themselves."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_make_alone_lists_what_there_is() -> None:
    done = make()
    assert done.returncode == 0
    listed = set(re.findall(r"^  ([a-z]+)\s", done.stdout, re.MULTILINE))
    building = {"clean", "fmt", "help", "lint", "lock", "proto", "test"}
    assert listed == {"bench", "chaos", "demo", "fuzz", *building}


@pytest.mark.parametrize("command", ["false", "./no-such-python"])
def test_a_python_that_will_not_do_is_named_with_a_remedy(tmp_path: Path, command: str) -> None:
    done = make("run-environment", f"PYTHON={command}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode != 0
    assert f"no Python 3.11 or newer: {command} is" in done.stderr
    assert "make PYTHON=/path/to/python3.11" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_what_ci_runs_is_lint_and_then_test_without_leniency() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text("utf-8").splitlines()
    assert lines[-3:] == ["export CI=true", "make lint", "make test"]
