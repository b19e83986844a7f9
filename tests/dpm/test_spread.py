"""Who holds less takes first: a rule of courtesy, and nothing that correctness depends on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

from goalstate.dpm import intake as intake_module
from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import NotServing
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.peers import PeerService
from goalstate.dpm.spread import STEP_S, Spread, asks, patience_s
from goalstate.gs.pb.goalstate.peer.v1 import peer_pb2
from goalstate.gs.topics import Topics
from tests.dpm.test_engine import CLOCK_ID, Clock, apply, begin, crash, serving_now
from tests.dpm.test_path_independence import HOSTS, build
from tests.dpm.test_standby import NEVER, SOON, paused, resumed
from tests.dpm.wires import Region, Wire, until

SHARDS = 6
NAMES = ("one", "two", "three")


class Publisher:
    """The engines of one process."""

    def __init__(self, region: Region, name: str, failover_after_s: float) -> None:
        self.region = region
        self.spread = Spread()
        bus, clock = region.bus(name), Clock()
        self.engines = []
        for topics in Topics(report_shards=1, shards=SHARDS).all_shards():
            engine = Engine(
                bus,
                topics,
                writer=name,
                clock_id=CLOCK_ID,
                metrics=Metrics(),
                clock_ns=clock,
                failover_after_s=failover_after_s,
                spread=self.spread,
            )
            engine.address = f"{name}:1"
            self.engines.append(engine)

    @property
    def serves(self) -> set[int]:
        return {n for n, engine in enumerate(self.engines) if engine.serving}

    async def start(self) -> None:
        await asyncio.gather(*(engine.start() for engine in self.engines))

    async def stop(self) -> None:
        await asyncio.gather(*(engine.stop() for engine in self.engines))
        await self.engines[0]._bus.close()

    async def crash(self) -> None:
        for engine in self.engines:
            await crash(engine, self.region)


@asynccontextmanager
async def publishers(region: Region, failover_after_s: float) -> AsyncIterator[list[Publisher]]:
    """Three that start together."""
    started = [Publisher(region, name, failover_after_s) for name in NAMES]
    await asyncio.gather(*(one.start() for one in started))
    try:
        yield started
    finally:
        for one in started:
            await one.stop()


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


def held(*of: Publisher) -> Counter[int]:
    """How many of these serve each shard."""
    return Counter(shard for one in of for shard in one.serves)


ONCE_EACH = Counter(range(SHARDS))


def test_the_more_one_holds_the_longer_it_waits() -> None:
    assert patience_s(0) == 0.0, "who holds nothing waits for nobody"
    assert STEP_S == 0.1
    waits = [patience_s(held) for held in range(10)]
    assert waits == sorted(set(waits))


def test_engines_of_one_process_take_one_at_a_time_each_after_its_patience() -> None:
    async def test() -> None:
        spread = Spread()
        order: list[int] = []

        async def take(shard: int) -> None:
            async with spread.turn():
                assert patience_s(len(spread.held)) <= loop.time() - began + 0.001
                spread.held.add(shard)
                order.append(shard)

        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*map(take, range(4)))
        assert sorted(order) == list(range(4))
        async with spread.turn(0.0):
            assert len(spread.held) == 4

    asyncio.run(test())


def test_three_that_start_together_all_hold_some() -> None:
    async def test(region: Region) -> None:
        async with publishers(region, NEVER) as started:
            assert held(*started) == ONCE_EACH
            assert all(0 < len(one.serves) < 4 for one in started)

    run(test)


def test_the_shards_of_one_that_is_killed_go_to_the_others() -> None:
    async def test(region: Region) -> None:
        async with publishers(region, NEVER) as started:
            one, two, three = started
            for engine in (e for p in started for e in p.engines if e.serving):
                await apply(engine, HOSTS)
            await one.crash()
            await until(lambda: held(two, three) == ONCE_EACH, "the others serve all")
            for engine in (e for p in (two, three) for e in p.engines if e.serving):
                assert engine.core.change == 1, "nothing is lost"

    run(test)


def test_one_that_was_paused_corrupts_nothing_in_any_shard() -> None:
    async def test(region: Region) -> None:
        async with publishers(region, 3 * SOON) as (one, two, three):
            had = set(one.serves)
            for engine in one.engines:
                paused(engine)
            await until(lambda: held(two, three) == ONCE_EACH, "the others serve all")
            for shard in had:
                with pytest.raises(NotServing):
                    await apply(one.engines[shard], HOSTS)
                await resumed(one.engines[shard])
                engine = next(p.engines[shard] for p in (two, three) if p.engines[shard].serving)
                assert (await apply(engine, HOSTS)).change == 1
                assert engine.core.epoch >= 2
            assert not one.spread.held

    run(test)


@pytest.mark.parametrize(
    ("active", "own", "shard"),
    [
        (["one"] * 6, "two", 0),
        (["one"] * 6, "one", None),
        (["two", "one", "one", "one"], "two", 1),
        (["one", "two", "one"], "two", None),
        (["one", "one", "three"], "two", 0),
        (["one", "two", "three"], "four", None),
        (["one", "one", "two", "two", "three"], "three", None),
    ],
)
def test_one_asks_only_whoever_holds_two_more(
    active: list[str], own: str, shard: int | None
) -> None:
    assert asks(active, own) == shard


def test_asking_ends_with_shares_that_differ_by_one_at_most() -> None:
    for publishers in range(1, 9):
        active = ["p0"] * 20
        for _ in range(100):
            for own in (f"p{n}" for n in range(publishers)):
                shard = asks(active, own)
                if shard is not None:
                    active[shard] = own
        counts = Counter(active)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == publishers


def test_a_shard_is_handed_over_with_all_that_was_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake_module, "FULL_BYTES", 1)

    async def test(region: Region) -> None:
        one = Publisher(region, "one", NEVER)
        await one.start()
        two = Publisher(region, "two", NEVER)
        await two.start()
        try:
            assert one.serves == set(range(SHARDS))
            engine = one.engines[2]
            region.cut(Wire.LATE, engine.topics.intent_log)
            accepted = [begin(engine, intent) for intent in build()]
            await until(
                lambda: len(serving_now(engine).intake.appended) == len(accepted),
                "all are on their way",
            )
            handing = asyncio.ensure_future(engine.hand_over())
            await until(lambda: not engine.serving, "it takes no more")
            with pytest.raises(NotServing):
                await apply(engine, HOSTS)
            region.mend()
            region.release()
            assert await handing
            assert [(await one_of).change for one_of in accepted] == [1, 2, 3, 4]
            await until(lambda: two.engines[2].serving, "the other one serves it")
            assert two.engines[2].core.change == 4
            assert (one.serves, two.serves) == (set(range(SHARDS)) - {2}, {2})
            await until(lambda: one.engines[2].standing_by, "it stands by")
            assert not await one.engines[2].hand_over(), "it is not its own any more"
            assert (await apply(two.engines[2], *build())).changed_objects == 0
        finally:
            await one.stop()
            await two.stop()

    run(test)


def test_a_shard_that_nobody_takes_is_taken_back() -> None:
    async def test(region: Region) -> None:
        one = Publisher(region, "one", SOON)
        await one.start()
        try:
            assert await one.engines[1].hand_over()
            assert not one.engines[1].serving
            await until(lambda: one.engines[1].serving, "it serves it again")
            assert one.engines[1].core.epoch == 2
        finally:
            await one.stop()

    run(test)


class Giving:
    """An engine as the peer service sees one: it holds three shards, and gives when it is told."""

    def __init__(self) -> None:
        self.held = 3
        self.begun = 0
        self.gives = asyncio.Event()

    async def hand_over(self) -> bool:
        self.begun += 1
        await self.gives.wait()
        self.held -= 1
        return True


def test_one_shard_is_handed_over_at_a_time_also_where_who_asked_for_it_is_gone() -> None:
    async def test() -> None:
        engine = Giving()
        service = PeerService([engine] * SHARDS)  # type: ignore[list-item]
        request = peer_pb2.HandOverRequest(shard=1, held=1, writer="two")
        first = asyncio.ensure_future(service.HandOver(request, None))
        await until(lambda: engine.begun, "it hands over")
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.ensure_future(service.HandOver(request, None))
        for _ in range(10):
            await asyncio.sleep(0)
        assert engine.begun == 1
        engine.gives.set()
        assert not (await second).given, "it holds one more than who asks"
        assert engine.held == 2

    asyncio.run(test())
