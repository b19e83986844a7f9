"""`diff`."""

from __future__ import annotations

import grpc
import pytest

from goalstate.scale import oracle
from tests.cli import region
from tests.cli.conftest import Run
from tests.cli.servers import Agent, Publisher


@pytest.fixture(autouse=True)
def hosts_hold_what_follows_from_intent(agent: Agent, publisher: Publisher) -> None:
    """Give the hosts the oracle's own configurations, so that there is no difference."""
    expected = oracle.expected([publisher.intent])
    for host, streams in agent.hosts.items():
        inbox, vpc = streams[f"inbox/{host}-rack"], streams[region.STREAM]
        for state, kinds in (
            (inbox, expected.inboxes[host]),
            (vpc, expected.streams[region.STREAM]),
        ):
            for kind, configurations in kinds.items():
                states = getattr(state, f"{kind}_states")
                for id_, configuration in configurations.items():
                    states[id_].configuration.CopyFrom(configuration)
                    states[id_].configuration.revision_number = 4


def test_equal_states_are_no_difference(run: Run) -> None:
    ran = run("diff")
    assert ran.code == 0, ran
    assert "no differences on 3 hosts at change 7" in ran.out
    assert run("diff", "--json").document == {
        "change": 7,
        "change_after": 7,
        "hosts_compared": 3,
        "counting_hosts": [],
        "unknown_hosts": {},
        "differences_total": 0,
        "differences_by_host": {},
        "differences": [],
        "resources": 27,
    }


def test_every_difference_is_named_with_its_host(run: Run, agent: Agent) -> None:
    vpc = agent.hosts["host-a"][region.STREAM]
    del vpc.neighbor_states["db-1"]
    vpc.subnet_states["front"].configuration.tunnel_id = 5
    agent.hosts["host-b"]["inbox/host-b-rack"].port_states["x"].configuration.id = "x"
    ran = run("diff", "--json")
    assert ran.code == 1
    document = ran.document
    assert document["differences_total"] == 3
    assert document["differences_by_host"] == {"host-a": 2, "host-b": 1}
    assert [(d["host"], d["kind"], d["id"]) for d in document["differences"]] == [
        ("host-a", "neighbor", "db-1"),
        ("host-a", "subnet", "front"),
        ("host-b", "port", "x"),
    ]
    out = run("diff", "--limit", "1").out
    assert "… and 2 more" in out
    assert "3 differences on 2 of 3 hosts" in out


def test_a_counting_host_is_listed_and_only_its_inbox_compared(run: Run, agent: Agent) -> None:
    agent.counting.add("host-a")
    ran = run("diff")
    assert ran.code == 0, ran
    assert "1 counting hosts: not decoded" in ran.out
    del agent.hosts["host-a"]["inbox/host-a-rack"].port_states["web-1"]
    assert run("diff").code == 1


def test_a_host_that_cannot_be_asked_is_unknown_and_not_equal(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    publisher.status.host_list[0].inspection_address = ""
    del agent.hosts["host-b"]
    ran = run("diff", "--json")
    assert ran.code == 3
    assert ran.document["hosts_compared"] == 1
    assert set(ran.document["unknown_hosts"]) == {"host-a", "host-b"}
    out = run("diff").out
    assert "2 hosts are unknown" in out
    assert "host-a): no agent process says that it plays this host" in out


def test_an_agent_process_that_fails_makes_its_hosts_unknown(run: Run, agent: Agent) -> None:
    agent.failure = (grpc.StatusCode.UNAVAILABLE, "stopping")
    ran = run("diff")
    assert ran.code == 3
    assert "stopping" in ran.out
    assert "no host could be compared" in ran.out


def test_a_difference_counts_more_than_an_unknown_host(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    publisher.status.host_list[0].inspection_address = ""
    del agent.hosts["host-b"][region.STREAM].neighbor_states["db-1"]
    assert run("diff").code == 1


def test_the_comparison_can_be_narrowed_to_a_host_or_a_vpc(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    publisher.intent.vpcs.add(id="empty", cidr="10.9.0.0/16", tunnel_id=9)
    del agent.hosts["host-b"][region.STREAM].neighbor_states["db-1"]
    assert run("diff", "--host", "host-a").code == 0
    assert run("diff", "--host", "host-b").code == 1
    assert run("diff", "--vpc", region.VPC).code == 1
    assert run("diff", "--vpc", "empty", "--json").document["hosts_compared"] == 0
    assert run("diff", "--vpc", "nothing").code == 2
    assert run("diff", "--host", "nothing").code == 2


def test_groups_on_streams_of_their_own_are_expected_there(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    publisher.status.streams.add(stream="sg/web")
    ran = run("diff", "--host", "host-a", "--json")
    assert ran.code == 1
    kinds = {(d["kind"], d["id"]) for d in ran.document["differences"]}
    assert ("subscription", "sg/web") in kinds


def test_a_change_during_the_comparison_is_told(run: Run, publisher: Publisher) -> None:
    publisher.next_change = 9
    out = run("diff").out
    assert "intent changed meanwhile (change 7 to 9)" in out
