"""The main job on a real broker: intent becomes goal state on every host, whatever stops meanwhile.

Publisher and hosts are processes of their own. After each step every host's applied state is
compared with what the oracle computes from the intents that were accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from goalstate.bus import brokers
from goalstate.bus.brokers import Broker
from goalstate.gs import intent_codec
from goalstate.gs.intent import Intent, Port
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind
from goalstate.scale import generate
from goalstate.scale.generate import Region
from goalstate.testkit import NotAnswered
from tests.integration.processes import System, run, until

REGION = Region(hosts=10, vpcs=(40, 12, 6), seed=7, group_size=4)
PORTS = sum(REGION.vpcs)


@pytest.fixture(scope="module")
def system(apache_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A region with all of `REGION` on all of its hosts; tests leave it converged."""
    with System(apache_broker, tmp_path_factory.mktemp("region")) as one:
        one.start_dpm()
        one.apply(REGION.host_intents())
        one.start_fleet(6)
        one.start_fleet(4, first=6)
        build(one)
        yield one


def build(one: System) -> None:
    one.apply(
        intent for number in range(1, len(REGION.vpcs) + 1) for intent in REGION.vpc_intents(number)
    )
    one.converged()


def elsewhere(port: Port) -> str:
    """A host of another rack."""
    return REGION.host((int(port.host_id.rpartition("-")[2]) + 5) % REGION.hosts).id


def new_port(vpc: int, number: int) -> Port:
    """One more port than the VPC has."""
    return REGION.port(vpc, REGION.vpcs[vpc - 1] + number)


def test_what_is_created_is_on_every_host_that_needs_it(system: System) -> None:
    found = system.check()
    assert len(found.compared) == REGION.hosts
    assert found.resources > PORTS * 2
    status = system.client.status()
    assert status.objects["port"] == PORTS
    assert all(s.followers_current == s.followers for s in status.streams)


def test_a_moved_vm_is_known_where_it_is(system: System) -> None:
    port = REGION.port(1, 0)
    target = elsewhere(port)
    reply = system.apply([generate.move_port(port, target)])
    waited = system.converged(change=reply.change)
    assert waited.latency.clock == "same clock"
    assert 0 < waited.latency.p50_ms <= waited.latency.max_ms
    system.check()
    addresses = system.addresses()
    there, gone = (system.held(host, addresses[host]) for host in (target, port.host_id))
    assert there.get(Kind.PORT, port.id) is not None
    assert gone.get(Kind.PORT, port.id) is None


def test_a_revoked_rule_is_gone_from_every_host(system: System) -> None:
    group = next(g for g in next(REGION.vpc_intents(2)).security_groups if len(g.rules) > 1)
    rule = group.rules[0]
    reply = system.apply([generate.revoke_rule(group, rule.id)])
    system.converged(change=reply.change)
    system.check()
    addresses = system.addresses()
    holders = {host.host for host in system.client.status(group.vpc_id, hosts=True).host_list}
    for host in holders:
        held = system.held(host, addresses[host]).get(Kind.SECURITY_GROUP, group.id)
        assert rule.id not in {one.id.partition("/")[0] for one in held.security_group_rules}


def test_a_deleted_vpc_is_forgotten_and_comes_back_under_its_name(system: System) -> None:
    vpc_id = REGION.vpc_id(3)
    holders = {host.host for host in system.client.status(vpc_id, hosts=True).host_list}
    reply = system.apply([generate.delete_vpc(vpc_id)])
    assert system.converged(change=reply.change).hosts >= len(holders)
    system.converged(vpc_id=vpc_id)
    system.check()
    addresses = system.addresses()
    for host in holders:
        assert system.held(host, addresses[host]).get(Kind.VPC, vpc_id) is None
    reply = system.apply(REGION.vpc_intents(3))
    system.converged(vpc_id=vpc_id)
    system.check()


