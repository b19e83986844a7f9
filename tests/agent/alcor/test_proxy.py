"""A proxy and the agents that it pushes to: foreign ones that know the schema only, and ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from goalstate.agent.alcor import proxy as proxy_module
from goalstate.agent.alcor import remote as remote_module
from goalstate.agent.alcor import remotes
from goalstate.agent.alcor.dataplane import PushDataPlane
from goalstate.agent.alcor.proxy import SPEAKS, Proxy
from goalstate.agent.alcor.remote import NotReached, connect
from goalstate.agent.alcor.service import Capabilities
from goalstate.agent.core import HostSettings
from goalstate.agent.dataplanes import MemoryDataPlane
from goalstate.agent.fleet import Fleet, FleetSettings, Member
from goalstate.agent.metrics import registry
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import inbox_stream
from goalstate.process import StartError
from goalstate.scale.chaos.link import Link
from tests.agent.alcor.rig import INFO, ForeignAgent, agent
from tests.agent.fleet_rig import FleetRig, wait_until
from tests.agent.rig import (
    STREAM,
    TOPICS,
    Publisher,
    gone,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)

HOST, GROUP = "host-000000", "host-rack-00000"
KINDS = (Kind.VPC, Kind.SUBNET, Kind.PORT, Kind.NEIGHBOR)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon, give up soon, and stop at once."""
    monkeypatch.setattr(remote_module, "CONNECT_S", 3.0)
    monkeypatch.setattr(proxy_module, "RETRY_S", 0.01)
    monkeypatch.setattr(proxy_module, "RETRY_MAX_S", 0.02)
    monkeypatch.setattr("goalstate.agent.__main__.GRACE_S", 0.01)


class Pushed:
    """One host that a proxy plays, its streams, and what its reports told."""

    def __init__(self, rig: FleetRig, fleet: Fleet, proxy: Proxy) -> None:
        self.rig = rig
        self.fleet = fleet
        self.proxy = proxy
        self.inbox = Publisher(inbox_stream(GROUP))
        self.vpc = Publisher(STREAM)

    def put(self, *resources: Any) -> None:
        for resource in resources:
            inbox = resource.kind in (Kind.PORT, Kind.SUBSCRIPTION)
            sent = self.inbox.publish(resource, host=HOST) if inbox else self.vpc.publish(resource)
            self.rig.put(sent)

    async def told(self) -> None:
        """Wait until the reports say that all that was put is applied or an exception."""
        wanted = {str(one.stream): tuple(one.mark) for one in (self.inbox, self.vpc)}
        await wait_until(
            lambda: {stream: self.rig.told(HOST, stream) for stream in wanted} == wanted,
            f"the reports tell {wanted}",
        )

    async def speaks(self, what: str) -> None:
        await wait_until(lambda: self.proxy.speaks == what, f"the agent speaks {what}")

    @property
    def exceptions(self) -> dict[str, str]:
        return {one.id: one.reason for one in self.rig.hosts[HOST].exceptions}


@asynccontextmanager
async def proxied(
    address: str, *, answer_s: float = 10, pending_s: float = 30.0
) -> AsyncIterator[Pushed]:
    rig = FleetRig()
    settings = FleetSettings(HostSettings(TOPICS), TOPICS.reports(0), "clock", lease_s=3600)
    fleet = Fleet(rig.bus, [], settings, lambda host: MemoryDataPlane())
    await fleet.start()
    proxy = Proxy(fleet, Member(HOST, GROUP), address, answer_s=answer_s, pending_s=pending_s)
    proxy.start()
    try:
        one = Pushed(rig, fleet, proxy)
        one.put(subscription(), vpc(), subnet(), port(), neighbor(1), neighbor(2))
        yield one
    finally:
        await proxy.stop()
        await fleet.stop()
        await rig.bus.close()


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(scenario())


def both(test: Any) -> Any:
    return pytest.mark.parametrize("version", ["v1", "v2"])(test)


@both
def test_a_change_reaches_an_agent_that_knows_the_schema_only(version: str) -> None:
    async def scenario() -> None:
        foreign = ForeignAgent(version)
        async with foreign.serving() as address, proxied(address) as one:
            await one.told()
            assert one.proxy.speaks == version
            assert foreign.ids(Kind.NEIGHBOR) == {"port-1", "port-2"}
            assert foreign.ids(Kind.PORT) == {"port-1"}
            one.put(gone(neighbor(2)), neighbor(1, 2, host_ip="100.64.0.8"))
            await one.told()
            assert foreign.ids(Kind.NEIGHBOR) == {"port-1"}
            assert foreign.tables[Kind.NEIGHBOR]["port-1"].host_ip_address == "100.64.0.8"
            report = next(host for said in one.rig.reports for host in said.hosts if host.full)
            assert report.proxied
            assert list(report.formats) == [{"v1": 101, "v2": 102}[version]]

    run(scenario)


