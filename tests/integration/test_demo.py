"""The demo, as a user runs it: it ends well, finds no difference, and leaves no process behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from goalstate.bus.brokers import Broker

SMALL = ["--hosts", "20", "--vpcs", "1x60,3x20,3x5", "--json"]
STEPS = ["created", "VM moved", "security revoked", "VPC deleted"]


def run_demo(
    tmp_path: Path, *arguments: str, **environment: str
) -> tuple[dict[str, object], set[int]]:
    """The result, and the processes of the run that are still there. Bounded by 120 s."""
    # All that the demo starts inherits this: so its processes can be told from others.
    sign = f"GOALSTATE_DEMO_TEST={tmp_path}"
    name, _, value = sign.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "goalstate.cli", "demo", *SMALL, *arguments],
        env={**os.environ, name: value, "TMPDIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and sign.encode() in (entry / "environ").read_bytes():
                left.add(int(entry.name))
        except OSError:
            continue  # it ended meanwhile
    return json.loads(done.stdout), left


def check(result: dict[str, object], left: set[int], tmp_path: Path) -> None:
    steps = result["steps"]
    assert isinstance(steps, list)
    assert all(name in step["step"] for name, step in zip(STEPS, steps, strict=True))
    assert all(step["converged"] for step in steps)
    found = result["check"]
    assert isinstance(found, dict)
    assert (found["differences_total"], found["hosts_compared"]) == (0, 20)
    assert found["unknown_hosts"] == {}
    assert found["resources"] > 20 * 60
    assert left == set(), "processes of the demo are still there"
    assert list(tmp_path.iterdir()) == [], "files of the demo are still there"


def test_demo_on_the_embedded_broker(tmp_path: Path) -> None:
    check(*run_demo(tmp_path, "--broker", "embedded"), tmp_path)


def test_demo_on_apache_pulsar(tmp_path: Path, apache_broker: Broker) -> None:
    result, left = run_demo(
        tmp_path,
        "--broker",
        apache_broker.url,
        GOALSTATE_BROKER_ADMIN_URL=apache_broker.admin_url,
    )
    check(result, left, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--broker", "kafka"], "is no broker"),
        (["--vpcs", "many"], "is no VPCs x ports"),
        (["--hosts", "0"], "hosts"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(arguments: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "goalstate.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
