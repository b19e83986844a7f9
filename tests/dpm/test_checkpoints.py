"""Checkpoints: together with the log after them they are the publisher's state, whatever happens
while they are written, and one that is not complete is never used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.agent.core import HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Fleet, FleetSettings, Member
from goalstate.bus.base import EARLIEST
from goalstate.dpm import building as building_module
from goalstate.dpm.checkpoints import CheckpointPolicy, place_of
from goalstate.dpm.core import Core
from goalstate.dpm.engine import Engine
from goalstate.gs import digest as digests
from goalstate.gs import envelope as envelopes
from goalstate.gs import packing
from goalstate.gs.envelope import CheckpointPlace, Envelope, MessageKind
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import (
    ORIGIN,
    Mark,
    StreamId,
    StreamKind,
    inbox_stream,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.versions import decode
from tests.dpm.reading import Place, Readings, contents
from tests.dpm.test_core import new_core
from tests.dpm.test_core import run as accepted
from tests.dpm.test_engine import CLOCK_ID, Clock, apply, begin, crash, new_engine, out, serving
from tests.dpm.test_path_independence import (
    HOSTS,
    RACKS,
    SCENARIOS,
    build,
    moves,
    network,
    port,
    removal,
)
from tests.dpm.wires import BOUND, Region, Wire, until
from tests.gs.region import BASE
from tests.gs.test_desired_properties import INTENTS

V1, V2 = vpc_stream("v1"), vpc_stream("v2")
R0 = inbox_stream("r0")
#: Due as soon as something is put on a stream.
ALWAYS = CheckpointPolicy(min_bytes=0, factor=0.0)
NEVER = CheckpointPolicy(min_bytes=1 << 40)
SECOND = 1_000_000_000
#: What happens after what is `built`.
MOVES, REMOVAL = moves()[len(build()) :], removal()[len(build()) :]


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """One resource each, so that much can happen between them."""
    monkeypatch.setattr(building_module, "SLICE", 1)


# --- what is on a stream ---


def rebuilt(core: Core, stream: StreamId) -> dict[Place, Resource]:
    keys = list(core.on_stream(stream))
    assert len(keys) == len(set(keys))
    found = {
        (r.kind, r.id, host if stream.kind is StreamKind.INBOX else ""): r
        for host, r in core.inventory.rebuild(stream, keys)
    }
    return found


def assert_rebuilds_what_readers_hold(core: Core, readings: Readings) -> None:
    for stream, state in core.streams.items():
        held = readings.held.get(stream, {})
        assert rebuilt(core, stream) == held, stream
        assert digests.of(held.values()) == state.digest


@pytest.mark.no_cover  # other tests trace the same code
@settings(max_examples=150, deadline=None)
@given(INTENTS, st.booleans())
def test_what_is_rebuilt_is_what_readers_hold(intents: list[Intent], own_stream: bool) -> None:
    core = new_core(security_groups_own_stream=own_stream)
    readings = Readings(accepted(core, [BASE]))
    for intent in intents:
        readings.read(accepted(core, [intent]))
        assert_rebuilds_what_readers_hold(core, readings)


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_that_holds_for_every_scenario(scenario: str, own_stream: bool) -> None:
    core = new_core(security_groups_own_stream=own_stream)
    readings = Readings(accepted(core, SCENARIOS[scenario]()))
    assert_rebuilds_what_readers_hold(core, readings)
    group = security_group_stream("v1-web")
    assert bool(rebuilt(core, group)) == own_stream


def test_a_resource_that_would_not_be_what_was_published_is_refused() -> None:
    core = new_core()
    accepted(core, build())
    key = next(key for key in core.on_stream(V1) if key.kind is Kind.NEIGHBOR)
    record = core.memory.records[key]
    core.memory.records[key] = record._replace(hash=record.hash ^ 1)
    with pytest.raises(RuntimeError, match=rf"neighbor/{key.id} is not what is on vpc/v1"):
        core.inventory.rebuild(V1, [key])


def test_the_size_of_a_stream_follows_what_comes_and_goes() -> None:
    core = new_core()
    accepted(core, build())
    state = core.streams[V1]
    whole = state.size
    assert state.written == whole > 0  # everything is new
    accepted(core, [Intent(ports=(port(1, 0, "h1", "v1-web"),))])
    assert (state.size, state.written > whole) == (whole, True)
    accepted(core, [Intent(deletes=(Deletion(ObjectKind.PORT, "v1-p1"),))])
    assert 0 < state.size < whole
    accepted(core, [Intent(deletes=(Deletion(ObjectKind.VPC, "v1", True),))])
    assert state.size == 0
    core.inventory.checkpointed(V1, 7, state.written - 3)
    assert (state.size, state.written) == (7, 3)


# --- reading a checkpoint ---


class Loaded:
    """What a reader holds that begins with a checkpoint, as the contract for agents has it."""

    def __init__(self, region: Region, stream: StreamId, place: CheckpointPlace) -> None:
        topic = region.topics.checkpoints_of(stream)
        self.held: dict[Place, Resource] = {}
        self.host_digests: dict[str, bytes] = {}
        self._tombstones: dict[Place, int] = {}
        chunk = 0
        end: Envelope | None = None
        mark = ORIGIN
        for message in region.broker.messages(topic, place.begin):
            envelope = envelopes.from_properties(message.properties)
            assert envelope.checksum == digests.checksum(message.payload)
            if envelope.kind is MessageKind.CHECKPOINT:
                if chunk == 0:
                    mark = envelope.mark
                assert (envelope.mark, envelope.chunk) == (mark, chunk + 1)
                chunk = envelope.chunk
                self._take(stream, message.payload)
                chunks = envelope.chunks
            else:
                assert envelope.kind is MessageKind.IN_SYNC
                assert (envelope.mark, chunk) == (mark, chunks)
                assert (envelope.chunk, envelope.chunks) == (1, 1)
                assert envelope.checkpoint == place
                self._take(stream, message.payload)
                end = envelope
                break
        assert end is not None and end.until is not None and end.until >= mark
        self.mark, self.until = mark, end.until
        self.read = mark
        self._read_log(region, stream, place.log)
        self._end = end

    def _read_log(self, region: Region, stream: StreamId, start: bytes) -> None:
        at_until = self.read == self.until
        for message in region.broker.messages(region.topics.of_stream(stream), start):
            envelope = envelopes.from_properties(message.properties)
            if envelope.kind is MessageKind.IN_SYNC:
                assert envelope.mark <= self.read
                continue
            if envelope.mark <= self.read:
                continue  # it is there twice
            if envelope.mark.epoch == self.read.epoch:
                assert envelope.mark.sequence == self.read.sequence + 1
            else:
                assert envelope.after == self.read
            self.read = envelope.mark
            self._take(stream, message.payload)
            at_until |= self.read == self.until
            if self.read >= self.until:
                assert self.digest == envelope.digest
        assert at_until, "the log reaches the mark from which on the reader is in sync"

    @property
    def digest(self) -> str:
        return digests.to_hex(digests.of(self.held.values()))

    def _take(self, stream: StreamId, payload: bytes) -> None:
        message = goalstate_pb2.GoalStateV2.FromString(payload)
        assert message.format_version == 102
        for host, resource in contents(message):
            place = (resource.kind, resource.id, host)
            old = self.held.get(place)
            known = old.revision if old is not None else self._tombstones.get(place, -1)
            if resource.revision <= known:
                continue
            if resource.deleted:
                self.held.pop(place, None)
                self._tombstones[place] = resource.revision
            else:
                self.held[place] = resource
        for host, section in message.host_resources.items():
            self.host_digests[host] = section.digest


@asynccontextmanager
async def built(region: Region) -> AsyncIterator[Engine]:
    """A publisher that writes none by itself, with two VPCs on the topics."""
    async with serving(region, checkpoints=NEVER) as engine:
        await apply(engine, *build())
        await out(engine)
        yield engine


async def write(engine: Engine, stream: StreamId) -> None:
    """Write one, now."""
    assert engine.checkpoints is not None
    await engine.checkpoints.write(stream)


def newest(region: Region, stream: StreamId) -> CheckpointPlace | None:
    """What the newest message of a log says."""
    messages = region.stream(stream)
    return messages[-1][0].checkpoint if messages else None


def assert_leads_to_the_state(region: Region, engine: Engine, stream: StreamId) -> Loaded:
    place = newest(region, stream)
    assert place is not None
    loaded = Loaded(region, stream, place)
    state = engine.core.streams[stream]
    assert loaded.read == state.mark
    assert loaded.digest == digests.to_hex(state.digest)
    assert loaded.held == rebuilt(engine.core, stream)
    for host, digest in loaded.host_digests.items():
        assert digest == digests.to_bytes(engine.core.inventory.host_digest(host))
    return loaded


def noted(region: Region) -> list[log_pb2.Checkpointed]:
    return [r.checkpointed for r in region.log() if r.WhichOneof("body") == "checkpointed"]


def number_noted(region: Region, number: int) -> bool:
    return len(noted(region)) == number


def counted(engine: Engine, result: str) -> float:
    value = engine._metrics.registry.get_sample_value(
        "goalstate_dpm_checkpoints_total", {"result": result}
    )
    return value or 0.0


async def at_rest(engine: Engine, region: Region) -> None:
    """Until everything is on the topics, and every checkpoint that is due is told of."""
    await out(engine)
    await until(lambda: engine.checkpoints and not engine.checkpoints._due, "none is due")

    def told() -> bool:
        of = {StreamId.parse(one.stream): place_of(one) for one in noted(region)}
        return all(newest(region, stream) == place for stream, place in of.items())

    await until(told, "all are told of on the logs")


# --- when one is due ---


def test_one_is_written_when_the_deltas_outweigh_the_state_and_not_before() -> None:
    async def test(region: Region) -> None:
        policy = CheckpointPolicy(min_bytes=1000, factor=3.0)
        async with serving(region, checkpoints=policy) as engine:
            await apply(engine, *build())
            await out(engine)
            state = engine.core.streams[V1]
            assert not engine.core.streams[V2].written > 3 * engine.core.streams[V2].size
            number = 0
            while True:
                number += 1
                move = Intent(ports=(port(1, 0, f"h{number % 4}", "v1-web"),))
                before = state.written
                assert not noted(region) or all(n.stream != "vpc/v1" for n in noted(region))
                await apply(engine, move)
                if state.written > 3 * state.size or state.written < before:
                    break
                assert number < 1000
            await at_rest(engine, region)
            of_v1 = [n for n in noted(region) if n.stream == "vpc/v1"]
            assert len(of_v1) == 1
            assert state.size == of_v1[0].bytes > 0
            assert not [n for n in noted(region) if n.stream == "vpc/v2"]
            assert_leads_to_the_state(region, engine, V1)
            assert counted(engine, "written") == len(noted(region))
            assert engine.checkpoint_due_s == 0.0

    run(test)


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_checkpoint_and_log_are_the_state(scenario: str, own_stream: bool) -> None:
    async def test(region: Region) -> None:
        async with serving(region, own_stream=own_stream, checkpoints=ALWAYS) as engine:
            for intent in SCENARIOS[scenario]():
                await apply(engine, intent)
            await at_rest(engine, region)
            for stream, state in engine.core.streams.items():
                if state.mark > ORIGIN:
                    assert_leads_to_the_state(region, engine, stream)

    run(test)


def test_that_of_a_vpc_that_is_gone_is_empty() -> None:
    async def test(region: Region) -> None:
        async with serving(region, checkpoints=ALWAYS) as engine:
            await apply(engine, *build(), Intent(deletes=(Deletion(ObjectKind.VPC, "v2", True),)))
            await at_rest(engine, region)
            assert assert_leads_to_the_state(region, engine, V2).held == {}

    run(test)


def test_one_that_is_too_old_is_written_anew_though_nothing_happens() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        policy = NEVER._replace(max_age_s=60.0)
        async with serving(region, clock=clock, checkpoints=policy) as engine:
            await apply(engine, *build())
            await out(engine)
            assert noted(region) == []
            for round_ in (1, 2):
                clock.now += 61 * SECOND
                streams = {s for s, state in engine.core.streams.items() if state.mark > ORIGIN}
                await until(partial(number_noted, region, round_ * len(streams)), "all are new")
                await at_rest(engine, region)
                for stream in streams:
                    assert_leads_to_the_state(region, engine, stream)
            # What is read on from must not be older than the log reaches back either.
            positions = [n.log_position for n in noted(region) if n.stream == "vpc/v1"]
            assert positions == sorted(set(positions))

    run(test)


def test_after_a_restart_age_is_that_of_the_checkpoint() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        policy = NEVER._replace(max_age_s=60.0)
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build())
            await out(engine)
        async with serving(region, clock=clock, checkpoints=policy) as engine:
            # How old what is on the logs is cannot be known: it is as old as may be.
            streams = {s for s, state in engine.core.streams.items() if state.mark > ORIGIN}
            await until(lambda: len(noted(region)) == len(streams), "all have one")
            await at_rest(engine, region)
        clock.now += 30 * SECOND
        async with serving(region, clock=clock, checkpoints=policy) as engine:
            await apply(engine, network(3))
            await at_rest(engine, region)
            assert len(noted(region)) == len(streams)
            clock.now += 31 * SECOND
            await until(lambda: len(noted(region)) == 2 * len(streams), "all are new again")

    run(test)


def test_a_log_that_retention_emptied_can_be_read_again_from_a_checkpoint() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            await out(engine)
        for stream in (V1, R0):
            region.broker.trim(region.topics.of_stream(stream), 0)
        async with serving(region, checkpoints=NEVER._replace(max_age_s=60.0)) as engine:
            for stream in (V1, R0):
                await until(partial(newest, region, stream), "it is told of")
            await at_rest(engine, region)
            for stream in (V1, R0):
                assert_leads_to_the_state(region, engine, stream)
            await apply(engine, *MOVES)
            await at_rest(engine, region)
            for stream in (V1, R0):
                assert_leads_to_the_state(region, engine, stream)

    run(test)


# --- what happens meanwhile ---


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("stream", [V1, R0], ids=str)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_what_is_accepted_between_two_slices_is_in_it_or_on_the_log(
    stream: StreamId, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every intent of these comes after so many slices of a checkpoint of the stream."""

    async def test(region: Region) -> None:
        async with built(region) as engine:
            waiting, between = iter(MOVES + REMOVAL), 0
            real = engine.core.inventory.rebuild

            def rebuild(of: StreamId, keys: Any) -> Any:
                nonlocal between
                between += 1
                if between % step == 0:
                    one = next(waiting, None)
                    if one is not None:
                        tasks.append(begin(engine, one))
                return real(of, keys)

            tasks: list[asyncio.Task[Any]] = []
            monkeypatch.setattr(engine.core.inventory, "rebuild", rebuild)
            await write(engine, stream)
            monkeypatch.setattr(engine.core.inventory, "rebuild", real)
            assert tasks and between > step
            await asyncio.gather(*tasks)
            await out(engine)
            loaded = assert_leads_to_the_state(region, engine, stream)
            assert loaded.until > loaded.mark
            await apply(engine, network(1), *waiting)
            await out(engine)
            assert_leads_to_the_state(region, engine, stream)

    run(test)


