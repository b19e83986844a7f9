"""An agent process: everything is wired here, and only here.

broker ──▶ Bus ──▶ Readers ──▶ HostCore ×N ──▶ DataPlane ×N      (cores are pure)
DPM ◀──▶ SessionClient ─▲         │
            ▲ Bus                 │
            └───── Reports ◀──────┤ watermarks, exceptions
gRPC clients ──▶ InspectionService┤ what is applied
Prometheus ────▶ /metrics ────────┤ FleetMetrics
state file ◀─▶ Storing ◀──────────┘ what is held
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from goalstate.agent.config import AgentConfig
from goalstate.agent.core import SECOND_NS, HostSettings
from goalstate.agent.dataplanes import (
    DataPlane,
    MemoryDataPlane,
    ModelledDataPlane,
    ProgrammingModel,
)
from goalstate.agent.fleet import Fleet, FleetSettings, Member, counts
from goalstate.agent.inspection import InspectionService
from goalstate.agent.metrics import registry
from goalstate.agent.registration import register
from goalstate.agent.session import SessionClient
from goalstate.agent.state_file import StateFile
from goalstate.bus.base import Bus
from goalstate.bus.connect import connect
from goalstate.gs.naming import simulated_host
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.topics import Topics
from goalstate.process import (
    bind,
    clock_id,
    configure_logging,
    grpc_server,
    relax_garbage_collection,
    run_until_signal,
    serve_metrics,
    unless,
    write_ready_file,
)

log = structlog.get_logger()

SERVICE = agent_pb2.DESCRIPTOR.services_by_name["Inspection"].full_name
#: Seconds that calls under way get to finish at the end.
GRACE_S = 1.0


async def run(
    config: AgentConfig,
    *,
    ready: Callable[[dict[str, Any]], None] | None = None,
    stop: asyncio.Event | None = None,
    bus: Bus | None = None,
) -> None:
    """Play the hosts until `stop` is set. `ready` is called with the addresses once they follow.

    A given `bus` is used, and left open, instead of one for `config.broker`. Raises StartError,
    BusError.
    """
    stop = stop or asyncio.Event()
    topics = Topics(f"persistent://goalstate/{config.region}", config.report_shards)
    hosts = [
        simulated_host(
            config.first + number, prefix=config.host_prefix, group_size=config.group_size
        )
        for number in range(config.hosts)
    ]
    members = [
        Member(host.id, host.group, counts(config.first + number, config.counting_share))
        for number, host in enumerate(hosts)
    ]
    counting = sum(member.counting for member in members)
    facts: dict[str, Any] = {
        "service": "agent",
        "region": config.region,
        "broker": config.broker,
        "hosts": len(members),
        # What really runs: a counting host checks its VPCs' messages and decodes none.
        "counting_hosts": counting,
        "decoding_hosts": len(members) - counting,
        "decoding": config.decoding,
        "data_plane": config.data_plane,
    }
    server = grpc_server()
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    own_bus = bus is None
    http: tuple[Any, Any] | None = None
    fleet: Fleet | None = None
    state: StateFile | None = None
    try:
        # Bind first: a taken port must cost nothing.
        facts["listen"] = bind(server, config.inspect) if config.inspect else None
        if config.state_dir is not None:
            names = [host.id for host in hosts]
            state = await asyncio.to_thread(StateFile.open, config.state_dir, config.region, names)
        if bus is None:
            bus = await connect(config.broker)
        fleet = Fleet(
            bus,
            members,
            FleetSettings(
                HostSettings(
                    topics,
                    pending_deadline_ns=int(config.pending_deadline_s * SECOND_NS),
                    program_limit=config.program_limit,
                    sessions=bool(config.publishers),
                ),
                # Processes spread over the shards; one process keeps to one.
                report_topic=topics.reports(os.getpid()),
                clock_id=clock_id(),
                lease_s=config.lease_s,
                report_delay_s=config.report_delay_ms / 1e3,
                open_readers_at_a_time=config.open_readers_at_a_time,
                inspection_address=facts["listen"] or "",
                shared_decoding=config.decoding == "shared",
            ),
            _data_planes(config),
            state,
            SessionClient(config.publishers) if config.publishers else None,
        )
        http = serve_metrics(config.metrics_address, config.metrics_port, registry(fleet))
        facts["metrics"] = f"{config.metrics_address}:{http[0].server_port}" if http else None
        agent_pb2_grpc.add_InspectionServicer_to_server(InspectionService(fleet), server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        await server.start()
        registered = config.register_with is None or await unless(
            stop, register(hosts, config.register_with, config.register_timeout_s)
        )
        if registered and await unless(stop, fleet.start()):
            for name in ("", SERVICE):
                await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
            log.info("serving", **facts)
            write_ready_file(config.ready_file, facts)
            if ready is not None:
                ready(facts)
            await stop.wait()
        log.info("stopping")
        await health_service.enter_graceful_shutdown()
        await server.stop(GRACE_S)
    finally:
        if http:
            await asyncio.to_thread(http[0].shutdown)  # takes up to half a second
            http[0].server_close()
        await server.stop(0)
        if fleet is not None:
            await fleet.stop()
        if state is not None:
            await asyncio.to_thread(state.close)
        if own_bus and bus is not None:
            await bus.close()
    log.info("stopped")


def _data_planes(config: AgentConfig) -> Callable[[str], DataPlane]:
    if config.data_plane == "memory":
        return lambda host: MemoryDataPlane()
    model = ProgrammingModel(**config.model.model_dump())
    later = asyncio.get_running_loop().call_later
    return lambda host: ModelledDataPlane(model, later, name=host)


def main(config: AgentConfig) -> None:
    """Run as a process of its own, until SIGTERM or Ctrl-C."""
    configure_logging(config.log_format, config.log_level)
    relax_garbage_collection()
    run_until_signal(lambda stop: run(config, stop=stop))


if __name__ == "__main__":
    main(AgentConfig.load())
