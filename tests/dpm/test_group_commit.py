"""Changes that share a record of the log and a message on each stream."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.dpm import intake as intake_module
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.engine import Engine, Outcome
from goalstate.dpm.errors import LogUnreadable, NotServing
from goalstate.dpm.inventory import Publication
from goalstate.dpm.recovery import Replay, changes_of
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.packing import CHUNK_BYTES
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import ORIGIN, vpc_stream
from tests.dpm.reading import Readings, contents
from tests.dpm.test_core import NOW, TOPICS, agree, new_core
from tests.dpm.test_engine import apply, begin, out, run, serving, state
from tests.dpm.test_path_independence import build, network, port
from tests.dpm.wires import Region, Wire, until
from tests.gs.region import BASE
from tests.gs.test_desired_properties import INTENTS

K = ObjectKind
V1 = vpc_stream("v1")
INVALID = Intent(ports=(port(1, 8, "nowhere"),))


def together(core: Core, *intents: Intent) -> list[Accepted]:
    """Accept them as one group, those that can be."""
    for number, intent in enumerate(intents):
        try:
            changes = core.plan(intent)
        except IntentRejected:
            continue
        if changes:
            core.take(changes, NOW + number, f"trace-{number}")
    accepted = core.put()
    for one in accepted:
        core.logged(one.change)
    return accepted


def built() -> Core:
    core = new_core()
    together(core, *build())
    return core


def on_v1(accepted: list[Accepted]) -> list[Publication]:
    return [p for one in accepted for p in one.publications if p.envelope.stream == V1]


def parsed(publication: Publication) -> goalstate_pb2.GoalStateV2:
    return goalstate_pb2.GoalStateV2.FromString(publication.payload)


# --- the core ---


@settings(max_examples=60)
@given(
    INTENTS,
    st.booleans(),
    st.sampled_from([CHUNK_BYTES, 200]),
    st.randoms(use_true_random=False),
)
def test_in_whatever_groups_intents_come_hosts_hold_the_same_in_the_end(
    intents: list[Intent], own_stream: bool, chunk_bytes: int, random: Random
) -> None:
    one_by_one, grouped = (
        new_core(security_groups_own_stream=own_stream, chunk_bytes=chunk_bytes) for _ in range(2)
    )
    alone, whole = Readings(), Readings(in_groups=True)
    todo = [BASE, *intents]
    while todo:
        size = random.randint(1, len(todo))
        group, todo = todo[:size], todo[size:]
        for intent in group:
            for one in together(one_by_one, intent):
                alone.read(one.publications)
        for one in together(grouped, *group):
            whole.read(one.publications)
        agree(grouped, whole)
        assert grouped.inventory.records == one_by_one.inventory.records
        assert {s: r for s, r in whole.held.items() if r} == {
            s: r for s, r in alone.held.items() if r
        }
    assert whole.messages <= alone.messages


def test_a_resource_that_several_changes_touch_is_in_the_message_once() -> None:
    core = built()
    accepted = together(core, *(Intent(ports=(port(1, 9, f"h{n}"),)) for n in range(4)))
    assert [one.change for one in accepted] == [5, 6, 7, 8]
    assert [bool(one.publications) for one in accepted] == [False, False, False, True]
    (publication,) = on_v1(accepted)
    (neighbor,) = (resource for _, resource in contents(parsed(publication)))
    assert (neighbor.id, neighbor.revision) == ("v1-p9", 4)
    assert publication.envelope.change == 8
    assert publication.envelope.traceparent == "trace-0,trace-1,trace-2,trace-3"


def test_each_change_is_waited_for_on_its_own_hosts() -> None:
    core = built()
    one, other = together(
        core, Intent(ports=(port(1, 8, "h3"),)), Intent(ports=(port(2, 8, "h4"),))
    )
    assert {r.stream for r in one.requirements} & {r.stream for r in other.requirements} == set()
    inboxes = [r.hosts for r in one.requirements if r.hosts is not None]
    assert inboxes == [frozenset({"h3"})]
    heads = {stream: head.mark for stream, head in core.streams.items()}
    for requirement in one.requirements + other.requirements:
        assert requirement.mark == heads[requirement.stream]


def rules(*ports: int) -> Intent:
    (group, *_) = network(1).security_groups
    rule = group.rules[0]
    kept = tuple(rule._replace(id=f"r{n}", port_min=n, port_max=n) for n in ports)
    return Intent(security_groups=(group._replace(rules=kept),))


@pytest.mark.parametrize("also", [(), (1, 2, 3)], ids=["revoked", "revoked, and more permitted"])
def test_a_permission_that_any_of_them_takes_away_goes_first(also: tuple[int, ...]) -> None:
    core = built()
    together(core, rules(1, 2))
    changes = [Intent(ports=(port(1, 9, "h0"),)), rules(1)]
    if also:
        changes.append(rules(*also))
    accepted = together(core, *changes)
    revoked = [[r.revoked > ORIGIN for r in one.requirements] for one in accepted]
    assert not any(revoked[0]) and any(revoked[1])
    assert on_v1(accepted)


def test_what_is_made_and_narrowed_at_once_takes_nothing_away() -> None:
    core = built()
    (group, *_) = rules(1, 2).security_groups
    new = group._replace(id="new", name="new")
    accepted = together(
        core,
        Intent(security_groups=(new,)),
        Intent(security_groups=(new._replace(rules=new.rules[:1]),)),
    )
    assert all(r.revoked == ORIGIN for r in accepted[0].requirements)
    (publication,) = on_v1(accepted)
    (made,) = (resource for _, resource in contents(parsed(publication)))
    assert (made.id, made.revision) == ("new", 2)


def test_what_goes_and_comes_back_with_less_is_told_before_all_else() -> None:
    core = built()
    together(core, Intent(ports=(port(1, 9, "h0", "v1-web"),)))
    gone = Intent(deletes=(Deletion(K.PORT, "v1-p9"),))
    back = Intent(ports=(port(1, 9, "h0"),))
    accepted = together(core, gone, back)
    (publication,) = on_v1(accepted)
    assert [resource.revision for _, resource in contents(parsed(publication))] == [3]
    (port_again,) = (r for r in accepted[-1].requirements if r.hosts == frozenset({"h0"}))
    assert port_again.mark == core.streams[port_again.stream].mark


def records(*groups: list[Intent]) -> list[log_pb2.Record]:
    found = [log_pb2.Record(incarnation=log_pb2.Incarnation(epoch=1))]
    number = 0
    for group in groups:
        changes = []
        for place, intent in enumerate(group):
            number += 1
            changes.append(
                log_pb2.Change(
                    change=number,
                    accepted_unix_ns=NOW + place,
                    intent=intent_codec.to_proto(intent),
                    traceparent=f"trace-{place}",
                )
            )
        found.append(log_pb2.Record(group=log_pb2.Group(changes=changes)))
    return found


def test_redoing_a_group_gives_what_doing_it_gave() -> None:
    groups = [build(), [Intent(ports=(port(1, n, "h1"),)) for n in (7, 8)]]
    core = new_core()
    done = [one for group in groups for one in together(core, *group)]
    replay = Replay(TOPICS, security_groups_own_stream=False)
    for record in records(*groups):
        replay.redo(record)
    assert replay.unconfirmed == [p for one in done for p in one.publications]
    assert list(replay.changes.values()) == [one._replace(publications=[]) for one in done]


def test_a_group_whose_numbers_do_not_fit_is_named() -> None:
    wrong = records(build())
    wrong[1].group.changes[1].change = 7
    replay = Replay(TOPICS, security_groups_own_stream=False)
    replay.redo(wrong[0])
    with pytest.raises(LogUnreadable, match=r"\(changes 1 to 4\).*it would be change 2 here"):
        replay.redo(wrong[1])


# --- the intake ---


def bodies(region: Region) -> list[int]:
    """How many changes are in each record of the log that has any."""
    return [len(changes) for changes in map(changes_of, region.log()) if changes]


async def behind_another(
    region: Region, engine: Engine
) -> tuple[asyncio.Task[Outcome], list[asyncio.Task[Outcome]]]:
    """A change on its way into the log, which is held up, and two that came meanwhile."""
    await apply(engine, *build())
    region.cut(Wire.HELD, region.topics.intent_log)
    first = begin(engine, Intent(ports=(port(1, 6, "h0"),)))
    await until(lambda: region.held, "the first is on its way into the log")
    return first, [begin(engine, Intent(ports=(port(1, n, "h1"),))) for n in (7, 8)]


def test_what_comes_while_the_log_is_written_is_the_next_group() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            first, more = await behind_another(region, engine)
            refused = begin(engine, INVALID)
            again = begin(engine, Intent(ports=(port(1, 7, "h1"),)))
            region.mend()
            region.release()
            assert [(await task).change for task in (first, *more)] == [5, 6, 7]
            with pytest.raises(IntentRejected, match="nowhere"):
                await refused
            repeated = await again
            assert (repeated.change, repeated.changed_objects) == (7, 0)
            assert bodies(region)[-2:] == [1, 2]
            await out(engine)
            before = state(engine)
            agree(engine.core, readings(region))
        async with serving(region) as engine:
            assert state(engine) == before

    run(test)


def readings(region: Region) -> Readings:
    published = (
        Publication(envelope, payload)
        for messages in region.streams().values()
        for envelope, payload in messages
    )
    return Readings(published, in_groups=True)


def test_a_group_that_the_log_may_not_have_is_answered_so_to_each() -> None:
    async def test(region: Region) -> None:
        async with serving(region) as engine:
            first, more = await behind_another(region, engine)
            region.mend()
            region.cut(Wire.FAILS, region.topics.intent_log)
            region.release()
            assert (await first).change == 5
            for task in more:
                with pytest.raises(NotServing, match="may be in it or not"):
                    await task
            region.mend()
            await until(lambda: engine.serving, "it serves again")
            assert engine.core.change == 5

    run(test)


def pending(engine: Engine) -> int:
    assert engine._incarnation is not None
    return len(engine._incarnation.intake._proposed)


def test_an_interval_has_changes_wait_for_each_other_and_a_full_group_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(region: Region) -> None:
        async with serving(region, group_interval_s=3600.0) as engine:
            # The first does not wait: nothing came lately.
            assert (await apply(engine, build()[0])).change == 1
            tasks = [begin(engine, intent) for intent in build()[1:]]
            await until(lambda: pending(engine) == 3, "they wait for each other")
            monkeypatch.setattr(intake_module, "FULL_BYTES", 1)
            tasks.append(begin(engine, Intent(ports=(port(1, 9, "h2"),))))
            assert [(await task).change for task in tasks] == [2, 3, 4, 5]
            monkeypatch.undo()
            left = begin(engine, Intent(ports=(port(1, 9, "h0"),)))
            await until(lambda: pending(engine) == 1, "the last one waits")
            await asyncio.wait_for(engine.stop(), 20)
            with pytest.raises(NotServing, match="nothing of the intent was taken"):
                await left
            assert region.logged() == [1, 2, 3, 4, 5]

    run(test)
