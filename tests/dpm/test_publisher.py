"""Sending: each stream in its order, nothing lost by a broken producer, and what is out known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial

import pytest

from goalstate.bus.errors import BrokerUnreachable
from goalstate.bus.memory.client import MemoryProducer
from goalstate.dpm.inventory import Publication
from goalstate.dpm.publisher import BusTransport, Publisher
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.streams import Mark, StreamId, vpc_stream
from tests.dpm.wires import Region, Wire, until

A, B = vpc_stream("a"), vpc_stream("b")
NOW = 77


def publication(stream: StreamId, sequence: int) -> Publication:
    envelope = Envelope(
        schema=102,
        stream=stream,
        mark=Mark(1, sequence),
        kind=MessageKind.DELTA,
        chunk=1,
        chunks=1,
        change=sequence,
        digest="",
        checksum="",
        published_ns=1,
    )
    return Publication(envelope, f"{stream} {sequence}".encode())


def run(test: Callable[[Region], Coroutine[None, None, None]]) -> None:
    asyncio.run(test(Region()))


def new_transport(region: Region, pool: int = 100) -> BusTransport:
    return BusTransport(region.bus(), region.topics, pool=pool, clock_ns=lambda: NOW)


def sequences(region: Region, stream: StreamId) -> list[int]:
    return [envelope.mark.sequence for envelope, _ in region.stream(stream)]


def once(numbers: list[int]) -> list[int]:
    """Without what a receiver drops because it had it."""
    seen: list[int] = []
    for number in numbers:
        if not seen or number > seen[-1]:
            seen.append(number)
    return seen


class Recorder:
    """A transport that confirms when it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[Publication, Callable[[], None]]] = []
        self.closed = False

    def send(self, publication: Publication, confirmed: Callable[[], None]) -> None:
        self.sent.append((publication, confirmed))

    def remind(self, newest: Envelope) -> None:
        raise AssertionError("nobody lags")

    async def drain(self) -> None:
        for _, confirmed in self.sent:
            confirmed()

    async def close(self) -> None:
        self.closed = True


# --- what is out ---


def test_a_change_is_out_when_all_of_it_and_all_before_it_is_confirmed() -> None:
    transport = Recorder()
    publisher = Publisher(transport, published=3)
    publisher.publish(4, [publication(A, 1), publication(B, 1)])
    publisher.publish(5, [publication(A, 2)])
    assert (publisher.published, publisher.backlog) == (3, 3)
    confirm = [confirmed for _, confirmed in transport.sent]
    confirm[2]()
    confirm[0]()
    assert (publisher.published, publisher.backlog) == (3, 1)
    confirm[1]()
    assert (publisher.published, publisher.backlog) == (5, 0)


def test_a_change_that_publishes_nothing_is_out_with_those_before_it() -> None:
    transport = Recorder()
    publisher = Publisher(transport)
    publisher.publish(1, [])
    assert publisher.published == 1
    publisher.publish(2, [publication(A, 1)])
    publisher.publish(3, [])
    assert publisher.published == 1
    transport.sent[0][1]()
    assert publisher.published == 3


def test_draining_and_closing_are_the_transports() -> None:
    async def test() -> None:
        transport = Recorder()
        publisher = Publisher(transport)
        publisher.publish(1, [publication(A, 1)])
        await publisher.drain()
        assert publisher.published == 1
        await publisher.close()
        assert transport.closed

    asyncio.run(test())


# --- lanes ---


def test_each_stream_goes_to_its_topic_in_order_with_its_envelope() -> None:
    async def test(region: Region) -> None:
        transport = new_transport(region)
        confirmed: list[tuple[str, int]] = []
        for sequence in range(1, 20):
            for stream in (A, B):
                one = publication(stream, sequence)
                transport.send(one, partial(confirmed.append, (stream.id, sequence)))
        await transport.drain()
        for stream in (A, B):
            assert sequences(region, stream) == list(range(1, 20))
            assert [n for id_, n in confirmed if id_ == stream.id] == list(range(1, 20))
            first = region.messages(region.topics.of_stream(stream))[0]
            assert (first.key, first.payload) == (stream.id, f"{stream} 1".encode())
            envelope = envelopes.from_properties(first.properties)
            # The time is that of sending; all else is as it was derived.
            assert envelope == publication(stream, 1).envelope._replace(published_ns=NOW)
        await transport.close()

    run(test)


@pytest.mark.parametrize("wire", [Wire.FAILS, Wire.UNSURE])
@pytest.mark.parametrize("good", [0, 1, 5])
def test_a_broken_producer_is_replaced_and_sends_again_in_order(wire: Wire, good: int) -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(A)
        transport = new_transport(region)
        region.cut(wire, topic, after=good)
        confirmed: list[int] = []
        for sequence in range(1, 9):
            transport.send(publication(A, sequence), partial(confirmed.append, sequence))
        await until(lambda: region.opened.get(topic, 0) > 3, "several attempts")
        assert confirmed == list(range(1, good + 1))
        region.mend()
        await transport.drain()
        assert confirmed == list(range(1, 9))
        assert once(sequences(region, A)) == list(range(1, 9))
        await transport.close()

    run(test)


