"""Which channel a VPC is on: thresholds with hysteresis, an override, and nothing but the log."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.dpm import snapshot_codec
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.inventory import Publication
from goalstate.dpm.recovery import Replay
from goalstate.gs import intent_codec
from goalstate.gs.after import Reason
from goalstate.gs.desired import Desired
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import ChannelChoice, Deletion, Intent, ObjectKind, Port
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import (
    Channel,
    StreamId,
    StreamKind,
    security_group_stream,
    vpc_stream,
)
from goalstate.gs.topics import Topics, of_session
from tests.dpm.reading import Readings
from tests.dpm.test_path_independence import HOSTS, network, port

V1 = vpc_stream("v1")
PULSAR, SESSION = Channel.PULSAR, Channel.SESSION
#: Back below 8 ports and 4 members.
POLICY = ChannelPolicy(10, 5)


def ports(first: int, last: int, *groups: str) -> Intent:
    return Intent(ports=tuple(port(1, n, f"h{n % 4}", *groups) for n in range(first, last + 1)))


def without(first: int, last: int) -> Intent:
    return Intent(
        deletes=tuple(Deletion(ObjectKind.PORT, f"v1-p{n}") for n in range(first, last + 1))
    )


def choose(choice: ChannelChoice) -> Intent:
    return Intent(vpcs=(network(1).vpcs[0]._replace(channel=choice),))


def begun(policy: ChannelPolicy = POLICY, *, own_stream: bool = False) -> Core:
    core = Core(Topics(), security_groups_own_stream=own_stream)
    core.begin_epoch(1, policy)
    for intent in (HOSTS, network(1)):
        accept(core, intent)
    return core


def accept(core: Core, intent: Intent) -> Accepted:
    return core.accept(core.plan(intent), 1_000)


def on(publications: list[Publication], stream: StreamId) -> list[Publication]:
    return [one for one in publications if one.envelope.stream == stream]


def facts(publications: list[Publication]) -> dict[tuple[str, str], tuple[int, str]]:
    """What inbox messages say of subscriptions: channel and topic, by host and stream."""
    found = {}
    for publication in publications:
        if publication.envelope.stream.kind is StreamKind.INBOX:
            message = goalstate_pb2.GoalStateV2.FromString(publication.payload)
            for host, section in message.host_resources.items():
                for fact in section.subscriptions:
                    found[host, fact.stream] = (int(fact.channel), fact.topic)
    return found


# --- the choice ---


def test_a_vpc_is_on_sessions_until_it_has_too_many_ports_and_comes_back_well_below() -> None:
    core = begun()
    seen = []
    for step in (ports(1, 10), ports(11, 11), without(9, 11), without(8, 8), ports(8, 10)):
        accept(core, step)
        seen.append((len(core.desired.ports_of_vpc("v1")), core.channel_of_vpc("v1")))
    assert seen == [(10, SESSION), (11, PULSAR), (8, PULSAR), (7, SESSION), (10, SESSION)]


def test_the_members_of_one_security_group_count_as_well() -> None:
    core = begun()
    seen = []
    for step in (
        ports(1, 5, "v1-web"),
        ports(6, 6, "v1-web"),
        ports(5, 6, "v1-db"),
        ports(4, 4, "v1-db"),
        ports(4, 4),
    ):
        accept(core, step)
        seen.append(core.channel_of_vpc("v1"))
    assert seen == [SESSION, PULSAR, PULSAR, SESSION, SESSION]


def test_many_empty_security_groups_are_not_looked_at() -> None:
    core = begun()
    template = network(1).security_groups[0]
    groups = tuple(template._replace(id=f"g{n}", rules=()) for n in range(50))
    accept(core, Intent(security_groups=groups))
    accept(core, ports(1, 6, "g7"))
    assert core.channel_of_vpc("v1") is PULSAR


def test_a_vpc_that_is_large_at_once_is_on_pulsar_at_once() -> None:
    core = Core(Topics())
    core.begin_epoch(1, POLICY)
    accept(core, HOSTS)
    accepted = accept(core, network(1)._replace(ports=ports(1, 11).ports))
    assert core.channel_of_vpc("v1") is PULSAR
    assert not any(one.begins for one in accepted.publications)


def test_an_override_wins_over_the_size() -> None:
    core = begun()
    seen = []
    for step in (
        choose(ChannelChoice.PULSAR),
        choose(ChannelChoice.SESSION),
        ports(1, 12),
        choose(ChannelChoice.AUTO),
        choose(ChannelChoice.SESSION),
    ):
        accept(core, step)
        seen.append(core.channel_of_vpc("v1"))
    assert seen == [PULSAR, SESSION, SESSION, PULSAR, SESSION]


def test_a_region_without_sessions_has_none_and_refuses_who_asks() -> None:
    core = begun(NEVER)
    accept(core, choose(ChannelChoice.PULSAR))
    with pytest.raises(IntentRejected) as refused:
        core.plan(network(2)._replace(vpcs=(*network(2).vpcs, *choose(ChannelChoice.SESSION).vpcs)))
    assert [(v.path, v.reason) for v in refused.value.violations] == [
        ("vpcs[1].channel", Reason.NO_SESSIONS)
    ]
    assert {state.channel for state in core.streams.values()} == {PULSAR}


def test_what_is_no_channel_is_refused() -> None:
    vpc = network(1).vpcs[0]._replace(channel=7)
    with pytest.raises(IntentRejected) as refused:
        Desired().plan(Intent(vpcs=(vpc,)))
    (violation,) = refused.value.violations
    assert (violation.path, violation.reason) == ("vpcs[0].channel", Reason.BAD_VALUE)
    assert "AUTO, PULSAR, SESSION" in violation.message


def test_new_thresholds_count_from_the_next_change_of_a_vpc_on() -> None:
    core = begun()
    accept(core, ports(1, 6))
    core.begin_epoch(2, ChannelPolicy(5, 5))
    assert core.channel_of_vpc("v1") is SESSION
    accept(core, Intent(ports=(port(1, 1, "h0", name="renamed"),)))
    assert core.channel_of_vpc("v1") is PULSAR
    core.begin_epoch(3, NEVER)
    assert core.channel_of_vpc("v1") is PULSAR


def test_what_is_left_to_say_of_a_deleted_vpc_is_said_where_it_was() -> None:
    core = begun()
    accept(core, ports(1, 11))
    gone = accept(core, Intent(deletes=(Deletion(ObjectKind.VPC, "v1", True),)))
    assert [(one.channel, one.begins) for one in on(gone.publications, V1)] == [(PULSAR, False)]
    back = accept(core, network(1))
    assert [(one.channel, one.begins) for one in on(back.publications, V1)] == [(SESSION, True)]


# --- a switch ---


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
def test_a_switch_is_told_to_all_followers_in_the_change_that_led_to_it(own_stream: bool) -> None:
    core = begun(own_stream=own_stream)
    accept(core, ports(1, 3, "v1-web"))
    accept(core, ports(4, 10))
    switch = accept(core, ports(11, 11))
    topics = Topics()
    streams = [V1, *([security_group_stream("v1-web")] if own_stream else [])]
    told = facts(switch.publications)
    for stream in streams:
        followers = core.streams[stream].followers
        assert followers
        for host in followers:
            assert told[host, str(stream)] == (int(PULSAR), topics.of_stream(stream))
    assert len(told) == sum(len(core.streams[stream].followers) for stream in streams)
    back = facts(accept(core, without(5, 11)).publications)
    for stream in streams:
        for host in core.streams[stream].followers:
            assert back[host, str(stream)] == (int(SESSION), of_session(stream))


def test_a_switch_begins_with_a_message_on_the_new_channel_also_if_there_is_nothing_to_say() -> (
    None
):
    core = begun()
    accept(core, ports(1, 3))
    before = core.streams[V1].mark
    switch = accept(core, choose(ChannelChoice.PULSAR))
    (first,) = on(switch.publications, V1)
    assert (first.channel, first.begins) == (PULSAR, True)
    assert first.envelope.mark == (before.epoch, before.sequence + 1)
    assert core.streams[V1].began == first.envelope.mark
    assert (V1, first.envelope.mark, None) in [one[:3] for one in switch.requirements]
    (second,) = on(accept(core, ports(4, 4)).publications, V1)
    assert (second.channel, second.begins) == (PULSAR, False)


def test_only_the_first_message_of_a_switch_begins_it() -> None:
    core = Core(Topics(), chunk_bytes=1)
    core.begin_epoch(1, POLICY)
    for intent in (HOSTS, network(1), ports(1, 9)):
        accept(core, intent)
    of_vpc = on(accept(core, ports(10, 12)).publications, V1)
    assert [one.begins for one in of_vpc] == [True, False, False]


def test_marks_go_on_over_switches() -> None:
    readings = Readings()
    core = Core(Topics())
    core.begin_epoch(1, POLICY)
    for step in (HOSTS, network(1), ports(1, 11), without(5, 11), ports(5, 12), without(1, 12)):
        readings.read(accept(core, step).publications)
    assert readings.marks[V1] == core.streams[V1].mark


def test_an_inbox_is_always_on_pulsar() -> None:
    core = begun()
    accepted = accept(core, ports(1, 11))
    inboxes = [p for p in accepted.publications if p.envelope.stream.kind is StreamKind.INBOX]
    assert inboxes
    assert {one.channel for one in inboxes} == {PULSAR}


# --- a function of the log ---


def records(steps: list[tuple[bool, int, int]], own_stream: bool) -> list[log_pb2.Record]:
    """A log of ports that come and go; with new writers, who may have other thresholds."""
    core = Core(Topics(), security_groups_own_stream=own_stream)
    made: list[log_pb2.Record] = []

    def begin(policy: ChannelPolicy) -> None:
        core.begin_epoch(core.epoch + 1, policy)
        incarnation = log_pb2.Incarnation(
            epoch=core.epoch,
            security_groups_own_stream=own_stream,
            session_ports=policy.ports,
            session_members=policy.members,
        )
        made.append(log_pb2.Record(incarnation=incarnation))

    def change(intent: Intent) -> None:
        changes = core.plan(intent)
        if changes:
            accepted = core.accept(changes, 1_000)
            said = log_pb2.Change(
                change=accepted.change,
                accepted_unix_ns=1_000,
                intent=intent_codec.to_proto(intent),
            )
            made.append(log_pb2.Record(change=said))

    begin(POLICY)
    for intent in (HOSTS, network(1)):
        change(intent)
    for come, first, count in steps:
        if count == 0:
            begin(ChannelPolicy(first or 10, 5))
        elif come:
            change(ports(first, first + count, "v1-web"))
        else:
            there = core.desired.table(ObjectKind.PORT)
            gone = [f"v1-p{n}" for n in range(first, first + count) if f"v1-p{n}" in there]
            change(Intent(deletes=tuple(Deletion(ObjectKind.PORT, id_) for id_ in gone)))
    return made


def published(core: Core, record: log_pb2.Record) -> list[Publication]:
    if record.HasField("incarnation"):
        said = record.incarnation
        core.begin_epoch(said.epoch, ChannelPolicy(said.session_ports, said.session_members))
        return []
    intent = intent_codec.from_proto(record.change.intent)
    return core.accept(core.plan(intent), record.change.accepted_unix_ns).publications


STEPS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 8)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.booleans(), st.data())
def test_a_snapshot_anywhere_changes_nothing_of_what_is_published(
    steps: list[tuple[bool, int, int]], own_stream: bool, data: st.DataObject
) -> None:
    log = records(steps, own_stream)
    cut = data.draw(st.integers(1, len(log)))
    whole = Core(Topics(), security_groups_own_stream=own_stream)
    before = Replay(Topics(), security_groups_own_stream=own_stream)
    for record in log[:cut]:
        published(whole, record)
        before.redo(record)
    before.settle()
    after = Replay(Topics(), security_groups_own_stream=own_stream)
    restoring = snapshot_codec.Restoring(after)
    for section in snapshot_codec.sections(before):
        restoring.take(section)
    policy = before.core.policy
    restoring.finish(
        log_pb2.SnapshotEnd(
            epoch=before.core.epoch,
            change=before.core.change,
            session_ports=policy.ports,
            session_members=policy.members,
        )
    )
    for record in log[cut:]:
        assert published(after.core, record) == published(whole, record)
    for stream, state in whole.streams.items():
        other = after.core.streams[stream]
        assert (other.mark, other.channel, other.began) == (state.mark, state.channel, state.began)


def test_a_checkpoint_of_before_a_switch_counts_no_more() -> None:
    replay = Replay(Topics(), security_groups_own_stream=False)
    log = records([(True, 1, 8)], own_stream=False)
    for record in log[:-1]:
        replay.redo(record)
    replay.redo(log[-1])
    state = replay.core.streams[V1]
    assert state.channel is PULSAR

    def note(epoch: int, sequence: int) -> None:
        checkpointed = log_pb2.Checkpointed(stream=str(V1), epoch=epoch, sequence=sequence)
        replay.redo(log_pb2.Record(checkpointed=checkpointed))

    note(state.began.epoch, state.began.sequence - 1)
    assert V1 not in replay.checkpoints
    note(*state.began)
    assert V1 in replay.checkpoints
    to_sessions = records([(True, 1, 8), (False, 1, 9)], own_stream=False)[-1]
    replay.redo(to_sessions)
    assert replay.core.streams[V1].channel is SESSION
    assert V1 not in replay.checkpoints
    note(*replay.core.streams[V1].mark)
    assert V1 not in replay.checkpoints


def test_what_travels_on_sessions_is_not_looked_for_on_topics() -> None:
    replay = Replay(Topics(), security_groups_own_stream=False)
    for record in records([(True, 1, 3), (True, 4, 8), (False, 4, 9)], own_stream=False):
        replay.redo(record)
    channels = {p.envelope.stream.kind: p.channel for p in replay.unconfirmed}
    assert set(channels.values()) == {PULSAR}
    of_vpc = on(replay.unconfirmed, V1)
    assert [p.begins for p in of_vpc] == [True], "what was said while it was on Pulsar"


def test_a_port_is_counted_whether_it_is_bound_or_not() -> None:
    core = begun()
    unbound = tuple(
        Port(id=p.id, vpc_id=p.vpc_id, mac_address=p.mac_address, fixed_ips=p.fixed_ips)
        for p in ports(1, 11).ports
    )
    (only,) = on(accept(core, Intent(ports=unbound)).publications, V1)
    assert (only.channel, only.begins) == (PULSAR, True)