def test_commands_apply_wait_and_compare(system: System, tmp_path: Path) -> None:
    intent = Intent(ports=(new_port(2, 0),))
    file = tmp_path / "port.yaml"
    file.write_text(intent_codec.to_yaml(intent))
    ran = run("apply", file, "--wait", "--dpm", system.listen, "--json")
    assert ran.code == 0, ran
    system.sent.append(intent_codec.to_proto(intent))
    assert ran.document["accepted"] == 1
    assert ran.document["wait"]["converged"]
    compared = run("diff", "--dpm", system.listen, "--json")
    assert compared.code == 0, compared
    assert compared.document["differences_total"] == 0
    assert compared.document["hosts_compared"] == REGION.hosts


def test_a_killed_publisher_comes_back_with_everything(system: System) -> None:
    before = system.client.status()
    intent = system.client.intent()
    # Killed while it may still be publishing what it has just accepted.
    reply = system.apply([generate.move_port(REGION.port(1, 1), elsewhere(REGION.port(1, 1)))])
    system.kill_dpm()
    system.start_dpm()
    after = system.client.status()
    assert after.epoch == before.epoch + 1
    assert after.change == reply.change == before.change + 1
    assert after.objects == before.objects
    system.converged(change=reply.change)
    system.check()
    new = system.apply([Intent(ports=(new_port(1, 0),))])
    assert {at.epoch for at in new.streams} == {after.epoch}
    system.converged()
    system.check()
    intent_now = system.client.intent()
    assert [h.id for h in intent_now.hosts] == [h.id for h in intent.hosts]
    assert len(intent_now.ports) == len(intent.ports) + 1


def test_a_publisher_that_is_stopped_ends_well_and_comes_back(system: System) -> None:
    change = system.client.status().change
    assert system.dpm is not None
    system.stop_dpm()
    lines = system.dpm.log.read_text("utf-8").splitlines()
    assert json.loads(lines[-1])["event"] == "stopped"
    system.start_dpm()
    assert system.client.status().change == change
    system.converged()


def test_restarted_hosts_read_all_they_need_again(system: System) -> None:
    system.fleets["fleet-6"].kill()
    # What changes meanwhile, they find when they are back.
    mover = next(
        port
        for port in (REGION.port(1, n) for n in range(2, 40))
        if port.host_id >= REGION.host(6).id
    )
    system.apply(
        [
            generate.move_port(mover, REGION.host(0).id),
            Intent(ports=(new_port(1, 1)._replace(host_id=REGION.host(8).id),)),
        ]
    )
    system.start_fleet(4, first=6)
    system.converged()
    assert len(system.check().compared) == REGION.hosts


def test_the_embedded_broker_does_the_same_job(embedded_broker: Broker, tmp_path: Path) -> None:
    with System(embedded_broker, tmp_path) as one:
        one.start_dpm()
        one.apply(REGION.host_intents())
        one.start_fleet(REGION.hosts)
        build(one)
        one.check()
        port = REGION.port(2, 0)
        one.apply(
            [
                generate.move_port(port, elsewhere(port)),
                generate.delete_vpc(REGION.vpc_id(3)),
            ]
        )
        one.converged()
        one.check()
        one.kill_dpm()
        one.start_dpm()
        assert one.client.status().epoch == 2
        reply = one.apply([Intent(ports=(new_port(1, 0),))])
        one.converged(change=reply.change)
        one.converged()
        one.check()


def test_a_broker_that_goes_away_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    with brokers.find("embedded", env={}) as broker, System(broker, tmp_path) as one:
        one.start_dpm()
        one.apply(REGION.host_intents())
        one.start_fleet(REGION.hosts)
        build(one)
        before = one.client.status()
        broker.kill()
        # Hosts keep what they have, and the publisher says what it knows.
        assert one.client.status().objects == before.objects
        one.check()
        broker.restart()
        reply = until(lambda: accepted(one), "an intent is accepted again")
        one.converged(change=reply.change)
        one.converged()
        one.check()


def accepted(one: System) -> api.ApplyReply | None:
    """The answer to one more port; None while the publisher cannot take it."""
    try:
        return one.apply([Intent(ports=(new_port(1, 0),))])
    except NotAnswered:
        return None