@pytest.mark.usefixtures("small_slices")
def test_an_intent_waits_for_a_few_slices_at_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            order: list[str] = []
            real, plan = engine.core.inventory.rebuild, engine.core.plan

            def rebuild(of: StreamId, keys: Any) -> Any:
                order.append("slice")
                if len(order) == 1:
                    tasks.append(begin(engine, network(3)))
                return real(of, keys)

            def planned(intent: Intent) -> Any:
                order.append("intent")
                return plan(intent)

            tasks: list[asyncio.Task[Any]] = []
            monkeypatch.setattr(engine.core.inventory, "rebuild", rebuild)
            monkeypatch.setattr(engine.core, "plan", planned)
            await write(engine, V1)
            await asyncio.gather(*tasks)
            assert order.index("intent") <= 3 < len(order) - 2

    run(test)


def test_a_stream_of_many_resources_has_chunks_of_the_usual_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(building_module, "SLICE", 3)
    real = packing.chunk
    monkeypatch.setattr(packing, "chunk", lambda items, limit=500: real(items, limit))

    async def test(region: Region) -> None:
        async with built(region) as engine:
            for stream in (V1, R0):
                await write(engine, stream)
                await out(engine)
                assert_leads_to_the_state(region, engine, stream)
                *chunks, _ = region.messages(region.topics.checkpoints_of(stream))
                whole = engine.core.inventory.rebuild(stream, engine.core.on_stream(stream))
                assert len(chunks) == len(real(whole, 500)) > 1
                assert all(len(chunk.payload) < 700 for chunk in chunks)

    run(test)


