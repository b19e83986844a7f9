"""Random intents for one small region: most of them can be accepted, and many cannot.

There are few ids and few addresses of each kind, so that the same objects are put, altered, moved,
deleted and put again all the time, and get in each other's way. Some values are written in another
way than the usual one. What is drawn follows from the source of chance alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from random import Random
from typing import Any, NamedTuple

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

K = ObjectKind


class Size(NamedTuple):
    """How much there is of a region. All are numbered from 1, ports within their VPC."""

    hosts: int = 7
    vpcs: int = 3
    ports: int = 5
    #: What VPCs may ask to travel on.
    channels: tuple[ChannelChoice, ...] = (ChannelChoice.AUTO,)


#: In each VPC. The last subnet is of IPv6.
SUBNETS = (1, 2, 6)
GROUPS = (1, 2)
GATEWAYS = (1, 2)


def rack(host: int) -> str:
    """The group that a host usually is in."""
    return f"rack-{host % 2}"


def block(vpc: int, subnet: int) -> str:
    return f"fd00:{vpc}:0:6::/64" if subnet == 6 else f"10.{vpc}.{subnet}.0/24"


def id_of(kind: ObjectKind, vpc: int, number: int) -> str:
    """The id of an object; a host's VPC, and the number of what is once in a VPC, mean nothing."""
    if kind is K.HOST:
        return f"h{number}"
    if kind is K.VPC:
        return f"v{vpc}"
    if kind is K.ROUTER:
        return f"v{vpc}-router"
    return f"v{vpc}-{kind.name.lower()}-{number}"


def region(size: Size = Size()) -> list[Intent]:
    """What to begin with: hosts in two racks, and VPCs with a few ports.

    It needs three hosts and three ports in a VPC.
    """
    hosts = tuple(
        Host(id_of(K.HOST, 0, n), f"100.64.0.{n}", f"02:00:00:00:00:{n:02x}", rack(n))
        for n in range(1, size.hosts + 1)
    )
    return [Intent(hosts=hosts), *map(_network, range(1, size.vpcs + 1))]


def _network(vpc: int) -> Intent:
    id_ = id_of(K.VPC, vpc, 0)
    return Intent(
        vpcs=(Vpc(id_, "", "", f"10.{vpc}.0.0/16", vpc, (f"fd00:{vpc}::/48",)),),
        subnets=tuple(Subnet(id_of(K.SUBNET, vpc, n), id_, cidr=block(vpc, n)) for n in SUBNETS),
        security_groups=tuple(
            SecurityGroup(id_of(K.SECURITY_GROUP, vpc, n), id_, rules=(Rule("all"),))
            for n in GROUPS
        ),
        ports=tuple(
            Port(
                id_of(K.PORT, vpc, n),
                id_,
                mac_address=f"02:01:00:00:{vpc:02x}:{n + 9:02x}",
                host_id=id_of(K.HOST, vpc, n),
                fixed_ips=(FixedIp(id_of(K.SUBNET, vpc, 1), f"10.{vpc}.1.{n + 10}"),),
                security_group_ids=(id_of(K.SECURITY_GROUP, vpc, 1),),
            )
            for n in (1, 2, 3)
        ),
        dhcps=tuple(Dhcp(id_of(K.DHCP, vpc, n), id_of(K.PORT, vpc, n)) for n in (1, 2)),
    )


