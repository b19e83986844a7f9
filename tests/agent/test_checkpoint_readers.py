"""Hosts that read the same checkpoint share a reader, and others are not held up by them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

import pytest

from goalstate.agent import checkpoint_readers
from goalstate.agent.beginning import Beginning
from goalstate.agent.checkpoint_readers import CheckpointReader, CheckpointReaders
from goalstate.bus.base import EARLIEST, Message
from goalstate.bus.errors import BrokerUnreachable, PositionGone
from goalstate.bus.memory import MemoryBroker
from tests.agent.fleet_rig import FailingBus, wait_until

BEGIN = Beginning("checkpoints", EARLIEST)


class Rig:
    """A broker with five messages, and readers of them."""

    def __init__(self, *, shared: bool = True) -> None:
        self.broker = MemoryBroker(time.time_ns)
        self.bus = FailingBus(self.broker, "fleet")
        self.readers = CheckpointReaders(self.bus, shared=shared)
        #: What each got, in order; and who was told that nothing comes any more.
        self.got: dict[str, list[bytes]] = {}
        self.stalled: list[str] = []
        for number in range(5):
            self.put(number)

    def put(self, number: int) -> None:
        self.broker.publish(BEGIN.topic, b"%d" % number)

    async def open(self, name: str) -> CheckpointReader:
        got = self.got.setdefault(name, [])

        def sink(message: Message) -> None:
            got.append(message.payload)

        return await self.readers.open(BEGIN, sink, lambda: self.stalled.append(name))


ALL = [b"0", b"1", b"2", b"3", b"4"]


def run(test: Callable[[Rig], Coroutine[None, None, None]], *, shared: bool = True) -> None:
    async def scenario() -> None:
        await test(Rig(shared=shared))

    asyncio.run(scenario())


def test_those_who_ask_together_get_everything_by_one_reader() -> None:
    async def test(rig: Rig) -> None:
        readers = await asyncio.gather(*(rig.open(f"h{n}") for n in range(20)))
        await wait_until(lambda: all(got == ALL for got in rig.got.values()), "all have all")
        assert (len(rig.got), rig.bus.opened) == (20, 1)
        for reader in readers[1:]:
            await reader.close()
        rig.put(5)
        await wait_until(lambda: rig.got["h0"] == [*ALL, b"5"], "one still reads")
        assert rig.got["h1"] == ALL
        await readers[0].close()
        assert not rig.bus.readers

    run(test)


def test_who_comes_too_late_begins_by_a_reader_of_his_own() -> None:
    async def test(rig: Rig) -> None:
        first = await rig.open("h0")
        await wait_until(lambda: rig.got["h0"], "it has begun")
        second = await rig.open("h1")
        await wait_until(lambda: rig.got["h0"] == rig.got["h1"] == ALL, "both have all")
        assert rig.bus.opened == 2
        await first.close()
        await second.close()

    run(test)


def test_where_nothing_is_shared_each_has_a_reader() -> None:
    async def test(rig: Rig) -> None:
        await asyncio.gather(*(rig.open(f"h{n}") for n in range(3)))
        await wait_until(lambda: all(got == ALL for got in rig.got.values()), "all have all")
        assert rig.bus.opened == 3

    run(test, shared=False)


@pytest.mark.parametrize("error", [BrokerUnreachable("away"), PositionGone("gone")])
def test_an_open_that_fails_fails_for_all_who_asked_and_for_nobody_after(error: Exception) -> None:
    async def test(rig: Rig) -> None:
        rig.bus.failures = [error]
        opens = (rig.open(f"h{n}") for n in range(3))
        assert await asyncio.gather(*opens, return_exceptions=True) == [error] * 3
        await rig.open("h3")
        await wait_until(lambda: rig.got["h3"] == ALL, "it has all")

    run(test)


def test_one_who_does_not_want_it_any_more_leaves_it_to_the_others() -> None:
    async def test(rig: Rig) -> None:
        rig.bus.gate.clear()
        opens = [asyncio.ensure_future(rig.open(f"h{n}")) for n in range(2)]
        await wait_until(lambda: rig.bus.opening == 1, "it is being opened")
        opens[0].cancel()
        await asyncio.wait(opens[:1])
        rig.bus.gate.set()
        await wait_until(lambda: rig.got["h1"] == ALL, "the other has all")
        assert rig.got["h0"] == []

    run(test)


def test_nobody_is_left_behind_by_one_whose_sink_fails() -> None:
    async def test(rig: Rig) -> None:
        def fails(message: Message) -> None:
            raise RuntimeError("on purpose")

        await asyncio.gather(rig.readers.open(BEGIN, fails, lambda: None), rig.open("h1"))
        await wait_until(lambda: rig.got["h1"] == ALL, "the other has all")

    run(test)


def test_what_does_not_go_on_is_told_to_all_who_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_readers, "STALL_S", 0.01)

    async def test(rig: Rig) -> None:
        await asyncio.gather(rig.open("h0"), rig.open("h1"))
        await wait_until(lambda: rig.stalled, "nothing comes any more")
        assert rig.stalled == ["h0", "h1"]
        assert rig.got["h0"] == rig.got["h1"] == ALL

    run(test)


def test_others_have_their_turn_while_many_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_readers, "TURN_S", 0.0)

    async def test(rig: Rig) -> None:
        alive: list[bytes] = []
        live = await rig.bus.open_reader("live", EARLIEST, lambda m: alive.append(m.payload))
        await asyncio.gather(*(rig.open(f"h{n}") for n in range(200)))
        await wait_until(lambda: rig.got["h0"], "they have begun")
        rig.broker.publish("live", b"now")
        await wait_until(lambda: alive, "it came")
        assert sum(map(len, rig.got.values())) < 500, "of 1,000 that there are to hand out"
        await live.close()

    run(test)
