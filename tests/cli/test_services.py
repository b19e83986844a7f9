"""`broker start`, `dpm serve` and `agent run` as processes: ready, busy, wrong, stopped."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from goalstate.bus import admin
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.gs.topics import Topics
from tests.cli.conftest import Run

#: Seconds within which a process must be ready or gone: a bound, not a wait.
BOUND_S = 240.0
NOWHERE = "embedded://127.0.0.1:1"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "goalstate.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("GOALSTATE")}


@contextmanager
def running(ready: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A process that has said in its ready file where it serves; ended with the block."""
    process = subprocess.Popen(
        command(*arguments, "--ready-file", ready),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        end = time.monotonic() + BOUND_S
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "not ready"
            time.sleep(0.02)
        yield process, json.loads(ready.read_text())
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env=environment() | more,
        timeout=BOUND_S,
        check=False,
    )


@pytest.fixture
def busy() -> Iterator[str]:
    """An address where somebody listens already."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_serves_until_it_is_told_to_stop_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    start = ("broker", "start", "--kind", "embedded", "--json")
    with running(tmp_path / "ready", *start) as (process, facts):
        host, port = facts["url"].removeprefix("embedded://").split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        process.send_signal(number)
        out, err = process.communicate(timeout=BOUND_S)
        assert process.returncode == 0, err
        assert json.loads(out)["url"] == facts["url"]
        assert "stopped" in err
        assert not Path(facts["data_dir"]).exists()
        with pytest.raises(ProcessLookupError):
            os.kill(facts["broker_pids"][0], 0)


def test_a_broker_that_ends_by_itself_is_an_error(tmp_path: Path) -> None:
    start = ("broker", "start", "--kind", "embedded")
    with running(tmp_path / "ready", *start) as (process, facts):
        os.kill(facts["broker_pids"][0], signal.SIGKILL)
        _, err = process.communicate(timeout=BOUND_S)
        assert process.returncode == 4
        assert "ended by itself" in err


def test_a_broker_that_runs_already_is_only_described(
    run: Run, embedded_broker: Broker, tmp_path: Path
) -> None:
    ran = run("broker", "start", "--url", embedded_broker.url)
    assert ran.code == 0
    assert f"was there already (version unknown) at {embedded_broker.url}" in ran.out


def test_a_broker_that_cannot_be_had_is_told(run: Run, busy: str) -> None:
    assert run("broker", "start", "--kind", "rabbit").code == 2
    ran = run("broker", "start", "--url", NOWHERE)
    assert ran.code == 4
    assert "no broker answers at embedded://127.0.0.1:1" in ran.err
    ran = run("broker", "start", "--kind", "embedded", "--port", busy.split(":")[1])
    assert ran.code == 4
    assert "cannot be used" in ran.err


def test_a_service_without_a_broker_says_how_to_get_one(run: Run) -> None:
    for service in (("dpm", "serve"), ("agent", "run")):
        ran = run(*service)
        assert ran.code == 2
        assert "broker: Field required" in ran.err
        assert "goalstate broker start" in ran.err


def test_every_wrong_setting_is_named(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("broker: pulsar://b:1\ncompresion: lz4\nregion: a b\n")
    ran = run("dpm", "serve", "--config", config)
    assert ran.code == 2
    assert "compresion" in ran.err
    assert "region" in ran.err
    assert run("dpm", "serve", "--config", tmp_path / "none").code == 2
    config.write_text("broker: [")
    assert run("dpm", "serve", "--config", config).code == 2
    ran = run("agent", "run", "--broker", NOWHERE, "--data-plane", "hardware")
    assert ran.code == 2
    assert "data_plane" in ran.err


@pytest.mark.parametrize(
    "service",
    [
        ("dpm", "serve", "--listen", "127.0.0.1:0", "--metrics-port", 0),
        ("agent", "run", "--inspect", "127.0.0.1:0", "--metrics-port", 0),
    ],
    ids=["dpm", "agent"],
)
def test_an_unreachable_broker_is_told(service: tuple[object, ...]) -> None:
    done = finished(*service, "--broker", NOWHERE)
    assert done.returncode == 4
    assert f"no broker answers at {NOWHERE}" in done.stderr
    assert "goalstate broker start" in done.stderr
    assert "Traceback" not in done.stderr
    done = finished(*service, "--broker", "http://127.0.0.1")
    assert done.returncode == 2
    assert "no broker's URL" in done.stderr


def test_a_busy_port_is_told(embedded_broker: Broker, busy: str) -> None:
    for service in (("dpm", "serve", "--listen", busy), ("agent", "run", "--inspect", busy)):
        done = finished(*service, "--broker", embedded_broker.url, "--metrics-port", 0)
        assert done.returncode == 4
        # The first line: gRPC's own are silenced.
        assert done.stderr.startswith(f"goalstate: cannot listen on {busy}: the port is taken")
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("address", ["foo", ":5", "127.0.0.1:x", "127.0.0.1:65536"])
def test_what_is_no_address_to_listen_on_is_told(embedded_broker: Broker, address: str) -> None:
    listen = ("--listen", address, "--metrics-port", 0)
    done = finished("dpm", "serve", *listen, "--broker", embedded_broker.url)
    assert done.returncode == 2
    assert f"{address!r}: that is no address" in done.stderr


def demo(tmp_path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("demo", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "TMPDIR": str(tmp_path)},
    )


def test_a_demo_that_is_told_to_stop_leaves_nothing(tmp_path: Path) -> None:
    process = demo(tmp_path, "--broker", "embedded", "--hosts", 2, "--vpcs", "1x2", "--keep")
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert "embedded://" in first
        # By now its first child runs, and the next one starts.
        broker_port = int(first.rsplit(":", 1)[1])
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=BOUND_S)
        assert process.returncode == 130, err
        assert err.endswith("interrupted\n")
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", broker_port), timeout=5)
    finally:
        process.kill()
        process.communicate()


def workers(pid: int) -> list[int]:
    """The processes that a process shares its work with and that have begun: they leave Ctrl-C to
    it."""
    found = []
    for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{one}/status").read_text().splitlines()
        )
        spawned = b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()
        if spawned and int(status["SigIgn"], 16) & 1 << signal.SIGINT - 1:
            found.append(int(one))
    return found


def test_a_simulation_that_is_told_to_stop_leaves_no_process() -> None:
    process = subprocess.Popen(
        command("simulate-faults", "--runs", 100_000, "--jobs", 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        end = time.monotonic() + BOUND_S
        while len(started := workers(process.pid)) < 2:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "no two workers"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=BOUND_S)
        assert process.returncode == 130, err
        assert err.endswith("interrupted\n")
        assert not [one for one in started if Path(f"/proc/{one}").exists()]
    finally:
        process.kill()
        process.communicate()


def test_a_demo_says_what_it_leaves_on_a_broker_and_which_step_it_skips(
    tmp_path: Path, embedded_broker: Broker
) -> None:
    process = demo(tmp_path, "--broker", embedded_broker.url, "--hosts", 1, "--vpcs", "2x2")
    try:
        out, err = process.communicate(timeout=BOUND_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert "no VM moved: there is one host only" in out
    assert "\nVM moved:" not in out
    assert "the topics of goalstate/demo-" in err
    assert f"stay at {embedded_broker.url}" in err


def test_a_demo_deletes_its_topics_from_a_pulsar_that_stays(
    apache_broker: Broker,
) -> None:
    at = (apache_broker.url, "--hosts", 2, "--vpcs", "2x2", "--json")
    done = finished("demo", "--broker", *at)
    assert done.returncode == 2
    assert "GOALSTATE_BROKER_ADMIN_URL" in done.stderr

    done = finished("demo", "--broker", *at, GOALSTATE_BROKER_ADMIN_URL=apache_broker.admin_url)
    assert done.returncode == 0, done.stderr
    assert " stay at " not in done.stderr
    name = json.loads(done.stdout)["region"]
    _, spaces = admin.request(apache_broker.admin_url, "GET", "/admin/v2/namespaces/goalstate")
    assert name.startswith("demo-")
    assert f"goalstate/{name}" not in json.loads(spaces)


def test_a_followed_topic_is_shown_until_interrupted(embedded_broker: Broker) -> None:
    topics = Topics("persistent://goalstate/followed")

    async def send() -> None:
        bus = await connect(embedded_broker.url)
        producer = await bus.open_producer(topics.intent_log)
        await producer.send(b"")
        await bus.close()

    asyncio.run(send())
    source = ("--topic", topics.intent_log, "--region", "followed", "--broker", embedded_broker.url)
    process = subprocess.Popen(
        command("decode", *source, "--follow", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["type"] == "Record"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=BOUND_S)
        assert process.returncode == 130
        assert err == "interrupted\n"
    finally:
        process.kill()
        process.communicate()
