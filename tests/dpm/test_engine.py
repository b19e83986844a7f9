"""The engine: durable before it is said, published exactly once in effect, and itself again after
whatever happened to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from goalstate.bus.errors import BrokerUnreachable
from goalstate.dpm import engine as engine_module
from goalstate.dpm import intake as intake_module
from goalstate.dpm import succession as succession_module
from goalstate.dpm.convergence import Progress, Why
from goalstate.dpm.core import Core
from goalstate.dpm.engine import Engine, Outcome
from goalstate.dpm.errors import LogUnreadable, NotServing, UnknownChange
from goalstate.dpm.incarnation import Incarnation
from goalstate.dpm.inventory import Publication
from goalstate.dpm.metrics import Metrics
from goalstate.gs import intent_codec
from goalstate.gs.desired import Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Deletion, Host, Intent, ObjectKind
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import ORIGIN, Mark, StreamId, inbox_stream, vpc_stream
from tests.dpm.reading import Readings
from tests.dpm.test_core import agree
from tests.dpm.test_path_independence import HOSTS, build, moves, network, port, removal
from tests.dpm.wires import Region, Wire, until

K = ObjectKind
V1, V2 = vpc_stream("v1"), vpc_stream("v2")
R0 = inbox_stream("r0")
SECOND = 1_000_000_000


class Clock:
    """Time as the test has it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000 * SECOND

    def __call__(self) -> int:
        return self.now


CLOCK_ID = "here"
#: Bytes: the hosts are a large intent then, and a network is a small one.
LARGE = max(intent_codec.to_proto(network(n)).ByteSize() for n in (1, 2))
MANY_HOSTS = Intent(
    hosts=[
        *HOSTS.hosts,
        *(Host(f"g{n}", f"100.64.1.{n}", f"02:00:00:00:01:{n:02x}", "r3") for n in range(1, 50)),
    ]
)


def new_engine(
    region: Region,
    clock: Clock | None = None,
    *,
    writer: str = "dpm-1",
    own_stream: bool = False,
    **more: Any,
) -> Engine:
    clock = clock or Clock()
    return Engine(
        region.bus(writer),
        region.topics,
        writer=writer,
        clock_id=CLOCK_ID,
        metrics=Metrics(),
        security_groups_own_stream=own_stream,
        clock_ns=clock,
        **{"steady_ns": clock, **more},
    )


@asynccontextmanager
async def serving(region: Region, **more: Any) -> AsyncIterator[Engine]:
    engine = new_engine(region, **more)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
        await engine._bus.close()


async def crash(engine: Engine, region: Region) -> None:
    """What the broker sees when the process is killed: nothing more, and connections that end."""
    region.cut(Wire.DEAD)
    await engine._bus.close()
    for task in (*engine._succession.tasks, *engine._applying):
        task.cancel()
    region.mend()


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


async def apply(engine: Engine, *intents: Intent) -> Outcome:
    for intent in intents:
        outcome = await engine.apply(intent_codec.to_proto(intent))
    return outcome


def begin(engine: Engine, intent: Intent) -> asyncio.Task[Outcome]:
    return asyncio.ensure_future(engine.apply(intent_codec.to_proto(intent)))


def concerned(engine: Engine, outcome: Outcome) -> set[str]:
    """The hosts that a change is for."""
    hosts = [engine.core.concerned(requirement) for requirement in outcome.requirements]
    return set().union(*hosts)


def serving_now(engine: Engine) -> Incarnation:
    """The one that serves, or served last."""
    assert engine._incarnation is not None
    return engine._incarnation


async def out(engine: Engine) -> None:
    """Until all that was accepted is on the topics, and the log says so."""
    await until(lambda: engine.backlog == 0, "all is published")
    await until(lambda: serving_now(engine).noted == engine.core.change, "the log says so")


def state(engine: Engine) -> dict[str, Any]:
    """What a publisher knows."""
    core = engine.core
    return {
        "change": core.change,
        "objects": {kind: dict(core.desired.table(kind)) for kind in K},
        "streams": {
            stream: (head.mark, head.digest, head.resources, head.followers)
            for stream, head in core.streams.items()
        },
        "host digests": {h: core.inventory.host_digest(h) for h in ("h0", "h1", "h2", "h3", "h4")},
        "all": sorted(core.requirements_of_all(), key=str),
    }


def undisturbed(intents: list[Intent]) -> dict[StreamId, list[tuple[Any, bytes]]]:
    """What is on the streams when nothing goes wrong."""

    async def test() -> dict[StreamId, list[tuple[Any, bytes]]]:
        region = Region()
        async with serving(region) as engine:
            await apply(engine, *intents)
            await out(engine)
        return region.streams()

    return asyncio.run(test())