def test_nothing_of_it_is_read_before_all_in_it_is_durable() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            region.cut(Wire.HELD, region.topics.intent_log)
            applying = begin(engine, MOVES[0])
            writing = asyncio.ensure_future(write(engine, V1))
            topic = region.topics.checkpoints_of(V1)
            await until(lambda: region.opened[topic] == 1, "it is being written")
            for _ in range(20):
                await asyncio.sleep(0)
            assert region.messages(topic) == []
            region.mend()
            region.release()
            await asyncio.gather(applying, writing)
            await out(engine)
            assert_leads_to_the_state(region, engine, V1)

    run(test)


def test_what_comes_while_one_is_written_counts_for_the_next() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            region.cut(Wire.HELD, region.topics.checkpoints_of(V1))
            writing = asyncio.ensure_future(write(engine, V1))
            await until(lambda: region.held, "its first message is on its way")
            state = engine.core.streams[V1]
            before = state.written
            await apply(engine, *MOVES)
            later = state.written - before
            assert 0 < later != state.written
            region.mend()
            region.release()
            await writing
            assert state.written == later
            await out(engine)
        async with serving(region, checkpoints=NEVER) as engine:
            assert engine.core.streams[V1].written == later, "the log says the same"

    run(test)


# --- telling of it ---


def test_every_later_message_says_where_it_is_and_one_says_so_at_once() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            before = region.stream(V1)
            assert all(envelope.checkpoint is None for envelope, _ in before)
            await write(engine, V1)
            await until(lambda: len(region.stream(V1)) > len(before), "it is told of")
            [note] = noted(region)
            place = place_of(note)
            envelope, payload = region.stream(V1)[-1]
            last = before[-1][0]
            assert envelope == last._replace(
                kind=MessageKind.IN_SYNC,
                chunk=1,
                chunks=1,
                after=None,
                checksum=digests.checksum(payload),
                checkpoint=place,
            )
            assert payload == packing.encode([])
            assert decode(payload, declared=envelope.schema)
            await apply(engine, *MOVES)
            await out(engine)
            later = region.stream(V1)[len(before) :]
            assert len(later) > 2
            assert {envelope.checkpoint for envelope, _ in later} == {place}
            assert all(envelope.checkpoint is None for envelope, _ in region.stream(V2))

    run(test)


