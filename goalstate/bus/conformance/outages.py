"""Without a broker: nobody answers, it dies and returns, or its bus is closed."""

from __future__ import annotations

import asyncio
import time

from goalstate.bus.base import EARLIEST, LATEST, Bus, Message, Producer
from goalstate.bus.conformance.kit import (
    BOUND,
    Check,
    Harness,
    Nonconformity,
    connected,
    expect,
    expect_error,
    numbers,
    payloads_of,
    send_all,
    until,
    watched,
)
from goalstate.bus.errors import BrokerUnreachable, BusClosed, ProducerFenced

#: Seconds within which everything is closed while the broker is away ("a few", with a margin).
CLOSING_BOUND = 10.0


async def an_unreachable_broker_is_named_quickly(harness: Harness) -> None:
    begin = time.monotonic()
    await expect_error("connecting to nobody", BrokerUnreachable, harness.connect_to_nobody())
    expect("it took less than 6 s", time.monotonic() - begin < 6, True)


async def a_closed_bus_refuses_work(harness: Harness) -> None:
    bus = await harness.connect()
    producer = await bus.open_producer(harness.topic("shut"))
    await bus.close()
    await bus.close()
    topic = harness.topic("shut")
    await expect_error("open_producer", BusClosed, bus.open_producer(topic))
    await expect_error("open_reader", BusClosed, bus.open_reader(topic, EARLIEST, lambda m: None))
    await expect_error("last", BusClosed, bus.last(topic))
    await expect_error("send", BusClosed, asyncio.ensure_future(producer.send(b"late")))


async def _send_surely(producer: Producer, payload: bytes) -> bytes:
    """Send until it is accepted."""
    end = time.monotonic() + 2 * BOUND
    while True:
        try:
            return await producer.send(payload)
        except BrokerUnreachable:
            if time.monotonic() > end:
                raise Nonconformity("no send is accepted after the broker came back") from None
            await asyncio.sleep(0.05)


async def _open_surely(bus: Bus, topic: str) -> Producer:
    """Open an exclusive producer, as soon as the broker is there again."""
    end = time.monotonic() + 2 * BOUND
    while True:
        try:
            return await bus.open_producer(topic, exclusive=True)
        except BrokerUnreachable:
            if time.monotonic() > end:
                raise Nonconformity("no producer opens after the broker came back") from None
            await asyncio.sleep(0.05)


async def _expect_outage_is_reported(harness: Harness, bus: Bus) -> None:
    begin = time.monotonic()
    await expect_error("connecting meanwhile", BrokerUnreachable, harness.connect())
    await expect_error(
        "opening a reader meanwhile",
        BrokerUnreachable,
        bus.open_reader(harness.topic("dead"), EARLIEST, lambda message: None),
    )
    expect("it took less than 20 s", time.monotonic() - begin < 20, True)


async def nothing_is_lost_when_the_broker_dies_and_returns(harness: Harness) -> None:
    """With readers that are at the end, far behind, at LATEST, and on an idle topic.

    While it is away, connecting and opening fail within a bound.
    """
    async with connected(harness) as bus:
        topic, idle, backlog = (harness.topic(name) for name in ("dies", "dies-idle", "dies-far"))
        logs: dict[str, list[Message]] = {"early": [], "late": [], "idle": [], "far": []}
        producer = await bus.open_producer(topic, exclusive=True)
        behind = await bus.open_producer(backlog, batch=True)
        accepted = await send_all(producer, numbers(20))
        await send_all(behind, numbers(5000))
        await bus.open_reader(topic, EARLIEST, logs["early"].append)
        await bus.open_reader(topic, LATEST, logs["late"].append)
        await bus.open_reader(idle, LATEST, logs["idle"].append)
        await until("the first messages arrive", lambda: len(logs["early"]) >= 20)
        await bus.open_reader(backlog, EARLIEST, logs["far"].append)
        for round_ in range(harness.deaths):
            await harness.kill()
            early = producer.send(b"meanwhile %d" % round_)
            try:
                if round_ == 0:
                    await _expect_outage_is_reported(harness, bus)
            finally:
                await harness.restart()
            try:
                accepted.append(await early)
            except BrokerUnreachable:
                accepted.append(await _send_surely(producer, b"meanwhile %d" % round_))
            for number in range(10):
                accepted.append(await _send_surely(producer, b"round %d %d" % (round_, number)))
            idler = await bus.open_producer(idle)
            await _send_surely(idler, b"idle %d" % round_)
            await idler.close()
        final = await _send_surely(producer, b"final")
        for name in ("early", "late"):
            await until(
                f"the {name} reader goes on",
                lambda mine=logs[name]: bool(mine) and mine[-1].position == final,  # type: ignore[misc]
            )
        await until(
            "a reader of an idle topic goes on",
            lambda: b"idle %d" % (harness.deaths - 1) in payloads_of(logs["idle"]),
        )
        await until("a reader that was far behind goes on", lambda: len(logs["far"]) >= 5000)
        log = [m async for m in bus.read_to_end(topic, EARLIEST)]
        lacking = set(accepted) - {message.position for message in log}
        expect("accepted messages that the log lacks", lacking, set())
        expect("the reader from EARLIEST saw the log", logs["early"], log)
        expect("the reader from LATEST saw its part", logs["late"], log[20:])
        expect("the far reader saw its log", payloads_of(logs["far"]), numbers(5000))
        expect(
            "the idle reader's distinct messages",
            sorted(set(payloads_of(logs["idle"]))),
            [b"idle %d" % round_ for round_ in range(harness.deaths)],
        )
        async with connected(harness) as other:
            await expect_error(
                "another producer on the topic",
                ProducerFenced,
                other.open_producer(topic, exclusive=True),
            )
            again = [m async for m in other.read_to_end(topic, EARLIEST)]
            expect("what a new connection reads", again, log)


