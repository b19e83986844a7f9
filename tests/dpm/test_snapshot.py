"""Snapshots of the intent log: a start from one is a start from the whole log, and what is torn,
corrupt or of another version never passes for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.bus.base import MAX_PAYLOAD
from goalstate.bus.errors import BrokerUnreachable, ProducerFenced
from goalstate.dpm import snapshot as snapshots
from goalstate.dpm import snapshot_codec
from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import LogUnreadable, SnapshotUnreadable, UnknownChange
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.inventory import Publication
from goalstate.dpm.recovery import Replay
from goalstate.dpm.snapshot import PART_BYTES, SnapshotPolicy
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Deletion, Host, Intent, ObjectKind
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import inbox_stream
from goalstate.gs.topics import Topics
from goalstate.scale.random_intents import IntentSource
from goalstate.scale.random_intents import region as random_region
from tests.dpm.reading import Readings
from tests.dpm.test_core import agree
from tests.dpm.test_engine import apply, checked, crash, new_engine, out, state
from tests.dpm.test_path_independence import build, moves, port, removal
from tests.dpm.wires import Region, Wire, until
from tests.gs.region import BASE
from tests.gs.test_desired_properties import INTENTS

K = ObjectKind
LOG = Topics().intent_log
SNAPSHOTS = Topics().intent_snapshots
#: Small, so that a snapshot of the tests has several parts.
PART = 300


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


# --- the law: as from the whole log ---


def new_replay(own_stream: bool = False) -> Replay:
    replay = Replay(Topics(), security_groups_own_stream=own_stream)
    # Small messages: what order a change's resources come in shows.
    replay.core.inventory._chunk_bytes = 200
    return replay


def records(intents: list[Intent], own_stream: bool) -> list[log_pb2.Record]:
    """A log in which those that can be are accepted, with a new writer now and then."""
    replay = new_replay(own_stream)
    made: list[log_pb2.Record] = []

    def add(record: log_pb2.Record) -> None:
        replay.redo(record)
        made.append(record)

    for number, intent in enumerate(intents):
        if number % 3 == 0:
            incarnation = log_pb2.Incarnation(
                epoch=replay.core.epoch + 1, security_groups_own_stream=own_stream
            )
            add(log_pb2.Record(incarnation=incarnation))
        try:
            changes_something = bool(replay.core.plan(intent))
        except IntentRejected:
            continue
        if changes_something:
            change = log_pb2.Change(
                change=replay.core.change + 1,
                accepted_unix_ns=1_000 + number,
                intent=intent_codec.to_proto(intent),
            )
            add(log_pb2.Record(change=change))
        if number % 4 == 3:
            add(log_pb2.Record(published=log_pb2.Published(change=replay.core.change)))
        if number % 5 == 4:
            stream = sorted(replay.core.streams)[number % len(replay.core.streams)]
            mark = replay.core.streams[stream].mark
            checkpointed = log_pb2.Checkpointed(
                stream=str(stream), epoch=mark.epoch, sequence=mark.sequence, bytes=number
            )
            add(log_pb2.Record(checkpointed=checkpointed))
    return made


def redone(replay: Replay, rest: list[log_pb2.Record]) -> list[Publication]:
    """All that comes of redoing these."""
    found = []
    for record in rest:
        replay.settle()
        replay.redo(record)
        found += replay.unconfirmed
    return found


def restored(replay: Replay, own_stream: bool = False) -> Replay:
    """A copy by way of a snapshot."""
    copy = new_replay(own_stream)
    restoring = snapshot_codec.Restoring(copy)
    for section in snapshot_codec.sections(replay):
        restoring.take(section)
    core = replay.core
    restoring.finish(
        log_pb2.SnapshotEnd(records=replay.records, epoch=core.epoch, change=core.change)
    )
    return copy


def known(replay: Replay) -> dict[str, Any]:
    """All that a replay knows and anybody can ask for."""
    core = replay.core
    hosts = [host.id for host in core.desired.objects(K.HOST)]
    vpcs = [vpc.id for vpc in core.desired.objects(K.VPC)]
    return {
        "at": (replay.records, replay.published, core.epoch, core.change),
        "changes": dict(replay.changes),
        "checkpoints": replay.checkpoints,
        "objects": {kind: list(core.desired.table(kind).items()) for kind in K},
        "streams": [
            (stream, h.mark, h.digest, h.resources, h.followers, h.size, h.written)
            for stream, h in core.streams.items()
        ],
        "sizes": [(stream, head.size, head.written) for stream, head in core.streams.items()],
        "memory": core.memory,
        "digests": [(host, core.inventory.host_digest(host)) for host in hosts],
        "accepted": core.accepted_ns(),
        "all": sorted(core.requirements_of_all(), key=str),
        "vpcs": [sorted(core.requirements_of_vpc(vpc), key=str) for vpc in vpcs],
    }


def check_law(log: list[log_pb2.Record], cut: int, own_stream: bool) -> None:
    whole = new_replay(own_stream)
    redone(whole, log[:cut])
    whole.settle()
    copy = restored(whole, own_stream)
    assert known(copy) == known(whole)
    assert redone(copy, log[cut:]) == redone(whole, log[cut:])
    assert known(copy) == known(whole)


@pytest.mark.no_cover  # other tests trace the same code
@settings(max_examples=150)
@given(INTENTS, st.booleans(), st.data())
def test_what_comes_after_a_snapshot_is_what_comes_after_the_whole_log(
    intents: list[Intent], own_stream: bool, data: st.DataObject
) -> None:
    log = records([BASE, *intents], own_stream)
    check_law(log, data.draw(st.integers(0, len(log)), "cut"), own_stream)


@pytest.mark.no_cover  # other tests trace the same code
@settings(max_examples=25)
@given(st.integers(0, 10_000), st.booleans(), st.floats(0, 1))
def test_that_holds_for_regions_with_a_history(seed: int, own_stream: bool, where: float) -> None:
    source = IntentSource(Random(seed))
    log = records([*random_region(), *(source.intent() for _ in range(60))], own_stream)
    check_law(log, round(where * len(log)), own_stream)


def test_orders_that_came_about_on_the_way_do_not_matter() -> None:
    """A host's ports and a VPC's objects are put in one order, and changed in another."""
    changed = [
        Intent(ports=(port(1, n, f"h{n % 4}", "v1-web", name="renamed"),)) for n in (5, 1, 4, 0)
    ]
    later = [
        Intent(hosts=(Host("h0", "100.64.7.7", "02:00:00:00:00:00", "r0"),)),
        Intent(deletes=(Deletion(K.VPC, "v1", cascade=True),)),
    ]
    log = records([*build(), *changed, *later], own_stream=False)
    for cut in range(len(log) + 1):
        check_law(log, cut, own_stream=False)


def test_a_snapshot_of_a_snapshot_is_the_same() -> None:
    whole = new_replay()
    redone(whole, records(removal(), own_stream=False))
    whole.settle()
    twice = restored(restored(whole))
    assert known(twice) == known(whole)


def test_the_newest_changes_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = new_replay()
    redone(whole, records(moves(), own_stream=False))
    whole.settle()
    monkeypatch.setattr(snapshot_codec, "REMEMBERED_BYTES", 200)
    kept = list(restored(whole).changes)
    assert 0 < len(kept) < len(whole.changes)
    assert kept == list(whole.changes)[-len(kept) :]


def test_resources_that_are_not_those_of_their_stream_are_found() -> None:
    whole = new_replay()
    redone(whole, records(build(), own_stream=False))
    whole.settle()
    key, record = next(iter(whole.core.memory.records.items()))
    whole.core.memory.records[key] = record._replace(hash=record.hash ^ 1)
    with pytest.raises(SnapshotUnreadable, match="not those of its digest"):
        restored(whole)


@pytest.mark.parametrize(
    "section",
    [
        b"\xff\xff",
        log_pb2.SnapshotSection(
            streams=[log_pb2.SnapshotStream(head=log_pb2.StreamPlace(stream="nothing"))]
        ).SerializeToString(),
        log_pb2.SnapshotSection(resources=log_pb2.SnapshotResources(ids=["a"])).SerializeToString(),
        log_pb2.SnapshotSection(
            resources=log_pb2.SnapshotResources(
                ids=["a"], kinds=[77], places=[0], revisions=[1], hashes=b"0" * 16
            )
        ).SerializeToString(),
    ],
)
def test_a_section_without_sense_is_refused(section: bytes) -> None:
    with pytest.raises(SnapshotUnreadable, match="makes no sense"):
        snapshot_codec.Restoring(new_replay()).take(section)


# --- on the topic ---


async def write(region: Region, **more: Any) -> log_pb2.SnapshotEnd | None:
    return await snapshots.write_snapshot(
        region.bus("snapshots"),
        region.topics,
        **{"writer": "dpm-1", "security_groups_own_stream": False, "part_bytes": PART, **more},
    )


async def recover(region: Region, own_stream: bool = False) -> snapshots.Recovered:
    bus = region.bus()
    intent_log = IntentLog(bus, region.topics.intent_log)
    return await snapshots.recover(
        bus, region.topics, intent_log, security_groups_own_stream=own_stream
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


async def history(region: Region, *intents: Intent) -> None:
    """A publisher comes, does these, and goes."""
    async with serving(region) as engine:
        if intents:
            await apply(engine, *intents)
        await out(engine)


#: A history: first `build()`, then these.
ALL = removal()
LATER = ALL[len(build()) :]


def forget_log(region: Region, end: log_pb2.SnapshotEnd) -> None:
    """Trim the log up to the snapshot's place."""
    after = [m for m in region.messages(LOG) if m.position > end.log.position]
    assert len(after) < len(region.messages(LOG))
    region.broker.trim(LOG, len(after))


