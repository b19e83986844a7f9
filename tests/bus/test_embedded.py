"""The embedded broker's store, its wire, and its process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from goalstate.bus.base import EARLIEST
from goalstate.bus.brokers import Broker
from goalstate.bus.conformance import until
from goalstate.bus.embedded import EmbeddedBus, wire
from goalstate.bus.embedded.server import Server, _Connection, _Producer
from goalstate.bus.embedded.store import Store
from goalstate.bus.errors import (
    BrokerUnreachable,
    BusClosed,
    BusError,
    PositionGone,
    ProducerFenced,
)


def filled(directory: Path) -> dict[str, list[bytes]]:
    store = Store(directory)
    for number in range(5):
        store.append("a", b"a%d" % number)
        store.append("ü", b"b%d" % number)
    store.close()
    return {topic: list(log) for topic, log in store.logs.items()}


def test_a_store_reopens_with_its_logs_and_its_name(tmp_path: Path) -> None:
    logs = filled(tmp_path)
    store = Store(tmp_path)
    name = store.name
    assert (store.logs, store.torn) == (logs, 0)
    assert store.append("a", b"more") == 5
    store.close()
    again = Store(tmp_path)
    assert again.logs["a"][5] == wire.with_length(b"more")
    assert again.name == name
    again.close()


def test_a_torn_tail_is_cut_at_every_length_and_nothing_else_is(tmp_path: Path) -> None:
    logs = filled(tmp_path)
    whole = (tmp_path / "log").read_bytes()
    last_entry = 8 + 2 + len("ü".encode()) + 2
    for cut in range(1, last_entry + 1):
        (tmp_path / "log").write_bytes(whole[:-cut])
        store = Store(tmp_path)
        assert store.torn == (last_entry - cut)
        assert store.logs == {"a": logs["a"], "ü": logs["ü"][:-1]}
        store.append("ü", b"b4")
        store.close()
        assert (tmp_path / "log").read_bytes() == whole


def test_a_damaged_entry_ends_the_log_there(tmp_path: Path) -> None:
    logs = filled(tmp_path)
    data = bytearray((tmp_path / "log").read_bytes())
    data[-1] ^= 1
    (tmp_path / "log").write_bytes(data)
    store = Store(tmp_path)
    assert store.torn > 0
    assert store.logs["ü"] == logs["ü"][:-1]
    store.close()


def test_a_store_remembers_the_newest_claim_to_each_topic(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.claim("ü", 2)
    store.append("ü", b"record")
    store.claim("ü", 3)
    store.claim("b", 2)
    store.close()
    whole = (tmp_path / "log").read_bytes()
    again = Store(tmp_path)
    assert (again.claims, again.torn) == ({"ü": 3, "b": 2}, 0)
    assert again.logs == {"ü": [wire.with_length(b"record")]}
    again.close()
    (tmp_path / "log").write_bytes(whole[:-1])
    torn = Store(tmp_path)
    assert torn.claims == {"ü": 3}
    torn.close()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
def test_whoever_was_thrown_out_is_refused_though_it_comes_back_first(
    tmp_path: Path, exclusive: bool, restarted: bool
) -> None:
    def claim(
        server: Server, token: str, exclusive: bool, take_over: bool = False, epoch: int = 0
    ) -> _Producer:
        nobody = cast(_Connection, None)
        producer = _Producer(
            nobody, 1, "t", token=token, exclusive=exclusive, take_over=take_over, epoch=epoch
        )
        server.claim(producer)
        return producer

    server = Server(Store(tmp_path))
    first = claim(server, "first", exclusive)
    second = claim(server, "second", True, take_over=True)
    server.release(second)
    if restarted:
        server.store.close()
        server = Server(Store(tmp_path))
    with pytest.raises(ProducerFenced, match="took the topic over"):
        claim(server, "first", exclusive, epoch=first.epoch)
    back = claim(server, "second", True, epoch=second.epoch)
    assert back.epoch == second.epoch
    with pytest.raises(ProducerFenced, match="took the topic over"):
        claim(server, "first", exclusive, epoch=first.epoch)
    server.release(back)
    third = claim(server, "third", True)
    assert third.epoch > second.epoch
    server.store.close()


def test_a_topic_needs_a_name(embedded_broker: Broker) -> None:
    async def scenario() -> None:
        bus = await EmbeddedBus.connect(embedded_broker.url)
        with pytest.raises(BusError, match="without a name"):
            await bus.open_producer("")
        await bus.close()

    asyncio.run(scenario())


def test_a_store_is_open_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(OSError, match="in use"):
        Store(tmp_path)
    store.close()


def test_frames_are_cut_out_of_any_pieces() -> None:
    stream = b"".join(wire.frame(wire.CALL, b"x" * size) for size in (0, 1, 500))
    for step in (1, 3, 100, len(stream)):
        deframer = wire.Deframer()
        frames = []
        for start in range(0, len(stream), step):
            frames += deframer.feed(stream[start : start + step])
        assert frames == [(wire.CALL, b"x" * size) for size in (0, 1, 500)]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        wire.frame(wire.CALL, b"no json"),
        wire.frame(wire.CALL, b'{"id": 1, "op": "unknown"}'),
        wire.frame(wire.CALL, b'{"id": 1, "op": "open_reader"}'),
        wire.frame(wire.PUBLISH, b"short"),
        wire.frame(wire.DELIVERY, b""),
    ],
)
def test_a_client_that_speaks_something_else_is_cut_off(tmp_path: Path, data: bytes) -> None:
    async def scenario() -> None:
        server = Server(Store(tmp_path))
        port = await server.start(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        bus = await EmbeddedBus.connect(f"embedded://127.0.0.1:{port}")
        assert await bus.last("t") is None
        await bus.close()
        await server.close()

    asyncio.run(scenario())


def test_a_client_that_does_not_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Store(tmp_path))
        url = f"embedded://127.0.0.1:{await server.start(0)}"
        stuck, bus = await EmbeddedBus.connect(url), await EmbeddedBus.connect(url)
        await stuck.open_reader("t", EARLIEST, lambda message: None)
        link = stuck._link
        assert link is not None
        link.transport.pause_reading()
        got: list[bytes] = []
        await bus.open_reader("t", EARLIEST, lambda message: got.append(message.payload))
        producer = await bus.open_producer("t")
        for number in range(40):
            await producer.send(b"%02d" % number * 500_000)
        await until("the other reader has it all", lambda: len(got) >= 40)
        link.transport.resume_reading()
        await stuck.close()
        await bus.close()
        await server.close()

    asyncio.run(scenario())


def test_a_send_that_is_never_answered_fails_in_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Store(tmp_path))
        url = f"embedded://127.0.0.1:{await server.start(0)}"
        bus = await EmbeddedBus.connect(url, timeout=1, send_timeout=0.1)
        producer = await bus.open_producer("t")
        link = bus._link
        assert link is not None
        link.transport.pause_reading()
        with pytest.raises(BrokerUnreachable):
            await producer.send(b"")
        await bus.close()
        await server.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_closing_ends_when_the_connection_breaks_so_many_turns_of_the_loop_before(
    tmp_path: Path, turns: int
) -> None:
    async def scenario() -> None:
        server = Server(Store(tmp_path))
        bus = await EmbeddedBus.connect(f"embedded://127.0.0.1:{await server.start(0)}")
        await bus.last("t")
        bus._drop_link()
        for _ in range(turns):
            await asyncio.sleep(0)
        done, _ = await asyncio.wait({asyncio.ensure_future(bus.close())}, timeout=10)
        assert done
        await server.close()

    asyncio.run(scenario())


def test_calls_that_wait_for_a_broker_end_with_the_bus(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Store(tmp_path))
        url = f"embedded://127.0.0.1:{await server.start(0)}"
        bus = await EmbeddedBus.connect(url, timeout=600)
        await server.close()
        bus._drop_link()
        opening = asyncio.ensure_future(bus.open_reader("t", EARLIEST, lambda message: None))
        await asyncio.sleep(0)
        assert not opening.done()
        await asyncio.wait_for(bus.close(), 10)
        with pytest.raises(BusClosed):
            await asyncio.wait_for(opening, 10)

    asyncio.run(scenario())


class Refusing(asyncio.Protocol):
    """A broker that answers calls and breaks every connection that sends a message."""

    def __init__(self, connected: list[float]) -> None:
        self._connected = connected
        self._deframer = wire.Deframer()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connected.append(asyncio.get_running_loop().time())

    def data_received(self, data: bytes) -> None:
        for kind, body in self._deframer.feed(data):
            if kind == wire.PUBLISH:
                self._transport.abort()
                return
            answer = {"id": json.loads(body)["id"], "store": b"8 octets".hex(), "epoch": 0}
            self._transport.write(wire.frame(wire.REPLY, json.dumps(answer).encode()))


def test_a_broker_that_breaks_every_connection_is_asked_less_and_less_often() -> None:
    async def scenario() -> None:
        connected: list[float] = []
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Refusing(connected), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        bus = await EmbeddedBus.connect(f"embedded://127.0.0.1:{port}")
        producer = await bus.open_producer("t")
        sent = producer.send(b"")
        await until("it tries again and again", lambda: len(connected) >= 6)
        pauses = [after - before for before, after in itertools.pairwise(connected)]
        # A pause is never shorter than it was asked for; how much longer it is does not matter.
        least = (0.01, 0.03, 0.06, 0.12, 0.24)
        assert [pause > bound for pause, bound in zip(pauses, least, strict=False)] == [True] * 5
        server.close()
        await bus.close()
        assert sent.exception()

    asyncio.run(scenario())


def test_many_readers_go_on_and_only_the_one_whose_place_is_gone_is_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(Store(tmp_path / "before"))
        port = await server.start(0)
        bus = await EmbeddedBus.connect(f"embedded://127.0.0.1:{port}")
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        got: list[str] = []
        topics = [f"t{number}" for number in range(200)]
        for topic in topics:
            await bus.open_reader(topic, EARLIEST, lambda message: got.append(message.topic))
            await (await bus.open_producer(topic)).send(b"")
        await until("everybody has read", lambda: len(got) == 200)
        await server.close()

        # The log comes back without its last entry, which is that of the last topic.
        data = (tmp_path / "before" / "log").read_bytes()
        (tmp_path / "after").mkdir()
        (tmp_path / "after" / "log").write_bytes(data[:-1])
        link = bus._link
        assert link is not None
        server = Server(Store(tmp_path / "after"))
        assert await server.start(port) == port
        link.transport.abort()
        await until("the lost place is reported", lambda: bool(reported))
        assert [type(what["exception"]) for what in reported] == [PositionGone]
        assert "t199" in reported[0]["message"]
        got.clear()
        producers = [await bus.open_producer(topic) for topic in topics]
        for producer in reversed(producers):
            await producer.send(b"")
        await until("the others go on", lambda: len(got) == 199)
        assert sorted(got) == sorted(topics[:-1])
        await bus.close()
        await server.close()

    asyncio.run(scenario())


#: The broker's process, in which no file can grow beyond so many bytes.
SMALL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
from goalstate.bus.embedded.__main__ import main
sys.exit(main())
"""


