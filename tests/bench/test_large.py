"""The region of the measurements of joins and restarts: its ports are where nobody is measured."""

from __future__ import annotations

import pytest

from bench.large import LargeVpc
from goalstate.dpm.core import Core
from goalstate.gs.intent import ObjectKind
from goalstate.gs.topics import Topics


@pytest.mark.parametrize("ports", [1, 150, 5000, 5001])
def test_it_has_as_many_ports_as_said_and_guests_have_none(ports: int) -> None:
    vpc = LargeVpc(ports, guests=3, more=10)
    core = Core(Topics())
    core.begin_epoch(1)
    for intent in (*vpc._region.host_intents(), *vpc._intents()):
        core.accept(core.plan(intent), 0)
    guests = {vpc._region.host(vpc.first_guest + n).id for n in range(3)}
    placed = [port.host_id for port in core.desired.objects(ObjectKind.PORT)]
    assert len(placed) == ports
    assert guests.isdisjoint(placed)
    core.accept(core.plan(vpc.more(*range(vpc.first_guest, vpc.first_guest + 3))), 0)
    core.accept(core.plan(vpc.more(vpc.first_guest)), 0)
    placed = [port.host_id for port in core.desired.objects(ObjectKind.PORT)]
    assert len(placed) == ports + 4
    assert guests <= set(placed)