@both
def test_what_the_agent_refuses_is_an_exception_by_name(version: str) -> None:
    async def scenario() -> None:
        foreign = ForeignAgent(version, refuse=["port-2"])
        foreign.chokes_on = {"port-3"}
        async with foreign.serving() as address, proxied(address) as one:
            one.put(*(neighbor(number) for number in range(3, 6)))
            await one.told()
            await wait_until(lambda: len(one.exceptions) == 2, "both exceptions are told")
            assert "FAILURE" in one.exceptions["port-2"]
            assert "INTERNAL: cannot bear it" in one.exceptions["port-3"]
            assert foreign.ids(Kind.NEIGHBOR) == {"port-1", "port-4", "port-5"}
            assert one.fleet.hosts[HOST].core.counters.applied[Kind.NEIGHBOR] == 3

    run(scenario)


def test_what_is_pending_is_pushed_again_until_it_is_applied_or_refused() -> None:
    async def scenario() -> None:
        foreign = ForeignAgent("v2")
        foreign.pending = {"port-1": 2}
        async with foreign.serving() as address, proxied(address) as one:
            await one.told()
            assert foreign.ids(Kind.PORT) == {"port-1"}
            assert not one.exceptions
        foreign = ForeignAgent("v2")
        foreign.pending = {"port-2": 1_000_000}
        async with foreign.serving() as address, proxied(address, pending_s=0) as one:
            await one.told()
            await wait_until(lambda: one.exceptions, "the exception is told")
            assert "PENDING" in one.exceptions["port-2"]

    run(scenario)


@both
def test_an_agent_that_was_restarted_gets_everything_anew_and_what_changed_meanwhile(
    version: str,
) -> None:
    async def scenario() -> None:
        first = ForeignAgent(version)
        async with AsyncExitStack() as stack:
            serving = first.serving()
            address = await serving.__aenter__()
            one = await stack.enter_async_context(proxied(address))
            await one.told()
            incarnation = one.rig.hosts[HOST].incarnation
            await serving.__aexit__(None, None, None)
            await one.speaks("unreachable")
            reports = len(one.rig.reports)
            one.put(gone(neighbor(2)), neighbor(3))
            await wait_until(
                lambda: one.fleet.hosts[HOST].core.streams[STREAM].live.mark == one.vpc.mark,
                "the host follows on",
            )
            assert len(one.rig.reports) == reports, "nothing is said for a host that is gone"
            second = ForeignAgent(version)
            await stack.enter_async_context(second.serving(address))
            await one.told()
            assert second.ids(Kind.NEIGHBOR) == {"port-1", "port-3"}
            assert second.ids(Kind.PORT) == {"port-1"}
            assert second.out_of_order == []
            assert one.rig.hosts[HOST].incarnation > incarnation

    run(scenario)


@both
def test_an_agent_that_kept_its_state_loses_what_was_deleted_meanwhile(version: str) -> None:
    async def scenario() -> None:
        foreign = ForeignAgent(version)
        async with AsyncExitStack() as stack:
            serving = foreign.serving()
            address = await serving.__aenter__()
            one = await stack.enter_async_context(proxied(address))
            await one.told()
            await serving.__aexit__(None, None, None)
            await one.speaks("unreachable")
            one.put(gone(neighbor(2)), neighbor(3))
            await wait_until(
                lambda: one.fleet.hosts[HOST].core.streams[STREAM].live.mark == one.vpc.mark,
                "the host follows on",
            )
            await stack.enter_async_context(foreign.serving(address))
            await one.told()
            assert foreign.ids(Kind.NEIGHBOR) == {"port-1", "port-3"}
            assert foreign.out_of_order == []

    run(scenario)


def test_an_agent_whose_replies_show_another_process_gets_everything_anew() -> None:
    async def scenario() -> None:
        foreign = ForeignAgent("v2")
        foreign.incarnation = 1
        async with foreign.serving() as address, proxied(address) as one:
            await one.told()
            # Behind the same connection, as behind a balancer of load.
            foreign.incarnation = 2
            for table in foreign.tables.values():
                table.clear()
            one.put(neighbor(3))
            await one.told()
            assert foreign.ids(Kind.NEIGHBOR) == {"port-1", "port-2", "port-3"}
            assert foreign.ids(Kind.PORT) == {"port-1"}

    run(scenario)