def test_a_broker_that_cannot_write_ends_and_has_acknowledged_nothing_that_is_lost(
    tmp_path: Path,
) -> None:
    async def fill(url: str) -> list[bytes]:
        bus = await EmbeddedBus.connect(url, timeout=1, send_timeout=2)
        got: list[bytes] = []
        await bus.open_reader("t", EARLIEST, lambda message: got.append(message.payload))
        producer = await bus.open_producer("t")
        accepted = []
        sends = [(b"%04d" % n, producer.send(b"%04d" % n + b"." * 1000)) for n in range(20)]
        with pytest.raises(BrokerUnreachable):
            while True:
                for payload, send in sends:
                    await send
                    accepted.append(payload)
                last = len(accepted)
                sends = [
                    (b"%04d" % n, producer.send(b"%04d" % n + b"." * 1000))
                    for n in range(last, last + 20)
                ]
        await bus.close()
        assert {payload[:4] for payload in got} <= set(accepted)
        return accepted

    arguments = ["--port=0", f"--data-dir={tmp_path}"]
    with subprocess.Popen(
        [sys.executable, "-c", SMALL_DISK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as broker:
        assert broker.stdout and broker.stderr
        try:
            accepted = asyncio.run(fill(broker.stdout.readline().strip()))
            assert broker.wait(30) == 1
        finally:
            broker.kill()
        told = broker.stderr.read()
    assert str(tmp_path) in told and "cannot be written" in told
    assert "Traceback" not in told
    store = Store(tmp_path)
    log = [wire_record[-1004:-1000] for wire_record in store.logs["t"]]
    store.close()
    assert len(accepted) >= 20
    assert log[: len(accepted)] == accepted


def test_a_busy_port_is_a_plain_error(embedded_broker: Broker, tmp_path: Path) -> None:
    port = embedded_broker.url.rsplit(":", 1)[1]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "goalstate.bus.embedded",
            "--port",
            port,
            "--data-dir",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "cannot start" in done.stderr
    assert "Traceback" not in done.stderr
