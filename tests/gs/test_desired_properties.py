"""Whatever intents come, in whatever pieces: the state depends on what was accepted alone."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from goalstate.gs.desired import Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import (
    FIELDS,
    Deletion,
    Dhcp,
    FixedIp,
    Gateway,
    Host,
    Intent,
    ObjectKind,
    Port,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from tests.gs.region import apply, contents, region, snapshot

K = ObjectKind


def names(*ids: str) -> st.SearchStrategy[str]:
    return st.sampled_from(ids)


def mostly(usual: st.SearchStrategy[Any], wild: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The wild one now and then, so that most intents are accepted and many are not."""
    return st.integers(0, 9).flatmap(lambda n: wild if n == 9 else usual)


HOST_IDS = names("h1", "h2", "h3")
VPC_IDS = names("v1", "v2", "v3")
SUBNET_IDS = names("s1", "s2", "s3", "t1")
GROUP_IDS = names("g1", "g2", "g3", "k1")
PORT_IDS = names("p7", "p8", "p9", "p10", "p11", "q1")
MACS = st.integers(1, 12).map(lambda n: f"02:00:00:01:00:{n:02X}")
#: The first block of each subnet, and one that it may grow to.
BLOCKS = {
    "s1": ("10.0.1.0/24", "10.0.1.0/25"),
    "s2": ("10.0.2.0/24", "10.0.2.0/25"),
    "s3": ("10.0.3.0/24", "10.0.2.0/23"),
    "t1": ("10.0.1.0/24", "10.0.0.0/22"),
}


def vpc_of(id_: str) -> str:
    """Where an object of this id usually is."""
    return "v2" if id_[0] in "tkq" else "v1"


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    id_ = draw(names("h1", "h2", "h3", "h4"))
    number = draw(mostly(st.just(int(id_[1])), st.integers(1, 5)))
    group = draw(mostly(st.just("rack-1"), st.just("rack-2")))
    return Host(id_, f"100.64.{draw(st.integers(0, 1))}.{number}", "02:00:00:00:00:01", group)


@st.composite
def vpcs(draw: st.DrawFn) -> Vpc:
    id_ = draw(VPC_IDS)
    cidr = draw(mostly(names("10.0.0.0/16", "10.0.0.0/22"), st.just("10.0.1.0/24")))
    tunnel = draw(mostly(st.just(int(id_[1])), st.integers(1, 12)))
    return Vpc(id_, cidr=cidr, tunnel_id=tunnel, secondary_cidrs=("fd00::/48",))


@st.composite
def subnets(draw: st.DrawFn) -> Subnet:
    id_ = draw(SUBNET_IDS)
    return Subnet(
        id_,
        draw(mostly(st.just(vpc_of(id_)), VPC_IDS)),
        cidr=draw(st.sampled_from(BLOCKS[id_])),
        gateway_ip=draw(mostly(st.just(""), names("10.0.1.1", "10.0.2.1"))),
        tunnel_id=draw(mostly(st.just(0), st.integers(1, 12))),
    )


@st.composite
def groups(draw: st.DrawFn) -> SecurityGroup:
    id_ = draw(GROUP_IDS)
    remotes = draw(st.lists(mostly(names("", id_), GROUP_IDS), max_size=2))
    rules = tuple(Rule(f"r{i}", remote_group_id=remote) for i, remote in enumerate(remotes))
    return SecurityGroup(id_, draw(mostly(st.just(vpc_of(id_)), VPC_IDS)), rules=rules)


@st.composite
def routers(draw: st.DrawFn) -> Router:
    ids = draw(st.lists(names("s1", "s2"), max_size=2, unique=True))
    vpc_id = draw(mostly(st.just("v1"), VPC_IDS))
    return Router(draw(mostly(st.just("x1"), st.just("x2"))), vpc_id, "", draw(MACS), tuple(ids))


