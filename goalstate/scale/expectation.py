"""What follows from intents, written down kind by kind in the plainest way: for the oracle.

It shares nothing with the publisher but the schema: the intents are merged by their own words (see
intent.proto), and addresses are normalised by the standard library. The intents are taken to have
been accepted; what is none is no business of this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2


class Merged:
    """The objects that stand after some intents."""

    def __init__(self) -> None:
        self.hosts: dict[str, Any] = {}
        self.vpcs: dict[str, Any] = {}
        self.subnets: dict[str, Any] = {}
        self.security_groups: dict[str, Any] = {}
        self.routers: dict[str, Any] = {}
        self.gateways: dict[str, Any] = {}
        self.ports: dict[str, Any] = {}
        self.dhcps: dict[str, Any] = {}

    def merge(self, intent: intent_pb2.Intent) -> None:
        for name, table in vars(self).items():
            for object_ in getattr(intent, name):
                table[object_.id] = object_
        gone = {(_TABLES[d.kind], d.id) for d in intent.deletes}
        cascading = {(_TABLES[d.kind], d.id) for d in intent.deletes if d.cascade}
        reached = set(cascading)
        while cascading:
            # What refers to something gone goes; then what refers to that.
            found = {
                (name, id_)
                for name, table in vars(self).items()
                for id_, object_ in table.items()
                if any(reference in cascading for reference in _references(name, object_))
            }
            # A reached object passes it on, whether or not it was to go anyway.
            cascading = found - reached
            reached |= found
        for name, id_ in gone | reached:
            getattr(self, name).pop(id_, None)


_TABLES: dict[int, str] = {
    intent_pb2.HOST: "hosts",
    intent_pb2.VPC: "vpcs",
    intent_pb2.SUBNET: "subnets",
    intent_pb2.SECURITY_GROUP: "security_groups",
    intent_pb2.ROUTER: "routers",
    intent_pb2.GATEWAY: "gateways",
    intent_pb2.PORT: "ports",
    intent_pb2.DHCP: "dhcps",
}


def _references(name: str, object_: Any) -> Iterator[tuple[str, str]]:
    if name in ("subnets", "security_groups", "routers", "gateways", "ports"):
        yield "vpcs", object_.vpc_id
    if name == "security_groups":
        for rule in object_.rules:
            yield "security_groups", rule.remote_group_id
    elif name == "routers":
        for subnet_id in object_.subnet_ids:
            yield "subnets", subnet_id
    elif name == "ports":
        yield "hosts", object_.host_id
        for fixed in object_.fixed_ips:
            yield "subnets", fixed.subnet_id
        for group_id in object_.security_group_ids:
            yield "security_groups", group_id
    elif name == "dhcps":
        yield "ports", object_.port_id


# --- configurations, kind by kind ---


def _ip(text: str) -> str:
    return str(ip_address(text)) if text else ""


def _block(text: str) -> str:
    return str(ip_network(text)) if text else ""


def _mac(text: str) -> str:
    return text.lower().replace("-", ":")


def vpc_configuration(vpc: Any, gateway_ids: Iterable[str]) -> Any:
    return resources_pb2.VpcConfiguration(
        id=vpc.id,
        update_type=resources_pb2.FULL,
        project_id=vpc.project_id,
        name=vpc.name,
        cidr=_block(vpc.cidr),
        tunnel_id=vpc.tunnel_id,
        gateway_ids=sorted(gateway_ids),
    )


def subnet_configuration(subnet: Any, vpc: Any) -> Any:
    config = resources_pb2.SubnetConfiguration(
        id=subnet.id,
        update_type=resources_pb2.FULL,
        network_type=resources_pb2.VXLAN,
        vpc_id=subnet.vpc_id,
        name=subnet.name,
        cidr=_block(subnet.cidr),
        tunnel_id=subnet.tunnel_id or vpc.tunnel_id,
        dhcp_enable=subnet.dhcp_enable,
        availability_zone=subnet.availability_zone,
    )
    if subnet.gateway_ip:
        config.gateway.ip_address = _ip(subnet.gateway_ip)
        config.gateway.mac_address = _mac(subnet.gateway_mac)
    for name in sorted(subnet.dhcp_options):
        config.extra_dhcp_options.add(name=name, value=subnet.dhcp_options[name])
    for server in subnet.dns:
        config.dns_entry_list.add(entry=_ip(server))
    return config


def group_configuration(group: Any) -> Any:
    config = resources_pb2.SecurityGroupConfiguration(
        id=group.id, update_type=resources_pb2.FULL, vpc_id=group.vpc_id, name=group.name
    )
    for rule in group.rules:
        protocols = {
            intent_pb2.SecurityGroup.ANY: ("TCP", "UDP", "ICMP"),
            intent_pb2.SecurityGroup.TCP: ("TCP",),
            intent_pb2.SecurityGroup.UDP: ("UDP",),
            intent_pb2.SecurityGroup.ICMP: ("ICMP",),
        }[rule.protocol]
        for protocol in protocols:
            config.security_group_rules.add(
                operation_type=resources_pb2.CREATE,
                security_group_id=group.id,
                id=rule.id if len(protocols) == 1 else f"{rule.id}/{protocol.lower()}",
                direction=rule.direction,
                ethertype=rule.ethertype,
                protocol=resources_pb2.Protocol.Value(protocol),
                port_range_min=rule.port_min,
                port_range_max=rule.port_max,
                remote_ip_prefix=_block(rule.remote_ip_prefix),
                remote_group_id=rule.remote_group_id,
            )
    return config


def router_configuration(router: Any) -> Any:
    config = resources_pb2.RouterConfiguration(
        id=router.id,
        update_type=resources_pb2.FULL,
        host_dvr_mac_address=_mac(router.mac_address),
        vpc_id=router.vpc_id,
    )
    for subnet_id in router.subnet_ids:
        table = config.subnet_routing_tables.add(subnet_id=subnet_id)
        for route in router.routes:
            table.routing_rules.add(
                operation_type=resources_pb2.CREATE,
                id=route.id,
                destination=_block(route.destination),
                next_hop_ip=_ip(route.next_hop_ip),
                priority=route.priority,
            )
    return config


def gateway_configuration(gateway: Any) -> Any:
    config = resources_pb2.GatewayConfiguration(
        id=gateway.id, gateway_type=gateway.type, vpc_id=gateway.vpc_id
    )
    for end in gateway.destinations:
        config.destinations.add(ip_address=_ip(end.ip_address), mac_address=_mac(end.mac_address))
    return config


def _located(config: Any, port: Any) -> None:
    """The addresses, which a port and its neighbor have in common."""
    for fixed in port.fixed_ips:
        config.fixed_ips.add(subnet_id=fixed.subnet_id, ip_address=_ip(fixed.ip_address))
    for pair in port.allowed_address_pairs:
        normal = _block if "/" in pair.ip_address else _ip
        config.allow_address_pairs.add(
            ip_address=normal(pair.ip_address), mac_address=_mac(pair.mac_address)
        )


def port_configuration(port: Any, host: Any) -> Any:
    config = resources_pb2.PortConfiguration(
        id=port.id,
        update_type=resources_pb2.FULL,
        vpc_id=port.vpc_id,
        name=port.name,
        device_id=port.device_id,
        device_owner=port.device_owner,
        mac_address=_mac(port.mac_address),
        admin_state_up=not port.admin_down,
    )
    config.host_info.ip_address = _ip(host.ip_address)
    config.host_info.mac_address = _mac(host.mac_address)
    _located(config, port)
    for group_id in port.security_group_ids:
        config.security_group_ids.add(id=group_id)
    return config


def neighbor_configuration(port: Any, host: Any) -> Any:
    config = resources_pb2.NeighborConfiguration(
        id=port.id,
        update_type=resources_pb2.FULL,
        vpc_id=port.vpc_id,
        mac_address=_mac(port.mac_address),
        host_ip_address=_ip(host.ip_address),
        host_mac_address=_mac(host.mac_address),
        security_group_ids=port.security_group_ids,
    )
    _located(config, port)
    return config


def dhcp_configuration(dhcp: Any, port: Any) -> Any:
    addresses = [ip_address(fixed.ip_address) for fixed in port.fixed_ips]
    return resources_pb2.DHCPConfiguration(
        id=dhcp.id,
        update_type=resources_pb2.FULL,
        subnet_id=port.fixed_ips[0].subnet_id,
        mac_address=_mac(port.mac_address),
        ipv4_address=next((str(a) for a in addresses if a.version == 4), ""),
        ipv6_address=next((str(a) for a in addresses if a.version == 6), ""),
        port_host_name=dhcp.host_name,
        port_id=dhcp.port_id,
    )
