"""Objects of intent: what a tenant or an operator wants to exist.

They mirror goalstate.northbound.v1 field by field (see intent.proto for what each field means), as
immutable values: equal intent is equal tuples, so "does this change anything?" is one comparison.
Where the message has a list, here is a tuple; a map is a sorted tuple of pairs. Enumerations are
plain integers of the enums below, because a message may carry a number that no enum knows, and
that is for validation to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class ObjectKind(IntEnum):
    """Kinds of objects, in the order in which they depend on each other."""

    HOST = 1
    VPC = 2
    SUBNET = 3
    SECURITY_GROUP = 4
    ROUTER = 5
    GATEWAY = 6
    PORT = 7
    DHCP = 8

    @property
    def word(self) -> str:
        """As it is said in messages."""
        return _WORDS[self]


_WORDS = {
    ObjectKind.HOST: "host",
    ObjectKind.VPC: "VPC",
    ObjectKind.SUBNET: "subnet",
    ObjectKind.SECURITY_GROUP: "security group",
    ObjectKind.ROUTER: "router",
    ObjectKind.GATEWAY: "gateway",
    ObjectKind.PORT: "port",
    ObjectKind.DHCP: "DHCP",
}


class Direction(IntEnum):
    EGRESS = 0
    INGRESS = 1


class EtherType(IntEnum):
    IPV4 = 0
    IPV6 = 1


class Protocol(IntEnum):
    ANY = 0
    TCP = 1
    UDP = 2
    ICMP = 3


class GatewayType(IntEnum):
    DEFAULT = 0
    ZETA = 1
    TGW = 2
    IGW = 3
    NGW = 4
    ARION = 5


class ChannelChoice(IntEnum):
    """What a VPC's streams are to travel on."""

    #: Sessions while it is small, where the region has them; else Pulsar.
    AUTO = 0
    PULSAR = 1
    SESSION = 2


class Host(NamedTuple):
    id: str
    ip_address: str = ""
    mac_address: str = ""
    group: str = ""
    site: str = ""


class Vpc(NamedTuple):
    id: str
    name: str = ""
    project_id: str = ""
    cidr: str = ""
    tunnel_id: int = 0
    secondary_cidrs: tuple[str, ...] = ()
    channel: int = ChannelChoice.AUTO


class Subnet(NamedTuple):
    id: str
    vpc_id: str = ""
    name: str = ""
    cidr: str = ""
    gateway_ip: str = ""
    gateway_mac: str = ""
    dhcp_enable: bool = False
    tunnel_id: int = 0
    availability_zone: str = ""
    dns: tuple[str, ...] = ()
    #: Sorted by name.
    dhcp_options: tuple[tuple[str, str], ...] = ()


class Rule(NamedTuple):
    id: str
    direction: int = Direction.EGRESS
    ethertype: int = EtherType.IPV4
    protocol: int = Protocol.ANY
    port_min: int = 0
    port_max: int = 0
    remote_ip_prefix: str = ""
    remote_group_id: str = ""


class SecurityGroup(NamedTuple):
    id: str
    vpc_id: str = ""
    name: str = ""
    rules: tuple[Rule, ...] = ()


class Route(NamedTuple):
    id: str
    destination: str = ""
    next_hop_ip: str = ""
    priority: int = 0


class Router(NamedTuple):
    id: str
    vpc_id: str = ""
    name: str = ""
    mac_address: str = ""
    subnet_ids: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()


class Destination(NamedTuple):
    ip_address: str
    mac_address: str = ""


class Gateway(NamedTuple):
    id: str
    vpc_id: str = ""
    type: int = GatewayType.DEFAULT
    destinations: tuple[Destination, ...] = ()


class FixedIp(NamedTuple):
    subnet_id: str
    ip_address: str


class AddressPair(NamedTuple):
    #: An address or a prefix.
    ip_address: str
    #: Empty: the port's own.
    mac_address: str = ""


class Port(NamedTuple):
    id: str
    vpc_id: str = ""
    name: str = ""
    mac_address: str = ""
    #: Empty: on no host.
    host_id: str = ""
    fixed_ips: tuple[FixedIp, ...] = ()
    allowed_address_pairs: tuple[AddressPair, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    device_id: str = ""
    device_owner: str = ""
    admin_down: bool = False


class Dhcp(NamedTuple):
    id: str
    port_id: str = ""
    host_name: str = ""


class Deletion(NamedTuple):
    #: An ObjectKind.
    kind: int
    id: str
    #: Delete everything that refers to it as well, and what refers to that.
    cascade: bool = False


Object = Host | Vpc | Subnet | SecurityGroup | Router | Gateway | Port | Dhcp


class Intent(NamedTuple):
    """One change: objects to be as given, and deletions, all at once or not at all."""

    hosts: Sequence[Host] = ()
    vpcs: Sequence[Vpc] = ()
    subnets: Sequence[Subnet] = ()
    security_groups: Sequence[SecurityGroup] = ()
    routers: Sequence[Router] = ()
    gateways: Sequence[Gateway] = ()
    ports: Sequence[Port] = ()
    dhcps: Sequence[Dhcp] = ()
    deletes: Sequence[Deletion] = ()


#: The field of an Intent that holds the objects of each kind.
FIELDS: dict[ObjectKind, str] = {
    ObjectKind.HOST: "hosts",
    ObjectKind.VPC: "vpcs",
    ObjectKind.SUBNET: "subnets",
    ObjectKind.SECURITY_GROUP: "security_groups",
    ObjectKind.ROUTER: "routers",
    ObjectKind.GATEWAY: "gateways",
    ObjectKind.PORT: "ports",
    ObjectKind.DHCP: "dhcps",
}
