"""What the adapter of Apache Pulsar does by itself, with a stand-in for the client library."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from goalstate.bus import pulsar
from goalstate.bus.errors import BusClosed


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