def without_epochs(
    streams: dict[StreamId, list[tuple[Any, bytes]]],
) -> dict[StreamId, list[tuple[Any, ...]]]:
    """Digests and payloads, in order; a message that is there again left out."""
    return {
        stream: [
            (envelope.change, envelope.chunk, envelope.digest, payload)
            for n, (envelope, payload) in enumerate(messages)
            if envelope.mark not in [other.mark for other, _ in messages[:n]]
        ]
        for stream, messages in streams.items()
    }


def checked(region: Region, engine: Engine) -> None:
    """What is on the topics keeps every law, and is what the engine says that it is."""
    readings = Readings()
    for messages in region.streams().values():
        high = ORIGIN
        for envelope, payload in messages:
            if envelope.mark > high:
                high = envelope.mark
                readings.read([Publication(envelope, payload)])
    agree(engine.core, readings)


# --- serving ---


def test_an_empty_log_is_the_beginning_of_epoch_one() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            assert engine.serving
            assert (engine.core.epoch, engine.core.change) == (1, 0)
            [record] = region.log()
            assert (record.incarnation.epoch, record.incarnation.writer) == (1, "dpm-1")
        assert not engine.serving

    run(test)


def test_what_is_accepted_is_published_as_derived() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            outcome = await apply(engine, *build())
            assert outcome.change == len(build()) == engine.core.change
            assert {str(r.stream) for r in outcome.requirements} >= {"vpc/v2", "inbox/r2"}
            await out(engine)
            checked(region, engine)
            assert region.logged() == [1, 2, 3, 4]

    run(test)


def test_messages_are_stamped_when_they_are_sent() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            accepted_at = clock.now
            await apply(engine, *build())
            await out(engine)
            stamps = {
                m.properties["published_ns"] for m in region.messages(region.topics.of_stream(V1))
            }
            assert stamps == {str(accepted_at)}
            assert {r.change.accepted_unix_ns for r in region.log() if r.HasField("change")} == {
                accepted_at
            }

    run(test)


def test_an_intent_is_durable_before_anybody_hears_of_it() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build()[:-1])
            await out(engine)
            heard = len(region.stream(V2)), len(region.stream(R0))
            region.cut(Wire.HELD, region.topics.intent_log)
            waiting = begin(engine, build()[-1])
            await until(lambda: region.held, "the intent is on its way into the log")
            await asyncio.sleep(0)
            assert not waiting.done()
            assert (len(region.stream(V2)), len(region.stream(R0))) == heard
            region.mend()
            region.release()
            assert (await waiting).change == len(build())
            await out(engine)
            assert len(region.stream(V2)) > heard[0]

    run(test)


def test_intents_are_accepted_while_earlier_ones_are_on_their_way_into_the_log() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            region.cut(Wire.HELD, region.topics.intent_log)
            waiting = [begin(engine, intent) for intent in build()]
            await until(lambda: engine.core.change == len(build()), "all are accepted")
            assert not any(task.done() for task in waiting)
            region.mend()
            region.release()
            outcomes = await asyncio.gather(*waiting)
            assert [outcome.change for outcome in outcomes] == [1, 2, 3, 4]
            assert region.logged() == [1, 2, 3, 4]
            await out(engine)
            checked(region, engine)

    run(test)


def test_a_refused_intent_is_nowhere() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            await out(engine)
            before, on_topics, in_log = state(engine), region.streams(), region.logged()
            with pytest.raises(IntentRejected):
                await apply(engine, Intent(ports=(port(1, 9, "h0"), port(1, 10, "nowhere"))))
            assert (state(engine), region.streams(), region.logged()) == (before, on_topics, in_log)

    run(test)


def test_an_intent_that_changes_nothing_is_not_logged() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            assert await apply(engine, Intent()) == Outcome(0, 0, [])
            await apply(engine, *build())
            logged = region.logged()
            assert await apply(engine, *build()) == Outcome(4, 0, [])
            assert region.logged() == logged

    run(test)


def test_a_repeated_intent_is_answered_when_what_it_repeats_is_durable() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            region.cut(Wire.HELD, region.topics.intent_log)
            first, again = begin(engine, HOSTS), begin(engine, HOSTS)
            await until(lambda: region.held, "the first is on its way into the log")
            await asyncio.sleep(0)
            assert not first.done()
            assert not again.done()
            region.mend()
            region.release()
            assert (await first).changed_objects == len(HOSTS.hosts)
            assert await again == Outcome(1, 0, [])

    run(test)


LEAVES = {
    "a port that goes": Intent(deletes=(Deletion(ObjectKind.PORT, "v1-p2"),)),
    "a port that moves": Intent(ports=(port(1, 2, "h1"),)),
}


