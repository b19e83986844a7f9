"""Resources: the unit of goal state, (kind, id, revision, payload).

The payload is the serialized Alcor configuration message of the kind (for example
NeighborConfiguration), with its id and its revision inside. It is serialized once, where it is
derived; everything after that (packing, digests, storing, comparing) treats it as bytes.
A resource with an empty payload is a deletion: its revision is the tombstone's.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2


class Kind(IntEnum):
    """Alcor's ResourceType, and one of our own: the fact of a subscription."""

    VPC = resources_pb2.VPC
    SUBNET = resources_pb2.SUBNET
    PORT = resources_pb2.PORT
    NEIGHBOR = resources_pb2.NEIGHBOR
    SECURITY_GROUP = resources_pb2.SECURITYGROUP
    DHCP = resources_pb2.DHCP
    ROUTER = resources_pb2.ROUTER
    GATEWAY = resources_pb2.GATEWAY
    SUBSCRIPTION = 1000


class Resource(NamedTuple):
    kind: Kind
    id: str
    revision: int
    #: Serialized configuration; empty: the resource is deleted.
    payload: bytes

    @property
    def deleted(self) -> bool:
        return not self.payload

    @property
    def name(self) -> str:
        return f"{self.kind.name.lower()}/{self.id}"


#: The configuration message of each kind.
CONFIGURATION: dict[Kind, Any] = {
    Kind.VPC: resources_pb2.VpcConfiguration,
    Kind.SUBNET: resources_pb2.SubnetConfiguration,
    Kind.PORT: resources_pb2.PortConfiguration,
    Kind.NEIGHBOR: resources_pb2.NeighborConfiguration,
    Kind.SECURITY_GROUP: resources_pb2.SecurityGroupConfiguration,
    Kind.DHCP: resources_pb2.DHCPConfiguration,
    Kind.ROUTER: resources_pb2.RouterConfiguration,
    Kind.GATEWAY: resources_pb2.GatewayConfiguration,
    Kind.SUBSCRIPTION: goalstate_pb2.NodeSubscribeInfo,
}

#: The map of GoalStateV2 that holds each kind. Subscriptions are in HostResources instead.
STATES_FIELD: dict[Kind, str] = {
    Kind.VPC: "vpc_states",
    Kind.SUBNET: "subnet_states",
    Kind.PORT: "port_states",
    Kind.DHCP: "dhcp_states",
    Kind.NEIGHBOR: "neighbor_states",
    Kind.SECURITY_GROUP: "security_group_states",
    Kind.ROUTER: "router_states",
    Kind.GATEWAY: "gateway_states",
}


def configuration(resource: Resource) -> Any:
    """The parsed configuration message of a resource that is no deletion."""
    return CONFIGURATION[resource.kind].FromString(resource.payload)


def references(kind: Kind, config: Any) -> Iterable[tuple[Kind, str]]:
    """What must be there before a resource of this configuration can be applied.

    A port's security groups count, because a port without its rules would be open or dead;
    a rule's remote group does not: an unknown group has no members.
    """
    if kind is Kind.NEIGHBOR:
        return [(Kind.SUBNET, ip.subnet_id) for ip in config.fixed_ips]
    if kind is Kind.PORT:
        return [
            (Kind.VPC, config.vpc_id),
            *((Kind.SUBNET, ip.subnet_id) for ip in config.fixed_ips),
            *((Kind.SECURITY_GROUP, group.id) for group in config.security_group_ids),
        ]
    if kind is Kind.DHCP:
        return [(Kind.SUBNET, config.subnet_id)]
    if kind in (Kind.SUBNET, Kind.SECURITY_GROUP, Kind.ROUTER, Kind.GATEWAY):
        own = [(Kind.VPC, config.vpc_id)] if config.vpc_id else []
        if kind is Kind.ROUTER:
            own += [(Kind.SUBNET, table.subnet_id) for table in config.subnet_routing_tables]
        return own
    return ()
