"""Hosts whose agents have to be pushed to, each part as the command that a user would type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from goalstate.bus.brokers import Broker
from goalstate.bus.process import Child
from goalstate.cli import inspection
from goalstate.cli.held import Held
from goalstate.gs.naming import simulated_host
from goalstate.gs.resources import Kind
from goalstate.scale.generate import Region
from tests.integration.processes import System, run, until

REGION = Region(hosts=4, vpcs=(12, 5), seed=3, group_size=4)
#: Driven by the proxy; the others are native.
PUSHED = [simulated_host(number, group_size=4).id for number in (2, 3)]


class Pushed:
    """A region in which two hosts' agents take pushes: one v1 only, one v2 only."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.addresses: dict[str, str] = {}
        self.agents: dict[str, Child] = {}

    def start(self, host: str, version: str) -> None:
        at = self.addresses.get(host, "127.0.0.1:0")
        arguments = ["agent", "run", "--source", "alcor", "--alcor-format", version]
        arguments += ["--hosts", "1", "--first", str(int(host[-6:])), "--group-size", "4"]
        arguments += ["--inspect", at, "--metrics-port", "0"]
        self.agents[host], facts = self.system.start(f"pushed-{host}", *arguments)
        self.addresses[host] = facts["listen"]

    def start_proxy(self) -> None:
        file = self.system.directory / "remotes.yaml"
        file.write_text(json.dumps(self.addresses))
        arguments = ["agent", "proxy", str(file), *self.system.common]
        arguments += ["--inspect", "127.0.0.1:0", "--group-size", "4"]
        self.system.start("proxy", *arguments, GOALSTATE_AGENT_LEASE_S="3")

    def check(self) -> None:
        """What the remote agents have applied is what their proxies say, and that is right."""
        self.system.check()
        for host, address in self.system.addresses().items():
            if host in PUSHED:
                said = self.system.held(host, address)
                there = inspection.of_host(self.addresses[host], host, Held)
                for kind in set(Kind) - {Kind.SUBSCRIPTION}:
                    assert ids(there, kind) == ids(said, kind), (host, kind)


def ids(held: Held, kind: Kind) -> set[str]:
    return {config.id for config in held.all(kind)}


@pytest.fixture
def pushed(embedded_broker: Broker, tmp_path: Path) -> Iterator[Pushed]:
    with System(embedded_broker, tmp_path) as system:
        one = Pushed(system)
        system.start_dpm()
        system.apply(REGION.host_intents())
        system.start_fleet(2)
        for host, version in zip(PUSHED, ("v1", "v2"), strict=True):
            one.start(host, version)
        one.start_proxy()
        for number in (1, 2):
            system.apply(REGION.vpc_intents(number))
        system.converged()
        yield one


def test_a_pushed_host_converges_also_after_its_agent_was_killed(pushed: Pushed) -> None:
    pushed.check()
    shown = run("status", "--hosts", "--dpm", pushed.system.listen).out
    speaks = [next(line for line in shown.splitlines() if line.startswith(host)) for host in PUSHED]
    assert "v1 pushed" in speaks[0]
    assert "v2 pushed" in speaks[1]
    for host in PUSHED:
        pushed.agents[host].kill()
    for host in PUSHED:
        # The other way round than before.
        pushed.start(host, "v2" if host == PUSHED[0] else "v1")

    def known() -> bool:
        listed = pushed.system.client.status(hosts=True).host_list
        formats = {one.host: list(one.formats) for one in listed}
        return [formats[host] for host in PUSHED] == [[102], [101]]

    until(known, "the proxy has found what the new agents speak")
    pushed.system.converged()
    pushed.check()
