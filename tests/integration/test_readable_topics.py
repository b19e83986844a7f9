"""Anyone can read the topics: with the plain Pulsar client, the Alcor schema, and nothing of ours.

What reads here is `pulsar.Client`; what decodes are classes made at run time from a table of the
schema's facts. Messages are applied in their order: CREATE and UPDATE replace, DELETE removes. What
comes of it is compared with what the accepted intents say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulsar
import pytest

from goalstate.bus.brokers import Broker
from goalstate.gs.intent import (
    AddressPair,
    Deletion,
    FixedIp,
    Host,
    Intent,
    ObjectKind,
    Port,
    SecurityGroup,
    Subnet,
    Vpc,
)
from tests.gs.test_wire_compat import plain
from tests.integration.processes import System, until

#: An id that no topic can have as its name, and that would be a partition of another one.
VPC = "tenant a/✓%2F-partition-3"
TOPIC_OF_VPC = "vpc.tenant~20a~2f~e2~9c~93~252F-partition-3.log"
OTHER = "vpc-2"
TOPIC_OF_OTHER = "vpc.vpc-2.log"
CREATE, UPDATE, DELETE = 1, 2, 4
READ_MS = 10_000


class PlainReader:
    """Reads topics as any Pulsar client does."""

    def __init__(self, url: str, log: Path) -> None:
        logger = pulsar.FileLogger(pulsar.LoggerLevel.Error, str(log))
        self._client = pulsar.Client(url, logger=logger)

    def payloads(self, topic: str) -> list[tuple[bytes, dict[str, str]]]:
        """Every message that the topic holds, with its properties."""
        reader = self._client.create_reader(topic, pulsar.MessageId.earliest)
        found = []
        while reader.has_message_available():
            message = reader.read_next(READ_MS)
            (properties,) = message.properties().values()
            found.append((message.data(), json.loads(properties)))
        reader.close()
        return found

    def close(self) -> None:
        self._client.close()


def rebuilt(payloads: list[bytes], states: str) -> dict[str, Any]:
    """Configurations by id after all messages; `states` is a map of GoalStateV2."""
    known: dict[str, Any] = {}
    state: Any
    for payload in payloads:
        message: Any = plain("GoalStateV2").FromString(payload)
        assert message.format_version == 102
        for id_, state in getattr(message, states).items():
            assert state.configuration.id == id_
            if state.operation_type == DELETE:
                del known[id_]
            else:
                # Only what is new is created.
                assert (state.operation_type == CREATE) <= (id_ not in known)
                assert state.operation_type in (CREATE, UPDATE)
                known[id_] = state.configuration
    return known


def described(neighbor: Any) -> dict[str, Any]:
    """All that the plain schema says of a neighbor."""
    return {
        "vpc": neighbor.vpc_id,
        "mac": neighbor.mac_address,
        "host": (neighbor.host_ip_address, neighbor.host_mac_address),
        "ips": [(ip.subnet_id, ip.ip_address) for ip in neighbor.fixed_ips],
        "pairs": [(pair.ip_address, pair.mac_address) for pair in neighbor.allow_address_pairs],
    }


class Tenant:
    """The intents so far, and what the neighbors of a VPC must be after them."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.ports: dict[str, Port] = {}
        #: All that there ever were.
        self.vpcs: set[str] = set()

    def took(self, intent: Intent) -> None:
        self.hosts.update({host.id: host for host in intent.hosts})
        self.ports.update({port.id: port for port in intent.ports})
        self.vpcs.update(vpc.id for vpc in intent.vpcs)
        for kind, id_, _ in intent.deletes:
            if kind == ObjectKind.PORT:
                del self.ports[id_]
            elif kind == ObjectKind.VPC:
                self.ports = {k: port for k, port in self.ports.items() if port.vpc_id != id_}

    def neighbors(self, vpc_id: str) -> dict[str, dict[str, Any]]:
        return {
            port.id: {
                "vpc": vpc_id,
                "mac": port.mac_address,
                "host": self.hosts[port.host_id][1:3],
                "ips": list(port.fixed_ips),
                "pairs": list(port.allowed_address_pairs),
            }
            for port in self.ports.values()
            if port.vpc_id == vpc_id and port.host_id
        }


