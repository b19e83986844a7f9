"""What the adapter of Apache Pulsar does by itself, with a stand-in for the client library."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from goalstate.bus import pulsar
from goalstate.bus.errors import BrokerUnreachable, BusClosed


class Silent:
    """A producer of the client that answers nothing but its closing."""

    def flush_async(self, answered: Any) -> None:
        pass


def silent_producer() -> pulsar.PulsarProducer:
    async def close_handle(handle: Any) -> None:
        pass

    client = SimpleNamespace(
        loop=asyncio.get_running_loop(),
        send=lambda *_: None,
        close_handle=close_handle,
    )
    bus = SimpleNamespace(client=client, producers=set())
    producer = pulsar.PulsarProducer(cast(pulsar.PulsarBus, bus), "t", Silent())
    bus.producers.add(producer)
    return producer


def test_sends_of_an_abandoned_producer_fail_and_its_flush_ends() -> None:
    async def scenario() -> None:
        producer = silent_producer()
        sent = [producer.send(b"") for _ in range(3)]
        flush = asyncio.ensure_future(producer.flush())
        await asyncio.sleep(0)
        assert not flush.done()
        producer.abandon()
        await asyncio.wait_for(flush, 10)
        assert [type(one.exception()) for one in sent] == [BusClosed] * 3
        with pytest.raises(BusClosed):
            await producer.send(b"")

    asyncio.run(scenario())


def test_closing_gives_up_what_is_not_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulsar, "FLUSH_BOUND", 0.01)

    async def scenario() -> None:
        producer = silent_producer()
        sent = producer.send(b"")
        await asyncio.wait_for(producer.close(), 10)
        await asyncio.wait_for(producer.close(), 10)
        with pytest.raises(BusClosed):
            await sent

    asyncio.run(scenario())


@pytest.mark.parametrize("swallows", [0, 1, 9])
def test_the_last_message_is_asked_for_anew_where_a_reader_never_gets_it(swallows: int) -> None:
    """The client may drop it for good between its seek and the broker's answer."""
    opened: list[str] = []
    closed: list[Any] = []

    async def open_reader(topic: str, start: bytes, queue: int, receive: None) -> Any:
        opened.append(topic)
        return SimpleNamespace(
            number=len(opened), has_message_available_async="held", read_next_async="read"
        )

    async def close_handle(handle: Any) -> None:
        closed.append(handle.number)

    async def ask(what: str, call: Any, timeout: float | None = None) -> Any:
        if call == "read" and len(opened) <= swallows:
            raise BrokerUnreachable(f"{what}: no answer within {timeout} s")
        return "raw" if call == "read" else True

    async def scenario() -> None:
        client = SimpleNamespace(
            open_reader=open_reader, close_handle=close_handle, ask=ask, timeout=10.0
        )
        decoder = SimpleNamespace(decode=lambda topic, raw: (topic, raw))
        bus = cast(pulsar.PulsarBus, SimpleNamespace(client=client, decoder=decoder))
        if swallows < 9:
            assert cast(Any, await pulsar.PulsarBus.last(bus, "t")) == ("t", "raw")
        else:
            with pytest.raises(BrokerUnreachable, match="no answer"):
                await pulsar.PulsarBus.last(bus, "t")
        assert closed == list(range(1, len(opened) + 1))
        assert len(opened) == min(swallows + 1, 4)

    asyncio.run(scenario())
