"""`goalstate load run` and `load worker` as users start them, on the embedded broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from goalstate.bus import brokers
from goalstate.scale.load import results
from goalstate.scale.load.stages import Stage

#: Seconds for a whole run: a bound, not a wait.
BOUND = 150.0
WORKLOAD = """
name: small
region: {hosts: 8, vpcs: 2x20, new_vpcs: 3x4}
fleet: {joining_hosts: 2, processes: 2}
generators: 2
callers: 8
settle_s: 30
phases:
- {name: warm-up, seconds: 0.5, measured: false, arrival: {shape: constant, rate: 20},
   changes: {create-ports: 1}}
- {name: all, seconds: 2, arrival: {shape: poisson, rate: 40},
   changes: {create-ports: 2, delete-ports: 2, move-ports: 2, join-group: 1, leave-group: 1,
             revoke-rule: 1, restore-rule: 1, create-vpc: 0.2, join-host: 0.5}}
"""
#: A run without hosts that join: while some are to come, it waits a while for the others' reports.
NONE_JOIN = (
    *("--set", "fleet.joining_hosts=0"),
    *("--set", "phases.1.changes={create-ports: 1, delete-ports: 1, move-ports: 1}"),
    *("--set", "phases.1.seconds=1"),
)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "goalstate.cli", "load", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("GOALSTATE_")}


def load(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=BOUND,
        env=environment(),
        check=False,
    )


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(WORKLOAD, "utf-8")
    return file


def test_a_run_measures_every_stage_loses_nothing_and_keeps_its_result(
    workload: Path, tmp_path: Path
) -> None:
    place = tmp_path / "result"
    done = load("run", workload, "--broker", "embedded", "--out", place, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = results.load(place)
    assert json.loads(done.stdout)["run"] == found.run
    assert found.passed and found.lost == 0 and found.not_joined == 0
    assert found.accepted == found.offered > 40
    stages = {one.stage: one.whole for one in found.stages}
    assert set(stages) == set(Stage)
    one_a_change = (Stage.SENT, Stage.ACCEPTED, Stage.PUBLISHED, Stage.FIRST_HOST, Stage.LAST_HOST)
    assert {stages[stage].count for stage in one_a_change} == {found.accepted}
    assert stages[Stage.JOINED].count == 2
    # Of each change some host is the first, and one the last.
    for percentile in ("50", "99"):
        first, last = (
            stages[stage].percentiles_ms[percentile]
            for stage in (Stage.FIRST_HOST, Stage.LAST_HOST)
        )
        assert first <= last
    assert all(one.min_ms > 0 for one in stages.values())
    assert {clock.same for clock in found.clocks} == {True}
    assert len(found.clocks) == 4
    assert {name.split()[0] for name in (p.name for p in found.processes)} == {
        "broker",
        "dpm",
        "fleet",
        "generator",
    }
    for one in found.stages:
        log = HistogramLogReader(
            str(place / "latency" / f"{one.stage.replace(' ', '-')}.hlog"), HdrHistogram(1, 2, 3)
        )
        counted = 0
        while (histogram := log.get_next_interval_histogram()) is not None:
            counted += histogram.get_total_count()
        log.close()
        assert counted == one.whole.count


def test_workers_that_come_by_themselves_find_the_run_by_its_name_and_the_broker(
    workload: Path, tmp_path: Path
) -> None:
    with brokers.find("embedded") as broker:
        workers = [
            subprocess.Popen(
                command("worker", "mine", "--broker", broker.url),
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
            )
            for _ in range(4)
        ]
        try:
            arguments = ("run", workload, "--run", "mine", "--workers", 4, "--broker", broker.url)
            done = load(*arguments, *NONE_JOIN, "--out", tmp_path / "result")
            assert done.returncode == 0, done.stderr + done.stdout
            assert [worker.wait(BOUND) for worker in workers] == [0, 0, 0, 0]
            again = load(*arguments, "--out", tmp_path / "again")
            assert again.returncode != 0
            assert "there was a run 'mine' on this broker already" in again.stderr
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def test_a_threshold_that_is_not_held_is_the_exit_code(workload: Path, tmp_path: Path) -> None:
    threshold = "thresholds.latency=[{stage: last host, percentile: 50, at_most_ms: 0.001}]"
    processes = ("--set", "generators=1", "--set", "fleet.processes=1")
    arguments = ("--set", threshold, *processes, *NONE_JOIN)
    done = load("run", workload, "--broker", "embedded", "--out", tmp_path / "r", *arguments)
    assert done.returncode == 1
    assert "NOT HELD" in done.stdout
    assert not results.load(tmp_path / "r").passed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "no-such"), "no workload of that name is shipped"),
        (("run", "{}", "--set", "region.hosts=0"), "region.hosts"),
        (("run", "{}", "--out", "/"), "has something in it"),
        (("run", "{}", "--dpm", "127.0.0.1:1"), "has a broker already"),
        (("run", "{}", "--broker", "embedded", "--workers", "99"), "work for 4"),
        (("run", "{}", "--broker", "embedded", "--run", "a/b"), "no id of a run"),
        (("worker", "run"), "which broker"),
        (("worker", "run", "--broker", "pulsar://127.0.0.1:1"), "no broker answers"),
    ],
)
def test_a_mistake_is_named(
    arguments: tuple[str, ...], said: str, workload: Path, tmp_path: Path
) -> None:
    given = [argument.replace("{}", str(workload)) for argument in arguments]
    if given[0] == "run" and "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    done = load(*given)
    assert done.returncode not in (0, 1), done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def _await(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + BOUND
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_sigterm_ends_a_run_with_all_that_it_started(workload: Path, tmp_path: Path) -> None:
    place = tmp_path / "result"
    run = subprocess.Popen(
        command("run", workload, "--broker", "embedded", "--out", place, "--run", "cut-short"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    _await((place / "logs/worker-3.pid").exists, "the workers were started")
    pids = [int(file.read_text()) for file in (place / "logs").glob("*.pid")]
    assert len(pids) == 5
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=BOUND)
    assert run.returncode == 130, said

    def gone(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    _await(lambda: all(map(gone, pids)), "all processes are gone")
