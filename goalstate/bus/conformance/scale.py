"""Many readers, messages and topics at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from goalstate.bus.base import EARLIEST, Message
from goalstate.bus.conformance.kit import (
    Check,
    Harness,
    connected,
    expect,
    payloads_of,
    send_all,
    until,
)

READERS, BURST, TOPICS = 100, 2000, 500


async def a_burst_reaches_every_reader_once_and_in_order(harness: Harness) -> None:
    async with connected(harness) as bus:
        topic = harness.topic("burst")
        logs: list[list[bytes]] = [[] for _ in range(READERS)]

        def sink(log: list[bytes]) -> Callable[[Message], None]:
            return lambda message: log.append(message.payload)

        await asyncio.gather(*[bus.open_reader(topic, EARLIEST, sink(log)) for log in logs])
        producer = await bus.open_producer(topic)
        expected = [b"%06d" % number + b"." * 250 for number in range(BURST)]
        await send_all(producer, expected)
        await until(
            f"{READERS} readers have {BURST} messages",
            lambda: all(len(log) >= BURST for log in logs),
        )
        await producer.send(b"end")
        await until("the end arrives", lambda: all(log[-1] == b"end" for log in logs))
        for number, log in enumerate(logs):
            expect(f"what reader {number} got", log == [*expected, b"end"], True)


async def many_topics_do_not_mix(harness: Harness) -> None:
    async with connected(harness) as bus:
        topics = [harness.topic("many") for _ in range(TOPICS)]
        logs: dict[str, list[Message]] = {topic: [] for topic in topics}
        producers = await asyncio.gather(*[bus.open_producer(topic) for topic in topics])
        await asyncio.gather(
            *[bus.open_reader(topic, EARLIEST, log.append) for topic, log in logs.items()]
        )
        for producer, number in itertools.product(producers, range(3)):
            producer.send(f"{producer.topic}/{number}".encode())
        await until("every topic's are there", lambda: all(len(log) >= 3 for log in logs.values()))
        for topic, log in logs.items():
            expect(
                f"messages of {topic}",
                payloads_of(log),
                [f"{topic}/{n}".encode() for n in range(3)],
            )


async def two_connections_see_one_log(harness: Harness) -> None:
    async with connected(harness) as one, connected(harness) as other:
        topic = harness.topic("two")
        logs: list[list[Message]] = [[], []]
        producers = []
        for bus, log in zip((one, other), logs, strict=True):
            await bus.open_reader(topic, EARLIEST, log.append)
            producers.append(await bus.open_producer(topic))
        await asyncio.gather(
            *[
                producer.send(b"%d/%d" % (who, number))
                for number in range(50)
                for who, producer in enumerate(producers)
            ]
        )
        await until("both have it all", lambda: all(len(log) >= 100 for log in logs))
        expect("the order that both saw", logs[0], logs[1])
        for who in range(2):
            mine = [m.payload for m in logs[0] if m.payload.startswith(b"%d/" % who)]
            expect(f"the order of producer {who}", mine, [b"%d/%d" % (who, n) for n in range(50)])


CHECKS: tuple[Check, ...] = (
    a_burst_reaches_every_reader_once_and_in_order,
    many_topics_do_not_mix,
    two_connections_see_one_log,
)
