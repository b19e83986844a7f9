"""Derivation: from objects of intent to the resources that hosts need.

It works by state, not by event. A changed object only *touches* resources, by key; what each of
them must now be is then built from the desired state alone. So the result depends on the intent
as it stands and not on the path that led there, and an object that touches a resource without
altering it costs nothing on the wire.

What goes where (scope, and so the stream):

=================  ===========================================  ==============================
resource           derived from                                 stream
=================  ===========================================  ==============================
vpc                VPC, ids of its gateways                     the VPC's
subnet             subnet (and the VPC's tunnel id)             the VPC's
router, gateway    router, gateway                              the VPC's
neighbor           bound port, its host's addresses             the VPC's
security group     security group                               the VPC's, or the group's own
port, dhcp         bound port, its host; DHCP                   inbox of the host's group
subscription       which VPCs and groups a host has ports in    inbox of the host's group
=================  ===========================================  ==============================

A subscription also says what its stream travels on, which is not for this module to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from goalstate.gs.desired import Changes, Desired, ObjectChange
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
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import (
    Channel,
    StreamId,
    StreamKind,
    inbox_stream,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.topics import Topics, of_session

# Configurations that come by the thousand are made empty and filled field by field: giving the
# fields to the constructor takes more than twice as long.
_FULL = resources_pb2.FULL
_CREATE = resources_pb2.CREATE
_PORT = resources_pb2.PortConfiguration
_NEIGHBOR = resources_pb2.NeighborConfiguration
_DHCP = resources_pb2.DHCPConfiguration
_GROUP = resources_pb2.SecurityGroupConfiguration
_SUBSCRIPTION = goalstate_pb2.NodeSubscribeInfo

# A named tuple's own constructor is a Python function and takes twice as long.
_new: Any = tuple.__new__

#: Names that many ports have in common.
_NAMES = 1 << 14
_vpc_stream = lru_cache(_NAMES)(vpc_stream)
_inbox_stream = lru_cache(_NAMES)(inbox_stream)
_parsed = lru_cache(_NAMES)(StreamId.parse)


@lru_cache(_NAMES)
def _vpc_stream_name(vpc_id: str) -> str:
    return str(vpc_stream(vpc_id))


class Key(NamedTuple):
    """Identity of a derived resource. Only a subscription's includes its host."""

    kind: Kind
    id: str
    host: str = ""


class Derived(NamedTuple):
    """A resource as the desired state has it, but for its revision."""

    stream: StreamId
    host: str  # on an inbox stream, the host that it is for; else ""
    vpc: str  # the VPC that it belongs to
    config: Any


