"""Random intents for one small region: most of them can be accepted, and many cannot.

There are few ids and few addresses of each kind, so that the same objects are put, altered, moved,
deleted and put again all the time, and get in each other's way. Of what is in VPCs one of each kind
roams: it has the same id in all of them, and so is now in this one, now in that. Some values are
written in another way than the usual one. What is drawn follows from the source of chance alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from random import Random
from typing import NamedTuple

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
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

K = ObjectKind


class Size(NamedTuple):
    """How much there is of a region. All are numbered from 1, ports within their VPC."""

    hosts: int = 7
    vpcs: int = 3
    ports: int = 5
    #: What VPCs may ask to travel on.
    channels: tuple[ChannelChoice, ...] = (ChannelChoice.AUTO,)


#: The number of what roams.
ROAMING = 3
#: The kinds that do.
ROAMERS = (K.SUBNET, K.SECURITY_GROUP, K.ROUTER, K.GATEWAY, K.PORT, K.DHCP)
#: In each VPC. The last subnet is of IPv6.
SUBNETS = (1, 2, ROAMING, 6)
GROUPS = (1, 2, ROAMING)
GATEWAYS = (1, 2, ROAMING)


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
    if number == ROAMING and kind in ROAMERS:
        return f"roaming-{kind.name.lower()}"
    if kind is K.ROUTER:
        return f"v{vpc}-router"
    return f"v{vpc}-{kind.name.lower()}-{number}"


def region(size: Size = Size()) -> list[Intent]:
    """What to begin with: hosts in two racks, and VPCs with a few ports; in the first all that
    roams.

    It needs three hosts and three ports in a VPC.
    """
    hosts = tuple(
        Host(id_of(K.HOST, 0, n), f"100.64.0.{n}", f"02:00:00:00:00:{n:02x}", rack(n))
        for n in range(1, size.hosts + 1)
    )
    return [Intent(hosts=hosts), *map(_network, range(1, size.vpcs + 1))]


def _network(vpc: int) -> Intent:
    id_ = id_of(K.VPC, vpc, 0)

    def here(numbers: Iterable[int]) -> list[int]:
        return [n for n in numbers if n != ROAMING or vpc == 1]

    return Intent(
        vpcs=(Vpc(id_, "", "", f"10.{vpc}.0.0/16", vpc, (f"fd00:{vpc}::/48",)),),
        subnets=tuple(
            Subnet(id_of(K.SUBNET, vpc, n), id_, cidr=block(vpc, n)) for n in here(SUBNETS)
        ),
        security_groups=tuple(
            SecurityGroup(id_of(K.SECURITY_GROUP, vpc, n), id_, rules=(Rule("all"),))
            for n in here(GROUPS)
        ),
        routers=tuple(
            Router(id_of(K.ROUTER, vpc, n), id_, mac_address="02:0a:00:00:00:01")
            for n in here((ROAMING,))
        ),
        gateways=tuple(Gateway(id_of(K.GATEWAY, vpc, n), id_) for n in here((ROAMING,))),
        ports=tuple(
            Port(
                id_of(K.PORT, vpc, n),
                id_,
                mac_address=f"02:01:00:00:{vpc:02x}:{n + 9:02x}",
                host_id=id_of(K.HOST, vpc, n),
                fixed_ips=(FixedIp(id_of(K.SUBNET, vpc, 1), f"10.{vpc}.1.{n + 10}"),),
                security_group_ids=(id_of(K.SECURITY_GROUP, vpc, 1),),
            )
            for n in here((1, 2, ROAMING))
        ),
        dhcps=tuple(Dhcp(id_of(K.DHCP, vpc, n), id_of(K.PORT, vpc, n)) for n in here((2, ROAMING))),
    )


_Draw = Callable[[int, int], Intent]
#: How often a part of an intent is a deletion, of a hundred.
_DELETIONS = 14


class IntentSource:
    """Intents for a `region` of that size, drawn one after the other."""

    def __init__(self, random: Random, size: Size = Size()) -> None:
        self._random = random
        self._channels = size.channels
        self._hosts = range(1, size.hosts + 1)
        self._vpcs = range(1, size.vpcs + 1)
        self._numbers = range(1, size.ports + 1)
        #: The VPC that each of what roams was to move to last.
        self._moved = dict.fromkeys(ROAMERS, 1)
        #: What the next intent is to be.
        self._due: list[Intent] = []
        #: Of each kind: how often it is drawn, of a hundred parts of intents; the numbers, within
        #: a VPC where it is of one; how an object is drawn, for a VPC and by its number.
        self._kinds: dict[ObjectKind, tuple[int, Sequence[int], _Draw]] = {
            K.HOST: (12, self._hosts, self._host),
            K.VPC: (8, (0,), self._vpc),
            K.SUBNET: (8, SUBNETS, self._subnet),
            K.SECURITY_GROUP: (10, GROUPS, self._security_group),
            K.ROUTER: (6, (0, 0, ROAMING), self._router),
            K.GATEWAY: (5, GATEWAYS, self._gateway),
            K.PORT: (25, self._numbers, self._ports),
            K.DHCP: (12, self._numbers, self._dhcp),
        }

    def intent(self) -> Intent:
        """One to four parts, of any VPCs, in one intent; or a step of a move."""
        if self._due:
            return self._due.pop()
        if self._happens(0.25):
            return self._move()
        kinds = self._random.choices(
            (*self._kinds, None),
            [*(share for share, _, _ in self._kinds.values()), _DELETIONS],
            k=self._random.choice((1, 1, 2, 4)),
        )
        return _together(self._part(kind) for kind in kinds)

    def switch(self) -> Intent:
        """A VPC asks for what it is to travel on."""
        (usual,) = _network(self._random.choice(self._vpcs)).vpcs
        return Intent(vpcs=(usual._replace(channel=self._random.choice(self._channels)),))

    def _happens(self, share: float) -> bool:
        return self._random.random() < share

    def _part(self, kind: ObjectKind | None) -> Intent:
        """An object of that kind; None: a deletion."""
        vpc = self._random.choice(self._vpcs)
        if kind is None:
            return self._deletion(vpc)
        _, numbers, draw = self._kinds[kind]
        return draw(vpc, self._random.choice(numbers))

    def _move(self) -> Intent:
        """Some of what roams is deleted, and put into another VPC: by the next intent, or by the
        same one, which must be refused."""
        random = self._random
        # Ports are what most follows from.
        kinds = set(random.choices((*ROAMERS, K.PORT, K.PORT), k=random.choice((1, 1, 2))))
        others = [vpc for vpc in self._vpcs if vpc != self._moved[min(kinds)]]
        vpc = random.choice(others or self._vpcs)
        deletions, puts = [], []
        for kind in sorted(kinds):
            id_ = id_of(kind, vpc, ROAMING)
            deletions.append(Deletion(kind, id_, cascade=self._happens(0.7)))
            _, _, draw = self._kinds[kind]
            puts.append(draw(vpc, ROAMING))
            self._moved[kind] = vpc
        deletion = Intent(deletes=tuple(deletions))
        if self._happens(0.1):
            return _together((deletion, *puts))
        self._due.append(_together(puts))
        return deletion

    def _some(self, kind: ObjectKind, vpc: int) -> tuple[str, ...]:
        """Ids of that kind, in any order; of the first two, mostly."""
        numbers = (1, 2, ROAMING) if self._happens(0.3) else (1, 2)
        ids = [id_of(kind, vpc, n) for n in numbers]
        return tuple(self._random.sample(ids, self._random.randint(0, len(ids))))

    def _host(self, vpc: int, n: int) -> Intent:
        random = self._random
        ip = f"100.64.{random.choice((0, 1))}.{n}"
        mac = f"02:00:00:00:0{random.choice((0, 1))}:{n + 9:02X}"
        group = random.choice((rack(0), rack(1))) if self._happens(0.3) else rack(n)
        return Intent(hosts=(Host(id_of(K.HOST, vpc, n), ip, mac, group),))

    def _vpc(self, vpc: int, _: int) -> Intent:
        random = self._random
        (usual,) = _network(vpc).vpcs
        # The last may be another VPC's tunnel.
        tunnel = random.choice((vpc, vpc, vpc + 20, vpc + 1))
        name = random.choice(("", "renamed"))
        # Not drawn where there is no choice.
        channel = random.choice(self._channels) if len(self._channels) > 1 else self._channels[0]
        return Intent(vpcs=(usual._replace(name=name, tunnel_id=tunnel, channel=channel),))

    def _subnet(self, vpc: int, n: int) -> Intent:
        random = self._random
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

    def _security_group(self, vpc: int, n: int) -> Intent:
        random = self._random
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

    def _router(self, vpc: int, n: int) -> Intent:
        router = Router(
            id_of(K.ROUTER, vpc, n),
            id_of(K.VPC, vpc, 0),
            mac_address="02-0A-00-00-00-01",
            subnet_ids=self._some(K.SUBNET, vpc),
            routes=(Route("default", "0.0.0.0/0", f"10.{vpc}.1.1", 3),)
            if self._happens(0.5)
            else (),
        )
        return Intent(routers=(router,))

    def _gateway(self, vpc: int, n: int) -> Intent:
        id_ = id_of(K.GATEWAY, vpc, n)
        destinations = (Destination("1.2.3.4", "02:00:00:00:00:0A"),)
        type_ = self._random.choice(list(GatewayType))
        return Intent(gateways=(Gateway(id_, id_of(K.VPC, vpc, 0), type_, destinations),))

    def _ports(self, vpc: int, number: int) -> Intent:
        """One port, or two, which may take each other's addresses."""
        others = [n for n in self._numbers if n != number]
        numbers = (number, *self._random.sample(others, self._random.choice((0, 1))))
        return Intent(ports=tuple(self._port(vpc, n) for n in numbers))

    def _port(self, vpc: int, number: int) -> Port:
        random = self._random
        subnet = random.choice((1, 1, 1, 2, 2, ROAMING))
        place = number + random.choice((10, 10, 11))
        ips = [FixedIp(id_of(K.SUBNET, vpc, subnet), f"10.{vpc}.{subnet}.{place}")]
        if self._happens(0.25):
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
            security_group_ids=self._some(K.SECURITY_GROUP, vpc),
            admin_down=self._happens(0.2),
        )

    def _dhcp(self, vpc: int, n: int) -> Intent:
        random = self._random
        port_id = id_of(K.PORT, vpc, random.choice((n, n, n, 1)))
        return Intent(dhcps=(Dhcp(id_of(K.DHCP, vpc, n), port_id, random.choice(("", "name"))),))

    def _deletion(self, vpc: int) -> Intent:
        # What others need is deleted less often: little can be accepted until it is there again.
        kind = self._random.choice((*K, K.GATEWAY, K.PORT, K.PORT, K.DHCP, K.DHCP, K.DHCP))
        _, numbers, _ = self._kinds[kind]
        id_ = id_of(kind, vpc, self._random.choice(numbers))
        return Intent(deletes=(Deletion(kind, id_, cascade=self._happens(0.4)),))


def moves(accepted: Iterable[intent_pb2.Intent]) -> int:
    """How often an id was put into another VPC than it had been in, by intents in their order."""
    count = 0
    where: dict[tuple[str, str], str] = {}
    for intent in accepted:
        for field in ("subnets", "security_groups", "routers", "gateways", "ports"):
            for one in getattr(intent, field):
                count += where.get((field, one.id), one.vpc_id) != one.vpc_id
                where[field, one.id] = one.vpc_id
    return count


def _together(parts: Iterable[Intent]) -> Intent:
    return Intent(*(tuple(chain.from_iterable(field)) for field in zip(*parts, strict=True)))