@st.composite
def ports(draw: st.DrawFn) -> Port:
    id_ = draw(PORT_IDS)
    number = int(id_[1:])
    vpc_id = draw(mostly(st.just(vpc_of(id_)), VPC_IDS))
    own_subnets = names("t1") if id_[0] == "q" else names("s1", "s2")
    own_groups = names("k1") if id_[0] == "q" else names("g1", "g2")
    fixed_ips = []
    # Two ports share each place within a subnet, so they are taken and freed all the time.
    for subnet_id in draw(st.lists(mostly(own_subnets, SUBNET_IDS), min_size=1, max_size=2)):
        place = draw(st.sampled_from((number, number + 1, 20 + number)))
        fixed_ips.append(FixedIp(subnet_id, f"{BLOCKS[subnet_id][0].rpartition('.')[0]}.{place}"))
    return Port(
        id_,
        vpc_id,
        mac_address=draw(mostly(st.just(f"02:00:00:01:00:{number:02X}"), MACS)),
        host_id=draw(mostly(HOST_IDS, names("", "h4"))),
        fixed_ips=tuple(fixed_ips),
        security_group_ids=tuple(
            draw(st.lists(mostly(own_groups, GROUP_IDS), max_size=2, unique=True))
        ),
    )


OBJECTS: dict[ObjectKind, st.SearchStrategy[Any]] = {
    K.HOST: hosts(),
    K.VPC: vpcs(),
    K.SUBNET: subnets(),
    K.SECURITY_GROUP: groups(),
    K.ROUTER: routers(),
    K.GATEWAY: st.builds(Gateway, names("y1", "y2"), st.just("v1")),
    K.PORT: ports(),
    K.DHCP: st.builds(Dhcp, names("d1", "d2"), names("p7", "p8")),
}
#: Ids by kind, those that are mostly there.
IDS: dict[ObjectKind, st.SearchStrategy[str]] = {
    K.HOST: HOST_IDS,
    K.VPC: VPC_IDS,
    K.SUBNET: SUBNET_IDS,
    K.SECURITY_GROUP: GROUP_IDS,
    K.ROUTER: names("x1"),
    K.GATEWAY: names("y1"),
    K.PORT: PORT_IDS,
    K.DHCP: names("d1"),
}
KINDS = st.sampled_from([*K, K.PORT, K.PORT, K.PORT, K.SUBNET])


@st.composite
def some_intents(draw: st.DrawFn) -> Intent:
    """Few objects, of few ids and few addresses."""
    fields: dict[str, Any] = {field: [] for field in FIELDS.values()}
    for kind in draw(st.lists(KINDS, min_size=1, max_size=3)):
        fields[FIELDS[kind]].append(draw(OBJECTS[kind]))
    deletes = []
    if draw(st.integers(0, 3)) == 0:
        kind = draw(KINDS)
        deletes.append(Deletion(kind, draw(IDS[kind]), draw(st.booleans())))
    return Intent(**fields, deletes=deletes)


INTENTS = st.lists(some_intents(), min_size=1, max_size=8)


def accepted(desired: Desired, intents: list[Intent]) -> int:
    count = 0
    for intent in intents:
        before = snapshot(desired)
        try:
            changes = desired.plan(intent)
        except IntentRejected as rejected:
            assert rejected.violations
            assert snapshot(desired) == before
            continue
        assert snapshot(desired) == before
        desired.commit(changes)
        count += 1
    return count


def everything(desired: Desired) -> dict[ObjectKind, dict[str, Any]]:
    return {kind: dict(desired.table(kind)) for kind in K}


