"""The simulator of faults: that regions keep their laws under it, and that it sees when not.

A failing seed is played again, told step by step, by `goalstate simulate-faults --seed SEED`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from goalstate.agent import programming
from goalstate.agent.stream import Place, Reading
from goalstate.agent.subscriptions import Subscriptions
from goalstate.cli import simulation
from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.output import Output
from goalstate.dpm.checkpoints import Checkpoints
from goalstate.dpm.convergence import Convergence, Progress
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.reminders import Reminders
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import StreamId
from goalstate.scale.simulate.plan import Fault, plan
from goalstate.scale.simulate.run import Result, Run
from goalstate.scale.simulate.shrink import shrink
from goalstate.scale.simulate.timeline import SECOND_NS, START_NS, Timeline, VirtualLoop
from tests.scale.conftest import FirstViolation, ManyRuns

SEEDS = range(3000, 3300)
#: Of them, how many are played by other processes too.
REPLAYED = 12
ROOT = Path(__file__).resolve().parents[2]


@cache
def results() -> list[Result]:
    """For tests that are not traced for the coverage (a fixture would be, at thrice the time)."""
    return [Run(plan(seed)).play() for seed in SEEDS]


@pytest.mark.no_cover
def test_no_law_is_broken() -> None:
    broken = {result.plan.seed: result.violation for result in results() if result.violation}
    assert broken == {}


@pytest.mark.timeout(1500)  # they began with the first test, and may have some minutes to go
def test_ten_thousand_runs_break_no_law(many_runs: ManyRuns) -> None:
    output, errors = many_runs.communicate()
    assert output, errors
    said = json.loads(output)
    assert (said["violation"], said["replay"], many_runs.returncode) == ("", "", 0)
    assert said["runs"] == 10_000


def test_how_many_processes_share_the_runs_does_not_matter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = []
    for jobs in (1, 2):
        code = simulation.simulate_faults(SEEDS[0], 30, "", 0, None, Output(True), jobs=jobs)
        said.append((code, json.loads(capsys.readouterr().out)))
    assert said[0] == said[1]
    assert said[0][1]["runs"] == 30


@pytest.mark.no_cover
def test_every_fault_happens_and_is_felt() -> None:
    counts = sum((result.counts for result in results()), Counter[str]())
    for fault in Fault:
        assert counts[fault.value] >= len(SEEDS) // 30, fault
    for felt in (
        "deliveries dropped",
        "deliveries repeated",
        "deliveries reordered",
        "send lost",
        "send unanswered",
        "send repeated",
        "gaps seen by agents",
        "stale messages dropped by agents",
        "streams read again by agents",
    ):
        assert counts[felt] > 0, felt
    for there_and_back in ("streams switched to sessions", "streams switched to topics"):
        assert counts[there_and_back] >= len(SEEDS) / 2, there_and_back
    assert counts["messages on sessions"] >= len(SEEDS)
    assert counts["changes in the log"] >= 5 * len(SEEDS)
    assert counts["moves to another VPC"] >= len(SEEDS) / 2
    assert counts["waits ended"] >= 5 * len(SEEDS)
    assert counts["publisher starts"] >= 2 * len(SEEDS)


def test_a_transcript_changes_nothing() -> None:
    silent, told = Run(plan(SEEDS[0])).play(), Run(plan(SEEDS[0]), record=True).play()
    assert silent.transcript == []
    assert told._replace(transcript=[]) == silent
    assert "everything agrees" in told.transcript[-1]


# --- the same again ---


def fingerprint(seed: int) -> str:
    transcript = "\n".join(Run(plan(seed), record=True).play().transcript)
    return f"{seed} {hashlib.sha256(transcript.encode()).hexdigest()}"


def print_fingerprints() -> None:
    for seed in SEEDS[:REPLAYED]:
        print(fingerprint(seed))


def test_another_process_repeats_a_run_word_for_word() -> None:
    # The order of a set, and the hash of a text, are others there: nothing may follow from them.
    replay = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tests.scale.test_simulate import print_fingerprints; print_fingerprints()",
        ],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (replay.returncode, replay.stderr) == (0, "")
    assert replay.stdout.splitlines() == [fingerprint(seed) for seed in SEEDS[:REPLAYED]]


# --- what is broken is seen ---


def read_over(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """Let agents take messages of that place as the next ones."""
    right = Reading.place

    def wrong(self: Reading, envelope: Any) -> Place:
        found = right(self, envelope)
        return Place.NEXT if found is place else found

    monkeypatch.setattr(Reading, "place", wrong)


def test_an_agent_that_skips_a_gap_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    read_over(monkeypatch, Place.GAP)
    assert first_violation(SEEDS) is not None


def test_an_agent_that_believes_a_former_publisher_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    read_over(monkeypatch, Place.STALE)
    assert first_violation(SEEDS) is not None


def test_an_agent_that_deletes_nothing_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    right = Reading.take

    def wrong(self: Reading, group: Any) -> Any:
        return {} if group.deletion else right(self, group)

    monkeypatch.setattr(Reading, "take", wrong)
    assert first_violation(SEEDS) is not None


def test_a_publisher_that_never_reminds_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    monkeypatch.setattr(Reminders, "take", lambda self, now_ns: [])
    found = first_violation(SEEDS)
    assert found is not None
    assert "not at rest" in found.violation


def test_a_stream_that_comes_back_to_its_topic_without_a_checkpoint_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    monkeypatch.setattr(Checkpoints, "begin_again", lambda self, stream: None)
    found = first_violation(SEEDS)
    assert found is not None
    assert "not at rest" in found.violation


def test_an_agent_that_goes_on_anywhere_when_a_stream_switches_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    """The digest would show what it skipped, and bring it: it does not look at that either."""
    follow, place, agrees = Subscriptions._follow, Reading.place, Reading.agrees
    switched: list[Reading] = []
    skipped: list[Reading] = []

    def wrong_follow(
        self: Subscriptions, id_: StreamId, topic: str, start: bytes, now: int
    ) -> None:
        stream = self._streams.get(id_)
        before = topic if stream is None else stream.topic
        follow(self, id_, topic, start, now)
        if topic != before:
            switched.append(self._streams[id_].reading)

    def wrong_place(self: Reading, envelope: Envelope) -> Place:
        found = place(self, envelope)
        content = envelope.kind is MessageKind.DELTA and found in (Place.NEXT, Place.GAP)
        if content and any(one is self for one in switched):
            switched[:] = [one for one in switched if one is not self]
            if found is Place.GAP:
                skipped.append(self)
                return Place.NEXT
        return found

    monkeypatch.setattr(Subscriptions, "_follow", wrong_follow)
    monkeypatch.setattr(Reading, "place", wrong_place)
    monkeypatch.setattr(
        Reading,
        "agrees",
        lambda self, envelope: any(one is self for one in skipped) or agrees(self, envelope),
    )
    found = first_violation(SEEDS)
    assert found is not None
    assert skipped


def test_an_answer_before_the_log_has_the_intent_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    right = IntentLog.append

    def wrong(self: IntentLog, record: log_pb2.Record) -> asyncio.Future[bytes]:
        sent = right(self, record)
        if record.WhichOneof("body") != "change":
            return sent
        early: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        early.set_result(b"")
        sent.add_done_callback(lambda done: done.exception())
        return early

    monkeypatch.setattr(IntentLog, "append", wrong)
    assert first_violation(SEEDS) is not None


def test_a_wait_that_counts_expired_hosts_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    right = Convergence.progress

    def wrong(self: Convergence, *arguments: Any) -> Progress:
        progress = right(self, *arguments)
        return progress._replace(
            converged=progress.converged or not progress.stragglers, expired=[]
        )

    monkeypatch.setattr(Convergence, "progress", wrong)
    found = first_violation(SEEDS)
    assert found is not None
    assert "converged" in found.violation


def test_a_wait_that_ignores_what_is_pending_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    right = Convergence.report

    def wrong(self: Convergence, report: Any, *more: Any) -> Any:
        del report.exceptions[:]
        return right(self, report, *more)

    monkeypatch.setattr(Convergence, "report", wrong)
    found = first_violation(SEEDS)
    assert found is not None
    assert "converged" in found.violation


def test_an_agent_that_minds_no_other_vpc_of_an_id_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    monkeypatch.setattr(programming, "elsewhere", lambda change, streams: {})
    assert first_violation(SEEDS) is not None


def test_an_agent_that_fails_is_seen(
    monkeypatch: pytest.MonkeyPatch, first_violation: FirstViolation
) -> None:
    def wrong(self: Reading, group: Any) -> Any:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Reading, "take", wrong)
    found = first_violation(SEEDS)
    assert found is not None
    assert "a defect" in found.violation


# --- a failing run ---


@pytest.fixture
def gaps_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    read_over(monkeypatch, Place.GAP)


@pytest.mark.usefixtures("gaps_skipped")
def test_a_failing_run_is_made_smaller_and_still_fails(first_violation: FirstViolation) -> None:
    failed = first_violation(SEEDS)
    assert failed is not None
    small = shrink(failed, tries=60)
    assert small.violation
    assert len(small.plan.steps) < len(failed.plan.steps)
    assert "VIOLATION" in small.transcript[-1]
    numbers = frozenset(step.number for step in small.plan.steps)
    again = Run(plan(failed.plan.seed).only(numbers), record=True).play()
    assert again == small


@pytest.mark.no_cover
@pytest.mark.usefixtures("gaps_skipped")
def test_the_command_tells_how_to_repeat_what_failed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "transcript"
    code = simulation.simulate_faults(SEEDS[0], len(SEEDS), "", 20, file, Output(True))
    assert code is ExitCode.REFUSED
    said = json.loads(capsys.readouterr().out)
    assert said["violation"]
    assert file.read_text().splitlines() == said["transcript"]
    words = said["replay"].split()
    assert words[:4] == ["goalstate", "simulate-faults", "--seed", str(said["failed_seed"])]
    only = words[5] if "--only" in words else ""
    code = simulation.simulate_faults(said["failed_seed"], 1, only, 0, None, Output(True))
    assert code is ExitCode.REFUSED
    assert json.loads(capsys.readouterr().out)["violation"] == said["violation"]


def test_the_command_counts_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulation.simulate_faults(SEEDS[0], 5, "", 0, None, Output(True)) is ExitCode.OK
    said = json.loads(capsys.readouterr().out)
    assert (said["runs"], said["failed_seed"], said["violation"]) == (5, None, "")
    assert said["counts"]["messages delivered"] > 100
    assert said["virtual_seconds"] > 5


def test_steps_are_of_one_run_and_are_numbers() -> None:
    for only, runs in (("1,x", 1), ("1,2", 2)):
        with pytest.raises(InputError):
            simulation.simulate_faults(1, runs, only, 0, None, Output(True))


# --- virtual time ---


def test_sleep_takes_virtual_time_only() -> None:
    timeline = Timeline()
    loop = VirtualLoop(timeline)
    woken: list[int] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((timeline.now_ns - START_NS) // SECOND_NS)

    for seconds in (3600, 60):
        loop.call_soon(lambda seconds=seconds: loop.create_task(sleeper(seconds)))
    loop.run_ready()
    while timeline.next_ns is not None:
        timeline.run_next()
        loop.run_ready()
    assert woken == [60, 3600]
    assert loop.failures == []
    loop.kill()


def test_what_is_killed_does_nothing_more() -> None:
    timeline = Timeline()
    loop = VirtualLoop(timeline)
    done: list[str] = []

    async def worker() -> None:
        await asyncio.sleep(1)
        done.append("worked")

    loop.call_soon(lambda: loop.create_task(worker()))
    loop.run_ready()
    loop.kill()
    while timeline.next_ns is not None:
        timeline.run_next()
        loop.run_ready()
    assert done == []
