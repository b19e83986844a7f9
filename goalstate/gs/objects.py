"""Objects of intent with the indexes that questions need.

Laws:

1.  The indexes are a function of the objects that are there: they hold what one would compute from
    the objects alone, whatever path led to them.
2.  Putting or removing an object costs as much as the object is large, and every question as much
    as its answer.
3.  Nothing is judged here: what comes in is valid (see `validation`).

Queries give live views; copy what is kept over a change. Their order is the same at each run, but
follows the path: where anything that is published depends on it, it is sorted.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from goalstate.gs.addresses import Prefix, prefix
from goalstate.gs.intent import (
    Dhcp,
    Gateway,
    Host,
    ObjectKind,
    Port,
    Router,
    SecurityGroup,
    Subnet,
    Vpc,
)

_NO_COUNTS: Mapping[str, int] = MappingProxyType({})
_NO_HOLDERS: Mapping[str, str] = MappingProxyType({})
_NO_TUNNELS: Mapping[tuple[ObjectKind, str], str] = MappingProxyType({})
_NO_IDS: Collection[str] = ()
#: A set of ids that keeps their order.
_Ids = dict[str, None]


@dataclass(slots=True)
class _VpcIndex:
    subnets: _Ids = field(default_factory=dict)
    security_groups: _Ids = field(default_factory=dict)
    routers: _Ids = field(default_factory=dict)
    gateways: _Ids = field(default_factory=dict)
    #: Port by MAC address. Every port has one of its own, so the values are the VPC's ports.
    macs: dict[str, str] = field(default_factory=dict)
    #: How many ports of the VPC each host has.
    hosts: dict[str, int] = field(default_factory=dict)
    #: (bytes of an address, first, last, subnet), sorted; no two overlap.
    ranges: list[tuple[int, bytes, bytes, str]] = field(default_factory=list)


@dataclass(slots=True)
class _GroupIndex:
    ports: _Ids = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)
    #: Groups with a rule whose remote is this one (it may be itself).
    named_by: _Ids = field(default_factory=dict)


class Objects:
    """Objects by kind and id, and who uses what."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._vpcs: dict[str, Vpc] = {}
        self._subnets: dict[str, Subnet] = {}
        self._groups: dict[str, SecurityGroup] = {}
        self._routers: dict[str, Router] = {}
        self._gateways: dict[str, Gateway] = {}
        self._ports: dict[str, Port] = {}
        self._dhcps: dict[str, Dhcp] = {}
        self._tables: dict[ObjectKind, dict[str, Any]] = {
            ObjectKind.HOST: self._hosts,
            ObjectKind.VPC: self._vpcs,
            ObjectKind.SUBNET: self._subnets,
            ObjectKind.SECURITY_GROUP: self._groups,
            ObjectKind.ROUTER: self._routers,
            ObjectKind.GATEWAY: self._gateways,
            ObjectKind.PORT: self._ports,
            ObjectKind.DHCP: self._dhcps,
        }
        self._host_ports: dict[str, _Ids] = {}
        self._host_by_ip: dict[str, str] = {}
        # By group of hosts, which is no object of its own.
        self._group_hosts: dict[str, _Ids] = {}
        self._by_vpc: dict[str, _VpcIndex] = {}
        self._by_group: dict[str, _GroupIndex] = {}
        # By subnet: the port of each address.
        self._addresses: dict[str, dict[str, str]] = {}
        self._subnet_routers: dict[str, _Ids] = {}
        self._port_dhcps: dict[str, _Ids] = {}
        # By tunnel id: the VPC of each VPC or subnet that uses it.
        self._tunnels: dict[int, dict[tuple[ObjectKind, str], str]] = {}
        self._link: dict[ObjectKind, Callable[[Any], None]] = {
            ObjectKind.HOST: self._link_host,
            ObjectKind.VPC: self._link_vpc,
            ObjectKind.SUBNET: self._link_subnet,
            ObjectKind.SECURITY_GROUP: self._link_group,
            ObjectKind.ROUTER: self._link_router,
            ObjectKind.GATEWAY: self._link_gateway,
            ObjectKind.PORT: self._link_port,
            ObjectKind.DHCP: self._link_dhcp,
        }
        self._unlink: dict[ObjectKind, Callable[[Any], None]] = {
            ObjectKind.HOST: self._unlink_host,
            ObjectKind.VPC: self._unlink_vpc,
            ObjectKind.SUBNET: self._unlink_subnet,
            ObjectKind.SECURITY_GROUP: self._unlink_group,
            ObjectKind.ROUTER: self._unlink_router,
            ObjectKind.GATEWAY: self._unlink_gateway,
            ObjectKind.PORT: self._unlink_port,
            ObjectKind.DHCP: self._unlink_dhcp,
        }
        #: Indexes by the id of an object of the kind, empty once nothing uses it.
        self._used: dict[ObjectKind, dict[str, Any]] = {
            ObjectKind.HOST: self._host_ports,
            ObjectKind.VPC: self._by_vpc,
            ObjectKind.SUBNET: self._addresses,
            ObjectKind.SECURITY_GROUP: self._by_group,
        }

    def _replace(self, changes: Iterable[tuple[ObjectKind, Any, Any]]) -> None:
        """Make changes (kind, before, after); what goes comes after its users."""
        changes = list(changes)
        # All leave their place in the indexes before any takes one: addresses can be swapped.
        for kind, before, after in changes:
            if before is not None:
                self._unlink[kind](before)
                if after is None:
                    del self._tables[kind][before.id]
                    if kind in self._used:
                        del self._used[kind][before.id]
        for kind, _, after in changes:
            if after is not None:
                self._tables[kind][after.id] = after
                self._link[kind](after)

    # --- questions ---

    def get(self, kind: ObjectKind, id_: str) -> Any:
        """The object, None if there is none."""
        return self._tables[kind].get(id_)

    def table(self, kind: ObjectKind) -> Mapping[str, Any]:
        """All objects of the kind by id."""
        return self._tables[kind]

    def objects(self, kind: ObjectKind) -> Collection[Any]:
        return self._tables[kind].values()

    def counts(self) -> dict[ObjectKind, int]:
        return {kind: len(table) for kind, table in self._tables.items()}

    def ports_of_host(self, host_id: str) -> Collection[str]:
        """Ids of the ports that are bound to the host."""
        return self._host_ports.get(host_id, _NO_IDS)

    def ports_of_vpc(self, vpc_id: str) -> Collection[str]:
        """Ids of all ports of the VPC, bound or not."""
        vpc = self._by_vpc.get(vpc_id)
        return vpc.macs.values() if vpc else _NO_IDS

    def ports_of_group(self, group_id: str) -> Collection[str]:
        """Ids of the members of the security group, bound or not."""
        group = self._by_group.get(group_id)
        return group.ports if group else _NO_IDS

    def hosts_of_vpc(self, vpc_id: str) -> Mapping[str, int]:
        """How many ports of the VPC are bound to each host that has any."""
        vpc = self._by_vpc.get(vpc_id)
        return vpc.hosts if vpc else _NO_COUNTS

    def hosts_of_group(self, group_id: str) -> Mapping[str, int]:
        """How many members of the security group are bound to each host that has any."""
        group = self._by_group.get(group_id)
        return group.hosts if group else _NO_COUNTS

    def subnets_of_vpc(self, vpc_id: str) -> Collection[str]:
        vpc = self._by_vpc.get(vpc_id)
        return vpc.subnets if vpc else _NO_IDS

    def groups_of_vpc(self, vpc_id: str) -> Collection[str]:
        """Ids of the VPC's security groups."""
        vpc = self._by_vpc.get(vpc_id)
        return vpc.security_groups if vpc else _NO_IDS

    def routers_of_vpc(self, vpc_id: str) -> Collection[str]:
        vpc = self._by_vpc.get(vpc_id)
        return vpc.routers if vpc else _NO_IDS

    def gateways_of_vpc(self, vpc_id: str) -> Collection[str]:
        vpc = self._by_vpc.get(vpc_id)
        return vpc.gateways if vpc else _NO_IDS

    def routers_of_subnet(self, subnet_id: str) -> Collection[str]:
        """One at the most."""
        return self._subnet_routers.get(subnet_id, _NO_IDS)

    def dhcps_of_port(self, port_id: str) -> Collection[str]:
        """One at the most."""
        return self._port_dhcps.get(port_id, _NO_IDS)

    def addresses_of_subnet(self, subnet_id: str) -> Mapping[str, str]:
        """Id of the port that has each address of the subnet."""
        return self._addresses.get(subnet_id, _NO_HOLDERS)

    def macs_of_vpc(self, vpc_id: str) -> Mapping[str, str]:
        """Id of the port that has each MAC address of the VPC."""
        vpc = self._by_vpc.get(vpc_id)
        return vpc.macs if vpc else _NO_HOLDERS

    def host_with_ip(self, ip: str) -> str | None:
        return self._host_by_ip.get(ip)

    def hosts_in_group(self, group: str) -> Collection[str]:
        """Ids of the hosts of the group (a rack), which share an inbox."""
        return self._group_hosts.get(group, _NO_IDS)

    def tunnel_users(self, tunnel_id: int) -> Mapping[tuple[ObjectKind, str], str]:
        """The VPC of each VPC or subnet that uses the tunnel id; all are one VPC's."""
        return self._tunnels.get(tunnel_id, _NO_TUNNELS)

    def subnets_overlapping(self, vpc_id: str, block: Prefix) -> Iterator[str]:
        """Ids of the VPC's subnets that share addresses with the block."""
        vpc = self._by_vpc.get(vpc_id)
        if vpc is None:
            return
        ranges, family = vpc.ranges, len(block.first)
        start = bisect_left(ranges, (family, block.first))
        # The subnets are disjoint, so of those that begin before, only the last may reach in.
        for size, first, last, subnet_id in ranges[max(start - 1, 0) : start]:
            if size == family and first <= block.last and last >= block.first:
                yield subnet_id
        for index in range(start, len(ranges)):
            size, first, _, subnet_id = ranges[index]
            if size != family or first > block.last:
                return
            yield subnet_id

    def users(self, kind: ObjectKind, id_: str) -> Iterator[tuple[ObjectKind, str]]:
        """What refers to the object (itself left out). A port with two addresses in a subnet comes
        twice."""
        for user_kind, ids in self._users(kind, id_):
            for user in ids:
                if user != id_ or user_kind is not kind:
                    yield user_kind, user

    def _users(self, kind: ObjectKind, id_: str) -> Iterator[tuple[ObjectKind, Iterable[str]]]:
        if kind is ObjectKind.HOST:
            yield ObjectKind.PORT, self.ports_of_host(id_)
        elif kind is ObjectKind.VPC:
            yield ObjectKind.SUBNET, self.subnets_of_vpc(id_)
            yield ObjectKind.SECURITY_GROUP, self.groups_of_vpc(id_)
            yield ObjectKind.ROUTER, self.routers_of_vpc(id_)
            yield ObjectKind.GATEWAY, self.gateways_of_vpc(id_)
            yield ObjectKind.PORT, self.ports_of_vpc(id_)
        elif kind is ObjectKind.SUBNET:
            yield ObjectKind.ROUTER, self.routers_of_subnet(id_)
            yield ObjectKind.PORT, self.addresses_of_subnet(id_).values()
        elif kind is ObjectKind.SECURITY_GROUP:
            yield ObjectKind.PORT, self.ports_of_group(id_)
            group = self._by_group.get(id_)
            yield ObjectKind.SECURITY_GROUP, group.named_by if group else _NO_IDS
        elif kind is ObjectKind.PORT:
            yield ObjectKind.DHCP, self.dhcps_of_port(id_)

    # --- indexes: `link` and `unlink` are each other's inverse ---

    def _link_host(self, host: Host) -> None:
        self._host_ports.setdefault(host.id, {})
        self._host_by_ip[host.ip_address] = host.id
        self._group_hosts.setdefault(host.group, {})[host.id] = None

    def _unlink_host(self, host: Host) -> None:
        del self._host_by_ip[host.ip_address]
        _remove(self._group_hosts, host.group, host.id)

    def _link_vpc(self, vpc: Vpc) -> None:
        self._by_vpc.setdefault(vpc.id, _VpcIndex())
        self._use_tunnel(vpc.tunnel_id, (ObjectKind.VPC, vpc.id), vpc.id)

    def _unlink_vpc(self, vpc: Vpc) -> None:
        self._leave_tunnel(vpc.tunnel_id, (ObjectKind.VPC, vpc.id))

    def _link_subnet(self, subnet: Subnet) -> None:
        id_ = subnet.id
        self._addresses.setdefault(id_, {})
        vpc = self._by_vpc[subnet.vpc_id]
        vpc.subnets[id_] = None
        block = prefix(subnet.cidr)
        insort(vpc.ranges, (len(block.first), block.first, block.last, id_))
        if subnet.tunnel_id:
            self._use_tunnel(subnet.tunnel_id, (ObjectKind.SUBNET, id_), subnet.vpc_id)

    def _unlink_subnet(self, subnet: Subnet) -> None:
        vpc = self._by_vpc[subnet.vpc_id]
        del vpc.subnets[subnet.id]
        block = prefix(subnet.cidr)
        del vpc.ranges[bisect_left(vpc.ranges, (len(block.first), block.first))]
        if subnet.tunnel_id:
            self._leave_tunnel(subnet.tunnel_id, (ObjectKind.SUBNET, subnet.id))

    def _link_group(self, group: SecurityGroup) -> None:
        self._by_vpc[group.vpc_id].security_groups[group.id] = None
        self._by_group.setdefault(group.id, _GroupIndex())
        for rule in group.rules:
            if rule.remote_group_id:
                # It may come later in the same change.
                remote = self._by_group.setdefault(rule.remote_group_id, _GroupIndex())
                remote.named_by[group.id] = None

    def _unlink_group(self, group: SecurityGroup) -> None:
        del self._by_vpc[group.vpc_id].security_groups[group.id]
        for rule in group.rules:
            remote = self._by_group.get(rule.remote_group_id)
            if remote is not None:
                remote.named_by.pop(group.id, None)

    def _link_router(self, router: Router) -> None:
        self._by_vpc[router.vpc_id].routers[router.id] = None
        for subnet_id in router.subnet_ids:
            self._subnet_routers.setdefault(subnet_id, {})[router.id] = None

    def _unlink_router(self, router: Router) -> None:
        del self._by_vpc[router.vpc_id].routers[router.id]
        for subnet_id in router.subnet_ids:
            _remove(self._subnet_routers, subnet_id, router.id)

    def _link_gateway(self, gateway: Gateway) -> None:
        self._by_vpc[gateway.vpc_id].gateways[gateway.id] = None

    def _unlink_gateway(self, gateway: Gateway) -> None:
        del self._by_vpc[gateway.vpc_id].gateways[gateway.id]

    def _link_port(self, port: Port) -> None:
        id_, host_id = port.id, port.host_id
        vpc = self._by_vpc[port.vpc_id]
        vpc.macs[port.mac_address] = id_
        for subnet_id, ip in port.fixed_ips:
            self._addresses[subnet_id][ip] = id_
        if host_id:
            self._host_ports[host_id][id_] = None
            vpc.hosts[host_id] = vpc.hosts.get(host_id, 0) + 1
        for group_id in port.security_group_ids:
            group = self._by_group[group_id]
            group.ports[id_] = None
            if host_id:
                group.hosts[host_id] = group.hosts.get(host_id, 0) + 1

    def _unlink_port(self, port: Port) -> None:
        id_, host_id = port.id, port.host_id
        vpc = self._by_vpc[port.vpc_id]
        del vpc.macs[port.mac_address]
        for subnet_id, ip in port.fixed_ips:
            del self._addresses[subnet_id][ip]
        if host_id:
            del self._host_ports[host_id][id_]
            _count_down(vpc.hosts, host_id)
        for group_id in port.security_group_ids:
            group = self._by_group[group_id]
            del group.ports[id_]
            if host_id:
                _count_down(group.hosts, host_id)

    def _link_dhcp(self, dhcp: Dhcp) -> None:
        self._port_dhcps.setdefault(dhcp.port_id, {})[dhcp.id] = None

    def _unlink_dhcp(self, dhcp: Dhcp) -> None:
        _remove(self._port_dhcps, dhcp.port_id, dhcp.id)

    def _use_tunnel(self, tunnel_id: int, user: tuple[ObjectKind, str], vpc_id: str) -> None:
        self._tunnels.setdefault(tunnel_id, {})[user] = vpc_id

    def _leave_tunnel(self, tunnel_id: int, user: tuple[ObjectKind, str]) -> None:
        _remove(self._tunnels, tunnel_id, user)


def _remove(index: dict[Any, Any], key: Any, member: Any) -> None:
    members = index[key]
    del members[member]
    if not members:
        del index[key]


def _count_down(counts: dict[str, int], key: str) -> None:
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
