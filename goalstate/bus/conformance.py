"""One kit that every broker passes, as `base.py` promises it.

A broker is put to the test through a `Harness`. Each check is a coroutine function in `CHECKS`; it
opens its own connections and topics, and raises `Nonconformity` with what was expected and what
was seen. `RESTART_CHECKS` also kill the broker and start it again.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from goalstate.bus.base import (
    EARLIEST,
    FENCED_BOUND,
    LATEST,
    MAX_PAYLOAD,
    Bus,
    Message,
    Producer,
)
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusClosed,
    BusError,
    MessageTooLarge,
    PositionGone,
    ProducerFenced,
)

#: Seconds until a condition that should come about counts as never.
BOUND = 60.0
#: Seconds within which everything is closed while the broker is away ("a few", with a margin).
CLOSING_BOUND = 10.0

READERS, BURST, TOPICS = 100, 2000, 500


class Nonconformity(AssertionError):
    """A broker or its adapter does not do what `base.py` says."""


class Harness(Protocol):
    """What the kit needs to know of a broker."""

    @property
    def deaths(self) -> int:
        """How many times in a row the broker is killed, at least 1."""
        ...

    async def connect(self) -> Bus:
        """A new connection."""
        ...

    async def connect_to_nobody(self) -> Bus:
        """A connection to an address of the same kind where nobody answers."""
        ...

    def topic(self, name: str) -> str:
        """The full name of a topic that nobody has used yet."""
        ...

    async def kill(self) -> None:
        """End the broker as a power cut would."""
        ...

    async def restart(self) -> None:
        """Start it again at the same address with what it had on disk."""
        ...


async def until(what: str, condition: Callable[[], bool], bound: float = BOUND) -> None:
    """Wait for a condition. Raises Nonconformity naming it after `bound` seconds."""
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            raise Nonconformity(f"did not happen within {bound:.0f} s: {what}")
        await asyncio.sleep(0.002)


def expect(what: str, seen: object, expected: object) -> None:
    """Raises Nonconformity unless both are equal."""
    if seen != expected:
        raise Nonconformity(f"{what}: expected {_short(expected)}, saw {_short(seen)}")


async def expect_error(what: str, kind: type[BusError], action: Awaitable[object]) -> None:
    """Raises Nonconformity unless `action` raises `kind`."""
    try:
        result = await action
    except kind:
        return
    except BusError as error:
        raise Nonconformity(f"{what}: expected {kind.__name__}, saw {error!r}") from error
    raise Nonconformity(f"{what}: expected {kind.__name__}, saw {_short(result)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


@asynccontextmanager
async def _connected(harness: Harness) -> AsyncIterator[Bus]:
    bus = await harness.connect()
    try:
        yield bus
    finally:
        await bus.close()


def _payloads(messages: Iterable[Message]) -> list[bytes]:
    return [message.payload for message in messages]


async def _send_all(producer: Producer, payloads: Iterable[bytes]) -> list[bytes]:
    return list(await asyncio.gather(*[producer.send(payload) for payload in payloads]))


def _numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


# -- logs and positions ----------------------------------------------------------------------


async def order_keys_and_properties_are_kept(harness: Harness) -> None:
    async with _connected(harness) as bus:
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
        expect("payloads", _payloads(got), [*_numbers(20), b""])
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
    async with _connected(harness) as bus:
        topic = harness.topic("bytes")
        producer = await bus.open_producer(topic)
        generator = random.Random(1)
        payloads = [bytes(range(256)), b"\0", b"\xff" * 3, generator.randbytes(100_000)]
        await _send_all(producer, payloads)
        expect("payloads", [m.payload async for m in bus.read_to_end(topic, EARLIEST)], payloads)


async def a_reader_resumes_after_any_position(harness: Harness) -> None:
    """Also inside a batch, with a reader and with read_to_end."""
    async with _connected(harness) as bus:
        topic = harness.topic("resume")
        alone = await bus.open_producer(topic)
        await _send_all(alone, _numbers(3))
        batched = await bus.open_producer(topic, batch=True)
        await _send_all(batched, _numbers(10, 3))
        await _send_all(alone, _numbers(2, 13))
        everything = [m async for m in bus.read_to_end(topic, EARLIEST)]
        expect("the log", _payloads(everything), _numbers(15))
        for place, message in enumerate(everything):
            rest = _numbers(14 - place, place + 1)
            read = [m.payload async for m in bus.read_to_end(topic, message.position)]
            expect(f"what is read after message {place}", read, rest)
        logs: list[list[Message]] = [[] for _ in everything]
        for log, message in zip(logs, everything, strict=True):
            await bus.open_reader(topic, message.position, log.append)
        await _send_all(alone, [b"end"])
        await until("every reader is at the end", lambda: all(log for log in logs))
        await until(
            "every reader saw the last message", lambda: all(log[-1][3] == b"end" for log in logs)
        )
        for place, log in enumerate(logs):
            rest = [*_numbers(14 - place, place + 1), b"end"]
            expect(f"what a reader gets after message {place}", _payloads(log), rest)


async def late_readers_get_everything_or_only_what_is_new(harness: Harness) -> None:
    async with _connected(harness) as bus:
        topic = harness.topic("late")
        producer = await bus.open_producer(topic)
        await _send_all(producer, _numbers(5))
        early: list[Message] = []
        late: list[Message] = []
        await bus.open_reader(topic, EARLIEST, early.append)
        await bus.open_reader(topic, LATEST, late.append)
        await _send_all(producer, _numbers(5, 5))
        await until("both readers have it all", lambda: len(early) >= 10 and len(late) >= 5)
        expect("from EARLIEST", _payloads(early), _numbers(10))
        expect("from LATEST", _payloads(late), _numbers(5, 5))
        read = [m async for m in bus.read_to_end(topic, LATEST)]
        expect("read_to_end from LATEST", read, [])


async def a_position_that_the_log_does_not_hold_is_refused(harness: Harness) -> None:
    async with _connected(harness) as bus:
        here, there = harness.topic("gone-a"), harness.topic("gone-b")
        producer = await bus.open_producer(here)
        position = (await _send_all(producer, _numbers(3)))[-1]
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
    async with _connected(harness) as bus:
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
        await _send_all(batched, _numbers(7, 3))
        last = await bus.last(topic)
        expect("the last of a batch", last and last.payload, b"9")
        position = last.position if last else b""
        expect("after the last", [m async for m in bus.read_to_end(topic, position)], [])
        count = 3000
        await _send_all(batched, _numbers(count, 10))
        read = [m.payload async for m in bus.read_to_end(topic, EARLIEST)]
        expect("a longer log", read, _numbers(count + 10))


async def a_closed_reader_gets_nothing_more(harness: Harness) -> None:
    async with _connected(harness) as bus:
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
        expect("the closed reader's", _payloads(first), [b"1"])


async def a_failing_sink_does_not_harm_the_others(harness: Harness) -> None:
    async with _connected(harness) as bus:
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
            await _send_all(await bus.open_producer(topic), _numbers(5))
            await until("the other reader has it all", lambda: len(got) >= 5)
            await until("the failures are reported", lambda: len(reported) >= 5)
        finally:
            loop.set_exception_handler(None)
        expect("the other reader's", _payloads(got), _numbers(5))


# -- producers -------------------------------------------------------------------------------


async def an_exclusive_producer_keeps_others_out(harness: Harness) -> None:
    async with _connected(harness) as one, _connected(harness) as other:
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
        expect("the log", read, _numbers(3, 1))
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
    async with _connected(harness) as one, _connected(harness) as other:
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
        expect("the log", read, _numbers(4, 1))
        await third.close()
        await expect_error(
            "a send after close", BusClosed, asyncio.ensure_future(second.send(b"late"))
        )
        free = await other.open_producer(topic, exclusive=True, take_over=True)
        await free.send(b"5")


async def what_was_under_way_at_a_take_over_is_before_it_or_nowhere(harness: Harness) -> None:
    async with _connected(harness) as one, _connected(harness) as other:
        topic = harness.topic("under-way")
        holder = await one.open_producer(topic, exclusive=True)
        await holder.send(b"first")
        taking = asyncio.ensure_future(other.open_producer(topic, exclusive=True, take_over=True))
        sent: list[asyncio.Future[bytes]] = []
        for payload in _numbers(500):
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
        expect("after the take-over", _payloads(log)[-2:], [b"taken", b"last"])
        accepted = {answer for answer in answers if isinstance(answer, bytes)}
        lacking = accepted - {message.position for message in log}
        expect("accepted messages that the log lacks", lacking, set())


def _watched(sends: Iterable[asyncio.Future[bytes]]) -> list[int]:
    """Grows by the number of each send that has a result, in the order in which they came."""
    accepted: list[int] = []

    def watch(number: int, send: asyncio.Future[bytes]) -> None:
        def answered(done: asyncio.Future[bytes]) -> None:
            if not done.cancelled() and done.exception() is None:
                accepted.append(number)

        send.add_done_callback(answered)

    for number, send in enumerate(sends):
        watch(number, send)
    return accepted


async def answers_of_a_producer_come_in_the_order_of_its_sends(harness: Harness) -> None:
    """Small and large ones, with and without batches, and some that are refused among them."""
    async with _connected(harness) as bus:
        for batch in (False, True):
            producer = await bus.open_producer(harness.topic("answers"), batch=batch)
            sizes = {50: MAX_PAYLOAD + 1, 100: 1_000_000, 101: 0, 150: MAX_PAYLOAD + 1}
            sends = [producer.send(b"." * sizes.get(number, 10)) for number in range(300)]
            accepted = _watched(sends)
            await asyncio.wait(sends)
            await asyncio.sleep(0)  # for the last one's callback
            good = [number for number in range(300) if sizes.get(number, 0) <= MAX_PAYLOAD]
            expect(f"the order of answers (batch={batch})", accepted, good)
            refused = {type(sends[number].exception()) for number in (50, 150)}
            expect("refusals", refused, {MessageTooLarge})


async def flush_waits_for_every_send(harness: Harness) -> None:
    async with _connected(harness) as bus:
        for batch in (False, True):
            producer = await bus.open_producer(harness.topic("flush"), batch=batch)
            await producer.flush()
            sent = [producer.send(payload) for payload in _numbers(500)]
            await producer.flush()
            expect("every send is answered", all(one.done() for one in sent), True)
            expect("the number of positions", len({one.result() for one in sent}), 500)


async def large_messages_pass_and_too_large_ones_are_refused(harness: Harness) -> None:
    async with _connected(harness) as bus:
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
            await _send_all(producer, payloads)
        got: list[Message] = []
        await bus.open_reader(topic, EARLIEST, got.append)
        await until("the large messages arrive", lambda: len(got) >= 6)
        expect("they are whole", _payloads(got) == payloads * 2, True)
        last = await bus.last(topic)
        expect("the last is whole", last is not None and last.payload == payloads[-1], True)


# -- scale -----------------------------------------------------------------------------------


async def a_burst_reaches_every_reader_once_and_in_order(harness: Harness) -> None:
    async with _connected(harness) as bus:
        topic = harness.topic("burst")
        logs: list[list[bytes]] = [[] for _ in range(READERS)]

        def sink(log: list[bytes]) -> Callable[[Message], None]:
            return lambda message: log.append(message.payload)

        await asyncio.gather(*[bus.open_reader(topic, EARLIEST, sink(log)) for log in logs])
        producer = await bus.open_producer(topic)
        expected = [b"%06d" % number + b"." * 250 for number in range(BURST)]
        await _send_all(producer, expected)
        await until(
            f"{READERS} readers have {BURST} messages",
            lambda: all(len(log) >= BURST for log in logs),
        )
        await producer.send(b"end")
        await until("the end arrives", lambda: all(log[-1] == b"end" for log in logs))
        for number, log in enumerate(logs):
            expect(f"what reader {number} got", log == [*expected, b"end"], True)


async def many_topics_do_not_mix(harness: Harness) -> None:
    async with _connected(harness) as bus:
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
                f"messages of {topic}", _payloads(log), [f"{topic}/{n}".encode() for n in range(3)]
            )


async def two_connections_see_one_log(harness: Harness) -> None:
    async with _connected(harness) as one, _connected(harness) as other:
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


# -- errors ----------------------------------------------------------------------------------


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


# -- the broker goes away --------------------------------------------------------------------


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
    async with _connected(harness) as bus:
        topic, idle, backlog = (harness.topic(name) for name in ("dies", "dies-idle", "dies-far"))
        logs: dict[str, list[Message]] = {"early": [], "late": [], "idle": [], "far": []}
        producer = await bus.open_producer(topic, exclusive=True)
        behind = await bus.open_producer(backlog, batch=True)
        accepted = await _send_all(producer, _numbers(20))
        await _send_all(behind, _numbers(5000))
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
            lambda: b"idle %d" % (harness.deaths - 1) in _payloads(logs["idle"]),
        )
        await until("a reader that was far behind goes on", lambda: len(logs["far"]) >= 5000)
        log = [m async for m in bus.read_to_end(topic, EARLIEST)]
        lacking = set(accepted) - {message.position for message in log}
        expect("accepted messages that the log lacks", lacking, set())
        expect("the reader from EARLIEST saw the log", logs["early"], log)
        expect("the reader from LATEST saw its part", logs["late"], log[20:])
        expect("the far reader saw its log", _payloads(logs["far"]), _numbers(5000))
        expect(
            "the idle reader's distinct messages",
            sorted(set(_payloads(logs["idle"]))),
            [b"idle %d" % round_ for round_ in range(harness.deaths)],
        )
        async with _connected(harness) as other:
            await expect_error(
                "another producer on the topic",
                ProducerFenced,
                other.open_producer(topic, exclusive=True),
            )
            again = [m async for m in other.read_to_end(topic, EARLIEST)]
            expect("what a new connection reads", again, log)


async def one_that_was_taken_over_stays_out_also_after_the_broker_died(harness: Harness) -> None:
    """Whether its successor comes back as well or is gone."""
    async with _connected(harness) as one, _connected(harness) as other:
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
        accepted = _watched(meanwhile)
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
        sent.extend(producer.send(payload) for payload in _numbers(20))

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


Check = Callable[[Harness], Coroutine[Any, Any, None]]

CHECKS: tuple[Check, ...] = (
    order_keys_and_properties_are_kept,
    any_bytes_are_kept,
    a_reader_resumes_after_any_position,
    late_readers_get_everything_or_only_what_is_new,
    a_position_that_the_log_does_not_hold_is_refused,
    last_and_read_to_end_do_not_stall,
    a_closed_reader_gets_nothing_more,
    a_failing_sink_does_not_harm_the_others,
    an_exclusive_producer_keeps_others_out,
    an_exclusive_producer_can_be_taken_over,
    what_was_under_way_at_a_take_over_is_before_it_or_nowhere,
    answers_of_a_producer_come_in_the_order_of_its_sends,
    flush_waits_for_every_send,
    large_messages_pass_and_too_large_ones_are_refused,
    a_burst_reaches_every_reader_once_and_in_order,
    many_topics_do_not_mix,
    two_connections_see_one_log,
    an_unreachable_broker_is_named_quickly,
    a_closed_bus_refuses_work,
)
RESTART_CHECKS: tuple[Check, ...] = (
    nothing_is_lost_when_the_broker_dies_and_returns,
    one_that_was_taken_over_stays_out_also_after_the_broker_died,
    closing_ends_while_the_broker_is_away,
)