def test_the_message_that_tells_of_it_follows_what_is_on_its_way() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            region.cut(Wire.HELD, region.topics.of_stream(V1))
            await apply(engine, *MOVES)
            confirmed = region.stream(V1)[-1][0].mark
            await write(engine, V1)
            region.release()
            region.mend()
            await out(engine)
            loaded = assert_leads_to_the_state(region, engine, V1)
            assert (loaded.mark, loaded.until) == (confirmed, engine.core.streams[V1].mark)
            telling, before = region.stream(V1)[-1][0], region.stream(V1)[-2][0]
            assert telling.kind is MessageKind.IN_SYNC
            assert (telling.mark, telling.digest) == (before.mark, before.digest)

    run(test)


def test_a_restarted_publisher_goes_on_saying_so() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            await write(engine, V1)
            place = place_of(noted(region)[0])
        async with serving(region, checkpoints=NEVER) as engine:
            state = engine.core.streams[V1]
            assert (state.written, state.size) == (0, noted(region)[0].bytes)
            await apply(engine, *MOVES)
            await out(engine)
            assert newest(region, V1) == place
            assert engine.core.streams[V1].mark.epoch == 2
            assert_leads_to_the_state(region, engine, V1)

    run(test)


def test_a_publisher_that_sent_nothing_yet_begins_with_what_is_on_the_log() -> None:
    async def test(region: Region) -> None:
        async with built(region):
            pass
        async with serving(region, checkpoints=NEVER) as engine:
            head = region.messages(region.topics.of_stream(V1))[-1]
            await write(engine, V1)
            await until(lambda: newest(region, V1) is not None, "it is told of")
            assert assert_leads_to_the_state(region, engine, V1).mark.epoch == 1
            assert noted(region)[0].log_position == head.position

    run(test)


