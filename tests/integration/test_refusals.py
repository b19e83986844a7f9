"""What data planes refuse, from the host to the command line: processes on the embedded broker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from goalstate.bus.brokers import Broker
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind
from goalstate.scale import generate
from goalstate.scale.generate import Region
from tests.integration.processes import System, run, until

#: Rack 1 refuses a share of all revisions for good, rack 2 the first two tries of each.
REGION = Region(hosts=8, vpcs=(24, 8), seed=5, group_size=4)
FOR_GOOD: dict[str, Any] = {"model__refuse_share": "0.15", "model__seed": "3"}
FOR_NOW: dict[str, Any] = {"model__refuse_ids": '["port-*"]', "model__refuse_times": "2"}
MODELLED: dict[str, Any] = {"data_plane": "modelled", "retry_delay_s": "2"}


@pytest.fixture(scope="module")
def system(embedded_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(embedded_broker, tmp_path_factory.mktemp("refusals")) as one:
        one.start_dpm()
        one.apply(REGION.host_intents())
        one.start_fleet(4, **MODELLED, **FOR_GOOD)
        one.start_fleet(4, first=4, **MODELLED, **FOR_NOW)
        yield one


def source(one: System) -> list[str]:
    return ["--broker", one.broker.url, "--region", one.region, "--dpm", one.listen]


def test_refusals_are_reported_retried_listed_and_replayed(system: System) -> None:
    system.apply(intent for n in (1, 2) for intent in REGION.vpc_intents(n))
    request = api.WaitRequest(all=True, timeout_s=0)

    # What is tried again is told from what is refused, and no wait is early.
    def both() -> api.WaitReply | None:
        reply = system.client.wait(request)
        whys = {straggler.why for straggler in reply.stragglers}
        assert not reply.converged
        wanted = {api.Straggler.REFUSED, api.Straggler.RETRYING}
        return reply if wanted <= whys else None

    reply: api.WaitReply = until(both, "some refuse for good, some for now")
    for straggler in reply.stragglers:
        if straggler.why == api.Straggler.RETRYING:
            assert straggler.reason.startswith("DATA_PLANE: injected failure: the id matches; ")
            assert "retrying, attempt " in straggler.reason
        if straggler.why == api.Straggler.REFUSED:
            assert straggler.reason == "DATA_PLANE: injected failure: drawn"
            assert "/" in straggler.resource

    # The first rack is settled by nothing but a replay; the second by itself.
    until(lambda: not system.client.status().exceptions.get("retrying"), "the third try is taken")
    status = run("status", "--exceptions", "--json", "--dpm", system.listen).document
    refused = {
        (one["host"], one["type"], one["id"])
        for one in status["exception_list"]
        if one["why"] == "refused"
    }
    assert refused
    assert sum(status["exceptions_by_vpc"].values()) == sum(status["exceptions"].values())
    assert set(status["exceptions_by_vpc"]) <= {REGION.vpc_id(1), REGION.vpc_id(2)}

    def letters() -> set[tuple[str, str, str]]:
        ran = run("dead-letters", "list", "--outstanding", "--json", *source(system))
        return {(one["host"], one["type"], one["id"]) for one in ran.document["letters"]}

    numbers = {kind.name.lower(): int(kind) for kind in Kind}
    until(
        lambda: {(host, numbers[kind], id_) for host, kind, id_ in letters()} == refused,
        "each refusal is a letter",
    )

    # Another revision draws another lot: after a few replays everything is taken.
    changes = []

    def taken() -> bool:
        ran = run("dead-letters", "replay", "--all", "--json", *source(system))
        change = json.loads(ran.out)["change"]
        if change:
            changes.append(change)
            system.client.wait(api.WaitRequest(change=change, timeout_s=1))
        return not change

    until(taken, "nothing is outstanding")
    assert changes == sorted(set(changes))
    system.converged()
    assert not system.client.status().exceptions

    # It survives the publisher: the log says it, and hosts and publisher agree.
    system.kill_dpm()
    system.start_dpm()
    system.converged(change=changes[-1])
    system.check()


def test_a_revocation_is_told_by_itself(system: System) -> None:
    group = next(g for g in next(REGION.vpc_intents(2)).security_groups if len(g.rules) > 1)
    reply = system.apply([generate.revoke_rule(group, group.rules[0].id)])
    waited = system.client.wait(api.WaitRequest(change=reply.change, timeout_s=10))
    latency = waited.revocation_latency
    # Hosts of the first rack may draw a refusal of just this revision.
    assert latency.count == waited.hosts_applied
    assert latency.clock == "same clock"
    assert 0 < latency.p50_ms <= latency.max_ms <= waited.latency.max_ms
