"""The embedded broker's store, its wire, and its process."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from goalstate.bus.base import EARLIEST
from goalstate.bus.brokers import Broker
from goalstate.bus.conformance import until
from goalstate.bus.embedded import EmbeddedBus, wire
from goalstate.bus.embedded.server import Server
from goalstate.bus.embedded.store import Store
from goalstate.bus.errors import BrokerUnreachable


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
