"""A small region that tests of intent start from, and what one can do with a desired state."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from goalstate.gs.desired import Changes, Desired
from goalstate.gs.errors import IntentRejected, Violation
from goalstate.gs.intent import (
    Destination,
    Dhcp,
    FixedIp,
    Gateway,
    Host,
    Intent,
    Port,
    Protocol,
    Route,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)

HOSTS = tuple(
    Host(f"h{i}", f"100.64.0.{i}", f"02:00:00:00:00:0{i}", "rack-1", "site") for i in (1, 2, 3)
)
VPCS = (
    Vpc("v1", "one", "tenant", "10.0.0.0/16", 1, ("fd00::/48",)),
    Vpc("v2", "two", "tenant", "10.0.0.0/16", 2),
)
SUBNETS = (
    Subnet("s1", "v1", "s1", "10.0.1.0/24", "10.0.1.1", "02:00:00:00:01:01"),
    Subnet("s2", "v1", "s2", "10.0.2.0/24", tunnel_id=12),
    Subnet("s6", "v1", "s6", "fd00:0:0:1::/64", "fd00:0:0:1::1"),
    Subnet("t1", "v2", "t1", "10.0.1.0/24"),
)
GROUPS = (
    SecurityGroup("g1", "v1", "g1", (Rule("r1", remote_ip_prefix="10.0.0.0/8"),)),
    SecurityGroup(
        "g2",
        "v1",
        "g2",
        (
            Rule("r1", protocol=Protocol.TCP, port_min=80, port_max=80, remote_group_id="g1"),
            Rule("r2", remote_group_id="g2"),
        ),
    ),
    SecurityGroup("k1", "v2", "k1"),
)
ROUTERS = (
    Router(
        "x1", "v1", "x1", "02:00:00:00:0a:01", ("s1",), (Route("a", "0.0.0.0/0", "10.0.1.1", 1),)
    ),
)
GATEWAYS = (Gateway("y1", "v1", 1, (Destination("100.64.9.9", "02:00:00:00:0b:01"),)),)


def port(number: int, **fields: Any) -> Port:
    """Port p<number> of VPC v1: 10.0.1.<number> on h1, a member of g1, but for `fields`."""
    values: dict[str, Any] = {
        "id": f"p{number}",
        "vpc_id": "v1",
        "mac_address": f"02:00:00:01:00:{number:02x}",
        "host_id": "h1",
        "fixed_ips": (FixedIp("s1", f"10.0.1.{number}"),),
        "security_group_ids": ("g1",),
    }
    return Port(**(values | fields))


PORTS = (
    port(7),
    port(8, host_id="h2", security_group_ids=("g1", "g2")),
    port(9, host_id="", fixed_ips=(), security_group_ids=()),
    port(10, fixed_ips=(FixedIp("s2", "10.0.2.10"), FixedIp("s6", "fd00:0:0:1::10"))),
    Port(
        "q1", "v2", mac_address="02:00:00:01:00:07", host_id="h2",
        fixed_ips=(FixedIp("t1", "10.0.1.7"),),
    ),
)  # fmt: skip
DHCPS = (Dhcp("d1", "p7", "seven"),)

BASE = Intent(HOSTS, VPCS, SUBNETS, GROUPS, ROUTERS, GATEWAYS, PORTS, DHCPS)


def apply(desired: Desired, intent: Intent) -> Changes:
    changes = desired.plan(intent)
    desired.commit(changes)
    return changes


def region() -> Desired:
    desired = Desired()
    apply(desired, BASE)
    return desired


def violations(desired: Desired, intent: Intent) -> list[Violation]:
    """What is wrong with the intent; [] if it is accepted."""
    try:
        desired.plan(intent)
    except IntentRejected as rejected:
        return rejected.violations
    return []


def snapshot(desired: Desired) -> dict[str, Any]:
    """Everything that the state holds, the order within aside."""
    return {
        name: _copied(value)
        for name, value in vars(desired).items()
        if name not in ("_link", "_unlink", "_used", "_tables")
    }


def _copied(value: Any) -> Any:
    """Containers are copied; what they hold cannot change."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(value)
    if is_dataclass(value):
        return {f.name: _copied(getattr(value, f.name)) for f in fields(value)}
    return value


def contents(desired: Desired) -> dict[str, Any]:
    """The same, but for how often it was changed."""
    held = snapshot(desired)
    del held["version"]
    return held
