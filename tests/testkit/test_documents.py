"""What the documents of the test kit show is run as a reader would run it: by a pytest of its own.

Each is copied to an empty directory outside of the project, with the kit on the path and nothing of
the project's settings.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "goalstate" / "testkit" / "README.md"
#: Seconds for all tests of one of them.
BOUND = 280
#: Fixtures that must be shown.
FIXTURES = "broker region dpm dpm_settings agents expected topics publisher simulation".split()  # noqa: SIM905


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GOALSTATE", "PYTEST", "COV"))
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", *arguments],
        cwd=directory,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


def passed(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Names of the tests that passed; all must."""
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^PASSED \S+?::(\w+)", done.stdout, re.MULTILINE))


@pytest.fixture
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An example, copied to where nothing else is."""
    return Path(shutil.copytree(ROOT / "examples" / request.param, tmp_path / request.param))


def names(directory: Path) -> set[str]:
    """Tests that are written there."""
    text = "".join(file.read_text("utf-8") for file in directory.glob("test_*.py"))
    return set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("copied", ["own_agent", "own_publisher"], indirect=True)
def test_an_example_passes_its_own_tests(copied: Path) -> None:
    assert passed(run_pytest(copied)) == names(copied) != set()


#: Example, what is broken in it, the test that sees it, and what that says.
BROKEN = [
    (
        "own_agent",
        ("agent.py", "self.tables[kind].pop(id_, None)", "pass"),
        "test_it_finds_what_changed_while_it_was_dead",
        "port vm1: must not be there",
    ),
    (
        "own_agent",
        ("agent.py", "= entry.configuration\n", "= entry.configuration; self.spoil(entry)\n"),
        "test_it_converges_and_holds_what_it_must",
        "neighbor vm1: host_ip_address is 192.0.2.66, must be 192.0.2.1",
    ),
    (
        "own_publisher",
        ("publisher.py", "KINDS[key.kind][0] + 1", "KINDS[key.kind][0]"),
        "test_its_streams_keep_the_laws",
        "message 1 of 6 on vpc/blue (1/1) breaks the laws of a stream:",
    ),
]
_SPOIL = """
    def spoil(self, entry: Any) -> None:
        if hasattr(entry.configuration, "host_ip_address"):
            entry.configuration.host_ip_address = "192.0.2.66"


class Agent:"""


@pytest.mark.parametrize(
    ("copied", "broken", "name", "said"),
    BROKEN,
    indirect=["copied"],
    ids=["nothing is deleted", "a wrong entry", "a wrong digest"],
)
def test_a_broken_example_fails_and_says_what_is_wrong(
    copied: Path, broken: tuple[str, str, str], name: str, said: str
) -> None:
    file, right, wrong = broken
    text = (copied / file).read_text("utf-8")
    assert text.count(right) == 1
    text = text.replace(right, wrong).replace("\n\nclass Agent:", _SPOIL)
    (copied / file).write_text(text, "utf-8")
    done = run_pytest(copied, "-k", name, "--goalstate-timeout", "20")
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout
    # The reader sees the line of the test, and nothing of the kit's inside.
    assert "goalstate/testkit/" not in done.stdout


def test_what_the_readme_shows_is_true(tmp_path: Path) -> None:
    text = README.read_text("utf-8")
    enable, *blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "conftest.py").write_text(enable, "utf-8")
    (tmp_path / "test_readme.py").write_text("\n\n".join(blocks), "utf-8")
    assert passed(run_pytest(tmp_path)) == names(tmp_path) != set()
    for fixture in FIXTURES:
        assert f"goalstate_{fixture}" in text
