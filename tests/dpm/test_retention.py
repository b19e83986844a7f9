"""Topics keep what is on them for a time, and whoever comes finds what he needs at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from goalstate.agent.core import HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Fleet, FleetSettings, Member
from goalstate.agent.state_file import StateFile
from goalstate.bus.memory import MemoryBroker
from goalstate.dpm.checkpoints import CheckpointPolicy
from goalstate.dpm.config import DpmConfig
from goalstate.dpm.convergence import Lease
from goalstate.dpm.engine import Engine
from goalstate.gs.intent import Intent
from goalstate.gs.streams import ORIGIN, inbox_stream, vpc_stream
from tests.dpm.test_checkpoints import at_rest, newest
from tests.dpm.test_engine import CLOCK_ID, Clock, apply, serving
from tests.dpm.test_path_independence import RACKS, build, moves, port
from tests.dpm.wires import BOUND, Region, until

SECOND = 1_000_000_000
CONFIG = DpmConfig(broker="pulsar://broker", admin_url="http://broker", retention_s=600)
POLICY = CheckpointPolicy(min_bytes=1 << 40, max_age_s=CONFIG.checkpoint_max_age_s)
assert CONFIG.retention_s is not None


class Kept:
    """A region whose broker keeps messages for CONFIG.retention_s, by a clock of the test's."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.region = Region()
        self.region.broker = MemoryBroker(self.clock)

    async def pass_time(self, engine: Engine, seconds: float) -> None:
        """In steps in which the publisher does what is due, and the broker what it may."""
        assert CONFIG.retention_s is not None
        topics = self.region.topics
        for _ in range(round(seconds / 10)):
            self.clock.now += 10 * SECOND
            await asyncio.sleep(0.002)  # the look at ages, each 0.001 s
            await at_rest(engine, self.region)
            self.region.broker.expire(
                self.clock.now - int(CONFIG.retention_s * SECOND),
                for_good=(topics.intent_log, topics.intent_snapshots),
            )

    @asynccontextmanager
    async def fleet(self, state: StateFile | None = None) -> AsyncIterator[Fleet]:
        bus = self.region.bus("fleet")
        fleet = Fleet(
            bus,
            [Member(host, group) for host, group in RACKS.items()],
            FleetSettings(
                HostSettings(self.region.topics), self.region.topics.reports(0), CLOCK_ID
            ),
            lambda _: MemoryDataPlane(),
            state,
        )
        await fleet.start()
        try:
            yield fleet
        finally:
            await fleet.stop()
            await bus.close()


async def converged(engine: Engine, fleet: Fleet) -> None:
    """Until every host has all; it may be that only its lease of an earlier run has ended."""

    def told() -> bool:
        now = engine.steady_ns()
        return all(engine.convergence.lease(host, now) is Lease.LIVE for host in fleet.hosts)

    await until(told, "all hosts have reported")
    progress = await engine.wait(quorum=1.0, timeout_s=BOUND, max_stragglers=9)
    assert (progress.converged, progress.applied) == (True, len(RACKS)), progress


def opened(directory: Path) -> StateFile:
    return StateFile.open(directory, "default", list(RACKS))


def some_more(number: int) -> Intent:
    return Intent(ports=(port(1, 20 + number, "h1", "v1-web"),))


def test_at_any_time_a_new_host_finds_a_checkpoint_and_the_log_after_it() -> None:
    async def scenario() -> None:
        kept = Kept()
        async with serving(kept.region, clock=kept.clock, checkpoints=POLICY) as engine:
            await apply(engine, *build())
            # v2 is quiet for many times as long as the broker keeps anything; v1 changes.
            for round_ in range(16):
                await kept.pass_time(engine, 150)
                await apply(engine, some_more(round_))
                await at_rest(engine, kept.region)
                for stream, state in engine.core.streams.items():
                    if state.mark > ORIGIN and round_ > 1:  # before, the logs are whole
                        assert newest(kept.region, stream) is not None, stream
                async with kept.fleet() as fleet:
                    await converged(engine, fleet)
                    assert fleet.counters.resyncs == fleet.counters.gaps == 0
            log = kept.region.broker.messages(kept.region.topics.of_stream(vpc_stream("v2")))
            assert kept.clock.now - log[0].published_ns <= 601 * SECOND

    asyncio.run(scenario())


def test_a_host_that_was_away_for_longer_comes_back_by_the_checkpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        kept = Kept()
        async with serving(kept.region, clock=kept.clock, checkpoints=POLICY) as engine:
            await apply(engine, *build())
            file = opened(tmp_path)
            async with kept.fleet(file) as fleet:
                await converged(engine, fleet)
            file.close()
            await apply(engine, *moves()[len(build()) :])
            await kept.pass_time(engine, 1300)
            file = opened(tmp_path)
            async with kept.fleet(file) as fleet:
                await converged(engine, fleet)
                assert fleet.counters.resyncs > 0
                assert fleet.counters.mismatches == 0
            file.close()

    asyncio.run(scenario())


def test_a_publisher_that_starts_again_has_the_log_of_intents_whole() -> None:
    async def scenario() -> None:
        kept = Kept()
        async with serving(kept.region, clock=kept.clock, checkpoints=POLICY) as engine:
            await apply(engine, *build())
            await kept.pass_time(engine, 1300)
            before = {s: (state.mark, state.digest) for s, state in engine.core.streams.items()}
        # Nobody renews anything while it is away: streams are gone as a whole.
        kept.clock.now += 3600 * SECOND
        kept.region.broker.expire(kept.clock.now, for_good=(kept.region.topics.intent_log,))
        r0 = inbox_stream("r0")
        assert kept.region.messages(kept.region.topics.of_stream(r0)) == []
        async with serving(kept.region, clock=kept.clock, checkpoints=POLICY) as engine:
            after = {s: (state.mark, state.digest) for s, state in engine.core.streams.items()}
            assert after == before
            await kept.pass_time(engine, 10)
            async with kept.fleet() as fleet:
                await converged(engine, fleet)
            await apply(engine, some_more(0))
            async with kept.fleet() as fleet:
                await converged(engine, fleet)

    asyncio.run(scenario())