def test_what_is_sent_while_a_topic_is_broken_follows_what_was_sent_before() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(A)
        transport = new_transport(region)
        region.broker.partition(topics=[topic])
        for sequence in range(1, 4):
            transport.send(publication(A, sequence), lambda: None)
            transport.send(publication(B, sequence), lambda: None)
        # One broken topic holds up no other.
        await until(lambda: sequences(region, B) == [1, 2, 3], "the other stream is out")
        assert sequences(region, A) == []
        region.broker.heal()
        await transport.drain()
        assert sequences(region, A) == [1, 2, 3]
        await transport.close()

    run(test)


def test_answers_of_a_producer_that_was_given_up_count_for_nothing() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(A)
        transport = new_transport(region)
        confirmed: list[int] = []

        def send(sequence: int) -> None:
            transport.send(publication(A, sequence), partial(confirmed.append, sequence))

        send(1)
        await transport.drain()
        for sequence, wire in ((2, Wire.LATE), (3, Wire.LATE), (4, Wire.FAILS)):
            region.cut(wire, topic)
            send(sequence)
        region.cut(Wire.DEAD, topic)
        await until(lambda: region.opened[topic] == 2, "another producer")
        region.release()
        await asyncio.sleep(0)
        # What the first producer says now is of messages that the second one has sent again.
        assert confirmed == [1]
        await transport.close()

    run(test)


def test_a_topic_that_somebody_holds_is_waited_for() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(A)
        other = region.bus()
        holder = await other.open_producer(topic, exclusive=True)
        transport = new_transport(region)
        transport.send(publication(A, 1), lambda: None)
        await until(lambda: region.opened[topic] > 3, "several attempts")
        assert sequences(region, A) == []
        await holder.close()
        await transport.drain()
        assert sequences(region, A) == [1]
        await transport.close()

    run(test)


def test_idle_topics_beyond_the_pool_are_given_up_and_taken_again() -> None:
    async def test(region: Region) -> None:
        transport = new_transport(region, pool=3)
        streams = [vpc_stream(f"v{n}") for n in range(10)]
        for sequence in (1, 2):
            for stream in streams:
                transport.send(publication(stream, sequence), lambda: None)
                await transport.drain()
        assert all(sequences(region, stream) == [1, 2] for stream in streams)
        assert max(region.opened.values()) == 2
        for stream in streams[:7]:
            # Nobody holds it any more.
            bus = region.bus()
            taken = await bus.open_producer(region.topics.of_stream(stream), exclusive=True)
            await taken.close()
        await transport.close()

    run(test)


def test_the_topic_used_last_is_kept() -> None:
    async def test(region: Region) -> None:
        transport = new_transport(region, pool=2)
        for stream in (A, B, A, vpc_stream("c"), A):
            transport.send(publication(stream, len(region.stream(stream)) + 1), lambda: None)
            await transport.drain()
        assert region.opened[region.topics.of_stream(A)] == 1
        await transport.close()

    run(test)


def test_a_topic_with_something_unconfirmed_is_never_given_up() -> None:
    async def test(region: Region) -> None:
        transport = new_transport(region, pool=1)
        region.cut(Wire.HELD, region.topics.of_stream(A))
        transport.send(publication(A, 1), lambda: None)
        await until(lambda: region.held, "it is on its way")
        transport.send(publication(B, 1), lambda: None)
        transport.send(publication(vpc_stream("c"), 1), lambda: None)
        region.mend()
        region.release()
        await transport.drain()
        assert sequences(region, A) == [1]
        assert region.opened[region.topics.of_stream(A)] == 1
        await transport.close()

    run(test)


def test_sends_are_counted_as_they_are_given() -> None:
    async def test(region: Region) -> None:
        counted: list[Publication] = []
        transport = BusTransport(
            region.bus(), region.topics, clock_ns=lambda: NOW, sent=counted.append
        )
        transport.send(publication(A, 1), lambda: None)
        assert counted == [publication(A, 1)]
        await transport.drain()
        await transport.close()

    run(test)


@pytest.mark.parametrize("broken", [False, True], ids=["opening", "broken"])
def test_closing_ends_the_attempts_and_leaves_the_topic_free(broken: bool) -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(A)
        transport = new_transport(region)
        if broken:
            region.cut(Wire.FAILS, topic)
        else:
            region.broker.partition(topics=[topic])
        confirmed: list[int] = []
        transport.send(publication(A, 1), lambda: confirmed.append(1))
        await until(lambda: region.opened[topic] > 1, "several attempts")
        await transport.close()
        region.mend()
        region.broker.heal()
        taken = await region.bus().open_producer(topic, exclusive=True)
        attempts = region.opened[topic]
        await asyncio.sleep(0)
        assert (confirmed, region.opened[topic]) == ([], attempts)
        await taken.close()

    run(test)


def test_a_topic_that_is_just_being_opened_is_not_left_taken() -> None:
    async def test(region: Region) -> None:
        topic = region.topics.of_stream(A)
        region.gate = asyncio.Event()
        transport = new_transport(region)
        transport.send(publication(A, 1), lambda: None)
        await until(lambda: region.opened[topic], "it is being opened")
        closing = asyncio.ensure_future(transport.close())
        await asyncio.sleep(0)
        region.gate.set()
        await closing
        await (await region.bus().open_producer(topic, exclusive=True)).close()

    run(test)


def test_a_producer_that_does_not_close_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(region: Region) -> None:
        transport = new_transport(region)
        transport.send(publication(A, 1), lambda: None)
        await transport.drain()

        async def fails(producer: MemoryProducer) -> None:
            raise BrokerUnreachable("gone")

        monkeypatch.setattr(MemoryProducer, "close", fails)
        await transport.close()

    run(test)
