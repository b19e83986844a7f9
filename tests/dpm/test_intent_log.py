"""The intent log: whole records in order, whatever a broken connection left in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import count

import pytest

from goalstate.bus.base import MAX_PAYLOAD
from goalstate.bus.errors import BrokerUnreachable, BusClosed, PositionGone
from goalstate.dpm.errors import LogHeld, LogUnreadable
from goalstate.dpm.intent_log import PART_BYTES, IntentLog, LogPlace
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from tests.dpm.wires import Region, Wire

TOPIC = Region().topics.intent_log


def change(number: int, text: str = "") -> log_pb2.Record:
    return log_pb2.Record(change=log_pb2.Change(change=number, traceparent=text))


LONG = change(2, "x" * 350)
_epochs = count(1)


def incarnation(epoch: int) -> log_pb2.Record:
    return log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=epoch))


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


def new_log(region: Region, part_bytes: int = 100) -> IntentLog:
    return IntentLog(region.bus(), TOPIC, part_bytes=part_bytes)


async def opened(region: Region, part_bytes: int = 100) -> IntentLog:
    """With the incarnation written that each session begins with."""
    log = new_log(region, part_bytes)
    await log.open("writer")
    await log.append(incarnation(next(_epochs)))
    return log


async def written(region: Region, *records: log_pb2.Record) -> None:
    log = await opened(region)
    for record in records:
        await log.append(record)
    await log.close()


async def read(region: Region) -> list[log_pb2.Record]:
    """The changes."""
    records = [record async for record in new_log(region).records()]
    return [record for record in records if record.WhichOneof("body") == "change"]


def test_an_empty_log_has_no_records() -> None:
    async def test(region: Region) -> None:
        assert await read(region) == []

    run(test)


def test_records_are_read_as_they_were_appended() -> None:
    async def test(region: Region) -> None:
        records = [change(1), LONG, change(3)]
        await written(region, *records[:2])
        await written(region, records[2])
        assert await read(region) == records
        # The long one is in parts, each of the size that was asked for.
        sizes = [len(m.payload) for m in region.messages(TOPIC)]
        assert sizes[2:5] == [100, 100, 100]
        assert len(sizes) == 6 + 2

    run(test)


def test_appends_keep_their_order_and_are_durable_one_after_the_other() -> None:
    async def test(region: Region) -> None:
        log = await opened(region)
        region.cut(Wire.HELD)
        appends = [log.append(change(n, "y" * 40 * n)) for n in range(1, 8)]
        assert not any(append.done() for append in appends)
        region.release()
        positions = await asyncio.gather(*appends)
        assert positions == sorted(positions)
        assert [r.change.change for r in await read(region)] == list(range(1, 8))

    run(test)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_torn_record_is_passed_over(kept: int) -> None:
    async def test(region: Region) -> None:
        await written(region, change(1))
        log = await opened(region)
        region.cut(Wire.DEAD, after=kept)
        torn = log.append(LONG)
        region.mend()
        await log.close()
        assert [r.change.change for r in await read(region)] == [1]
        await written(region, change(2, "again"))
        assert await read(region) == [change(1), change(2, "again")]
        torn.cancel()

    run(test)


def test_what_the_broker_wrote_twice_is_read_once() -> None:
    async def test(region: Region) -> None:
        region.cut(Wire.TWICE)
        records = [change(1), LONG, change(3), LONG, change(5)]
        await written(region, *records)
        assert len(region.messages(TOPIC)) > 2 * 12
        assert await read(region) == records

    run(test)


async def read_with_places(
    log: IntentLog, *start: LogPlace
) -> list[tuple[log_pb2.Record, bool, LogPlace]]:
    return [(record, log.lost, log.place) async for record in log.records(*start)]


async def a_troubled_log(region: Region, wire: Wire) -> None:
    """Two writers; of the first a record is lost and one is torn."""
    region.cut(wire)
    log = await opened(region)
    for record in (change(1), LONG):
        await log.append(record)
    log._number += 1
    await log.append(change(4))
    log._number += 1
    for properties in ({"part": "2/9"}, {"part": "3/9"}):
        log._number += 1
        named = {"session": log._session, "number": str(log._number), **properties}
        region.broker.publish(TOPIC, b"torn", properties=named)
    await log.append(LONG)
    await log.close()
    await written(region, change(5), LONG, change(7))


@pytest.mark.parametrize("wire", [Wire.GOOD, Wire.TWICE])
def test_reading_on_from_any_record_is_reading_from_the_beginning(wire: Wire) -> None:
    async def test(region: Region) -> None:
        await a_troubled_log(region, wire)
        log = new_log(region)
        whole = await read_with_places(log)
        size = log.size
        assert size == sum(len(m.payload) for m in region.messages(TOPIC))
        first = [False, False, False, True, True]
        assert [lost for _, lost, _ in whole] == first + [False] * 4
        for number, (_, _, place) in enumerate(whole, 1):
            assert await read_with_places(log, place) == whole[number:]
            assert log.size == size

    run(test)


def test_the_place_of_a_record_is_its_last_message() -> None:
    async def test(region: Region) -> None:
        await written(region, change(1), LONG)
        log = new_log(region)
        *_, (_, _, place) = await read_with_places(log)
        last = region.messages(TOPIC)[-1]
        assert place.position == last.position
        assert place.messages == len(region.messages(TOPIC))
        assert (place.session, str(place.number)) == (
            last.properties["session"],
            last.properties["number"],
        )
        assert await read_with_places(log, place) == []
        assert log.place == place

    run(test)


def test_a_place_that_the_log_no_longer_reaches_back_to_is_gone() -> None:
    async def test(region: Region) -> None:
        await written(region, *(change(number) for number in range(1, 6)))
        log = new_log(region)
        places = [place for _, _, place in await read_with_places(log)]
        region.broker.trim(TOPIC, 2)
        assert [r.change.change async for r in log.records(places[3])] == [4, 5]
        with pytest.raises(PositionGone):
            await read_with_places(log, places[2])

    run(test)


def test_what_is_appended_counts_to_the_logs_size() -> None:
    async def test(region: Region) -> None:
        log = await opened(region)
        begun = log.size
        await log.append(LONG)
        assert log.size == begun + LONG.ByteSize()
        await log.close()
        again = new_log(region)
        await read_with_places(again)
        assert again.size == log.size

    run(test)


def test_two_writers_after_each_other_may_number_alike() -> None:
    async def test(region: Region) -> None:
        region.cut(Wire.TWICE)
        for number in range(1, 4):
            await written(region, change(number))
        assert [r.change.change for r in await read(region)] == [1, 2, 3]

    run(test)


def test_a_log_has_one_writer() -> None:
    async def test(region: Region) -> None:
        first = await opened(region)
        with pytest.raises(LogHeld, match=r"another publisher holds the intent log .*intent\.log"):
            await opened(region)
        await first.close()
        await (await opened(region)).close()

    run(test)


def test_a_failed_append_says_so() -> None:
    async def test(region: Region) -> None:
        log = await opened(region)
        region.cut(Wire.FAILS)
        for record in (change(1), LONG):
            with pytest.raises(BrokerUnreachable):
                await log.append(record)
        assert await read(region) == []

    run(test)


def test_a_log_that_is_not_open_takes_nothing() -> None:
    async def test(region: Region) -> None:
        log = new_log(region)
        with pytest.raises(BusClosed, match="not open"):
            await log.append(change(1))
        await log.close()
        await log.open("writer")
        await log.close()
        with pytest.raises(BusClosed, match="not open"):
            await log.append(change(1))

    run(test)


def test_parts_fit_into_a_message_of_every_broker() -> None:
    assert PART_BYTES <= MAX_PAYLOAD


def test_two_records_of_which_the_middle_is_missing_are_both_passed_over() -> None:
    async def test(region: Region) -> None:
        log = await opened(region)
        await log.append(change(1))
        region.cut(Wire.DEAD, after=3)
        torn = [log.append(LONG)]  # its last part is lost
        torn.append(log.append(change(3, "y" * 150)))  # and the first of this
        region.mend()
        messages = region.messages(TOPIC)
        assert messages[-1].properties["part"] == "3/4"
        properties = {"session": log._session, "number": str(log._number), "part": "4/4"}
        region.broker.publish(TOPIC, b"the end of another", properties=properties)
        await log.close()
        assert await read(region) == [change(1)]
        for append in torn:
            append.cancel()

    run(test)


def test_what_a_writer_that_was_followed_gets_in_late_counts_for_nothing() -> None:
    async def test(region: Region) -> None:
        await written(region, change(1))
        early, late = new_log(region), new_log(region)
        for log in (early, late):
            await log.open("writer")
            # Whoever begins after both knows neither: both have the same number.
            region.cut(Wire.HELD)
            begun = log.append(incarnation(10**6))
            region.mend()
            await log.close()
            begun.cancel()
        serving = await opened_as(region, 10**6)
        await serving.append(change(2))
        region.release()  # the first word of a writer that had given up
        await late_word(region, early, change(2, "void"))
        await serving.append(change(3))
        await late_word(region, late, change(3, "void"))
        await serving.append(change(4))
        assert await read(region) == [change(number) for number in range(1, 5)]
        log = new_log(region)
        whole = await read_with_places(log)
        for number, (_, _, place) in enumerate(whole, 1):
            assert await read_with_places(log, place) == whole[number:]

    async def opened_as(region: Region, epoch: int) -> IntentLog:
        log = new_log(region)
        await log.open("writer")
        await log.append(incarnation(epoch))
        return log

    async def late_word(region: Region, log: IntentLog, record: log_pb2.Record) -> None:
        properties = {"session": log._session, "number": str(log._number + 1), "part": "1/1"}
        region.broker.publish(TOPIC, record.SerializeToString(), properties=properties)

    run(test)


def test_a_session_may_begin_with_its_second_word() -> None:
    # Another one got in first, under the same number; so it says a higher one.
    async def test(region: Region) -> None:
        first = await opened(region)
        await first.append(change(1))
        await first.close()
        log = new_log(region)
        await log.open("writer")
        for epoch in (1, 10**6):
            await log.append(incarnation(epoch))
        await log.append(change(2))
        assert await read(region) == [change(1), change(2)]

    run(test)


GOOD = {"session": "s", "number": "2", "part": "1/1"}


@pytest.mark.parametrize(
    ("payload", "properties", "reason"),
    [
        (b"\xff\xff", GOOD, "Error parsing|corrupt"),
        (b"", {}, "has no property 'session'"),
        (b"", {"session": "s", "number": "2"}, "has no property 'part'"),
        (b"", GOOD | {"number": "one"}, "one"),
        (b"", GOOD | {"part": "2/3"}, "part 2 follows part 0"),
        (b"", GOOD | {"part": "1"}, "invalid literal"),
        (b"", GOOD | {"part": "x/y"}, "invalid literal"),
    ],
)
def test_what_no_publisher_writes_is_refused_with_its_place(
    payload: bytes, properties: dict[str, str], reason: str
) -> None:
    async def test(region: Region) -> None:
        first = {"session": "s", "number": "1", "part": "1/1"}
        region.broker.publish(TOPIC, change(1).SerializeToString(), properties=first)
        region.broker.publish(TOPIC, payload, properties=properties)
        with pytest.raises(LogUnreadable, match=rf"message 2 of .*intent\.log.*({reason})"):
            await read(region)

    run(test)