class IntentSource:
    """Intents for a `region` of that size, drawn one after the other."""

    def __init__(self, random: Random, size: Size = Size()) -> None:
        self._random = random
        self._channels = size.channels
        self._hosts = range(1, size.hosts + 1)
        self._vpcs = range(1, size.vpcs + 1)
        self._numbers = range(1, size.ports + 1)
        #: The numbers of the objects of each kind, within a VPC where they are of one.
        self._of_kind: dict[ObjectKind, Sequence[int]] = {
            K.HOST: self._hosts,
            K.VPC: (0,),
            K.SUBNET: SUBNETS,
            K.SECURITY_GROUP: GROUPS,
            K.ROUTER: (0,),
            K.GATEWAY: GATEWAYS,
            K.PORT: self._numbers,
            K.DHCP: self._numbers,
        }
        #: How often each part of an intent is drawn, of a hundred.
        self._shares: dict[Callable[[int], Intent], int] = {
            self._host: 12,
            self._vpc: 8,
            self._subnet: 8,
            self._security_group: 10,
            self._router: 6,
            self._gateway: 5,
            self._ports: 25,
            self._dhcp: 12,
            self._deletion: 14,
        }

    def intent(self) -> Intent:
        """One to four parts, of any VPCs, in one intent."""
        drawn = self._random.choices(
            list(self._shares),
            list(self._shares.values()),
            k=self._random.choice((1, 1, 2, 4)),
        )
        parts: list[Any] = [draw(self._random.choice(self._vpcs)) for draw in drawn]
        return Intent(*(tuple(chain.from_iterable(field)) for field in zip(*parts, strict=True)))

    def switch(self) -> Intent:
        """A VPC asks for what it is to travel on."""
        (usual,) = _network(self._random.choice(self._vpcs)).vpcs
        return Intent(vpcs=(usual._replace(channel=self._random.choice(self._channels)),))

    def _happens(self, share: float) -> bool:
        return self._random.random() < share

    def _some(self, kind: ObjectKind, vpc: int, at_most: int) -> tuple[str, ...]:
        """Ids of that kind, in any order."""
        ids = [id_of(kind, vpc, n) for n in self._of_kind[kind][:at_most]]
        return tuple(self._random.sample(ids, self._random.randint(0, len(ids))))

    def _host(self, vpc: int) -> Intent:
        random = self._random
        n = random.choice(self._hosts)
        ip = f"100.64.{random.choice((0, 1))}.{n}"
        mac = f"02:00:00:00:0{random.choice((0, 1))}:{n + 9:02X}"
        group = random.choice((rack(0), rack(1))) if self._happens(0.3) else rack(n)
        return Intent(hosts=(Host(id_of(K.HOST, vpc, n), ip, mac, group),))

    def _vpc(self, vpc: int) -> Intent:
        random = self._random
        (usual,) = _network(vpc).vpcs
        # The last may be another VPC's tunnel.
        tunnel = random.choice((vpc, vpc, vpc + 20, vpc + 1))
        name = random.choice(("", "renamed"))
        # Not drawn where there is no choice.
        channel = random.choice(self._channels) if len(self._channels) > 1 else self._channels[0]
        return Intent(vpcs=(usual._replace(name=name, tunnel_id=tunnel, channel=channel),))

    def _subnet(self, vpc: int) -> Intent:
        random = self._random
        n = random.choice(SUBNETS)
        gateway_ip = f"FD00:{vpc}:0:6::1" if n == 6 else f"10.{vpc}.{n}.1"
        subnet = Subnet(
            id_of(K.SUBNET, vpc, n),
            id_of(K.VPC, vpc, 0),
            cidr=block(vpc, n),
            gateway_ip=random.choice(("", gateway_ip)),
            dhcp_enable=self._happens(0.5),
            tunnel_id=random.choice((0, 0, 100 + 10 * vpc + n)),
            dns=random.choice(((), ("FD00::1", "8.8.8.8"))),
            dhcp_options=random.choice(((), (("domain-name", "example"), ("mtu", "1450")))),
        )
        return Intent(subnets=(subnet,))

    def _security_group(self, vpc: int) -> Intent:
        random = self._random
        n = random.choice(GROUPS)
        group = SecurityGroup(
            id_of(K.SECURITY_GROUP, vpc, n),
            id_of(K.VPC, vpc, 0),
            random.choice(("", "renamed")),
            tuple(self._rule(vpc, number) for number in range(random.randint(0, 3))),
        )
        return Intent(security_groups=(group,))

    def _rule(self, vpc: int, number: int) -> Rule:
        random = self._random
        protocol = random.choice(list(Protocol))
        ports = (5, 9) if protocol in (Protocol.TCP, Protocol.UDP) else (0, 0)
        # Only one of the two ways to say who the others are may be taken.
        groups = [id_of(K.SECURITY_GROUP, vpc, n) for n in GROUPS] if number == 0 else []
        return Rule(
            f"rule-{number}",
            direction=random.choice(list(Direction)),
            protocol=protocol,
            port_min=ports[0],
            port_max=ports[1],
            remote_ip_prefix="" if number == 0 else random.choice(("", "10.0.0.0/8")),
            remote_group_id=random.choice(["", *groups]),
        )

    def _router(self, vpc: int) -> Intent:
        router = Router(
            id_of(K.ROUTER, vpc, 0),
            id_of(K.VPC, vpc, 0),
            mac_address="02-0A-00-00-00-01",
            subnet_ids=self._some(K.SUBNET, vpc, 2),
            routes=(Route("default", "0.0.0.0/0", f"10.{vpc}.1.1", 3),)
            if self._happens(0.5)
            else (),
        )
        return Intent(routers=(router,))

    def _gateway(self, vpc: int) -> Intent:
        random = self._random
        id_ = id_of(K.GATEWAY, vpc, random.choice(GATEWAYS))
        destinations = (Destination("1.2.3.4", "02:00:00:00:00:0A"),)
        type_ = random.choice(list(GatewayType))
        return Intent(gateways=(Gateway(id_, id_of(K.VPC, vpc, 0), type_, destinations),))

    def _ports(self, vpc: int) -> Intent:
        """One port, or two, which may take each other's addresses."""
        numbers = self._random.sample(self._numbers, self._random.choice((1, 2)))
        return Intent(ports=tuple(self._port(vpc, n) for n in numbers))

    def _port(self, vpc: int, number: int) -> Port:
        random = self._random
        subnet = random.choice((1, 1, 2))
        place = number + random.choice((10, 10, 11))
        ips = [FixedIp(id_of(K.SUBNET, vpc, subnet), f"10.{vpc}.{subnet}.{place}")]
        if self._happens(0.2):
            ips.append(FixedIp(id_of(K.SUBNET, vpc, 6), f"FD00:{vpc}:0:6:0:0:0:{number}"))
        random.shuffle(ips)
        mac = f"02:01:00:00:{vpc:02x}:{number + random.choice((9, 9, 10)):02X}"
        return Port(
            id_of(K.PORT, vpc, number),
            id_of(K.VPC, vpc, 0),
            random.choice(("", "renamed")),
            mac,
            host_id=random.choice(["", *(id_of(K.HOST, vpc, n) for n in self._hosts)]),
            fixed_ips=tuple(ips),
            allowed_address_pairs=random.choice(((), (AddressPair("192.168.0.0/16"),))),
            security_group_ids=self._some(K.SECURITY_GROUP, vpc, 2),
            admin_down=self._happens(0.2),
        )

    def _dhcp(self, vpc: int) -> Intent:
        random = self._random
        n = random.choice(self._numbers)
        port_id = id_of(K.PORT, vpc, random.choice((n, n, n, 1)))
        return Intent(dhcps=(Dhcp(id_of(K.DHCP, vpc, n), port_id, random.choice(("", "name"))),))

    def _deletion(self, vpc: int) -> Intent:
        # What others need is deleted less often: little can be accepted until it is there again.
        kind = self._random.choice((*K, K.GATEWAY, K.PORT, K.PORT, K.DHCP, K.DHCP, K.DHCP))
        id_ = id_of(kind, vpc, self._random.choice(self._of_kind[kind]))
        return Intent(deletes=(Deletion(kind, id_, cascade=self._happens(0.4)),))
