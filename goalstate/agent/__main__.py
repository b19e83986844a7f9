"""An agent process: everything is wired here, and only here.

broker ──▶ Bus ──▶ Readers ──▶ HostCore ×N ──▶ DataPlane ×N      (cores are pure)
DPM ◀──▶ SessionClient ─▲         │
            ▲ Bus                 │
            ├───── Reports ◀──────┤ watermarks, exceptions
            └───── Posting ◀──────┤ dead letters
gRPC, Alcor's ─▶ Provisioner, Answers        (source: alcor, instead of readers and reports)
remote agents ◀─ Proxy ×N, with their PushDataPlanes                (remotes)
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

from goalstate.agent.alcor import remotes
from goalstate.agent.alcor.answers import Answers
from goalstate.agent.alcor.proxy import Proxy
from goalstate.agent.alcor.remotes import RemoteHost
from goalstate.agent.alcor.service import Capabilities, Provisioner, SubscribeInfo
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
from goalstate.agent.retry import RetryPolicy
from goalstate.agent.session import SessionClient
from goalstate.agent.state_file import StateFile
from goalstate.bus.base import Bus
from goalstate.bus.connect import connect
from goalstate.gs.naming import simulated_host
from goalstate.gs.pb.alcor.schema import provisioner_pb2, provisioner_pb2_grpc
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.topics import Topics
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2
from goalstate.process import (
    StartError,
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
CAPABILITIES = agent_pb2.DESCRIPTOR.services_by_name["Capabilities"].full_name
ALCOR = [service.full_name for service in provisioner_pb2.DESCRIPTOR.services_by_name.values()]
_FORMATS = {"v1": FORMAT_V1, "v2": FORMAT_V2}
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
    remote = _remotes(config)
    pushed = config.source == "alcor"
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
    if remote:
        # Their proxies have them played when they know what the remote agents speak.
        hosts, members = [one.simulated for one in remote if one.simulated is not None], []
    counting = sum(member.counting for member in members)
    facts: dict[str, Any] = {
        "service": "agent",
        "region": config.region,
        "broker": config.broker,
        "hosts": len(remote) or len(members),
        "source": config.source,
        "remote_hosts": len(remote),
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
    answers: Answers | None = None
    proxies: list[Proxy] = []
    try:
        # Bind first: a taken port must cost nothing.
        facts["listen"] = bind(server, config.inspect) if config.inspect else None
        if config.state_dir is not None:
            ids = [host.id for host in hosts]
            state = await asyncio.to_thread(StateFile.open, config.state_dir, config.region, ids)
        if bus is None and config.broker is not None:
            bus = await connect(config.broker)
        if pushed:
            answers = Answers(pending_s=config.alcor_pending_s, answer_s=config.alcor_answer_s)
        fleet = Fleet(
            bus,
            members,
            FleetSettings(
                HostSettings(
                    topics,
                    pending_deadline_ns=int(config.pending_deadline_s * SECOND_NS),
                    program_limit=config.program_limit,
                    audit_interval_ns=int(config.audit_interval_s * SECOND_NS),
                    retry=RetryPolicy(
                        config.retry_attempts,
                        int(config.retry_delay_s * SECOND_NS),
                        int(config.retry_max_delay_s * SECOND_NS),
                    ),
                    sessions=bool(config.publishers),
                ),
                # Processes spread over the shards; one process keeps to one.
                report_topic=topics.reports(os.getpid()),
                dead_letter_topic=topics.dead_letters(os.getpid()),
                clock_id=clock_id(),
                lease_s=config.lease_s,
                report_delay_s=config.report_delay_ms / 1e3,
                open_readers_at_a_time=config.open_readers_at_a_time,
                read_checkpoints_at_a_time=config.read_checkpoints_at_a_time,
                inspection_address=facts["listen"] or "",
                shared_decoding=config.decoding == "shared",
            ),
            _data_planes(config),
            state,
            answers,
            sessions=SessionClient(config.publishers) if config.publishers else None,
        )
        proxies += [
            Proxy(
                fleet,
                Member(one.host, one.group),
                one.address,
                answer_s=config.remote_answer_s,
                pending_s=config.pending_deadline_s,
            )
            for one in remote
        ]
        http = serve_metrics(config.metrics_address, config.metrics_port, registry(fleet, proxies))
        facts["metrics"] = f"{config.metrics_address}:{http[0].server_port}" if http else None
        agent_pb2_grpc.add_InspectionServicer_to_server(InspectionService(fleet), server)
        formats = tuple(_FORMATS[name] for name in config.alcor_formats) if pushed else ()
        agent_pb2_grpc.add_CapabilitiesServicer_to_server(Capabilities(fleet, formats), server)
        names = [SERVICE, CAPABILITIES]
        if answers is not None:
            provisioner_pb2_grpc.add_GoalStateProvisionerServicer_to_server(
                Provisioner(fleet, answers, formats), server
            )
            provisioner_pb2_grpc.add_SubscribeInfoProvisionerServicer_to_server(
                SubscribeInfo(fleet, answers, topics, broker=bus is not None), server
            )
            names += ALCOR
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
        )
        await server.start()
        registered = config.register_with is None or await unless(
            stop, register(hosts, config.register_with, config.register_timeout_s)
        )
        if registered and await unless(stop, fleet.start()):
            for proxy in proxies:
                proxy.start()
            for name in ("", *names):
                await health_service.set(name, health_pb2.HealthCheckResponse.SERVING)
            log.info("serving", **facts)
            write_ready_file(config.ready_file, facts)
            if ready is not None:
                ready(facts)
            await stop.wait()
        log.info("stopping")
        await health_service.enter_graceful_shutdown()
        if answers is not None:
            await answers.stop()
        await server.stop(GRACE_S)
    finally:
        if http:
            await asyncio.to_thread(http[0].shutdown)  # takes up to half a second
            http[0].server_close()
        await server.stop(0)
        await asyncio.gather(*(proxy.stop() for proxy in proxies))
        if fleet is not None:
            await fleet.stop()
        if state is not None:
            await asyncio.to_thread(state.close)
        if own_bus and bus is not None:
            await bus.close()
    log.info("stopped")


def _remotes(config: AgentConfig) -> list[RemoteHost]:
    """The hosts that are pushed to. Raises StartError."""
    if config.remotes is None:
        return []
    found = remotes.load(config.remotes, prefix=config.host_prefix, group_size=config.group_size)
    strange = [one.host for one in found if one.simulated is None]
    if strange and config.register_with is not None:
        raise StartError(
            f"{strange[0]} cannot be made known to a DPM: its name says nothing of its addresses; "
            "apply it as an object of an intent, and start without --register"
        )
    return found


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
