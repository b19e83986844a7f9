"""Would a packet be delivered by what the hosts hold now? Pure: held state in, findings out.

The packet is followed as a data plane would carry it: out of its source port (is the port there,
may it use that address, do its groups' egress rules let it go), along its path (same subnet, or a
router that joins both; a longer static route wins over the subnet it lies in), over the tunnel that
the source host's neighbor entry names, and into the destination port (is it on the host at that
address, do its groups' ingress rules let it in). Only what the two hosts hold counts; intent is
used for nothing but the addresses that the two ends believe to have.

A step that fails does not end the walk where later steps can still be judged: all that is wrong is
named at once. Port ranges of ICMP rules (types) are not judged. Of routes of the same length the
one with the smallest priority number is taken.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from goalstate.cli.held import Held
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import Kind

PROTOCOLS: dict[str, int] = {
    "tcp": resources_pb2.TCP,
    "udp": resources_pb2.UDP,
    "icmp": resources_pb2.ICMP,
}
_RULES = resources_pb2.SecurityGroupConfiguration
_IPV6 = 6


class Finding(StrEnum):
    OK = "ok"
    MISSING = "missing"  # the host does not hold the resource
    WRONG = "wrong"  # it holds another state of it than the packet needs
    DENIED = "denied"  # rules or a switched-off port stop the packet
    UNKNOWN = "unknown"  # the host cannot say


class Verdict(StrEnum):
    DELIVERED = "delivered"
    NOT_DELIVERED = "not delivered"
    UNKNOWN = "unknown"


class Step(NamedTuple):
    """One thing that was looked at: `resource` (kind/id) on `host`."""

    host: str
    resource: str
    finding: Finding
    text: str


class End(NamedTuple):
    """One end of the packet: a port, and the address that it uses."""

    port_id: str
    subnet_id: str
    ip: str


class Packet(NamedTuple):
    vpc_id: str
    source: End
    destination: End
    #: "tcp", "udp" or "icmp".
    protocol: str
    #: Destination port of TCP or UDP; 0 for ICMP.
    dport: int = 0

    @property
    def what(self) -> str:
        return f"{self.protocol} {self.dport}" if self.dport else self.protocol


class Departure(NamedTuple):
    """How the packet leaves its host; empty where it does not."""

    steps: list[Step]
    #: Underlay address of the host that it goes to; "" if there is none.
    host_ip: str = ""
    #: True: it stays on its host.
    local: bool = False
    #: Virtual network that it travels in; 0 if unknown.
    tunnel_id: int = 0
    #: MAC address that its frame has at the other end.
    mac_address: str = ""


def verdict(steps: Sequence[Step]) -> Verdict:
    """Not delivered if a step failed; unknown if none failed and one is unknown."""
    findings = {step.finding for step in steps}
    if findings <= {Finding.OK}:
        return Verdict.DELIVERED
    return Verdict.UNKNOWN if findings <= {Finding.OK, Finding.UNKNOWN} else Verdict.NOT_DELIVERED


def choose_ends(
    source: tuple[str, Sequence[tuple[str, str]]],
    destination: tuple[str, Sequence[tuple[str, str]]],
    version: int | None = None,
) -> tuple[End, End] | None:
    """Addresses that two ports would talk over, each given as (port id, [(subnet id, IP)]).

    Two in one subnet come first, then the first two of one IP version (`version`: only that one).
    None if there are no such two.
    """
    pairs = [
        (End(source[0], *mine), End(destination[0], *other))
        for mine in source[1]
        for other in destination[1]
        if (of := ipaddress.ip_address(mine[1]).version) == ipaddress.ip_address(other[1]).version
        and version in (None, of)
    ]
    pairs.sort(key=lambda pair: pair[0].subnet_id != pair[1].subnet_id)
    return pairs[0] if pairs else None


def leave(packet: Packet, held: Held) -> Departure:
    """The packet on the host of its source port."""
    steps = [*_at_port(packet.source, held), *_network(packet, packet.source, held)]
    port = held.get(Kind.PORT, packet.source.port_id)
    if port is not None:
        steps.append(_filtered(packet, port, held, egress=True))
    path, reached = _path(packet, held)
    steps += path
    if not reached:
        return Departure(steps)
    subnet = held.get(Kind.SUBNET, packet.destination.subnet_id)
    tunnel_id = subnet.tunnel_id if subnet is not None else 0
    local = held.get(Kind.PORT, packet.destination.port_id)
    if local is not None and packet.destination.ip in _addresses(local):
        steps.append(Step(held.host, _port(packet.destination), Finding.OK, "is on the same host"))
        return Departure(steps, "", True, tunnel_id, local.mac_address)
    step, neighbor = _neighbor(packet, held)
    steps.append(step)
    if neighbor is None:
        return Departure(steps)
    mac = _addresses(neighbor)[packet.destination.ip]
    return Departure(steps, neighbor.host_ip_address, False, tunnel_id, mac)


def arrive(packet: Packet, departure: Departure, held: Held) -> list[Step]:
    """The packet on the host that it was sent to."""
    end = packet.destination
    steps = [*_at_port(end, held)]
    if not departure.local:
        steps += _network(packet, end, held)
        subnet = held.get(Kind.SUBNET, end.subnet_id)
        if subnet is not None and departure.tunnel_id not in (0, subnet.tunnel_id):
            text = f"has tunnel id {subnet.tunnel_id}, the packet comes in {departure.tunnel_id}"
            steps.append(Step(held.host, f"subnet/{end.subnet_id}", Finding.WRONG, text))
    port = held.get(Kind.PORT, end.port_id)
    if port is None:
        return steps
    mac = _addresses(port).get(end.ip, "")
    if mac and departure.mac_address.lower() != mac.lower():
        text = f"has MAC address {mac}, the packet is for {departure.mac_address}"
        steps.append(Step(held.host, _port(end), Finding.WRONG, text))
    steps.append(_filtered(packet, port, held, egress=False))
    return steps


def _port(end: End) -> str:
    return f"port/{end.port_id}"


def _absent(held: Held, kind: Kind, id_: str) -> Step:
    name = f"{kind.name.lower()}/{id_}"
    if held.cannot_say(kind):
        return Step(held.host, name, Finding.UNKNOWN, "the host counts this stream, undecoded")
    why = held.exceptions.get((kind, id_))
    return Step(
        held.host, name, Finding.MISSING, f"is not applied ({why})" if why else "is not applied"
    )


def _addresses(config: Any) -> dict[str, str]:
    """IP → MAC address of a port or neighbor: its fixed IPs and single allowed addresses."""
    pairs = {
        pair.ip_address: pair.mac_address or config.mac_address
        for pair in config.allow_address_pairs
    }
    return pairs | {fixed.ip_address: config.mac_address for fixed in config.fixed_ips}


def _may_use(port: Any, ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return ip in _addresses(port) or any(
        _within(address, pair.ip_address) for pair in port.allow_address_pairs
    )


def _within(address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: str) -> bool:
    try:
        return address in ipaddress.ip_network(prefix, strict=False)
    except ValueError:
        return False


def _at_port(end: End, held: Held) -> Iterator[Step]:
    port = held.get(Kind.PORT, end.port_id)
    if port is None:
        yield _absent(held, Kind.PORT, end.port_id)
        return
    if not port.admin_state_up:
        yield Step(held.host, _port(end), Finding.DENIED, "is switched off")
    elif not _may_use(port, end.ip):
        text = f"does not have the address {end.ip} (it has {_list(_addresses(port))})"
        yield Step(held.host, _port(end), Finding.WRONG, text)
    else:
        yield Step(held.host, _port(end), Finding.OK, f"is applied with {end.ip}")


def _network(packet: Packet, end: End, held: Held) -> Iterator[Step]:
    for kind, id_ in ((Kind.VPC, packet.vpc_id), (Kind.SUBNET, end.subnet_id)):
        if held.get(kind, id_) is None:
            yield _absent(held, kind, id_)


def _path(packet: Packet, held: Held) -> tuple[list[Step], bool]:
    """How the source host forwards the packet; False: not towards the destination."""
    source, destination = packet.source, packet.destination
    name = f"subnet/{destination.subnet_id}"
    if source.subnet_id == destination.subnet_id:
        subnet = held.get(Kind.SUBNET, source.subnet_id)
        if subnet is not None and not _within(ipaddress.ip_address(destination.ip), subnet.cidr):
            text = f"is {subnet.cidr}, which does not hold {destination.ip}"
            return [Step(held.host, name, Finding.WRONG, text)], False
        return [Step(held.host, name, Finding.OK, "both ends are in it")], True
    target = held.get(Kind.SUBNET, destination.subnet_id)
    if target is None:
        return [_absent(held, Kind.SUBNET, destination.subnet_id)], True
    if held.cannot_say(Kind.ROUTER):
        return [_absent(held, Kind.ROUTER, "?")], True
    tables = [
        (router, {table.subnet_id: table for table in router.subnet_routing_tables})
        for router in held.all(Kind.ROUTER)
    ]
    tables = [(router, joined) for router, joined in tables if source.subnet_id in joined]
    if not tables:
        text = f"no router of the host joins subnet/{source.subnet_id}"
        return [Step(held.host, "router/?", Finding.MISSING, text)], False
    for router, joined in tables:
        route = _longer_route(
            joined[source.subnet_id],
            destination.ip,
            target.cidr if destination.subnet_id in joined else "",
        )
        where = f"router/{router.id}"
        if route is not None:
            text = f"route {route.destination} sends it to {route.next_hop_ip} instead"
            return [Step(held.host, where, Finding.WRONG, text)], False
        if destination.subnet_id in joined:
            text = f"joins subnet/{source.subnet_id} and {name}"
            return [Step(held.host, where, Finding.OK, text)], True
    text = f"does not join subnet/{source.subnet_id} with {name}, and has no route there"
    return [Step(held.host, f"router/{tables[0][0].id}", Finding.MISSING, text)], False


def _longer_route(table: Any, ip: str, connected: str) -> Any:
    """The route that a packet to `ip` takes rather than the connected subnet; None: none."""
    address = ipaddress.ip_address(ip)
    least = ipaddress.ip_network(connected, strict=False).prefixlen if connected else -1
    found = [
        (-ipaddress.ip_network(rule.destination, strict=False).prefixlen, rule.priority, rule)
        for rule in table.routing_rules
        if _within(address, rule.destination)
        and ipaddress.ip_network(rule.destination, strict=False).prefixlen > least
    ]
    return min(found, key=lambda entry: entry[:2])[2] if found else None


def _neighbor(packet: Packet, held: Held) -> tuple[Step, Any]:
    """The source host's entry for the destination, None if there is none to follow."""
    end = packet.destination
    name = f"neighbor/{end.port_id}"
    entry = held.get(Kind.NEIGHBOR, end.port_id)
    if entry is None:
        other = next(iter(held.neighbors_at(packet.vpc_id, end.ip)), None)
        if other is None:
            return _absent(held, Kind.NEIGHBOR, end.port_id), None
        text = f"is not applied; {end.ip} belongs to neighbor/{other.id} there"
        return Step(held.host, name, Finding.WRONG, text), None
    if end.ip not in _addresses(entry):
        text = f"does not have the address {end.ip} (it has {_list(_addresses(entry))})"
        return Step(held.host, name, Finding.WRONG, text), None
    if not entry.host_ip_address:
        return Step(held.host, name, Finding.WRONG, "names no host"), None
    text = f"is at host address {entry.host_ip_address}"
    return Step(held.host, name, Finding.OK, text), entry


