"""The generator: nothing that a stall makes late is left out of the figures."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hdrh.histogram import HdrHistogram

from goalstate.scale.load.changes import Change, ChangeSource
from goalstate.scale.load.generator import SECOND_NS, Answer, Generator, Outcome
from goalstate.scale.load.recording import Distributions, Recorder
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.stamps import Stamp
from goalstate.scale.load.workload import Workload
from tests.scale.load.virtual import VirtualClock

MS = 1_000_000


def workload(callers: int = 8, rate: float = 100, seconds: float = 10, **more: object) -> Workload:
    return Workload.model_validate(
        {
            "name": "test",
            "region": {"hosts": 4, "vpcs": "2x400"},
            "callers": callers,
            "phases": [
                {
                    "name": "warm up",
                    "seconds": 1,
                    "measured": False,
                    "arrival": {"shape": "constant", "rate": rate},
                    "changes": {"create-ports": 1},
                },
                {
                    "name": "measured",
                    "seconds": seconds,
                    "arrival": {"shape": "constant", "rate": rate},
                    "changes": {"create-ports": 1, "delete-ports": 1, "move-ports": 2},
                },
            ],
            **more,
        }
    )


class System:
    """Takes so long for each change, and answers none in the stall."""

    def __init__(self, clock: VirtualClock, latency_ns: int, stall: tuple[int, int]) -> None:
        self._clock = clock
        self._latency_ns = latency_ns
        self._stall = stall
        self.most_at_once = 0
        self._at_once = 0
        self.refuse = 0

    async def apply(self, caller: int, change: Change, stamp: Stamp) -> Answer:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        begin, end = self._stall
        until_ns = self._clock.now_ns() + self._latency_ns
        if begin <= until_ns < end:
            until_ns = end
        await self._clock.sleep_until(until_ns)
        self._at_once -= 1
        if self.refuse:
            self.refuse -= 1
            return Answer(Outcome.REFUSED)
        return Answer(Outcome.ACCEPTED, stamp.number + 1)


def play(
    of: Workload, latency_ns: int, stall: tuple[float, float] = (0, 0), refuse: int = 0
) -> tuple[Generator, Distributions, System]:
    """Of a stall: begin and end, in seconds after the first phase began."""

    async def scenario() -> tuple[Generator, Distributions, System]:
        clock, recorder = VirtualClock(), Recorder()
        start_ns = clock.now_ns() + SECOND_NS
        begin, end = (start_ns + round(at * SECOND_NS) for at in stall)
        system = System(clock, latency_ns, (begin, end))
        system.refuse = refuse
        region = of.region.region(of.layout)
        source = ChangeSource(region, of.region.vpc_count, Random(1))
        generator = Generator(of, source, system, clock, recorder)
        await clock.play(generator.run(start_ns))
        found = Distributions()
        found.add(0, recorder.take())
        return generator, found, system

    return asyncio.run(scenario())


def values(of: HdrHistogram) -> list[int]:
    """Microseconds, each as often as it was recorded."""
    found: list[int] = []
    for item in of.get_recorded_iterator():
        found += [item.value_iterated_to] * item.count_added_in_this_iter_step
    return found


def test_a_known_latency_is_given_back() -> None:
    _, found, _ = play(workload(), 7 * MS)
    accepted = values(found.of(Stage.ACCEPTED, [1]))
    assert len(accepted) == 1000
    assert min(accepted) == pytest.approx(7000, rel=0.001)
    assert max(accepted) == pytest.approx(7000, rel=0.001)
    assert set(values(found.of(Stage.SENT, [1]))) == {1}
    assert found.of(Stage.ACCEPTED, [0]).get_total_count() == 0  # the warm-up


def test_a_stall_is_in_the_latency_of_all_that_were_to_start_in_it() -> None:
    """100 changes a second, and 2 s in which none is answered: a closed loop of 8 callers would
    have sent 8 in it, and shown a p99 of some milliseconds."""
    _, found, system = play(workload(callers=1000), 5 * MS, stall=(4, 6))
    accepted = sorted(values(found.of(Stage.ACCEPTED, [1])))
    # Those that would be answered in the stall are answered at its end. (In whole milliseconds.)
    ends = [(due, due + 5) for due in range(1000, 11000, 10)]
    wanted = sorted((6000 if 4000 <= end < 6000 else end) - due for due, end in ends)
    assert len(accepted) == len(wanted) == 1000
    for is_, should in zip(accepted, wanted, strict=True):
        assert is_ == pytest.approx(should * 1000, rel=0.001)
    assert found.of(Stage.ACCEPTED, [1]).get_value_at_percentile(99) == pytest.approx(
        1_900_000, rel=0.02
    )
    assert system.most_at_once > 190


def test_few_callers_wait_in_the_queue_and_it_counts() -> None:
    """One caller that takes 20 ms for each of 100 changes a second gets ever later."""
    of = workload(callers=1, seconds=5)
    generator, found, system = play(of, 20 * MS)
    assert system.most_at_once == 1
    accepted = values(found.of(Stage.ACCEPTED, [1]))
    assert len(accepted) == 500
    # 600 changes of 20 ms: the last is answered 12 s after the start, 6.01 s after it was due.
    assert max(accepted) == pytest.approx(6_010_000, rel=0.002)
    sent = values(found.of(Stage.SENT, [1]))
    assert max(sent) == pytest.approx(5_990_000, rel=0.002)
    assert generator.waiting == 0


def test_every_change_that_was_due_has_one_outcome() -> None:
    generator, found, _ = play(workload(), 3 * MS, refuse=17)
    outcomes = generator.outcomes
    assert sum(outcomes.values()) == 1100
    assert sum(n for key, n in outcomes.items() if key[2] is Outcome.REFUSED) == 17
    assert sum(
        n for (phase, _, o), n in outcomes.items() if phase and o is Outcome.ACCEPTED
    ) == len(values(found.of(Stage.ACCEPTED, [1])))
    assert len(generator.sent) == 1000


def test_what_cannot_be_made_is_said() -> None:
    """Ports are created until there is no room, and nobody deletes any."""
    of = workload(seconds=30)
    phases = [p.model_dump(mode="json") for p in of.phases]
    phases[1]["changes"] = {"create-ports": 1}
    of = Workload.model_validate(of.model_dump(mode="json") | {"phases": phases})
    generator, _, _ = play(of, 1 * MS)
    made = sum(n for key, n in generator.outcomes.items() if key[2] is Outcome.ACCEPTED)
    starved = generator.outcomes[1, None, Outcome.STARVED]
    region = of.region.region(of.layout)
    assert made == sum(region.room(n) - 400 for n in (1, 2))
    assert made + starved == 3100
