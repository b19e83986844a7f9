"""The publisher's core: its laws, told by a reader that checks every message."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.dpm.core import Accepted, Core, Requirement
from goalstate.dpm.inventory import Publication
from goalstate.gs.derivation import Derivation, Key
from goalstate.gs.errors import IntentRejected, StalePlan
from goalstate.gs.intent import Deletion, Intent, ObjectKind, Port
from goalstate.gs.packing import CHUNK_BYTES
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import (
    ORIGIN,
    Mark,
    StreamId,
    inbox_stream,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.topics import Topics
from goalstate.scale.generate import Region
from tests.dpm.reading import Readings
from tests.dpm.test_path_independence import HOSTS, RACKS, SCENARIOS, build, host, network, port
from tests.gs.region import BASE
from tests.gs.test_desired_properties import INTENTS

K = ObjectKind
TOPICS = Topics()
NOW = 1_700_000_000_000_000_000
V1, V2 = vpc_stream("v1"), vpc_stream("v2")
R0, R1, R2 = (inbox_stream(f"r{n}") for n in range(3))
PATH = Path(__file__).resolve().parents[2]


def new_core(**settings: Any) -> Core:
    core = Core(TOPICS, **settings)
    core.begin_epoch(1)
    return core


def accept(core: Core, intent: Intent, now: int = NOW) -> Accepted:
    accepted = core.accept(core.plan(intent), now)
    core.logged(accepted.change)
    return accepted


def run(core: Core, intents: list[Intent]) -> list[Publication]:
    """Accept intents one after the other, those that can be; gives all that is published."""
    published: list[Publication] = []
    for intent in intents:
        try:
            published += accept(core, intent).publications
        except IntentRejected:
            continue
    return published


@pytest.fixture
def core() -> Core:
    """The region of the scenarios, built: see `test_path_independence.build`."""
    core = new_core()
    run(core, build())
    return core


@pytest.fixture
def own() -> Core:
    """The same with each security group on its own stream."""
    core = new_core(security_groups_own_stream=True)
    run(core, build())
    return core


def waited(core: Core, accepted: Accepted) -> dict[str, set[str]]:
    """Who is waited for after a change, by stream."""
    assert len({r.stream for r in accepted.requirements}) == len(accepted.requirements)
    return {str(r.stream): set(core.concerned(r)) for r in accepted.requirements}


def by_stream(core: Core, requirements: list[Requirement]) -> dict[str, dict[str, Mark]]:
    """Stream → host → mark that it must reach."""
    wanted: dict[str, dict[str, Mark]] = {}
    for requirement in requirements:
        for name in core.concerned(requirement):
            assert name not in wanted.setdefault(str(requirement.stream), {})
            wanted[str(requirement.stream)][name] = requirement.mark
    return wanted


# --- whole or nothing ---


def test_a_refused_intent_leaves_no_trace() -> None:
    with_refusals, without = new_core(), new_core()
    refused = Intent(
        ports=(port(1, 9, "h0"), port(1, 10, "nowhere")), deletes=(Deletion(K.HOST, "h1"),)
    )
    published = []
    for intent in build():
        published += accept(with_refusals, intent).publications
        with pytest.raises(IntentRejected):
            with_refusals.plan(refused)
    assert published == run(without, build())
    assert with_refusals.change == without.change
    assert with_refusals.desired.counts() == without.desired.counts()


def test_planning_changes_nothing(core: Core) -> None:
    before = (core.change, dict(core.streams), core.desired.version)
    assert len(core.plan(Intent(ports=(port(1, 9, "h0"),)))) == 1
    assert (core.change, dict(core.streams), core.desired.version) == before


def test_a_plan_for_another_state_is_not_accepted_and_counts_for_nothing(core: Core) -> None:
    plan = core.plan(Intent(ports=(port(1, 9, "h0"),)))
    accept(core, Intent(ports=(port(1, 10, "h0"),)))
    heads = {stream: state.mark for stream, state in core.streams.items()}
    change = core.change
    with pytest.raises(StalePlan):
        core.accept(plan, NOW)
    assert core.change == change
    assert {stream: state.mark for stream, state in core.streams.items()} == heads


def test_nothing_is_accepted_before_the_first_epoch() -> None:
    core = Core(TOPICS)
    plan = core.plan(HOSTS)
    with pytest.raises(ValueError, match="no epoch"):
        core.accept(plan, NOW)
    assert core.change == 0
    assert core.desired.version == 0


def test_an_intent_that_is_there_already_is_no_change(core: Core) -> None:
    for intent in build():
        assert len(core.plan(intent)) == 0


def test_a_change_that_concerns_no_host_publishes_nothing(core: Core) -> None:
    accepted = accept(core, Intent(hosts=(host(4)._replace(site="other"),)))
    assert (accepted.changed_objects, accepted.publications) == (1, [])
    assert accepted.requirements == []
    unbound = accept(core, Intent(ports=(port(1, 20, ""),)))
    assert (unbound.changed_objects, unbound.publications, unbound.requirements) == (1, [], [])


# --- publications are a function of the log ---


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_log_gives_the_same_messages_byte_for_byte(
    scenario: str, own_stream: bool
) -> None:
    once, again = (
        run(new_core(security_groups_own_stream=own_stream), SCENARIOS[scenario]())
        for _ in range(2)
    )
    assert once == again


def fingerprint() -> str:
    """Of all that every scenario publishes."""
    hashed = hashlib.sha256()
    for scenario in SCENARIOS.values():
        for own_stream in (False, True):
            core = new_core(security_groups_own_stream=own_stream, chunk_bytes=300)
            for publication in run(core, scenario()):
                hashed.update(repr(publication).encode())
    return hashed.hexdigest()


def test_another_process_gives_the_same_messages() -> None:
    # Sets and hashes of strings differ from process to process: nothing may follow from them.
    program = "from tests.dpm.test_core import fingerprint; print(fingerprint())"
    prints = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(PATH)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert prints == {fingerprint()}


def test_time_and_trace_of_acceptance_are_in_every_message(core: Core) -> None:
    plan = core.plan(Intent(ports=(port(1, 0, "h3"),)))
    accepted = core.accept(plan, NOW + 5, "00-trace-span-01")
    assert accepted.accepted_ns == NOW + 5
    assert {p.envelope.published_ns for p in accepted.publications} == {NOW + 5}
    assert {p.envelope.traceparent for p in accepted.publications} == {"00-trace-span-01"}
    assert {p.envelope.change for p in accepted.publications} == {core.change}


# --- streams: order, revisions, digests (what `Readings` checks at every step) ---


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 300, 1])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_keeps_the_laws_of_streams(
    scenario: str, chunk_bytes: int, own_stream: bool
) -> None:
    core = new_core(security_groups_own_stream=own_stream, chunk_bytes=chunk_bytes)
    readings = Readings()
    for epoch, intent in enumerate(SCENARIOS[scenario](), 2):
        readings.read(accept(core, intent).publications)
        agree(core, readings)
        core.begin_epoch(epoch)


@settings(max_examples=60)
@given(INTENTS, st.booleans(), st.sampled_from([CHUNK_BYTES, 200]))
def test_any_intents_keep_the_laws_of_streams(
    intents: list[Intent], own_stream: bool, chunk_bytes: int
) -> None:
    core = new_core(security_groups_own_stream=own_stream, chunk_bytes=chunk_bytes)
    readings = Readings(run(core, [BASE, *intents]))
    agree(core, readings)


def agree(core: Core, readings: Readings) -> None:
    """What the core says of its streams is what a reader finds on them."""
    published = {s: state for s, state in core.streams.items() if state.mark > ORIGIN}
    assert published.keys() == readings.marks.keys()
    for stream, state in published.items():
        assert state.mark == readings.marks[stream]
        assert state.resources == len(readings.held[stream])
    subscribed: dict[StreamId, set[str]] = {stream: set() for stream in core.streams}
    for one in core.desired.objects(K.HOST):
        inbox = inbox_stream(one.group)
        assert core.inventory.host_digest(one.id) == readings.host_digest(one.id, inbox)
        for kind, id_, name in readings.held.get(inbox, {}):
            if kind is Kind.SUBSCRIPTION and name == one.id:
                subscribed[StreamId.parse(id_)].add(one.id)
    assert {s: set(state.followers) for s, state in core.streams.items()} == subscribed


def test_a_revision_begins_at_one_and_goes_on_after_a_deletion(core: Core) -> None:
    def revision(intent: Intent) -> tuple[int, int]:
        for publication in accept(core, intent).publications:
            if publication.envelope.stream == V1:
                message = goalstate_pb2.GoalStateV2.FromString(publication.payload)
                state = message.neighbor_states["v1-p9"]
                return state.operation_type, state.configuration.revision_number
        raise AssertionError("nothing on the VPC's stream")

    deletion = Intent(deletes=(Deletion(K.PORT, "v1-p9"),))
    there, moved = Intent(ports=(port(1, 9, "h0"),)), Intent(ports=(port(1, 9, "h1"),))
    assert revision(there) == (resources_pb2.CREATE, 1)
    assert revision(moved) == (resources_pb2.UPDATE, 2)
    assert revision(deletion) == (resources_pb2.DELETE, 3)
    assert revision(there) == (resources_pb2.UPDATE, 4)
    assert revision(deletion) == (resources_pb2.DELETE, 5)


def test_a_touched_resource_that_is_the_same_keeps_its_revision(core: Core) -> None:
    renamed = port(1, 0, "h0", "v1-web", name="new")
    accepted = accept(core, Intent(ports=(renamed,)))
    [publication] = accepted.publications
    message = goalstate_pb2.GoalStateV2.FromString(publication.payload)
    assert publication.envelope.stream == R0
    assert set(message.port_states) == {"v1-p0"}
    assert not message.dhcp_states, "the DHCP answer was touched, and is as it was"


def test_an_epoch_begins_each_stream_anew_after_where_it_was(core: Core) -> None:
    head = core.streams[V1].mark
    core.begin_epoch(5)
    first = accept(core, Intent(ports=(port(1, 9, "h0"),)))
    then = accept(core, Intent(ports=(port(1, 10, "h0"),)))
    envelopes = [
        p.envelope for a in (first, then) for p in a.publications if p.envelope.stream == V1
    ]
    assert [(e.mark, e.after) for e in envelopes] == [(Mark(5, 1), head), (Mark(5, 2), None)]
    assert core.streams[V2].mark.epoch == 1


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_an_epoch_is_above_all_before(epoch: int) -> None:
    core = Core(TOPICS)
    core.begin_epoch(2)
    with pytest.raises(ValueError, match=f"epoch {epoch}"):
        core.begin_epoch(epoch)
    assert core.epoch == 2


def test_a_large_change_is_cut_into_chunks_that_say_so() -> None:
    core, whole = new_core(chunk_bytes=1000), new_core()
    ports = Intent(ports=tuple(port(1, n, "h0") for n in range(30)))
    for one in (core, whole):
        run(one, [HOSTS, network(1)])
    chunked, unchunked = accept(core, ports), accept(whole, ports)
    of_vpc = [p for p in chunked.publications if p.envelope.stream == V1]
    assert len(of_vpc) > 3
    assert [p.envelope.chunk for p in of_vpc] == list(range(1, len(of_vpc) + 1))
    assert {p.envelope.chunks for p in of_vpc} == {len(of_vpc)}
    assert len({p.envelope.digest for p in of_vpc}) == len(of_vpc)
    assert all(len(p.payload) < 1100 for p in of_vpc)
    [single] = [p for p in unchunked.publications if p.envelope.stream == V1]
    assert (single.envelope.chunk, single.envelope.chunks) == (1, 1)
    assert single.envelope.digest == of_vpc[-1].envelope.digest
    # A host has it when it has the last chunk.
    assert {r.mark for r in chunked.requirements if r.stream == V1} == {of_vpc[-1].envelope.mark}


@pytest.mark.parametrize(
    ("stream", "kinds"),
    [
        (vpc_stream("v3"), ["VPC", "SUBNET", "SECURITY_GROUP", "ROUTER", "NEIGHBOR"]),
        (V2, ["NEIGHBOR", "ROUTER", "SECURITY_GROUP", "SUBNET", "VPC"]),
        (R0, ["PORT", "SUBSCRIPTION", "PORT"]),
    ],
    ids=["added", "deleted", "both"],
)
def test_additions_come_before_deletions_and_what_is_needed_before_what_needs_it(
    stream: StreamId, kinds: list[str]
) -> None:
    core = new_core(chunk_bytes=1)
    run(core, build())
    intent = network(3)._replace(
        ports=(port(3, 0, "h0", "v3-web"),), deletes=(Deletion(K.VPC, "v2", True),)
    )
    published = [
        kind
        for publication in accept(core, intent).publications
        if publication.envelope.stream == stream
        for kind in kinds_of(goalstate_pb2.GoalStateV2.FromString(publication.payload))
    ]
    assert [kind for kind, _ in groupby(published)] == kinds


def kinds_of(message: Any) -> list[str]:
    names = [
        field.name.removesuffix("_states").upper()
        for field, value in message.ListFields()
        if field.name.endswith("_states") and value
    ]
    facts = [f for section in message.host_resources.values() for f in section.subscriptions]
    return names + ["SUBSCRIPTION"] * len(facts)


def test_a_port_that_moves_within_its_rack_comes_before_it_goes(core: Core) -> None:
    accepted = accept(core, Intent(ports=(port(1, 0, "h1", "v1-web"),)))
    inbox = [p for p in accepted.publications if p.envelope.stream == R0]
    operations = [
        (name, state.operation_type)
        for publication in inbox
        for message in [goalstate_pb2.GoalStateV2.FromString(publication.payload)]
        for name, section in message.host_resources.items()
        for named in section.resources
        if named.id == "v1-p0"
        for state in [message.port_states["v1-p0"]]
    ]
    assert operations == [("h1", resources_pb2.UPDATE), ("h0", resources_pb2.DELETE)]


# --- the cost follows the change ---


class Counted:
    """How many resources were derived, of how many touched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built = 0
        build_one = Derivation.build

        def count(derivation: Derivation, key: Key) -> Any:
            self.built += 1
            return build_one(derivation, key)

        monkeypatch.setattr(Derivation, "build", count)


