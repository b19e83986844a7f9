"""Order, content and positions of a log, and its readers."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from goalstate.bus.base import EARLIEST, LATEST, Message
from goalstate.bus.conformance.kit import (
    Check,
    Harness,
    connected,
    expect,
    expect_error,
    numbers,
    payloads_of,
    send_all,
    until,
)
from goalstate.bus.errors import PositionGone


async def order_keys_and_properties_are_kept(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("kept")
        got: list[Message] = []
        await bus.open_reader(topic, EARLIEST, got.append)
        producer = await bus.open_producer(topic)
        expect("the producer's topic", producer.topic, topic)
        before = time.time_ns()
        sent = [
            producer.send(b"%d" % n, key=f"k{n % 3}", properties={"n": str(n), "ü": "→" * n})
            for n in range(20)
        ]
        bare = producer.send(b"")
        positions = [await one for one in [*sent, bare]]
        await until("all messages arrive", lambda: len(got) >= 21)
        expect("payloads", payloads_of(got), [*numbers(20), b""])
        expect("keys", [m.key for m in got], [f"k{n % 3}" for n in range(20)] + [""])
        expect(
            "properties",
            [dict(m.properties) for m in got],
            [{"n": str(n), "ü": "→" * n} for n in range(20)] + [{}],
        )
        expect("topics", {m.topic for m in got}, {topic})
        expect("all positions differ", len({m.position for m in got}), 21)
        expect("positions of sends and of messages", [m.position for m in got], positions)
        bound = 60_000_000_000
        stamps = [abs(m.published_ns - before) < bound for m in got]
        expect("publish times are near the clock", stamps, [True] * 21)


async def any_bytes_are_kept(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("bytes")
        producer = await bus.open_producer(topic)
        generator = random.Random(1)
        payloads = [bytes(range(256)), b"\0", b"\xff" * 3, generator.randbytes(100_000)]
        await send_all(producer, payloads)
        expect("payloads", [m.payload async for m in bus.read_to_end(topic, EARLIEST)], payloads)


async def a_reader_resumes_after_any_position(harness: Harness) -> None:
    """Also inside a batch, with a reader and with read_to_end."""
    async with connected(harness) as bus:
        topic = harness.topic("resume")
        alone = await bus.open_producer(topic)
        await send_all(alone, numbers(3))
        batched = await bus.open_producer(topic, batch=True)
        await send_all(batched, numbers(10, 3))
        await send_all(alone, numbers(2, 13))
        everything = [m async for m in bus.read_to_end(topic, EARLIEST)]
        expect("the log", payloads_of(everything), numbers(15))
        for place, message in enumerate(everything):
            rest = numbers(14 - place, place + 1)
            read = [m.payload async for m in bus.read_to_end(topic, message.position)]
            expect(f"what is read after message {place}", read, rest)
        logs: list[list[Message]] = [[] for _ in everything]
        for log, message in zip(logs, everything, strict=True):
            await bus.open_reader(topic, message.position, log.append)
        await send_all(alone, [b"end"])
        await until("every reader is at the end", lambda: all(log for log in logs))
        await until(
            "every reader saw the last message", lambda: all(log[-1][3] == b"end" for log in logs)
        )
        for place, log in enumerate(logs):
            rest = [*numbers(14 - place, place + 1), b"end"]
            expect(f"what a reader gets after message {place}", payloads_of(log), rest)


async def late_readers_get_everything_or_only_what_is_new(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("late")
        producer = await bus.open_producer(topic)
        await send_all(producer, numbers(5))
        early: list[Message] = []
        late: list[Message] = []
        await bus.open_reader(topic, EARLIEST, early.append)
        await bus.open_reader(topic, LATEST, late.append)
        await send_all(producer, numbers(5, 5))
        await until("both readers have it all", lambda: len(early) >= 10 and len(late) >= 5)
        expect("from EARLIEST", payloads_of(early), numbers(10))
        expect("from LATEST", payloads_of(late), numbers(5, 5))
        read = [m async for m in bus.read_to_end(topic, LATEST)]
        expect("read_to_end from LATEST", read, [])


async def a_position_that_the_log_does_not_hold_is_refused(harness: Harness) -> None:
    async with connected(harness) as bus:
        here, there = harness.topic("gone-a"), harness.topic("gone-b")
        producer = await bus.open_producer(here)
        position = (await send_all(producer, numbers(3)))[-1]
        await (await bus.open_producer(there)).send(b"other")
        got: list[Message] = []
        await expect_error(
            "a position beyond the log", PositionGone, bus.open_reader(there, position, got.append)
        )
        await expect_error(
            "no position at all", PositionGone, bus.open_reader(here, b"nonsense", got.append)
        )

        async def read() -> list[Message]:
            return [m async for m in bus.read_to_end(there, position)]

        await expect_error("reading from beyond the log", PositionGone, read())
        expect("deliveries", got, [])


async def last_and_read_to_end_do_not_stall(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("end")
        expect("the last of an absent topic", await bus.last(topic), None)
        expect("an absent topic", [m async for m in bus.read_to_end(topic, EARLIEST)], [])
        producer = await bus.open_producer(topic)
        batched = await bus.open_producer(topic, batch=True)
        expect("the last of an empty topic", await bus.last(topic), None)
        for number in range(3):
            await producer.send(b"%d" % number, key="k", properties={"a": "b"})
        last = await bus.last(topic)
        expect("the last", last and (last.payload, last.key), (b"2", "k"))
        await send_all(batched, numbers(7, 3))
        last = await bus.last(topic)
        expect("the last of a batch", last and last.payload, b"9")
        position = last.position if last else b""
        expect("after the last", [m async for m in bus.read_to_end(topic, position)], [])
        count = 3000
        await send_all(batched, numbers(count, 10))
        read = [m.payload async for m in bus.read_to_end(topic, EARLIEST)]
        expect("a longer log", read, numbers(count + 10))


async def a_closed_reader_gets_nothing_more(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("closed")
        producer = await bus.open_producer(topic)
        first: list[Message] = []
        second: list[Message] = []
        reader = await bus.open_reader(topic, EARLIEST, first.append)
        await bus.open_reader(topic, EARLIEST, second.append)
        await producer.send(b"1")
        await until("both got it", lambda: bool(first and second))
        await reader.close()
        await reader.close()
        await producer.send(b"2")
        await until("the open one got it", lambda: len(second) >= 2)
        expect("the closed reader's", payloads_of(first), [b"1"])


async def a_failing_sink_does_not_harm_the_others(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("sink")
        got: list[Message] = []
        reported: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))

        def fail(message: Message) -> None:
            raise ValueError(message.payload)

        try:
            await bus.open_reader(topic, EARLIEST, fail)
            await bus.open_reader(topic, EARLIEST, got.append)
            await send_all(await bus.open_producer(topic), numbers(5))
            await until("the other reader has it all", lambda: len(got) >= 5)
            await until("the failures are reported", lambda: len(reported) >= 5)
        finally:
            loop.set_exception_handler(None)
        expect("the other reader's", payloads_of(got), numbers(5))


CHECKS: tuple[Check, ...] = (
    order_keys_and_properties_are_kept,
    any_bytes_are_kept,
    a_reader_resumes_after_any_position,
    late_readers_get_everything_or_only_what_is_new,
    a_position_that_the_log_does_not_hold_is_refused,
    last_and_read_to_end_do_not_stall,
    a_closed_reader_gets_nothing_more,
    a_failing_sink_does_not_harm_the_others,
)
