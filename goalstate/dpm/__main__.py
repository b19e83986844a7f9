"""The publisher as a process: everything is wired here, and only here.

gRPC clients ──▶ NorthboundService ──▶ Engine ──▶ Core            (pure)
agents ◀───────▶ SessionService ◀──────▶│  ├────▶ Convergence     (pure)
       Forwarding ──▶ another publisher │  │
                 reports topics ────────┘  ├────▶ IntentLog ─┐
                      Sessions ◀─ Router ◀─┼────▶ Publisher ─┴──▶ Bus ──▶ broker
                                           └────▶ snapshot_process ─────────▲
Prometheus ────▶ /metrics ──▶ Metrics

Where the region is divided, there is a NorthboundService and an Engine for each of its shards, and
a RegionService in front of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from goalstate.bus.admin import ensure_namespace
from goalstate.bus.base import Bus
from goalstate.bus.connect import connect
from goalstate.bus.errors import BusError
from goalstate.dpm.admission import Admission, AdmissionPolicy
from goalstate.dpm.checkpoints import CheckpointPolicy
from goalstate.dpm.config import DpmConfig
from goalstate.dpm.convergence import Lease, Why
from goalstate.dpm.engine import Engine
from goalstate.dpm.forwarding import Forwarding
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.peers import PeerService, level
from goalstate.dpm.region import RegionService
from goalstate.dpm.service import SERVICE, NorthboundService
from goalstate.dpm.session_service import SessionService
from goalstate.dpm.shedding import ShedEarly
from goalstate.dpm.snapshot import SnapshotPolicy
from goalstate.dpm.snapshot_process import SnapshotTask, write_in_process
from goalstate.dpm.spread import Spread
from goalstate.gs import sharding
from goalstate.gs.intent import ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.peer.v1 import peer_pb2_grpc
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

SESSIONS = session_pb2.DESCRIPTOR.services_by_name["StreamSessions"].full_name
#: Seconds between two looks whether it is known into how many shards the region is divided.
DIVISION_LOOK_S = 0.02
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
    topics = Topics(
        f"persistent://goalstate/{config.region}", config.report_shards, shards=config.shards
    )
    own_bus = bus is None
    if bus is None:
        if config.admin_url:
            await ensure_namespace(
                config.admin_url,
                "goalstate",
                config.region,
                retention_s=config.retention_s,
                for_good=[
                    topic
                    for shard in topics.all_shards()
                    for topic in (shard.intent_log, shard.intent_snapshots)
                ],
            )
        bus = await connect(config.broker, compression=config.compression)
    metrics = Metrics()
    shared = _Shared(bus, metrics, Spread(), Admission(_admission_policy(config)))
    engines = [
        _engine(config, of_shard, shared, own_bus=own_bus) for of_shard in topics.all_shards()
    ]
    services = [NorthboundService(engine, metrics, broker=config.broker) for engine in engines]
    region = RegionService(engines, services, metrics) if len(engines) > 1 else None
    forwarding = Forwarding(engines, metrics)
    server = grpc_server(config.max_intent_bytes, forwarding, ShedEarly(engines[0]))
    api_grpc.add_DataPlaneManagerServicer_to_server(region or services[0], server)
    session_pb2_grpc.add_StreamSessionsServicer_to_server(SessionService(engines), server)
    if region is not None:
        peer_pb2_grpc.add_PeerServicer_to_server(PeerService(engines), server)
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
        for engine in engines:
            engine.address = config.advertise or _reachable(facts["listen"])
        http = serve_metrics(config.metrics_address, config.metrics_port, metrics.registry)
        facts["metrics"] = f"{config.metrics_address}:{http[0].server_port}" if http else None
        if await unless(stop, _start(engines, config)):
            if region is not None:
                region.connect(_own(facts["listen"]))
            await server.start()
            await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
            log.info("serving" if any(e.serving for e in engines) else "standing by", **facts)
            write_ready_file(config.ready_file, facts)
            if ready is not None:
                ready(facts)
            beside = [asyncio.ensure_future(_keep_gauges(engines, metrics, health_service))]
            if region is not None:
                beside.append(asyncio.ensure_future(level(engines)))
            await _either(stop, *(engine.failed for engine in engines))
            for task in beside:
                task.cancel()
        log.info("stopping")
        await health_service.enter_graceful_shutdown()
        for engine in engines:
            if engine.sessions is not None:
                await engine.sessions.close()
        await server.stop(GRACE_S)
    finally:
        if http:
            await asyncio.to_thread(http[0].shutdown)  # takes up to half a second
            http[0].server_close()
        await server.stop(0)
        if region is not None:
            await region.close()
        await forwarding.close()
        await asyncio.gather(*(engine.stop() for engine in engines))
        if own_bus:
            await bus.close()
    log.info("stopped")
    for engine in engines:
        if engine.failure is not None:
            raise engine.failure


class _Shared(NamedTuple):
    """What the engines of a process have in common."""

    bus: Bus
    metrics: Metrics
    spread: Spread
    admission: Admission


def _admission_policy(config: DpmConfig) -> AdmissionPolicy:
    # How long a group waits is no sign of too much work.
    return AdmissionPolicy(config.longest_wait_s + config.group_interval_s)


def _engine(config: DpmConfig, topics: Topics, shared: _Shared, *, own_bus: bool) -> Engine:
    """Of one shard."""
    own_stream = config.security_groups == "own-stream"
    snapshot_task = SnapshotTask(
        broker=config.broker,
        topics=topics,
        writer=config.writer,
        security_groups_own_stream=own_stream,
        compression=config.compression,
        log_format=config.log_format,
        log_level=config.log_level,
    )
    return Engine(
        shared.bus,
        topics,
        writer=config.writer,
        clock_id=clock_id(),
        metrics=shared.metrics,
        failover_after_s=config.failover_after_s,
        security_groups_own_stream=own_stream,
        channels=config.channels,
        snapshots=SnapshotPolicy(config.snapshot_min_bytes, config.snapshot_factor),
        checkpoints=CheckpointPolicy(
            config.checkpoint_min_bytes, config.checkpoint_factor, config.checkpoint_max_age_s
        ),
        admission=shared.admission,
        # Another process cannot reach a bus that is given.
        snapshot_writer=partial(write_in_process, snapshot_task) if own_bus else None,
        spread=shared.spread,
        group_interval_s=config.group_interval_s,
    )


def _own(listen: str) -> str:
    """An address at which a process reaches what it listens on itself."""
    host, _, port = listen.rpartition(":")
    own = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "[::]": "[::1]"}
    return f"{own.get(host, host)}:{port}"


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


async def _start(engines: Sequence[Engine], config: DpmConfig) -> None:
    first, *others = engines
    # Publishers that start together begin with different shards.
    at = sharding.shard_of(first.address, len(others)) if others else 0
    try:
        await first.start()
        # Its log says into how many shards the region is divided, before anything is written to
        # those of others: of two publishers that were told differently, one goes no further.
        while others and not (first.serving or first.active or first.failed.is_set()):
            await asyncio.sleep(DIVISION_LOOK_S)
        if not first.failed.is_set():
            await asyncio.gather(*(engine.start() for engine in (*others[at:], *others[:at])))
    except BusError as error:
        if config.admin_url or "amespace not found" not in str(error):
            raise
        raise StartError(
            f"the broker has no namespace goalstate/{config.region}: give --admin-url, the URL of "
            "its admin REST API, and it is made; or make it with `pulsar-admin`, with a retention"
        ) from error


async def _keep_gauges(
    engines: Sequence[Engine], metrics: Metrics, health_service: health.aio.HealthServicer
) -> None:
    """Bring the gauges, and what the health service says, up to date each second."""
    states = health_pb2.HealthCheckResponse
    while True:
        # Of a region that is divided no publisher serves all: it is enough to know who does.
        serves = all(
            engine.serving or (len(engines) > 1 and engine.active is not None) for engine in engines
        )
        await health_service.set(SERVICE, states.SERVING if serves else states.NOT_SERVING)
        try:
            shown = []
            for engine in engines:
                async with engine.lock:
                    shown.append(_gauges(engine))
            _set_gauges(shown, engines, metrics)
        except Exception:
            log.exception("gauges are not up to date")
        await asyncio.sleep(1)


class _Gauges(NamedTuple):
    """What is to be seen of one shard."""

    objects: dict[ObjectKind, int]
    leases: Counter[Lease]
    whys: Counter[Why]
    channels: Counter[Channel]


def _gauges(engine: Engine) -> _Gauges:
    now, core = engine.steady_ns(), engine.core
    hosts = {host.id for host in core.desired.objects(ObjectKind.HOST)}
    convergence = engine.convergence
    for host in convergence.hosts.keys() - hosts:
        if convergence.lease(host, now) is Lease.EXPIRED:
            convergence.forget(host)
    whys = Counter[Why]()
    for view in convergence.hosts.values():
        for exception in view.exceptions:
            whys[exception.why] += exception.stands_for
    return _Gauges(
        core.desired.counts(),
        Counter(convergence.lease(host, now) for host in hosts),
        whys,
        Counter(core.channel_of_vpc(v.id) for v in core.desired.objects(ObjectKind.VPC)),
    )


def _set_gauges(shown: Sequence[_Gauges], engines: Sequence[Engine], metrics: Metrics) -> None:
    for kind in ObjectKind:
        counts = [one.objects[kind] for one in shown]
        # Hosts are in all shards, everything else is in one.
        metrics.objects.labels(kind=kind.name.lower()).set(
            max(counts) if kind is ObjectKind.HOST else sum(counts)
        )
    for lease in Lease:
        metrics.hosts.labels(lease=lease.value).set(max(one.leases[lease] for one in shown))
    for why in (Why.REFUSED, Why.PENDING, Why.RETRYING, Why.DRIFT):
        metrics.exceptions.labels(status=why.value).set(sum(one.whys[why] for one in shown))
    metrics.publish_backlog.set(sum(engine.backlog for engine in engines))
    sessions = [engine.sessions for engine in engines if engine.sessions is not None]
    if sessions:
        metrics.session_resyncs.set(sum(one.resyncs for one in sessions))
    metrics.sessions.set(sum(len(one.open) for one in sessions))
    for channel in Channel:
        metrics.channels.labels(channel=channel.name.lower()).set(
            sum(one.channels[channel] for one in shown)
        )
    metrics.checkpoint_due_seconds.set(max(engine.checkpoint_due_s for engine in engines))


def main(config: DpmConfig) -> None:
    """Run as a process of its own, until SIGTERM or Ctrl-C."""
    configure_logging(config.log_format, config.log_level)
    relax_garbage_collection()
    switch_threads_often()
    run_until_signal(lambda stop: run(config, stop=stop))


if __name__ == "__main__":
    main(DpmConfig.load())
