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

Of a fleet and what it follows, reports and stores there is one for each shard of the region. They
share the bus, the services, the counters and the data planes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
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
from goalstate.agent.core import SECOND_NS, HostSettings, Witness
from goalstate.agent.counters import Counters
from goalstate.agent.dataplanes import (
    DataPlane,
    MemoryDataPlane,
    ModelledDataPlane,
    ProgrammingModel,
)
from goalstate.agent.division import check_division
from goalstate.agent.fleet import Fleet, FleetSettings, Member, counts
from goalstate.agent.inspection import InspectionService
from goalstate.agent.metrics import registry
from goalstate.agent.registration import register
from goalstate.agent.retry import RetryPolicy
from goalstate.agent.session import SessionClient
from goalstate.agent.sharing import SharedDataPlane
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
    topics = Topics(
        f"persistent://goalstate/{config.region}", config.report_shards, shards=config.shards
    )
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
    fleets: list[Fleet] = []
    states: list[StateFile] = []
    answers: Answers | None = None
    proxies: list[Proxy] = []
    try:
        # Bind first: a taken port must cost nothing.
        facts["listen"] = bind(server, config.inspect) if config.inspect else None
        if config.state_dir is not None:
            ids = [host.id for host in hosts]
            for shard in range(config.shards):
                folder = _folder(config.state_dir, shard)
                states.append(await asyncio.to_thread(StateFile.open, folder, config.region, ids))
        if bus is None and config.broker is not None:
            bus = await connect(config.broker)
        if bus is not None and config.shards > 1:
            await check_division(bus, topics)
        if pushed:
            answers = Answers(pending_s=config.alcor_pending_s, answer_s=config.alcor_answer_s)
        fleets += make_fleets(
            config,
            topics,
            bus,
            members,
            listen=facts["listen"] or "",
            states=states,
            answers=answers,
        )
        fleet = fleets[0]  # the only one, where the hosts are pushed to or push
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
        http = serve_metrics(
            config.metrics_address, config.metrics_port, registry(*fleets, proxies=proxies)
        )
        facts["metrics"] = f"{config.metrics_address}:{http[0].server_port}" if http else None
        agent_pb2_grpc.add_InspectionServicer_to_server(InspectionService(*fleets), server)
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
            stop,
            register(hosts, config.register_with, config.register_timeout_s, shards=config.shards),
        )
        if registered and await unless(stop, _start(fleets)):
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
        for fleet in fleets:
            await fleet.stop()
        for state in states:
            await asyncio.to_thread(state.close)
        if own_bus and bus is not None:
            await bus.close()
    log.info("stopped")


def make_fleets(
    config: AgentConfig,
    topics: Topics,
    bus: Bus | None,
    members: Sequence[Member],
    *,
    listen: str = "",
    states: Sequence[StateFile] = (),
    answers: Answers | None = None,
    witness: Witness | None = None,
) -> list[Fleet]:
    """A fleet of the hosts for each shard. Must be called with the event loop running."""
    counters, data_planes = Counters(), data_planes_of(config)
    return [
        Fleet(
            bus,
            members,
            _settings(config, of_shard, listen),
            data_planes,
            states[of_shard.shard] if states else None,
            answers,
            sessions=_session(config, of_shard),
            counters=counters,
            witness=witness,
        )
        for of_shard in topics.all_shards()
    ]


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


def _settings(config: AgentConfig, topics: Topics, listen: str) -> FleetSettings:
    """Of the fleet of one shard. What bounds the process is divided among them."""
    return FleetSettings(
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
        # Processes spread over the topics; one process keeps to one.
        report_topic=topics.reports(os.getpid()),
        dead_letter_topic=topics.dead_letters(os.getpid()),
        clock_id=clock_id(),
        lease_s=config.lease_s,
        report_delay_s=config.report_delay_ms / 1e3,
        open_readers_at_a_time=-(-config.open_readers_at_a_time // config.shards),
        read_checkpoints_at_a_time=-(-config.read_checkpoints_at_a_time // config.shards),
        inspection_address=listen,
        shared_decoding=config.decoding == "shared",
    )


def _session(config: AgentConfig, topics: Topics) -> SessionClient | None:
    if not config.publishers:
        return None
    return SessionClient(config.publishers, shard=topics.shard if topics.shards > 1 else None)


def _folder(state_dir: Path, shard: int) -> Path:
    return state_dir / f"shard-{shard}" if shard else state_dir


async def _start(fleets: Sequence[Fleet]) -> None:
    await asyncio.gather(*(fleet.start() for fleet in fleets))


def data_planes_of(config: AgentConfig) -> Callable[[str], DataPlane]:
    """Of each host one, whichever shards program it."""
    model = ProgrammingModel(**config.model.model_dump())
    later = asyncio.get_running_loop().call_later
    shared: dict[str, SharedDataPlane] = {}

    def make(host: str) -> MemoryDataPlane | ModelledDataPlane:
        if config.data_plane == "memory":
            return MemoryDataPlane()
        return ModelledDataPlane(model, later, name=host)

    def share(host: str) -> DataPlane:
        if host not in shared:
            shared[host] = SharedDataPlane(make(host))
        return shared[host].share()

    return share if config.shards > 1 else make


def main(config: AgentConfig) -> None:
    """Run as a process of its own, until SIGTERM or Ctrl-C."""
    configure_logging(config.log_format, config.log_level)
    relax_garbage_collection()
    run_until_signal(lambda stop: run(config, stop=stop))


if __name__ == "__main__":
    main(AgentConfig.load())
