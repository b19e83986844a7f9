"""A stream that comes back to its topic soon has a checkpoint, also if the publisher dies first."""

from __future__ import annotations

import asyncio

from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.engine import Engine
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.streams import Channel, Mark
from tests.dpm.test_channels import V1, ports, without
from tests.dpm.test_engine import apply, crash, new_engine, serving
from tests.dpm.test_path_independence import HOSTS, network
from tests.dpm.wires import Region, Wire, until

FEW = ChannelPolicy(6, 100)


def newest(region: Region) -> Envelope | None:
    """What the newest message of the VPC's log says."""
    messages = region.stream(V1)
    return messages[-1][0] if messages else None


def told(region: Region) -> Mark | None:
    """The mark of the checkpoint that the log tells of."""
    envelope = newest(region)
    if envelope is None or envelope.checkpoint is None:
        return None
    topic = region.topics.checkpoints_of(V1)
    ends = [
        one
        for one in (envelopes.from_properties(m.properties) for m in region.messages(topic))
        if one.kind is MessageKind.IN_SYNC and one.checkpoint == envelope.checkpoint
    ]
    return ends[-1].mark if ends else None


async def go(engine: Engine, channel: Channel) -> None:
    await apply(engine, ports(5, 7) if channel is Channel.PULSAR else without(5, 7))
    assert engine.core.channel_of_vpc("v1") is channel


def test_each_time_it_comes_back_there_is_a_new_checkpoint_and_never_an_older_one() -> None:
    async def test(region: Region) -> None:
        async with serving(region, channels=FEW) as engine:
            await apply(engine, HOSTS, network(1), ports(1, 4))
            for _ in range(3):
                await go(engine, Channel.PULSAR)
                began = engine.core.streams[V1].began
                first = [e for e, _ in region.stream(V1) if e.mark == began]
                assert all(e.checkpoint is None for e in first if e.kind is MessageKind.DELTA)
                await until(lambda: told(region) is not None, "the log tells of it")
                mark = told(region)
                assert mark is not None
                assert mark >= engine.core.streams[V1].began
                before = len(region.stream(V1))
                await go(engine, Channel.SESSION)
                assert len(region.stream(V1)) == before, "what is on sessions is not on the topic"

    asyncio.run(test(Region()))


def test_a_publisher_that_dies_before_leaves_that_to_the_next_one() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region, channels=FEW)
        await engine.start()
        await apply(engine, HOSTS, network(1), ports(1, 4))
        region.cut(Wire.DEAD, region.topics.checkpoints_of(V1))
        await go(engine, Channel.PULSAR)
        await until(lambda: engine.backlog == 0, "all is published")
        assert told(region) is None
        began = engine.core.streams[V1].began
        await crash(engine, region)
        async with serving(region, channels=FEW) as successor:
            assert successor.core.channel_of_vpc("v1") is Channel.PULSAR
            assert successor.core.streams[V1].began == began
            await until(lambda: told(region) is not None, "the log tells of it")
            mark = told(region)
            assert mark is not None
            assert mark >= began

    asyncio.run(test(Region()))


def test_recovery_neither_looks_for_nor_writes_what_travels_on_sessions() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region, channels=FEW)
        await engine.start()
        await apply(engine, HOSTS, network(1), ports(1, 4))
        await crash(engine, region)
        async with serving(region, channels=FEW) as successor:
            assert successor.core.channel_of_vpc("v1") is Channel.SESSION
            assert region.stream(V1) == []
            assert successor.core.streams[V1].mark == engine.core.streams[V1].mark

    asyncio.run(test(Region()))


def test_a_switch_that_only_the_next_publisher_tells_of_does_not_undo_the_one_after_it() -> None:
    async def test(region: Region) -> None:
        engine = new_engine(region, channels=FEW)
        await engine.start()
        await apply(engine, HOSTS, network(1), ports(1, 4))
        region.cut(Wire.DEAD, region.topics.of_stream(V1))
        await go(engine, Channel.PULSAR)
        began = engine.core.streams[V1].began
        await go(engine, Channel.SESSION)
        await crash(engine, region)
        async with serving(region, channels=FEW) as successor:
            await until(lambda: region.stream(V1), "it tells of it")
            assert [envelope.mark for envelope, _ in region.stream(V1)] == [began]
            assert successor.core.channel_of_vpc("v1") is Channel.SESSION
            assert successor.sessions is not None
            session = successor.sessions.begin()
            await successor.sessions.follow(session, 1, V1, began)
            assert session.pop() is not None, "who has that alone gets what came after it"

    asyncio.run(test(Region()))
