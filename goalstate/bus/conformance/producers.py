"""Exclusive producers and their take-overs, answers to sends, sizes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable

from goalstate.bus.base import EARLIEST, FENCED_BOUND, MAX_PAYLOAD, Message
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
    watched,
)
from goalstate.bus.errors import BusClosed, MessageTooLarge, ProducerFenced


async def an_exclusive_producer_keeps_others_out(harness: Harness) -> None:
    async with connected(harness) as one, connected(harness) as other:
        topic = harness.topic("exclusive")
        holder = await one.open_producer(topic, exclusive=True)
        await holder.send(b"1")
        for exclusive in (True, False):
            for bus in (one, other):
                await expect_error(
                    f"a second producer (exclusive={exclusive})",
                    ProducerFenced,
                    bus.open_producer(topic, exclusive=exclusive),
                )
        await holder.send(b"2")
        await holder.close()
        successor = await other.open_producer(topic, exclusive=True)
        await successor.send(b"3")
        await expect_error(
            "a send after close", BusClosed, asyncio.ensure_future(holder.send(b"late"))
        )
        read = [m.payload async for m in one.read_to_end(topic, EARLIEST)]
        expect("the log", read, numbers(3, 1))
        await successor.close()
        shared = [await bus.open_producer(topic) for bus in (one, other)]
        await expect_error(
            "an exclusive producer among shared ones",
            ProducerFenced,
            one.open_producer(topic, exclusive=True),
        )
        for producer in shared:
            await producer.send(b"shared")


async def _expect_fenced(what: str, sends: Iterable[asyncio.Future[bytes]]) -> None:
    """Each of them fails with ProducerFenced, and that soon."""
    begin = time.monotonic()
    for send in sends:
        await expect_error(what, ProducerFenced, send)
    expect(f"{what}, soon", time.monotonic() - begin < FENCED_BOUND, True)


async def an_exclusive_producer_can_be_taken_over(harness: Harness) -> None:
    """Two in a row, from other connections and from the same one; the old one stays out."""
    async with connected(harness) as one, connected(harness) as other:
        topic = harness.topic("taken")
        first = await one.open_producer(topic, exclusive=True, name="a")
        await first.send(b"1")
        second = await other.open_producer(topic, exclusive=True, take_over=True, name="b")
        await _expect_fenced("sends of the first", [first.send(b"no") for _ in range(3)])
        await second.send(b"2")
        third = await one.open_producer(topic, exclusive=True, take_over=True, name="c")
        await _expect_fenced("a send of the second", [second.send(b"no")])
        await _expect_fenced("a later send of the first", [first.send(b"no")])
        await third.send(b"3")
        for exclusive in (True, False):
            await expect_error(
                f"another producer that takes nothing over (exclusive={exclusive})",
                ProducerFenced,
                other.open_producer(topic, exclusive=exclusive),
            )
        await first.close()
        await second.close()
        await third.send(b"4")
        read = [m.payload async for m in other.read_to_end(topic, EARLIEST)]
        expect("the log", read, numbers(4, 1))
        await third.close()
        await expect_error(
            "a send after close", BusClosed, asyncio.ensure_future(second.send(b"late"))
        )
        free = await other.open_producer(topic, exclusive=True, take_over=True)
        await free.send(b"5")


async def what_was_under_way_at_a_take_over_is_before_it_or_nowhere(harness: Harness) -> None:
    async with connected(harness) as one, connected(harness) as other:
        topic = harness.topic("under-way")
        holder = await one.open_producer(topic, exclusive=True)
        await holder.send(b"first")
        taking = asyncio.ensure_future(other.open_producer(topic, exclusive=True, take_over=True))
        sent: list[asyncio.Future[bytes]] = []
        for payload in numbers(500):
            sent.append(holder.send(payload))
            await asyncio.sleep(0)
        taker = await taking
        await taker.send(b"taken")
        begin = time.monotonic()
        sent.append(holder.send(b"late"))
        answers = await asyncio.gather(*sent, return_exceptions=True)
        expect("the holder heard soon", time.monotonic() - begin < FENCED_BOUND, True)
        failures = {type(answer) for answer in answers if not isinstance(answer, bytes)}
        expect("how sends of the holder failed", failures, {ProducerFenced})
        await taker.send(b"last")
        log = [m async for m in other.read_to_end(topic, EARLIEST)]
        expect("after the take-over", payloads_of(log)[-2:], [b"taken", b"last"])
        accepted = {answer for answer in answers if isinstance(answer, bytes)}
        lacking = accepted - {message.position for message in log}
        expect("accepted messages that the log lacks", lacking, set())


async def answers_of_a_producer_come_in_the_order_of_its_sends(harness: Harness) -> None:
    """Small and large ones, with and without batches, and some that are refused among them."""
    async with connected(harness) as bus:
        for batch in (False, True):
            producer = await bus.open_producer(harness.topic("answers"), batch=batch)
            sizes = {50: MAX_PAYLOAD + 1, 100: 1_000_000, 101: 0, 150: MAX_PAYLOAD + 1}
            sends = [producer.send(b"." * sizes.get(number, 10)) for number in range(300)]
            accepted = watched(sends)
            await asyncio.wait(sends)
            await asyncio.sleep(0)  # for the last one's callback
            good = [number for number in range(300) if sizes.get(number, 0) <= MAX_PAYLOAD]
            expect(f"the order of answers (batch={batch})", accepted, good)
            refused = {type(sends[number].exception()) for number in (50, 150)}
            expect("refusals", refused, {MessageTooLarge})


async def flush_waits_for_every_send(harness: Harness) -> None:
    async with connected(harness) as bus:
        for batch in (False, True):
            producer = await bus.open_producer(harness.topic("flush"), batch=batch)
            await producer.flush()
            sent = [producer.send(payload) for payload in numbers(500)]
            await producer.flush()
            expect("every send is answered", all(one.done() for one in sent), True)
            expect("the number of positions", len({one.result() for one in sent}), 500)


async def large_messages_pass_and_too_large_ones_are_refused(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("large")
        generator = random.Random(2)
        payloads = [generator.randbytes(MAX_PAYLOAD) for _ in range(3)]
        for batch in (False, True):
            producer = await bus.open_producer(topic, batch=batch)
            await expect_error(
                "one byte too many",
                MessageTooLarge,
                producer.send(b"\0" * (MAX_PAYLOAD + 1)),
            )
            await send_all(producer, payloads)
        got: list[Message] = []
        await bus.open_reader(topic, EARLIEST, got.append)
        await until("the large messages arrive", lambda: len(got) >= 6)
        expect("they are whole", payloads_of(got) == payloads * 2, True)
        last = await bus.last(topic)
        expect("the last is whole", last is not None and last.payload == payloads[-1], True)


CHECKS: tuple[Check, ...] = (
    an_exclusive_producer_keeps_others_out,
    an_exclusive_producer_can_be_taken_over,
    what_was_under_way_at_a_take_over_is_before_it_or_nowhere,
    answers_of_a_producer_come_in_the_order_of_its_sends,
    flush_waits_for_every_send,
    large_messages_pass_and_too_large_ones_are_refused,
)
