"""Intents as protobuf messages, and as YAML or JSON text, and back.

Converting loses nothing: what a message says, valid or not, the tuples say too.
Text that ids repeat thousands of times over (a port's host, VPC, subnet, groups) is interned:
one copy is held, and comparing it is comparing addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from sys import intern
from typing import Any

from goalstate.gs import yaml_message
from goalstate.gs.errors import IntentSyntaxError
from goalstate.gs.intent import (
    AddressPair,
    Deletion,
    Destination,
    Dhcp,
    FixedIp,
    Gateway,
    Host,
    Intent,
    Object,
    Port,
    Route,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

# A named tuple's own constructor is a Python function and takes twice as long.
_new: Any = tuple.__new__


def from_proto(message: intent_pb2.Intent) -> Intent:
    return Intent(
        tuple(map(_host, message.hosts)),
        tuple(map(_vpc, message.vpcs)),
        tuple(map(_subnet, message.subnets)),
        tuple(map(_group, message.security_groups)),
        tuple(map(_router, message.routers)),
        tuple(map(_gateway, message.gateways)),
        ports_from_proto(message.ports),
        tuple([Dhcp(m.id, m.port_id, m.host_name) for m in message.dhcps]),
        tuple([Deletion(m.kind, m.id, m.cascade) for m in message.deletes]),
    )


def to_proto(intent: Intent) -> intent_pb2.Intent:
    message = intent_pb2.Intent()
    for objects in intent[:-1]:
        for object_ in objects:
            add(message, object_)
    for kind, id_, cascade in intent.deletes:
        message.deletes.add(kind=kind, id=id_, cascade=cascade)
    return message


def add(message: intent_pb2.Intent, object_: Object) -> None:
    """Add one object to a message."""
    _ADD[type(object_)](message, object_)


def load(text: str, source_name: str) -> list[Intent]:
    """The intents in a YAML or JSON text: one for each YAML document, in order.

    Keys are the fields of intent.proto. Raises IntentSyntaxError, which names `source_name`, line
    and path, at the first error, and for a text without any intent.
    """
    return [from_proto(message) for message in load_messages(text, source_name)]


def load_messages(text: str, source_name: str) -> list[intent_pb2.Intent]:
    """The same, as messages."""
    messages = yaml_message.parse(text, source_name, intent_pb2.Intent)
    if not messages:
        raise IntentSyntaxError(source_name, 1, "", "there is no intent in it, it is empty")
    return messages


def to_yaml(intent: Intent | intent_pb2.Intent) -> str:
    """One YAML document, which `load` reads back as an equal intent."""
    return yaml_message.dump(to_proto(intent) if isinstance(intent, Intent) else intent)


# --- from messages ---


def _host(m: intent_pb2.Host) -> Host:
    return Host(m.id, m.ip_address, m.mac_address, m.group, m.site)


def _vpc(m: intent_pb2.Vpc) -> Vpc:
    cidrs = tuple(m.secondary_cidrs)
    return Vpc(m.id, m.name, m.project_id, m.cidr, m.tunnel_id, cidrs, m.channel)


def _subnet(m: intent_pb2.Subnet) -> Subnet:
    return Subnet(
        m.id,
        m.vpc_id,
        m.name,
        m.cidr,
        m.gateway_ip,
        m.gateway_mac,
        m.dhcp_enable,
        m.tunnel_id,
        m.availability_zone,
        tuple(m.dns),
        tuple(sorted(m.dhcp_options.items())),
    )


def _group(m: intent_pb2.SecurityGroup) -> SecurityGroup:
    rules = tuple(
        Rule(
            r.id,
            r.direction,
            r.ethertype,
            r.protocol,
            r.port_min,
            r.port_max,
            r.remote_ip_prefix,
            r.remote_group_id,
        )
        for r in m.rules
    )
    return SecurityGroup(m.id, m.vpc_id, m.name, rules)


def _router(m: intent_pb2.Router) -> Router:
    routes = tuple(Route(r.id, r.destination, r.next_hop_ip, r.priority) for r in m.routes)
    return Router(m.id, m.vpc_id, m.name, m.mac_address, tuple(m.subnet_ids), routes)


def _gateway(m: intent_pb2.Gateway) -> Gateway:
    destinations = tuple(Destination(d.ip_address, d.mac_address) for d in m.destinations)
    return Gateway(m.id, m.vpc_id, m.type, destinations)


def ports_from_proto(messages: Iterable[intent_pb2.Port]) -> tuple[Port, ...]:
    new, port_type, once = _new, Port, intern
    ports = []
    for m in messages:
        # Each of these makes a new view, and iterating over it costs an exception at its end;
        # so take the view once, and the common single element without a loop.
        ips, groups, pairs = m.fixed_ips, m.security_group_ids, m.allowed_address_pairs
        fixed_ips: tuple[FixedIp, ...]
        if len(ips) == 1:
            ip = ips[0]
            fixed_ips = (new(FixedIp, (once(ip.subnet_id), ip.ip_address)),)
        else:
            fixed_ips = tuple([FixedIp(once(ip.subnet_id), ip.ip_address) for ip in ips])
        group_ids = (once(groups[0]),) if len(groups) == 1 else tuple([once(g) for g in groups])
        ports.append(
            new(
                port_type,
                (
                    m.id,
                    once(m.vpc_id),
                    m.name,
                    m.mac_address,
                    once(m.host_id),
                    fixed_ips,
                    tuple([AddressPair(p.ip_address, p.mac_address) for p in pairs])
                    if pairs
                    else (),
                    group_ids,
                    m.device_id,
                    m.device_owner,
                    m.admin_down,
                ),
            )
        )
    return tuple(ports)


# --- to messages; enumerations are open, so plain numbers go in ---


def _add_subnet(message: intent_pb2.Intent, subnet: Subnet) -> None:
    fields = subnet._asdict()
    fields["dhcp_options"] = dict(subnet.dhcp_options)
    message.subnets.add(**fields)


def _add_group(message: intent_pb2.Intent, group: SecurityGroup) -> None:
    added = message.security_groups.add(id=group.id, vpc_id=group.vpc_id, name=group.name)
    for rule in group.rules:
        added.rules.add(**rule._asdict())


def _add_router(message: intent_pb2.Intent, router: Router) -> None:
    fields = router._asdict()
    del fields["routes"]
    added = message.routers.add(**fields)
    for route in router.routes:
        added.routes.add(**route._asdict())


def _add_gateway(message: intent_pb2.Intent, gateway: Gateway) -> None:
    kind: Any = gateway.type
    added = message.gateways.add(id=gateway.id, vpc_id=gateway.vpc_id, type=kind)
    for ip, mac in gateway.destinations:
        added.destinations.add(ip_address=ip, mac_address=mac)


def _add_port(message: intent_pb2.Intent, port: Port) -> None:
    added = message.ports.add(
        id=port.id,
        vpc_id=port.vpc_id,
        name=port.name,
        mac_address=port.mac_address,
        host_id=port.host_id,
        security_group_ids=port.security_group_ids,
        device_id=port.device_id,
        device_owner=port.device_owner,
        admin_down=port.admin_down,
    )
    for subnet_id, ip in port.fixed_ips:
        added.fixed_ips.add(subnet_id=subnet_id, ip_address=ip)
    for ip, mac in port.allowed_address_pairs:
        added.allowed_address_pairs.add(ip_address=ip, mac_address=mac)


_ADD: dict[type, Any] = {
    Host: lambda message, host: message.hosts.add(**host._asdict()),
    Vpc: lambda message, vpc: message.vpcs.add(**vpc._asdict()),
    Subnet: _add_subnet,
    SecurityGroup: _add_group,
    Router: _add_router,
    Gateway: _add_gateway,
    Port: _add_port,
    Dhcp: lambda message, dhcp: message.dhcps.add(**dhcp._asdict()),
}