@pytest.mark.parametrize("intent", LEAVES.values(), ids=LEAVES)
def test_a_host_is_waited_for_until_the_log_has_the_change_by_which_it_leaves(
    intent: Intent,
) -> None:
    """The change may be lost, and the host stays."""

    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, HOSTS, network(1), Intent(ports=(port(1, 1, "h1"),)))
            earlier = await apply(engine, Intent(ports=(port(1, 2, "h2"),)))
            stream = vpc_stream("v1")
            region.cut(Wire.HELD, region.topics.intent_log)
            leaving = begin(engine, intent)
            await until(lambda: region.held, "it is on its way into the log")
            assert not engine.core.follows("h2", stream)
            assert engine.core.waits_for("h2", stream)
            assert "h2" in concerned(engine, earlier)
            region.mend()
            region.release()
            await leaving
            assert not engine.core.waits_for("h2", stream)

    run(test)


def test_a_host_is_waited_for_on_its_inbox_until_the_log_says_that_it_is_gone() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, HOSTS)
            host = HOSTS.hosts[0]
            region.cut(Wire.HELD, region.topics.intent_log)
            leaving = begin(engine, Intent(deletes=(Deletion(ObjectKind.HOST, host.id),)))
            await until(lambda: region.held, "it is on its way into the log")
            assert engine.core.waits_for(host.id, inbox_stream(host.group))
            region.mend()
            region.release()
            await leaving
            assert not engine.core.waits_for(host.id, inbox_stream(host.group))

    run(test)


# --- large intents ---


def test_a_large_intent_leaves_the_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    threads = []
    plan = Core.plan

    def slow(core: Core, intent: Intent) -> Any:
        threads.append(threading.get_ident())
        # Comes only if the loop goes on meanwhile.
        assert looked.wait(20)
        return plan(core, intent)

    async def test(region: Region) -> None:
        async with serving(region) as engine:
            monkeypatch.setattr(intake_module, "THREAD_ABOVE_BYTES", LARGE)
            monkeypatch.setattr(Core, "plan", slow)
            large = begin(engine, MANY_HOSTS)
            await until(lambda: threads, "it is worked on")
            # Nobody else changes the core meanwhile.
            small = begin(engine, network(1))
            await asyncio.sleep(0)
            assert len(threads) == 1
            looked.set()
            assert [(await task).change for task in (large, small)] == [1, 2]
            assert threads[0] != threading.get_ident() == threads[1]

    run(test)


def test_a_caller_that_goes_away_does_not_leave_half_an_intent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = threading.Event()
    planned: list[Intent] = []
    plan = Core.plan

    def slow(core: Core, intent: Intent) -> Any:
        planned.append(intent)
        assert go_on.wait(20)
        return plan(core, intent)

    async def test(region: Region) -> None:
        async with serving(region) as engine:
            monkeypatch.setattr(intake_module, "THREAD_ABOVE_BYTES", LARGE)
            monkeypatch.setattr(Core, "plan", slow)
            caller = begin(engine, MANY_HOSTS)
            await until(lambda: planned, "it is worked on")
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            assert caller.cancelled()
            go_on.set()
            assert (await apply(engine, network(1))).change == 2
            assert region.logged() == [1, 2]
            await out(engine)
            before = state(engine)
        async with serving(region) as engine:
            assert state(engine) == before

    run(test)


# --- another start ---


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
def test_a_restarted_publisher_knows_everything_and_sends_nothing_again(own_stream: bool) -> None:
    async def test(region: Region) -> None:
        async with serving(region, own_stream=own_stream) as engine:
            await apply(engine, *removal())
            await out(engine)
            before, on_topics = state(engine), region.streams()
        async with serving(region, own_stream=own_stream) as engine:
            assert state(engine) == before
            assert engine.core.epoch == 2
            await apply(engine, Intent(ports=(port(1, 30, "h3"),)))
            await out(engine)
            checked(region, engine)
            for stream, messages in on_topics.items():
                assert region.stream(stream)[: len(messages)] == messages
            [(envelope, _)] = region.stream(V1)[len(on_topics[V1]) :]
            assert (envelope.mark, envelope.after) == (Mark(2, 1), before["streams"][V1][0])

    run(test)


def test_a_restarted_publisher_can_be_asked_for_its_changes() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            outcomes = [await apply(engine, intent) for intent in build()]
        async with serving(region) as engine:
            for outcome in outcomes:
                progress = await wait(engine, 0, change=outcome.change)
                assert progress.hosts == len(concerned(engine, outcome))

    run(test)


def test_a_stop_notes_what_is_published() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region)
        await engine.start()
        await apply(engine, *build())
        await engine.stop()
        assert region.noted()[-1] == len(build())

    run(test)


# --- killed ---


