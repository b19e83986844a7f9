"""The process that writes a snapshot does so over the broker, and ends with who asked for it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from goalstate.bus.admin import ensure_namespace
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.dpm.__main__ import run
from goalstate.dpm.config import DpmConfig
from goalstate.dpm.errors import SnapshotFailed
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.snapshot import newest_end, recover
from goalstate.dpm.snapshot_process import SnapshotTask, write_in_process
from goalstate.gs import intent_codec
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.topics import Topics
from tests.dpm.test_path_independence import build
from tests.dpm.wires import BOUND


def task(broker: str, region: str) -> SnapshotTask:
    return SnapshotTask(
        broker=broker,
        topics=Topics(f"persistent://goalstate/{region}"),
        writer="dpm-1",
        security_groups_own_stream=False,
        compression="zstd",
        log_format="json",
        log_level="info",
    )


async def history(broker: str, topics: Topics) -> None:
    """A log of changes that are all published, as it says."""
    bus = await connect(broker)
    log = IntentLog(bus, topics.intent_log)
    await log.open("dpm-1")
    await log.append(log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=1)))
    for number, intent in enumerate(build(), 1):
        change = log_pb2.Change(change=number, intent=intent_codec.to_proto(intent))
        await log.append(log_pb2.Record(change=change))
    await log.append(log_pb2.Record(published=log_pb2.Published(change=len(build()))))
    await bus.close()


@pytest.fixture(params=["embedded", "apache"])
def broker(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


def test_the_process_writes_what_a_start_reads(broker: Broker) -> None:
    async def test() -> None:
        asked = task(broker.url, "snapshots-1")
        topics = asked.topics
        if broker.admin_url:
            await ensure_namespace(broker.admin_url, "goalstate", "snapshots-1")
        await history(broker.url, topics)
        bus = await connect(broker.url)
        assert await newest_end(bus, topics) is None
        await write_in_process(asked)
        end = await newest_end(bus, topics)
        assert end is not None
        assert end.change == len(build())
        log = IntentLog(bus, topics.intent_log)
        recovered = await recover(bus, topics, log, security_groups_own_stream=False)
        assert recovered.snapshot == end
        assert recovered.replay.core.change == len(build())
        assert recovered.replay.records == len(build()) + 2
        await bus.close()

    asyncio.run(test())


def test_a_process_that_cannot_write_says_so(embedded_broker: Broker) -> None:
    async def test() -> None:
        asked = task(embedded_broker.url, "snapshots-2")
        topics = asked.topics
        bus = await connect(embedded_broker.url)
        await bus.open_producer(topics.intent_snapshots, exclusive=True)
        with pytest.raises(SnapshotFailed, match="exit code 1"):
            await write_in_process(asked)
        assert await newest_end(bus, topics) is None
        await bus.close()

    asyncio.run(test())


def test_a_process_that_nobody_waits_for_any_more_ends() -> None:
    async def test() -> None:
        came, ended = asyncio.Event(), asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.set()
            try:
                while await reader.read(1000):
                    pass
            except ConnectionError:
                pass
            ended.set()
            writer.close()

        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        writing = asyncio.ensure_future(
            write_in_process(task(f"embedded://127.0.0.1:{port}", "snapshots-3"))
        )
        async with asyncio.timeout(BOUND):
            await came.wait()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await ended.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(test())


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="Linux only")
def test_the_process_takes_no_share_of_the_processor_that_others_want() -> None:
    script = (
        "import os; from goalstate.dpm.snapshot_process import yield_processor;"
        "yield_processor(); print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.nice(0));"
        "print(os.getsid(0) == os.getpid()); print(open('/proc/self/autogroup').read())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=BOUND
    ).stdout.split("\n")
    assert found[0] == "True 19"
    if Path("/proc/self/autogroup").exists():
        assert found[1] == "True"
        assert found[2].endswith("nice 19")


def test_a_publisher_has_its_snapshots_written_by_the_process(embedded_broker: Broker) -> None:
    async def test() -> None:
        ready: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        config = DpmConfig(
            broker=embedded_broker.url,
            region="snapshots-4",
            listen="127.0.0.1:0",
            metrics_port=None,
            snapshot_min_bytes=0,
            snapshot_factor=0,
        )
        serving = asyncio.ensure_future(run(config, ready=ready.set_result, stop=stop))
        bus = await connect(embedded_broker.url)
        topics = Topics("persistent://goalstate/snapshots-4")
        async with asyncio.timeout(BOUND):
            listen = (await ready)["listen"]
            options = [("grpc.enable_http_proxy", 0)]
            async with grpc.aio.insecure_channel(listen, options=options) as channel:
                stub = api_grpc.DataPlaneManagerStub(channel)
                for intent in build():
                    await stub.Apply(api.ApplyRequest(intent=intent_codec.to_proto(intent)))
            while (end := await newest_end(bus, topics)) is None or end.change < len(build()):
                await asyncio.sleep(0.01)
        stop.set()
        await serving
        await bus.close()

    asyncio.run(test())