def _filtered(packet: Packet, port: Any, held: Held, *, egress: bool) -> Step:
    """Do the rules of the port's groups, as the host holds them, let the packet through?"""
    groups = [group.id for group in port.security_group_ids]
    way = "egress" if egress else "ingress"
    if not groups:
        return Step(held.host, f"port/{port.id}", Finding.OK, f"has no groups: no {way} filter")
    peer = packet.destination if egress else packet.source
    almost: Step | None = None
    absent = [group for group in groups if held.get(Kind.SECURITY_GROUP, group) is None]
    for group in groups:
        config = held.get(Kind.SECURITY_GROUP, group)
        for rule in config.security_group_rules if config is not None else ():
            if not _concerns(rule, packet, egress=egress):
                continue
            where = f"security_group/{group}"
            if not rule.remote_group_id:
                return Step(held.host, where, Finding.OK, f"{way} rule {rule.id} allows it")
            members = held.neighbors_at(packet.vpc_id, peer.ip)
            if any(rule.remote_group_id in member.security_group_ids for member in members):
                text = f"{way} rule {rule.id} allows members of {rule.remote_group_id}"
                return Step(held.host, where, Finding.OK, text)
            almost = _no_member(rule, way, peer, bool(members), held)
    if absent:
        return _absent(held, Kind.SECURITY_GROUP, absent[0])
    if almost is not None:
        return almost
    text = f"no {way} rule of its groups allows {packet.what} {'to' if egress else 'from'} "
    return Step(held.host, f"security_group/{', '.join(groups)}", Finding.DENIED, text + peer.ip)