@pytest.mark.parametrize("sent", range(4))
@pytest.mark.parametrize("where", [V1, V2, R0], ids=str)
def test_what_a_killed_publisher_had_not_sent_is_sent_under_its_old_marks(
    where: StreamId, sent: int
) -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(where)
        engine = new_engine(region)
        await engine.start()
        region.cut(Wire.DEAD, topic, after=sent)
        await apply(engine, *moves())
        others = [s for s in engine.core.streams if s != where]
        await until(
            lambda: all(
                region.stream(s)[-1][0].mark == engine.core.streams[s].mark for s in others
            ),
            "the other streams are out",
        )
        assert len(region.stream(where)) == min(sent, len(expected[where]))
        before = state(engine)
        await crash(engine, region)
        async with serving(region) as engine:
            await out(engine)
            assert state(engine) == before
            assert region.streams() == expected
            assert engine.core.epoch == 2

    expected = undisturbed(moves())
    run(test)


def test_what_was_sent_again_on_the_way_is_not_missing() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(V1)
        engine = new_engine(region)
        await engine.start()
        region.cut(Wire.UNSURE, topic)
        waiting = begin(engine, build()[0])
        await waiting
        await apply(engine, build()[1])
        await until(lambda: len(region.stream(V1)) > 3, "it is there several times")
        await crash(engine, region)
        count = len(region.stream(V1))
        async with serving(region) as engine:
            await out(engine)
            assert len(region.stream(V1)) == count
            checked(region, engine)

    run(test)


def test_a_publisher_that_is_killed_again_before_it_has_sent_forgets_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # At each turn of the loop it looks whether there is something to note.
    monkeypatch.setattr(engine_module, "PUBLISHED_NOTE_S", 0)

    async def test(region: Region) -> None:
        topic = region.topics.of_stream(V1)
        region.cut(Wire.DEAD, topic)
        engine = new_engine(region)
        await engine.start()
        await apply(engine, *build())
        for number in range(2, 4):
            await crash(engine, region)
            region.cut(Wire.DEAD, topic)
            engine = new_engine(region)
            await engine.start()
            assert engine.core.epoch == number
            # It is not noted as published for as long as it is not.
            await apply(engine, Intent(hosts=(HOSTS.hosts[0]._replace(site=f"s{number}"),)))
            for _ in range(50):
                await asyncio.sleep(0)
            assert engine.backlog > 0
            assert set(region.noted()) <= {1}
        await crash(engine, region)
        async with serving(region) as engine:
            await out(engine)
            assert region.stream(V1) == undisturbed_v1
            checked(region, engine)

    undisturbed_v1 = undisturbed(build())[V1]
    run(test)


def test_a_note_spares_the_next_start_the_look_at_the_topics() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
        for topic in region.broker.topics:
            if topic != region.topics.intent_log:
                region.broker.trim(topic, 0)
        async with serving(region) as engine:
            await out(engine)
            assert region.streams().keys() and not any(region.streams().values())

    run(test)


def test_strange_messages_on_a_topic_do_not_hide_what_is_missing_nor_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "PUBLISHED_NOTE_S", 60)  # nothing is noted

    async def test(region: Region) -> None:
        topic = region.topics.of_stream(V1)
        engine = new_engine(region)
        await engine.start()
        await apply(engine, *build()[:2])
        await until(lambda: region.stream(V1), "the VPC is out")
        region.cut(Wire.DEAD, topic)
        await apply(engine, build()[2])
        await crash(engine, region)
        ours = region.messages(topic)[-1]
        foreign = dict(ours.properties, stream="vpc/other", seq="99")
        region.broker.publish(topic, b"hello", properties={})
        region.broker.publish(topic, ours.payload, properties=foreign)
        async with serving(region) as engine:
            await until(lambda: engine.backlog == 0, "what is missing is sent")
            messages = region.messages(topic)
            assert [m.properties.get("seq") for m in messages] == ["1", None, "99", "2"]

    run(test)


# --- a log that fails ---


@pytest.mark.parametrize("wire", [Wire.FAILS, Wire.UNSURE])
def test_a_log_that_fails_is_told_and_the_publisher_recovers_by_itself(wire: Wire) -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build()[:3])
            region.cut(wire, region.topics.intent_log)
            waiting = [begin(engine, build()[3]), begin(engine, Intent(ports=(port(1, 9, "h0"),)))]
            for task in waiting:
                with pytest.raises(NotServing):
                    await task
            assert not engine.serving
            with pytest.raises(NotServing):
                await apply(engine, build()[3])
            region.mend()
            await until(lambda: engine.serving, "it serves again")
            # Of what failed, it knows exactly what is in the log.
            assert region.logged() == list(range(1, engine.core.change + 1))
            assert (engine.core.change > 3) == (wire is Wire.UNSURE)
            outcome = await apply(engine, build()[3])
            assert (outcome.changed_objects == 0) == (wire is Wire.UNSURE)
            await out(engine)
            checked(region, engine)
            before = state(engine)
        async with serving(region) as engine:
            assert state(engine) == before

    run(test)


