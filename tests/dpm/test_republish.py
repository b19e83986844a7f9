"""Resources that are published again though they are the same, and what the publisher knows of
revocations and of hosts that drifted."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from goalstate.dpm.convergence import Convergence, Why
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.engine import Engine
from goalstate.gs import digest as digests
from goalstate.gs import intent_codec
from goalstate.gs.derivation import Key
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Deletion, Intent, ObjectKind, Protocol, Rule, SecurityGroup
from goalstate.gs.packing import unpack
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1.intent_pb2 import ResourceName
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Mark, inbox_stream, vpc_stream
from tests.dpm.reading import Readings
from tests.dpm.test_convergence import NOW as REPORTED
from tests.dpm.test_convergence import needs, report
from tests.dpm.test_core import NOW, accept, new_core, run
from tests.dpm.test_engine import apply, concerned, crash, out, serving, state
from tests.dpm.test_path_independence import build, port
from tests.dpm.test_service import Served, error_of, play
from tests.dpm.test_snapshot import new_replay, records, restored
from tests.dpm.wires import Region

V1 = vpc_stream("v1")


def again(core: Core, *keys: Key) -> Accepted:
    return core.accept(core.plan(Intent()), NOW, again=keys)


def built() -> tuple[Core, Readings, str]:
    """A region, a reader of all that it publishes, and the id of one of its ports."""
    core, readings = new_core(), Readings()
    readings.read(run(core, build()))
    bound = sorted(p.id for p in core.desired.objects(ObjectKind.PORT) if p.host_id)
    return core, readings, bound[0]


# --- the core ---


def test_what_is_published_again_is_the_same_but_for_its_revision() -> None:
    core, readings, id_ = built()
    key = Key(Kind.NEIGHBOR, id_)
    before = core.memory.records[key].revision
    accepted = again(core, key)
    (publication,) = accepted.publications
    assert publication.envelope.change == accepted.change == core.change
    readings.read(accepted.publications)  # which checks marks, revisions and digests
    assert core.memory.records[key].revision == before + 1
    (requirement,) = accepted.requirements
    assert requirement.mark == core.streams[requirement.stream].mark
    assert accepted.changed_objects == 0


def test_a_port_that_is_published_again_is_for_its_host_only() -> None:
    core, readings, id_ = built()
    accepted = again(core, Key(Kind.PORT, id_))
    readings.read(accepted.publications)
    (requirement,) = accepted.requirements
    assert requirement.hosts == frozenset({core.desired.get(ObjectKind.PORT, id_).host_id})


def test_a_deletion_can_be_published_again() -> None:
    core, _, id_ = built()
    accept(core, Intent(deletes=(Deletion(ObjectKind.PORT, id_, True),)))
    key = Key(Kind.NEIGHBOR, id_)
    before = core.memory.records[key]
    digest = core.streams[before.stream].digest
    (publication,) = again(core, key).publications
    ((resource, _),) = unpack(GoalStateV2.FromString(publication.payload))
    assert (resource.id, resource.revision, resource.deleted) == (id_, before.revision + 1, True)
    assert core.memory.records[key] == before._replace(revision=before.revision + 1)
    assert core.streams[before.stream].digest == digest


def test_what_never_was_is_left_out() -> None:
    core, _, _ = built()
    assert not again(core, Key(Kind.NEIGHBOR, "none")).publications


# --- the engine ---


def names(*ids: str) -> list[ResourceName]:
    return [ResourceName(type=int(Kind.NEIGHBOR), id=id_) for id_ in ids]


def a_port(engine: Engine) -> str:
    return min(str(p.id) for p in engine.core.desired.objects(ObjectKind.PORT) if p.host_id)


def test_a_replay_survives_a_crash_and_gives_the_same_bytes() -> None:
    async def test() -> None:
        region = Region()
        async with serving(region) as engine:
            await apply(engine, *build())
            outcome = await engine.republish(names(a_port(engine)))
            assert outcome.change == engine.core.change
            await out(engine)
            before, published = state(engine), region.streams()
            await crash(engine, region)
            async with serving(region) as other:
                # It checks what it redoes against what it finds on the topics.
                assert state(other) == before
                assert region.streams() == published
                other.convergence.begin([needs()], NOW)
                waited = await other.wait(
                    change=outcome.change, quorum=1.0, timeout_s=0, max_stragglers=20
                )
                assert waited.hosts == len(concerned(other, outcome))

    asyncio.run(test())


def test_a_resource_that_never_was_is_refused_whole() -> None:
    async def test() -> None:
        region = Region()
        async with serving(region) as engine:
            await apply(engine, *build())
            change = engine.core.change
            with pytest.raises(IntentRejected) as caught:
                await engine.republish(names(a_port(engine), "none"))
            (violation,) = caught.value.violations
            assert (violation.path, violation.reason) == ("resources[1]", "UNKNOWN_RESOURCE")
            assert engine.core.change == change
            await out(engine)

    asyncio.run(test())


def test_a_snapshot_remembers_revocations_and_what_is_published_again_after_it() -> None:
    replay = new_replay()
    for record in records(build(), own_stream=False):
        replay.redo(record)
    ports = replay.core.desired.objects(ObjectKind.PORT)
    one = next(p for p in ports if p.host_id and p.security_group_ids)
    intent = intent_codec.to_proto(Intent(ports=(one._replace(security_group_ids=()),)))
    number = replay.core.change + 1
    replay.redo(log_pb2.Record(change=log_pb2.Change(change=number, intent=intent)))
    replay.settle()
    assert all(r.revoked > ORIGIN for r in replay.changes[number].requirements)
    copy = restored(replay)
    assert copy.changes[number] == replay.changes[number]
    again = log_pb2.Change(change=number + 1, republished=names(one.id))
    for each in (replay, copy):
        each.redo(log_pb2.Record(change=again))
    assert copy.unconfirmed == replay.unconfirmed
    assert replay.unconfirmed


# --- over gRPC ---


def test_a_replay_is_answered_with_its_change_and_bad_ones_are_refused() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())

        def call(*resources: ResourceName) -> Any:
            return one.stub.Republish(api.RepublishRequest(resources=resources), timeout=20)

        known = ResourceName(type=int(Kind.VPC), id="v1")
        change = (await one.status()).change
        reply = await call(known)
        assert reply.change == change + 1
        assert [at.stream for at in reply.streams] == ["vpc/v1"]
        for wrong in ([], [ResourceName(type=77, id="x")], [ResourceName(id="none")]):
            error = await error_of(call(*wrong))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await one.status()).change == change + 1

    play(scenario)


def test_the_status_counts_exceptions_by_vpc_and_lists_them() -> None:
    async def scenario(one: Served) -> None:
        await one.apply(*build())
        region = one.region
        message = agent_pb2.Report(hosts=[report("h0", 1, {V1: Mark(1, 1)})])
        for id_, kept, stands_for in (
            ("v1", agent_pb2.ResourceException.RETRYING, 0),
            ("", agent_pb2.ResourceException.REFUSED, 40),
        ):
            message.hosts[0].exceptions.add(
                stream="vpc/v1",
                epoch=1,
                sequence=1,
                type=int(Kind.VPC),
                id=id_,
                status=kept,
                attempts=2,
                stands_for=stands_for,
                reason="no room",
            )
        region.broker.publish(region.topics.reports(0), message.SerializeToString())
        while not (status := await one.status(exceptions=True)).exceptions:
            await asyncio.sleep(0)
        assert status.exceptions == {"retrying": 1, "refused": 40}
        assert status.exceptions_by_vpc == {"v1": 41}
        first, second = status.exception_list
        assert (first.host, first.vpc, first.id, first.why) == (
            "h0",
            "v1",
            "v1",
            api.Straggler.RETRYING,
        )
        assert (first.attempts, first.reason, second.count) == (2, "no room", 40)
        assert not (await one.status()).exception_list
        assert not (await one.status(vpc_id="v2", exceptions=True)).exceptions
        assert len((await one.status(exceptions=True, max_exceptions=1)).exception_list) == 1

    play(scenario)


# --- revocations ---


def test_what_takes_a_permission_away_is_first_in_its_change_set() -> None:
    core = new_core(chunk_bytes=400)
    run(core, build())
    rules = tuple(Rule(f"r{n}", protocol=Protocol.TCP, port_min=n, port_max=n) for n in (22, 80))
    accept(core, Intent(security_groups=(SecurityGroup("zz", "v1", rules=rules),)))
    more = (*rules, Rule("out"))
    grown = accept(core, Intent(security_groups=(SecurityGroup("zz", "v1", rules=more),)))
    assert {r.revoked for r in grown.requirements} == {ORIGIN}
    change = Intent(
        security_groups=(SecurityGroup("zz", "v1", rules=rules[:1]),),
        ports=tuple(port(1, n, "h0") for n in range(100, 140)),
    )
    accepted = accept(core, change)
    of_vpc = [p for p in accepted.publications if p.envelope.stream == V1]
    assert len(of_vpc) > 2
    assert b"zz" in of_vpc[0].payload
    (requirement,) = (r for r in accepted.requirements if r.stream == V1)
    assert requirement.revoked == of_vpc[0].envelope.mark < requirement.mark
    assert {r.revoked for r in accepted.requirements if r.stream != V1} == {ORIGIN}


def test_a_port_that_leaves_a_group_revokes_on_its_inbox_and_on_the_vpcs_stream() -> None:
    core, _, _ = built()
    one = next(
        p for p in core.desired.objects(ObjectKind.PORT) if p.host_id and p.security_group_ids
    )
    accepted = accept(core, Intent(ports=(one._replace(security_group_ids=()),)))
    assert all(r.revoked == r.mark for r in accepted.requirements)
    down = accept(core, Intent(ports=(one._replace(security_group_ids=(), admin_down=True),)))
    host = core.desired.get(ObjectKind.HOST, one.host_id)
    assert [(r.stream, r.revoked) for r in down.requirements] == [
        (inbox_stream(host.group), down.requirements[0].mark)
    ]


def revoked(number: int, mark: Mark, at: int) -> agent_pb2.HostReport:
    """`a` is at 1/9 of the stream, 700 after acceptance."""
    told = report("a", number, {V1: Mark(1, 9)}, applied_ns=REPORTED + 700)
    told.streams[0].revoked_epoch, told.streams[0].revoked_sequence = mark
    told.streams[0].revoked_unix_ns = at
    return told


def test_the_latency_of_a_revocation_is_told_by_itself() -> None:
    convergence = Convergence(lambda host, stream: True)
    concern = needs("a", mark=Mark(1, 9), stream=V1)
    wait = convergence.begin([concern], REPORTED, 1.0, {V1: Mark(1, 8)})
    convergence.report(revoked(1, Mark(1, 8), REPORTED + 50), REPORTED)
    progress = convergence.progress(wait, REPORTED)
    assert (progress.latencies_ns, progress.revocations_ns) == ([700], [50])
    # Of a change that revokes nothing, none is told.
    plain = convergence.progress(convergence.begin([concern], REPORTED), REPORTED)
    assert (plain.latencies_ns, plain.revocations_ns) == ([700], [])


def test_a_host_that_had_no_such_permission_has_no_latency_of_it() -> None:
    convergence = Convergence(lambda host, stream: True)
    concern = needs("a", mark=Mark(1, 9), stream=V1)
    wait = convergence.begin([concern], REPORTED, 1.0, {V1: Mark(1, 8)})
    convergence.report(revoked(1, Mark(1, 7), REPORTED - 50), REPORTED)
    progress = convergence.progress(wait, REPORTED)
    assert progress.converged
    assert progress.revocations_ns == []


def test_on_another_clock_the_first_receipt_of_a_revocation_stands_for_it() -> None:
    convergence = Convergence(lambda host, stream: True)
    told = revoked(1, Mark(1, 8), 5)
    convergence.report(told, REPORTED + 100, same_clock=False)
    told.number = 2
    convergence.report(told, REPORTED + 999, same_clock=False)
    concern = needs("a", mark=Mark(1, 9), stream=V1)
    wait = convergence.begin([concern], REPORTED, 1.0, {V1: Mark(1, 8)})
    progress = convergence.progress(wait, REPORTED)
    assert progress.revocations_ns == [100]
    assert not progress.same_clock


# --- drift ---


def held(number: int, mark: Mark, digest: int, **more: Any) -> agent_pb2.HostReport:
    told = report("a", number, {V1: mark}, **more)
    told.streams[0].digest = digests.to_bytes(digest)
    return told


def test_a_host_at_the_head_that_holds_something_else_is_an_exception_until_it_does_not() -> None:
    heads = {Mark(1, 5): 77}
    convergence = Convergence(lambda host, stream: True, lambda host, stream, mark: heads.get(mark))
    wait = convergence.begin([needs("a", stream=V1)], REPORTED)
    convergence.report(held(1, Mark(1, 5), 78), REPORTED)
    progress = convergence.progress(wait, REPORTED)
    assert not progress.converged
    (straggler,) = progress.stragglers
    assert straggler.why is Why.DRIFT
    assert f"{78:032x}" in straggler.reason
    assert f"{77:032x}" in straggler.reason
    # What its other streams do changes nothing about it.
    convergence.report(report("a", 2, {}), REPORTED)
    assert not convergence.progress(wait, REPORTED).converged
    convergence.report(held(3, Mark(1, 5), 77), REPORTED)
    assert convergence.progress(wait, REPORTED).converged
    assert not convergence.hosts["a"].exceptions


def test_a_host_behind_the_head_is_not_compared() -> None:
    convergence = Convergence(lambda host, stream: True, lambda host, stream, mark: None)
    convergence.report(held(1, Mark(1, 4), 78), REPORTED)
    assert not convergence.hosts["a"].exceptions


def test_drift_that_is_mended_behind_the_head_is_gone() -> None:
    heads = {Mark(1, 5): 77}
    convergence = Convergence(lambda host, stream: True, lambda host, stream, mark: heads.get(mark))
    convergence.report(held(1, Mark(1, 5), 78), REPORTED)
    heads.clear()  # the head went on
    convergence.report(held(2, Mark(1, 5), 78), REPORTED)
    assert [e.why for e in convergence.hosts["a"].exceptions] == [Why.DRIFT]
    convergence.report(held(3, Mark(1, 5), 77), REPORTED)
    assert not convergence.hosts["a"].exceptions


def test_the_core_knows_digests_at_heads() -> None:
    core, _, id_ = built()
    stream = vpc_stream(core.desired.get(ObjectKind.PORT, id_).vpc_id)
    head = core.streams[stream]
    assert core.inventory.digest_at("h0", stream, head.mark) == head.digest
    assert core.inventory.digest_at("h0", stream, Mark(1, head.mark.sequence - 1)) is None
    assert core.inventory.digest_at("h0", vpc_stream("none"), ORIGIN) is None
    inbox = inbox_stream("r0")
    of_host = core.inventory.host_digest("h0")
    assert core.inventory.digest_at("h0", inbox, core.streams[inbox].mark) == of_host
