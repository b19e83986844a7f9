"""A small region by hand: two subnets, a router, two groups, three hosts; and its applied state.

host-a (100.64.0.1)   web-1  10.0.1.10   groups: web
host-b (100.64.0.2)   db-1   10.0.2.10   groups: db    (tcp 5432 from members of web)
host-c (100.64.0.3)   web-2  10.0.1.11   groups: web
"""

from __future__ import annotations

from typing import Any

from goalstate.cli.held import Held
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import HostSummary
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

VPC = "vpc-1"
STREAM = "vpc/vpc-1"
HOST_IPS = {"host-a": "100.64.0.1", "host-b": "100.64.0.2", "host-c": "100.64.0.3"}
#: Port → (host, subnet, IP, MAC, groups).
PORTS: dict[str, tuple[str, str, str, str, tuple[str, ...]]] = {
    "web-1": ("host-a", "front", "10.0.1.10", "02:00:00:00:01:10", ("web",)),
    "db-1": ("host-b", "back", "10.0.2.10", "02:00:00:00:02:10", ("db",)),
    "web-2": ("host-c", "front", "10.0.1.11", "02:00:00:00:01:11", ("web",)),
}
_GROUP = resources_pb2.SecurityGroupConfiguration


def rule(id_: str, direction: Any, protocol: Any, **more: Any) -> Any:
    return _GROUP.SecurityGroupRule(id=id_, direction=direction, protocol=protocol, **more)


def vpc_state() -> goalstate_pb2.GoalStateV2:
    """What every host holds of the VPC's stream when it has everything."""
    state = goalstate_pb2.GoalStateV2(format_version=102)
    vpc = state.vpc_states[VPC].configuration
    vpc.id, vpc.cidr, vpc.tunnel_id, vpc.revision_number = VPC, "10.0.0.0/16", 77, 1
    for id_, cidr in (("front", "10.0.1.0/24"), ("back", "10.0.2.0/24")):
        subnet = state.subnet_states[id_].configuration
        subnet.id, subnet.cidr, subnet.vpc_id, subnet.tunnel_id = id_, cidr, VPC, 77
        subnet.revision_number = 1
    router = state.router_states["r1"].configuration
    router.id, router.vpc_id, router.revision_number = "r1", VPC, 1
    for id_ in ("front", "back"):
        router.subnet_routing_tables.add(subnet_id=id_)
    web = state.security_group_states["web"].configuration
    web.id, web.vpc_id, web.revision_number = "web", VPC, 1
    web.security_group_rules.extend(
        [
            rule("out-tcp", _GROUP.EGRESS, resources_pb2.TCP),
            rule(
                "in-web",
                _GROUP.INGRESS,
                resources_pb2.TCP,
                port_range_min=443,
                port_range_max=443,
                remote_ip_prefix="10.0.0.0/16",
            ),
        ]
    )
    db = state.security_group_states["db"].configuration
    db.id, db.vpc_id, db.revision_number = "db", VPC, 1
    db.security_group_rules.append(
        rule(
            "in-db",
            _GROUP.INGRESS,
            resources_pb2.TCP,
            port_range_min=5432,
            port_range_max=5432,
            remote_group_id="web",
        )
    )
    for id_, (host, subnet_id, ip, mac, groups) in PORTS.items():
        neighbor = state.neighbor_states[id_].configuration
        neighbor.id, neighbor.vpc_id, neighbor.mac_address = id_, VPC, mac
        neighbor.host_ip_address, neighbor.revision_number = HOST_IPS[host], 1
        neighbor.fixed_ips.add(subnet_id=subnet_id, ip_address=ip)
        neighbor.security_group_ids.extend(groups)
    return state


def inbox_state(host: str) -> goalstate_pb2.GoalStateV2:
    """What a host holds of its inbox: its ports, and the subscription to the VPC."""
    state = goalstate_pb2.GoalStateV2(format_version=102)
    for id_, (on, subnet_id, ip, mac, groups) in PORTS.items():
        if on != host:
            continue
        port = state.port_states[id_].configuration
        port.id, port.vpc_id, port.mac_address, port.admin_state_up = id_, VPC, mac, True
        port.host_info.ip_address, port.revision_number = HOST_IPS[host], 1
        port.fixed_ips.add(subnet_id=subnet_id, ip_address=ip)
        for group in groups:
            port.security_group_ids.add(id=group)
    state.host_resources[host].subscriptions.add(stream=STREAM, revision_number=1)
    return state


def held(host: str, vpc: Any = None, inbox: Any = None, *, counting: bool = False) -> Held:
    """A host's applied state, by default whole."""
    result = Held(HostSummary(host=host, counting=counting))
    result.add(f"inbox/{host}-rack", inbox if inbox is not None else inbox_state(host))
    if not counting:
        result.add(STREAM, vpc if vpc is not None else vpc_state())
    return result


def intent() -> intent_pb2.Intent:
    """The intent that all of this follows from."""
    whole = intent_pb2.Intent()
    for id_, ip in HOST_IPS.items():
        mac = f"02:00:00:00:00:0{ip[-1]}"
        whole.hosts.add(id=id_, ip_address=ip, mac_address=mac, group=f"{id_}-rack")
    whole.vpcs.add(id=VPC, name="shop", cidr="10.0.0.0/16", tunnel_id=77)
    whole.subnets.add(id="front", vpc_id=VPC, cidr="10.0.1.0/24")
    whole.subnets.add(id="back", vpc_id=VPC, cidr="10.0.2.0/24")
    whole.routers.add(id="r1", vpc_id=VPC, subnet_ids=["front", "back"])
    group = intent_pb2.SecurityGroup
    web = whole.security_groups.add(id="web", vpc_id=VPC)
    web.rules.add(id="out-tcp", direction=group.EGRESS, protocol=group.TCP)
    web.rules.add(
        id="in-web",
        direction=group.INGRESS,
        protocol=group.TCP,
        port_min=443,
        port_max=443,
        remote_ip_prefix="10.0.0.0/16",
    )
    db = whole.security_groups.add(id="db", vpc_id=VPC)
    db.rules.add(
        id="in-db",
        direction=group.INGRESS,
        protocol=group.TCP,
        port_min=5432,
        port_max=5432,
        remote_group_id="web",
    )
    for id_, (host, subnet_id, ip, mac, groups) in PORTS.items():
        port = whole.ports.add(id=id_, vpc_id=VPC, mac_address=mac, host_id=host)
        port.fixed_ips.add(subnet_id=subnet_id, ip_address=ip)
        port.security_group_ids.extend(groups)
    return whole