def test_a_broker_that_is_away_is_waited_for() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build()[:2])
            region.broker.stop()
            with pytest.raises(NotServing):
                await apply(engine, build()[2])
            await until(lambda: "cannot recover" in engine.problem, "an attempt")
            assert not engine.serving
            region.broker.start()
            await until(lambda: engine.serving, "it serves again")
            await apply(engine, *build()[2:])
            await out(engine)
            checked(region, engine)

    run(test)


def test_a_log_that_somebody_else_holds_for_a_while_is_waited_for() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            region.cut(Wire.FAILS, region.topics.intent_log)
            with pytest.raises(NotServing):
                await apply(engine, HOSTS)
            # Our own lost connection, as the broker may see it.
            other = region.bus("lost")
            topic = region.topics.intent_log
            await until(lambda: region.broker._logs[topic].producers == 0, "the log is given up")
            claim = await other.open_producer(topic, exclusive=True)
            region.mend()
            opened = region.opened[topic]
            await until(lambda: region.opened[topic] > opened + 3, "several attempts")
            assert not engine.serving
            await claim.close()
            await until(lambda: engine.serving, "it serves again")

    run(test)


def test_a_repetition_of_what_is_lost_is_not_said_to_be_durable() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            region.cut(Wire.FAILS, region.topics.intent_log)
            first, again = begin(engine, HOSTS), begin(engine, HOSTS)
            for task in (first, again):
                with pytest.raises(NotServing):
                    await task
            region.mend()
            await until(lambda: engine.serving, "it serves again")
            assert (await apply(engine, HOSTS)).changed_objects == len(HOSTS.hosts)

    run(test)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_log_that_fails_while_a_large_intent_is_worked_on_takes_that_with_it(
    repeated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    planned: list[Intent] = []
    plan = Core.plan

    def slow(core: Core, intent: Intent) -> Any:
        if intent.hosts:
            planned.append(intent)
            assert go_on.wait(20)
        return plan(core, intent)

    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, network(1))
            if repeated:
                await apply(engine, MANY_HOSTS)
            monkeypatch.setattr(intake_module, "FULL_BYTES", LARGE)
            monkeypatch.setattr(intake_module, "THREAD_ABOVE_BYTES", LARGE)
            monkeypatch.setattr(Core, "plan", slow)
            region.cut(Wire.HELD, region.topics.intent_log)
            small = begin(engine, network(2))
            await until(lambda: region.held, "the small one is on its way into the log")
            large = begin(engine, MANY_HOSTS)
            await until(lambda: planned, "the large one is worked on")
            region.broker.stop()
            region.release()
            with pytest.raises(NotServing):
                await small
            region.broker.start()
            region.mend()
            go_on.set()
            with pytest.raises(NotServing, match="nothing of the intent was taken"):
                await large
            await until(lambda: engine.serving, "it serves again")
            assert region.logged() == list(range(1, engine.core.change + 1))
            await apply(engine, MANY_HOSTS, network(2))
            before = state(engine)
        async with serving(region) as engine:
            assert state(engine) == before

    run(test)


def test_a_defect_within_an_intent_does_not_stay_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = Desired.commit
    broken = [True]

    def fails(desired: Desired, changes: Any) -> None:
        commit(desired, changes)
        if broken.pop():
            raise RuntimeError("a defect")

    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, network(1))
            monkeypatch.setattr(Desired, "commit", fails)
            with pytest.raises(NotServing, match="a defect"):
                await apply(engine, HOSTS)
            monkeypatch.setattr(Desired, "commit", commit)
            await until(lambda: engine.serving, "it serves again")
            assert (await apply(engine, HOSTS)).changed_objects == len(HOSTS.hosts)

    run(test)


def test_a_stop_while_the_log_is_away_ends_and_loses_nothing_that_was_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(succession_module, "STOP_S", 0.05)

    async def test(region: Region) -> None:
        engine = new_engine(region)
        await engine.start()
        await apply(engine, *build()[:3])
        region.cut(Wire.DEAD)
        waiting = begin(engine, build()[3])
        await until(lambda: engine.core.change == 4, "it is accepted")
        await engine.stop()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled() or isinstance(waiting.exception(), NotServing)
        region.mend()
        await engine._bus.close()
        async with serving(region) as engine:
            assert engine.core.change == 3

    run(test)


