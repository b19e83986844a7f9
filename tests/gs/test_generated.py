"""The generated code is what the .proto files give, and `generate.py --check` notices if not."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from goalstate.gs.pb.alcor.schema import goalstate_pb2

ROOT = Path(__file__).resolve().parents[2]
PB = Path("goalstate/gs/pb")


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(root / "proto" / "generate.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and what was generated, elsewhere, to be damaged."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PB, tmp_path / PB, ignore=ignore)
    return tmp_path


def test_the_checked_in_code_is_fresh() -> None:
    result = generate(ROOT, "--check")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_output_does_not_depend_on_the_place(copy: Path) -> None:
    shutil.rmtree(copy / PB)
    assert generate(copy).returncode == 0
    assert generate(copy, "--check").returncode == 0
    for path in (copy / PB).rglob("*.py*"):
        assert path.read_bytes() == (ROOT / path.relative_to(copy)).read_bytes()
        assert str(copy) not in path.read_text("utf-8")


def test_stale_missing_and_leftover_files_are_named_and_repaired(copy: Path) -> None:
    source = copy / "proto/alcor/schema/goalstate.proto"
    source.write_text(source.read_text("utf-8") + "\nmessage Another {}\n", "utf-8")
    (copy / PB / "alcor/schema/resources_pb2.pyi").unlink()
    (copy / PB / "alcor/schema/gone_pb2.py").write_text("", "utf-8")

    check = generate(copy, "--check")

    assert check.returncode == 1
    named = [line for line in check.stderr.splitlines() if line.startswith(PB.as_posix())]
    assert named == [
        f"{PB.as_posix()}/alcor/schema/{line}"
        for line in (
            "goalstate_pb2.py: stale",
            "goalstate_pb2.pyi: stale",
            "gone_pb2.py: left over",
            "resources_pb2.pyi: missing",
        )
    ]
    assert "make proto" in check.stderr
    assert generate(copy).returncode == 0
    assert generate(copy, "--check").returncode == 0


def test_a_broken_source_fails_and_changes_nothing(copy: Path) -> None:
    before = {p: p.read_bytes() for p in (copy / PB).rglob("*.py*")}
    (copy / "proto/alcor/schema/goalstate.proto").write_text("no proto", "utf-8")
    assert generate(copy).returncode != 0
    assert {p: p.read_bytes() for p in (copy / PB).rglob("*.py*")} == before


def test_generated_classes_know_the_module_that_they_are_in() -> None:
    state = goalstate_pb2.GoalState(format_version=101)
    assert pickle.loads(pickle.dumps(state)) == state
