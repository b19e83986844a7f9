"""A wait that says "converged" is held against what the hosts say themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import pytest

from goalstate.gs.intent import Object, ObjectKind, Port, SecurityGroup
from goalstate.scale import expectation
from goalstate.scale.chaos.changes import Change, Key, Tenant, message
from goalstate.scale.chaos.hosts import Held, Position
from goalstate.scale.chaos.ledger import Acknowledged, Law, Ledger
from goalstate.scale.chaos.waits import Waits
from tests.scale.chaos.region import HOSTS, OnePublisher, tenants

K = ObjectKind
GROUPS = {host.id: host.group for host in HOSTS}
MARK = (1, 7)


class Fleet:
    """An agent process whose hosts hold what follows from a model, at a mark, but for `lacks`."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.killed_at = 0.0
        self.mark = MARK
        self.applied_unix_ns = 0
        self.lacks: set[Key] = set()
        #: What is held although the model does not have it.
        self.kept: dict[Key, Object] = {}
        self.asked = 0

    @property
    def witness(self) -> Any:
        return self

    async def held(
        self, hosts: Iterable[str], stream: str, type_: Any, field: str
    ) -> dict[str, Held]:
        self.asked += 1
        position = Position(self.mark, self.applied_unix_ns)
        return {host: Held(position, self._of(host, stream, field)) for host in hosts}

    def _of(self, host: str, stream: str, field: str) -> dict[str, object]:
        objects = {**self.tenant.model.objects, **self.kept}
        whole = message(one for key, one in objects.items() if key not in self.lacks)
        where = {one.id: one for one in HOSTS}
        found: dict[str, object] = {}
        for port in whole.ports:
            if field == "neighbor_states":
                found[port.id] = expectation.neighbor_configuration(port, where[port.host_id])
            elif field == "port_states" and port.host_id == host:
                found[port.id] = expectation.port_configuration(port, where[host])
        if field == "security_group_states":
            found |= {one.id: expectation.group_configuration(one) for one in whole.security_groups}
        return found


class Region:
    """One VPC that was made, and whose changes are acknowledged as they are made."""

    def __init__(self) -> None:
        self.tenant = tenants()[0]
        self.ledger = Ledger()
        self.fleet = Fleet(self.tenant)
        self.waits = Waits(
            OnePublisher(),
            {self.tenant.shape.id: self.tenant},
            self.ledger,
            lambda host: self.fleet,  # type: ignore[arg-type,return-value]
            GROUPS,
            seed=1,
        )
        self.acknowledged(self.tenant.next(1))

    def acknowledged(self, change: Change) -> Acknowledged:
        self.ledger.send(change)
        self.tenant.model.apply(change)
        return Acknowledged(change, 1, {f"vpc/{change.vpc}": MARK}, 10.0, 11.0)

    def check(self, chosen: Acknowledged, *, answered_ns: int = 1) -> list[Law]:
        asyncio.run(self.waits._check(chosen, set(), answered_ns))
        return [finding.law for finding in self.ledger.findings]

    def changed(self, mark: int) -> Acknowledged:
        """A group's rules change."""
        group = self.tenant.model.of(K.SECURITY_GROUP)[1]
        assert isinstance(group, SecurityGroup)
        return self.acknowledged(self._change(mark, group._replace(name=f"c{mark:08d}")))

    def moved(self, mark: int) -> Acknowledged:
        port = self.tenant.ports[0]
        target = next(host.id for host in HOSTS if host.id != port.host_id)
        moved = port._replace(host_id=target, name=f"c{mark:08d}")
        return self.acknowledged(self._change(mark, moved))

    def _change(self, mark: int, one: Object) -> Change:
        return self.tenant._change(mark, "changed", [one])


@pytest.fixture
def region() -> Region:
    return Region()


def test_hosts_that_hold_it_are_witnesses_that_the_wait_was_right(region: Region) -> None:
    for chosen in (region.changed(2), region.moved(3)):
        assert region.check(chosen) == []
    assert region.waits.counts["objects looked at"] > 4
    assert region.fleet.asked > 2


def test_a_host_that_holds_an_older_one_shows_that_the_wait_was_early(region: Region) -> None:
    before = region.tenant.model.of(K.SECURITY_GROUP)[1]
    chosen = region.changed(2)
    region.fleet.kept = {(K.SECURITY_GROUP, before.id): before}
    assert set(region.check(chosen)) == {Law.EARLY}


@pytest.mark.parametrize("kind", [K.SECURITY_GROUP, K.PORT])
def test_a_host_that_lacks_it_shows_that_the_wait_was_early(
    region: Region, kind: ObjectKind
) -> None:
    chosen = region.changed(2) if kind is K.SECURITY_GROUP else region.moved(2)
    region.fleet.lacks = set(chosen.change.puts)
    assert set(region.check(chosen)) == {Law.EARLY}


def test_a_port_that_still_lives_where_it_was_shows_it_too(region: Region) -> None:
    chosen = region.moved(2)
    ((key, before),) = chosen.change.was.items()
    assert isinstance(before, Port)
    region.fleet.kept = {key: before}
    assert set(region.check(chosen)) == {Law.EARLY}


def test_a_host_that_is_not_at_the_mark_shows_it(region: Region) -> None:
    chosen = region.changed(2)
    region.fleet.mark = (1, 6)
    assert set(region.check(chosen)) == {Law.EARLY}


def test_a_host_that_got_there_after_the_answer_shows_it(region: Region) -> None:
    chosen = region.changed(2)
    region.fleet.applied_unix_ns = time.time_ns()
    assert set(region.check(chosen, answered_ns=region.fleet.applied_unix_ns - 1)) == {Law.EARLY}


def test_what_was_changed_again_meanwhile_says_nothing(region: Region) -> None:
    before = region.tenant.model.of(K.SECURITY_GROUP)[1]
    chosen = region.changed(2)
    region.ledger.send(region.changed(3).change)
    region.fleet.kept = {(K.SECURITY_GROUP, before.id): before}
    assert region.check(chosen) == []


def test_an_answer_whose_port_moves_meanwhile_says_nothing(region: Region) -> None:
    port = region.tenant.ports[0]
    dhcp = region.tenant._dhcp_of(port, 2)
    chosen = region.acknowledged(region._change(2, dhcp))
    region.fleet.lacks = {(K.DHCP, dhcp.id)}
    held = region.fleet.held

    async def moved_first(*question: Any) -> dict[str, Held]:
        region.ledger.last_sent[K.PORT, port.id] = 3
        return await held(*question)

    region.fleet.held = moved_first  # type: ignore[assignment,method-assign]
    assert region.check(chosen) == []


def test_an_answer_that_a_host_lacks_shows_it(region: Region) -> None:
    dhcp = region.tenant._dhcp_of(region.tenant.ports[0], 2)
    chosen = region.acknowledged(region._change(2, dhcp))
    region.fleet.lacks = {(K.DHCP, dhcp.id)}
    assert set(region.check(chosen)) == {Law.EARLY}


def test_a_process_that_was_killed_since_is_no_witness(region: Region) -> None:
    chosen = region.changed(2)
    region.fleet.mark = (1, 6)
    region.fleet.killed_at = chosen.sent_at + 1
    assert region.check(chosen) == []
    assert region.waits.counts["process was killed meanwhile"] > 0
    region.fleet.killed_at = chosen.sent_at - 1
    assert set(region.check(chosen)) == {Law.EARLY}