@pytest.mark.parametrize("change", ["added", "moved", "deleted"])
def test_a_port_costs_the_same_in_a_small_and_in_a_large_vpc(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = set()
    for ports in (10, 600):
        region = Region(hosts=20, vpcs=(ports,), seed=3, dhcp_share=0)
        core = new_core()
        run(core, list(region.intents()))
        one: Port = region.port(1, 0)
        others = [p.host_id for p in core.desired.objects(K.PORT) if p.id != one.id]
        target = next(name for name in others if name != one.host_id)
        intent = {
            "added": Intent(
                ports=(
                    one._replace(
                        id="new",
                        host_id=target,
                        mac_address="02:ff:00:00:00:01",
                        fixed_ips=(region.port(1, ports).fixed_ips[0],),
                    ),
                )
            ),
            "moved": Intent(ports=(one._replace(host_id=target),)),
            "deleted": Intent(deletes=(Deletion(K.PORT, one.id),)),
        }[change]
        counted = Counted(monkeypatch)
        accepted = accept(core, intent)
        resources = sum(
            len(kinds_of(goalstate_pb2.GoalStateV2.FromString(p.payload)))
            for p in accepted.publications
        )
        streams = {str(p.envelope.stream) for p in accepted.publications}
        costs.add((change, counted.built))
        assert resources <= 6
        assert len(streams) <= 3
        monkeypatch.undo()
    assert len(costs) == 1


# --- who is waited for ---


def test_a_new_port_is_waited_for_on_its_host_and_on_all_hosts_of_its_vpc(core: Core) -> None:
    accepted = accept(core, Intent(ports=(port(1, 9, "h1", "v1-web"),)))
    assert waited(core, accepted) == {"vpc/v1": {"h0", "h1", "h2", "h3"}, "inbox/r0": {"h1"}}
    assert {r.stream: r.mark for r in accepted.requirements} == {
        stream: core.streams[stream].mark for stream in (V1, R0)
    }


def test_the_first_port_of_a_host_makes_it_wait_for_the_vpc_too(core: Core) -> None:
    accepted = accept(core, Intent(ports=(port(1, 9, "h4", "v1-web"),)))
    assert waited(core, accepted) == {"vpc/v1": {"h0", "h1", "h2", "h3", "h4"}, "inbox/r2": {"h4"}}


def test_a_move_is_waited_for_on_both_hosts_and_on_those_that_follow_afterwards(
    core: Core,
) -> None:
    # h4 has one port of v2, h0 the other: h4 leaves the VPC, h1 joins it.
    accepted = accept(core, Intent(ports=(port(2, 1, "h1", "v2-web"),)))
    assert waited(core, accepted) == {
        "vpc/v2": {"h0", "h1"},
        "inbox/r0": {"h1"},
        "inbox/r2": {"h4"},
    }


def test_a_deletion_is_waited_for_on_the_host_that_forgets(core: Core) -> None:
    accepted = accept(core, Intent(deletes=(Deletion(K.PORT, "v2-p1"),)))
    assert waited(core, accepted) == {"vpc/v2": {"h0"}, "inbox/r2": {"h4"}}


def test_a_deleted_vpc_is_waited_for_on_its_hosts_inboxes_alone(core: Core) -> None:
    accepted = accept(core, Intent(deletes=(Deletion(K.VPC, "v2", True),)))
    assert waited(core, accepted) == {"vpc/v2": set(), "inbox/r0": {"h0"}, "inbox/r2": {"h4"}}


def test_what_only_a_host_knows_is_waited_for_on_that_host(core: Core) -> None:
    accepted = accept(core, Intent(ports=(port(1, 0, "h0", "v1-web", name="new"),)))
    assert waited(core, accepted) == {"inbox/r0": {"h0"}}


def test_a_rule_is_waited_for_on_all_hosts_of_the_vpc_or_on_those_with_members(
    core: Core, own: Core
) -> None:
    web = network(1).security_groups[0]
    revoked = Intent(security_groups=(web._replace(rules=web.rules[1:]),))
    assert waited(core, accept(core, revoked)) == {"vpc/v1": {"h0", "h1", "h2", "h3"}}
    assert waited(own, accept(own, revoked)) == {"sg/v1-web": {"h0", "h1", "h2", "h3"}}
    unused = network(1).security_groups[1]._replace(rules=())
    assert waited(own, accept(own, Intent(security_groups=(unused,)))) == {"sg/v1-db": set()}


def test_a_host_that_joins_a_groups_stream_is_waited_for_on_what_was_there(own: Core) -> None:
    stream = security_group_stream("v1-db")
    there = own.streams[stream].mark
    accepted = accept(own, Intent(ports=(port(1, 2, "h2", "v1-web", "v1-db"),)))
    assert waited(own, accepted)["sg/v1-db"] == {"h2"}
    assert {r.mark for r in accepted.requirements if r.stream == stream} == {there}
    # The next member waits for itself alone, and one on a host that has members not at all.
    accepted = accept(own, Intent(ports=(port(1, 3, "h3", "v1-web", "v1-db"),)))
    assert waited(own, accepted)["sg/v1-db"] == {"h3"}
    accepted = accept(own, Intent(ports=(port(1, 11, "h3", "v1-db"),)))
    assert "sg/v1-db" not in waited(own, accepted)


def test_a_host_that_joins_a_group_that_changes_with_it_is_waited_for_once(own: Core) -> None:
    db = network(1).security_groups[1]
    intent = Intent(
        ports=(port(1, 2, "h2", "v1-web", "v1-db"),),
        security_groups=(db._replace(rules=()),),
    )
    assert waited(own, accept(own, intent))["sg/v1-db"] == {"h2"}


# --- all that was published ---


def test_of_a_vpc_everybody_is_waited_for_who_has_or_had_it(core: Core) -> None:
    accept(core, Intent(ports=(port(2, 1, "h1", "v2-web"),)))
    head = core.streams[V2].mark
    wanted = by_stream(core, core.requirements_of_vpc("v2"))
    assert wanted["vpc/v2"] == {"h0": head, "h1": head}
    assert wanted["inbox/r2"] == {"h4": core.streams[R2].mark}
    assert wanted["inbox/r0"].keys() == {"h0", "h1"}
    assert wanted["inbox/r0"]["h0"] < wanted["inbox/r0"]["h1"] == core.streams[R0].mark


def test_of_a_vpc_nothing_of_other_vpcs_is_waited_for(core: Core) -> None:
    before = by_stream(core, core.requirements_of_vpc("v2"))
    accept(core, Intent(ports=(port(1, 0, "h0", "v1-web", name="new"),)))
    assert by_stream(core, core.requirements_of_vpc("v2")) == before
    assert core.requirements_of_vpc("unknown") == []


def test_of_a_vpc_the_streams_of_its_groups_are_waited_for(own: Core) -> None:
    wanted = by_stream(own, own.requirements_of_vpc("v1"))
    assert wanted["sg/v1-web"].keys() == {"h0", "h1", "h2", "h3"}
    assert "sg/v2-web" not in wanted


def test_a_deleted_vpc_is_still_waited_for_where_it_must_be_forgotten(core: Core) -> None:
    accepted = accept(core, Intent(deletes=(Deletion(K.VPC, "v2", True),)))
    wanted = by_stream(core, core.requirements_of_vpc("v2"))
    assert wanted == by_stream(core, accepted.requirements)


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_all_that_was_published_is_waited_for_by_somebody(scenario: str, own_stream: bool) -> None:
    core = new_core(security_groups_own_stream=own_stream)
    published: dict[tuple[str, StreamId], Mark] = {}
    for intent in SCENARIOS[scenario]():
        for requirement in accept(core, intent).requirements:
            stream, mark, *_ = requirement
            published.update({(name, stream): mark for name in core.concerned(requirement)})
    wanted = by_stream(core, core.requirements_of_all())
    for (name, stream), mark in published.items():
        if core.follows(name, stream):
            assert mark <= wanted[str(stream)][name] <= core.streams[stream].mark
        else:
            assert name not in wanted.get(str(stream), {})


def test_a_host_that_is_gone_is_waited_for_no_more(core: Core) -> None:
    accept(core, Intent(deletes=(Deletion(K.PORT, "v2-p1"),)))
    assert "h4" in by_stream(core, core.requirements_of_all())["inbox/r2"]
    accept(core, Intent(deletes=(Deletion(K.HOST, "h4"),)))
    assert "inbox/r2" not in by_stream(core, core.requirements_of_all())
    assert "inbox/r2" not in by_stream(core, core.requirements_of_vpc("v2"))
    assert not core.follows("h4", R2)


def test_a_host_that_changed_its_rack_is_waited_for_where_it_is(core: Core) -> None:
    accept(core, Intent(deletes=(Deletion(K.PORT, "v2-p1"),)))
    accept(core, Intent(hosts=(host(4)._replace(group="r1"),)))
    assert (core.follows("h4", R2), core.follows("h4", R1)) == (False, True)
    assert "inbox/r2" not in by_stream(core, core.requirements_of_all())
    accept(core, Intent(ports=(port(2, 1, "h4", "v2-web"),)))
    assert by_stream(core, core.requirements_of_all())["inbox/r1"]["h4"] == core.streams[R1].mark
    assert "inbox/r2" not in by_stream(core, core.requirements_of_vpc("v2"))


def test_acceptance_of_the_newest_change_of_a_vpc_is_known(core: Core) -> None:
    assert core.accepted_ns("unknown") == 0
    accept(core, Intent(ports=(port(2, 0, "h0", "v2-web"),)), NOW + 1)
    accept(core, Intent(ports=(port(1, 0, "h3", "v1-web"),)), NOW + 2)
    assert (core.accepted_ns("v1"), core.accepted_ns("v2")) == (NOW + 2, NOW + 1)
    assert core.accepted_ns() == NOW + 2
    assert Core(TOPICS).accepted_ns() == 0


def test_a_host_follows_its_inbox_and_what_it_subscribes_to(core: Core) -> None:
    following = {
        name: {str(s) for s in core.streams if core.follows(name, s)} for name in (*RACKS, "nobody")
    }
    assert following == {
        "h0": {"inbox/r0", "vpc/v1", "vpc/v2"},
        "h1": {"inbox/r0", "vpc/v1"},
        "h2": {"inbox/r1", "vpc/v1"},
        "h3": {"inbox/r1", "vpc/v1"},
        "h4": {"inbox/r2", "vpc/v2"},
        "nobody": set(),
    }
    assert not core.follows("h0", vpc_stream("unknown"))


def test_a_host_without_anything_has_the_empty_digest(core: Core) -> None:
    accept(core, Intent(deletes=(Deletion(K.PORT, "v2-p1"),)))
    assert core.inventory.host_digest("h4") == core.inventory.host_digest("nobody") == 0
    assert core.inventory.host_digest("h0") != 0
