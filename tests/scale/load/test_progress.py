"""Progress: what is known of the last second, by phase, stage and role."""

from __future__ import annotations

import pytest

from goalstate.cli import load_live
from goalstate.scale.load import workload
from goalstate.scale.load.collecting import Collected
from goalstate.scale.load.control import Progress, Usage
from goalstate.scale.load.progress import progress
from goalstate.scale.load.recording import Recorder
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.workload import ChangeKind
from tests.scale.load import made_results

WORKLOAD = workload.parse(made_results.WORKLOAD, "made")
MS = 1_000_000


def told(worker: str, second: int, cpu_s: float, *latencies_ms: int, **more: object) -> Progress:
    recorder = Recorder()
    for ms in latencies_ms:
        recorder.record(1, Stage.ACCEPTED, ms * MS)
    return Progress.model_validate(
        {
            "worker": worker,
            "part": 0,
            "second": second,
            "histograms": recorder.take(),
            "usage": Usage(cpu_s=cpu_s, rss_bytes=1),
            **more,
        }
    )


def test_before_anything_is_told_there_are_zeros() -> None:
    now = progress(WORKLOAD, 0, Collected())
    assert (now.gone_s, now.of_s) == (1, 10)
    assert (now.phase, now.measured, now.phase_gone_s, now.phase_of_s) == ("warm", False, 1, 2)
    assert (now.offered, now.accepted, now.other, now.waiting) == (0, 0, 0, 0)
    assert now.latencies == []
    assert now.processors == {}


def test_phases_follow_one_another_and_end() -> None:
    names = [progress(WORKLOAD, second, Collected()).phase for second in (1, 2, 9, 10, 60)]
    assert names == ["warm", "steady", "steady", "", ""]
    assert progress(WORKLOAD, 4, Collected()).phase_gone_s == 3


def test_latency_is_of_the_last_second_that_was_told_of() -> None:
    collected = Collected()
    collected.progress(told("g", 4, 1.0, 500), "generator")
    collected.progress(told("g", 5, 1.1, 2, 2, 8), "generator")
    collected.progress(told("h", 5, 1.1, 2), "generator")
    for second in (5, 6):
        (one,) = progress(WORKLOAD, second, collected).latencies
        assert one.stage is Stage.ACCEPTED
        assert one.p50 == pytest.approx(2, rel=0.01)
        assert one.p99 == pytest.approx(8, rel=0.01)
    assert progress(WORKLOAD, 20, collected).latencies == []


def test_processors_are_by_role_over_the_last_two_samples() -> None:
    collected = Collected()
    for second, cpu_s in ((3, 1.0), (4, 1.25)):
        collected.used(second, {"dpm": Usage(cpu_s, 1)}, 0)
        collected.progress(told("a", second, cpu_s), "fleet")
        collected.progress(told("b", second, 2 * cpu_s), "fleet")
    now = progress(WORKLOAD, 5, collected)
    assert now.processors == {"dpm": 0.25, "fleet": 0.75}


def test_changes_are_counted_by_what_came_of_them() -> None:
    collected = Collected()
    rows = [(1, ChangeKind.CREATE_PORTS, "accepted", 7), (1, None, "starved", 2)]
    collected.progress(told("g", 2, 1.0, outcomes=rows, waiting=3), "generator")
    now = progress(WORKLOAD, 3, collected)
    assert (now.offered, now.accepted, now.other, now.waiting) == (9, 7, 2, 3)


def test_what_is_known_is_said_on_one_line() -> None:
    collected = Collected()
    collected.progress(told("g", 3, 1.0, 2), "generator")
    words = dict(load_live.facts(progress(WORKLOAD, 3, collected)))
    assert words["time"] == "4 of 10 s"
    assert words["phase"] == "steady, 2 of 8 s"
    assert words["accepted p50/p99 ms"] == "2.0/2.0"
    assert "not measured" in dict(load_live.facts(progress(WORKLOAD, 0, collected)))["phase"]
    assert "waited for" in dict(load_live.facts(progress(WORKLOAD, 12, collected)))["phase"]