async def trusted(region: Region) -> bool:
    """Is all that a start says from a snapshot what the whole log says?"""
    from_snapshot = await recover(region)
    kept = region.broker._logs.pop(SNAPSHOTS)
    whole = await recover(region)
    region.broker._logs[SNAPSHOTS] = kept
    assert known(from_snapshot.replay) == known(whole.replay)
    assert from_snapshot.replay.unconfirmed == whole.replay.unconfirmed
    assert whole.snapshot is None
    return from_snapshot.snapshot is not None


def test_without_snapshots_the_log_is_read_from_its_beginning() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        recovered = await recover(region)
        assert recovered.snapshot is None
        assert recovered.replay.core.change == len(build())

    run(test)


def test_a_log_without_changes_has_no_snapshot() -> None:
    async def test(region: Region) -> None:
        assert await write(region) is None
        await history(region)
        assert await write(region) is None
        assert not region.messages(SNAPSHOTS)

    run(test)


def test_a_snapshot_and_the_log_after_it_are_the_whole_log() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        end = await write(region)
        assert end is not None
        assert end.change == len(build())
        assert end.parts > 2
        sizes = [len(m.payload) for m in region.messages(SNAPSHOTS)[:-2]]
        assert set(sizes) == {PART}
        assert await trusted(region)
        await history(region, *LATER)
        assert await trusted(region)

    run(test)