class Derivation:
    """What each resource must be, for one way of placing them on streams."""

    def __init__(
        self,
        desired: Desired,
        topics: Topics,
        *,
        security_groups_own_stream: bool = False,
        channel: Callable[[str], Channel] = lambda vpc: Channel.PULSAR,
    ) -> None:
        """`channel`: what the streams of a VPC, given by its id, travel on."""
        self._desired = desired
        self._ports: Mapping[str, Port] = desired.table(ObjectKind.PORT)
        self._hosts: Mapping[str, Host] = desired.table(ObjectKind.HOST)
        self._topic = lru_cache(_NAMES)(topics.of_stream)
        self._own_stream = security_groups_own_stream
        self._channel = channel

    # --- which resources a change touches ---

    def touched(self, changes: Changes) -> dict[Key, None]:
        """Keys of the resources that may differ now, in an order that is the same at each run.

        To be called after the changes were committed to the desired state.
        """
        keys: dict[Key, None] = {}
        for change in changes:
            kind, before, after = change
            if kind is ObjectKind.PORT:
                self._touch_by_port(before, after, keys)
            else:
                keys.update(dict.fromkeys(self._touched_by(change)))
        return keys

    def revoking(self, changes: Changes) -> set[Key]:
        """Keys of the resources of which a change takes a permission away (see `ordering`).

        Told from the objects: what was published before is not kept.
        """
        keys: set[Key] = set()
        for kind, before, after in changes:
            if before is None or after is None:
                continue
            if kind is ObjectKind.SECURITY_GROUP:
                had = {rule._replace(id="") for rule in before.rules}
                if not had <= {rule._replace(id="") for rule in after.rules}:
                    keys.add(Key(Kind.SECURITY_GROUP, after.id))
            elif kind is ObjectKind.PORT:
                left = not set(before.security_group_ids) <= set(after.security_group_ids)
                if left:
                    keys.add(Key(Kind.NEIGHBOR, after.id))
                if left or (after.admin_down and not before.admin_down):
                    keys.add(Key(Kind.PORT, after.id))
        return keys

    def _touched_by(self, change: ObjectChange) -> Iterator[Key]:
        """By a change of anything but a port."""
        kind, before, after = change
        some = after if after is not None else before
        if kind is ObjectKind.HOST:
            if before is not None and after is not None and _underlay(before) != _underlay(after):
                for port_id in sorted(self._desired.ports_of_host(after.id)):
                    yield Key(Kind.PORT, port_id)
                    yield Key(Kind.NEIGHBOR, port_id)
        elif kind is ObjectKind.VPC:
            yield Key(Kind.VPC, some.id)
            if before is not None and after is not None and before.tunnel_id != after.tunnel_id:
                for subnet_id in sorted(self._desired.subnets_of_vpc(some.id)):
                    yield Key(Kind.SUBNET, subnet_id)
        elif kind is ObjectKind.GATEWAY:
            yield Key(Kind.GATEWAY, some.id)
            for end in (before, after):
                if end is not None:
                    yield Key(Kind.VPC, end.vpc_id)
        elif kind is ObjectKind.DHCP:
            yield Key(Kind.DHCP, some.id)
        elif kind is ObjectKind.SUBNET:
            yield Key(Kind.SUBNET, some.id)
        elif kind is ObjectKind.SECURITY_GROUP:
            yield Key(Kind.SECURITY_GROUP, some.id)
        elif kind is ObjectKind.ROUTER:
            yield Key(Kind.ROUTER, some.id)

    def _touch_by_port(
        self, before: Port | None, after: Port | None, keys: dict[Key, None]
    ) -> None:
        some = after or before
        assert some is not None
        keys[_new(Key, (Kind.PORT, some.id, ""))] = None
        if before is None or after is None or _location(before) != _location(after):
            keys[_new(Key, (Kind.NEIGHBOR, some.id, ""))] = None
            for end in (before, after):
                if end is not None and end.host_id:
                    name = _vpc_stream_name(end.vpc_id)
                    keys[_new(Key, (Kind.SUBSCRIPTION, name, end.host_id))] = None
                    if self._own_stream:
                        for group in end.security_group_ids:
                            name = str(security_group_stream(group))
                            keys[Key(Kind.SUBSCRIPTION, name, end.host_id)] = None
        for dhcp_id in self._desired.dhcps_of_port(some.id):
            keys[Key(Kind.DHCP, dhcp_id)] = None

    def subscriptions_of_vpc(self, vpc_id: str) -> Iterator[Key]:
        """All that name a stream of the VPC, in an order that is the same at each run."""
        for stream in self.streams_of_vpc(vpc_id):
            of_vpc = stream.kind is StreamKind.VPC
            hosts = (self._desired.hosts_of_vpc if of_vpc else self._desired.hosts_of_group)(
                stream.id
            )
            for host in sorted(hosts):
                yield Key(Kind.SUBSCRIPTION, str(stream), host)

    def streams_of_vpc(self, vpc_id: str) -> list[StreamId]:
        """Its own, and those of its security groups that have one; sorted."""
        groups = sorted(self._desired.groups_of_vpc(vpc_id)) if self._own_stream else []
        return [vpc_stream(vpc_id), *map(security_group_stream, groups)]

    # --- what is on a stream ---

    def on_stream(self, stream: StreamId) -> Iterator[Key]:
        """Keys of all resources that are on the stream when this is called, each once.

        Costs what the stream is large, and may be read on while the state changes. Some may be of
        no resource: those of ports that are not bound.
        """
        if stream.kind is StreamKind.INBOX:
            return iter(self._on_inbox(stream.id))
        if stream.kind is StreamKind.SECURITY_GROUP:
            return iter([Key(Kind.SECURITY_GROUP, stream.id)] if self._own_stream else [])
        desired, id_ = self._desired, stream.id
        keys = [Key(Kind.VPC, id_)]
        keys += (Key(Kind.SUBNET, subnet) for subnet in desired.subnets_of_vpc(id_))
        if not self._own_stream:
            keys += (Key(Kind.SECURITY_GROUP, group) for group in desired.groups_of_vpc(id_))
        keys += (Key(Kind.ROUTER, router) for router in desired.routers_of_vpc(id_))
        keys += (Key(Kind.GATEWAY, gateway) for gateway in desired.gateways_of_vpc(id_))
        # There may be a hundred thousand: at once only their ids are listed.
        ports = list(desired.ports_of_vpc(id_))
        return chain(keys, (_new(Key, (Kind.NEIGHBOR, port, "")) for port in ports))

    def _on_inbox(self, group: str) -> dict[Key, None]:
        keys: dict[Key, None] = {}
        for host in self._desired.hosts_in_group(group):
            for port_id in self._desired.ports_of_host(host):
                port = self._ports[port_id]
                streams = [vpc_stream(port.vpc_id)]
                if self._own_stream:
                    streams += map(security_group_stream, port.security_group_ids)
                keys.update((Key(Kind.SUBSCRIPTION, str(name), host), None) for name in streams)
                keys[Key(Kind.PORT, port_id)] = None
                for dhcp in self._desired.dhcps_of_port(port_id):
                    keys[Key(Kind.DHCP, dhcp)] = None
        return keys

    # --- what a resource must be ---

    def build(self, key: Key) -> Derived | None:
        """The resource as the desired state has it now; None: it must not be."""
        derived: Derived | None = _BUILDERS[key.kind](self, key)
        return derived

    def _vpc(self, key: Key) -> Derived | None:
        vpc: Vpc | None = self._desired.get(ObjectKind.VPC, key.id)
        if vpc is None:
            return None
        config = resources_pb2.VpcConfiguration(
            id=vpc.id,
            update_type=_FULL,
            project_id=vpc.project_id,
            name=vpc.name,
            cidr=vpc.cidr,
            tunnel_id=vpc.tunnel_id,
            gateway_ids=sorted(self._desired.gateways_of_vpc(vpc.id)),
        )
        return Derived(_vpc_stream(vpc.id), "", vpc.id, config)

    def _subnet(self, key: Key) -> Derived | None:
        subnet: Subnet | None = self._desired.get(ObjectKind.SUBNET, key.id)
        if subnet is None:
            return None
        vpc: Vpc = self._desired.get(ObjectKind.VPC, subnet.vpc_id)
        config = resources_pb2.SubnetConfiguration(
            id=subnet.id,
            update_type=_FULL,
            network_type=resources_pb2.VXLAN,
            vpc_id=subnet.vpc_id,
            name=subnet.name,
            cidr=subnet.cidr,
            tunnel_id=subnet.tunnel_id or vpc.tunnel_id,
            dhcp_enable=subnet.dhcp_enable,
            extra_dhcp_options=[
                resources_pb2.SubnetConfiguration.ExtraDhcpOption(name=name, value=value)
                for name, value in sorted(subnet.dhcp_options)
            ],
            dns_entry_list=[
                resources_pb2.SubnetConfiguration.DnsEntry(entry=entry) for entry in subnet.dns
            ],
            availability_zone=subnet.availability_zone,
        )
        if subnet.gateway_ip or subnet.gateway_mac:
            config.gateway.ip_address = subnet.gateway_ip
            config.gateway.mac_address = subnet.gateway_mac
        return Derived(_vpc_stream(subnet.vpc_id), "", subnet.vpc_id, config)

    def _security_group(self, key: Key) -> Derived | None:
        group: SecurityGroup | None = self._desired.get(ObjectKind.SECURITY_GROUP, key.id)
        if group is None:
            return None
        config = _GROUP(id=group.id, update_type=_FULL, vpc_id=group.vpc_id, name=group.name)
        for rule in group.rules:
            for suffix, protocol in _PROTOCOLS[rule.protocol]:
                config.security_group_rules.add(
                    operation_type=_CREATE,
                    security_group_id=group.id,
                    id=rule.id + suffix,
                    direction=rule.direction,
                    ethertype=rule.ethertype,
                    protocol=protocol,
                    port_range_min=rule.port_min,
                    port_range_max=rule.port_max,
                    remote_ip_prefix=rule.remote_ip_prefix,
                    remote_group_id=rule.remote_group_id,
                )
        stream = security_group_stream(group.id) if self._own_stream else _vpc_stream(group.vpc_id)
        return Derived(stream, "", group.vpc_id, config)

    def _router(self, key: Key) -> Derived | None:
        router: Router | None = self._desired.get(ObjectKind.ROUTER, key.id)
        if router is None:
            return None
        config = resources_pb2.RouterConfiguration(
            id=router.id,
            update_type=_FULL,
            host_dvr_mac_address=router.mac_address,
            vpc_id=router.vpc_id,
        )
        for subnet_id in router.subnet_ids:
            table = config.subnet_routing_tables.add(subnet_id=subnet_id)
            for route in router.routes:
                table.routing_rules.add(
                    operation_type=_CREATE,
                    id=route.id,
                    destination=route.destination,
                    next_hop_ip=route.next_hop_ip,
                    priority=route.priority,
                )
        return Derived(_vpc_stream(router.vpc_id), "", router.vpc_id, config)

    def _gateway(self, key: Key) -> Derived | None:
        gateway: Gateway | None = self._desired.get(ObjectKind.GATEWAY, key.id)
        if gateway is None:
            return None
        config = resources_pb2.GatewayConfiguration(
            id=gateway.id,
            gateway_type=gateway.type,  # type: ignore[arg-type]
            vpc_id=gateway.vpc_id,
        )
        for ip, mac in gateway.destinations:
            config.destinations.add(ip_address=ip, mac_address=mac)
        return Derived(_vpc_stream(gateway.vpc_id), "", gateway.vpc_id, config)

    def _bound(self, port_id: str) -> tuple[Port, Host] | None:
        port = self._ports.get(port_id)
        if port is None or not port.host_id:
            return None
        return port, self._hosts[port.host_id]

    def _port(self, key: Key) -> Derived | None:
        bound = self._bound(key.id)
        if bound is None:
            return None
        port, host = bound
        config = _PORT()
        config.id = port.id
        config.update_type = _FULL
        config.vpc_id = port.vpc_id
        config.name = port.name
        config.device_id = port.device_id
        config.device_owner = port.device_owner
        config.mac_address = port.mac_address
        config.admin_state_up = not port.admin_down
        info = config.host_info
        info.ip_address = host.ip_address
        info.mac_address = host.mac_address
        _add_addresses(config, port)
        if port.security_group_ids:
            groups = config.security_group_ids
            for group in port.security_group_ids:
                groups.add().id = group
        derived: Derived = _new(Derived, (_inbox_stream(host.group), host.id, port.vpc_id, config))
        return derived

    def _neighbor(self, key: Key) -> Derived | None:
        bound = self._bound(key.id)
        if bound is None:
            return None
        port, host = bound
        config = _NEIGHBOR()
        config.id = port.id
        config.update_type = _FULL
        config.vpc_id = port.vpc_id
        config.mac_address = port.mac_address
        config.host_mac_address = host.mac_address
        config.host_ip_address = host.ip_address
        _add_addresses(config, port)
        if port.security_group_ids:
            config.security_group_ids.extend(port.security_group_ids)
        derived: Derived = _new(Derived, (_vpc_stream(port.vpc_id), "", port.vpc_id, config))
        return derived

    def _dhcp(self, key: Key) -> Derived | None:
        dhcp: Dhcp | None = self._desired.get(ObjectKind.DHCP, key.id)
        bound = self._bound(dhcp.port_id) if dhcp is not None else None
        if dhcp is None or bound is None:
            return None
        port, host = bound
        config = _DHCP()
        config.id = dhcp.id
        config.update_type = _FULL
        config.mac_address = port.mac_address
        config.port_host_name = dhcp.host_name
        config.port_id = dhcp.port_id
        if port.fixed_ips:
            config.subnet_id = port.fixed_ips[0].subnet_id
        # The first address of each family.
        for _, ip in reversed(port.fixed_ips):
            if ":" in ip:
                config.ipv6_address = ip
            else:
                config.ipv4_address = ip
        derived: Derived = _new(Derived, (_inbox_stream(host.group), host.id, port.vpc_id, config))
        return derived

    def _subscription(self, key: Key) -> Derived | None:
        host = self._hosts.get(key.host)
        if host is None:
            return None
        stream = _parsed(key.id)
        if stream.kind is StreamKind.VPC:
            vpc_id = stream.id
            if host.id not in self._desired.hosts_of_vpc(vpc_id):
                return None
        else:
            group: SecurityGroup | None = self._desired.get(ObjectKind.SECURITY_GROUP, stream.id)
            if group is None or host.id not in self._desired.hosts_of_group(group.id):
                return None
            vpc_id = group.vpc_id
        config: Any = _SUBSCRIPTION()
        config.subscribe_operation = goalstate_pb2.Subscribe
        channel = self._channel(vpc_id)
        session = channel is Channel.SESSION
        config.topic = of_session(stream) if session else self._topic(stream)
        config.stream = key.id
        config.channel = int(channel)
        derived: Derived = _new(Derived, (_inbox_stream(host.group), host.id, vpc_id, config))
        return derived


