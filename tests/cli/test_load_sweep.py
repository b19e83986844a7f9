"""`load sweep`: each point runs once, whatever was there, and a failed one ends nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from goalstate.cli import load
from goalstate.cli.errors import CommandError
from goalstate.cli.output import Output
from goalstate.scale.load.results import Result
from goalstate.scale.load.workload import Workload
from tests.cli.conftest import Run
from tests.scale.load import made_results


class Runs:
    """Stands for `load.execute`: keeps a result at once, or fails."""

    def __init__(self) -> None:
        self.hosts: list[int] = []
        self.failing: set[int] = set()
        self.interrupted_by = 0
        self.held = True

    def __call__(self, wanted: Workload, place: Path, out: Output) -> Result:
        hosts = wanted.region.hosts
        (place / "logs").mkdir(parents=True)
        if hosts == self.interrupted_by:
            raise KeyboardInterrupt
        self.hosts.append(hosts)
        if hosts in self.failing:
            raise CommandError("the broker ended", "")
        found = made_results.result(ms=hosts / 10, held=self.held)
        found = found.model_copy(update={"workload": wanted.model_dump(mode="json")})
        (place / "result.json").write_text(found.model_dump_json(), "utf-8")
        return found


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(load, "execute", found)
    return found


@pytest.fixture
def sweep(run: Run, tmp_path: Path) -> Any:
    file = tmp_path / "made.yaml"
    file.write_text(made_results.WORKLOAD, "utf-8")

    def sweep(*arguments: object, over: str = "region.hosts=10,30,20") -> Any:
        out = tmp_path / "sweep"
        return run("load", "sweep", file, "--over", over, "--out", out, *arguments)

    return sweep


@pytest.fixture
def document(tmp_path: Path) -> Any:
    return lambda: json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))


def test_every_point_runs_and_all_is_kept_and_printed(
    sweep: Any, runs: Runs, tmp_path: Path, document: Any
) -> None:
    ran = sweep("--repeats", 2)
    assert ran.code == 0
    assert runs.hosts == [10, 30, 20, 10, 30, 20]
    assert [point["runs"] for point in document()["points"]] == [2, 2, 2]
    assert document()["curves"][0]["points"] == [0, 2, 1]
    assert (tmp_path / "sweep" / "region.hosts=30" / "2" / "result.json").exists()
    assert (tmp_path / "sweep" / "sweep.html").exists()
    assert [line.split()[0] for line in ran.out.splitlines()[1:4]] == ["10", "30", "20"]


def test_a_sweep_as_json_is_what_is_kept(sweep: Any, runs: Runs, document: Any) -> None:
    assert sweep("--json").document == document()


def test_a_sweep_that_was_cut_short_goes_on_where_it_was(
    sweep: Any, runs: Runs, tmp_path: Path, document: Any
) -> None:
    runs.interrupted_by = 20
    assert sweep().code == 130
    assert [point["runs"] for point in document()["points"]] == [1, 1, 0]
    runs.interrupted_by = 0
    ran = sweep()
    assert ran.code == 0
    assert "2 of 3 runs are there already" in ran.err
    assert runs.hosts == [10, 30, 20]
    # What the run that was cut short left is not in the way, and not gone.
    point = tmp_path / "sweep" / "region.hosts=20"
    assert sorted(one.name for one in point.iterdir()) == ["1", "1.cut-1"]


def test_a_finished_sweep_runs_nothing_and_more_values_run_alone(sweep: Any, runs: Runs) -> None:
    sweep()
    runs.hosts.clear()
    assert sweep().code == 0
    assert runs.hosts == []
    assert sweep(over="region.hosts=10,30,20,40").code == 0
    assert runs.hosts == [40]


def test_a_run_that_fails_is_told_and_the_others_go_on(
    sweep: Any, runs: Runs, document: Any
) -> None:
    runs.failing = {30}
    ran = sweep()
    assert ran.code == 1
    assert runs.hosts == [10, 30, 20]
    assert "region.hosts=30 failed: the broker ended" in ran.out
    assert document()["points"][1]["failed"] == ["the broker ended"]
    # And it is tried again.
    runs.failing = set()
    assert sweep().code == 0


def test_a_sweep_in_which_something_did_not_hold_ends_as_a_run_would(
    sweep: Any, runs: Runs
) -> None:
    runs.held = False
    assert sweep().code == 1


def test_what_is_there_of_another_workload_is_not_taken_for_it(sweep: Any, runs: Runs) -> None:
    sweep()
    runs.hosts.clear()
    ran = sweep("--set", "phases.1.seconds=5")
    assert ran.code == 2
    assert "another workload" in ran.err
    assert runs.hosts == []


@pytest.mark.parametrize("over", ["region.hosts", "region.hosts=0,10", "region.hots=1,2"])
def test_nothing_runs_where_a_point_is_no_workload(sweep: Any, runs: Runs, over: str) -> None:
    ran = sweep(over=over)
    assert ran.code == 2
    assert "region.ho" in ran.err
    assert runs.hosts == []
