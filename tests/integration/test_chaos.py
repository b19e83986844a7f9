"""Every part of a region is killed under load, and nothing that was acknowledged is lost.

How long anything takes is not judged, but for the bounds of the run; a run lasts until its planned
faults have happened. The seeds are such that much happens in a short time: every part is killed,
then connections are cut, reset and, beside Apache Pulsar, slow. `make chaos` is a long run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from goalstate.bus import apache
from goalstate.bus.errors import BrokerFailed, BrokerNotFound
from goalstate.scale.chaos.plan import KILLS
from tests.integration.processes import command, environment, until

#: Seconds for one run, with all that it starts and compares: a bound, for a loaded machine.
BOUND = 800.0
pytestmark = pytest.mark.timeout(BOUND + 100)
SMALL = ("--hosts", "12", "--ports", "120", "--rate", "15", "--agents", "2")


def chaos(directory: Path, *arguments: object) -> dict[str, Any]:
    """Play a run; gives its result. What went wrong is in the assertion."""
    done = subprocess.run(
        command("chaos", *SMALL, *arguments, "--directory", directory, "--json"),
        capture_output=True,
        env=environment(),
        timeout=BOUND,
        check=False,
    )
    assert done.stdout, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    assert found.get("findings") == [], found
    assert done.returncode == 0
    return found


def check(found: dict[str, Any]) -> None:
    assert {fault: found["faults"].get(fault, 0) >= 1 for fault in KILLS} == dict.fromkeys(
        KILLS, True
    )
    assert set(found["laws"].values()) == {0}
    assert found["hosts_compared"] == 12
    assert found["accepted"] > 100
    assert found["waits"]["converged"] > 0
    assert found["waits"]["hosts asked"] > 0


def test_nothing_is_lost_on_the_embedded_broker(tmp_path: Path) -> None:
    found = chaos(tmp_path, "--broker", "embedded", "--seed", 599, "--minutes", 0.3)
    check(found)
    lines = (tmp_path / "transcript.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    assert events[0]["event"] == "begun"
    assert sum(event["event"] == "fault" for event in events) == sum(found["faults"].values())


def test_nothing_is_lost_on_apache_pulsar(tmp_path: Path) -> None:
    """The run starts, and kills, a broker of its own."""
    try:
        apache.find_installation(lambda text: None)
    except (BrokerNotFound, BrokerFailed) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Apache Pulsar here: {error}")
    check(chaos(tmp_path, "--broker", "apache", "--seed", 152, "--minutes", 0.64))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_no_process(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        command("chaos", *SMALL, "--broker", "embedded", "--directory", tmp_path),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        transcript = tmp_path / "transcript.jsonl"
        until(lambda: transcript.exists() and "mended" in transcript.read_text(), "a fault")
        process.send_signal(number)
        assert process.wait(BOUND) == 130
    finally:
        process.kill()
        process.wait()
    pids = [int(path.read_text("ascii")) for path in tmp_path.rglob("*.pid")]
    assert len(pids) >= 5
    assert [pid for pid in pids if _runs(pid, tmp_path)] == []


def _runs(pid: int, directory: Path) -> bool:
    """Is there a process of that id, and is it one of the run's?"""
    try:
        os.kill(pid, 0)
        return str(directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
