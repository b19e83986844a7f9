"""What the kit promises: isolation, an end of every process, bounds, and failures that say it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from goalstate.bus.brokers import Broker
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.testkit import (
    Agents,
    ConditionNotMet,
    Differs,
    Dpm,
    Expecting,
    IntentRefused,
    KitError,
    NotAnswered,
    NotConverged,
    ProcessFailed,
    Region,
    StreamPublisher,
    TopicReader,
    until,
)

HOSTS = """
hosts:
  - {id: host-000000, ip_address: 192.0.2.1, mac_address: "02:00:00:00:00:01", group: rack}
  - {id: host-000001, ip_address: 192.0.2.2, mac_address: "02:00:00:00:00:02", group: rack}
"""
BLUE = """
vpcs: [{id: blue, cidr: 10.0.0.0/16, tunnel_id: 5001}]
subnets: [{id: blue-a, vpc_id: blue, cidr: 10.0.1.0/24}]
ports:
  - id: vm1
    vpc_id: blue
    host_id: host-000000
    mac_address: "02:01:00:00:00:01"
    fixed_ips: [{subnet_id: blue-a, ip_address: 10.0.1.11}]
"""


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- waiting ---


def test_a_condition_that_does_not_come_is_named_with_its_bound() -> None:
    with pytest.raises(ConditionNotMet, match=r"^not within 0 s: the sun rises\nat night$"):
        until(lambda: False, "the sun rises", within=0, told=lambda: "at night")


def test_what_came_is_given() -> None:
    assert until(lambda: [1], "a list") == [1]


# --- processes ---


def test_every_process_is_ended_with_its_region(goalstate_broker: Broker, tmp_path: Path) -> None:
    with Region(goalstate_broker, tmp_path) as region:
        dpm = Dpm(region)
        sleeper = region.spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(999)"])
        pids = [dpm.process.pid, sleeper.pid]
        sleeper.pause()
        assert all(map(is_there, pids))
        dpm.close()
    assert not any(map(is_there, pids))


def test_a_process_that_ends_at_its_start_is_shown_with_its_log(goalstate_region: Region) -> None:
    dies = [sys.executable, "-c", "print('no configuration')"]
    with pytest.raises(ProcessFailed, match=r"mine-1 ended at its start(.|\n)*no configuration"):
        goalstate_region.spawn("mine", dies, ready=goalstate_region.directory / "never")


def test_a_command_that_is_none_is_named(goalstate_region: Region) -> None:
    with pytest.raises(ProcessFailed, match="there is no command /no/such/agent"):
        goalstate_region.spawn("mine", ["/no/such/agent"])


def test_a_setting_that_is_none_is_named(goalstate_region: Region) -> None:
    with pytest.raises(KitError, match="DpmConfig has no field colour; it has admin_url, "):
        Dpm(goalstate_region, colour="blue")
    with pytest.raises(KitError, match="AgentConfig has no field colour"):
        Agents(goalstate_region).start(colour="blue")


def test_a_broker_that_a_test_killed_is_there_for_the_next_one(
    goalstate_broker: Broker, request: pytest.FixtureRequest
) -> None:
    goalstate_broker.kill()
    assert goalstate_broker.ended
    region: Region = request.getfixturevalue("goalstate_region")
    assert not goalstate_broker.ended
    assert TopicReader(region).stream("vpc/blue") == []


# --- intents and convergence ---


def test_a_region_sees_nothing_of_another(
    goalstate_broker: Broker, goalstate_dpm: Dpm, goalstate_topics: TopicReader, tmp_path: Path
) -> None:
    goalstate_dpm.apply(HOSTS, BLUE)
    goalstate_topics.await_stream("vpc/blue", len, "a message")
    with Region(goalstate_broker, tmp_path) as other:
        assert TopicReader(other).stream("vpc/blue") == []
        with pytest.raises(KitError, match="no DPM was started here"):
            Expecting(other)()


def test_a_refused_intent_says_why_and_others_are_accepted(goalstate_dpm: Dpm) -> None:
    with pytest.raises(IntentRefused) as refused:
        goalstate_dpm.apply(HOSTS, "hosts: [{id: h9}]", BLUE)
    assert "intent 2 of 3 is refused:\n  hosts[0].ip_address: " in str(refused.value)
    assert {violation.path for violation in refused.value.violations} >= {"hosts[0].ip_address"}
    assert len(goalstate_dpm.accepted) == 2
    assert [port.id for port in goalstate_dpm.intent().ports] == ["vm1"]
    with pytest.raises(KitError, match=r"the intent:1: vpcs\[0\].cidrs: Vpc has no such field"):
        goalstate_dpm.apply("vpcs: [{id: a, cidrs: []}]")


def test_hosts_that_lag_are_named_with_the_reason_and_the_logs(goalstate_dpm: Dpm) -> None:
    goalstate_dpm.apply(HOSTS, BLUE)
    with pytest.raises(NotConverged) as failed:
        goalstate_dpm.wait(vpc="blue", within=0.1)
    first, second, *_ = str(failed.value).splitlines()
    assert first == (
        "not converged within 0.1 s: VPC 'blue' is on 0 of 1 hosts concerned, 1 are needed"
    )
    assert second.startswith("  host host-000000: never reported; ")
    assert f"dpm-1 (runs, pid {goalstate_dpm.process.pid}); the end of " in str(failed.value)
    assert [one.host for one in failed.value.reply.stragglers] == ["host-000000"]


def test_a_silent_host_is_waited_for_unless_it_may_be_left_out(
    goalstate_dpm: Dpm, goalstate_agents: Agents
) -> None:
    fleet = goalstate_agents.start(hosts=2, lease_s=1)
    goalstate_dpm.apply(BLUE)
    goalstate_dpm.wait()
    fleet.kill()
    goalstate_agents.region.until(
        lambda: goalstate_dpm.status().hosts_expired == 2, "the leases are over"
    )
    goalstate_dpm.apply("vpcs: [{id: blue, cidr: 10.0.0.0/16, tunnel_id: 7}]")
    with pytest.raises(NotConverged, match="silent, their lease is over: host-000000"):
        goalstate_dpm.wait(within=0.1)
    fleet.restart()
    goalstate_dpm.wait()


def test_a_dead_dpm_is_told_and_comes_back_where_it_was(goalstate_dpm: Dpm) -> None:
    goalstate_dpm.apply(HOSTS)
    goalstate_dpm.kill()
    with pytest.raises(NotAnswered) as dead:
        goalstate_dpm.status()
    assert f"no DPM answers at {goalstate_dpm.address}" in str(dead.value)
    assert "dpm-1 (has ended, pid was " in str(dead.value)
    address = goalstate_dpm.address
    goalstate_dpm.restart()
    assert goalstate_dpm.address == address
    assert goalstate_dpm.status().objects["host"] == 2


def test_of_two_dpms_the_one_that_serves_is_asked(
    goalstate_region: Region, goalstate_dpm: Dpm, goalstate_agents: Agents
) -> None:
    standby = Dpm(goalstate_region, "standby")
    goalstate_agents.start()
    goalstate_dpm.apply(BLUE)
    assert goalstate_region.serving_dpm() == goalstate_dpm.address
    goalstate_dpm.kill()
    goalstate_region.until(
        lambda: standby.status().role == api.StatusReply.ACTIVE, "the other one serves"
    )
    assert goalstate_region.serving_dpm() == standby.address
    Expecting(goalstate_region)().assert_agents(goalstate_agents)
    standby.kill()
    with pytest.raises(NotAnswered, match=r"no DPM serves the region: no DPM answers at"):
        goalstate_region.serving_dpm()


class TestOfSecurityGroups:
    """The settings of the DPM are overridden for the tests of a class."""

    @pytest.fixture
    def goalstate_dpm_settings(self) -> dict[str, object]:
        return {"security_groups": "own-stream"}

    def test_the_settings_of_a_dpm_are_a_fixture(
        self, goalstate_dpm: Dpm, goalstate_agents: Agents, goalstate_expected: Expecting
    ) -> None:
        goalstate_agents.start()
        group = "security_groups: [{id: web, vpc_id: blue, rules: [{id: out, direction: EGRESS}]}]"
        goalstate_dpm.apply(BLUE.rstrip() + "\n    security_group_ids: [web]\n" + group)
        goalstate_dpm.wait()
        assert goalstate_expected().follows("host-000000") == {"vpc/blue", "sg/web"}
        goalstate_expected().assert_agents(goalstate_agents)


# --- what is held ---


def test_a_difference_is_said_field_by_field(goalstate_expected: Expecting) -> None:
    expected = goalstate_expected(HOSTS, BLUE)
    held = expected.tables("host-000000")
    expected.assert_holds("host-000000", held, follows=["vpc/blue"])
    held["port"]["vm1"].mac_address = "02:66:00:00:00:01"
    held["neighbor"]["vm9"] = held["neighbor"].pop("vm1")
    del held["subnet"]["blue-a"]
    with pytest.raises(Differs) as differs:
        expected.assert_holds("host-000000", held, follows=["vpc/red"])
    assert str(differs.value).splitlines() == [
        "host host-000000 does not hold what it must, 6 differences:",
        "  neighbor vm1: missing (stream vpc/blue)",
        "  neighbor vm9: must not be there",
        "  port vm1: mac_address is 02:66:00:00:00:01, must be 02:01:00:00:00:01",
        "  subnet blue-a: missing (stream vpc/blue)",
        "  subscription vpc/blue: missing",
        "  subscription vpc/red: unexpected",
    ]
    assert len(differs.value.differences) == 6


def test_bytes_are_taken_and_revisions_are_not_compared(goalstate_expected: Expecting) -> None:
    expected = goalstate_expected(HOSTS, BLUE)
    held = expected.tables("host-000000")
    for table in held.values():
        for id_, configuration in table.items():
            configuration.revision_number = 7
            table[id_] = configuration.SerializeToString()
    expected.assert_holds("host-000000", held)
    held["vpc"]["blue"] = b"\xff"
    with pytest.raises(Differs, match="vpc blue: these bytes are none"):
        expected.assert_holds("host-000000", held)


def test_tables_that_are_none_are_refused(goalstate_expected: Expecting) -> None:
    expected = goalstate_expected(HOSTS, BLUE)
    vpc = resources_pb2.VpcConfiguration(id="vm1")
    with pytest.raises(KitError, match="'vms' is no kind of resource; the kinds are vpc, subnet"):
        expected.differences("host-000000", {"vms": {"vm1": vpc}})
    with pytest.raises(KitError, match="port vm1: a PortConfiguration or its bytes were expected"):
        expected.differences("host-000000", {"port": {"vm1": vpc}})
    with pytest.raises(KitError, match=r"there is no host 'h7'.*there are host-000000, "):
        expected.tables("h7")


def test_what_is_waited_for_says_in_the_end_what_differs(goalstate_expected: Expecting) -> None:
    expected = goalstate_expected(HOSTS, BLUE)
    with pytest.raises(Differs, match=r"^not within 0 s: host host-000000 does not hold(.|\n)*vm1"):
        expected.await_holds("host-000000", lambda: {}, within=0)


def test_agents_are_compared_and_a_host_that_nobody_plays_is_named(
    goalstate_agents: Agents, goalstate_expected: Expecting
) -> None:
    goalstate_agents.start(hosts=1)
    with pytest.raises(Differs, match="port vm1: missing"):
        goalstate_expected(HOSTS.replace("host-000001", "host-000000"), BLUE).assert_agents(
            goalstate_agents
        )
    with pytest.raises(KitError, match="no agent plays host 'host-000001'"):
        goalstate_expected(HOSTS, BLUE).assert_agents(goalstate_agents)


# --- topics ---


def test_a_stream_has_one_writer(
    goalstate_dpm: Dpm, goalstate_publisher: StreamPublisher, goalstate_topics: TopicReader
) -> None:
    goalstate_dpm.apply(HOSTS, BLUE)
    goalstate_topics.await_stream("vpc/blue", len, "a message")
    with pytest.raises(KitError, match="vpc/blue has another writer: stop the DPM first"):
        goalstate_publisher.delete("vpc/blue", "vpc", "blue")


@pytest.mark.parametrize("wrong", ["schema", "stream", "checksum"])
def test_what_is_no_message_of_a_stream_is_shown(
    wrong: str, goalstate_publisher: StreamPublisher, goalstate_topics: TopicReader
) -> None:
    goalstate_publisher.put("vpc/blue", resources_pb2.VpcConfiguration(id="blue"))
    payload = goalstate_topics.stream("vpc/blue")[0].payload
    properties, why = {
        "schema": ({}, "missing"),
        "stream": (goalstate_publisher.envelope("vpc/red", payload), "says that it is of vpc/red"),
        "checksum": (goalstate_publisher.envelope("vpc/blue", b""), "is [0-9a-f]+, that of the"),
    }[wrong]
    goalstate_publisher.send("vpc/blue", payload, properties)
    with pytest.raises(KitError, match=f"message 2 on .*vpc/blue: .*{wrong}.*: {why}"):
        goalstate_topics.stream("vpc/blue")


def test_what_names_no_stream_is_refused(goalstate_topics: TopicReader) -> None:
    with pytest.raises(KitError, match="'blue' names no stream"):
        goalstate_topics.stream("blue")


def test_a_publisher_that_loses_a_message_is_found_out(
    goalstate_publisher: StreamPublisher, goalstate_topics: TopicReader
) -> None:
    publisher, vpc = goalstate_publisher, resources_pb2.VpcConfiguration
    publisher.put("vpc/blue", vpc(id="blue"))
    publisher.again("vpc/blue")
    publisher.new_epoch()
    publisher.put("vpc/blue", vpc(id="blue", tunnel_id=7))
    assert len(goalstate_topics.assert_lawful("vpc/blue")) == 3
    publisher.put("vpc/blue", vpc(id="blue", tunnel_id=8), lost=True)
    publisher.put("vpc/blue", vpc(id="blue", tunnel_id=9))
    with pytest.raises(KitError, match=r"message 4 of 4 on vpc/blue \(2/3\) breaks(.|\n)*2/1"):
        goalstate_topics.assert_lawful("vpc/blue")
    with pytest.raises(KitError, match="there is no 9th last"):
        publisher.again("vpc/blue", back=9)
