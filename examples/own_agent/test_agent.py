"""The agent beside us against a real publisher, and against messages that come as they should not.

Whoever has another agent changes `OwnAgent`: how it is started, and how one sees what it holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.testkit import Agents, Dpm, Expecting, Region, StreamPublisher, TopicReader

AGENT = Path(__file__).with_name("agent.py")
HOSTS = """
hosts:
  - {id: h1, ip_address: 192.0.2.1, mac_address: "02:00:00:00:00:01", group: rack-1}
  - {id: h2, ip_address: 192.0.2.2, mac_address: "02:00:00:00:00:02", group: rack-1}
"""
NETWORK = """
vpcs:
  - {id: blue, cidr: 10.0.0.0/16, tunnel_id: 5001}
subnets:
  - {id: blue-a, vpc_id: blue, cidr: 10.0.1.0/24, gateway_ip: 10.0.1.1}
security_groups:
  - {id: web, vpc_id: blue, rules: [{id: out, direction: EGRESS}]}
"""


def port(number: int, host: str) -> str:
    return f"""
ports:
  - id: vm{number}
    vpc_id: blue
    host_id: {host}
    mac_address: "02:01:00:00:00:{number:02x}"
    fixed_ips: [{{subnet_id: blue-a, ip_address: 10.0.1.{10 + number}}}]
    security_group_ids: [web]
"""


class OwnAgent:
    """The agent of one host, as a process."""

    def __init__(self, region: Region, host: str = "h1", group: str = "rack-1") -> None:
        self.host = host
        self.file = region.directory / f"{host}.json"
        command = [sys.executable, AGENT, "--broker", region.broker.url, "--region", region.name]
        command += ["--host", host, "--group", group, "--state", self.file]
        self.process = region.spawn(f"own agent of {host}", command, ready=self.file)

    def tables(self) -> dict[str, dict[str, bytes]]:
        """What it holds, as the kit wants it: kind → id → configuration."""
        tables = json.loads(self.file.read_text("utf-8"))["tables"]
        return {
            kind: {id_: bytes.fromhex(text) for id_, text in table.items()}
            for kind, table in tables.items()
        }

    def follows(self) -> list[str]:
        follows: list[str] = json.loads(self.file.read_text("utf-8"))["follows"]
        return follows


@pytest.fixture
def agent(goalstate_region: Region) -> OwnAgent:
    return OwnAgent(goalstate_region)


def test_it_converges_and_holds_what_it_must(
    goalstate_dpm: Dpm, agent: OwnAgent, goalstate_expected: Expecting
) -> None:
    goalstate_dpm.apply(HOSTS, NETWORK, port(1, "h1"), port(2, "h1"))
    goalstate_dpm.wait()
    goalstate_expected().assert_holds("h1", agent.tables(), follows=agent.follows())


def test_it_stands_beside_our_agents(
    goalstate_dpm: Dpm, agent: OwnAgent, goalstate_agents: Agents, goalstate_expected: Expecting
) -> None:
    goalstate_agents.start(hosts=2)  # host-000000 and host-000001, made known to the DPM
    goalstate_dpm.apply(HOSTS, NETWORK, port(1, "h1"), port(2, "host-000000"))
    goalstate_dpm.apply(port(2, "host-000001"))
    goalstate_dpm.apply("deletes: [{kind: SECURITY_GROUP, id: web, cascade: true}]")
    goalstate_dpm.wait(vpc="blue")
    expected = goalstate_expected()
    expected.assert_holds("h1", agent.tables(), follows=agent.follows())
    expected.assert_agents(goalstate_agents, without=["h1", "h2"])


def test_it_leaves_what_it_has_no_port_in(
    goalstate_dpm: Dpm, agent: OwnAgent, goalstate_expected: Expecting
) -> None:
    goalstate_dpm.apply(HOSTS, NETWORK, port(1, "h1"))
    goalstate_dpm.wait()
    goalstate_dpm.apply(port(1, "h2"))
    goalstate_expected().await_holds("h1", agent.tables)
    assert agent.follows() == []


def test_it_finds_what_changed_while_it_was_dead(
    goalstate_dpm: Dpm, agent: OwnAgent, goalstate_expected: Expecting
) -> None:
    goalstate_dpm.apply(HOSTS, NETWORK, port(1, "h1"), port(2, "h1"))
    goalstate_dpm.wait()
    agent.process.kill()
    goalstate_dpm.apply(port(3, "h1"), "deletes: [{kind: PORT, id: vm1}]")
    agent.process.restart()
    goalstate_dpm.wait()
    goalstate_expected().assert_holds("h1", agent.tables(), follows=agent.follows())


def test_it_follows_a_publisher_that_was_killed(
    goalstate_dpm: Dpm, agent: OwnAgent, goalstate_expected: Expecting
) -> None:
    goalstate_dpm.apply(HOSTS, NETWORK, port(1, "h1"))
    goalstate_dpm.restart()
    goalstate_dpm.apply(port(2, "h1"))
    goalstate_dpm.wait()
    goalstate_expected().assert_holds("h1", agent.tables(), follows=agent.follows())


def test_a_message_that_comes_again_changes_nothing(
    goalstate_publisher: StreamPublisher,
    agent: OwnAgent,
    goalstate_topics: TopicReader,
) -> None:
    first = resources_pb2.VpcConfiguration(id="blue", tunnel_id=1)
    second = resources_pb2.VpcConfiguration(id="blue", tunnel_id=2)
    goalstate_publisher.subscribe("inbox/rack-1", "h1", "vpc/blue")
    goalstate_publisher.put("vpc/blue", first)
    goalstate_publisher.put("vpc/blue", second)
    goalstate_publisher.again("vpc/blue", back=2)
    goalstate_publisher.new_epoch()
    last = goalstate_publisher.put("vpc/blue", resources_pb2.SubnetConfiguration(id="blue-a"))
    goalstate_topics.await_report(
        "h1",
        lambda report: (
            (last.mark.epoch, last.mark.sequence)
            in [(one.epoch, one.sequence) for one in report.streams]
        ),
        "that it is at the last message",
    )
    held = resources_pb2.VpcConfiguration.FromString(agent.tables()["vpc"]["blue"])
    assert (held.tunnel_id, held.revision_number) == (2, 2)


def test_a_lost_message_is_not_read_over(
    goalstate_publisher: StreamPublisher, agent: OwnAgent, goalstate_region: Region
) -> None:
    goalstate_publisher.subscribe("inbox/rack-1", "h1", "vpc/blue")
    goalstate_publisher.put("vpc/blue", resources_pb2.VpcConfiguration(id="blue"))
    goalstate_publisher.put("vpc/blue", resources_pb2.SubnetConfiguration(id="a"), lost=True)
    goalstate_publisher.put("vpc/blue", resources_pb2.SubnetConfiguration(id="b"))
    log = agent.process.log
    goalstate_region.until(
        lambda: "(1, 3) came, and (1, 2) was to come" in log.read_text("utf-8"),
        "the agent says what it misses",
    )
    assert agent.tables()["subnet"] == {}
