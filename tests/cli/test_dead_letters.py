"""`dead-letters`, and what `status` and `wait` say of exceptions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

import pytest

from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.gs import packing
from goalstate.gs.packing import Addressed
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import DeadLetter, DeadLetters
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.topics import Topics
from tests.cli import region
from tests.cli.conftest import Run
from tests.cli.servers import Agent, Publisher

_numbers = itertools.count(1)
WHY = api.Straggler.Why


def letter(host: str, id_: str, revision: int = 1, kind: Kind = Kind.NEIGHBOR) -> DeadLetter:
    if kind is Kind.PORT:
        port = resources_pb2.PortConfiguration(id=id_, vpc_id="vpc-2", revision_number=revision)
        payload, stream, of = port.SerializeToString(), "inbox/rack-1", host
    else:
        neighbor = resources_pb2.NeighborConfiguration(id=id_, revision_number=revision)
        payload, stream, of = neighbor.SerializeToString(), region.STREAM, ""
    state = packing.encode([Addressed(of, Resource(kind, id_, revision, payload))])
    return DeadLetter(
        host=host,
        stream=stream,
        epoch=3,
        sequence=revision,
        type=int(kind),  # type: ignore[arg-type]
        id=id_,
        revision=revision,
        reason="DATA_PLANE: no room",
        attempts=1,
        refused_unix_ns=1_700_000_000_000_000_000 + revision,
        resource=goalstate_pb2.GoalStateV2.FromString(state),
    )


@pytest.fixture
def where(embedded_broker: Broker) -> Iterator[list[str]]:
    """Options of a region with letters on two of its topics."""
    name = f"letters-{next(_numbers)}"
    topics = Topics(f"persistent://goalstate/{name}")
    first = DeadLetters(letters=[letter("host-a", "web-2"), letter("host-b", "web-2")])
    second = DeadLetters(
        letters=[letter("host-a", "web-2", 2), letter("host-c", "p", kind=Kind.PORT)]
    )

    async def send() -> None:
        bus = await connect(embedded_broker.url)
        for shard, message in ((0, first), (3, second)):
            producer = await bus.open_producer(topics.dead_letters(shard))
            await producer.send(message.SerializeToString())
        await bus.close()

    asyncio.run(send())
    yield ["--broker", embedded_broker.url, "--region", name]


def exception(host: str, id_: str, **more: object) -> api.HostException:
    fields = {"type": int(Kind.NEIGHBOR), "count": 1, "vpc": region.VPC, "stream": region.STREAM}
    return api.HostException(host=host, id=id_, **{**fields, **more})  # type: ignore[arg-type]


@pytest.fixture
def told(publisher: Publisher, agent: Agent) -> Publisher:
    """The DPM says that web-2 on host-a is still refused."""
    for one in publisher.status.host_list:
        one.lease = "live"
    publisher.status.exception_list.append(
        exception("host-a", "web-2", why=WHY.REFUSED, reason="DATA_PLANE: no room", attempts=1)
    )
    publisher.status.exceptions["refused"] = 1
    publisher.status.exceptions_by_vpc[region.VPC] = 1
    return publisher


def test_the_newest_letter_of_each_resource_is_listed_and_whether_it_stands(
    run: Run, told: Publisher, where: list[str]
) -> None:
    letters = run("dead-letters", "list", *where, "--json").document["letters"]
    assert [
        (one["host"], one["type"], one["id"], one["revision"], one["outstanding"], one["vpc"])
        for one in letters
    ] == [
        ("host-a", "neighbor", "web-2", 2, "yes", region.VPC),
        ("host-b", "neighbor", "web-2", 1, "no", region.VPC),
        ("host-c", "port", "p", 1, "no", "vpc-2"),
    ]
    out = run("dead-letters", "list", *where).out
    assert "2023-11-14T22:13:20+00:00  yes" in out
    assert "DATA_PLANE: no room" in out


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        (["--outstanding"], ["host-a"]),
        (["--host", "host-b"], ["host-b"]),
        (["--vpc", "vpc-2"], ["host-c"]),
        (["--kind", "neighbor"], ["host-a", "host-b"]),
        (["--id", "p"], ["host-c"]),
        (["--kind", "security-group"], []),
    ],
)
def test_letters_are_selected(
    run: Run, told: Publisher, where: list[str], options: list[str], hosts: list[str]
) -> None:
    letters = run("dead-letters", "list", *where, *options, "--json").document["letters"]
    assert [one["host"] for one in letters] == hosts


def test_without_a_publisher_it_is_not_known_what_stands(run: Run, where: list[str]) -> None:
    ran = run("dead-letters", "list", *where, "--dpm", "127.0.0.1:1", "--json")
    assert {one["outstanding"] for one in ran.document["letters"]} == {"unknown"}
    assert "not known" in ran.err
    assert ran.code == 0


def test_of_a_host_that_is_silent_or_sums_up_it_is_not_known(
    run: Run, told: Publisher, where: list[str]
) -> None:
    for one in told.status.host_list:
        if one.host == "host-b":
            one.lease = "expired"
    told.status.exception_list.append(exception("host-c", "", count=40))
    told.status.exceptions["pending"] = 40
    letters = run("dead-letters", "list", *where, "--json").document["letters"]
    assert [one["outstanding"] for one in letters] == ["yes", "unknown", "unknown"]


def test_what_is_outstanding_is_published_again_and_waited_for(
    run: Run, told: Publisher, where: list[str]
) -> None:
    ran = run("dead-letters", "replay", "--all", "--wait", *where, "--json")
    assert ran.code == 0
    ((name,),) = told.republished
    assert (name.type, name.id, name.host) == (Kind.NEIGHBOR, "web-2", "")
    assert told.waited[-1].change == 8
    document = ran.document
    assert (document["letters"], document["resources"], document["change"]) == (1, 1, 8)
    assert document["wait"]["converged"]


def test_what_is_settled_is_not_published_again(
    run: Run, told: Publisher, where: list[str]
) -> None:
    ran = run("dead-letters", "replay", "--host", "host-b", *where)
    assert ran.code == 0
    assert "none of them is outstanding" in ran.out
    assert not told.republished


def test_a_replay_says_what_it_is_of(run: Run, told: Publisher, where: list[str]) -> None:
    assert run("dead-letters", "replay", *where).code == 2
    assert run("dead-letters", "replay", "--all", "--host", "host-a", *where).code == 2
    assert not told.republished


def test_letters_need_a_broker(run: Run) -> None:
    ran = run("dead-letters", "list")
    assert ran.code == 2
    assert "--broker" in ran.err


def test_a_topic_of_letters_is_decoded_as_what_it_is(run: Run, where: list[str]) -> None:
    topics = Topics(f"persistent://goalstate/{where[-1]}")
    ran = run("decode", "--topic", topics.dead_letters(0), *where, "--json")
    assert ran.document["type"] == "DeadLetters"


# --- status, wait ---


def test_status_counts_exceptions_and_lists_them_when_asked(run: Run, told: Publisher) -> None:
    out = run("status").out
    assert "exceptions: 1 refused" in out
    assert f"by VPC: {region.VPC} 1" in out
    listed = run("status", "--exceptions").out
    line = next(line for line in listed.splitlines() if line.startswith("host-a  refused"))
    assert "neighbor/web-2" in line
    assert line.endswith("DATA_PLANE: no room")
    assert told.asked[0].exceptions is False
    assert told.asked[1].exceptions is True


def test_wait_tells_who_is_retrying_and_the_latency_of_a_revocation(
    run: Run, publisher: Publisher
) -> None:
    latency = api.Latency(count=3, p50_ms=1, p90_ms=2, p99_ms=3, max_ms=4, clock="same clock")
    publisher.waits = [
        api.WaitReply(
            converged=False,
            hosts=3,
            stragglers=[
                api.Straggler(
                    host="host-a",
                    why=api.Straggler.RETRYING,
                    reason="DATA_PLANE: no room; retrying, attempt 2",
                )
            ],
            stragglers_total=1,
            revocation_latency=latency,
        )
    ]
    ran = run("wait", "--change", "7")
    assert ran.code == 3
    assert "retrying, attempt 2" in ran.out
    assert "latency of the revocation over 3 hosts (same clock): p50 1.0 ms" in ran.out
