"""The plugin's options, and that only the plugin needs pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.testkit.test_documents import run_pytest

USES_A_BROKER = "def test_it(goalstate_region): pass\n"
#: Option → what is said, after the name of the option.
WRONG = {
    "--goalstate-broker=rabbit": "'rabbit' is none: write auto, apache, docker, embedded",
    "--goalstate-broker=pulsar://127.0.0.1:1": "nobody answers at pulsar://127.0.0.1:1",
    "--goalstate-timeout=soon": "'soon' is no number of seconds",
}


@pytest.mark.parametrize("option", WRONG)
def test_an_option_that_cannot_be_had_fails_with_one_line(option: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(USES_A_BROKER, "utf-8")
    done = run_pytest(tmp_path, "-p", "goalstate.testkit", option)
    assert done.returncode == 1
    lines = [line for line in done.stdout.splitlines() if not line.startswith("ERROR")]
    [said] = [line for line in lines if WRONG[option] in line]
    assert option.partition("=")[0] in said
    assert "Traceback" not in done.stdout


def test_a_project_may_set_its_broker_once(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(USES_A_BROKER, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\ngoalstate_broker = rabbit\n", "utf-8")
    done = run_pytest(tmp_path, "-p", "goalstate.testkit")
    assert "'rabbit' is none" in done.stdout
    done = run_pytest(tmp_path, "-p", "goalstate.testkit", "--goalstate-broker", "embedded")
    assert done.returncode == 0, done.stdout


def test_a_test_module_may_enable_it_too(tmp_path: Path) -> None:
    enabled = 'pytest_plugins = ["goalstate.testkit"]\n' + USES_A_BROKER
    (tmp_path / "test_it.py").write_text(enabled, "utf-8")
    assert run_pytest(tmp_path, "-W", "error").returncode == 0


def test_the_kit_is_importable_where_there_is_no_pytest() -> None:
    program = "import sys; sys.modules['pytest'] = None; import goalstate.testkit as kit; kit.Dpm"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