async def one_that_was_taken_over_stays_out_also_after_the_broker_died(harness: Harness) -> None:
    """Whether its successor comes back as well or is gone."""
    async with connected(harness) as one, connected(harness) as other:
        third = await harness.connect()
        topics = [harness.topic(name) for name in ("out-back", "out-gone")]
        old = [await one.open_producer(topic, exclusive=True) for topic in topics]
        for producer in old:
            await producer.send(b"old")
        new = [
            await bus.open_producer(topic, exclusive=True, take_over=True)
            for bus, topic in zip((other, third), topics, strict=True)
        ]
        for producer in new:
            await producer.send(b"new")
        await third.close()
        await harness.kill()
        meanwhile = [new[0].send(b"more") for _ in range(20)]
        accepted = watched(meanwhile)
        await harness.restart()
        for producer in reversed(old):
            await expect_error(
                f"a send to {producer.topic} of one that was taken over",
                ProducerFenced,
                _send_surely(producer, b"no"),
            )
        await _send_surely(new[0], b"more")
        await asyncio.wait(meanwhile)
        expect("the order of answers", accepted, sorted(accepted))
        successor = await _open_surely(other, topics[1])
        await _send_surely(successor, b"more")
        await expect_error("once more", ProducerFenced, _send_surely(old[1], b"no"))
        for topic in topics:
            read = [m.payload async for m in other.read_to_end(topic, EARLIEST)]
            # What was under way when the broker went may be there twice.
            expect("the log", list(dict.fromkeys(read)), [b"old", b"new", b"more"])


async def closing_ends_while_the_broker_is_away(harness: Harness) -> None:
    """Also with open readers and unanswered sends, and at the moment in which the broker goes.

    Every send is answered in the end, whatever was closed.
    """
    buses = [await harness.connect() for _ in range(4)]
    idle, busy, alone, at_once = buses
    topic = harness.topic("away")
    sent: list[asyncio.Future[bytes]] = []

    def send(producer: Producer) -> None:
        sent.extend(producer.send(payload) for payload in numbers(20))

    await idle.open_reader(topic, LATEST, lambda message: None)
    producers = []
    for bus in (busy, alone, at_once):
        for place in (topic, harness.topic("away-too")):
            await bus.open_reader(place, LATEST, lambda message: None)
            producers.append(await bus.open_producer(place, batch=place != topic))
            await producers[-1].send(b"before")
    closing: dict[str, asyncio.Future[None]] = {}
    dying = asyncio.ensure_future(harness.kill())
    try:
        for producer in producers[4:]:
            send(producer)
        closing["a bus as the broker goes"] = asyncio.ensure_future(at_once.close())
        await dying
        for producer in producers[:4]:
            send(producer)
        closing["an idle bus"] = asyncio.ensure_future(idle.close())
        closing["a bus with unanswered sends"] = asyncio.ensure_future(busy.close())
        for producer in producers[2:4]:
            name = f"a producer with unanswered sends to {producer.topic}"
            closing[name] = asyncio.ensure_future(producer.close())
        await asyncio.wait(closing.values(), timeout=CLOSING_BOUND)
        late = sorted(name for name, task in closing.items() if not task.done())
        expect(f"what is not closed after {CLOSING_BOUND:.0f} s", late, [])
        await asyncio.gather(*closing.values())
        outcomes = {
            type(one.exception()) if one.done() and one.exception() else one.done() for one in sent
        }
        expect("outcomes of sends", outcomes - {True, BusClosed, BrokerUnreachable}, set())
    finally:
        for task in closing.values():
            task.cancel()
        await harness.restart()
        for bus in buses:
            await bus.close()


CHECKS: tuple[Check, ...] = (
    an_unreachable_broker_is_named_quickly,
    a_closed_bus_refuses_work,
)
RESTART_CHECKS: tuple[Check, ...] = (
    nothing_is_lost_when_the_broker_dies_and_returns,
    one_that_was_taken_over_stays_out_also_after_the_broker_died,
    closing_ends_while_the_broker_is_away,
)
