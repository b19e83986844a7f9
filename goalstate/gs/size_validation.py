"""How large an object may be: what it becomes must fit into one message.

A resource is not divided. One that no broker takes would stop its stream for good, after its intent
was accepted; so it is refused before. What is computed here is an upper bound of the resource's
payload (see `derivation`), from lengths alone. Ids and addresses are valid where it matters, so
their lengths are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from goalstate.gs.after import MAX_ID_BYTES, After, Reason
from goalstate.gs.intent import (
    FIELDS,
    Dhcp,
    Gateway,
    ObjectKind,
    Port,
    Protocol,
    Router,
    SecurityGroup,
    Subnet,
)

#: The largest payload of a resource, in bytes. Every broker takes twice as much in one message.
MAX_RESOURCE_BYTES = 2 * 1024 * 1024

#: Bytes of an id with its tags and lengths, of the same with a few small fields, of an address.
_ID = MAX_ID_BYTES + 8
_ITEM = 64
_ADDRESS = 64
#: Bytes of everything about a resource that has a fixed size, its own ids included.
_HEAD = 4 * _ID + 256
#: A port below both is small; nearly all are.
_SMALL_TEXT = 4096
_SMALL_COUNT = 64


def check_sizes(after: After) -> None:
    """Report every object that is too large."""
    for index, port in enumerate(after.intent.ports):
        texts = len(port.name) + len(port.device_id) + len(port.device_owner)
        count = len(port.fixed_ips) + len(port.allowed_address_pairs) + len(port.security_group_ids)
        if texts > _SMALL_TEXT or count > _SMALL_COUNT:
            _check(after, ObjectKind.PORT, f"ports[{index}]", port.id, _port(port))
    _check_vpcs(after)
    for kind, bound in _BOUNDS.items():
        field = FIELDS[kind]
        for index, object_ in enumerate(getattr(after.intent, field)):
            _check(after, kind, f"{field}[{index}]", object_.id, bound(object_))


def _check(after: After, kind: ObjectKind, path: str, id_: str, size: int) -> None:
    if size > MAX_RESOURCE_BYTES:
        after.violate(
            path,
            Reason.TOO_LARGE,
            f"{kind.word} {id_} may become {size} bytes, and {MAX_RESOURCE_BYTES} are allowed",
        )


def _check_vpcs(after: After) -> None:
    """A VPC names its gateways, so each of these makes it larger too."""
    added: dict[str, int] = {}
    paths = {vpc.id: f"vpcs[{index}]" for index, vpc in enumerate(after.intent.vpcs)}
    for index, gateway in enumerate(after.intent.gateways):
        if after.state.get(ObjectKind.GATEWAY, gateway.id) is None:
            added[gateway.vpc_id] = added.get(gateway.vpc_id, 0) + 1
        paths[gateway.vpc_id] = f"gateways[{index}].vpc_id"
    for vpc_id, path in paths.items():
        vpc = after.get(ObjectKind.VPC, vpc_id)
        if vpc is not None:
            gateways = len(after.state.gateways_of_vpc(vpc_id)) + added.get(vpc_id, 0)
            size = _HEAD + _text(vpc.name, vpc.project_id) + gateways * _ID
            _check(after, ObjectKind.VPC, path, vpc_id, size)


# --- upper bounds of payloads, in bytes ---


def _text(*texts: str) -> int:
    return sum(len(text) if text.isascii() else 4 * len(text) for text in texts)


def _port(port: Port) -> int:
    return (
        _HEAD
        + _text(port.name, port.device_id, port.device_owner)
        + len(port.fixed_ips) * (_ID + _ADDRESS)
        + len(port.allowed_address_pairs) * 2 * _ADDRESS
        + len(port.security_group_ids) * (_ID + 8)
    )


def _subnet(subnet: Subnet) -> int:
    return (
        _HEAD
        + 2 * _ADDRESS
        + _text(subnet.name, subnet.availability_zone)
        + sum(_text(name, value) + 16 for name, value in subnet.dhcp_options)
        + len(subnet.dns) * _ADDRESS
    )


def _group(group: SecurityGroup) -> int:
    return (
        _HEAD
        + _text(group.name)
        + sum(
            (3 if rule.protocol == Protocol.ANY else 1)
            * (_text(rule.id, group.id, rule.remote_ip_prefix, rule.remote_group_id) + _ITEM)
            for rule in group.rules
        )
    )


def _router(router: Router) -> int:
    """Each of its subnets has all of its routes."""
    routes = sum(
        _text(route.id, route.destination, route.next_hop_ip) + _ITEM for route in router.routes
    )
    return _HEAD + len(router.subnet_ids) * (_ID + 16 + routes)


def _gateway(gateway: Gateway) -> int:
    return _HEAD + len(gateway.destinations) * 2 * _ADDRESS


def _dhcp(dhcp: Dhcp) -> int:
    return _HEAD + _text(dhcp.host_name)


_BOUNDS: dict[ObjectKind, Callable[[Any], int]] = {
    ObjectKind.SUBNET: _subnet,
    ObjectKind.SECURITY_GROUP: _group,
    ObjectKind.ROUTER: _router,
    ObjectKind.GATEWAY: _gateway,
    ObjectKind.DHCP: _dhcp,
}
