"""`status` and `show`."""

from __future__ import annotations

import grpc

from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import ResourceException
from tests.cli import region
from tests.cli.conftest import Run
from tests.cli.servers import Agent, Publisher


def with_stream(publisher: Publisher) -> None:
    publisher.status.streams.add(
        stream=region.STREAM,
        topic="persistent://t/n/vpc",
        epoch=3,
        sequence=5,
        digest="ab" * 16,
        resources=9,
        followers=3,
        followers_current=2,
    )


def test_status_shows_the_publisher_its_streams_and_its_counts(
    run: Run, publisher: Publisher
) -> None:
    with_stream(publisher)
    publisher.status.objects["port"] = 10
    publisher.status.hosts_live = 2
    ran = run("status")
    assert ran.code == 0
    assert "writer dpm-1" in ran.out
    assert "not serving" not in ran.out
    assert "current: followers that have applied it" in ran.out
    assert "epoch 3, change 7" in ran.out
    assert "objects: 10 port" in ran.out
    assert "2 live" in ran.out
    stream = next(line for line in ran.out.splitlines() if line.startswith(region.STREAM))
    assert stream.split() == [
        region.STREAM,
        "3/5",
        "9",
        "2",
        "3",
        "ab" * 16,
        "persistent://t/n/vpc",
    ]


def test_status_says_first_that_the_publisher_does_not_serve_and_why(
    run: Run, publisher: Publisher
) -> None:
    publisher.status.serving = False
    publisher.status.problem = "the broker does not answer"
    first, *_ = run("status").out.splitlines()
    assert "not serving: the broker does not answer" in first
    document = run("status", "--json").document
    assert (document["serving"], document["problem"]) == (False, "the broker does not answer")


def test_status_lists_hosts_only_when_asked(run: Run, publisher: Publisher, agent: Agent) -> None:
    hosts = publisher.status.host_list
    hosts.add(host="silent", lease="never reported", last_report_age_s=-1)
    hosts.add(host="foreign", lease="live", formats=[101, 102], proxied=True)
    assert "host-a" not in run("status").out
    out = run("status", "--hosts").out
    assert agent.address in out
    silent = next(line for line in out.splitlines() if line.startswith("silent"))
    assert silent.split() == ["silent", "never", "reported", "-", "0", "0", "-", "-"]
    foreign = next(line for line in out.splitlines() if line.startswith("foreign"))
    assert "v1+v2 pushed" in foreign


def test_status_as_json_has_numbers_as_numbers(run: Run, publisher: Publisher) -> None:
    with_stream(publisher)
    document = run("status", "--json").document
    assert document["change"] == 7
    assert document["serving"] is True
    assert document["streams"][0]["sequence"] == 5
    assert document["objects"] == {}


# --- show ---


def test_show_vpc_lists_its_objects_and_stream_heads(run: Run, publisher: Publisher) -> None:
    with_stream(publisher)
    ran = run("show", "vpc", region.VPC)
    assert ran.code == 0
    assert "VPC vpc-1 “shop”: 10.0.0.0/16, tunnel id 77" in ran.out
    assert "ports on 3 hosts" in ran.out
    assert "front, back" in ran.out
    assert "3/5" in ran.out
    document = run("show", "vpc", region.VPC, "--json").document
    assert document["objects"]["ports"] == ["web-1", "db-1", "web-2"]
    assert document["hosts"] == ["host-a", "host-b", "host-c"]


def test_show_of_what_is_not_there_is_the_users_mistake(run: Run, publisher: Publisher) -> None:
    for kind in ("vpc", "host", "port"):
        ran = run("show", kind, "nothing")
        assert ran.code == 2
        assert "nothing" in ran.err
        assert "goalstate" in ran.err


