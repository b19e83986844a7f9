"""The publisher beside us, tested with agents of goalstate: do they take what it publishes?

What must come of it is said as an intent, which no DPM gets to see: the oracle works out what every
host must hold. Whoever has another publisher changes `OwnPublisher`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.testkit import Agents, BadMessage, Expecting, Region, TopicReader

PUBLISHER = Path(__file__).with_name("publisher.py")
#: Hosts as our agents call themselves: those of a rack share an inbox.
HOSTS = [
    {
        "id": f"host-00000{number}",
        "ip": f"192.0.2.{number + 1}",
        "mac": f"02:00:00:00:00:0{number + 1}",
        "group": f"host-rack-0000{number // 2}",
    }
    for number in range(4)
]
BLUE: dict[str, Any] = {"id": "blue", "cidr": "10.0.0.0/16", "tunnel_id": 5001}
SUBNET: dict[str, Any] = {"id": "blue-a", "cidr": "10.0.1.0/24"}


def network(*hosts: int, tunnel_id: int = 5001) -> dict[str, Any]:
    """One machine on each of these hosts, by number; -1: none."""
    machines = [
        {
            "id": f"vm{number}",
            "mac": f"02:01:00:00:00:0{number}",
            "ip": f"10.0.1.{10 + number}",
            "host": HOSTS[host]["id"],
        }
        for number, host in enumerate(hosts)
        if host >= 0
    ]
    vpc = {**BLUE, "tunnel_id": tunnel_id}
    return {"vpc": vpc, "subnet": SUBNET, "hosts": HOSTS, "machines": machines}


def as_intent(wanted: dict[str, Any]) -> intent_pb2.Intent:
    """The same, as one would tell a DPM."""
    intent = intent_pb2.Intent()
    for host in wanted["hosts"]:
        intent.hosts.add(
            id=host["id"], ip_address=host["ip"], mac_address=host["mac"], group=host["group"]
        )
    intent.vpcs.add(**wanted["vpc"])
    intent.subnets.add(vpc_id=wanted["vpc"]["id"], **wanted["subnet"])
    for machine in wanted["machines"]:
        port = intent.ports.add(
            id=machine["id"],
            vpc_id=wanted["vpc"]["id"],
            host_id=machine["host"],
            mac_address=machine["mac"],
        )
        port.fixed_ips.add(subnet_id=wanted["subnet"]["id"], ip_address=machine["ip"])
    return intent


class OwnPublisher:
    """The publisher, one run after the other."""

    def __init__(self, region: Region) -> None:
        self.region = region

    def publish(self, wanted: dict[str, Any]) -> None:
        file = self.region.directory / "network.json"
        file.write_text(json.dumps(wanted), "utf-8")
        memory = file.with_name("memory.json")
        command: list[str | Path] = [sys.executable, PUBLISHER, "--memory", memory, file]
        command += ["--broker", self.region.broker.url, "--region", self.region.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def publisher(goalstate_region: Region) -> OwnPublisher:
    return OwnPublisher(goalstate_region)


def test_agents_hold_what_it_published(
    publisher: OwnPublisher, goalstate_agents: Agents, goalstate_expected: Expecting
) -> None:
    goalstate_agents.start(hosts=4, group_size=2)
    wanted = network(0, 1, 2)
    publisher.publish(wanted)
    goalstate_expected(as_intent(wanted)).await_agents(goalstate_agents)
    assert goalstate_agents.held("host-000000").exceptions == {}


#: Moved within a rack, to another rack, deleted, and all at once with a change of the VPC.
STORY = [
    network(0, 1, 2),
    network(1, 1, 2),
    network(1, 3, 2),
    network(1, -1, 2),
    network(0, 0, -1, 3, tunnel_id=5002),
]


def test_agents_follow_what_it_changes(
    publisher: OwnPublisher,
    goalstate_agents: Agents,
    goalstate_expected: Expecting,
    goalstate_topics: TopicReader,
) -> None:
    fleet = goalstate_agents.start(hosts=4, group_size=2)
    for wanted in STORY:
        publisher.publish(wanted)
        goalstate_expected(as_intent(wanted)).await_agents(goalstate_agents)
    # Each run was an epoch of its own, and somebody who comes late reads all of them.
    fleet.restart()
    goalstate_expected(as_intent(STORY[-1])).await_agents(goalstate_agents)
    for host in fleet.hosts:
        assert fleet.held(host).exceptions == {}, host
    assert goalstate_topics.stream("vpc/blue")[-1].envelope.mark.epoch == len(STORY)


def test_its_streams_keep_the_laws(
    publisher: OwnPublisher, goalstate_topics: TopicReader, goalstate_region: Region
) -> None:
    for wanted in STORY:
        publisher.publish(wanted)
    for stream in ("vpc/blue", "inbox/host-rack-00000", "inbox/host-rack-00001"):
        goalstate_topics.assert_lawful(stream)
    # A publisher that has forgotten what it said is found out.
    (goalstate_region.directory / "memory.json").unlink()
    publisher.publish(STORY[0])
    with pytest.raises(BadMessage, match="its epoch is 1, after 5"):
        goalstate_topics.assert_lawful("vpc/blue")
