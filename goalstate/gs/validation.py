"""Validity of an intent: every rule, judged on the state after the change.

A check reports all that it finds and goes on; what depends on a value that is wrong already is
left out. Each check also brings its objects into normal form (canonical addresses), which is what
the plan then holds. The rules for VPCs and subnets are in `network_validation`, those for ports in
`port_validation`, those on ids and deletions in `after`, those on sizes in `size_validation`.

Where two objects of an intent collide, the later one is blamed. Where an object of the intent
makes one impossible that it does not mention (a VPC whose CIDR shrinks below its subnets), the
object of the intent is blamed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from goalstate.gs import addresses
from goalstate.gs.after import After, Reason, named
from goalstate.gs.errors import Violation
from goalstate.gs.intent import (
    FIELDS,
    Destination,
    Direction,
    EtherType,
    GatewayType,
    ObjectKind,
    Protocol,
    Route,
    Rule,
    SecurityGroup,
)
from goalstate.gs.network_validation import check_subnets, check_vpcs
from goalstate.gs.port_validation import check_ports
from goalstate.gs.size_validation import check_sizes

MAX_PORT = 65535
_FIELD_RANK = {name: rank for rank, name in enumerate((*FIELDS.values(), "deletes"))}
_PATH = re.compile(r"(\w+)\[(\d+)\]")


def validate(after: After) -> None:
    """Check everything, in the order in which objects depend on each other."""
    tunnels: dict[int, tuple[str, str]] = {}
    _check_hosts(after)
    check_vpcs(after, tunnels)
    check_subnets(after, tunnels)
    _check_groups(after)
    _check_routers(after)
    _check_gateways(after)
    check_ports(after)
    _check_dhcps(after)
    check_sizes(after)


def in_field_order(violations: Iterable[Violation]) -> list[Violation]:
    """In the order of the fields of an intent, and of the objects within."""

    def key(violation: Violation) -> tuple[int, int]:
        match = _PATH.match(violation.path)
        return (_FIELD_RANK[match[1]], int(match[2])) if match else (-1, 0)

    return sorted(violations, key=key)


def _check_hosts(after: After) -> None:
    ips: dict[str, int] = {}
    state = after.state
    for index, host in enumerate(after.intent.hosts):
        path = f"hosts[{index}]"
        ip, packed = after.normal(addresses.ip, host.ip_address, f"{path}.ip_address") or (
            host.ip_address,
            None,
        )
        if packed is not None:
            other = after.rival(ObjectKind.HOST, index, ip, ips, state.host_with_ip(ip))
            if other is not None:
                after.violate(
                    f"{path}.ip_address", Reason.DUPLICATE_IP, f"{ip} is taken by host {other}"
                )
        mac = after.normal(addresses.mac, host.mac_address, f"{path}.mac_address")
        after.check_id(host.group, f"{path}.group", "group")
        before = state.get(ObjectKind.HOST, host.id)
        # What a host holds of its ports travels on its group's stream.
        if before is not None and before.group != host.group and state.ports_of_host(host.id):
            after.violate(
                f"{path}.group",
                Reason.HOST_HAS_PORTS,
                f"host {host.id} is in group {before.group} and cannot change it while it has "
                f"ports: {named(f'port {id_}' for id_ in state.ports_of_host(host.id))}",
            )
        normal = host._replace(ip_address=ip, mac_address=mac or host.mac_address)
        after.settle(ObjectKind.HOST, index, normal)


def _check_groups(after: After) -> None:
    for index, group in enumerate(after.intent.security_groups):
        path = f"security_groups[{index}]"
        after.refer(ObjectKind.VPC, group.vpc_id, f"{path}.vpc_id")
        after.keep_vpc(ObjectKind.SECURITY_GROUP, group, path)
        rules = tuple(
            _check_rule(after, group, rule, f"{path}.rules[{i}]")
            for i, rule in enumerate(group.rules)
        )
        _check_rule_ids(after, group, path)
        after.settle(ObjectKind.SECURITY_GROUP, index, group._replace(rules=rules))


def _check_rule(after: After, group: SecurityGroup, rule: Rule, path: str) -> Rule:
    for name, value, kind in (
        ("direction", rule.direction, Direction),
        ("ethertype", rule.ethertype, EtherType),
        ("protocol", rule.protocol, Protocol),
    ):
        after.check_enum(kind, value, f"{path}.{name}")
    for name, value in (("port_min", rule.port_min), ("port_max", rule.port_max)):
        if value > MAX_PORT:
            after.violate(f"{path}.{name}", Reason.OUT_OF_RANGE, f"{value} is over {MAX_PORT}")
    if rule.port_min > rule.port_max:
        after.violate(
            f"{path}.port_min",
            Reason.INVERTED_RANGE,
            f"the range of ports begins at {rule.port_min} and ends at {rule.port_max}",
        )
    if (rule.port_min or rule.port_max) and rule.protocol not in (Protocol.TCP, Protocol.UDP):
        after.violate(
            f"{path}.protocol",
            Reason.PORTS_WITHOUT_PROTOCOL,
            "a range of ports is given, which only TCP and UDP have",
        )
    if rule.remote_ip_prefix and rule.remote_group_id:
        after.violate(
            f"{path}.remote_group_id",
            Reason.CONFLICTING_REMOTES,
            "both a remote group and a remote prefix are given",
        )
    if rule.remote_group_id:
        field = f"{path}.remote_group_id"
        remote = after.refer(ObjectKind.SECURITY_GROUP, rule.remote_group_id, field)
        if remote is not None and remote.vpc_id != group.vpc_id:
            after.violate(
                field,
                Reason.WRONG_VPC,
                f"security group {remote.id} is of VPC {remote.vpc_id}, not of {group.vpc_id}",
            )
    if not rule.remote_ip_prefix:
        return rule
    field = f"{path}.remote_ip_prefix"
    block = after.normal(addresses.prefix, rule.remote_ip_prefix, field)
    if block is None:
        return rule
    if (rule.ethertype == EtherType.IPV6) != (":" in block.text):
        family = "IPV6" if ":" in block.text else "IPV4"
        after.violate(field, Reason.FAMILY_MISMATCH, f"{block.text} needs the ethertype {family}")
    return rule._replace(remote_ip_prefix=block.text)


def _check_rule_ids(after: After, group: SecurityGroup, path: str) -> None:
    seen: dict[str, int] = {}
    for i, rule in enumerate(group.rules):
        _check_member_id(after, seen, rule.id, i, f"{path}.rules")
    for i, rule in enumerate(group.rules):
        # On the wire a rule for any protocol becomes one for each (see `derivation`).
        if rule.protocol == Protocol.ANY:
            for suffix in ("/tcp", "/udp", "/icmp"):
                if rule.id + suffix in seen:
                    after.violate(
                        f"{path}.rules[{seen[rule.id + suffix]}].id",
                        Reason.DUPLICATE_ID,
                        f"{rule.id}{suffix} stands for a part of rules[{i}], which is for ANY",
                    )


def _check_routers(after: After) -> None:
    joined: dict[str, int] = {}
    for index, router in enumerate(after.intent.routers):
        path = f"routers[{index}]"
        after.refer(ObjectKind.VPC, router.vpc_id, f"{path}.vpc_id")
        after.keep_vpc(ObjectKind.ROUTER, router, path)
        mac = after.normal(addresses.mac, router.mac_address, f"{path}.mac_address")
        seen: dict[str, int] = {}
        for i, subnet_id in enumerate(router.subnet_ids):
            field = f"{path}.subnet_ids[{i}]"
            subnet = after.refer(ObjectKind.SUBNET, subnet_id, field)
            if subnet is None:
                continue
            if subnet.vpc_id != router.vpc_id:
                after.violate(
                    field,
                    Reason.WRONG_VPC,
                    f"subnet {subnet_id} is of VPC {subnet.vpc_id}, not of {router.vpc_id}",
                )
            if seen.setdefault(subnet_id, i) != i:
                after.violate(
                    field,
                    Reason.DUPLICATE_REFERENCE,
                    f"subnet {subnet_id} is named already by subnet_ids[{seen[subnet_id]}]",
                )
                continue
            holder = next(iter(after.state.routers_of_subnet(subnet_id)), None)
            other = after.rival(ObjectKind.ROUTER, index, subnet_id, joined, holder)
            if other is not None:
                after.violate(
                    field,
                    Reason.SUBNET_HAS_ROUTER,
                    f"subnet {subnet_id} is joined by router {other}",
                )
        ids: dict[str, int] = {}
        routes = []
        for i, route in enumerate(router.routes):
            _check_member_id(after, ids, route.id, i, f"{path}.routes")
            routes.append(_check_route(after, route, f"{path}.routes[{i}]"))
        normal = router._replace(mac_address=mac or router.mac_address, routes=tuple(routes))
        after.settle(ObjectKind.ROUTER, index, normal)


def _check_route(after: After, route: Route, path: str) -> Route:
    block = after.normal(addresses.prefix, route.destination, f"{path}.destination")
    hop = after.normal(addresses.ip, route.next_hop_ip, f"{path}.next_hop_ip")
    if block is None or hop is None:
        return route
    if len(block.first) != len(hop[1]):
        after.violate(
            f"{path}.next_hop_ip",
            Reason.FAMILY_MISMATCH,
            f"{hop[0]} is no next hop for {block.text}: one is IPv4, the other IPv6",
        )
    return route._replace(destination=block.text, next_hop_ip=hop[0])


def _check_gateways(after: After) -> None:
    for index, gateway in enumerate(after.intent.gateways):
        path = f"gateways[{index}]"
        after.refer(ObjectKind.VPC, gateway.vpc_id, f"{path}.vpc_id")
        after.keep_vpc(ObjectKind.GATEWAY, gateway, path)
        after.check_enum(GatewayType, gateway.type, f"{path}.type")
        destinations = []
        for i, (ip, mac) in enumerate(gateway.destinations):
            field = f"{path}.destinations[{i}]"
            found = after.normal(addresses.ip, ip, f"{field}.ip_address")
            normal_mac = after.normal(addresses.mac, mac, f"{field}.mac_address")
            destinations.append(Destination(found[0] if found else ip, normal_mac or mac))
        normal = gateway._replace(destinations=tuple(destinations))
        after.settle(ObjectKind.GATEWAY, index, normal)


def _check_dhcps(after: After) -> None:
    answered: dict[str, int] = {}
    for index, dhcp in enumerate(after.intent.dhcps):
        path = f"dhcps[{index}].port_id"
        before = after.state.get(ObjectKind.DHCP, dhcp.id)
        if before is not None and before.port_id != dhcp.port_id:
            after.violate(
                path,
                Reason.IMMUTABLE,
                f"DHCP {dhcp.id} is of port {before.port_id}: delete it and give another",
            )
        if after.refer(ObjectKind.PORT, dhcp.port_id, path) is None:
            continue
        holder = next(iter(after.state.dhcps_of_port(dhcp.port_id)), None)
        other = after.rival(ObjectKind.DHCP, index, dhcp.port_id, answered, holder)
        if other is not None:
            after.violate(
                path, Reason.PORT_HAS_DHCP, f"port {dhcp.port_id} is answered by DHCP {other}"
            )


def _check_member_id(after: After, seen: dict[str, int], id_: str, index: int, path: str) -> None:
    """An id that must be unique within its object."""
    after.check_id(id_, f"{path}[{index}].id")
    first = seen.setdefault(id_, index)
    if first != index and id_:
        field = path.rpartition(".")[2]
        after.violate(
            f"{path}[{index}].id",
            Reason.DUPLICATE_ID,
            f"{id_} is the id of {field}[{first}] already",
        )