def test_an_agent_of_ours_that_is_gone_without_a_word_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        answers = asyncio.Event()
        answers.set()
        asked = Capabilities.GetCapabilities

        async def held_up(self: Capabilities, request: Any, context: Any) -> Any:
            await answers.wait()
            return await asked(self, request, context)

        monkeypatch.setattr(Capabilities, "GetCapabilities", held_up)
        monkeypatch.setattr(remote_module, "CHECK_S", 0.01)
        async with agent(source="alcor") as facts, proxied(facts["listen"]) as one:
            await one.told()
            monkeypatch.setattr(remote_module, "CONNECT_S", 0.2)
            answers.clear()
            await one.speaks("unreachable")
            monkeypatch.setattr(remote_module, "CONNECT_S", 3.0)
            answers.set()
            await one.speaks("v2")

    run(scenario)


@both
def test_a_foreign_agent_that_is_gone_without_a_word_is_found(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "QUIET_S", 0.01)

    async def scenario() -> None:
        async with ForeignAgent(version).serving() as address:
            link = Link(address)
            async with proxied(await link.start(), answer_s=0.2) as one:
                await one.told()
                link.cut()
                await one.speaks("unreachable")
            await link.close()

    run(scenario)


def test_nothing_counts_as_applied_before_the_agent_said_so() -> None:
    async def scenario() -> None:
        foreign = ForeignAgent("v2")
        async with foreign.serving() as address, proxied(address) as one:
            await one.told()
            foreign.gate.clear()
            before = len(foreign.messages)
            reports = len(one.rig.reports)
            one.put(neighbor(3))
            core = one.fleet.hosts[HOST].core
            await wait_until(lambda: core.streams[STREAM].unsettled[Kind.NEIGHBOR], "it is pushed")
            assert core.streams[STREAM].watermark < one.vpc.mark
            assert len(foreign.messages) == before
            assert len(one.rig.reports) == reports
            foreign.gate.set()
            await one.told()

    run(scenario)


def test_a_message_stands_by_itself_with_what_it_refers_to() -> None:
    async def scenario() -> None:
        foreign = ForeignAgent("v2")
        async with foreign.serving() as address, proxied(address) as one:
            await one.told()
            (message,) = [m for m in foreign.messages if "port-1" in m.port_states]
            assert message.subnet_states["subnet-1"].operation_type == INFO
            assert message.vpc_states["vpc-1"].operation_type == INFO
            assert set(message.host_resources) == {HOST}
            assert len(message.host_resources[HOST].resources) == 3

    run(scenario)


def test_v1_says_how_the_host_reaches_a_neighbor_also_when_that_changes() -> None:
    async def scenario() -> None:
        foreign = ForeignAgent("v1")

        def types() -> dict[str, int]:
            return {
                id_: one.fixed_ips[0].neighbor_type
                for id_, one in foreign.tables[Kind.NEIGHBOR].items()
            }

        async with foreign.serving() as address, proxied(address) as one:
            await one.told()
            one.put(subnet("subnet-2"), neighbor(3, subnets=["subnet-2"]))
            await one.told()
            near, far = resources_pb2.L2, resources_pb2.L3
            assert types() == {"port-1": near, "port-2": near, "port-3": far}
            one.put(port(9, subnet_id="subnet-2"))
            await one.told()
            assert types() == {"port-1": near, "port-2": near, "port-3": near}
            one.put(gone(port(1)))
            await one.told()
            assert types() == {"port-1": far, "port-2": far, "port-3": near}

    run(scenario)


def test_an_agent_that_takes_its_host_over_is_left_alone_until_it_gives_it_back() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            pushed = agent(source="alcor", alcor_formats=("v2",))
            facts = await pushed.__aenter__()
            address = facts["listen"]
            one = await stack.enter_async_context(proxied(address))
            await one.told()
            assert one.proxy.speaks == "v2"
            first = one.rig.hosts[HOST].incarnation
            await pushed.__aexit__(None, None, None)
            # Upgraded: it follows by itself.
            native = agent(one.rig.bus, inspect=address)
            await native.__aenter__()
            await one.speaks("native")
            assert HOST not in one.fleet.hosts
            one.put(neighbor(3))
            await one.told()
            own = one.rig.hosts[HOST].incarnation
            assert own > first
            assert not one.rig.hosts[HOST].proxied
            await native.__aexit__(None, None, None)
            # Rolled back, to one that takes v1.
            await stack.enter_async_context(
                agent(source="alcor", alcor_formats=("v1",), inspect=address)
            )
            await one.speaks("v1")
            one.put(neighbor(4))
            await one.told()
            assert one.rig.hosts[HOST].incarnation > own

    run(scenario)