def _add_addresses(config: Any, port: Port) -> None:
    """The addresses of a port, to its configuration or to its neighbor's."""
    addresses = config.fixed_ips
    for subnet_id, ip in port.fixed_ips:
        address = addresses.add()
        address.subnet_id = subnet_id
        address.ip_address = ip
    for ip, mac in port.allowed_address_pairs:
        config.allow_address_pairs.add(ip_address=ip, mac_address=mac)


def _underlay(host: Host) -> tuple[str, str]:
    return host.ip_address, host.mac_address


def _location(port: Port) -> tuple[object, ...]:
    """What others know of a port: a change of anything else does not concern them."""
    return (
        port.vpc_id,
        port.host_id,
        port.mac_address,
        port.fixed_ips,
        port.allowed_address_pairs,
        port.security_group_ids,
    )


# Alcor has no "any protocol": the rule is sent once for each.
_TCP = ("/tcp", resources_pb2.TCP)
_UDP = ("/udp", resources_pb2.UDP)
_ICMP = ("/icmp", resources_pb2.ICMP)
_PROTOCOLS: dict[int, tuple[tuple[str, Any], ...]] = {
    0: (_TCP, _UDP, _ICMP),
    1: (("", resources_pb2.TCP),),
    2: (("", resources_pb2.UDP),),
    3: (("", resources_pb2.ICMP),),
}

_BUILDERS: dict[Kind, Any] = {
    Kind.VPC: Derivation._vpc,
    Kind.SUBNET: Derivation._subnet,
    Kind.SECURITY_GROUP: Derivation._security_group,
    Kind.ROUTER: Derivation._router,
    Kind.GATEWAY: Derivation._gateway,
    Kind.PORT: Derivation._port,
    Kind.NEIGHBOR: Derivation._neighbor,
    Kind.DHCP: Derivation._dhcp,
    Kind.SUBSCRIPTION: Derivation._subscription,
}