def test_parts_fit_into_a_message_of_every_broker() -> None:
    assert PART_BYTES <= MAX_PAYLOAD


def test_a_snapshot_is_made_from_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        first = await write(region)
        assert first is not None
        assert await write(region) is None  # there is nothing new to say
        forget_log(region, first)
        await history(region, *LATER)
        second = await write(region)
        assert second is not None
        assert second.change == len(ALL)
        forget_log(region, second)
        recovered = await recover(region)
        assert recovered.snapshot == second
        assert recovered.replay.core.change == len(ALL)

    run(test)


def test_only_what_the_log_says_to_be_published_is_in_a_snapshot() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            await apply(engine, *build())
            await out(engine)
            region.cut(Wire.HELD, region.topics.of_stream(inbox_stream("r0")))
            await apply(engine, *LATER)
            assert engine.core.change == len(ALL)
            end = await write(region)
            assert end is not None
            assert end.change == len(build())
            region.mend()
            region.release()
            await out(engine)
            assert await trusted(region)

    run(test)


def test_a_snapshot_can_be_taken_wherever_a_note_is() -> None:
    """Notes come late, between later changes; records are lost, and repeated by the broker."""
    changes = [r for r in records(moves(), own_stream=False) if r.HasField("change")]

    def incarnation(epoch: int) -> log_pb2.Record:
        return log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=epoch))

    def note(change: int) -> log_pb2.Record:
        return log_pb2.Record(published=log_pb2.Published(change=change))

    sessions: list[list[log_pb2.Record | None]] = [
        [incarnation(1), *changes[:3], note(1), changes[3], note(3), None, changes[5]],
        [incarnation(2), note(4), *changes[4:7], note(6)],
        [incarnation(3), changes[7], note(7), note(8)],
    ]

    async def test(region: Region, wire: Wire) -> None:
        region.cut(wire, LOG)
        cuts = []
        for session in sessions:
            log = IntentLog(region.bus(), LOG, part_bytes=100)
            await log.open("writer")
            for record in session:
                if record is None:
                    log._number += 1  # the broker refused it
                    continue
                await log.append(record)
                if record.HasField("published"):
                    end = await write(region)
                    cuts.append(end.change if end is not None else None)
                    assert await trusted(region)
            await log.close()
        assert cuts == [1, 3, 4, 6, 7, 8]

    asyncio.run(test(Region(), Wire.GOOD))
    asyncio.run(test(Region(), Wire.TWICE))