def test_a_stop_while_it_recovers_ends_that() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region)
        await engine.start()
        region.broker.stop()
        with pytest.raises(NotServing):
            await apply(engine, HOSTS)
        await engine.stop()
        region.broker.start()
        assert not engine.serving
        async with serving(region, writer="dpm-2") as second:
            assert second.core.epoch == 2
            assert not engine.serving

    run(test)


def test_a_log_that_fails_at_the_stop_is_not_recovered_from() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region)
        await engine.start()
        region.cut(Wire.HELD, region.topics.intent_log)
        waiting = begin(engine, HOSTS)
        await until(lambda: region.held, "it is on its way into the log")
        stopping = asyncio.ensure_future(engine.stop())
        await until(lambda: not engine.serving, "it stops")
        region.broker.stop()
        region.release()
        region.broker.start()
        with pytest.raises(NotServing):
            await waiting
        assert not engine._succession.tasks, "it recovers"
        await stopping
        assert not engine.serving
        assert engine.core.epoch == 1

    run(test)


def test_nothing_is_accepted_before_the_start_nor_after_the_stop() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region)
        with pytest.raises(NotServing):
            await apply(engine, HOSTS)
        await engine.start()
        await engine.stop()
        with pytest.raises(NotServing):
            await apply(engine, HOSTS)
        assert engine.backlog == 0

    run(test)


def test_without_a_broker_there_is_no_start() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region)
        region.broker.stop()
        with pytest.raises(BrokerUnreachable):
            await engine.start()
        await engine.stop()
        assert not engine.serving

    run(test)


def test_a_note_that_cannot_be_written_is_written_later() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            await out(engine)
            region.cut(Wire.FAILS, region.topics.intent_log, after=1)
            await apply(engine, Intent(ports=(port(1, 9, "h0"),)))
            fails = len(region.noted())
            await until(lambda: engine.backlog == 0, "it is published")
            region.mend()
            await out(engine)
            assert len(region.noted()) > fails

    run(test)


# --- a log that cannot be read ---


def change(number: int, intent: Intent) -> log_pb2.Record:
    message = log_pb2.Change(change=number, intent=intent_codec.to_proto(intent))
    return log_pb2.Record(change=message)


def incarnation(epoch: int, **more: Any) -> log_pb2.Record:
    return log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=epoch, **more))


def append(region: Region, *records: log_pb2.Record) -> None:
    """As whoever wrote last would."""
    messages = region.messages(region.topics.intent_log)
    last = messages[-1].properties if messages else {"session": "test", "number": "0"}
    for number, record in enumerate(records, int(last["number"]) + 1):
        region.broker.publish(
            region.topics.intent_log,
            record.SerializeToString(),
            properties={"session": last["session"], "number": str(number), "part": "1/1"},
        )


UNREADABLE = {
    "change 2.*would be change 1": [incarnation(1), change(2, HOSTS)],
    "change 1.*no host": [incarnation(1), change(1, Intent(deletes=(Deletion(K.HOST, "h9"),)))],
    "change 1.*not the first": [change(1, HOSTS)],
    "incarnation.*not the first": [incarnation(2)],
    "incarnation.*security_groups: own-stream": [incarnation(1, security_groups_own_stream=True)],
    "published.*no change 7": [
        incarnation(1),
        log_pb2.Record(published=log_pb2.Published(change=7)),
    ],
    "says nothing that is known": [incarnation(1), log_pb2.Record()],
}


@pytest.mark.parametrize("reason", UNREADABLE)
def test_a_log_that_no_publisher_wrote_is_refused_by_record_and_left_alone(reason: str) -> None:
    async def test(region: Region) -> None:
        append(region, *UNREADABLE[reason])
        engine = new_engine(region)
        with pytest.raises(LogUnreadable, match=rf"record \d .*{reason}"):
            await engine.start()
        await engine.stop()
        assert region.log() == UNREADABLE[reason]
        assert not region.streams()
        # It is held by nobody.
        claim = await region.bus().open_producer(region.topics.intent_log, exclusive=True)
        await claim.close()

    run(test)


def test_the_placement_of_security_groups_stays_what_the_log_says() -> None:
    async def test(region: Region) -> None:
        async with serving(region, own_stream=True) as engine:
            await apply(engine, *build())
        other = new_engine(region)
        with pytest.raises(LogUnreadable, match="serve it with the same setting"):
            await other.start()
        await other.stop()
        async with serving(region, own_stream=True) as engine:
            assert engine.core.change == len(build())

    run(test)


def test_a_log_that_becomes_unreadable_ends_the_publisher_with_the_reason() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            region.cut(Wire.FAILS, region.topics.intent_log)
            with pytest.raises(NotServing):
                await apply(engine, HOSTS)
            append(region, log_pb2.Record())
            region.mend()
            await until(engine.failed.is_set, "it gives up")
            assert isinstance(engine.failure, LogUnreadable)
            assert not engine.serving

    run(test)