def host(number: int) -> Host:
    return Host(f"host-{number}", f"100.64.0.{number}", f"02:00:00:00:00:{number:02x}", "rack")


def port(number: int, on: int, vpc: str = VPC, ip: str = "", **more: Any) -> Port:
    subnet = f"subnet of {vpc}"
    return Port(
        id=f"port {number} of {vpc}",
        vpc_id=vpc,
        mac_address=f"02:01:00:00:{number >> 8:02x}:{number & 255:02x}",
        host_id=f"host-{on}" if on else "",
        fixed_ips=(FixedIp(subnet, ip or f"10.0.{number >> 8}.{number & 255}"),),
        **more,
    )


def network(vpc: str, tunnel: int) -> Intent:
    return Intent(
        vpcs=(Vpc(vpc, "shop", "tenant", "10.0.0.0/16", tunnel, ("fd00::/48",)),),
        subnets=(
            Subnet(f"subnet of {vpc}", vpc, "one", "10.0.0.0/18"),
            Subnet(f"six of {vpc}", vpc, "six", "fd00::/64"),
        ),
        security_groups=(SecurityGroup(f"web of {vpc}", vpc, "web"),),
    )


BOTH = (FixedIp(f"subnet of {VPC}", "10.0.0.21"), FixedIp(f"six of {VPC}", "fd00::21"))
PAIRS = (AddressPair("10.0.5.0/24", ""), AddressPair("10.0.6.6", "02:00:00:00:06:06"))
#: What happens to the VPC, and how many neighbors it has afterwards.
STORY: list[tuple[str, Intent, int]] = [
    ("hosts and networks", Intent(hosts=tuple(host(n) for n in range(1, 5))), 0),
    ("a network", network(VPC, 7), 0),
    ("another network", network(OTHER, 8)._replace(ports=(port(10, 1, OTHER),)), 0),
    ("ports created", Intent(ports=tuple(port(n, n % 3 + 1) for n in range(10, 40))), 30),
    ("a port without a host", Intent(ports=(port(40, 0),)), 30),
    ("ports moved", Intent(ports=tuple(port(n, 4) for n in range(10, 14))), 30),
    ("addresses", Intent(ports=(port(21, 1)._replace(fixed_ips=BOTH),)), 30),
    ("pairs", Intent(ports=(port(22, 2, allowed_address_pairs=PAIRS),)), 30),
    (
        "two exchanged",
        Intent(ports=(port(30, 1, ip="10.0.0.31"), port(31, 1, ip="10.0.0.30"))),
        30,
    ),
    ("another host's address", Intent(hosts=(host(4)._replace(ip_address="100.64.9.9"),)), 30),
    ("a group", Intent(ports=(port(12, 4, security_group_ids=(f"web of {VPC}",)),)), 30),
    (
        "ports deleted",
        Intent(
            deletes=tuple(Deletion(ObjectKind.PORT, f"port {n} of {VPC}") for n in (10, 23, 24))
        ),
        27,
    ),
    ("one unbound", Intent(ports=(port(25, 0),)), 26),
    ("one came back", Intent(ports=(port(10, 2),)), 27),
    ("very many", Intent(ports=tuple(port(n, n % 4 + 1) for n in range(300, 5300))), 5027),
    ("deleted and made again", Intent(deletes=(Deletion(ObjectKind.VPC, VPC, True),)), 0),
    ("a network again", network(VPC, 9)._replace(ports=(port(10, 1), port(11, 2))), 2),
]