def check_invariants(desired: Desired) -> None:
    """The rules that the state must keep, worked out the slow way."""
    vpcs, subnets, ports = (desired.table(kind) for kind in (K.VPC, K.SUBNET, K.PORT))
    networks = {id_: ip_network(subnet.cidr) for id_, subnet in subnets.items()}
    for id_, subnet in subnets.items():
        blocks = [
            ip_network(text)
            for text in (vpcs[subnet.vpc_id].cidr, *vpcs[subnet.vpc_id].secondary_cidrs)
        ]
        assert any(
            network.version == networks[id_].version and networks[id_].subnet_of(network)  # type: ignore[arg-type]
            for network in blocks
        )
        for other_id, other in subnets.items():
            if other_id != id_ and other.vpc_id == subnet.vpc_id:
                assert not networks[id_].overlaps(networks[other_id])
    taken = {(id_, subnet.gateway_ip) for id_, subnet in subnets.items() if subnet.gateway_ip}
    macs = set()
    for port in ports.values():
        assert (port.vpc_id, port.mac_address) not in macs
        macs.add((port.vpc_id, port.mac_address))
        assert not port.host_id or (port.fixed_ips and desired.get(K.HOST, port.host_id))
        for fixed in port.fixed_ips:
            network = networks[fixed.subnet_id]
            assert subnets[fixed.subnet_id].vpc_id == port.vpc_id
            assert ip_address(fixed.ip_address) in network
            assert network.version == 6 or fixed.ip_address not in (
                str(network.network_address),
                str(network.broadcast_address),
            )
            assert fixed not in taken
            taken.add(fixed)
        for group_id in port.security_group_ids:
            assert desired.get(K.SECURITY_GROUP, group_id).vpc_id == port.vpc_id
    for group in desired.objects(K.SECURITY_GROUP):
        for rule in group.rules:
            remote = desired.get(K.SECURITY_GROUP, rule.remote_group_id)
            assert not rule.remote_group_id or remote.vpc_id == group.vpc_id
    joined = [id_ for router in desired.objects(K.ROUTER) for id_ in router.subnet_ids]
    assert len(joined) == len(set(joined))
    answered = [dhcp.port_id for dhcp in desired.objects(K.DHCP)]
    assert len(answered) == len(set(answered))
    assert all(port_id in ports for port_id in answered)
    tunnels = defaultdict(set)
    for vpc in vpcs.values():
        tunnels[vpc.tunnel_id].add(vpc.id)
    for subnet in subnets.values():
        tunnels[subnet.tunnel_id or vpcs[subnet.vpc_id].tunnel_id].add(subnet.vpc_id)
    assert all(len(users) == 1 for users in tunnels.values())
    ips = [host.ip_address for host in desired.objects(K.HOST)]
    assert len(ips) == len(set(ips))


def check_answers(desired: Desired) -> None:
    """The questions, answered the slow way."""
    ports = desired.table(K.PORT).values()
    for host_id in desired.table(K.HOST):
        assert set(desired.ports_of_host(host_id)) == {p.id for p in ports if p.host_id == host_id}
    for vpc_id in desired.table(K.VPC):
        own = [p for p in ports if p.vpc_id == vpc_id]
        assert Counter(desired.ports_of_vpc(vpc_id)) == Counter(p.id for p in own)
        assert desired.hosts_of_vpc(vpc_id) == Counter(p.host_id for p in own if p.host_id)
        for kind, found in (
            (K.SUBNET, desired.subnets_of_vpc(vpc_id)),
            (K.SECURITY_GROUP, desired.groups_of_vpc(vpc_id)),
            (K.ROUTER, desired.routers_of_vpc(vpc_id)),
            (K.GATEWAY, desired.gateways_of_vpc(vpc_id)),
        ):
            assert set(found) == {o.id for o in desired.objects(kind) if o.vpc_id == vpc_id}
    for group_id in desired.table(K.SECURITY_GROUP):
        members = [p for p in ports if group_id in p.security_group_ids]
        assert set(desired.ports_of_group(group_id)) == {p.id for p in members}
        assert desired.hosts_of_group(group_id) == Counter(p.host_id for p in members if p.host_id)
    for subnet_id in desired.table(K.SUBNET):
        assert set(desired.routers_of_subnet(subnet_id)) == {
            r.id for r in desired.objects(K.ROUTER) if subnet_id in r.subnet_ids
        }
        assert desired.addresses_of_subnet(subnet_id) == {
            f.ip_address: p.id for p in ports for f in p.fixed_ips if f.subnet_id == subnet_id
        }
    for port_id in desired.table(K.PORT):
        assert set(desired.dhcps_of_port(port_id)) == {
            d.id for d in desired.objects(K.DHCP) if d.port_id == port_id
        }