# --- reports and waits ---


def host_report(
    name: str, number: int, marks: dict[StreamId, Mark], **more: Any
) -> agent_pb2.HostReport:
    return agent_pb2.HostReport(
        host=name,
        incarnation=1,
        number=number,
        lease_s=more.pop("lease_s", 30.0),
        streams=[
            agent_pb2.StreamReport(
                stream=str(stream),
                epoch=mark.epoch,
                sequence=mark.sequence,
                applied_unix_ns=more.get("applied_ns", 0),
            )
            for stream, mark in marks.items()
        ],
    )


def send(region: Region, *hosts: agent_pb2.HostReport, clock_id: str = CLOCK_ID) -> None:
    report = agent_pb2.Report(hosts=hosts, clock_id=clock_id)
    region.broker.publish(region.topics.reports(0), report.SerializeToString())


def all_of(engine: Engine, name: str) -> dict[StreamId, Mark]:
    """Where a host is that has everything."""
    return {s: head.mark for s, head in engine.core.streams.items() if engine.core.follows(name, s)}


def send_all(region: Region, engine: Engine, *names: str, number: int = 1) -> None:
    send(region, *(host_report(name, number, all_of(engine, name)) for name in names))


async def wait(engine: Engine, timeout_s: float = 20.0, **target: Any) -> Progress:
    wanted: dict[str, Any] = {"quorum": 1.0, "max_stragglers": 10, **target}
    return await engine.wait(timeout_s=timeout_s, **wanted)


EVERYBODY = ("h0", "h1", "h2", "h3", "h4")


def test_a_wait_ends_when_the_last_host_has_said_that_it_has_it() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            outcome = await apply(engine, *build())
            waiting = [
                asyncio.ensure_future(wait(engine, change=outcome.change)),
                asyncio.ensure_future(wait(engine, vpc="v2")),
                asyncio.ensure_future(wait(engine)),
            ]
            send_all(region, engine, "h0")
            await until(lambda: "h0" in engine.convergence.hosts, "the report is taken")
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            send_all(region, engine, "h4")
            for task in waiting[:2]:
                progress = await task
                assert progress.converged
                assert progress.hosts == 2
            assert not waiting[2].done()
            send_all(region, engine, *EVERYBODY, number=2)
            assert (await waiting[2]).hosts == 5

    run(test)


def test_a_wait_without_time_says_how_things_are() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            progress = await wait(engine, 0)
            assert not progress.converged
            assert [(s.host, s.why) for s in progress.stragglers] == [
                (name, Why.NEVER_REPORTED) for name in EVERYBODY
            ]
            send_all(region, engine, *EVERYBODY)
            await until(lambda: len(engine.convergence.hosts) == 5, "the reports are taken")
            assert (await wait(engine, 0)).converged

    run(test)


def test_a_wait_ends_at_its_time_and_names_those_it_waits_for() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            send_all(region, engine, *EVERYBODY[1:])
            send(region, host_report("h0", 1, {V1: Mark(1, 1)}))
            progress = await wait(engine, 0.05, max_stragglers=1)
            assert not progress.converged
            assert (progress.hosts, progress.applied) == (5, 4)
            [straggler] = progress.stragglers
            assert (straggler.host, straggler.why) == ("h0", Why.BEHIND)
            assert straggler.applied < straggler.wanted

    run(test)


def test_a_quorum_is_enough() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            waiting = asyncio.ensure_future(wait(engine, quorum=0.5))
            await until(lambda: engine._waits.waiting, "it waits")
            send_all(region, engine, "h0", "h1", "h2")
            progress = await waiting
            assert (progress.converged, progress.needed, progress.applied) == (True, 3, 3)

    run(test)


def test_every_step_is_told_to_whoever_watches() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            steps: list[int] = []

            def told(step: int) -> bool:
                return bool(steps) and steps[-1] == step

            watching = asyncio.ensure_future(
                wait(engine, on_progress=lambda progress: steps.append(progress.applied))
            )
            for number, name in enumerate(EVERYBODY):
                await until(partial(told, number), "the step is told")
                send_all(region, engine, name)
            assert (await watching).converged
            assert steps == [0, 1, 2, 3, 4, 5]
            assert not engine._waits.waiting

    run(test)


def test_a_host_whose_lease_runs_out_meanwhile_is_left_out() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build())
            send(region, host_report("h0", 1, {}, lease_s=5))
            send_all(region, engine, *EVERYBODY[1:])
            await until(lambda: len(engine.convergence.hosts) == 5, "the reports are taken")
            waiting = asyncio.ensure_future(wait(engine))
            await until(lambda: engine._waits.waiting, "it waits")
            clock.now += 6 * SECOND
            progress = await waiting
            assert (progress.converged, progress.hosts, progress.expired) == (True, 4, ["h0"])

    run(test)