@pytest.fixture(scope="module")
def reader(
    apache_broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PlainReader]:
    one = PlainReader(apache_broker.url, tmp_path_factory.mktemp("client") / "log")
    yield one
    one.close()


@pytest.fixture(scope="module")
def published(apache_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A publisher with nothing but a broker: no host is needed to read a topic."""
    with System(apache_broker, tmp_path_factory.mktemp("region")) as one:
        one.start_dpm()
        yield one


def whole(system: System, reader: PlainReader, stream: str, name: str) -> list[tuple[bytes, Any]]:
    """All messages of a stream, once as many are there as the publisher has published."""
    topic = f"persistent://goalstate/{system.region}/{name}"
    heads = {s.stream: (s.topic, s.sequence) for s in system.client.status().streams}
    assert heads[stream][0] == topic
    count = heads[stream][1]

    def read() -> list[tuple[bytes, Any]]:
        messages = reader.payloads(topic)
        return messages if len(messages) >= count else []

    messages: list[tuple[bytes, Any]] = until(read, f"{count} messages on {topic}")
    return messages


def test_the_neighbors_of_a_vpc_are_rebuilt_exactly_after_every_change(
    published: System, reader: PlainReader
) -> None:
    tenant = Tenant()
    for what, intent, count in STORY:
        published.apply([intent])
        tenant.took(intent)
        if VPC not in tenant.vpcs:
            continue  # nothing is published for it yet
        messages = whole(published, reader, f"vpc/{VPC}", TOPIC_OF_VPC)
        found = rebuilt([payload for payload, _ in messages], "neighbor_states")
        expected = tenant.neighbors(VPC)
        assert len(expected) == count, what
        assert {id_: described(neighbor) for id_, neighbor in found.items()} == expected, what
    chunks = {properties["chunk"] for _, properties in messages}
    assert "3/3" in chunks, "no change was larger than a message"
    others = rebuilt(
        [payload for payload, _ in whole(published, reader, f"vpc/{OTHER}", TOPIC_OF_OTHER)],
        "neighbor_states",
    )
    assert {i: described(n) for i, n in others.items()} == tenant.neighbors(OTHER)


def test_the_rest_of_a_vpc_can_be_read_too(published: System, reader: PlainReader) -> None:
    payloads = [p for p, _ in whole(published, reader, f"vpc/{OTHER}", TOPIC_OF_OTHER)]
    [vpc] = rebuilt(payloads, "vpc_states").values()
    assert (vpc.id, vpc.cidr, vpc.tunnel_id, vpc.name) == (OTHER, "10.0.0.0/16", 8, "shop")
    subnets = rebuilt(payloads, "subnet_states")
    assert {subnet.cidr for subnet in subnets.values()} == {"10.0.0.0/18", "fd00::/64"}
    assert set(rebuilt(payloads, "security_group_states")) == {f"web of {OTHER}"}


def test_a_hosts_ports_can_be_read_from_its_racks_inbox(
    published: System, reader: PlainReader
) -> None:
    messages = whole(published, reader, "inbox/rack", "inbox.rack.log")
    held: dict[str, set[str]] = {}
    for payload, _ in messages:
        message: Any = plain("GoalStateV2").FromString(payload)
        for name, section in message.host_resources.items():
            for resource in section.resources:
                state = message.port_states[resource.id]
                of_host = held.setdefault(name, set())
                if state.operation_type == DELETE:
                    of_host.discard(resource.id)
                else:
                    of_host.add(resource.id)
    intent = published.client.intent()
    assert {name: ports for name, ports in held.items() if ports} == {
        name: {p.id for p in intent.ports if p.host_id == name}
        for name in {p.host_id for p in intent.ports}
    }


def test_every_message_says_its_format_before_it_is_decoded(
    published: System, reader: PlainReader
) -> None:
    for payload, properties in whole(published, reader, f"vpc/{VPC}", TOPIC_OF_VPC):
        assert payload[:2] == b"\x08\x66"
        assert properties["schema"] == "102"