# --- what passes for none ---


async def two_snapshots(region: Region) -> tuple[log_pb2.SnapshotEnd, int]:
    """Two of one log; the first, and how many messages it has."""
    await history(region, *build())
    first = await write(region)
    assert first is not None
    count = len(region.messages(SNAPSHOTS))
    await history(region, *LATER)
    assert await write(region) is not None
    return first, count


def spoil(region: Region, spoiled: Callable[[list[Any]], list[Any]], count: int) -> None:
    """Change the messages of the second snapshot."""
    log = region.broker._logs[SNAPSHOTS]
    second = log.messages[count:]
    del log.messages[count:]
    for message in spoiled(second):
        region.broker.publish(SNAPSHOTS, message.payload, properties=message.properties)


def newer(message: Any) -> Any:
    end = log_pb2.SnapshotEnd.FromString(message.payload)
    end.format += 1
    return message._replace(payload=end.SerializeToString())


def bent(message: Any) -> Any:
    return message._replace(payload=message.payload[:-1] + bytes([message.payload[-1] ^ 1]))


SPOILED: dict[str, Callable[[list[Any]], list[Any]]] = {
    "torn after its first part": lambda m: m[:1],
    "torn before its end": lambda m: m[:-1],
    "a part is missing": lambda m: m[:1] + m[2:],
    "the first part is missing": lambda m: m[1:],
    "the last part is missing": lambda m: m[:-2] + m[-1:],
    "another order": lambda m: [m[1], m[0], *m[2:]],
    "corrupt": lambda m: [m[0], bent(m[1]), *m[2:]],
    "a newer format": lambda m: [*m[:-1], newer(m[-1])],
    "an end that is none": lambda m: [*m[:-1], m[-1]._replace(payload=b"\xff\xff")],
    "a part that is none": lambda m: [
        m[0],
        m[1]._replace(properties={**m[1].properties, "part": "two"}),
        *m[2:],
    ],
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_snapshot_that_cannot_be_read_is_passed_over_for_the_one_before(how: str) -> None:
    async def test(region: Region) -> None:
        first, count = await two_snapshots(region)
        spoil(region, SPOILED[how], count)
        assert (await recover(region)).snapshot == first
        assert await trusted(region)
        # The next one is made from the one that can be read, and found behind the other.
        again = await write(region)
        assert again is not None
        assert (await recover(region)).snapshot == again
        assert await trusted(region)

    run(test)


@pytest.mark.parametrize("how", SPOILED)
def test_without_any_that_can_be_read_the_log_says_all(how: str) -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        assert await write(region) is not None
        spoil(region, SPOILED[how], 0)
        assert not await trusted(region)
        assert (await recover(region)).replay.core.change == len(build())
        again = await write(region)
        assert again is not None
        assert (await recover(region)).snapshot == again

    run(test)


def test_what_the_broker_wrote_twice_is_read_once() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        region.cut(Wire.TWICE, SNAPSHOTS)
        end = await write(region)
        assert end is not None
        assert len(region.messages(SNAPSHOTS)) > 2 * end.parts
        assert (await recover(region)).snapshot == end
        assert await trusted(region)

    run(test)


@pytest.mark.parametrize("properties", [{}, {"snapshot": "x"}, {"snapshot": "x", "begin": "no"}])
def test_strange_messages_do_not_hide_a_snapshot(properties: dict[str, str]) -> None:
    async def test(region: Region) -> None:
        first, _ = await two_snapshots(region)
        newest = (await recover(region)).snapshot
        region.broker.publish(SNAPSHOTS, b"hello", properties=properties)
        assert (await recover(region)).snapshot == newest != first

    run(test)


def test_the_placement_of_security_groups_stays_what_the_snapshot_says() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        end = await write(region)
        assert end is not None
        forget_log(region, end)
        with pytest.raises(LogUnreadable, match=r"intent\.checkpoint.*security_groups: vpc-stream"):
            await recover(region, own_stream=True)
        with pytest.raises(LogUnreadable, match="serve it with the same setting"):
            await write(region, security_groups_own_stream=True)

    run(test)


# --- trimming ---


def test_a_log_that_was_trimmed_up_to_a_snapshot_is_whole() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        before = known((await recover(region)).replay)
        end = await write(region)
        assert end is not None
        forget_log(region, end)
        assert known((await recover(region)).replay) == before
        await history(region, *LATER)
        assert (await recover(region)).replay.core.change == len(ALL)

    run(test)


def test_a_log_that_was_trimmed_beyond_its_snapshot_is_refused() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        assert await write(region) is not None
        await history(region, *LATER)
        region.broker.trim(LOG, 2)
        reason = r"intent\.log no longer reaches back to change 4, .*intent\.checkpoint.*backup"
        with pytest.raises(LogUnreadable, match=reason):
            await recover(region)
        with pytest.raises(LogUnreadable, match=reason):
            await write(region)
        engine = new_engine(region)
        with pytest.raises(LogUnreadable, match=reason):
            await engine.start()
        await engine.stop()

    run(test)


@pytest.mark.parametrize("keep", range(1, 8))
def test_a_trimmed_log_without_a_snapshot_never_passes_for_a_whole_one(keep: int) -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        await history(region, *LATER)
        assert len(region.messages(LOG)) > keep
        region.broker.trim(LOG, keep)
        with pytest.raises(LogUnreadable, match=r"record 1 .*beginning is gone"):
            await recover(region)

    run(test)


def test_snapshots_before_the_newest_may_be_trimmed() -> None:
    async def test(region: Region) -> None:
        _, count = await two_snapshots(region)
        newest = (await recover(region)).snapshot
        region.broker.trim(SNAPSHOTS, len(region.messages(SNAPSHOTS)) - count)
        assert (await recover(region)).snapshot == newest
        assert await trusted(region)

    run(test)


# --- while it is written ---


def test_a_snapshot_that_could_not_be_written_whole_is_none() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        for good in range(4):
            region.cut(Wire.FAILS, SNAPSHOTS, after=good)
            with pytest.raises(BrokerUnreachable):
                await write(region)
            region.mend()
            assert not await trusted(region)
        assert await write(region) is not None
        assert await trusted(region)

    run(test)


def test_one_snapshot_is_written_at_a_time() -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        region.cut(Wire.HELD, SNAPSHOTS)
        first = asyncio.ensure_future(write(region))
        await until(lambda: region.held, "one is being written")
        with pytest.raises(ProducerFenced):
            await write(region)
        region.mend()
        region.release()
        assert await first is not None

    run(test)


# --- the engine ---

EAGER = SnapshotPolicy(at_least=0, times=0)


def test_one_is_due_when_the_log_after_the_last_outweighs_it() -> None:
    policy = SnapshotPolicy(at_least=100, times=0.5)
    assert not policy.is_due(100, None)
    assert policy.is_due(101, None)
    last = log_pb2.SnapshotEnd(bytes=1000)
    assert not policy.is_due(500, last)
    assert policy.is_due(501, last)
    assert not policy.is_due(100, log_pb2.SnapshotEnd(bytes=10))


def snapshot_of(engine: Engine) -> int:
    """The newest change in a snapshot that the engine knows of."""
    return engine._snapshots.newest.change if engine._snapshots.newest is not None else 0


def test_a_publisher_writes_snapshots_and_starts_from_them() -> None:
    async def test(region: Region) -> None:
        async with serving(region, snapshots=EAGER) as engine:
            await apply(engine, *ALL)
            await until(lambda: snapshot_of(engine) == len(ALL), "all is in a snapshot")
            await out(engine)
            before, on_topics = state(engine), region.streams()
            end = engine._snapshots.newest
        assert end is not None
        forget_log(region, end)
        async with serving(region) as engine:
            assert engine._snapshots.newest == end
            assert state(engine) == before
            assert region.streams() == on_topics
            await apply(engine, Intent(ports=(port(1, 30, "h3"),)))
            await out(engine)
            checked(region, engine)

    run(test)


def test_snapshots_are_not_written_without_need() -> None:
    async def test(region: Region) -> None:
        written: list[int] = []

        async def writer() -> None:
            written.append(engine.core.change)

        policy = SnapshotPolicy(at_least=1_700)
        async with serving(region, snapshots=policy, snapshot_writer=writer) as engine:
            await apply(engine, *build())
            await out(engine)
            assert not written
            await apply(engine, *LATER)
            await until(lambda: written, "one is due")
            await apply(engine, *build())
            await out(engine)
        assert len(written) == 1

    run(test)


def test_a_snapshot_that_cannot_be_written_disturbs_nobody() -> None:
    async def test(region: Region) -> None:
        async with serving(region, snapshots=EAGER) as engine:
            region.cut(Wire.FAILS, SNAPSHOTS)
            await apply(engine, *build())
            await until(lambda: engine._snapshots.tried, "one was begun")
            await out(engine)
            assert engine.serving
            checked(region, engine)
            region.mend()
            await apply(engine, *LATER)
            await until(lambda: snapshot_of(engine) == len(ALL), "the next one is written")

    run(test)


@pytest.mark.parametrize("good", range(4))
def test_nothing_is_lost_when_the_publisher_is_killed_while_it_writes_one(good: int) -> None:
    async def test(region: Region) -> None:
        async with serving(region, snapshots=EAGER) as engine:
            await apply(engine, *build())
            await until(lambda: snapshot_of(engine) == len(build()), "there is one")
            await out(engine)
        engine = new_engine(region)
        await engine.start()
        await apply(engine, *LATER)
        await out(engine)
        before = state(engine)
        region.cut(Wire.DEAD, SNAPSHOTS, after=good)
        parts = len(region.messages(SNAPSHOTS))
        writing = asyncio.ensure_future(
            snapshots.write_snapshot(
                engine._bus,
                region.topics,
                writer="dpm-1",
                security_groups_own_stream=False,
                part_bytes=PART,
            )
        )
        await until(
            lambda: len(region.messages(SNAPSHOTS)) == parts + good, "some of it is written"
        )
        await crash(engine, region)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        async with serving(region, snapshots=EAGER) as engine:
            assert state(engine) == before
            await apply(engine, Intent(ports=(port(1, 30, "h3"),)))
            await until(lambda: snapshot_of(engine) == engine.core.change, "there is a new one")
            await out(engine)
            checked(region, engine)

    run(test)


def test_changes_that_the_snapshot_does_not_remember_are_waited_for_by_their_vpc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(region: Region) -> None:
        await history(region, *build())
        monkeypatch.setattr(snapshot_codec, "REMEMBERED_BYTES", 0)
        assert await write(region) is not None
        async with serving(region) as engine:
            await apply(engine, *LATER)
            with pytest.raises(UnknownChange, match="wait for the VPC instead"):
                await engine.wait(change=1, quorum=1, timeout_s=0, max_stragglers=3)
            for target in ({"change": len(ALL)}, {"vpc": "v1"}):
                progress = await engine.wait(**target, quorum=1, timeout_s=0, max_stragglers=3)
                assert progress.hosts

    run(test)


def test_readings_of_what_comes_after_a_snapshot_agree_with_the_core() -> None:
    log = records(removal(), own_stream=False)
    whole = new_replay()
    readings = Readings(redone(whole, log[:4]))
    whole.settle()
    copy = restored(whole)
    readings.read(redone(copy, log[4:]))
    agree(copy.core, readings)
