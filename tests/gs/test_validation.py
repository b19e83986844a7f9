"""Every rule of validity: what is refused, with the path, the reason and the other party."""

from __future__ import annotations

from typing import Any

import pytest

from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import (
    AddressPair,
    Deletion,
    Destination,
    Dhcp,
    FixedIp,
    Gateway,
    Host,
    Intent,
    ObjectKind,
    Port,
    Protocol,
    Route,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from tests.gs.region import HOSTS, SUBNETS, VPCS, port, region, snapshot, violations

MAC = "02:00:00:02:00:01"


def ports(*given: Port) -> Intent:
    return Intent(ports=given)


def a_port(**fields: Any) -> Intent:
    return ports(port(20, **fields))


def at(ip: str, subnet: str = "s1") -> tuple[FixedIp, ...]:
    return (FixedIp(subnet, ip),)


def a_subnet(**fields: Any) -> Intent:
    return Intent(subnets=(Subnet("s9", "v1", cidr="10.0.9.0/24")._replace(**fields),))


def a_rule(**fields: Any) -> Intent:
    rule = Rule("r1")._replace(**fields)
    return Intent(security_groups=(SecurityGroup("g9", "v1", "g9", (rule,)),))


def a_router(**fields: Any) -> Intent:
    return Intent(routers=(Router("x9", "v1", "x9", MAC, ("s2",))._replace(**fields),))


def a_route(destination: str, hop: str) -> Intent:
    return a_router(routes=(Route("a", destination, hop),))


def a_vpc(**fields: Any) -> Intent:
    return Intent(vpcs=(Vpc("v9", cidr="10.0.0.0/8", tunnel_id=9)._replace(**fields),))


def a_host(**fields: Any) -> Intent:
    return Intent(hosts=(Host("h9", "100.64.0.9", MAC, "rack-1")._replace(**fields),))


def deleting(kind: ObjectKind, id_: str, cascade: bool = False, **given: Any) -> Intent:
    return Intent(deletes=(Deletion(kind, id_, cascade),), **given)


H, V, S, G = ObjectKind.HOST, ObjectKind.VPC, ObjectKind.SUBNET, ObjectKind.SECURITY_GROUP
P, D = ObjectKind.PORT, ObjectKind.DHCP

#: Intent, and all of (path, reason, part of the message).
REFUSED: dict[str, tuple[Intent, list[tuple[str, str, str]]]] = {
    # ids
    "no id": (a_port(id=""), [("ports[0].id", "MISSING", "id")]),
    "id too long": (a_port(id="é" * 101), [("ports[0].id", "BAD_ID", "202 bytes")]),
    "control character": (a_port(id="a\nb"), [("ports[0].id", "BAD_ID", "control")]),
    "no Unicode": (a_port(id="a\ud800"), [("ports[0].id", "BAD_ID", "Unicode")]),
    "id twice": (
        ports(port(20), port(21), port(20)),
        [("ports[2].id", "DUPLICATE_ID", "port p20 is given already as ports[0]")],
    ),
    "given and deleted": (
        deleting(P, "p9", ports=(port(9, name="x"),)),
        [("deletes[0].id", "GIVEN_AND_DELETED", "p9")],
    ),
    # deletions
    "delete unknown": (deleting(P, "p99"), [("deletes[0].id", "UNKNOWN_ID", "p99")]),
    "delete nothing": (deleting(P, ""), [("deletes[0].id", "MISSING", "id")]),
    "delete no kind": (
        Intent(deletes=(Deletion(0, "a"), Deletion(77, "a"))),
        [("deletes[0].kind", "MISSING", "kind"), ("deletes[1].kind", "BAD_VALUE", "77")],
    ),
    "delete twice": (
        Intent(deletes=(Deletion(P, "p9"), Deletion(P, "p9", True))),
        [("deletes[1].id", "DUPLICATE_ID", "deletes[0]")],
    ),
    "delete VPC in use": (
        deleting(V, "v2"),
        [("deletes[0].id", "IN_USE", "subnet t1, security group k1, port q1")],
    ),
    "delete VPC in much use": (deleting(V, "v1"), [("deletes[0].id", "IN_USE", "and others")]),
    "delete subnet in use": (deleting(S, "s2"), [("deletes[0].id", "IN_USE", "port p10")]),
    "delete joined subnet": (deleting(S, "s1"), [("deletes[0].id", "IN_USE", "router x1")]),
    "delete group in use": (deleting(G, "g2"), [("deletes[0].id", "IN_USE", "by port p8")]),
    "delete remote group": (
        deleting(G, "g1"),
        [("deletes[0].id", "IN_USE", "port p7, port p8, port p10 and others")],
    ),
    "delete host in use": (deleting(H, "h2"), [("deletes[0].id", "IN_USE", "port p8, port q1")]),
    "delete port in use": (deleting(P, "p7"), [("deletes[0].id", "IN_USE", "DHCP d1")]),
    "refer to deleted": (
        deleting(S, "s2", True, ports=(port(20, fixed_ips=at("10.0.2.20", "s2")),)),
        [("ports[0].fixed_ips[0].subnet_id", "UNKNOWN_REFERENCE", "deleted by deletes[0]")],
    ),
    # hosts
    "host IP": (a_host(ip_address="1.2.3"), [("hosts[0].ip_address", "BAD_IP", "1.2.3")]),
    "host without IP": (a_host(ip_address=""), [("hosts[0].ip_address", "MISSING", "")]),
    "host MAC": (a_host(mac_address="02"), [("hosts[0].mac_address", "BAD_MAC", "02")]),
    "host without group": (a_host(group=""), [("hosts[0].group", "MISSING", "group")]),
    "host group": (a_host(group="a\0"), [("hosts[0].group", "BAD_ID", "group")]),
    "host IP taken": (
        a_host(ip_address="100.64.0.2"),
        [("hosts[0].ip_address", "DUPLICATE_IP", "taken by host h2")],
    ),
    "host IP twice": (
        Intent(hosts=(Host("h8", "100.64.1.1", MAC, "r"), Host("h9", "100.64.1.1", MAC, "r"))),
        [("hosts[1].ip_address", "DUPLICATE_IP", "taken by host h8")],
    ),
    "host with ports changes group": (
        Intent(hosts=(HOSTS[0]._replace(group="rack-2"),)),
        [("hosts[0].group", "HOST_HAS_PORTS", "port p7, port p10")],
    ),
    # VPCs
    "tunnel 0": (a_vpc(tunnel_id=0), [("vpcs[0].tunnel_id", "OUT_OF_RANGE", "0")]),
    "tunnel 2^24": (a_vpc(tunnel_id=1 << 24), [("vpcs[0].tunnel_id", "OUT_OF_RANGE", "")]),
    "tunnel taken": (
        a_vpc(tunnel_id=2),
        [("vpcs[0].tunnel_id", "DUPLICATE_TUNNEL_ID", "used by VPC v2")],
    ),
    "tunnel taken by subnet": (
        a_vpc(tunnel_id=12),
        [("vpcs[0].tunnel_id", "DUPLICATE_TUNNEL_ID", "used by subnet s2 of VPC v1")],
    ),
    "tunnel twice": (
        Intent(vpcs=(Vpc("v8", cidr="10.0.0.0/8", tunnel_id=8), Vpc("v9", "", "", "::/0", 8))),
        [("vpcs[1].tunnel_id", "DUPLICATE_TUNNEL_ID", "used by VPC v8")],
    ),
    "VPC host bits": (
        a_vpc(cidr="10.0.0.1/8"),
        [("vpcs[0].cidr", "BAD_CIDR", "its network is 10.0.0.0/8")],
    ),
    "VPC secondary": (
        a_vpc(secondary_cidrs=("fd00::/200",)),
        [("vpcs[0].secondary_cidrs[0]", "BAD_CIDR", "0 to 128")],
    ),
    "VPC without CIDR": (a_vpc(cidr=""), [("vpcs[0].cidr", "MISSING", "")]),
    "VPC shrinks below subnets": (
        Intent(vpcs=(VPCS[0]._replace(cidr="10.0.1.0/24"),)),
        [("vpcs[0].cidr", "OUTSIDE_VPC", "subnet s2 (10.0.2.0/24)")],
    ),
    "VPC loses a block": (
        Intent(vpcs=(VPCS[0]._replace(secondary_cidrs=()),)),
        [("vpcs[0].cidr", "OUTSIDE_VPC", "subnet s6")],
    ),
    # subnets
    "subnet without VPC": (a_subnet(vpc_id=""), [("subnets[0].vpc_id", "MISSING", "VPC")]),
    "subnet of unknown VPC": (
        a_subnet(vpc_id="v9"),
        [("subnets[0].vpc_id", "UNKNOWN_REFERENCE", "there is no VPC v9")],
    ),
    "subnet changes VPC": (
        Intent(subnets=(Subnet("t1", "v1", cidr="10.0.7.0/24"),)),
        [
            ("subnets[0].vpc_id", "IMMUTABLE", "of VPC v2"),
            ("subnets[0].cidr", "OUTSIDE_SUBNET", "port q1 (10.0.1.7)"),
        ],
    ),
    "subnet outside VPC": (
        a_subnet(cidr="10.1.0.0/24"),
        [("subnets[0].cidr", "OUTSIDE_VPC", "10.0.0.0/16, fd00::/48 of VPC v1")],
    ),
    "subnet wider than VPC": (
        a_subnet(cidr="fd00::/40"),
        [
            ("subnets[0].cidr", "OUTSIDE_VPC", "fd00::/40"),
            ("subnets[0].cidr", "OVERLAPPING_SUBNETS", "s6"),
        ],
    ),
    "subnet CIDR": (a_subnet(cidr="10.0.9.0"), [("subnets[0].cidr", "BAD_CIDR", "length")]),
    "subnet CIDR digits": (a_subnet(cidr="10.0.9.0/٢٤"), [("subnets[0].cidr", "BAD_CIDR", "")]),
    "subnet CIDR address": (a_subnet(cidr="10.0.9/24"), [("subnets[0].cidr", "BAD_CIDR", "")]),
    "subnet within another": (
        a_subnet(cidr="10.0.1.128/25"),
        [("subnets[0].cidr", "OVERLAPPING_SUBNETS", "overlaps subnet s1 (10.0.1.0/24) of VPC v1")],
    ),
    "subnet around others": (
        a_subnet(cidr="10.0.0.0/22"),
        [
            ("subnets[0].cidr", "OVERLAPPING_SUBNETS", "s1"),
            ("subnets[0].cidr", "OVERLAPPING_SUBNETS", "s2"),
        ],
    ),
    "subnets overlap each other": (
        Intent(
            subnets=(
                Subnet("a", "v1", cidr="10.0.8.128/25"),
                Subnet("b", "v1", cidr="10.0.8.0/24"),
                Subnet("c", "v1", cidr="10.0.8.0/26"),
            )
        ),
        [
            ("subnets[1].cidr", "OVERLAPPING_SUBNETS", "subnet a"),
            ("subnets[2].cidr", "OVERLAPPING_SUBNETS", "subnet b"),
        ],
    ),
    "subnet gateway outside": (
        a_subnet(gateway_ip="10.0.8.1"),
        [("subnets[0].gateway_ip", "OUTSIDE_SUBNET", "10.0.9.0/24")],
    ),
    "subnet gateway of other family": (
        a_subnet(gateway_ip="fd00::1"),
        [("subnets[0].gateway_ip", "OUTSIDE_SUBNET", "")],
    ),
    "subnet gateway is broadcast": (
        a_subnet(gateway_ip="10.0.9.255"),
        [("subnets[0].gateway_ip", "RESERVED_IP", "10.0.9.255")],
    ),
    "subnet gateway IP": (a_subnet(gateway_ip="x"), [("subnets[0].gateway_ip", "BAD_IP", "x")]),
    "subnet gateway MAC": (
        a_subnet(gateway_ip="10.0.9.1", gateway_mac="01:00:00:00:00:01"),
        [("subnets[0].gateway_mac", "BAD_MAC", "group")],
    ),
    "subnet gateway MAC alone": (
        a_subnet(gateway_mac=MAC),
        [("subnets[0].gateway_ip", "MISSING", "")],
    ),
    "subnet gateway taken": (
        Intent(subnets=(SUBNETS[0]._replace(gateway_ip="10.0.1.7"),)),
        [("subnets[0].gateway_ip", "DUPLICATE_IP", "taken by port p7")],
    ),
    "subnet tunnel": (
        a_subnet(tunnel_id=1 << 24),
        [("subnets[0].tunnel_id", "OUT_OF_RANGE", "")],
    ),
    "subnet tunnel of other VPC": (
        a_subnet(tunnel_id=2),
        [("subnets[0].tunnel_id", "DUPLICATE_TUNNEL_ID", "VPC v2")],
    ),
    "subnet name server": (a_subnet(dns=("ns",)), [("subnets[0].dns[0]", "BAD_IP", "ns")]),
    "subnet option": (
        a_subnet(dhcp_options=(("", "x"),)),
        [("subnets[0].dhcp_options", "MISSING", "name")],
    ),
    "subnet shrinks below ports": (
        Intent(subnets=(SUBNETS[0]._replace(cidr="10.0.1.0/29"),)),
        [("subnets[0].cidr", "OUTSIDE_SUBNET", "port p7 (10.0.1.7), port p8 (10.0.1.8)")],
    ),
    # ports
    "port without VPC": (
        a_port(vpc_id="", fixed_ips=(), security_group_ids=(), host_id=""),
        [("ports[0].vpc_id", "MISSING", "VPC")],
    ),
    "port of unknown VPC": (
        a_port(vpc_id="v9", fixed_ips=(), security_group_ids=(), host_id=""),
        [("ports[0].vpc_id", "UNKNOWN_REFERENCE", "v9")],
    ),
    "port changes VPC": (
        ports(Port("p9", "v2", mac_address=MAC)),
        [("ports[0].vpc_id", "IMMUTABLE", "of VPC v1")],
    ),
    "port MAC": (a_port(mac_address="zz"), [("ports[0].mac_address", "BAD_MAC", "zz")]),
    "port without MAC": (a_port(mac_address=""), [("ports[0].mac_address", "MISSING", "")]),
    "port zero MAC": (
        a_port(mac_address="00:00:00:00:00:00"),
        [("ports[0].mac_address", "BAD_MAC", "no interface's")],
    ),
    "port group MAC": (
        a_port(mac_address="33:33:00:00:00:01"),
        [("ports[0].mac_address", "BAD_MAC", "group")],
    ),
    "port MAC taken": (
        a_port(mac_address="02-00-00-01-00-07"),
        [("ports[0].mac_address", "DUPLICATE_MAC", "02:00:00:01:00:07 is taken by port p7")],
    ),
    "port MAC twice": (
        ports(port(20, mac_address=MAC), port(21, mac_address=MAC.upper())),
        [("ports[1].mac_address", "DUPLICATE_MAC", "port p20")],
    ),
    "port on unknown host": (
        a_port(host_id="h9"),
        [("ports[0].host_id", "UNKNOWN_REFERENCE", "there is no host h9")],
    ),
    "bound port without IP": (a_port(fixed_ips=()), [("ports[0].fixed_ips", "MISSING", "h1")]),
    "unknown subnet": (
        a_port(fixed_ips=at("10.0.9.9", "s9")),
        [("ports[0].fixed_ips[0].subnet_id", "UNKNOWN_REFERENCE", "s9")],
    ),
    "no subnet": (
        a_port(fixed_ips=at("10.0.1.20", "")),
        [("ports[0].fixed_ips[0].subnet_id", "MISSING", "")],
    ),
    "subnet of other VPC": (
        a_port(fixed_ips=at("10.0.1.20", "t1")),
        [("ports[0].fixed_ips[0].subnet_id", "WRONG_VPC", "t1 is of VPC v2, not of v1")],
    ),
    "port IP": (
        a_port(fixed_ips=at("10.0.1.020")),
        [("ports[0].fixed_ips[0].ip_address", "BAD_IP", "10.0.1.020")],
    ),
    "port IP with NUL": (
        a_port(fixed_ips=at("10.0.1.20\0")),
        [("ports[0].fixed_ips[0].ip_address", "BAD_IP", "")],
    ),
    "port IPv6": (
        a_port(fixed_ips=at("fd00::1::2", "s6")),
        [("ports[0].fixed_ips[0].ip_address", "BAD_IP", "")],
    ),
    "port empty IP": (
        a_port(fixed_ips=at("")),
        [("ports[0].fixed_ips[0].ip_address", "MISSING", "")],
    ),
    "port IP outside": (
        a_port(fixed_ips=at("10.0.2.20")),
        [("ports[0].fixed_ips[0].ip_address", "OUTSIDE_SUBNET", "10.0.1.0/24")],
    ),
    "port IP of other family": (
        a_port(fixed_ips=at("10.0.1.20", "s6")),
        [("ports[0].fixed_ips[0].ip_address", "OUTSIDE_SUBNET", "")],
    ),
    "port IP is network": (
        a_port(fixed_ips=at("10.0.1.0")),
        [("ports[0].fixed_ips[0].ip_address", "RESERVED_IP", "")],
    ),
    "port IP is broadcast": (
        a_port(fixed_ips=at("10.0.1.255")),
        [("ports[0].fixed_ips[0].ip_address", "RESERVED_IP", "")],
    ),
    "port IP taken": (
        a_port(fixed_ips=at("10.0.1.7")),
        [("ports[0].fixed_ips[0].ip_address", "DUPLICATE_IP", "10.0.1.7 is taken by port p7")],
    ),
    "port IPv6 taken": (
        a_port(fixed_ips=at("FD00:0:0:1:0:0:0:10", "s6")),
        [("ports[0].fixed_ips[0].ip_address", "DUPLICATE_IP", "taken by port p10")],
    ),
    "port IP is gateway": (
        a_port(fixed_ips=at("10.0.1.1")),
        [("ports[0].fixed_ips[0].ip_address", "DUPLICATE_IP", "gateway of subnet s1")],
    ),
    "port IP twice in intent": (
        ports(port(20), port(21, fixed_ips=at("10.0.1.20"))),
        [("ports[1].fixed_ips[0].ip_address", "DUPLICATE_IP", "port p20")],
    ),
    "port IP twice in port": (
        a_port(fixed_ips=at("10.0.1.20") * 2),
        [("ports[0].fixed_ips[1].ip_address", "DUPLICATE_IP", "fixed_ips[0]")],
    ),
    "address pair": (
        a_port(allowed_address_pairs=(AddressPair("x"), AddressPair("10.0.0.1/8", "y"))),
        [
            ("ports[0].allowed_address_pairs[0].ip_address", "BAD_IP", "x"),
            ("ports[0].allowed_address_pairs[1].ip_address", "BAD_CIDR", "host bits"),
            ("ports[0].allowed_address_pairs[1].mac_address", "BAD_MAC", "y"),
        ],
    ),
    "empty address pair": (
        a_port(allowed_address_pairs=(AddressPair(""),)),
        [("ports[0].allowed_address_pairs[0].ip_address", "MISSING", "")],
    ),
    "unknown group": (
        a_port(security_group_ids=("g9",)),
        [("ports[0].security_group_ids[0]", "UNKNOWN_REFERENCE", "g9")],
    ),
    "group of other VPC": (
        a_port(security_group_ids=("g1", "k1")),
        [("ports[0].security_group_ids[1]", "WRONG_VPC", "k1 is of VPC v2")],
    ),
    "group twice": (
        a_port(security_group_ids=("g1", "g1")),
        [("ports[0].security_group_ids[1]", "DUPLICATE_REFERENCE", "security_group_ids[0]")],
    ),
    # security groups
    "group changes VPC": (
        Intent(security_groups=(SecurityGroup("k1", "v1"),)),
        [("security_groups[0].vpc_id", "IMMUTABLE", "v2")],
    ),
    "group of unknown VPC": (
        Intent(security_groups=(SecurityGroup("g9", "v9"),)),
        [("security_groups[0].vpc_id", "UNKNOWN_REFERENCE", "v9")],
    ),
    "two remotes": (
        a_rule(remote_ip_prefix="10.0.0.0/8", remote_group_id="g1"),
        [("security_groups[0].rules[0].remote_group_id", "CONFLICTING_REMOTES", "")],
    ),
    "rule prefix": (
        a_rule(remote_ip_prefix="10.0.0.0"),
        [("security_groups[0].rules[0].remote_ip_prefix", "BAD_CIDR", "length")],
    ),
    "rule family": (
        a_rule(remote_ip_prefix="fd00::/8"),
        [("security_groups[0].rules[0].remote_ip_prefix", "FAMILY_MISMATCH", "IPV6")],
    ),
    "rule inverted": (
        a_rule(protocol=Protocol.TCP, port_min=2, port_max=1),
        [("security_groups[0].rules[0].port_min", "INVERTED_RANGE", "2")],
    ),
    "rule port": (
        a_rule(protocol=Protocol.UDP, port_min=70000, port_max=70000),
        [
            ("security_groups[0].rules[0].port_min", "OUT_OF_RANGE", "65535"),
            ("security_groups[0].rules[0].port_max", "OUT_OF_RANGE", "65535"),
        ],
    ),
    "rule ports of ICMP": (
        a_rule(protocol=Protocol.ICMP, port_max=5),
        [("security_groups[0].rules[0].protocol", "PORTS_WITHOUT_PROTOCOL", "")],
    ),
    "rule enums": (
        a_rule(direction=5, ethertype=6, protocol=7),
        [
            ("security_groups[0].rules[0].direction", "BAD_VALUE", "INGRESS"),
            ("security_groups[0].rules[0].ethertype", "BAD_VALUE", "IPV6"),
            ("security_groups[0].rules[0].protocol", "BAD_VALUE", "ICMP"),
        ],
    ),
    "rule remote unknown": (
        a_rule(remote_group_id="g8"),
        [("security_groups[0].rules[0].remote_group_id", "UNKNOWN_REFERENCE", "g8")],
    ),
    "rule remote elsewhere": (
        a_rule(remote_group_id="k1"),
        [("security_groups[0].rules[0].remote_group_id", "WRONG_VPC", "v2")],
    ),
    "rule id": (a_rule(id=""), [("security_groups[0].rules[0].id", "MISSING", "")]),
    "rule id twice": (
        Intent(security_groups=(SecurityGroup("g9", "v1", "", (Rule("a", 1), Rule("a"))),)),
        [("security_groups[0].rules[1].id", "DUPLICATE_ID", "rules[0]")],
    ),
    "rule id of a part": (
        Intent(security_groups=(SecurityGroup("g9", "v1", "", (Rule("a"), Rule("a/udp"))),)),
        [("security_groups[0].rules[1].id", "DUPLICATE_ID", "rules[0]")],
    ),
    # routers
    "router of unknown VPC": (
        a_router(vpc_id="v9", subnet_ids=()),
        [("routers[0].vpc_id", "UNKNOWN_REFERENCE", "v9")],
    ),
    "router changes VPC": (
        a_router(id="x1", vpc_id="v2", subnet_ids=()),
        [("routers[0].vpc_id", "IMMUTABLE", "v1")],
    ),
    "router MAC": (a_router(mac_address="q"), [("routers[0].mac_address", "BAD_MAC", "q")]),
    "router unknown subnet": (
        a_router(subnet_ids=("s9",)),
        [("routers[0].subnet_ids[0]", "UNKNOWN_REFERENCE", "s9")],
    ),
    "router subnet elsewhere": (
        a_router(subnet_ids=("t1",)),
        [("routers[0].subnet_ids[0]", "WRONG_VPC", "t1")],
    ),
    "router subnet twice": (
        a_router(subnet_ids=("s2", "s2")),
        [("routers[0].subnet_ids[1]", "DUPLICATE_REFERENCE", "subnet_ids[0]")],
    ),
    "router subnet joined": (
        a_router(subnet_ids=("s1",)),
        [("routers[0].subnet_ids[0]", "SUBNET_HAS_ROUTER", "router x1")],
    ),
    "routers in one subnet": (
        Intent(routers=(Router("a", "v1", "", MAC, ("s2",)), Router("b", "v1", "", MAC, ("s2",)))),
        [("routers[1].subnet_ids[0]", "SUBNET_HAS_ROUTER", "router a")],
    ),
    "route destination": (
        a_route("10.0.0.1", "10.0.2.1"),
        [("routers[0].routes[0].destination", "BAD_CIDR", "")],
    ),
    "route hop": (
        a_route("0.0.0.0/0", "gw"),
        [("routers[0].routes[0].next_hop_ip", "BAD_IP", "gw")],
    ),
    "route family": (
        a_route("::/0", "10.0.2.1"),
        [("routers[0].routes[0].next_hop_ip", "FAMILY_MISMATCH", "::/0")],
    ),
    "route id twice": (
        a_router(routes=(Route("a", "0.0.0.0/0", "10.0.2.1"), Route("a", "::/0", "::1"))),
        [("routers[0].routes[1].id", "DUPLICATE_ID", "routes[0]")],
    ),
    # gateways
    "gateway of unknown VPC": (
        Intent(gateways=(Gateway("y9", "v9"),)),
        [("gateways[0].vpc_id", "UNKNOWN_REFERENCE", "v9")],
    ),
    "gateway changes VPC": (
        Intent(gateways=(Gateway("y1", "v2"),)),
        [("gateways[0].vpc_id", "IMMUTABLE", "v1")],
    ),
    "gateway type": (
        Intent(gateways=(Gateway("y9", "v1", 66),)),
        [("gateways[0].type", "BAD_VALUE", "IGW")],
    ),
    "gateway destination": (
        Intent(gateways=(Gateway("y9", "v1", 0, (Destination("x", "y"),)),)),
        [
            ("gateways[0].destinations[0].ip_address", "BAD_IP", "x"),
            ("gateways[0].destinations[0].mac_address", "BAD_MAC", "y"),
        ],
    ),
    # DHCP
    "DHCP of unknown port": (
        Intent(dhcps=(Dhcp("d9", "p99"),)),
        [("dhcps[0].port_id", "UNKNOWN_REFERENCE", "p99")],
    ),
    "DHCP of answered port": (
        Intent(dhcps=(Dhcp("d9", "p7"),)),
        [("dhcps[0].port_id", "PORT_HAS_DHCP", "DHCP d1")],
    ),
    "DHCP twice": (
        Intent(dhcps=(Dhcp("d8", "p8"), Dhcp("d9", "p8"))),
        [("dhcps[1].port_id", "PORT_HAS_DHCP", "DHCP d8")],
    ),
    "DHCP changes port": (
        Intent(dhcps=(Dhcp("d1", "p8"),)),
        [("dhcps[0].port_id", "IMMUTABLE", "port p7")],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_and_changes_nothing(name: str) -> None:
    intent, expected = REFUSED[name]
    desired = region()
    before = snapshot(desired)
    found = violations(desired, intent)
    assert [(v.path, v.reason) for v in found] == [(path, reason) for path, reason, _ in expected]
    for violation, (_, _, part) in zip(found, expected, strict=True):
        assert part in violation.message
    assert snapshot(desired) == before


def test_all_violations_are_named_in_the_order_of_the_fields() -> None:
    intent = Intent(
        hosts=a_host(ip_address="x").hosts,
        subnets=a_subnet(cidr="y").subnets,
        ports=(port(20, host_id="h8"), port(21, mac_address="z"), port(20)),
        deletes=(Deletion(P, "p99"),),
    )
    desired = region()
    with pytest.raises(IntentRejected) as caught:
        desired.plan(intent)
    assert [v.path for v in caught.value.violations] == [
        "hosts[0].ip_address",
        "subnets[0].cidr",
        "ports[0].host_id",
        "ports[1].mac_address",
        "ports[2].id",
        "deletes[0].id",
    ]
    assert "hosts[0].ip_address" in str(caught.value)
    assert "5 more" in str(caught.value)


def test_a_subnet_that_is_wrong_itself_does_not_blame_its_ports() -> None:
    intent = Intent(
        subnets=a_subnet(cidr="10.0.9.0/33").subnets,
        ports=(port(20, fixed_ips=at("10.0.9.20", "s9")),),
    )
    assert [v.path for v in violations(region(), intent)] == ["subnets[0].cidr"]


def test_a_port_of_a_wrong_id_is_a_rival_all_the_same() -> None:
    intent = ports(port(20, id=""), port(20, id="", mac_address=MAC))
    assert [v.reason for v in violations(region(), intent)] == [
        "MISSING",
        "MISSING",
        "DUPLICATE_IP",
    ]