def test_show_host_tells_what_it_has_applied(run: Run, publisher: Publisher, agent: Agent) -> None:
    agent.exceptions["host-b"] = [
        ResourceException(
            stream=region.STREAM,
            type=resources_pb2.NEIGHBOR,
            id="web-9",
            status=ResourceException.PENDING,
            reason="waits for subnet/lost",
        )
    ]
    ran = run("show", "host", "host-b")
    assert ran.code == 0
    assert "100.64.0.2" in ran.out
    assert "holds 9 resources" in ran.out
    assert "1 port" in ran.out
    assert "3 neighbor" in ran.out
    assert "0aff" in ran.out
    port = next(line for line in ran.out.splitlines() if line.startswith("db-1"))
    assert port.split() == ["db-1", "vpc-1", "10.0.2.10", "02:00:00:00:02:10", "up", "db"]
    assert "waits for subnet/lost" in ran.out
    document = run("show", "host", "host-b", "--json").document
    assert document["resources"]["neighbor"] == 3
    assert document["applied"]["exceptions"][0]["status"] == "pending"
    assert [port["id"] for port in document["ports"]] == ["db-1"]


def test_show_host_says_that_a_counting_host_does_not_decode(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    agent.counting.add("host-b")
    ran = run("show", "host", "host-b")
    assert "a counting host" in ran.out
    assert "db-1" in ran.out


def test_show_host_without_an_agent_process_is_undecided(run: Run, publisher: Publisher) -> None:
    ran = run("show", "host", "host-b")
    assert ran.code == 3
    assert "100.64.0.2" in ran.out
    assert "not known" in ran.err


def test_show_host_that_its_agent_process_no_longer_plays_is_undecided(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    del agent.hosts["host-b"]
    assert run("show", "host", "host-b").code == 3


def test_show_host_whose_agent_process_is_gone_is_unreachable(
    run: Run, publisher: Publisher
) -> None:
    gone = Agent()
    gone.address = "127.0.0.1:1"
    publisher.play(gone)
    ran = run("show", "host", "host-b")
    assert ran.code == 4
    assert "no agent process answers at 127.0.0.1:1" in ran.err


def test_show_port_counts_who_has_it_as_a_neighbor(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    ran = run("show", "port", "db-1")
    assert ran.code == 0
    assert "on host host-b (100.64.0.2): applied there" in ran.out
    assert "as a neighbor: on 3 hosts\n" in ran.out

    vpc = agent.hosts["host-a"][region.STREAM]
    vpc.neighbor_states["db-1"].configuration.host_ip_address = "100.64.0.3"
    del agent.hosts["host-b"][region.STREAM].neighbor_states["db-1"]
    agent.counting.add("host-c")
    del agent.hosts["host-b"]["inbox/host-b-rack"].port_states["db-1"]
    ran = run("show", "port", "db-1")
    assert "NOT applied there" in ran.out
    assert "as a neighbor: at another place on 1, lacking on 1, 1 hosts count only\n" in ran.out
    assert "at another place: host-a" in ran.out
    assert "lacking: host-b" in ran.out
    document = run("show", "port", "db-1", "--json").document
    assert document["applied_on_host"] is False
    assert document["neighbor"] == {
        "known_by": 0,
        "other_place": ["host-a"],
        "lacking": ["host-b"],
        "counting_hosts": 1,
        "unknown_hosts": 0,
    }


def test_show_port_of_silent_agents_tells_what_is_unknown(
    run: Run, publisher: Publisher, agent: Agent
) -> None:
    agent.failure = (grpc.StatusCode.UNAVAILABLE, "stopping")
    publisher.status.host_list.add(host="host-d")
    ran = run("show", "port", "db-1")
    assert "not known whether applied" in ran.out
    assert "4 unknown" in ran.out


def test_show_port_that_is_on_no_host(run: Run, publisher: Publisher) -> None:
    publisher.intent.ports[0].host_id = ""
    publisher.intent.ports[0].admin_down = True
    del publisher.intent.ports[0].security_group_ids[:]
    ran = run("show", "port", "web-1")
    assert ran.code == 0
    assert "not bound to a host" in ran.out
    assert "none (unfiltered)" in ran.out
    assert "switched off" in ran.out
