"""VPCs in pairs that differ in nothing but what they travel on, and changes to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from bench.system import System
from goalstate.gs.intent import ChannelChoice, Direction, Intent, Port, Protocol, Rule
from goalstate.gs.streams import Mark, vpc_stream
from goalstate.scale.generate import Region

#: Ports in one intent.
PIECE = 5000


class Vpc:
    """One of a region's VPCs, its ports on these hosts in turn."""

    def __init__(
        self, region: Region, number: int, channel: ChannelChoice, hosts: Sequence[int]
    ) -> None:
        self.ports = region.vpcs[number - 1]
        self.stream = vpc_stream(region.vpc_id(number))
        self._region = region
        self.number = number
        self._channel = channel
        self._hosts = hosts
        self._network = next(region.vpc_intents(number, 1))
        #: What its first port, which is a member of all groups at first, is not a member of now,
        #: and which groups have a rule more.
        self._left: set[str] = set()
        self._grown: set[str] = set()

    def intents(self) -> Iterator[Intent]:
        index = 0
        for intent in self._region.vpc_intents(self.number, PIECE):
            vpcs = tuple(vpc._replace(channel=self._channel) for vpc in intent.vpcs)
            ports = tuple(self.port(n) for n in range(index, index + len(intent.ports)))
            index += len(ports)
            yield intent._replace(vpcs=vpcs, ports=ports)

    def build(self, system: System) -> Mark:
        """Have it accepted; gives the mark that its stream is at then."""
        replies = system.apply_all(self.intents())
        return max(
            Mark(at.epoch, at.sequence)
            for reply in replies
            for at in reply.streams
            if at.stream == str(self.stream)
        )

    def port(self, index: int, host: int | None = None) -> Port:
        """One of its ports, there or on another host."""
        if host is None:
            host = self._hosts[index % len(self._hosts)]
        port = self._region.port(self.number, index)._replace(host_id=self._region.host(host).id)
        if index == 0:
            groups = (group.id for group in self._network.security_groups)
            port = port._replace(security_group_ids=tuple(groups))
        return port

    def membership(self, group: str = "db") -> Intent:
        """The first port leaves a group, or becomes a member of it again."""
        self._left ^= {self._region.group_id(self.number, group)}
        port = self.port(0)
        ids = tuple(id_ for id_ in port.security_group_ids if id_ not in self._left)
        return Intent(ports=(port._replace(security_group_ids=ids),))

    def rule(self, group: str = "db") -> Intent:
        """A group gets a rule more, or loses it again."""
        id_ = self._region.group_id(self.number, group)
        self._grown ^= {id_}
        (whole,) = (one for one in self._network.security_groups if one.id == id_)
        if id_ in self._grown:
            more = Rule(f"{id_}-more", Direction.INGRESS, protocol=Protocol.TCP, port_min=8080)
            more = more._replace(port_max=8080, remote_ip_prefix="0.0.0.0/0")
            whole = whole._replace(rules=(*whole.rules, more))
        return Intent(security_groups=(whole,))

    def members(self, group: str) -> int:
        id_ = self._region.group_id(self.number, group)
        return sum(id_ in self.port(n).security_group_ids for n in range(self.ports))


class Twins(NamedTuple):
    """The same VPC twice."""

    session: Vpc
    topic: Vpc

    @classmethod
    def of(cls, region: Region, pair: int, hosts: Sequence[int]) -> Self:
        """Pair `pair`, from 0, of a region that has its VPCs twice each."""
        return cls(
            Vpc(region, 2 * pair + 1, ChannelChoice.SESSION, hosts),
            Vpc(region, 2 * pair + 2, ChannelChoice.PULSAR, hosts),
        )


def region_of(hosts: int, sizes: Sequence[int]) -> Region:
    """A region with two VPCs of each size."""
    twice = tuple(size for size in sizes for _ in range(2))
    return Region(hosts=hosts, vpcs=twice, dhcp_share=0, pair_share=0)