def test_latency_is_from_acceptance_to_application() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build()[:3])
            outcome = await apply(engine, build()[3])
            marks = all_of(engine, "h0"), all_of(engine, "h4")
            clock.now += SECOND
            send(region, host_report("h0", 1, marks[0], applied_ns=clock.now - SECOND // 2))
            # On another clock its time says nothing: that of receipt stands for it.
            send(region, host_report("h4", 1, marks[1], applied_ns=1), clock_id="elsewhere")
            progress = await wait(engine, change=outcome.change)
            assert sorted(progress.latencies_ns) == [SECOND // 2, SECOND]
            assert not progress.same_clock

    run(test)


def test_an_unknown_change_cannot_be_waited_for() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            for number in (0, 5):
                with pytest.raises(UnknownChange, match=f"change {number} is not known"):
                    await wait(engine, change=number)
            assert not engine._waits.waiting

    run(test)


def test_old_changes_are_waited_for_by_their_vpc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goalstate.dpm.recovery.REMEMBERED_CHANGES", 2)

    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            with pytest.raises(UnknownChange, match="wait for the VPC"):
                await wait(engine, change=2)
            assert not (await wait(engine, 0, change=3)).converged

    run(test)


def test_reports_that_make_no_sense_are_counted_and_do_not_spoil_the_others() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            topic = region.topics.reports(0)
            region.broker.publish(topic, b"\xff\xff")
            bad = host_report("h1", 1, {})
            bad.streams.add(stream="nothing", epoch=1, sequence=1)
            endless = host_report("h2", 1, all_of(engine, "h2"), lease_s=float("inf"))
            send(region, bad, endless, host_report("h0", 1, all_of(engine, "h0")))
            await until(lambda: "h0" in engine.convergence.hosts, "the good one is taken")
            assert engine.convergence.hosts.keys() == {"h0"}
            metrics = engine._metrics.reports
            counted = {
                result: metrics.labels(result=result)._value.get()
                for result in ("taken", "bad", "unreadable")
            }
            assert counted == {"taken": 1, "bad": 2, "unreadable": 1}

    run(test)


def test_no_wait_ends_early_while_the_publisher_recovers() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            outcome = await apply(engine, *build())
            waiting = [
                asyncio.ensure_future(wait(engine, change=outcome.change)),
                asyncio.ensure_future(wait(engine, vpc="v2")),
                asyncio.ensure_future(wait(engine)),
            ]
            await until(lambda: len(engine._waits.waiting) == 3, "they wait")
            region.cut(Wire.FAILS, region.topics.intent_log)
            with pytest.raises(NotServing):
                await apply(engine, Intent(ports=(port(1, 9, "h0"),)))
            # Hosts go on reporting what they had before.
            send(region, *(host_report(name, 1, {V1: Mark(1, 1)}) for name in EVERYBODY))
            await until(lambda: len(engine.convergence.hosts) == 5, "the reports are taken")
            opened = region.opened[region.topics.intent_log]
            await until(
                lambda: region.opened[region.topics.intent_log] > opened + 2, "several attempts"
            )
            # What is known stays known, but whoever asks now is not told that it is the newest.
            assert engine.knows_vpc("v2")
            with pytest.raises(NotServing):
                await wait(engine, 0, vpc="v2")
            assert not any(task.done() for task in waiting)
            region.mend()
            await until(lambda: engine.serving, "it serves again")
            assert not any(task.done() for task in waiting)
            send_all(region, engine, *EVERYBODY, number=2)
            assert all(progress.converged for progress in await asyncio.gather(*waiting))

    run(test)


def test_a_wait_for_what_is_lost_with_the_log_ends_with_what_there_is() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            send_all(region, engine, *EVERYBODY)
            await until(lambda: len(engine.convergence.hosts) == 5, "the reports are taken")
            known = engine.core.change
            region.cut(Wire.DEAD, region.topics.intent_log)
            lost = begin(engine, Intent(ports=(port(1, 9, "h0"),)))
            await until(lambda: engine.core.change > known, "it is on its way into the log")
            region.mend()  # what is written later gets there
            waiting = asyncio.ensure_future(wait(engine, vpc="v1"))
            await until(lambda: engine._waits.waiting, "it waits for what is accepted")
            region.broker.stop()
            serving_now(engine).intake.fail(BrokerUnreachable("it is gone"))
            with pytest.raises(NotServing):
                await lost
            region.mend()
            region.broker.start()
            progress = await waiting
            assert progress.converged
            assert engine.serving

    run(test)
