"""The publisher as a process: everything is wired here, and only here.

gRPC clients ──▶ NorthboundService ──▶ Engine ──▶ Core            (pure)
agents ◀───────▶ SessionService ◀──────▶│  ├────▶ Convergence     (pure)
       Forwarding ──▶ another publisher │  │
                 reports topics ────────┘  ├────▶ IntentLog ─┐
                      Sessions ◀─ Router ◀─┼────▶ Publisher ─┴──▶ Bus ──▶ broker
                                           └────▶ snapshot_process ─────────▲
Prometheus ────▶ /metrics ──▶ Metrics
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from goalstate.bus.admin import ensure_namespace
from goalstate.bus.base import Bus
from goalstate.bus.connect import connect
from goalstate.bus.errors import BusError
from goalstate.dpm.admission import AdmissionPolicy
from goalstate.dpm.checkpoints import CheckpointPolicy
from goalstate.dpm.config import DpmConfig
from goalstate.dpm.convergence import Lease, Why
from goalstate.dpm.engine import Engine
from goalstate.dpm.forwarding import Forwarding
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.service import NorthboundService, ShedEarly
from goalstate.dpm.session_service import SessionService
from goalstate.dpm.snapshot import SnapshotPolicy
from goalstate.dpm.snapshot_process import SnapshotTask, write_in_process
from goalstate.gs.intent import ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.session.v1 import session_pb2, session_pb2_grpc
from goalstate.gs.streams import Channel
from goalstate.gs.topics import Topics
from goalstate.process import (
    StartError,
    bind,
    clock_id,
    configure_logging,
    grpc_server,
    relax_garbage_collection,
    run_until_signal,
    serve_metrics,
    switch_threads_often,
    unless,
    write_ready_file,
)

log = structlog.get_logger()

SERVICE = api.DESCRIPTOR.services_by_name["DataPlaneManager"].full_name
SESSIONS = session_pb2.DESCRIPTOR.services_by_name["StreamSessions"].full_name
#: Seconds that calls under way get to finish at the end.
GRACE_S = 2.0


async def run(
    config: DpmConfig,
    *,
    ready: Callable[[dict[str, Any]], None] | None = None,
    stop: asyncio.Event | None = None,
    bus: Bus | None = None,
) -> None:
    """Serve until `stop` is set. `ready` is called with the addresses once it serves.

    It serves as the region's active publisher, or stands by while there is another one. A given
    `bus` is used, and left open, instead of one for `config.broker`. Raises StartError, BusError,
    LogUnreadable.
    """
    stop = stop or asyncio.Event()
    topics = Topics(f"persistent://goalstate/{config.region}", config.report_shards)
    own_bus = bus is None
    if bus is None:
        if config.admin_url:
            await ensure_namespace(
                config.admin_url,
                "goalstate",
                config.region,
                retention_s=config.retention_s,
                for_good=(topics.intent_log, topics.intent_snapshots),
            )
        bus = await connect(config.broker, compression=config.compression)
    metrics = Metrics()
    own_stream = config.security_groups == "own-stream"
    snapshot_task = SnapshotTask(
        broker=config.broker,
        prefix=topics.prefix,
        writer=config.writer,
        security_groups_own_stream=own_stream,
        compression=config.compression,
        log_format=config.log_format,
        log_level=config.log_level,
    )
    engine = Engine(
        bus,
        topics,
        writer=config.writer,
        clock_id=clock_id(),
        metrics=metrics,
        failover_after_s=config.failover_after_s,
        security_groups_own_stream=own_stream,
        channels=config.channels,
        snapshots=SnapshotPolicy(config.snapshot_min_bytes, config.snapshot_factor),
        checkpoints=CheckpointPolicy(
            config.checkpoint_min_bytes, config.checkpoint_factor, config.checkpoint_max_age_s
        ),
        admission=AdmissionPolicy(longest_s=config.longest_wait_s),
        # Another process cannot reach a bus that is given.
        snapshot_writer=partial(write_in_process, snapshot_task) if own_bus else None,
    )
    forwarding = Forwarding(engine, metrics)
    server = grpc_server(config.max_intent_bytes, forwarding, ShedEarly(engine))
    api_grpc.add_DataPlaneManagerServicer_to_server(
        NorthboundService(engine, metrics, broker=config.broker), server
    )
    session_pb2_grpc.add_StreamSessionsServicer_to_server(SessionService(engine), server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    reflection.enable_server_reflection(
        (SERVICE, SESSIONS, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    facts: dict[str, Any] = {"service": "dpm", "region": config.region, "broker": config.broker}
    http: tuple[Any, Any] | None = None
    try:
        # Bind first: a taken port must not cost an epoch.
        facts["listen"] = bind(server, config.listen)
        engine.address = config.advertise or _reachable(facts["listen"])
        http = serve_metrics(config.metrics_address, config.metrics_port, metrics.registry)
        facts["metrics"] = f"{config.metrics_address}:{http[0].server_port}" if http else None
        if await unless(stop, _start(engine, config)):
            await server.start()
            await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
            log.info("serving" if engine.serving else "standing by", **facts)
            write_ready_file(config.ready_file, facts)
            if ready is not None:
                ready(facts)
            gauges = asyncio.ensure_future(_keep_gauges(engine, metrics, health_service))
            await _either(stop, engine.failed)
            gauges.cancel()
        log.info("stopping")
        await health_service.enter_graceful_shutdown()
        if engine.sessions is not None:
            await engine.sessions.close()
        await server.stop(GRACE_S)
    finally:
        if http:
            await asyncio.to_thread(http[0].shutdown)  # takes up to half a second
            http[0].server_close()
        await server.stop(0)
        await forwarding.close()
        await engine.stop()
        if own_bus:
            await bus.close()
    log.info("stopped")
    if engine.failure is not None:
        raise engine.failure


def _reachable(listen: str) -> str:
    """An address at which others may reach what listens there."""
    host, _, port = listen.rpartition(":")
    return f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]", "*") else listen


async def _either(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _start(engine: Engine, config: DpmConfig) -> None:
    try:
        await engine.start()
    except BusError as error:
        if config.admin_url or "amespace not found" not in str(error):
            raise
        raise StartError(
            f"the broker has no namespace goalstate/{config.region}: give --admin-url, the URL of "
            "its admin REST API, and it is made; or make it with `pulsar-admin`, with a retention"
        ) from error


async def _keep_gauges(
    engine: Engine, metrics: Metrics, health_service: health.aio.HealthServicer
) -> None:
    """Bring the gauges, and what the health service says, up to date each second."""
    states = health_pb2.HealthCheckResponse
    while True:
        await health_service.set(SERVICE, states.SERVING if engine.serving else states.NOT_SERVING)
        try:
            async with engine.lock:
                _set_gauges(engine, metrics)
        except Exception:
            log.exception("gauges are not up to date")
        await asyncio.sleep(1)


def _set_gauges(engine: Engine, metrics: Metrics) -> None:
    now = engine.steady_ns()
    for kind, count in engine.core.desired.counts().items():
        metrics.objects.labels(kind=kind.name.lower()).set(count)
    hosts = {host.id for host in engine.core.desired.objects(ObjectKind.HOST)}
    convergence = engine.convergence
    for host in convergence.hosts.keys() - hosts:
        if convergence.lease(host, now) is Lease.EXPIRED:
            convergence.forget(host)
    leases = [convergence.lease(host, now) for host in hosts]
    for lease in Lease:
        metrics.hosts.labels(lease=lease.value).set(leases.count(lease))
    whys = Counter[Why]()
    for view in convergence.hosts.values():
        for exception in view.exceptions:
            whys[exception.why] += exception.stands_for
    for why in (Why.REFUSED, Why.PENDING, Why.RETRYING, Why.DRIFT):
        metrics.exceptions.labels(status=why.value).set(whys[why])
    metrics.publish_backlog.set(engine.backlog)
    if engine.sessions is not None:
        metrics.session_resyncs.set(engine.sessions.resyncs)
    metrics.sessions.set(len(engine.sessions.open) if engine.sessions is not None else 0)
    channels = [
        engine.core.channel_of_vpc(v.id) for v in engine.core.desired.objects(ObjectKind.VPC)
    ]
    for channel in Channel:
        metrics.channels.labels(channel=channel.name.lower()).set(channels.count(channel))
    metrics.checkpoint_due_seconds.set(engine.checkpoint_due_s)


def main(config: DpmConfig) -> None:
    """Run as a process of its own, until SIGTERM or Ctrl-C."""
    configure_logging(config.log_format, config.log_level)
    relax_garbage_collection()
    switch_threads_often()
    run_until_signal(lambda stop: run(config, stop=stop))


if __name__ == "__main__":
    main(DpmConfig.load())
