"""The changes of a run are what they say: valid or not, and as their model says afterwards."""

from __future__ import annotations

from random import Random

import pytest

from goalstate.gs import intent_codec
from goalstate.gs.desired import Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Dhcp, Intent, ObjectKind, Port, Vpc
from goalstate.scale.chaos.changes import (
    Change,
    Tenant,
    hosts,
    key_of,
    mark_of,
    name_of,
    shapes,
)

HOSTS, PORTS = 20, 200


def region(seed: int) -> list[Tenant]:
    made = hosts(HOSTS, 5)
    return [Tenant(shape, made, seed) for shape in shapes(HOSTS, PORTS)]


def accept(desired: Desired, intent: Intent) -> bool:
    """As it would come over the wire; gives whether it was accepted, and was a change."""
    message = intent_codec.to_proto(intent)
    try:
        changes = desired.plan(intent_codec.from_proto(message))
    except IntentRejected:
        return False
    desired.commit(changes)
    return bool(changes)


@pytest.mark.no_cover  # other tests trace the same code
@pytest.mark.parametrize("seed", range(1, 4))
def test_what_is_valid_is_accepted_and_the_model_is_what_stands(seed: int) -> None:
    tenants, random, desired = region(seed), Random(seed), Desired()
    assert accept(desired, Intent(hosts=hosts(HOSTS, 5)))
    made: set[str] = set()
    for mark in range(1, 3000):
        first = mark <= len(tenants)
        tenant = tenants[mark - 1] if first else random.choice(tenants)
        change = tenant.next(mark)
        assert accept(desired, change.intent) is not change.invalid, change
        tenant.model.apply(change)
        made.add(change.what)
    stands = {
        (kind, one.id): one
        for kind in ObjectKind
        if kind is not ObjectKind.HOST
        for one in desired.objects(kind)
    }
    assert stands == {k: one for tenant in tenants for k, one in tenant.model.objects.items()}
    assert made >= {"VPC deleted", "rule revoked", "port moved", "subnet deleted", "not valid"}
    # Around what was asked for, whatever comes and goes.
    assert 0.7 * PORTS < sum(len(tenant.ports) for tenant in tenants) < 1.4 * PORTS


def test_a_change_that_was_not_made_is_forgotten() -> None:
    (tenant, *_) = region(1)
    assert tenant.next(1).what == "VPC created"
    assert tenant.next(2).what == "VPC created"
    tenant.model.apply(created := tenant.next(3))
    assert tenant.model.objects == dict(created.puts)


def test_every_object_that_a_change_puts_says_which_change_it_was() -> None:
    (tenant, *_) = region(1)
    for mark in range(1, 500):
        change = tenant.next(mark)
        for one in change.puts.values():
            if isinstance(one, Dhcp):
                assert mark_of(one.host_name) == mark
            elif isinstance(one, Port | Vpc):
                assert mark_of(one.name) == mark
        tenant.model.apply(change)


def test_a_mark_is_read_from_a_name_and_from_no_other() -> None:
    assert mark_of(name_of(17)) == 17
    assert [mark_of(name) for name in ("", "c", "default", "17", "cafe")] == [0] * 5


def test_what_a_touched_object_is_follows_from_whether_the_change_was_made() -> None:
    (tenant, *_) = region(1)
    tenant.model.apply(tenant.next(1))
    port = tenant.ports[0]
    moved = port._replace(name=name_of(2))
    key = key_of(port)
    change = Change(2, port.vpc_id, "", Intent(), {key: moved}, frozenset(), {key: port})
    assert change.after(key, made=True) == moved
    assert change.after(key, made=False) == port
    assert change._replace(invalid=True).after(key, made=True) == port


@pytest.mark.parametrize(("count", "ports"), [(500, 20_000), (50, 500), (12, 100), (2, 20)])
def test_a_region_has_as_many_ports_as_asked_for_on_hosts_that_exist(
    count: int, ports: int
) -> None:
    found = shapes(count, ports)
    assert [shape.number for shape in found] == list(range(1, len(found) + 1))
    assert 0.8 * ports <= sum(shape.ports for shape in found) <= 1.2 * ports
    assert {index for shape in found for index in shape.hosts} <= set(range(count))
    assert any(len(shape.hosts) == count for shape in found)
    assert any(shape.passing for shape in found)
