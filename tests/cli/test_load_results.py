"""`load show`, `report`, `compare`, `workloads`, `schema`: what is printed, written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from goalstate.scale.load import workload
from goalstate.scale.load.results import Result
from tests.cli.conftest import Run
from tests.scale.load import made_results


def keep(result: Result, directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "result.json").write_text(result.model_dump_json(), "utf-8")
    return directory


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    return keep(made_results.result(ms=2.0, dpm_cpu_s=8.0), tmp_path / "slower")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return keep(made_results.result(), tmp_path / "kept")


def test_a_result_is_shown_in_tables_and_as_json(run: Run, kept: Path) -> None:
    ran = run("load", "show", kept)
    assert ran.code == 0
    for words in ("run-1", "last host", "steady", "generator c", "changes lost", "held"):
        assert words in ran.out
    assert run("load", "show", kept, "--json").document["run"] == "run-1"


def test_the_page_of_a_result_is_made_anew(run: Run, kept: Path) -> None:
    (kept / "report.html").write_text("old")
    ran = run("load", "report", kept, "--json")
    assert ran.code == 0
    assert ran.document == {"report": str(kept / "report.html")}
    assert (kept / "report.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("command", ["show", "report", "compare"])
def test_what_is_no_result_is_named_with_what_to_give(
    run: Run, tmp_path: Path, command: str
) -> None:
    ran = run("load", command, tmp_path / "nothing")
    assert ran.code == 2
    assert "nothing" in ran.err
    assert "goalstate load run" in ran.err


def test_a_page_that_cannot_be_written_is_a_usage_error(run: Run, kept: Path) -> None:
    (kept / "report.html").mkdir()
    ran = run("load", "report", kept)
    assert ran.code == 2
    assert "cannot be written" in ran.err


def test_results_are_compared_with_the_first(run: Run, kept: Path, slower: Path) -> None:
    ran = run("load", "compare", kept, slower)
    assert ran.code == 0
    assert "workload, machine, broker and versions were the same" in ran.out
    (line,) = [line for line in ran.out.splitlines() if line.startswith("last host")]
    assert line.split() == ["last", "host", "p50", "10.00", "20.00", "+100.0", "%"]
    (line,) = [line for line in ran.out.splitlines() if line.startswith("processors of the DPM")]
    assert line.split()[-4:] == ["0.50", "1.00", "+100.0", "%"]


def test_a_comparison_says_what_did_not_hold(run: Run, kept: Path, tmp_path: Path) -> None:
    other = keep(made_results.result(held=False), tmp_path / "other")
    (line,) = [
        line
        for line in run("load", "compare", kept, other).out.splitlines()
        if line.endswith("HELD")
    ]
    assert line.split("  ")[-2:] == ["0 (≤ 0): held", "0 (≤ 0): NOT HELD"]


def test_a_comparison_as_json_has_every_figure(run: Run, kept: Path, slower: Path) -> None:
    document = run("load", "compare", kept, slower, "--json").document
    assert [group["label"] for group in document["groups"]] == ["kept", "slower"]
    rows = {one["stage"]: one["rows"] for one in document["stages"]}
    assert rows["sent"][0]["cells"][1]["change_percent"] == 100.0


def test_a_comparison_says_what_was_not_the_same(run: Run, kept: Path, tmp_path: Path) -> None:
    other = keep(made_results.result(overrides=["region.hosts=40"]), tmp_path / "other")
    ran = run("load", "compare", kept, other)
    assert "was not the same" in ran.out
    assert "region.hosts" in ran.out


def test_results_made_in_the_same_way_are_grouped_where_that_is_wanted(
    run: Run, kept: Path, slower: Path, tmp_path: Path
) -> None:
    other = keep(made_results.result(overrides=["region.hosts=40"]), tmp_path / "other")
    ran = run("load", "compare", kept, slower, other, "--group")
    assert ran.code == 0
    assert "15.00 (10.00–20.00)" in ran.out


def test_a_comparison_writes_a_page_where_one_is_wanted(
    run: Run, kept: Path, slower: Path, tmp_path: Path
) -> None:
    file = tmp_path / "comparison.html"
    assert run("load", "compare", kept, slower, "--html", file).code == 0
    assert "slower" in file.read_text("utf-8")


def test_a_single_result_has_nothing_to_be_compared_with(run: Run, kept: Path) -> None:
    ran = run("load", "compare", kept)
    assert ran.code == 2
    assert "two results" in ran.err


def test_a_phase_that_is_not_there_is_a_usage_error(run: Run, kept: Path, slower: Path) -> None:
    ran = run("load", "compare", kept, slower, "--phase", "no such")
    assert ran.code == 2
    assert "no such" in ran.err


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "shipped", lambda: {"made": made_results.WORKLOAD})


@pytest.mark.usefixtures("shipped")
def test_shipped_workloads_are_listed_with_their_size(run: Run) -> None:
    ran = run("load", "workloads")
    assert ran.code == 0
    assert ran.out.splitlines()[1].split() == [
        *("made", "20", "2x10", "10", "a", "workload", "of", "a", "test")
    ]
    (document,) = run("load", "workloads", "--json").document["workloads"]
    assert document["hosts"] == 20


@pytest.mark.usefixtures("shipped")
def test_a_shipped_workload_is_printed_as_it_is(run: Run) -> None:
    ran = run("load", "workloads", "made")
    assert ran.out.strip() == made_results.WORKLOAD.strip()
    assert run("load", "workloads", "made", "--json").document["text"] == made_results.WORKLOAD
    missing = run("load", "workloads", "maed")
    assert missing.code == 2
    assert "made" in missing.err


def test_the_schema_of_workloads_is_json_either_way(run: Run) -> None:
    for arguments in ((), ("--json",)):
        ran = run("load", "schema", *arguments)
        assert ran.code == 0
        assert json.loads(ran.out)["properties"]["phases"]
