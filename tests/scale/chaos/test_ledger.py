"""What the answers to changes say of the publishers."""

from __future__ import annotations

import pytest

from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale.chaos.changes import Change, Tenant
from goalstate.scale.chaos.ledger import Law, Ledger, rate
from tests.scale.chaos.region import tenants


def answer(number: int, change: Change, *at: int) -> api.ApplyReply:
    epoch, sequence = at or (1, number)
    stream = api.StreamPosition(stream=f"vpc/{change.vpc}", epoch=epoch, sequence=sequence)
    return api.ApplyReply(change=number, changed_objects=1, streams=[stream])


@pytest.fixture
def tenant() -> Tenant:
    return tenants()[0]


def accepted(ledger: Ledger, tenant: Tenant, mark: int, number: int, *at: int) -> None:
    change = tenant.next(mark)._replace(invalid=False)
    floor = ledger.send(change)
    ledger.accept(change, answer(number, change, *at), floor, 0.0, 1.0)
    ledger.end()
    tenant.model.apply(change)


def test_numbers_that_grow_are_as_they_must_be(tenant: Tenant) -> None:
    ledger = Ledger()
    for mark in range(1, 50):
        accepted(ledger, tenant, mark, 2 * mark)
    assert ledger.findings == []
    assert ledger.accepted == 49
    assert ledger.newest[tenant.shape.id].number == 98


@pytest.mark.parametrize("number", [5, 4, 0])
def test_a_number_that_was_given_before_or_is_lower_is_a_finding(
    tenant: Tenant, number: int
) -> None:
    ledger = Ledger()
    accepted(ledger, tenant, 1, 5)
    accepted(ledger, tenant, 2, number, 1, 6)
    assert [finding.law for finding in ledger.findings] == [Law.BACK]


def test_of_changes_under_way_at_once_any_may_be_first(tenant: Tenant) -> None:
    ledger, other = Ledger(), tenants()[1]
    one, two = tenant.next(1), other.next(2)
    floors = ledger.send(one), ledger.send(two)
    ledger.accept(two, answer(7, two), floors[1], 0.0, 1.0)
    ledger.accept(one, answer(6, one), floors[0], 0.0, 1.0)
    assert ledger.findings == []


def test_a_stream_that_goes_back_is_a_finding(tenant: Tenant) -> None:
    ledger = Ledger()
    accepted(ledger, tenant, 1, 1, 2, 9)
    accepted(ledger, tenant, 2, 2, 1, 10)
    assert [finding.law for finding in ledger.findings] == [Law.BACK]


def test_an_invalid_change_that_is_accepted_is_a_finding(tenant: Tenant) -> None:
    ledger = Ledger()
    change = tenant.next(1)._replace(invalid=True)
    ledger.accept(change, answer(1, change), ledger.send(change), 0.0, 1.0)
    assert [finding.law for finding in ledger.findings] == [Law.REFUSED]


def test_the_rate_is_told_with_and_without_outages() -> None:
    times = [float(second) for second in range(10)] + [25.0, 26.0, 27.0, 28.0, 29.0]
    overall, served = rate(times, 0.0, 30.0, [(-5.0, -1.0), (9.5, 24.5)])
    assert overall == pytest.approx(15 / 30)
    assert served == pytest.approx(15 / 15)