def _no_member(rule: Any, way: str, peer: End, known: bool, held: Held) -> Step:
    """A rule lets a group in, and the host does not know the peer as a member of it."""
    text = f"{way} rule {rule.id} allows members of {rule.remote_group_id}, and the entry of "
    text += f"{peer.ip} is not one" if known else f"{peer.ip} is not applied"
    finding = Finding.DENIED if known else Finding.MISSING
    return Step(held.host, f"neighbor/{peer.port_id}", finding, text)


def _concerns(rule: Any, packet: Packet, *, egress: bool) -> bool:
    """Does a rule apply to the packet, its remote group aside?"""
    peer = ipaddress.ip_address(packet.destination.ip if egress else packet.source.ip)
    if rule.direction != (_RULES.EGRESS if egress else _RULES.INGRESS):
        return False
    if (rule.ethertype == resources_pb2.IPV6) != (peer.version == _IPV6):
        return False
    if rule.protocol != PROTOCOLS[packet.protocol]:
        return False
    if packet.protocol != "icmp" and (rule.port_range_min or rule.port_range_max):
        last = rule.port_range_max or rule.port_range_min
        if not rule.port_range_min <= packet.dport <= last:
            return False
    return not rule.remote_ip_prefix or _within(peer, rule.remote_ip_prefix)


def _list(texts: dict[str, str]) -> str:
    return ", ".join(texts) or "none"
