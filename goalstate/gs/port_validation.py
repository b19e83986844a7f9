"""Validity of ports, which come by the thousand: what is the same for many of them (their VPC,
subnet, security groups, host) is looked up once for an intent, and what is well is found so in a
few dictionary look-ups. Only what is not goes the long way to a message.
"""

from __future__ import annotations

from collections.abc import Mapping

from goalstate.gs import addresses
from goalstate.gs.addresses import FOUR, NO_MAC, SIX, Prefix, is_normal_mac, pack, unpack
from goalstate.gs.after import After, Reason
from goalstate.gs.intent import AddressPair, FixedIp, ObjectKind, Port, Subnet


class _Subnet:
    """What a port's address is checked against."""

    __slots__ = ("block", "claims", "gateway_ip", "high", "holders", "low", "vpc_id")

    def __init__(self, subnet: Subnet, holders: Mapping[str, str]) -> None:
        self.vpc_id = subnet.vpc_id
        self.gateway_ip = subnet.gateway_ip
        #: Ports by address, before the intent.
        self.holders = holders
        #: The same of the intent's ports, by their index.
        self.claims: dict[str, int] = {}
        self.block: Prefix | None
        try:
            self.block = addresses.prefix(subnet.cidr)
            self.low, self.high = self.block.usable
        except ValueError:  # which is reported where the subnet is given
            self.block = None
            self.low, self.high = b"\1", b"\0"  # nothing is between these


class _Vpc:
    """What a port's MAC address is checked against."""

    __slots__ = ("claims", "holders")

    def __init__(self, holders: Mapping[str, str]) -> None:
        self.holders = holders
        self.claims: dict[str, int] = {}


def check_ports(after: After) -> None:
    """Report every violation of the intent's ports, and settle their normal form."""
    if after.intent.ports:
        _Ports(after).check()