@pytest.mark.no_cover  # other tests trace the same code
@settings(max_examples=300)
@given(INTENTS)
def test_accepted_intents_keep_all_rules_and_refused_ones_change_nothing(
    intents: list[Intent],
) -> None:
    desired = region()
    accepted(desired, intents)
    check_invariants(desired)
    check_answers(desired)


def test_the_random_intents_are_neither_all_refused_nor_all_accepted() -> None:
    counts = Counter[bool]()

    @settings(max_examples=200)
    @given(some_intents())
    def count(intent: Intent) -> None:
        counts[accepted(region(), [intent]) == 1] += 1

    count()
    assert counts[True] >= 40
    assert counts[False] >= 40


@pytest.mark.no_cover  # other tests trace the same code
@settings(max_examples=100)
@given(INTENTS)
def test_the_same_objects_given_in_any_pieces_make_the_same_state(intents: list[Intent]) -> None:
    desired = region()
    accepted(desired, intents)
    whole, by_kind, one_by_one = Desired(), Desired(), Desired()
    objects = {FIELDS[kind]: list(table.values()) for kind, table in everything(desired).items()}
    apply(whole, Intent(**objects))
    for field, given_objects in objects.items():
        apply(by_kind, Intent()._replace(**{field: given_objects}))
        if field == "security_groups":
            # Groups may name each other: they cannot all come one by one.
            apply(one_by_one, Intent(security_groups=given_objects))
            continue
        for object_ in given_objects:
            apply(one_by_one, Intent()._replace(**{field: [object_]}))
    expected = contents(desired)
    assert contents(whole) == expected
    assert contents(by_kind) == expected
    assert contents(one_by_one) == expected


@pytest.mark.no_cover  # other tests trace the same code
@settings(max_examples=100)
@given(INTENTS, st.randoms(use_true_random=False))
def test_the_order_of_objects_within_an_intent_means_nothing(
    intents: list[Intent], shuffle: random.Random
) -> None:
    straight, shuffled = region(), region()
    for intent in intents:
        fields: dict[str, list[Any]] = {k: list(v) for k, v in intent._asdict().items()}
        for objects in fields.values():
            shuffle.shuffle(objects)
        assert accepted(straight, [intent]) == accepted(shuffled, [Intent(**fields)])
    assert contents(straight) == contents(shuffled)


@settings(max_examples=100)
@given(INTENTS)
def test_many_intents_squashed_into_one_make_the_same_state(intents: list[Intent]) -> None:
    desired, squashed = region(), region()
    start = everything(desired)
    accepted(desired, intents)
    end = everything(desired)
    fields = {
        FIELDS[kind]: [o for id_, o in end[kind].items() if start[kind].get(id_) != o] for kind in K
    }
    gone = [Deletion(kind, id_) for kind in K for id_ in start[kind].keys() - end[kind].keys()]
    try:
        apply(squashed, Intent(**fields, deletes=gone))
    except IntentRejected as rejected:
        # What takes two steps: to delete an object and to give its id to one of another VPC (or
        # port), and to empty a host and then move it to another group.
        assert {v.reason for v in rejected.violations} <= {"IMMUTABLE", "HOST_HAS_PORTS"}
        assume(False)
    assert contents(squashed) == contents(desired)


@settings(max_examples=100)
@given(INTENTS)
def test_an_intent_given_again_changes_nothing(intents: list[Intent]) -> None:
    desired = region()
    for intent in intents:
        if accepted(desired, [intent]) and not intent.deletes:
            assert len(desired.plan(intent)) == 0
