"""The tenants' changes that a run makes, and what stands after them. Pure.

Laws:

1.  Every change that is not meant to be refused is valid after the ones before it in its VPC,
    whatever happens in others.
2.  Every change says who it was: each object that it puts has its mark in its name (of a DHCP
    answer, in its host name). So whoever sees an object knows which change it is of, and an older
    one is told from a newer one. Marks grow within a VPC.
3.  What a change does is written down twice: as the intent that is sent, and as the objects that
    stand and are gone afterwards (`puts`, `gone`). The second is the model that everything is
    judged by; it knows nothing of how the publisher works.

A region is a few large VPCs with ports on all hosts, and many small ones with ports on a few: most
VPCs concern few hosts, and a host follows few VPCs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import NamedTuple

from goalstate.gs import intent_codec
from goalstate.gs.intent import (
    FIELDS,
    Deletion,
    Destination,
    Dhcp,
    Direction,
    FixedIp,
    Gateway,
    GatewayType,
    Host,
    Intent,
    Object,
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
from goalstate.gs.naming import simulated_host
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2

K = ObjectKind
#: An object by its kind and id.
Key = tuple[ObjectKind, str]

_KIND_OF: dict[type, ObjectKind] = {
    Host: K.HOST,
    Vpc: K.VPC,
    Subnet: K.SUBNET,
    SecurityGroup: K.SECURITY_GROUP,
    Router: K.ROUTER,
    Gateway: K.GATEWAY,
    Port: K.PORT,
    Dhcp: K.DHCP,
}
_CIDR = "10.0.0.0/8"
#: Further subnets, which come and go and have no ports.
_MORE_SUBNETS = (1, 2, 3)
#: Beside `default`, which always has all ports of its VPC.
_GROUPS = ("web", "db", "ops")
_RULES = 4


class Shape(NamedTuple):
    """One VPC: how many ports it has, about, and on which hosts (indexes)."""

    number: int
    ports: int
    hosts: tuple[int, ...]
    #: Does it come and go as a whole?
    passing: bool

    @property
    def id(self) -> str:
        return f"vpc-{self.number:04d}"


class Change(NamedTuple):
    """One intent. `mark` is what its objects are named after."""

    mark: int
    vpc: str
    #: In a word or two, for the transcript and the counts.
    what: str
    intent: Intent
    #: What stands after it that did not stand so before, and what is gone.
    puts: Mapping[Key, Object]
    gone: frozenset[Key]
    #: What all of that was before; what is not here was not there.
    was: Mapping[Key, Object]
    #: Is it to be refused? Then it changes nothing.
    invalid: bool = False

    @property
    def touched(self) -> tuple[Key, ...]:
        return (*self.puts, *self.gone)

    def after(self, key: Key, *, made: bool) -> Object | None:
        """What a touched object is if the change came to be, or if it did not; None: not there."""
        return self.puts.get(key) if made and not self.invalid else self.was.get(key)


def key_of(object_: Object) -> Key:
    return _KIND_OF[type(object_)], object_.id


def name_of(mark: int) -> str:
    return f"c{mark:08d}"


def mark_of(name: str) -> int:
    """The mark that a name says; 0: none."""
    return int(name[1:]) if name[:1] == "c" and name[1:].isdecimal() else 0


def message(objects: Iterable[Object]) -> intent_pb2.Intent:
    """One intent with these objects."""
    whole = intent_pb2.Intent()
    for object_ in objects:
        intent_codec.add(whole, object_)
    return whole


def hosts(count: int, group_size: int) -> list[Host]:
    """The hosts as agent processes name them."""
    made = (simulated_host(index, group_size=group_size) for index in range(count))
    return [Host(one.id, one.ip_address, one.mac_address, one.group) for one in made]


def shapes(host_count: int, ports: int) -> list[Shape]:
    """VPCs with so many ports in all: a tenth in one VPC on all hosts, four tenths in VPCs on about
    every tenth host of a row, the rest in small ones on a few hosts each."""
    found: list[Shape] = []

    def add(total: int, size: int, spread: int, *, passing: bool) -> None:
        for _ in range(max(1, round(total / size))):
            number = len(found) + 1
            first = number * 7919 % host_count
            row = tuple((first + k) % host_count for k in range(min(spread, host_count)))
            found.append(Shape(number, size, row, passing))

    large = max(4, ports // 10)
    medium = min(200, max(6, ports // 50))
    small = min(40, max(4, ports // 200))
    add(large, large, host_count, passing=False)
    add(ports * 4 // 10, medium, max(3, medium // 10), passing=False)
    add(ports - large - ports * 4 // 10, small, max(2, small // 5), passing=True)
    return found


class Model:
    """What stands in one VPC, after changes of it."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}

    def apply(self, change: Change) -> None:
        if not change.invalid:
            for key in change.gone:
                del self.objects[key]
            self.objects.update(change.puts)

    def of(self, kind: ObjectKind) -> list[Object]:
        return [one for (its, _), one in self.objects.items() if its is kind]


