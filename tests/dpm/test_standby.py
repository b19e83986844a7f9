"""Two publishers for one region: one serves, the other stands by, and nothing is lost between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from goalstate.bus.errors import ProducerFenced
from goalstate.dpm.engine import Engine, Outcome
from goalstate.dpm.errors import NotServing
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.recovery import Replay
from goalstate.gs import envelope as envelopes
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from tests.dpm.test_engine import (
    V1,
    apply,
    begin,
    crash,
    new_engine,
    serving_now,
    state,
    wait,
)
from tests.dpm.test_path_independence import HOSTS, build, network
from tests.dpm.wires import Region, Wire, until

#: Seconds: a standby need not wait long for a silence, nor an active one be fast to be heard.
SOON = 0.3
NEVER = 3600.0


@asynccontextmanager
async def engines(region: Region, *names: str, **more: Any) -> AsyncIterator[list[Engine]]:
    """Started one after the other, so that the first serves."""
    started = []
    try:
        for name in names:
            engine = new_engine(region, writer=name, **more)
            engine.address = f"{name}:1"
            started.append(engine)
            await engine.start()
        yield started
    finally:
        for engine in started:
            await engine.stop()
            await engine._bus.close()


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


def paused(engine: Engine) -> None:
    """It says nothing more, as when its process is stopped."""
    for task in engine._succession.tasks:
        task.cancel()


async def resumed(engine: Engine) -> None:
    engine._succession.go_on(engine._succession._say_alive())
    await until(lambda: engine.standing_by, "the old one knows that it does not serve")


def test_the_second_stands_by_and_follows() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=NEVER) as (one, two):
            assert (one.serving, two.serving, two.standing_by) == (True, False, True)
            await apply(one, *build())
            await until(lambda: two.core.change == len(build()), "the other has followed")
            assert state(two) == state(one)
            for engine in (one, two):
                assert engine.active == log_pb2.Alive(writer="one", address="one:1")
            assert two.problem == "standing by; one at one:1 serves the region"
            with pytest.raises(NotServing, match="one at one:1 serves"):
                await apply(two, network(1))
            with pytest.raises(NotServing):
                await wait(two, 0)
            assert region.logged() == list(range(1, len(build()) + 1))

    run(test)


def test_a_standby_takes_over_at_once_when_the_active_one_is_gone() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=NEVER) as (one, two):
            await apply(one, *build())
            before = state(one)
            await crash(one, region)
            await until(lambda: two.serving, "the other serves")
            assert state(two) == before
            assert (two.core.epoch, two.standing_by, two.problem) == (2, False, "")
            assert (await apply(two, *build()[-1:])).changed_objects == 0

    run(test)


@pytest.mark.parametrize("sent", range(3))
def test_what_the_active_one_had_not_published_is_published(sent: int) -> None:
    async def test(region: Region) -> None:
        undisturbed = Region()
        async with engines(undisturbed, "one") as (engine,):
            await apply(engine, *build())
            await until(lambda: engine.backlog == 0, "all is published")
        async with engines(region, "one", "two", failover_after_s=NEVER) as (one, two):
            region.cut(Wire.DEAD, region.topics.of_stream(V1), after=sent)
            await apply(one, *build())
            await crash(one, region)
            await until(lambda: two.serving and two.backlog == 0, "the other has published")
            assert region.streams() == undisturbed.streams()

    run(test)


def test_a_standby_takes_over_from_one_that_is_silent() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, two):
            await apply(one, *build())
            paused(one)
            await until(lambda: two.serving, "the other serves")
            assert not one.serving, "what it holds may be outdated"
            assert two.core.epoch == 2

    run(test)


def test_who_is_heard_is_not_taken_over_from() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, _):
            said = len(region.messages(region.topics.intent_log)) + 6
            await until(
                lambda: len(region.messages(region.topics.intent_log)) >= said,
                "twice the time after which silence would count",
            )
            assert one.serving
            assert one.core.epoch == 1

    run(test)


def test_an_outage_of_the_broker_is_not_held_against_the_active_one() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, two):
            standby = two._succession._standby
            region.broker.partition(names=["two"])
            await until(
                lambda: two._succession._standby is not standby, "it notices that it is cut off"
            )
            until_then = len(region.messages(region.topics.intent_log)) + 6
            await until(
                lambda: len(region.messages(region.topics.intent_log)) >= until_then,
                "twice the time after which silence would count",
            )
            await apply(one, HOSTS)
            region.broker.heal()
            await until(lambda: two.core.change == 1, "it follows again")
            assert (one.serving, one.core.epoch, two.standing_by) == (True, 1, True)

    run(test)


def test_an_old_active_one_that_wakes_up_corrupts_nothing() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, two):
            await apply(one, *build()[:2])
            paused(one)
            await until(lambda: two.serving, "the other serves")
            await apply(two, *build()[2:])
            written = len(region.messages(region.topics.intent_log))
            with pytest.raises(NotServing):
                await apply(one, network(7))
            with pytest.raises(NotServing):
                await apply(one, build()[0])  # a repetition, as far as it knows
            # Even if it took itself for active:
            serving_now(one).leadership.proven_at = float("inf")
            assert one.serving
            with pytest.raises(NotServing):
                await apply(one, network(8))
            await resumed(one)
            assert one.active == log_pb2.Alive(writer="two", address="two:1")
            said = region.messages(region.topics.intent_log)[written:]
            bodies = [log_pb2.Record.FromString(m.payload) for m in said]
            assert {record.alive.writer for record in bodies if record.HasField("alive")} <= {"two"}
            assert not [record for record in bodies if record.HasField("change")]
            await apply(two, network(9))
            await until(lambda: state(one) == state(two), "the old one follows the new one")
            await until(lambda: two.backlog == 0, "all is published")
            for stream, messages in region.streams().items():
                marks = [envelope.mark for envelope, _ in messages]
                assert marks == sorted(set(marks)), stream

    run(test)


def test_an_old_active_one_gets_its_streams_taken() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(V1)
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, two):
            await apply(one, *build()[:2])
            await until(lambda: one.backlog == 0, "all is published")
            paused(one)
            await until(lambda: two.serving, "the other serves")
            await apply(two, *build()[2:])
            await until(lambda: two.backlog == 0, "it publishes where the old one held the topic")
            last = region.messages(topic)[-1]
            assert envelopes.from_properties(last.properties).mark.epoch == 2
            written = len(region.messages(topic))
            producers = [p for p in one._bus.inner.producers if p.topic == topic]  # type: ignore[attr-defined]
            for producer in producers:
                with pytest.raises(ProducerFenced):
                    await producer.send(b"late")
            assert producers
            assert len(region.messages(topic)) == written

    run(test)


def test_waits_at_one_that_was_thrown_out_end() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, two):
            outcome = await apply(one, *build())
            waiting = asyncio.ensure_future(wait(one, 60, change=outcome.change))
            paused(one)
            await until(lambda: two.serving, "the other serves")
            await resumed(one)
            with pytest.raises(NotServing, match="two at two:1 serves"):
                await waiting
            assert not (await wait(two, 0, change=outcome.change)).converged

    run(test)


@pytest.mark.parametrize("wire", [Wire.DEAD, Wire.HELD, Wire.LATE])
def test_what_was_acknowledged_stays_and_the_rest_is_there_wholly_or_not(wire: Wire) -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", failover_after_s=SOON) as (one, two):
            accepted = await apply(one, *build()[:3])
            region.cut(wire, region.topics.intent_log)
            unsure: list[asyncio.Task[Outcome]] = [begin(one, i) for i in build()[3:5]]
            await until(lambda: not one.lock.locked() and one.core.change >= 4, "it is sent")
            paused(one)
            region.mend()
            await until(lambda: two.serving, "the other serves")
            assert two.core.change in (accepted.change, accepted.change + 1, accepted.change + 2)
            reference = Region()
            async with engines(reference, "one") as (alone,):
                await apply(alone, *build()[: two.core.change])
                for kind, objects in state(alone)["objects"].items():
                    assert state(two)["objects"][kind] == objects
            region.release()
            await resumed(one)
            for task in unsure:
                if not task.done() or task.exception() is None:
                    assert two.core.change >= (await task).change

    run(test)


def test_epochs_grow_from_one_to_the_next() -> None:
    async def test(region: Region) -> None:
        async with engines(region, "one", "two", "three", failover_after_s=NEVER) as all_three:
            left = list(all_three)
            for epoch in (1, 2, 3):
                await until(lambda: any(e.serving for e in left), "somebody serves")
                (active,) = [engine for engine in left if engine.serving]
                assert active.core.epoch == epoch
                assert (await apply(active, build()[epoch - 1])).change == epoch
                others = [engine for engine in left if engine is not active]
                await until(
                    lambda: all(e.core.change == epoch for e in others),  # noqa: B023
                    "the others follow",
                )
                left.remove(active)
                await crash(active, region)

    run(test)


@pytest.mark.parametrize("silent", [False, True])
def test_of_two_that_stand_by_one_takes_over(silent: bool) -> None:
    async def test(region: Region) -> None:
        after = SOON if silent else NEVER
        async with engines(region, "one", "two", "three", failover_after_s=after) as those:
            one, *others = those
            await apply(one, *build()[:2])
            if silent:
                paused(one)
            else:
                await crash(one, region)
            await until(lambda: any(e.serving for e in others), "one of the others serves")
            await until(
                lambda: (
                    sorted(e.serving for e in others) == [False, True]
                    and any(e.active == w.active for e in others for w in others if e is not w)
                ),
                "the other one follows it",
            )
            (winner,) = [engine for engine in others if engine.serving]
            await apply(winner, *build()[2:])
            await until(lambda: len({e.core.change for e in others}) == 1, "it follows")

    run(test)


# --- the log ---


def record(epoch: int = 0, change: int = 0) -> log_pb2.Record:
    if epoch:
        return log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=epoch))
    return log_pb2.Record(published=log_pb2.Published(change=change))


def test_what_a_session_says_after_another_began_is_passed_over() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.intent_log
        old, new = IntentLog(region.bus(), topic), IntentLog(region.bus(), topic)
        await old.open("old")
        await old.append(record(epoch=1))
        await new.open("new", take_over=True)
        await new.append(record(epoch=2))
        late = record(change=7)
        for number in (2, 3):
            region.broker.publish(
                topic,
                late.SerializeToString(),
                properties={"session": old._session, "number": str(number), "part": "1/1"},
            )
        await new.append(record(change=3))
        expected = [record(epoch=1), record(epoch=2), record(change=3)]
        reading = IntentLog(region.bus(), topic)
        places = []
        found = []
        async for one in reading.records():
            found.append(one)
            places.append(reading.place)
        assert found == expected
        for at, place in enumerate(places, 1):
            assert [one async for one in reading.records(place)] == expected[at:]

    run(test)


def test_an_incarnation_that_came_too_late_counts_for_nothing() -> None:
    replay = Replay(Region().topics, security_groups_own_stream=False)
    for epoch, writer in ((1, "a"), (2, "b"), (2, "c")):
        begun = log_pb2.Incarnation(epoch=epoch, writer=writer)
        replay.redo(log_pb2.Record(incarnation=begun))
    assert replay.core.epoch == 2
    assert replay.active == log_pb2.Alive(writer="b")


def test_of_two_incarnations_under_one_number_the_second_is_repeated_above() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.intent_log
        async with engines(region, "one") as (one,):
            await apply(one, HOSTS)
        two = new_engine(region, writer="two")
        append = IntentLog.append
        raced = False

        def late(self: IntentLog, appended: log_pb2.Record) -> asyncio.Future[bytes]:
            nonlocal raced
            if appended.HasField("incarnation") and not raced:
                raced = True
                region.broker.publish(
                    topic,
                    record(epoch=2).SerializeToString(),
                    properties={"session": "another", "number": "1", "part": "1/1"},
                )
            return append(self, appended)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(IntentLog, "append", late)
            await two.start()
        assert (two.serving, two.core.epoch) == (True, 3)
        await apply(two, network(1))
        await two.stop()
        await two._bus.close()
        async with engines(region, "three") as (three,):
            assert (three.core.epoch, three.core.change) == (4, 2)

    run(test)
