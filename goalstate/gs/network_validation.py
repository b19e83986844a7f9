"""Validity of VPCs and subnets: blocks of addresses within each other, and apart from each other,
and tunnel ids, of which each belongs to one VPC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from goalstate.gs import addresses
from goalstate.gs.addresses import Prefix
from goalstate.gs.after import NAMED, After, Reason, named
from goalstate.gs.intent import ChannelChoice, ObjectKind, Subnet

#: VXLAN network identifiers have 24 bits (RFC 7348).
MAX_TUNNEL_ID = (1 << 24) - 1


def check_vpcs(after: After, tunnels: dict[int, tuple[str, str]]) -> None:
    for index, vpc in enumerate(after.intent.vpcs):
        path = f"vpcs[{index}]"
        if not 1 <= vpc.tunnel_id <= MAX_TUNNEL_ID:
            after.violate(
                f"{path}.tunnel_id",
                Reason.OUT_OF_RANGE,
                f"tunnel id {vpc.tunnel_id} is not within 1 to {MAX_TUNNEL_ID}",
            )
        else:
            _check_tunnel(after, tunnels, vpc.tunnel_id, vpc.id, f"VPC {vpc.id}", path)
        after.check_enum(ChannelChoice, vpc.channel, f"{path}.channel")
        first = after.normal(addresses.prefix, vpc.cidr, f"{path}.cidr")
        others = [
            after.normal(addresses.prefix, text, f"{path}.secondary_cidrs[{i}]")
            for i, text in enumerate(vpc.secondary_cidrs)
        ]
        blocks = [block for block in (first, *others) if block is not None]
        if len(blocks) != len(others) + 1:
            continue
        normal = vpc._replace(
            cidr=blocks[0].text, secondary_cidrs=tuple(block.text for block in blocks[1:])
        )
        after.settle(ObjectKind.VPC, index, normal)
        before = after.state.get(ObjectKind.VPC, vpc.id)
        if before is None or _cidrs(before) == _cidrs(normal):
            continue
        outside = [
            f"subnet {id_} ({subnet.cidr})"
            for id_ in after.state.subnets_of_vpc(vpc.id)
            if not after.touched(ObjectKind.SUBNET, id_)
            for subnet in (after.state.get(ObjectKind.SUBNET, id_),)
            if not _within(addresses.prefix(subnet.cidr), blocks)
        ]
        if outside:
            after.violate(
                f"{path}.cidr",
                Reason.OUTSIDE_VPC,
                f"{named(outside)} would lie outside of {_cidrs_text(normal)}",
            )


def check_subnets(after: After, tunnels: dict[int, tuple[str, str]]) -> None:
    by_vpc: dict[str, list[tuple[Prefix, int]]] = {}
    for index, subnet in enumerate(after.intent.subnets):
        path = f"subnets[{index}]"
        vpc = after.refer(ObjectKind.VPC, subnet.vpc_id, f"{path}.vpc_id")
        after.keep_vpc(ObjectKind.SUBNET, subnet, path)
        if not 0 <= subnet.tunnel_id <= MAX_TUNNEL_ID:
            after.violate(
                f"{path}.tunnel_id",
                Reason.OUT_OF_RANGE,
                f"tunnel id {subnet.tunnel_id} is not within 0 (the VPC's) to {MAX_TUNNEL_ID}",
            )
        elif subnet.tunnel_id:
            who = f"subnet {subnet.id} of VPC {subnet.vpc_id}"
            _check_tunnel(after, tunnels, subnet.tunnel_id, subnet.vpc_id, who, path)
        block = after.normal(addresses.prefix, subnet.cidr, f"{path}.cidr")
        if block is not None:
            subnet = subnet._replace(cidr=block.text)  # noqa: PLW2901
            blocks = _parsed(_cidrs(vpc)) if vpc is not None else None
            if blocks is not None and not _within(block, blocks):
                after.violate(
                    f"{path}.cidr",
                    Reason.OUTSIDE_VPC,
                    f"{block.text} lies outside of {_cidrs_text(vpc)} of VPC {vpc.id}",
                )
            if vpc is not None:
                by_vpc.setdefault(vpc.id, []).append((block, index))
            _check_addresses_left(after, subnet, block, path)
        after.settle(ObjectKind.SUBNET, index, _normal_subnet(after, subnet, block, path))
    for vpc_id, given in by_vpc.items():
        _check_overlaps(after, vpc_id, given)


def _normal_subnet(after: After, subnet: Subnet, block: Prefix | None, path: str) -> Subnet:
    """The subnet with normal addresses of its gateway and name servers, each checked."""
    gateway_ip, gateway_mac = subnet.gateway_ip, subnet.gateway_mac
    if gateway_ip:
        found = after.normal(addresses.ip, gateway_ip, f"{path}.gateway_ip")
        if found is not None:
            gateway_ip, packed = found
            _check_gateway_ip(after, subnet, block, gateway_ip, packed, path)
    elif gateway_mac:
        after.violate(
            f"{path}.gateway_ip", Reason.MISSING, "a gateway_mac is given, but no gateway_ip"
        )
    if gateway_mac:
        gateway_mac = after.normal(addresses.mac, gateway_mac, f"{path}.gateway_mac") or gateway_mac
    dns = []
    for i, text in enumerate(subnet.dns):
        found = after.normal(addresses.ip, text, f"{path}.dns[{i}]")
        dns.append(found[0] if found else text)
    if any(not name for name, _ in subnet.dhcp_options):
        after.violate(f"{path}.dhcp_options", Reason.MISSING, "an option has no name")
    return subnet._replace(
        gateway_ip=gateway_ip,
        gateway_mac=gateway_mac,
        dns=tuple(dns),
        dhcp_options=tuple(sorted(subnet.dhcp_options)),
    )


def _check_gateway_ip(
    after: After, subnet: Subnet, block: Prefix | None, ip: str, packed: bytes, path: str
) -> None:
    path += ".gateway_ip"
    if block is not None:
        low, high = block.usable
        if len(packed) != len(low) or not block.first <= packed <= block.last:
            after.violate(path, Reason.OUTSIDE_SUBNET, f"{ip} is outside of {block.text}")
        elif not low <= packed <= high:
            after.violate(
                path,
                Reason.RESERVED_IP,
                f"{ip} is the network or broadcast address of {block.text}",
            )
    port_id = after.state.addresses_of_subnet(subnet.id).get(ip)
    # A port that the intent gives is asked about the gateway itself.
    if port_id is not None and not after.touched(ObjectKind.PORT, port_id):
        after.violate(path, Reason.DUPLICATE_IP, f"{ip} is taken by port {port_id}")


def _check_addresses_left(after: After, subnet: Subnet, block: Prefix, path: str) -> None:
    """A new CIDR must cover the addresses of the ports that stay as they are."""
    before = after.state.get(ObjectKind.SUBNET, subnet.id)
    if before is None or before.cidr == block.text:
        return
    low, high = block.usable
    was_low, was_high = addresses.prefix(before.cidr).usable
    if len(low) == len(was_low) and low <= was_low and was_high <= high:
        return
    outside = []
    for ip, port_id in after.state.addresses_of_subnet(subnet.id).items():
        packed = addresses.ip(ip)[1]
        covered = len(packed) == len(low) and low <= packed <= high
        if not covered and not after.touched(ObjectKind.PORT, port_id):
            outside.append(f"port {port_id} ({ip})")
            if len(outside) > NAMED:
                break
    if outside:
        after.violate(
            f"{path}.cidr",
            Reason.OUTSIDE_SUBNET,
            f"{named(outside)} would have no usable address of {block.text}",
        )


def _check_overlaps(after: After, vpc_id: str, blocks: list[tuple[Prefix, int]]) -> None:
    subnets = after.intent.subnets

    def overlap(index: int, other: str) -> None:
        after.violate(
            f"subnets[{index}].cidr",
            Reason.OVERLAPPING_SUBNETS,
            f"{subnets[index].cidr} overlaps {other} of VPC {vpc_id}",
        )

    widest: tuple[Prefix, int] | None = None
    for block, index in sorted(
        blocks, key=lambda item: (len(item[0].first), item[0][1:3], item[1])
    ):
        for other_id in after.state.subnets_overlapping(vpc_id, block):
            if not after.touched(ObjectKind.SUBNET, other_id):
                other = after.state.get(ObjectKind.SUBNET, other_id)
                overlap(index, f"subnet {other_id} ({other.cidr})")
        if (
            widest is not None
            and len(widest[0].first) == len(block.first)
            and block.first <= widest[0].last
        ):
            earlier, later = sorted((index, widest[1]))
            # One id given twice is reported as such.
            if subnets[earlier].id != subnets[later].id:
                overlap(later, f"subnet {subnets[earlier].id} ({subnets[earlier].cidr})")
            if block.last <= widest[0].last:
                continue
        widest = block, index


def _check_tunnel(
    after: After,
    tunnels: dict[int, tuple[str, str]],
    tunnel_id: int,
    vpc_id: str,
    who: str,
    path: str,
) -> None:
    """All uses of a tunnel id are of one VPC: two would see each other's packets."""
    other_vpc, user = tunnels.setdefault(tunnel_id, (vpc_id, who))
    if other_vpc == vpc_id:
        for (kind, id_), holder in after.state.tunnel_users(tunnel_id).items():
            if not after.touched(kind, id_):
                other_vpc = holder
                user = f"{kind.word} {id_}"
                user += f" of VPC {holder}" if kind is ObjectKind.SUBNET else ""
                break
    if other_vpc != vpc_id:
        after.violate(
            f"{path}.tunnel_id",
            Reason.DUPLICATE_TUNNEL_ID,
            f"tunnel id {tunnel_id} is used by {user}",
        )


def _cidrs(vpc: Any) -> tuple[str, ...]:
    return (vpc.cidr, *vpc.secondary_cidrs)


def _cidrs_text(vpc: Any) -> str:
    return ", ".join(_cidrs(vpc))


def _parsed(cidrs: Sequence[str]) -> list[Prefix] | None:
    """None if one is wrong, which is reported where it is given."""
    try:
        return [addresses.prefix(text) for text in cidrs]
    except ValueError:
        return None


def _within(block: Prefix, blocks: Iterable[Prefix]) -> bool:
    return any(outer.holds(block) for outer in blocks)
