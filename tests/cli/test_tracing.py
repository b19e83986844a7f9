"""`trace`: the command around the walk."""

from __future__ import annotations

import grpc
import pytest

from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import ResourceException
from tests.cli import region
from tests.cli.conftest import Run
from tests.cli.servers import Agent, Publisher

DB = ("trace", "web-1", "db-1", "--dport", "5432")


def test_a_delivered_packet_is_exit_code_0(run: Run, agent: Agent) -> None:
    ran = run(*DB)
    assert ran.code == 0, ran
    assert "tcp 5432 from 10.0.1.10 (web-1) to 10.0.2.10 (db-1)" in ran.out
    assert "verdict: delivered" in ran.out


def test_a_packet_that_is_not_delivered_names_the_resource_and_the_host(
    run: Run, agent: Agent
) -> None:
    del agent.hosts["host-a"][region.STREAM].neighbor_states["db-1"]
    agent.exceptions["host-a"] = [
        ResourceException(
            type=resources_pb2.NEIGHBOR,
            id="db-1",
            status=ResourceException.REFUSED,
            reason="table full",
        )
    ]
    ran = run(*DB)
    assert ran.code == 1
    line = next(line for line in ran.out.splitlines() if line.startswith("MISSING"))
    assert line.split()[:3] == ["MISSING", "host-a", "neighbor/db-1"]
    assert "is not applied (refused: table full)" in line
    assert "verdict: not delivered" in ran.out


def test_the_result_as_json_has_every_step(run: Run, agent: Agent) -> None:
    del agent.hosts["host-b"]["inbox/host-b-rack"].port_states["db-1"]
    ran = run(*DB, "--json")
    assert ran.code == 1
    document = ran.document
    assert document["verdict"] == "not_delivered"
    assert document["packet"]["source"] == {
        "port_id": "web-1",
        "subnet_id": "front",
        "ip": "10.0.1.10",
    }
    assert document["packet"]["dport"] == 5432
    assert document["steps"][-1] == {
        "host": "host-b",
        "resource": "port/db-1",
        "finding": "missing",
        "text": "is not applied",
    }


def test_a_host_that_cannot_be_asked_makes_the_verdict_unknown(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    publisher.status.host_list[1].inspection_address = ""
    assert run(*DB).code == 3
    publisher.status.host_list[0].inspection_address = "127.0.0.1:1"
    ran = run(*DB)
    assert ran.code == 3
    assert "no agent process answers at 127.0.0.1:1" in ran.out
    publisher.status.host_list[0].inspection_address = agent.address
    del agent.hosts["host-a"]
    assert run(*DB).code == 3
    agent.failure = (grpc.StatusCode.UNAVAILABLE, "stopping")
    assert run(*DB).code == 3


def test_a_moved_port_is_reached_where_the_neighbor_entry_points_while_it_is_there(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    moved = next(port for port in publisher.intent.ports if port.id == "db-1")
    moved.host_id = "host-c"
    ran = run(*DB)
    assert ran.code == 0, ran
    assert "points at host-b; intent has the port on host-c now" in ran.out
    del agent.hosts["host-b"]["inbox/host-b-rack"].port_states["db-1"]
    assert run(*DB).code == 1


def test_a_neighbor_entry_that_points_at_no_host_is_wrong(run: Run, agent: Agent) -> None:
    entry = agent.hosts["host-a"][region.STREAM].neighbor_states["db-1"].configuration
    entry.host_ip_address = "100.64.9.9"
    ran = run(*DB)
    assert ran.code == 1
    assert "names host address 100.64.9.9, which no host has" in ran.out


def test_ports_that_are_not_bound_or_in_two_vpcs_are_not_joined(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    other = next(port for port in publisher.intent.ports if port.id == "db-1")
    other.vpc_id = "vpc-2"
    ran = run(*DB)
    assert ran.code == 1
    assert "nothing joins them" in ran.out
    other.host_id = ""
    ran = run(*DB)
    assert ran.code == 1
    assert "is not bound to a host" in ran.out


def test_without_protocol_a_port_number_means_tcp_and_none_means_a_ping(
    run: Run, agent: Agent
) -> None:
    assert run(*DB, "--json").document["packet"]["protocol"] == "tcp"
    assert run("trace", "web-1", "db-1", "--json").document["packet"]["protocol"] == "icmp"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("web-1", "db-1", "--protocol", "sctp"), "tcp, udp, icmp"),
        (("web-1", "db-1", "--protocol", "tcp"), "--dport"),
        (("web-1", "db-1", "--protocol", "icmp", "--dport", "1"), "--dport"),
        (("web-1", "db-1", "--ip-version", "6"), "no addresses of one IP version"),
        (("web-1", "nothing"), "there is no port 'nothing'"),
        (("nothing", "db-1"), "there is no port 'nothing'"),
    ],
)
def test_a_trace_that_makes_no_sense_is_the_users_mistake(
    run: Run, agent: Agent, arguments: tuple[str, ...], told: str
) -> None:
    ran = run("trace", *arguments)
    assert ran.code == 2
    assert told in ran.err
