"""Derivation: what follows from the desired state, and which of it a change touches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.gs.derivation import Derivation, Derived, Key
from goalstate.gs.desired import Changes, Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import (
    AddressPair,
    Deletion,
    Dhcp,
    FixedIp,
    Gateway,
    Intent,
    ObjectKind,
    Port,
    Protocol,
    Rule,
)
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import STATES_FIELD, Kind
from goalstate.gs.streams import (
    StreamKind,
    inbox_stream,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.topics import Topics
from tests.gs.region import (
    DHCPS,
    GATEWAYS,
    GROUPS,
    HOSTS,
    PORTS,
    ROUTERS,
    SUBNETS,
    VPCS,
    apply,
    port,
    region,
)
from tests.gs.test_desired_properties import INTENTS

K = ObjectKind
TOPICS = Topics("persistent://t/n")
V1, V2 = str(vpc_stream("v1")), str(vpc_stream("v2"))


@pytest.fixture
def desired() -> Desired:
    return region()


@pytest.fixture
def derivation(desired: Desired) -> Derivation:
    return Derivation(desired, TOPICS)


@pytest.fixture
def own(desired: Desired) -> Derivation:
    """Each security group on its own stream."""
    return Derivation(desired, TOPICS, security_groups_own_stream=True)


def build(derivation: Derivation, kind: Kind, id_: str, host: str = "") -> Any:
    """The configuration of a resource that must be there."""
    derived = derivation.build(Key(kind, id_, host))
    assert derived is not None
    assert derived.config.id == id_ if kind is not Kind.SUBSCRIPTION else True
    return derived.config


def place(derivation: Derivation, kind: Kind, id_: str, host: str = "") -> tuple[str, str, str]:
    """Stream, host and VPC of a resource that must be there."""
    derived = derivation.build(Key(kind, id_, host))
    assert derived is not None
    return str(derived.stream), derived.host, derived.vpc


# --- what each resource is ---


def test_a_vpc_names_its_gateways_in_order(desired: Desired, derivation: Derivation) -> None:
    apply(desired, Intent(gateways=(Gateway("a0", "v1"),)))
    config = build(derivation, Kind.VPC, "v1")
    assert (config.cidr, config.tunnel_id, config.name) == ("10.0.0.0/16", 1, "one")
    assert config.project_id == "tenant"
    assert list(config.gateway_ids) == ["a0", "y1"]
    assert place(derivation, Kind.VPC, "v1") == (V1, "", "v1")


def test_a_subnet_has_the_tunnel_of_its_vpc_unless_it_has_its_own(derivation: Derivation) -> None:
    assert build(derivation, Kind.SUBNET, "s1").tunnel_id == VPCS[0].tunnel_id
    assert build(derivation, Kind.SUBNET, "s2").tunnel_id == SUBNETS[1].tunnel_id


def test_a_subnet_says_all_of_itself(desired: Desired, derivation: Derivation) -> None:
    full = SUBNETS[0]._replace(
        dhcp_enable=True,
        dns=("10.0.1.2", "10.0.1.3"),
        dhcp_options=(("mtu", "1450"), ("a", "b")),
        availability_zone="z",
    )
    apply(desired, Intent(subnets=(full,)))
    config = build(derivation, Kind.SUBNET, "s1")
    assert (config.vpc_id, config.name, config.cidr) == ("v1", "s1", "10.0.1.0/24")
    assert (config.gateway.ip_address, config.gateway.mac_address) == (
        full.gateway_ip,
        full.gateway_mac,
    )
    assert [entry.entry for entry in config.dns_entry_list] == ["10.0.1.2", "10.0.1.3"]
    options = [(option.name, option.value) for option in config.extra_dhcp_options]
    assert options == [("a", "b"), ("mtu", "1450")]
    assert (config.dhcp_enable, config.availability_zone) == (True, "z")
    assert place(derivation, Kind.SUBNET, "s1") == (V1, "", "v1")


def test_a_subnet_without_a_gateway_has_none(derivation: Derivation) -> None:
    assert not build(derivation, Kind.SUBNET, "s2").HasField("gateway")


def test_a_rule_for_any_protocol_becomes_one_for_each(desired: Desired) -> None:
    rules = (
        Rule("any", direction=1, remote_ip_prefix="10.0.0.0/8"),
        Rule("web", 1, 0, Protocol.TCP, 80, 443, "", "g1"),
    )
    apply(desired, Intent(security_groups=(GROUPS[0]._replace(rules=rules),)))
    config = build(Derivation(desired, TOPICS), Kind.SECURITY_GROUP, "g1")
    told = [(r.id, r.protocol, r.remote_ip_prefix) for r in config.security_group_rules]
    assert told == [
        ("any/tcp", resources_pb2.TCP, "10.0.0.0/8"),
        ("any/udp", resources_pb2.UDP, "10.0.0.0/8"),
        ("any/icmp", resources_pb2.ICMP, "10.0.0.0/8"),
        ("web", resources_pb2.TCP, ""),
    ]
    web = config.security_group_rules[3]
    assert (web.port_range_min, web.port_range_max, web.remote_group_id) == (80, 443, "g1")
    assert {r.security_group_id for r in config.security_group_rules} == {"g1"}


def test_a_security_group_travels_where_it_is_placed(
    derivation: Derivation, own: Derivation
) -> None:
    assert place(derivation, Kind.SECURITY_GROUP, "g1") == (V1, "", "v1")
    assert place(own, Kind.SECURITY_GROUP, "g1") == ("sg/g1", "", "v1")
    assert build(derivation, Kind.SECURITY_GROUP, "g1") == build(own, Kind.SECURITY_GROUP, "g1")


def test_a_router_gives_every_subnet_that_it_joins_its_routes(
    desired: Desired, derivation: Derivation
) -> None:
    apply(desired, Intent(routers=(ROUTERS[0]._replace(subnet_ids=("s1", "s2")),)))
    config = build(derivation, Kind.ROUTER, "x1")
    assert (config.host_dvr_mac_address, config.vpc_id) == ("02:00:00:00:0a:01", "v1")
    tables = {
        table.subnet_id: [(r.id, r.destination, r.next_hop_ip) for r in table.routing_rules]
        for table in config.subnet_routing_tables
    }
    route = ("a", "0.0.0.0/0", "10.0.1.1")
    assert tables == {"s1": [route], "s2": [route]}
    assert place(derivation, Kind.ROUTER, "x1") == (V1, "", "v1")


def test_a_gateway_says_where_it_leads(derivation: Derivation) -> None:
    config = build(derivation, Kind.GATEWAY, "y1")
    [destination] = GATEWAYS[0].destinations
    assert [(d.ip_address, d.mac_address) for d in config.destinations] == [destination]
    assert (config.gateway_type, config.vpc_id) == (GATEWAYS[0].type, "v1")
    assert place(derivation, Kind.GATEWAY, "y1") == (V1, "", "v1")


def test_a_bound_port_is_for_its_host_and_a_neighbor_for_its_vpc(
    desired: Desired, derivation: Derivation
) -> None:
    full = port(
        8,
        host_id="h2",
        name="eight",
        security_group_ids=("g1", "g2"),
        fixed_ips=(FixedIp("s2", "10.0.2.8"), FixedIp("s6", "fd00:0:0:1::8")),
        allowed_address_pairs=(AddressPair("10.0.2.99", "02:00:00:00:00:99"),),
        device_id="vm",
        device_owner="compute",
        admin_down=True,
    )
    apply(desired, Intent(ports=(full,)))
    config, neighbor = (build(derivation, kind, "p8") for kind in (Kind.PORT, Kind.NEIGHBOR))
    host = HOSTS[1]
    for either in (config, neighbor):
        assert (either.vpc_id, either.mac_address) == ("v1", full.mac_address)
        assert [(ip.subnet_id, ip.ip_address) for ip in either.fixed_ips] == list(full.fixed_ips)
        pairs = [(p.ip_address, p.mac_address) for p in either.allow_address_pairs]
        assert pairs == list(full.allowed_address_pairs)
    assert (config.name, config.device_id, config.device_owner) == ("eight", "vm", "compute")
    assert not config.admin_state_up
    assert [group.id for group in config.security_group_ids] == ["g1", "g2"]
    assert list(neighbor.security_group_ids) == ["g1", "g2"]
    assert tuple(v.ip_address for v in (config.host_info, host)) == (host.ip_address,) * 2
    assert config.host_info.mac_address == host.mac_address
    assert (neighbor.host_ip_address, neighbor.host_mac_address) == host[1:3]
    assert place(derivation, Kind.PORT, "p8") == ("inbox/rack-1", "h2", "v1")
    assert place(derivation, Kind.NEIGHBOR, "p8") == (V1, "", "v1")


def test_a_port_on_no_host_is_nothing_to_anybody(desired: Desired, derivation: Derivation) -> None:
    apply(desired, Intent(dhcps=(Dhcp("d9", "p9"),)))
    for key in (Key(Kind.PORT, "p9"), Key(Kind.NEIGHBOR, "p9"), Key(Kind.DHCP, "d9")):
        assert derivation.build(key) is None


def test_a_dhcp_answer_has_the_addresses_of_its_port(
    desired: Desired, derivation: Derivation
) -> None:
    apply(desired, Intent(dhcps=(Dhcp("d10", "p10", "ten"),)))
    config = build(derivation, Kind.DHCP, "d10")
    assert (config.ipv4_address, config.ipv6_address) == ("10.0.2.10", "fd00:0:0:1::10")
    assert (config.subnet_id, config.port_id, config.port_host_name) == ("s2", "p10", "ten")
    assert config.mac_address == PORTS[3].mac_address
    assert place(derivation, Kind.DHCP, "d10") == ("inbox/rack-1", "h1", "v1")
    assert build(derivation, Kind.DHCP, DHCPS[0].id).ipv6_address == ""


def test_a_host_subscribes_to_the_vpcs_that_it_has_ports_in(derivation: Derivation) -> None:
    config = build(derivation, Kind.SUBSCRIPTION, V2, "h2")
    assert config == goalstate_pb2.NodeSubscribeInfo(
        subscribe_operation=goalstate_pb2.Subscribe,
        topic=TOPICS.of_stream(vpc_stream("v2")),
        stream=V2,
        channel=goalstate_pb2.NodeSubscribeInfo.CHANNEL_PULSAR,
    )
    assert place(derivation, Kind.SUBSCRIPTION, V2, "h2") == ("inbox/rack-1", "h2", "v2")
    assert derivation.build(Key(Kind.SUBSCRIPTION, V2, "h1")) is None
    assert derivation.build(Key(Kind.SUBSCRIPTION, V1, "h3")) is None
    assert derivation.build(Key(Kind.SUBSCRIPTION, V1, "nobody")) is None


def test_a_host_subscribes_to_the_groups_that_it_has_members_of(own: Derivation) -> None:
    stream = str(security_group_stream("g2"))
    assert build(own, Kind.SUBSCRIPTION, stream, "h2").topic == TOPICS.of_stream(
        security_group_stream("g2")
    )
    assert place(own, Kind.SUBSCRIPTION, stream, "h2") == ("inbox/rack-1", "h2", "v1")
    assert own.build(Key(Kind.SUBSCRIPTION, stream, "h1")) is None
    assert own.build(Key(Kind.SUBSCRIPTION, "sg/unknown", "h1")) is None


@pytest.mark.parametrize("kind", STATES_FIELD)
def test_what_is_not_desired_is_not_derived(derivation: Derivation, kind: Kind) -> None:
    assert derivation.build(Key(kind, "unknown")) is None


# --- what a change touches ---


def touched(derivation: Derivation, changes: Changes) -> set[tuple[str, ...]]:
    return {
        (key.kind.name, key.id, *filter(None, [key.host])) for key in derivation.touched(changes)
    }


def test_a_new_name_of_a_port_concerns_its_host_alone(
    desired: Desired, derivation: Derivation
) -> None:
    changes = apply(desired, Intent(ports=(PORTS[0]._replace(name="new"),)))
    assert touched(derivation, changes) == {("PORT", "p7"), ("DHCP", "d1")}


def test_a_moved_port_touches_itself_and_what_both_hosts_follow(
    desired: Desired, derivation: Derivation, own: Derivation
) -> None:
    changes = apply(desired, Intent(ports=(port(7, host_id="h3"),)))
    expected = {
        ("PORT", "p7"),
        ("NEIGHBOR", "p7"),
        ("DHCP", "d1"),
        ("SUBSCRIPTION", V1, "h1"),
        ("SUBSCRIPTION", V1, "h3"),
    }
    assert touched(derivation, changes) == expected
    assert touched(own, changes) == expected | {
        ("SUBSCRIPTION", "sg/g1", "h1"),
        ("SUBSCRIPTION", "sg/g1", "h3"),
    }


def test_a_new_address_of_a_host_touches_its_ports_and_a_new_site_nothing(
    desired: Desired, derivation: Derivation
) -> None:
    changes = apply(desired, Intent(hosts=(HOSTS[1]._replace(site="elsewhere"),)))
    assert touched(derivation, changes) == set()
    changes = apply(desired, Intent(hosts=(HOSTS[1]._replace(ip_address="100.64.0.9"),)))
    assert touched(derivation, changes) == {
        (kind, id_) for kind in ("PORT", "NEIGHBOR") for id_ in ("p8", "q1")
    }


def test_a_new_tunnel_of_a_vpc_touches_its_subnets_and_a_new_name_does_not(
    desired: Desired, derivation: Derivation
) -> None:
    changes = apply(desired, Intent(vpcs=(VPCS[1]._replace(name="new"),)))
    assert touched(derivation, changes) == {("VPC", "v2")}
    changes = apply(desired, Intent(vpcs=(VPCS[1]._replace(tunnel_id=77),)))
    assert touched(derivation, changes) == {("VPC", "v2"), ("SUBNET", "t1")}


def test_the_order_of_what_is_touched_is_that_of_the_changes(
    desired: Desired, derivation: Derivation
) -> None:
    changes = apply(
        desired,
        Intent(ports=(port(21), port(20)), subnets=(SUBNETS[1]._replace(dns=("10.0.0.2",)),)),
    )
    kinds = [key.id for key in derivation.touched(changes) if key.kind is not Kind.SUBSCRIPTION]
    assert kinds == ["s2", "p21", "p21", "p20", "p20"]


# --- the law: what a change does not touch is as it was ---


def all_keys(desired: Desired, own_stream: bool) -> Iterator[Key]:
    """Of everything that may be derived."""
    kinds = {
        K.VPC: (Kind.VPC,),
        K.SUBNET: (Kind.SUBNET,),
        K.SECURITY_GROUP: (Kind.SECURITY_GROUP,),
        K.ROUTER: (Kind.ROUTER,),
        K.GATEWAY: (Kind.GATEWAY,),
        K.PORT: (Kind.PORT, Kind.NEIGHBOR),
        K.DHCP: (Kind.DHCP,),
    }
    for object_kind, derived in kinds.items():
        for object_ in desired.objects(object_kind):
            yield from (Key(kind, object_.id) for kind in derived)
    streams = [vpc_stream(vpc.id) for vpc in desired.objects(K.VPC)]
    if own_stream:
        streams += [security_group_stream(g.id) for g in desired.objects(K.SECURITY_GROUP)]
    for host in desired.objects(K.HOST):
        yield from (Key(Kind.SUBSCRIPTION, str(stream), host.id) for stream in streams)


def everything(desired: Desired, derivation: Derivation, own_stream: bool) -> dict[Key, Derived]:
    built = {key: derivation.build(key) for key in all_keys(desired, own_stream)}
    return {key: derived for key, derived in built.items() if derived is not None}


@settings(max_examples=60)
@given(INTENTS, st.booleans())
def test_only_what_is_touched_differs_after_a_change(
    intents: list[Intent], own_stream: bool
) -> None:
    desired = region()
    derivation = Derivation(desired, TOPICS, security_groups_own_stream=own_stream)
    before = everything(desired, derivation, own_stream)
    for intent in intents:
        try:
            changes = desired.plan(intent)
        except IntentRejected:
            continue
        desired.commit(changes)
        keys = derivation.touched(changes)
        after = everything(desired, derivation, own_stream)
        differs = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert differs <= keys.keys()
        before = after


@settings(max_examples=30)
@given(INTENTS)
def test_what_is_derived_does_not_depend_on_the_way_to_the_state(intents: list[Intent]) -> None:
    desired = region()
    for intent in intents:
        try:
            apply(desired, intent)
        except IntentRejected:
            continue
    fresh = Desired()
    fields: dict[str, Any] = {
        "hosts": K.HOST,
        "vpcs": K.VPC,
        "subnets": K.SUBNET,
        "security_groups": K.SECURITY_GROUP,
        "routers": K.ROUTER,
        "gateways": K.GATEWAY,
        "ports": K.PORT,
        "dhcps": K.DHCP,
    }
    apply(fresh, Intent(**{field: tuple(desired.objects(kind)) for field, kind in fields.items()}))
    one, other = (Derivation(d, TOPICS) for d in (desired, fresh))
    assert everything(desired, one, False) == everything(fresh, other, False)


def test_every_resource_of_a_region_is_on_a_stream_of_its_scope(
    desired: Desired, own: Derivation
) -> None:
    for key, derived in everything(desired, own, True).items():
        scope = {
            StreamKind.INBOX: (Kind.PORT, Kind.DHCP, Kind.SUBSCRIPTION),
            StreamKind.SECURITY_GROUP: (Kind.SECURITY_GROUP,),
        }.get(derived.stream.kind, tuple(STATES_FIELD))
        assert key.kind in scope
        if derived.stream.kind is StreamKind.INBOX:
            assert derived.stream == inbox_stream(desired.get(K.HOST, derived.host).group)
        else:
            assert derived.host == ""


def test_deleting_what_holds_everything_touches_all_of_it(
    desired: Desired, derivation: Derivation
) -> None:
    before = everything(desired, derivation, False)
    changes = apply(desired, Intent(deletes=(Deletion(K.VPC, "v1", True),)))
    of_v1 = {key for key, derived in before.items() if derived.vpc == "v1"}
    assert of_v1 <= derivation.touched(changes).keys()
    assert everything(desired, derivation, False).keys() == before.keys() - of_v1


def test_a_port_may_be_bound_and_unbound(desired: Desired, derivation: Derivation) -> None:
    bound: Port = PORTS[2]._replace(host_id="h3", fixed_ips=(FixedIp("s1", "10.0.1.9"),))
    changes = apply(desired, Intent(ports=(bound,)))
    assert ("SUBSCRIPTION", V1, "h3") in touched(derivation, changes)
    assert place(derivation, Kind.PORT, "p9")[1] == "h3"
    changes = apply(desired, Intent(ports=(PORTS[2],)))
    assert ("SUBSCRIPTION", V1, "h3") in touched(derivation, changes)
    assert derivation.build(Key(Kind.PORT, "p9")) is None