def test_a_log_may_be_trimmed_up_to_its_mark() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            await write(engine, V1)
            await apply(engine, *MOVES)
            await out(engine)
            place = newest(region, V1)
            assert place is not None
            topic = region.topics.of_stream(V1)
            region.broker.trim(topic, len(region.broker.messages(topic, place.log)))
            assert region.broker.messages(topic, EARLIEST)[0].position > place.log
            assert_leads_to_the_state(region, engine, V1)

    run(test)


def test_a_message_that_tells_of_one_is_no_loss_for_the_next_publisher() -> None:
    """It is the newest on its log, and what is missing behind it is sent again."""

    async def test(region: Region) -> None:
        engine = new_engine(region, checkpoints=NEVER)
        await engine.start()
        await apply(engine, *build())
        await out(engine)
        for stream in (V1, R0):
            await write(engine, stream)
            await until(partial(newest, region, stream), "it is told of")
        region.cut(Wire.DEAD, *(region.topics.of_stream(s) for s in engine.core.streams))
        await apply(engine, *MOVES)
        await crash(engine, region)
        async with serving(region, checkpoints=NEVER) as engine:
            await out(engine)
            for stream in (V1, R0):
                assert_leads_to_the_state(region, engine, stream)
                marks = [
                    envelope.mark
                    for envelope, _ in region.stream(stream)
                    if envelope.kind is MessageKind.DELTA
                ]
                assert marks == [Mark(1, n + 1) for n in range(len(marks))]

    run(test)