class Tenant:
    """Makes the changes of one VPC, one after the other."""

    def __init__(self, shape: Shape, region: list[Host], seed: int) -> None:
        self.shape = shape
        self.model = Model()
        self._hosts = [region[index].id for index in shape.hosts]
        self._random = Random(f"{seed}/{shape.id}")
        self._number = 0  # of the last port that was made
        #: How often each kind of change is made, of some two hundred.
        self._kinds: dict[Callable[[int], Change], int] = {
            self._more_ports: 60,
            self._fewer_ports: 60,
            self._move: 30,
            self._membership: 10,
            self._rules: 24,
            self._subnet: 8,
            self._router: 4,
            self._gateway: 3,
            self._dhcp: 8,
            self._rename: 4,
            self._invalid: 4,
        }
        if shape.passing:
            self._kinds[self._delete_vpc] = 1

    def next(self, mark: int) -> Change:
        """A change to what stands; the caller says by `model.apply` whether it came to be."""
        if (K.VPC, self.shape.id) not in self.model.objects:
            return self.create(mark)
        while True:
            (make,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
            ports = self.ports
            # Around the number of ports that it is to have.
            if make == self._more_ports and len(ports) > 1.1 * self.shape.ports + 1:
                make = self._fewer_ports
            if make == self._fewer_ports and len(ports) < 0.9 * self.shape.ports - 1:
                make = self._more_ports
            if ports or make not in (self._fewer_ports, self._move, self._membership, self._dhcp):
                return make(mark)

    # --- kinds of changes ---

    def create(self, mark: int) -> Change:
        """The whole VPC."""
        shape, id_ = self.shape, self.shape.id
        subnets = [self._subnet_of(0, mark)]
        groups = [
            SecurityGroup(self._group_id(name), id_, name_of(mark), self._some_rules(name))
            for name in ("default", *_GROUPS)
        ]
        made: list[Object] = [Vpc(id_, name_of(mark), "", _CIDR, shape.number), *subnets, *groups]
        ports = [self._port(mark) for _ in range(shape.ports)]
        dhcps = [self._dhcp_of(port, mark) for port in ports[:: max(1, len(ports) // 10)]]
        return self._change(mark, "VPC created", [*made, *ports, *dhcps])

    def _delete_vpc(self, mark: int) -> Change:
        deletion = Deletion(K.VPC, self.shape.id, cascade=True)
        gone = frozenset(self.model.objects)
        return self._change(mark, "VPC deleted", [], [deletion], gone)

    def _more_ports(self, mark: int) -> Change:
        count = self._random.choice((1, 1, 2, 3))
        return self._change(mark, "ports created", [self._port(mark) for _ in range(count)])

    def _fewer_ports(self, mark: int) -> Change:
        ports = self.ports
        chosen = self._random.sample(ports, min(len(ports), self._random.choice((1, 1, 2, 3))))
        ids = {port.id for port in chosen}
        answers = {
            key
            for key, one in self.model.objects.items()
            if isinstance(one, Dhcp) and one.port_id in ids
        }
        deletes = [Deletion(K.PORT, id_, cascade=True) for id_ in sorted(ids)]
        return self._change(
            mark,
            "ports deleted",
            [],
            deletes,
            frozenset({*((K.PORT, id_) for id_ in ids), *answers}),
        )

    def _move(self, mark: int) -> Change:
        port = self._random.choice(self.ports)
        host = self._random.choice(self._hosts)
        moved = port._replace(host_id=host, name=name_of(mark))
        return self._change(mark, "port moved", [moved])

    def _membership(self, mark: int) -> Change:
        port = self._random.choice(self.ports)
        groups = self._memberships()
        return self._change(
            mark,
            "membership changed",
            [port._replace(security_group_ids=groups, name=name_of(mark))],
        )

    def _rules(self, mark: int) -> Change:
        name = self._random.choice(_GROUPS)
        held = self.model.objects[K.SECURITY_GROUP, self._group_id(name)]
        assert isinstance(held, SecurityGroup)
        if held.rules and self._random.random() < 0.6:
            gone = self._random.choice(held.rules)
            rules = tuple(rule for rule in held.rules if rule is not gone)
            what = "rule revoked"
        else:
            rules = self._some_rules(name)
            what = "rules changed"
        return self._change(mark, what, [held._replace(rules=rules, name=name_of(mark))])

    def _subnet(self, mark: int) -> Change:
        number = self._random.choice(_MORE_SUBNETS)
        key = (K.SUBNET, self._subnet_id(number))
        router = self.model.objects.get((K.ROUTER, self._router_id))
        joined = isinstance(router, Router) and key[1] in router.subnet_ids
        if key in self.model.objects and not joined and self._random.random() < 0.5:
            deletion = Deletion(K.SUBNET, key[1])
            return self._change(mark, "subnet deleted", [], [deletion], frozenset({key}))
        return self._change(mark, "subnet put", [self._subnet_of(number, mark)])

    def _router(self, mark: int) -> Change:
        key = (K.ROUTER, self._router_id)
        if key in self.model.objects and self._random.random() < 0.3:
            return self._change(
                mark, "router deleted", [], [Deletion(K.ROUTER, key[1])], frozenset({key})
            )
        route = Route("out", "0.0.0.0/0", "10.0.0.1", 1 + mark % 100)
        subnets = sorted(one.id for one in self.model.of(K.SUBNET))
        router = Router(
            key[1], self.shape.id, name_of(mark), "02:0a:00:00:00:01", tuple(subnets), (route,)
        )
        return self._change(mark, "router put", [router])

    def _gateway(self, mark: int) -> Change:
        key = (K.GATEWAY, f"gateway-{self.shape.number:04d}")
        if key in self.model.objects:
            return self._change(
                mark, "gateway deleted", [], [Deletion(K.GATEWAY, key[1])], frozenset({key})
            )
        end = Destination(f"100.127.{mark // 250 % 250}.{mark % 250 + 1}", "02:0e:00:00:00:01")
        gateway = Gateway(key[1], self.shape.id, GatewayType.IGW, (end,))
        return self._change(mark, "gateway put", [gateway])

    def _dhcp(self, mark: int) -> Change:
        dhcp = self._dhcp_of(self._random.choice(self.ports), mark)
        if key_of(dhcp) in self.model.objects and self._random.random() < 0.5:
            deletion = Deletion(K.DHCP, dhcp.id)
            return self._change(mark, "DHCP deleted", [], [deletion], frozenset({key_of(dhcp)}))
        return self._change(mark, "DHCP put", [dhcp])

    def _rename(self, mark: int) -> Change:
        held = self.model.objects[K.VPC, self.shape.id]
        assert isinstance(held, Vpc)
        return self._change(mark, "VPC renamed", [held._replace(name=name_of(mark))])

    def _invalid(self, mark: int) -> Change:
        """A good port, and one that cannot be: nothing of it may come to be."""
        good = self._port(mark)
        bad = self._port(mark)._replace(fixed_ips=(FixedIp(self._subnet_id(0), "172.16.0.1"),))
        change = self._change(mark, "not valid", [good, bad])
        return change._replace(invalid=True)

    # --- objects ---

    def _change(
        self,
        mark: int,
        what: str,
        puts: list[Object],
        deletes: list[Deletion] | None = None,
        gone: frozenset[Key] = frozenset(),
    ) -> Change:
        fields: dict[str, list[Object]] = {}
        for one in puts:
            fields.setdefault(FIELDS[_KIND_OF[type(one)]], []).append(one)
        intent = Intent(**fields, deletes=tuple(deletes or ()))  # type: ignore[arg-type]
        made = {key_of(one): one for one in puts}
        held = self.model.objects
        was = {key: held[key] for key in (*made, *gone) if key in held}
        return Change(mark, self.shape.id, what, intent, made, gone, was)

    @property
    def ports(self) -> list[Port]:
        return [one for one in self.model.objects.values() if isinstance(one, Port)]

    def _port(self, mark: int) -> Port:
        """A new one, at an address that no other one ever had, nor has a number before."""
        self._number += 1
        number, vpc = self._number, self.shape.number
        # Within 10.0.0.0/14: what was deleted long ago is used again.
        place = number % 200_000 + 16
        address = f"10.{place >> 16}.{place >> 8 & 255}.{place & 255}"
        octets = (
            0x02,
            vpc >> 8 & 255,
            vpc & 255,
            number >> 16 & 255,
            number >> 8 & 255,
            number & 255,
        )
        return Port(
            id=f"port-{vpc:04d}-{number:06d}",
            vpc_id=self.shape.id,
            name=name_of(mark),
            mac_address=":".join(f"{octet:02x}" for octet in octets),
            host_id=self._random.choice(self._hosts),
            fixed_ips=(FixedIp(self._subnet_id(0), address),),
            security_group_ids=self._memberships(),
        )

    def _memberships(self) -> tuple[str, ...]:
        chosen = [name for name in _GROUPS if self._random.random() < 0.3]
        return tuple(self._group_id(name) for name in ("default", *chosen))

    def _dhcp_of(self, port: Port, mark: int) -> Dhcp:
        return Dhcp(port.id.replace("port", "dhcp"), port.id, name_of(mark))

    def _some_rules(self, group: str) -> tuple[Rule, ...]:
        random = self._random
        return tuple(
            Rule(
                f"{group}-{number}",
                direction=random.choice((Direction.INGRESS, Direction.EGRESS)),
                protocol=Protocol.TCP,
                port_min=1000 + number,
                port_max=random.randrange(2000, 60000),
                remote_group_id=self._group_id("default") if random.random() < 0.5 else "",
            )
            for number in range(random.randint(1, _RULES))
        )

    def _subnet_of(self, number: int, mark: int) -> Subnet:
        block, first = (("10.0.0.0/14", "10.0.0.1"), (f"10.{number * 8}.0.0/16", ""))[number > 0]
        return Subnet(
            self._subnet_id(number), self.shape.id, name_of(mark), block, first, dhcp_enable=True
        )

    def _subnet_id(self, number: int) -> str:
        return f"subnet-{self.shape.number:04d}-{number}"

    def _group_id(self, name: str) -> str:
        return f"sg-{self.shape.number:04d}-{name}"

    @property
    def _router_id(self) -> str:
        return f"router-{self.shape.number:04d}"