class _Ports:
    def __init__(self, after: After) -> None:
        self._after = after
        self._vpcs: dict[str, _Vpc | None] = {}
        self._subnets: dict[str, _Subnet | None] = {}
        #: VPC of each security group; None: there is no such group.
        self._group_vpcs: dict[str, str | None] = {}
        self._hosts: set[str] = {""}

    def check(self) -> None:
        """Find those with nothing remarkable; look closely at the others.

        A port passes here only if it is valid and in normal form. One that does not pass may still
        be valid: it may take an address that another port of the intent gives up.
        """
        before = self._after.state.table(ObjectKind.PORT)
        vpcs, subnets, group_vpcs = self._vpcs, self._subnets, self._group_vpcs
        for index, port in enumerate(self._after.intent.ports):
            id_, vpc_id, mac, fixed_ips = port.id, port.vpc_id, port.mac_address, port.fixed_ips
            well = id_ not in before or before[id_].vpc_id == vpc_id
            vpc = vpcs[vpc_id] if vpc_id in vpcs else self._find_vpc(vpc_id)
            if (
                vpc is None
                or mac == NO_MAC
                or not is_normal_mac(mac)
                or vpc.holders.get(mac, id_) != id_
                or vpc.claims.setdefault(mac, index) != index
            ):
                well = False
            for subnet_id, ip in fixed_ips:
                subnet = (
                    subnets[subnet_id] if subnet_id in subnets else self._find_subnet(subnet_id)
                )
                if subnet is None or subnet.vpc_id != vpc_id or ip == subnet.gateway_ip:
                    well = False
                    continue
                try:
                    if ":" in ip:
                        packed = pack(SIX, ip)
                        if unpack(SIX, packed) != ip:
                            well = False
                            continue
                    else:
                        packed = pack(FOUR, ip)
                except (OSError, ValueError):
                    well = False
                    continue
                low = subnet.low
                if (
                    not low <= packed <= subnet.high
                    or len(low) != len(packed)
                    or subnet.holders.get(ip, id_) != id_
                    or subnet.claims.setdefault(ip, index) != index
                ):
                    well = False
            if len(fixed_ips) != 1 and (
                port.host_id if not fixed_ips else len(set(fixed_ips)) != len(fixed_ips)
            ):
                well = False
            if port.host_id not in self._hosts and not self._find_host(port.host_id):
                well = False
            group_ids = port.security_group_ids
            for group_id in group_ids:
                if group_id not in group_vpcs:
                    self._find_group(group_id)
                if group_vpcs[group_id] != vpc_id:
                    well = False
            if len(group_ids) > 1 and len(set(group_ids)) != len(group_ids):
                well = False
            if not well or port.allowed_address_pairs:
                self._look_closely(index, port)

    # --- looked up once for an intent ---

    def _find_vpc(self, vpc_id: str) -> _Vpc | None:
        after = self._after
        known = after.get(ObjectKind.VPC, vpc_id) is not None
        self._vpcs[vpc_id] = vpc = _Vpc(after.state.macs_of_vpc(vpc_id)) if known else None
        return vpc

    def _find_subnet(self, subnet_id: str) -> _Subnet | None:
        after = self._after
        found = after.get(ObjectKind.SUBNET, subnet_id)
        subnet = None
        if found is not None:
            subnet = _Subnet(found, after.state.addresses_of_subnet(subnet_id))
        self._subnets[subnet_id] = subnet
        return subnet

    def _find_host(self, host_id: str) -> bool:
        if self._after.get(ObjectKind.HOST, host_id) is None:
            return False
        self._hosts.add(host_id)
        return True

    def _find_group(self, group_id: str) -> None:
        found = self._after.get(ObjectKind.SECURITY_GROUP, group_id)
        self._group_vpcs[group_id] = None if found is None else found.vpc_id

    # --- the long way ---

    def _look_closely(self, index: int, port: Port) -> None:
        after, path = self._after, f"ports[{index}]"
        after.refer(ObjectKind.VPC, port.vpc_id, f"{path}.vpc_id")
        after.keep_vpc(ObjectKind.PORT, port, path)
        if port.host_id:
            after.refer(ObjectKind.HOST, port.host_id, f"{path}.host_id")
            if not port.fixed_ips:
                after.violate(
                    f"{path}.fixed_ips",
                    Reason.MISSING,
                    f"the port is bound to host {port.host_id} and has no address",
                )
        normal = port._replace(
            mac_address=self._mac(index, port, f"{path}.mac_address"),
            fixed_ips=tuple(
                self._fixed_ip(index, port, fixed, f"{path}.fixed_ips[{i}]")
                for i, fixed in enumerate(port.fixed_ips)
            ),
            allowed_address_pairs=tuple(
                self._pair(pair, f"{path}.allowed_address_pairs[{i}]")
                for i, pair in enumerate(port.allowed_address_pairs)
            ),
        )
        for i, fixed in enumerate(normal.fixed_ips):
            if fixed in normal.fixed_ips[:i]:
                after.violate(
                    f"{path}.fixed_ips[{i}].ip_address",
                    Reason.DUPLICATE_IP,
                    f"{fixed.ip_address} is given already by "
                    f"fixed_ips[{normal.fixed_ips.index(fixed)}]",
                )
        self._check_groups(port, path)
        after.settle(ObjectKind.PORT, index, normal)

    def _mac(self, index: int, port: Port, path: str) -> str:
        after = self._after
        mac = after.normal(addresses.mac, port.mac_address, path)
        if mac is None:
            return port.mac_address
        vpc = self._vpcs[port.vpc_id]
        if vpc is not None:
            other = after.rival(ObjectKind.PORT, index, mac, vpc.claims, vpc.holders.get(mac))
            if other is not None:
                after.violate(path, Reason.DUPLICATE_MAC, f"{mac} is taken by port {other}")
        return mac

    def _fixed_ip(self, index: int, port: Port, fixed: FixedIp, path: str) -> FixedIp:
        after = self._after
        found = after.refer(ObjectKind.SUBNET, fixed.subnet_id, f"{path}.subnet_id")
        if found is not None and found.vpc_id != port.vpc_id:
            after.violate(
                f"{path}.subnet_id",
                Reason.WRONG_VPC,
                f"subnet {found.id} is of VPC {found.vpc_id}, not of {port.vpc_id}",
            )
        path += ".ip_address"
        parsed = after.normal(addresses.ip, fixed.ip_address, path)
        if parsed is None:
            return fixed
        ip, packed = parsed
        subnet = self._subnets[fixed.subnet_id]
        if subnet is not None:
            self._check_range(subnet, ip, packed, path)
            holder = subnet.holders.get(ip)
            other = after.rival(ObjectKind.PORT, index, ip, subnet.claims, holder)
            if ip == subnet.gateway_ip:
                after.violate(
                    path, Reason.DUPLICATE_IP, f"{ip} is the gateway of subnet {fixed.subnet_id}"
                )
            elif other is not None:
                after.violate(path, Reason.DUPLICATE_IP, f"{ip} is taken by port {other}")
        return FixedIp(fixed.subnet_id, ip)

    def _check_range(self, subnet: _Subnet, ip: str, packed: bytes, path: str) -> None:
        block = subnet.block
        if block is None:
            return
        if len(packed) != len(block.first) or not block.first <= packed <= block.last:
            self._after.violate(path, Reason.OUTSIDE_SUBNET, f"{ip} is outside of {block.text}")
        elif not subnet.low <= packed <= subnet.high:
            self._after.violate(
                path,
                Reason.RESERVED_IP,
                f"{ip} is the network or broadcast address of {block.text}",
            )

    def _pair(self, pair: AddressPair, path: str) -> AddressPair:
        ip, mac = pair
        after = self._after
        if "/" in ip:
            block = after.normal(addresses.prefix, ip, f"{path}.ip_address")
            ip = block.text if block else ip
        else:
            parsed = after.normal(addresses.ip, ip, f"{path}.ip_address")
            ip = parsed[0] if parsed else ip
        if mac:
            mac = after.normal(addresses.mac, mac, f"{path}.mac_address") or mac
        return AddressPair(ip, mac)

    def _check_groups(self, port: Port, path: str) -> None:
        after = self._after
        for i, group_id in enumerate(port.security_group_ids):
            field = f"{path}.security_group_ids[{i}]"
            group = after.refer(ObjectKind.SECURITY_GROUP, group_id, field)
            if group is not None and group.vpc_id != port.vpc_id:
                after.violate(
                    field,
                    Reason.WRONG_VPC,
                    f"security group {group_id} is of VPC {group.vpc_id}, not of {port.vpc_id}",
                )
            first = port.security_group_ids.index(group_id)
            if first != i:
                after.violate(
                    field,
                    Reason.DUPLICATE_REFERENCE,
                    f"security group {group_id} is named already by security_group_ids[{first}]",
                )
