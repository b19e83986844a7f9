"""The memory broker: one seed is one run, and faults never touch the log."""

from __future__ import annotations

import asyncio

import pytest

from goalstate.bus.base import EARLIEST, LATEST, MAX_PAYLOAD, Message
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusError,
    MessageTooLarge,
    PositionGone,
    ProducerFenced,
)
from goalstate.bus.memory import Faults, MemoryBroker, MemoryBus

ALL_FAULTS = {"drop": 0.2, "duplicate": 0.3, "reorder": 0.4}


def run(faults: Faults, readers: int = 3, count: int = 30) -> list[tuple[int, bytes]]:
    """Who got what, in the order of delivery."""
    broker = MemoryBroker(lambda: 0, faults)
    seen: list[tuple[int, bytes]] = []
    for reader in range(readers):
        broker.attach("t", EARLIEST, lambda m, r=reader: seen.append((r, m.payload)))  # type: ignore[misc]
    for number in range(count):
        broker.publish("t", b"%03d" % number)
    broker.run_until_idle()
    return seen


def of(reader: int, seen: list[tuple[int, bytes]]) -> list[bytes]:
    return [payload for who, payload in seen if who == reader]


EVERYTHING = [b"%03d" % number for number in range(30)]


def test_the_same_seed_gives_the_same_deliveries() -> None:
    for seed in range(20):
        assert run(Faults(seed, **ALL_FAULTS)) == run(Faults(seed, **ALL_FAULTS))


def test_different_seeds_interleave_readers_differently_even_without_faults() -> None:
    assert len({tuple(run(Faults(seed))) for seed in range(10)}) == 10


def test_without_faults_every_reader_gets_everything_in_order() -> None:
    for seed in range(20):
        seen = run(Faults(seed))
        assert all(of(reader, seen) == EVERYTHING for reader in range(3))


def test_drop_only_loses_and_keeps_the_order() -> None:
    lost = 0
    for seed in range(20):
        got = of(0, run(Faults(seed, drop=0.2)))
        assert got == sorted(set(got))
        lost += 30 - len(got)
    assert 0 < lost < 20 * 30


def test_duplicate_only_repeats() -> None:
    for seed in range(20):
        got = of(0, run(Faults(seed, duplicate=0.5)))
        assert sorted(set(got)) == EVERYTHING
        assert len(got) > 30


def test_reorder_only_reorders() -> None:
    for seed in range(20):
        got = of(0, run(Faults(seed, reorder=0.5)))
        assert got != EVERYTHING
        assert sorted(got) == EVERYTHING


def test_a_reader_that_reopens_gets_what_was_dropped() -> None:
    broker = MemoryBroker(lambda: 0, Faults(drop=1.0))
    got: list[Message] = []
    first = broker.publish("t", b"1")
    reader = broker.attach("t", EARLIEST, got.append)
    broker.publish("t", b"2")
    broker.run_until_idle()
    assert (got, broker.dropped) == ([], 2)
    broker.detach(reader)
    broker.faults = Faults()
    broker.attach("t", first, got.append)
    broker.run_until_idle()
    assert [m.payload for m in got] == [b"2"]


def test_a_partitioned_reader_gets_what_it_missed_once_healed() -> None:
    broker = MemoryBroker(lambda: 0)
    logs: dict[str, list[bytes]] = {"a": [], "b": []}
    for name, log in logs.items():
        broker.attach("t", EARLIEST, lambda m, seen=log: seen.append(m.payload), name=name)  # type: ignore[misc]
    broker.publish("t", b"1")
    broker.partition(names=["a"])
    broker.publish("t", b"2")
    broker.run_until_idle()
    assert logs == {"a": [], "b": [b"1", b"2"]}
    broker.heal()
    broker.run_until_idle()
    assert logs["a"] == [b"1", b"2"]


