"""The systems that are compared, each started for itself; what cannot be had says why."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import grpc

from bench.peers.base import Place, Work, make_work
from bench.peers.runner import Result, Sizes, run
from bench.system import Brokers, MeasurementFailed, Progress
from goalstate.bus.errors import BusError

#: EOFError: a process ended before it was ready.
_FAILURES = (ImportError, OSError, EOFError, BusError, MeasurementFailed, grpc.RpcError)


class System(NamedTuple):
    """Its name in tables, the module that knows it, and what that is told at its start."""

    name: str
    module: str
    given: dict[str, Any]


#: Names that goals are about.
LIMIT = "pulsar-perf"
ALCOR = "Alcor's pattern"
GRPC = "gRPC streams"
OTHERS = ("RabbitMQ fan-out", "etcd watch", "NATS JetStream", "NATS core", "OVSDB monitors")
READY = "goalstate's messages"
PLAIN = "goalstate from intent on"
AGENTS = "goalstate with its agents"

SYSTEMS = (
    System("Pulsar client, none", "pulsar_client", {"compression": "none"}),
    System("Pulsar client, LZ4", "pulsar_client", {"compression": "LZ4"}),
    System("Pulsar client, ZSTD", "pulsar_client", {"compression": "ZSTD"}),
    System("Pulsar client, LZ4, parsed", "pulsar_client", {"compression": "LZ4", "parse": True}),
    System(LIMIT, "pulsar_perf", {}),
    System(ALCOR, "alcor", {}),
    System(GRPC, "grpc_streams", {}),
    System("RabbitMQ fan-out", "rabbitmq", {}),
    System("etcd watch", "etcd", {}),
    System("NATS JetStream", "nats_server", {"stream": True}),
    System("NATS core", "nats_server", {"stream": False}),
    System("OVSDB monitors", "ovsdb", {}),
    System(READY, "pulsar_client", {"compression": "LZ4", "ours": True}),
    System(PLAIN, "ours", {}),
    System(AGENTS, "ours", {}),
)


def results(
    brokers: Brokers, sizes: Sizes, progress: Progress, systems: tuple[System, ...] = SYSTEMS
) -> Iterator[Result]:
    """One after the other."""
    progress(f"peers: deriving {sizes.ports:,} ports and {sizes.changed} changes")
    work = make_work(sizes.ports, sizes.hosts, sizes.changed)
    _warm_up(brokers, work, sizes, progress)
    for system in systems:
        progress(f"peers: {system.name}")
        try:
            yield _measured(system, brokers, work, sizes, progress)
        except _FAILURES as error:
            progress(f"peers: {system.name}: not measured: {error}")
            yield Result(system.name, missing=str(error) or type(error).__name__)


def _warm_up(brokers: Brokers, work: Work, sizes: Sizes, progress: Progress) -> None:
    """A broker in Java gets faster for a while; why it cannot be had is found out later."""
    some = sizes._replace(hosts=min(sizes.hosts, 200), rounds=2, churn=1, joiners=1)
    with contextlib.suppress(*_FAILURES):
        _measured(SYSTEMS[0], brokers, work, some, lambda text: None)


def _measured(
    system: System, brokers: Brokers, work: Work, sizes: Sizes, progress: Progress
) -> Result:
    module = import_module(f"bench.peers.{system.module}")
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="goalstate-peers-"))
        place = Place(stack, Path(scratch), progress, brokers.get)
        if system.name == AGENTS:
            return cast(Result, module.run_agents(place, sizes))
        if system.name == LIMIT:
            return cast(Result, module.run_limit(place, work, sizes))
        given = {"sizes": sizes} if system.name == PLAIN else system.given
        return run(module.start(place, **given), work, sizes, progress)
