"""Recovery: what the log says is redone, and nothing that it cannot mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from goalstate.dpm.building import in_sync
from goalstate.dpm.core import Core
from goalstate.dpm.errors import LogUnreadable
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.recovery import Replay, not_on_topics
from goalstate.gs import intent_codec
from goalstate.gs.envelope import to_properties
from goalstate.gs.intent import Intent, ObjectKind, Vpc
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import vpc_stream
from goalstate.gs.topics import Topics
from tests.dpm.wires import Region


def incarnation(epoch: int) -> log_pb2.Record:
    return log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=epoch))


def change(number: int, vpc: str) -> log_pb2.Record:
    intent = intent_codec.to_proto(
        Intent(vpcs=(Vpc(vpc, cidr="10.0.0.0/8", tunnel_id=1000 + ord(vpc)),))
    )
    return log_pb2.Record(change=log_pb2.Change(change=number, intent=intent))


def replay() -> Replay:
    return Replay(Topics(), security_groups_own_stream=False)


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


async def written(region: Region, *records: log_pb2.Record | None) -> None:
    """A session of a writer; None: a record that the broker refused."""
    log = IntentLog(region.bus(), region.topics.intent_log)
    await log.open("writer")
    for record in records:
        if record is None:
            log._number += 1
        else:
            await log.append(record)
    await log.close()


async def recovered(region: Region) -> Replay:
    log = IntentLog(region.bus(), region.topics.intent_log)
    whole = replay()
    async for record in log.records():
        whole.redo(record, lost=log.lost)
    return whole


def vpcs(whole: Replay) -> list[str]:
    return [vpc.id for vpc in whole.core.desired.objects(ObjectKind.VPC)]


def test_what_builds_on_a_lost_record_is_not_redone() -> None:
    """A send fails, a later one is written: its writer stopped, and acknowledged neither."""

    async def test(region: Region) -> None:
        await written(region, incarnation(1), change(1, "a"), None, change(3, "c"))
        await written(region, incarnation(2), change(2, "b"))
        whole = await recovered(region)
        assert vpcs(whole) == ["a", "b"]
        assert (whole.core.epoch, whole.core.change) == (2, 2)

    run(test)


def test_a_lost_note_costs_no_change() -> None:
    """What is published is noted beside the changes: losing a note loses nothing else."""

    async def test(region: Region) -> None:
        await written(region, incarnation(1), change(1, "a"), None, change(2, "b"))
        assert vpcs(await recovered(region)) == ["a", "b"]

    run(test)


def test_a_hole_that_no_writer_made_is_an_error() -> None:
    whole = replay()
    whole.redo(incarnation(1))
    with pytest.raises(LogUnreadable, match="it would be change 1 here"):
        whole.redo(change(2, "a"))


def test_the_newest_checkpoint_of_each_stream_is_known() -> None:
    whole = replay()
    whole.redo(incarnation(1))
    noted = [
        log_pb2.Checkpointed(stream=stream, epoch=1, sequence=sequence)
        for stream, sequence in (("vpc/a", 1), ("vpc/b", 7), ("vpc/a", 9))
    ]
    for checkpointed in noted:
        whole.redo(log_pb2.Record(checkpointed=checkpointed))
    assert list(whole.checkpoints.values()) == [noted[2], noted[1]]
    with pytest.raises(LogUnreadable, match=r"record 5 \(checkpointed\).*names no stream"):
        whole.redo(log_pb2.Record(checkpointed=log_pb2.Checkpointed(stream="a")))


def test_what_is_settled_is_not_missing_on_the_topics() -> None:
    whole = replay()
    whole.redo(incarnation(1))
    whole.redo(change(1, "a"))
    assert whole.unconfirmed
    whole.settle()
    assert (whole.unconfirmed, whole.published) == ([], 1)


def test_a_log_of_the_other_placement_is_refused() -> None:
    other = Replay(Topics(), security_groups_own_stream=True)
    with pytest.raises(LogUnreadable, match="security_groups: vpc-stream"):
        other.redo(incarnation(1))


@pytest.mark.parametrize(
    ("there", "again"),
    [
        ((), [1, 2, 3]),
        ((1,), [2, 3]),
        ((1, 2, 3), []),
        ((1, 3), [2, 3]),
        ((2, 3), [1, 2, 3]),
        ((1, 3, 2), [3]),
        ((3, 1, 2), [3]),
        ((1, 3, 2, 3), []),
        ((0, 2, 1, 3), [2, 3]),
        ((1, 2, 3, 0), [1, 2, 3]),
        ((0, 1, 0, 1, 2, 3), []),
        ((0, -1), [1, 2, 3]),
        ((0, 1, -1), [2, 3]),
        ((0, 1, -2), [2, 3]),
        ((1, 2, 3, -3), []),
    ],
)
def test_from_the_first_that_is_missing_on_all_are_sent_again(
    there: tuple[int, ...], again: list[int]
) -> None:
    """Also where a later one is on the topic: a send failed, and the next one did not. Perhaps the
    failed one was sent again, and is behind it: nobody can read over that. (0 is one of before,
    that was published; a number below is an IN_SYNC message, which says a mark only.)"""

    async def test(region: Region) -> None:
        core = Core(region.topics)
        core.begin_epoch(1)
        publications = []
        for number in range(4):
            vpc = Vpc("v", cidr="10.0.0.0/8", tunnel_id=1, name=f"name-{number}")
            accepted = core.accept(core.plan(Intent(vpcs=(vpc,))), 1)
            publications += accepted.publications
        topic = region.topics.of_stream(vpc_stream("v"))
        for number in there:
            publication = publications[abs(number)]
            if number < 0:
                publication = in_sync(publication.envelope)
            properties = to_properties(publication.envelope)
            region.broker.publish(topic, publication.payload, properties=properties)
        missing = await not_on_topics(region.bus(), region.topics, publications[1:])
        assert [publications.index(one) for one in missing] == again

    run(test)