def test_a_partition_stops_senders_and_topics() -> None:
    broker = MemoryBroker(lambda: 0)
    broker.partition(names=["a"], topics=["t"])
    with pytest.raises(BrokerUnreachable):
        broker.publish("other", b"", sender="a")
    with pytest.raises(BrokerUnreachable):
        broker.publish("t", b"", sender="b")
    with pytest.raises(BrokerUnreachable):
        broker.attach("t", EARLIEST, lambda m: None)
    broker.publish("other", b"", sender="b")
    broker.heal()
    broker.publish("t", b"", sender="a")


def test_sinks_may_publish_attach_and_detach() -> None:
    broker = MemoryBroker(lambda: 0, Faults(7, duplicate=0.2, reorder=0.2))
    echoed: list[bytes] = []

    def start(message: Message) -> None:
        broker.publish("b", message.payload)
        if message.payload == b"2":
            broker.detach(reader)

    reader = broker.attach("a", EARLIEST, start)
    broker.attach("b", LATEST, lambda m: echoed.append(m.payload))
    broker.publish("a", b"1")
    broker.run_until_idle()
    broker.publish("a", b"2")
    broker.publish("a", b"3")
    broker.run_until_idle()
    assert set(echoed) - {b"3"} == {b"1", b"2"}


def test_endless_work_is_an_error_not_a_hang() -> None:
    broker = MemoryBroker(lambda: 0)
    broker.attach("t", EARLIEST, lambda m: void(broker.publish("t", b"")))
    broker.publish("t", b"")
    with pytest.raises(BusError, match="1000 steps"):
        broker.run_until_idle(1000)


def void(_: object) -> None:
    pass


def test_positions_outside_the_log_are_refused_also_after_a_trim() -> None:
    broker = MemoryBroker(lambda: 0)
    positions = [broker.publish("t", b"%d" % n) for n in range(5)]
    broker.trim("t", 2)
    assert [m.payload for m in broker.messages("t")] == [b"3", b"4"]
    assert [m.payload for m in broker.messages("t", positions[2])] == [b"3", b"4"]
    for gone in (positions[1], b"junk"):
        with pytest.raises(PositionGone):
            broker.attach("t", gone, lambda m: None)
    with pytest.raises(PositionGone):
        broker.messages("empty", positions[0])


def test_messages_carry_the_given_clock_and_size_limit() -> None:
    broker = MemoryBroker(lambda: 42)
    broker.publish("t", b"", key="k", properties={"a": "b"})
    assert broker.messages("t")[0].published_ns == 42
    with pytest.raises(MessageTooLarge):
        broker.publish("t", b"\0" * (MAX_PAYLOAD + 1))
    assert len(broker.messages("t")) == 1


def test_claims_exclude_each_other() -> None:
    broker = MemoryBroker(lambda: 0)
    shared = broker.claim("t")
    with pytest.raises(ProducerFenced):
        broker.claim("t", exclusive=True)
    broker.release("t", shared)
    alone = broker.claim("t", exclusive=True)
    with pytest.raises(ProducerFenced):
        broker.claim("t")
    broker.release("t", alone)
    broker.claim("t")


def test_whoever_was_thrown_out_does_not_free_the_topic_for_others() -> None:
    broker = MemoryBroker(lambda: 0)
    old = broker.claim("t", exclusive=True)
    new = broker.claim("t", exclusive=True, take_over=True)
    with pytest.raises(ProducerFenced, match="took the topic over"):
        broker.check_claim("t", old)
    broker.check_claim("t", new)
    broker.release("t", old)
    with pytest.raises(ProducerFenced):
        broker.claim("t")


def test_one_busy_topic_does_not_keep_the_loop_from_other_work() -> None:
    async def scenario() -> int:
        broker = MemoryBroker(lambda: 0)
        bus = MemoryBus(broker)
        got: list[Message] = []
        await bus.open_reader("t", EARLIEST, got.append)
        for _ in range(10_000):
            broker.publish("t", b"")
        turns = 0
        while len(got) < 10_000:
            turns += 1
            await asyncio.sleep(0)
        await bus.close()
        return turns

    assert asyncio.run(scenario()) > 10
