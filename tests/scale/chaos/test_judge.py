"""What is compared at the end, and that every difference is a finding of its law."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from goalstate.gs.intent import Intent, ObjectKind
from goalstate.scale import oracle
from goalstate.scale.chaos.changes import Tenant
from goalstate.scale.chaos.judge import Judge
from goalstate.scale.chaos.ledger import Law, Ledger
from tests.scale.chaos.region import HOSTS, OnePublisher, tenants

K = ObjectKind


class Fleet:
    """An agent process whose hosts differ as a test says."""

    name = "agent-0"

    def __init__(self) -> None:
        self.hosts = [host.id for host in HOSTS]
        self.differences: list[oracle.Difference] = []
        self.expected: oracle.Oracle | None = None
        self.died = False
        self.logs: list[Path] = []

    @property
    def witness(self) -> Any:
        return self

    async def compare(self, expected: oracle.Oracle, hosts: list[str]) -> list[oracle.Difference]:
        self.expected = expected
        return self.differences


class Region:
    """Changes that were made and acknowledged, and the end of the run."""

    def __init__(self) -> None:
        self.publisher = OnePublisher()
        self.ledger = Ledger()
        self.fleet = Fleet()
        self.tenants: dict[str, Tenant] = {one.shape.id: one for one in tenants()}
        self.judge = Judge(
            self.publisher,
            self.tenants,
            HOSTS,
            [self.fleet],  # type: ignore[list-item]
            self.ledger,
        )
        for mark, tenant in enumerate(self.tenants.values(), 1):
            change = tenant.next(mark)
            self.ledger.send(change)
            self.publisher.take(change.intent)
            tenant.model.apply(change)

    @property
    def tenant(self) -> Tenant:
        return next(iter(self.tenants.values()))

    def findings(self) -> list[Law]:
        asyncio.run(self.judge.judge())
        self.judge.processes([self.fleet])  # type: ignore[list-item]
        return [finding.law for finding in self.ledger.findings]


@pytest.fixture
def region() -> Region:
    return Region()


def test_where_all_is_as_it_was_told_nothing_is_found(region: Region) -> None:
    assert region.findings() == []
    assert region.judge.hosts_compared == len(HOSTS)
    assert region.fleet.expected is not None
    assert len(region.fleet.expected.groups) == len(HOSTS)
    assert set(region.fleet.expected.streams) == {f"vpc/{vpc}" for vpc in region.tenants}


def altered(region: Region) -> None:
    port = region.tenant.ports[0]
    region.publisher.take(Intent(ports=(port._replace(name="c00000000"),)))


def deleted(region: Region) -> None:
    region.tenant.model.objects[K.PORT, "port-x"] = region.tenant.ports[0]._replace(id="port-x")
    region.ledger.last_sent[K.PORT, "port-x"] = 99


def kept(region: Region) -> None:
    port = region.tenant.ports[0]
    (fixed,) = port.fixed_ips
    more = port._replace(
        id="port-x",
        mac_address="02:ff:00:00:00:01",
        fixed_ips=(fixed._replace(ip_address="10.3.0.9"),),
    )
    region.publisher.take(Intent(ports=(more,)))


@pytest.mark.parametrize("what", [altered, deleted, kept])
def test_an_object_that_is_not_as_acknowledged_is_a_lost_change(
    region: Region, what: Callable[[Region], None]
) -> None:
    what(region)
    assert region.findings() == [Law.LOST]


def test_differences_of_hosts_are_told_from_resources_that_live_on(region: Region) -> None:
    region.fleet.differences = [
        oracle.Difference("h", "port", "p", "unexpected"),
        oracle.Difference("h", "port", "q", "name is a, must be b"),
    ]
    assert region.findings() == [Law.RESURRECTED, Law.DIFFERENCE]


def test_a_traceback_in_a_log_and_a_process_that_ended_are_found(
    region: Region, tmp_path: Path
) -> None:
    log = tmp_path / "agent-0-1.log"
    log.write_text('{"event": "all is well"}\n')
    region.fleet.logs = [log]
    assert region.findings() == []
    with log.open("a") as file:
        file.write('{"exception": "Traceback (most recent call last):\\n  …"}\n')
    region.fleet.died = True
    assert region.findings() == [Law.PROCESS, Law.PROCESS]
