"""`wait` and `watch`."""

from __future__ import annotations

import grpc
import pytest

from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from tests.cli.conftest import Run
from tests.cli.servers import Publisher

HALF = api.WaitReply(
    hosts=4,
    hosts_applied=2,
    hosts_needed=4,
    stragglers=[
        api.Straggler(host="h3", why=api.Straggler.NEVER_REPORTED, stream="vpc/v", wanted="3/9"),
        api.Straggler(
            host="h4",
            why=api.Straggler.REFUSED,
            stream="vpc/v",
            applied="3/8",
            wanted="3/9",
            resource="port/p1",
            reason="no [bold]room[/bold]",
        ),
    ],
    stragglers_total=2,
    expired_hosts=["h9"],
    elapsed_s=1.5,
)
DONE = api.WaitReply(
    converged=True,
    hosts=4,
    hosts_applied=4,
    hosts_needed=4,
    elapsed_s=2,
    latency=api.Latency(count=4, p50_ms=10, p90_ms=20, p99_ms=30, max_ms=31.25, clock="same clock"),
)


def test_converged_is_exit_code_0_with_the_latencies(run: Run, publisher: Publisher) -> None:
    publisher.waits = [DONE]
    ran = run("wait", "--vpc", "v")
    assert ran.code == 0
    assert "converged: 4 of 4 hosts" in ran.out
    assert "p50 10.0 ms, p90 20.0 ms, p99 30.0 ms, last host 31.2 ms" in ran.out
    assert "same clock" in ran.out


def test_not_converged_is_exit_code_3_and_names_every_straggler(
    run: Run, publisher: Publisher
) -> None:
    publisher.waits = [HALF]
    ran = run("wait", "--all")
    assert ran.code == 3
    assert "not converged: 2 of 4 hosts" in ran.out
    assert "never reported" in ran.out
    assert (
        "h4    refused         vpc/v   3/8      3/9     port/p1   no [bold]room[/bold]" in ran.out
    )
    assert "lease expired: h9" in ran.out


def test_the_answer_as_json_has_all_fields_as_plain_values(run: Run, publisher: Publisher) -> None:
    publisher.waits = [HALF]
    document = run("wait", "--change", "5", "--json").document
    assert document["converged"] is False
    assert document["stragglers"][0] == {
        "host": "h3",
        "why": "never_reported",
        "stream": "vpc/v",
        "applied": "",
        "wanted": "3/9",
        "shard": 0,
        "resource": "",
        "reason": "",
    }
    assert document["latency"] is None
    assert document["expired_hosts"] == ["h9"]


def test_the_request_is_what_was_asked(run: Run, publisher: Publisher) -> None:
    run("wait", "--vpc", "v", "--quorum", "0.9", "--timeout", "0", "--stragglers", "3")
    run("wait", "--change", "5")
    run("watch", "--all")
    first, second, third = publisher.waited
    assert first == api.WaitRequest(vpc_id="v", quorum=0.9, timeout_s=0, max_stragglers=3)
    assert (second.change, second.quorum, second.timeout_s) == (5, 1, 60)
    assert third.all


def test_watch_prints_every_step_and_ends_like_wait(run: Run, publisher: Publisher) -> None:
    publisher.waits = [HALF, DONE]
    ran = run("watch", "--vpc", "v")
    assert ran.code == 0
    assert "2 of 4 needed hosts, 2 stragglers" in ran.out
    assert ran.out.index("2 of 4 needed") < ran.out.index("converged: 4 of 4")
    steps = run("watch", "--vpc", "v", "--json").documents
    assert [step["hosts_applied"] for step in steps] == [2, 4]


def test_a_watch_without_any_answer_is_undecided(run: Run, publisher: Publisher) -> None:
    publisher.waits = []
    assert run("watch", "--vpc", "v").code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--vpc", "v", "--all"),
        ("--vpc", "v", "--change", "1"),
        ("--all", "--quorum", "0"),
        ("--all", "--quorum", "1.1"),
        ("--all", "--timeout", "-1"),
    ],
)
def test_a_wait_that_makes_no_sense_is_not_sent(
    run: Run, publisher: Publisher, arguments: tuple[str, ...]
) -> None:
    for command in ("wait", "watch"):
        assert run(command, *arguments).code == 2
    assert publisher.waited == []


def test_several_targets_are_told_apart_from_none(run: Run, publisher: Publisher) -> None:
    assert "several things to wait for" in run("wait", "--vpc", "v", "--all").err
    assert "nothing to wait for" in run("wait").err
    assert publisher.waited == []


def test_an_unknown_target_is_the_users_mistake(run: Run, publisher: Publisher) -> None:
    publisher.failure = (grpc.StatusCode.NOT_FOUND, "there is no VPC 'v', and never was")
    ran = run("wait", "--vpc", "v", "--json")
    assert ran.code == 2
    assert ran.document["error"] == "there is no VPC 'v', and never was"
    assert ran.document["exit_code"] == 2