def test_hosts_that_come_when_the_topics_are_trimmed_get_everything() -> None:
    async def test(region: Region) -> None:
        async with serving(region, checkpoints=ALWAYS) as engine:
            await apply(engine, *moves())
            await at_rest(engine, region)
            for stream in engine.core.streams:
                place = newest(region, stream)
                assert place is not None
                for topic, start in (
                    (region.topics.of_stream(stream), place.log),
                    (region.topics.checkpoints_of(stream), place.begin),
                ):
                    region.broker.trim(topic, len(region.broker.messages(topic, start)))
            fleet = Fleet(
                region.bus("fleet"),
                [Member(host, group) for host, group in RACKS.items()],
                FleetSettings(HostSettings(region.topics), region.topics.reports(0), CLOCK_ID),
                lambda _: MemoryDataPlane(),
            )
            await fleet.start()
            for intents in ([], REMOVAL):
                for intent in intents:
                    await apply(engine, intent)
                progress = await engine.wait(quorum=1.0, timeout_s=BOUND, max_stragglers=9)
                assert (progress.converged, progress.applied) == (True, len(RACKS))
            await fleet.stop()

    run(test)


# --- failures ---


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("good", [0, 1, 2])
def test_a_crash_between_chunks_leaves_the_old_one_in_force(
    good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing.chunk
    monkeypatch.setattr(packing, "chunk", lambda items, limit=900: real(items, limit))

    async def test(region: Region) -> None:
        topic = region.topics.checkpoints_of(V1)
        engine = new_engine(region, checkpoints=NEVER)
        await engine.start()
        await apply(engine, *build())
        await out(engine)
        await write(engine, V1)
        await apply(engine, *MOVES)
        await out(engine)
        place = newest(region, V1)
        had = len(region.messages(topic))
        region.cut(Wire.DEAD, topic, after=good)
        writing = asyncio.ensure_future(write(engine, V1))
        await until(lambda: len(region.messages(topic)) == had + good, "so much is written")
        await until(lambda: region.first_good[topic] == 0, "the next is on its way")
        await crash(engine, region)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        async with serving(region, checkpoints=NEVER) as engine:
            assert len(noted(region)) == 1
            await apply(engine, network(9), Intent(ports=(port(1, 7, "h0", "v1-web"),)))
            await out(engine)
            assert newest(region, V1) == place
            assert_leads_to_the_state(region, engine, V1)
            # The next one begins behind what was left of that.
            await write(engine, V1)
            await until(lambda: newest(region, V1) != place, "it is told of")
            assert_leads_to_the_state(region, engine, V1)

    run(test)


@pytest.mark.parametrize("wire", [Wire.FAILS, Wire.UNSURE])
@pytest.mark.parametrize("good", [0, 1])
def test_what_the_bus_fails_is_tried_again(wire: Wire, good: int) -> None:
    async def test(region: Region) -> None:
        topic = region.topics.checkpoints_of(V1)
        async with serving(region, checkpoints=ALWAYS) as engine:
            region.cut(wire, topic, after=good)
            await apply(engine, *build())
            await until(lambda: counted(engine, "failed") >= 3, "it fails again and again")
            assert all(note.stream != "vpc/v1" for note in noted(region))
            assert newest(region, V1) is None
            assert V1 in engine.checkpoints._due  # type: ignore[union-attr]
            await until(lambda: newest(region, V2) is not None, "other streams have theirs")
            region.mend()
            await at_rest(engine, region)
            assert_leads_to_the_state(region, engine, V1)
            assert engine.checkpoint_due_s == 0.0

    run(test)


def test_one_that_cannot_be_noted_is_not_used() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            region.cut(Wire.FAILS, region.topics.intent_log)
            with pytest.raises(Exception, match="the wire is cut"):
                await write(engine, V1)
            region.mend()
            assert newest(region, V1) is None
            assert engine.core.streams[V1].written > 0

    run(test)


def test_a_stream_that_cannot_have_one_does_not_hold_up_the_others() -> None:
    async def test(region: Region) -> None:
        async with built(region) as engine:
            checkpoints = engine.checkpoints
            assert checkpoints is not None
            key = next(engine.core.on_stream(V1))
            record = engine.core.memory.records[key]
            engine.core.memory.records[key] = record._replace(hash=1)
            clock = engine._clock_ns
            assert isinstance(clock, Clock)
            for stream in (V1, V2, R0):
                checkpoints._is_due(stream)
            clock.now += 5 * SECOND
            await until(lambda: len(noted(region)) == 2, "the others have theirs")
            await until(lambda: counted(engine, "failed") >= 3, "it is tried again")
            assert engine.checkpoint_due_s == 5.0
            engine.core.memory.records[key] = record
            await at_rest(engine, region)
            assert_leads_to_the_state(region, engine, V1)

    run(test)


def test_one_that_is_being_written_when_the_log_fails_is_given_up() -> None:
    async def test(region: Region) -> None:
        async with serving(region, checkpoints=ALWAYS) as engine:
            await apply(engine, *build())
            await at_rest(engine, region)
            notes = len(noted(region))
            region.cut(Wire.DEAD, region.topics.checkpoints_of(V1))
            await apply(engine, *MOVES)
            topic = region.topics.checkpoints_of(V1)
            opened = region.opened[topic]
            region.cut(Wire.FAILS, region.topics.intent_log)
            with pytest.raises(Exception, match="intent log failed"):
                await apply(engine, Intent(ports=(port(1, 8, "h0", "v1-web"),)))
            region.mend()
            await until(lambda: engine.serving, "it recovered")
            await at_rest(engine, region)
            assert region.opened[topic] > opened
            assert len(noted(region)) > notes
            for stream in (V1, V2, R0):
                assert_leads_to_the_state(region, engine, stream)

    run(test)


def test_hosts_that_have_nothing_are_in_no_checkpoint() -> None:
    async def test(region: Region) -> None:
        async with serving(region, checkpoints=ALWAYS) as engine:
            await apply(engine, HOSTS, network(1), Intent(ports=(port(1, 0, "h0", "v1-web"),)))
            await at_rest(engine, region)
            assert {host for _, _, host in assert_leads_to_the_state(region, engine, R0).held} == {
                "h0"
            }

    run(test)