def test_what_cannot_be_deleted_at_the_beginning_is_named() -> None:
    async def scenario() -> None:
        foreign = ForeignAgent("v2", refuse=["group-1"])
        may_hold = {(Kind.SECURITY_GROUP, "group-1"): 1, (Kind.NEIGHBOR, "port-2"): 1}
        async with foreign.serving() as address:
            session = await connect(address, HOST, 10)
            plane = PushDataPlane(HOST, session, may_hold, pending_s=30)
            with capture_logs() as logs:
                await plane.sweep(set())
            await session.close()
        assert [one["resource"] for one in logs if "cannot delete" in one["event"]] == [
            "security_group/group-1"
        ]
        assert set(may_hold) == {(Kind.SECURITY_GROUP, "group-1")}

    run(scenario)


def test_what_an_agent_of_ours_holds_of_an_earlier_proxy_is_known_and_deleted() -> None:
    async def scenario() -> None:
        async with agent(source="alcor") as facts:
            async with proxied(facts["listen"]) as one:
                one.put(neighbor(8))
                await one.told()
            async with proxied(facts["listen"]) as one:
                await one.told()
                held: set[tuple[Kind, str]] = set(one.proxy._may_hold)
                assert (Kind.NEIGHBOR, "port-8") not in held
                assert (Kind.NEIGHBOR, "port-1") in held

    run(scenario)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no mapping"),
        ("- a\n", "no mapping"),
        ("a: [", "cannot be read"),
        ("host-000001: 1\n", "1 is no address"),
        ("host-000001: nowhere\n", "'nowhere' is no address"),
        ("h1: 127.0.0.1:1\n", "h1: it has no group"),
        ("h1: {address: 'a:1', rack: r}\n", "unknown key 'rack'"),
        ("host-000001: 'a:1'\nhost-000001: 'a:2'\n", "host-000001 is there 2 times"),
        ("7: 'a:1'\n", "7 is no name"),
    ],
)
def test_a_wrong_file_of_remote_agents_is_refused_by_name(
    text: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "remotes.yaml"
    path.write_text(text)
    with pytest.raises(StartError, match=reason):
        remotes.load(path, prefix="host", group_size=40)


def test_a_host_has_the_group_that_its_name_or_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "remotes.yaml"
    path.write_text("host-000041: 'a:1'\nh1: {address: 'b:2', group: rack-1}\n")
    found = remotes.load(path, prefix="host", group_size=40)
    assert [(one.host, one.group, one.address) for one in found] == [
        ("host-000041", "host-rack-00001", "a:1"),
        ("h1", "rack-1", "b:2"),
    ]


def test_what_an_agent_speaks_is_asked_and_no_answer_is_none() -> None:
    async def scenario() -> None:
        async with ForeignAgent().serving() as address:
            with pytest.raises(NotReached, match="neither GoalStateV2 nor GoalState"):
                await connect(address, HOST, 10)
        with pytest.raises(NotReached, match="nobody answers"):
            await connect(address, HOST, 10)
        for formats in (("v1",), ("v2",), ("v1", "v2")):
            async with ForeignAgent(*formats).serving() as address:
                session = await connect(address, HOST, 10)
                # The first that it takes; what else it could is not asked for.
                assert session.formats == ((102,) if "v2" in formats else (101,))
                await session.close()
        async with agent(source="alcor", first=1) as facts:
            with pytest.raises(NotReached, match="does not play host-000000"):
                await connect(facts["listen"], HOST, 10)

    run(scenario)


def test_no_http_proxy_is_asked_for_an_agent(through_a_proxy: None) -> None:
    async def scenario() -> None:
        async with ForeignAgent("v2").serving() as address, proxied(address) as one:
            await one.speaks("v2")

    run(scenario)


def test_what_agents_speak_is_a_metric() -> None:
    async def scenario() -> None:
        async with ForeignAgent("v1").serving() as address, proxied(address) as one:
            await one.speaks("v1")
            made = registry(one.fleet, proxies=[one.proxy])
            found = {
                what: made.get_sample_value("goalstate_agent_remote_hosts", {"speaks": what})
                for what in SPEAKS
            }
            assert found == {"unreachable": 0, "native": 0, "v1": 1, "v2": 0}

    run(scenario)
