"""A run with workers that say what the test wants: what is made of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from goalstate.bus.memory import MemoryBroker, MemoryBus
from goalstate.scale.load import control, results
from goalstate.scale.load.control import Line
from goalstate.scale.load.coordinator import Coordinator, Finished, RunSettings
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.recording import HIGHEST_US, LOWEST_US, Recorder, histogram
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.stamps import Stamp
from goalstate.scale.load.witness import Seen
from goalstate.scale.load.workload import Workload

MS = 1_000_000
RUN = "run-1"


def workload(**more: object) -> Workload:
    return Workload.model_validate(
        {
            "name": "test",
            "region": {"hosts": 4, "vpcs": "1x4"},
            "generators": 2,
            "fleet": {"processes": 2},
            "settle_s": 1,
            "phases": [
                {
                    "name": "only",
                    "seconds": 0.2,
                    "arrival": {"shape": "constant", "rate": 10},
                    "changes": {"create-ports": 1},
                }
            ],
            **more,
        }
    )


class FakeSystem:
    """Has no broker and no DPM."""

    region, dpm_elsewhere = RUN, "127.0.0.1:1"

    def __init__(self) -> None:
        self.broker = self
        self.url = "memory"
        self.behind = ""
        self.concerns: dict[int, int] = {}
        self.ended_with = ""

    def describe(self) -> str:
        return "no broker"

    def check_empty(self) -> None: ...

    def build(self, intents: Any) -> None:
        for _ in intents:
            pass

    def converged(self, within_s: float) -> str:
        return self.behind

    def concerned(self, change: int) -> int:
        return self.concerns.get(change, 0)

    def serve(self, *_: object, **__: object) -> None:
        raise AssertionError("all workers come by themselves")

    def ended(self) -> str:
        return self.ended_with

    def traffic(self) -> dict[str, int]:
        return {}

    def used(self) -> dict[str, tuple[float, int]]:
        return {}


class FakeWorker:
    """Says what it is told to say once phases begin, by its own clock."""

    def __init__(self, name: str, ahead_ns: int = 0) -> None:
        self.name = name
        self.ahead_ns = ahead_ns
        self.assigned: control.Assignment | None = None
        self.failed = ""
        self.ending = True
        self.line: Line | None = None
        self.begun: Callable[[FakeWorker, int], None] = lambda worker, start_ns: None
        self.lost: list[control.Lost] = []

    async def open(self, bus: Any) -> None:
        self.line = await Line.of_worker(bus, RUN, self._heard)
        self.say(
            control.Hello(worker=self.name, clock_id=f"of {self.name}", machine=self.name, pid=1)
        )

    def say(self, message: Any) -> None:
        assert self.line is not None
        self.line.say(message)

    def progress(self, recorder: Recorder, **more: Any) -> None:
        assert self.assigned is not None
        self.say(
            control.Progress(
                worker=self.name,
                part=self.assigned.part,
                second=0,
                histograms=recorder.take(),
                usage=control.Usage(cpu_s=1, rss_bytes=2),
                **more,
            )
        )

    def end(self) -> None:
        if self.ending:
            self.say(control.Ended(worker=self.name, lost=self.lost))

    def _heard(self, message: control.FromCoordinator) -> None:
        match message:
            case control.Ping(worker=self.name, number=number):
                there_ns = time.time_ns() + self.ahead_ns
                self.say(control.Pong(worker=self.name, number=number, there_ns=there_ns))
            case control.Assignment(worker=self.name):
                self.assigned = message
                self.say(control.Ready(worker=self.name))
            case control.Start(start_ns=start_ns):
                self.begun(self, start_ns)
                assert self.assigned is not None
                if self.assigned.role == "generator":
                    self.end()
            case control.Stop(failed=failed):
                self.failed = failed
                if not failed and self.assigned and self.assigned.role == "fleet":
                    self.end()


def play(
    begun: Callable[[FakeWorker, int], None],
    *,
    ahead_ns: tuple[int, int, int, int] = (0, 0, 0, 0),
    lost: Callable[[FakeWorker], None] = lambda worker: None,
    system: FakeSystem | None = None,
    ending: bool = True,
) -> tuple[Finished, list[FakeWorker]]:
    workers = [FakeWorker(f"worker-{n}", ahead) for n, ahead in enumerate(ahead_ns)]
    system = system or FakeSystem()

    async def scenario() -> Finished:
        bus = MemoryBus(MemoryBroker(time.time_ns))
        for worker in workers:
            worker.begun = begun
            worker.ending = ending
            lost(worker)
            await worker.open(bus)
        settings = RunSettings(Path(), RUN, external=len(workers), lead_s=0.05)
        coordinator = Coordinator(
            workload(), settings, system, lambda text: None, lambda *_: None  # type: ignore[arg-type]
        )  # fmt: skip
        try:
            return await coordinator.run(bus)
        finally:
            await asyncio.sleep(0)  # the last word is on its way to all
            await bus.close()

    return asyncio.run(scenario()), workers


def generator_and_number(worker: FakeWorker, numbers: range, start_ns: int) -> list[Any]:
    return [(number, 0, start_ns + number * MS, 100 + number) for number in numbers]


def seen(generator: int, number: int, start_ns: int, last_ms: int, missing: int = 0) -> Any:
    intended = start_ns + number * MS
    return control.from_seen(
        Seen(
            Stamp(generator, number, intended),
            intended + MS,
            intended + 2 * MS,
            intended + last_ms * MS,
            2,
            missing,
        )
    )


def test_what_several_workers_recorded_is_what_one_would_have() -> None:
    latencies: dict[str, list[int]] = {}

    def begun(worker: FakeWorker, start_ns: int) -> None:
        random, recorder = Random(worker.name), Recorder()
        latencies[worker.name] = [round(random.lognormvariate(15, 2)) for _ in range(5000)]
        assert worker.assigned is not None
        of_generator = worker.assigned.role == "generator"
        for latency in latencies[worker.name]:
            recorder.record(0, Stage.ACCEPTED if of_generator else Stage.APPLIED, latency)
        if of_generator:
            worker.progress(
                recorder,
                outcomes=[(0, "create-ports", "accepted", 3)],
                accepted=generator_and_number(worker, range(3), start_ns),
            )
        else:
            worker.progress(
                recorder, seen=[seen(g, n, start_ns, 5 + n) for g in (0, 1) for n in range(3)]
            )

    finished, _ = play(begun)
    found = results.result(finished)
    for stage, names in (
        (Stage.APPLIED, ("worker-0", "worker-1")),
        (Stage.ACCEPTED, ("worker-2", "worker-3")),
    ):
        one = histogram()
        for name in names:
            for latency in latencies[name]:
                one.record_value(min(max(latency // 1000, LOWEST_US), HIGHEST_US))
        stage_found = found.stage(stage)
        assert stage_found is not None
        assert stage_found.whole == results.Figures.of(one)
        assert stage_found.whole.count == 10_000
        assert [at for at, _ in stage_found.seconds] == [0]
        assert stage_found.seconds[0][1] == results.Figures.of(one)
    last = found.stage(Stage.LAST_HOST)
    assert last is not None
    # Each change was seen by both fleets.
    assert last.whole.count == 6
    assert last.whole.max_ms == pytest.approx(7, rel=0.001)
    assert found.phases[0].outcomes["accepted"] == found.accepted == 6
    assert found.lost == 0
    assert found.passed, found.verdicts


def test_a_change_that_one_host_did_not_get_is_lost_and_the_run_does_not_pass() -> None:
    def lost(worker: FakeWorker) -> None:
        if worker.name == "worker-1":
            row = seen(1, 2, 0, 5, missing=1)
            worker.lost = [control.Lost(seen=row, stream="vpc/v")]

    def begun(worker: FakeWorker, start_ns: int) -> None:
        assert worker.assigned is not None
        if worker.assigned.role == "generator":
            numbers = generator_and_number(worker, range(3), start_ns)
            worker.progress(Recorder(), accepted=numbers)
        else:
            rows = [(g, n) for g in (0, 1) for n in range(3) if (g, n) != (1, 2)]
            worker.progress(Recorder(), seen=[seen(g, n, start_ns, 5) for g, n in rows])

    finished, _ = play(begun, lost=lost)
    found = results.result(finished)
    assert found.lost == 1
    assert found.lost_named == ["change 2 of generator 1: 1 hosts that follow vpc/v did not get it"]
    assert not found.passed
    assert [v.what for v in found.verdicts if not v.held] == ["changes lost"]
    last = found.stage(Stage.LAST_HOST)
    assert last is not None
    assert last.whole.count == 5  # there is no last host of the one that was lost


@pytest.mark.parametrize(("concerned", "lost"), [(3, 1), (0, 0)])
def test_a_change_that_nobody_saw_is_lost_if_it_concerns_anybody(concerned: int, lost: int) -> None:
    system = FakeSystem()
    system.concerns[101] = concerned

    def begun(worker: FakeWorker, start_ns: int) -> None:
        assert worker.assigned is not None
        if worker.assigned.role == "generator" and worker.assigned.part == 0:
            numbers = generator_and_number(worker, range(2), start_ns)
            worker.progress(Recorder(), accepted=numbers)
        elif worker.assigned.role == "fleet":
            worker.progress(Recorder(), seen=[seen(0, 0, start_ns, 5)])

    finished, _ = play(begun, system=system)
    found = results.result(finished)
    assert found.lost == lost
    assert found.passed is not bool(lost)


def test_hosts_that_are_behind_at_the_end_fail_the_run() -> None:
    system = FakeSystem()

    def begun(worker: FakeWorker, start_ns: int) -> None:
        system.behind = "1 host is behind"

    finished, _ = play(begun, system=system)
    found = results.result(finished)
    assert [v.found for v in found.verdicts if not v.held] == ["1 host is behind"]


def test_other_clocks_are_measured_and_their_error_is_told() -> None:
    ahead = (5_000 * MS, -3_000 * MS, 0, 86_400_000 * MS)
    finished, workers = play(lambda worker, start_ns: None, ahead_ns=ahead)
    found = {clock.worker: clock for clock in results.result(finished).clocks}
    for worker in workers:
        clock = found[worker.name]
        assert not clock.same
        assert abs(clock.ahead_ms - worker.ahead_ns / MS) <= clock.error_ms
        assert clock.error_ms < 1000
        assert worker.assigned is not None
        assert abs(worker.assigned.ahead_ns - worker.ahead_ns) < 1000 * MS


def test_a_worker_that_fails_ends_the_run_and_all_others_hear_why() -> None:
    def begun(worker: FakeWorker, start_ns: int) -> None:
        if worker.name == "worker-2":
            worker.say(control.Failed(worker=worker.name, error="it is raining"))

    workers: list[FakeWorker] = []
    with pytest.raises(LoadError, match="worker-2 failed: it is raining"):
        play(begun, lost=workers.append, ending=False)
    assert all("it is raining" in worker.failed for worker in workers)


def test_a_process_that_ends_ends_the_run() -> None:
    system = FakeSystem()

    def begun(worker: FakeWorker, start_ns: int) -> None:
        system.ended_with = "a process ended: see dpm.log"

    with pytest.raises(LoadError, match=r"see dpm\.log"):
        play(begun, system=system, ending=False)
