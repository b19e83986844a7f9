"""A made-up region: hosts, a mix of VPCs with subnets, security groups, routers, gateways, ports.

Laws:

1.  Everything is a function of the region's parameters: the same on every machine and at each run.
    Each choice is drawn from a hash of the seed and of what it is about, so no object depends on
    the ones made before it, and any port can be had without the others.
2.  Every intent is valid after the ones before it.
3.  Nothing large is held: intents come one after the other, hosts first, then VPC by VPC.

All VPCs use the same addresses, as tenants do.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import xxhash

from goalstate.gs.intent import (
    AddressPair,
    ChannelChoice,
    Deletion,
    Destination,
    Dhcp,
    Direction,
    FixedIp,
    Gateway,
    GatewayType,
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
from goalstate.gs.naming import GROUP_SIZE, simulated_host

#: The 10,000 ports of Alcor's performance plan.
ALCOR_MIX = "5x1000,45x100,50x10"
#: Hosts or ports in one intent, unless told otherwise: about 2 MB as a message.
PIECE = 10_000
#: Subnets are cut so that none has many more ports.
_SUBNET_PORTS = 500
#: From so many ports on, a VPC has more than one subnet.
_SEVERAL_SUBNETS = 100
_CIDR = "10.0.0.0/8"
_FIRST_ADDRESS = int(IPv4Address("10.0.0.0"))
_ADDRESSES = 1 << 24
_DRAWS = 1 << 64
#: Groups of every VPC, and the share of its ports that are members. The first has them all.
_MEMBERS = {"default": 1.0, "web": 0.3, "db": 0.1}


def parse_mix(text: str) -> tuple[int, ...]:
    """How many ports each VPC has, from VPCs × ports: "5x1000,45x100". Raises ValueError."""
    sizes: list[int] = []
    for part in text.split(","):
        count, times, ports = part.strip().partition("x")
        if not (times and count.strip().isdecimal() and ports.strip().isdecimal()):
            raise ValueError(f"{part.strip()!r} is no VPCs x ports (expected as 5x1000)")
        if int(count) < 1 or int(ports) < 1:
            raise ValueError(f"{part.strip()!r} has none: both numbers must be at least 1")
        sizes += [int(ports)] * int(count)
    return tuple(sizes)


@dataclass(frozen=True, slots=True)
class Region:
    """What to make up. Shares are from 0 to 1."""

    hosts: int
    #: Ports of each VPC, see `parse_mix`. VPCs are numbered from 1.
    vpcs: tuple[int, ...]
    seed: int = 1
    host_prefix: str = "host"
    group_size: int = GROUP_SIZE
    #: Ids that look like UUIDs instead of readable ones.
    uuids: bool = False
    router_share: float = 0.5
    gateway_share: float = 0.3
    dhcp_share: float = 0.2
    #: Of ports with an allowed address pair.
    pair_share: float = 0.01
    #: Of all VPCs.
    channel: ChannelChoice = ChannelChoice.AUTO

    def __post_init__(self) -> None:
        if self.hosts < 1:
            raise ValueError("a region needs at least one host")
        for number, ports in enumerate(self.vpcs, 1):
            count, size = _subnets(ports)
            if count * size > _ADDRESSES:
                raise ValueError(f"VPC {number} with {ports} ports does not fit into {_CIDR}")

    # --- intents ---

    def intents(self, piece: int = PIECE) -> Iterator[Intent]:
        """All of the region: hosts, then VPC by VPC, each intent with at most `piece` hosts or
        ports."""
        yield from self.host_intents(piece)
        for number in range(1, len(self.vpcs) + 1):
            yield from self.vpc_intents(number, piece)

    def host_intents(self, piece: int = PIECE) -> Iterator[Intent]:
        for first in range(0, self.hosts, piece):
            last = min(first + piece, self.hosts)
            yield Intent(hosts=tuple(self.host(index) for index in range(first, last)))

    def vpc_intents(self, number: int, piece: int = PIECE) -> Iterator[Intent]:
        """A VPC; the first intent has all but the ports, and the first ports."""
        ports = self.vpcs[number - 1]
        for first in range(0, ports, piece):
            indexes = range(first, min(first + piece, ports))
            intent = Intent() if first else self._network(number)
            yield intent._replace(
                ports=tuple(self.port(number, index) for index in indexes),
                dhcps=tuple(
                    self.dhcp(number, index)
                    for index in indexes
                    if self._chance(self.dhcp_share, "dhcp", number, index)
                ),
            )

    # --- objects ---

    def vpc_id(self, number: int) -> str:
        return self._id(f"vpc-{number:04d}")

    def group_id(self, number: int, name: str = "default") -> str:
        """A security group of VPC `number`: default, web or db."""
        return self._id(f"sg-{number:04d}-{name}")

    def host(self, index: int) -> Host:
        host = simulated_host(index, prefix=self.host_prefix, group_size=self.group_size)
        return Host(host.id, host.ip_address, host.mac_address, host.group, "site-1")

    def port(self, number: int, index: int) -> Port:
        """Port `index`, from 0, of VPC `number`.

        There is room for some more ports than the VPC has (`room`). Raises ValueError beyond that.
        """
        ports = self.vpcs[number - 1]
        count, size = _subnets(ports)
        subnet, place = index % count, index // count
        if not 0 <= place < size - 3:
            raise ValueError(f"VPC {number} has no room for a port number {index}")
        address = _FIRST_ADDRESS + subnet * size + 2 + place
        name = f"port-{number:04d}-{index + 1:06d}"
        pairs: tuple[AddressPair, ...] = ()
        if self._chance(self.pair_share, "pair", number, index):
            # An address that moves between ports, outside of every subnet.
            pairs = (AddressPair(f"192.168.{number % 256}.{index % 254 + 1}"),)
        return Port(
            id=self._id(name),
            vpc_id=self.vpc_id(number),
            name=name,
            mac_address=_mac(0x02, number % (1 << 16), index),
            host_id=simulated_host(
                self._draw("host", number, index) % self.hosts,
                prefix=self.host_prefix,
                group_size=self.group_size,
            ).id,
            fixed_ips=(FixedIp(self._subnet_id(number, subnet), str(IPv4Address(address))),),
            allowed_address_pairs=pairs,
            security_group_ids=tuple(
                self.group_id(number, group)
                for group, share in _MEMBERS.items()
                if self._chance(share, group, number, index)
            ),
            device_id=f"vm-{number:04d}-{index + 1:06d}",
            device_owner="compute:simulated",
        )

    def room(self, number: int) -> int:
        """How many ports VPC `number` has addresses for: a quarter more than it has, and at least
        4 more."""
        count, size = _subnets(self.vpcs[number - 1])
        return count * (size - 3)

    def group(self, number: int, name: str = "default") -> SecurityGroup:
        """A security group of VPC `number`, as it is made."""
        (found,) = (g for g in self._groups(number) if g.id == self.group_id(number, name))
        return found

    def dhcp(self, number: int, index: int) -> Dhcp:
        name = f"{number:04d}-{index + 1:06d}"
        return Dhcp(self._id(f"dhcp-{name}"), self._id(f"port-{name}"), f"vm-{name}")

    def _network(self, number: int) -> Intent:
        vpc_id = self.vpc_id(number)
        count, size = _subnets(self.vpcs[number - 1])
        length = 32 - (size - 1).bit_length()
        subnets = []
        for k in range(count):
            first = IPv4Address(_FIRST_ADDRESS + k * size)
            subnets.append(
                Subnet(
                    id=self._subnet_id(number, k),
                    vpc_id=vpc_id,
                    name=f"subnet-{number:04d}-{k + 1:04d}",
                    cidr=f"{first}/{length}",
                    gateway_ip=str(first + 1),
                    gateway_mac=_mac(0x06, number % (1 << 16), k),
                    dhcp_enable=True,
                    dns=("169.254.169.253",),
                    availability_zone="zone-1",
                )
            )
        routers: tuple[Router, ...] = ()
        if self._chance(self.router_share, "router", number):
            name = f"router-{number:04d}"
            route = Route(f"{name}-out", "0.0.0.0/0", subnets[0].gateway_ip, 100)
            routers = (
                Router(
                    id=self._id(name),
                    vpc_id=vpc_id,
                    name=name,
                    mac_address=_mac(0x0A, number % (1 << 16), 0),
                    subnet_ids=tuple(subnet.id for subnet in subnets),
                    routes=(route,),
                ),
            )
        gateways: tuple[Gateway, ...] = ()
        if self._chance(self.gateway_share, "gateway", number):
            ip = str(IPv4Address("100.127.0.0") + number % (1 << 16))
            destination = Destination(ip, _mac(0x0E, number % (1 << 16), 0))
            gateways = (
                Gateway(self._id(f"gateway-{number:04d}"), vpc_id, GatewayType.IGW, (destination,)),
            )
        name, project = f"vpc-{number:04d}", f"project-{number % 10}"
        return Intent(
            vpcs=(Vpc(vpc_id, name, project, _CIDR, number, channel=self.channel),),
            subnets=tuple(subnets),
            security_groups=self._groups(number),
            routers=routers,
            gateways=gateways,
        )

    def _groups(self, number: int) -> tuple[SecurityGroup, ...]:
        default, web, db = (self.group_id(number, name) for name in _MEMBERS)
        ingress, tcp = Direction.INGRESS, Protocol.TCP
        rules = {
            "default": (
                Rule(f"{default}-out", remote_ip_prefix="0.0.0.0/0"),
                Rule(f"{default}-members", direction=ingress, remote_group_id=default),
                Rule(
                    f"{default}-ping",
                    direction=ingress,
                    protocol=Protocol.ICMP,
                    remote_ip_prefix=_CIDR,
                ),
            ),
            "web": (
                Rule(
                    f"{web}-http",
                    direction=ingress,
                    protocol=tcp,
                    port_min=80,
                    port_max=443,
                    remote_ip_prefix="0.0.0.0/0",
                ),
            ),
            "db": (
                Rule(
                    f"{db}-from-web",
                    direction=ingress,
                    protocol=tcp,
                    port_min=5432,
                    port_max=5432,
                    remote_group_id=web,
                ),
            ),
        }
        return tuple(
            SecurityGroup(self.group_id(number, name), self.vpc_id(number), name, rules[name])
            for name in _MEMBERS
        )

    def _subnet_id(self, number: int, k: int) -> str:
        return self._id(f"subnet-{number:04d}-{k + 1:04d}")

    # --- choices ---

    def _id(self, name: str) -> str:
        if not self.uuids:
            return name
        bits = xxhash.xxh3_128_intdigest(f"{self.seed}/id/{name}".encode())
        return str(uuid.UUID(int=bits, version=4))

    def _draw(self, *what: object) -> int:
        """64 bits that depend on the seed and on `what` alone."""
        return xxhash.xxh3_64_intdigest(f"{self.seed}/{what}".encode())

    def _chance(self, share: float, *what: object) -> bool:
        return share > 0 and self._draw(*what) < share * _DRAWS


# --- changes, as they happen to a region ---


def move_port(port: Port, host_id: str) -> Intent:
    """The port moves to another host, as in the migration of a virtual machine."""
    return Intent(ports=(port._replace(host_id=host_id),))


def join_group(port: Port, group_id: str) -> Intent:
    """The port becomes a member of one more security group."""
    return Intent(ports=(port._replace(security_group_ids=(*port.security_group_ids, group_id)),))


def revoke_rule(group: SecurityGroup, rule_id: str) -> Intent:
    """The group loses a rule. Raises ValueError if it has no such rule."""
    rules = tuple(rule for rule in group.rules if rule.id != rule_id)
    if len(rules) == len(group.rules):
        raise ValueError(f"security group {group.id} has no rule {rule_id}")
    return Intent(security_groups=(group._replace(rules=rules),))


def delete_vpc(vpc_id: str) -> Intent:
    """The VPC goes, with everything in it."""
    return Intent(deletes=(Deletion(ObjectKind.VPC, vpc_id, cascade=True),))


def _subnets(ports: int) -> tuple[int, int]:
    """How many subnets hold so many ports, and the addresses of each (a power of two)."""
    count = max(2, -(-ports // _SUBNET_PORTS)) if ports >= _SEVERAL_SUBNETS else 1
    share = -(-ports // count)
    # Beside the ports: network, gateway, broadcast, and room for more.
    needed = share + max(share // 4, 4) + 3
    return count, 1 << max(4, (needed - 1).bit_length())


def _mac(first: int, high: int, low: int) -> str:
    """Unique for 16 bits `high` and 24 bits `low`."""
    return ":".join(f"{byte:02x}" for byte in (first, *high.to_bytes(2), *low.to_bytes(3)))
