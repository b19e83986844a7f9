"""Agents of all versions on the same VPCs, through a rolling upgrade and a rollback.

One publisher; two native hosts, two foreign agents that know v1 or v2 of the schema only, and three
hosts whose agent is replaced host by host: from v1 to both, to v2, to a native one that follows the
streams by itself, and back. Changes go on all the while: before an agent stops, while it is gone,
and when the next one is there. After each step all have converged, by the publisher's word, and the
data planes hold what the oracle says, by other code than ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from goalstate.agent.alcor import proxy as proxy_module
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.dpm.engine import Engine
from goalstate.dpm.metrics import Metrics
from goalstate.gs import intent_codec
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.naming import simulated_host
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.resources import CONFIGURATION, Kind
from goalstate.process import clock_id
from goalstate.scale import generate, oracle
from goalstate.scale.generate import Region
from tests.agent.alcor.rig import ForeignAgent, agent
from tests.dpm.wires import Region as Bus
from tests.dpm.wires import until

REGION = Region(hosts=7, vpcs=(18, 9, 4), seed=5, group_size=3)
HOSTS = [simulated_host(number, group_size=3).id for number in range(7)]
NATIVE, V1_ONLY, V2_ONLY, UPGRADED = HOSTS[:2], HOSTS[2], HOSTS[3], HOSTS[4:]
#: What an agent is started with, and what the proxy must find of it.
STAGES: Mapping[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "v1": ({"source": "alcor", "alcor_formats": ("v1",)}, "v1", (101,)),
    "both": ({"source": "alcor", "alcor_formats": ("v1", "v2")}, "v2", (101, 102)),
    "v2": ({"source": "alcor", "alcor_formats": ("v2",)}, "v2", (102,)),
    "native": ({}, "native", (102,)),
}
#: Seconds within which all must have converged: a bound, not a wait.
BOUND = 60.0


class Fleet:
    """The region: its publisher, its agents, and what their data planes hold."""

    def __init__(self, engine: Engine, bus: Bus, planes: dict[str, MemoryDataPlane]) -> None:
        self.engine = engine
        self.bus = bus
        self.planes = planes
        self.sent: list[intent_pb2.Intent] = []
        self.foreign = {V1_ONLY: ForeignAgent("v1"), V2_ONLY: ForeignAgent("v2")}
        self.addresses: dict[str, str] = {}
        self.stage: dict[str, str] = {}
        self._agents: dict[str, AsyncExitStack] = {}
        self._changes = self._endless()

    async def apply(self, intent: Intent) -> None:
        message = intent_codec.to_proto(intent)
        await self.engine.apply(message)
        self.sent.append(message)

    async def change(self) -> None:
        """One more change of the tenants'."""
        await self.apply(next(self._changes))

    def _endless(self) -> Iterator[Intent]:
        ports = [REGION.port(1, index) for index in range(REGION.vpcs[0])]
        number = 0
        while True:
            port = ports[number % len(ports)]
            # To and fro: hosts get their first port in the VPC, and lose their last one.
            at = HOSTS[(number * 3 + number // len(ports)) % len(HOSTS)]
            ports[number % len(ports)] = port._replace(host_id=at)
            yield generate.move_port(port, at)
            # Comes, goes, and comes back under the same name.
            guest = REGION.port(2, REGION.vpcs[1])
            yield Intent(ports=[guest._replace(host_id=at)])
            yield Intent(deletes=[Deletion(ObjectKind.PORT, guest.id)])
            number += 1

    async def start(self, host: str, stage: str) -> None:
        """Start the agent of a host, in the place of the one before, at the same address."""
        settings, _, _ = STAGES[stage]
        stack = self._agents[host] = AsyncExitStack()
        bus = self.bus.bus(f"{host}-{stage}") if stage == "native" else None
        if bus is not None:
            stack.push_async_callback(bus.close)
        facts = await stack.enter_async_context(
            agent(
                bus,
                first=HOSTS.index(host),
                group_size=3,
                report_shards=1,
                inspect=self.addresses.get(host, "127.0.0.1:0"),
                **settings,
            )
        )
        self.addresses[host] = facts["listen"]
        self.stage[host] = stage

    async def stop(self, host: str) -> None:
        await self._agents.pop(host).aclose()

    async def stop_all(self) -> None:
        for host in list(self._agents):
            await self.stop(host)

    async def converged(self) -> None:
        """Everything is on all hosts, and in their data planes."""
        progress = await self.engine.wait(quorum=1, timeout_s=BOUND, max_stragglers=20)
        assert progress.converged, progress
        assert not progress.expired
        expected = oracle.expected(self.sent)
        for host in HOSTS:
            assert self.held(host) == must_hold(expected, host), host

    async def known(self, host: str) -> None:
        """The publisher has been told what the agent of a host speaks."""
        _, _, formats = STAGES[self.stage[host]]
        views = self.engine.convergence.hosts
        proxied = self.stage[host] != "native"

        def told() -> bool:
            view = views.get(host)
            return view is not None and (view.formats, view.proxied) == (formats, proxied)

        await until(told, f"{host} is {formats}, proxied: {proxied}")

    def held(self, host: str) -> dict[tuple[str, str], Any]:
        """What a host's data plane holds, revisions aside."""
        held = {}
        tables: Mapping[Kind, Mapping[str, Any]]
        foreign = self.foreign.get(host)
        tables = foreign.tables if foreign is not None else self.planes[host].tables
        for kind, table in tables.items():
            for id_, entry in table.items():
                config = CONFIGURATION[kind]()
                if isinstance(entry, bytes):
                    config.ParseFromString(entry)
                else:
                    config.CopyFrom(entry)
                config.ClearField("revision_number")
                config.ClearField("request_id")
                held[kind.name.lower(), id_] = config
        if host == V1_ONLY:
            see_neighbors(held)
        return held


def see_neighbors(held: dict[tuple[str, str], Any]) -> None:
    """v1 says for the host how a neighbor is reached: that must be right. Then it is left out."""
    local = {
        ip.subnet_id
        for (kind, _), config in held.items()
        for ip in (config.fixed_ips if kind == "port" else ())
    }
    for (kind, _), config in held.items():
        for ip in config.fixed_ips if kind == "neighbor" else ():
            near = ip.subnet_id in local
            assert ip.neighbor_type == (resources_pb2.L2 if near else resources_pb2.L3)
            ip.ClearField("neighbor_type")


def must_hold(expected: oracle.Oracle, host: str) -> dict[tuple[str, str], Any]:
    wanted = {}
    parts = [expected.inboxes[host], *(expected.streams[one] for one in expected.follows[host])]
    for part in parts:
        for kind, table in part.items():
            wanted.update({(kind, id_): config for id_, config in table.items()})
    return wanted


@pytest.fixture
def planes(monkeypatch: pytest.MonkeyPatch) -> dict[str, MemoryDataPlane]:
    """The newest data plane of each host; agents try again soon, and stop at once."""
    made: dict[str, MemoryDataPlane] = {}

    def make(host: str) -> MemoryDataPlane:
        made[host] = MemoryDataPlane()
        return made[host]

    monkeypatch.setattr("goalstate.agent.__main__.data_planes_of", lambda config: make)
    monkeypatch.setattr("goalstate.agent.__main__.GRACE_S", 0.01)
    monkeypatch.setattr(proxy_module, "RETRY_S", 0.01)
    monkeypatch.setattr(proxy_module, "RETRY_MAX_S", 0.05)
    return made


def test_agents_of_all_versions_converge_through_an_upgrade_and_a_rollback(
    planes: dict[str, MemoryDataPlane], tmp_path: Path
) -> None:
    async def scenario() -> None:
        bus = Bus()
        async with AsyncExitStack() as stack:
            engine = Engine(
                bus.bus("dpm"), bus.topics, writer="dpm", clock_id=clock_id(), metrics=Metrics()
            )
            await engine.start()
            stack.push_async_callback(engine.stop)
            fleet = Fleet(engine, bus, planes)
            await begin(fleet, stack, tmp_path)
            await roll(fleet)

    asyncio.run(scenario())


async def begin(fleet: Fleet, stack: AsyncExitStack, directory: Path) -> None:
    """Hosts with agents of all kinds, and a region on them."""
    for host, foreign in fleet.foreign.items():
        fleet.addresses[host] = await stack.enter_async_context(foreign.serving())
    stack.push_async_callback(fleet.stop_all)
    for host in UPGRADED:
        await fleet.start(host, "v1")
    await stack.enter_async_context(
        agent(fleet.bus.bus("native"), hosts=len(NATIVE), group_size=3, report_shards=1)
    )
    file = directory / "remotes.yaml"
    file.write_text("".join(f"{host}: {at}\n" for host, at in fleet.addresses.items()))
    await stack.enter_async_context(
        agent(fleet.bus.bus("proxy"), remotes=file, group_size=3, report_shards=1)
    )
    for intent in REGION.intents():
        await fleet.apply(intent)
    await fleet.converged()
    views = fleet.engine.convergence.hosts
    assert {host: (views[host].formats, views[host].proxied) for host in HOSTS} == {
        **{host: ((102,), False) for host in NATIVE},
        V1_ONLY: ((101,), True),
        V2_ONLY: ((102,), True),
        **{host: ((101,), True) for host in UPGRADED},
    }


async def roll(fleet: Fleet) -> None:
    """Replace agents host by host, stage by stage, while changes go on."""
    for stage in ("both", "v2", "native", "v2", "v1"):
        for host in UPGRADED:
            await fleet.change()
            await fleet.stop(host)
            await fleet.change()
            await fleet.start(host, stage)
            await fleet.change()
            await fleet.known(host)
            await fleet.change()
            await fleet.converged()
    await fleet.apply(generate.delete_vpc(REGION.vpc_id(1)))
    await fleet.converged()


def test_a_wait_names_what_a_remote_agent_refused(
    planes: dict[str, MemoryDataPlane], tmp_path: Path
) -> None:
    async def scenario() -> None:
        bus = Bus()
        async with AsyncExitStack() as stack:
            engine = Engine(
                bus.bus("dpm"), bus.topics, writer="dpm", clock_id=clock_id(), metrics=Metrics()
            )
            await engine.start()
            stack.push_async_callback(engine.stop)
            refused = next(
                port
                for port in (REGION.port(1, index) for index in range(REGION.vpcs[0]))
                if port.host_id == V2_ONLY
            )
            foreign = ForeignAgent("v2", refuse=[refused.id])
            address = await stack.enter_async_context(foreign.serving())
            file = tmp_path / "remotes.yaml"
            file.write_text(f"{V2_ONLY}: {address}\n")
            await stack.enter_async_context(
                agent(bus.bus("proxy"), remotes=file, group_size=3, report_shards=1)
            )
            fleet = Fleet(engine, bus, planes)
            for intent in REGION.intents():
                await fleet.apply(intent)
            views = engine.convergence.hosts
            await until(
                lambda: V2_ONLY in views and len(views[V2_ONLY].exceptions) == 2,
                "port and neighbor are refused",
            )
            progress = await engine.wait(quorum=1, timeout_s=0, max_stragglers=20)
            assert not progress.converged
            named = {one.host: one for one in progress.stragglers}[V2_ONLY]
            assert named.resource.endswith(f"/{refused.id}")
            assert "the agent says FAILURE" in named.reason

    asyncio.run(scenario())
