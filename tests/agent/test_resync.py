"""Digests, reading again into a shadow; see `test_checkpoints` for what is read then."""

from __future__ import annotations

import pytest

from goalstate.agent.repair import RETRY_MAX_NS
from goalstate.bus.base import EARLIEST
from goalstate.bus.memory import Faults
from goalstate.gs.resources import Kind
from goalstate.gs.streams import Mark
from tests.agent.rig import (
    HOST,
    INBOX,
    STREAM,
    TOPICS,
    Rig,
    checkpoint,
    gone,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.on_vpc(*(neighbor(n) for n in range(5)))
    return rig


def drift(rig: Rig) -> None:
    """Let the host hold something else than what it read."""
    live = rig.core.streams[STREAM].live
    held = live.held[neighbor(0).kind]
    del held["port-0"]
    held["port-77"] = neighbor(77)
    live.digest ^= 1
    rig.plane.program([gone(neighbor(0)), neighbor(77)], lambda _: None)


def test_drift_is_found_by_the_digest_and_the_difference_is_programmed(rig: Rig) -> None:
    drift(rig)
    rig.programs.clear()
    rig.on_vpc(neighbor(9))
    assert rig.core.counters.mismatches == 1
    assert rig.follows[-1][:3] == (STREAM, TOPICS.of_stream(STREAM), EARLIEST)
    assert rig.agrees()
    assert rig.programmed == ["neighbor/port-9", "neighbor/port-0", "-neighbor/port-77"]
    assert rig.in_plane() == rig.applied()
    assert rig.watermark() == Mark(1, 3)


def test_what_is_held_stays_until_the_shadow_has_got_as_far(rig: Rig) -> None:
    drift(rig)
    before = rig.in_plane()
    sent = rig.vpc.publish(neighbor(9))
    rig.perform(rig.core.receive(STREAM, *sent, b"p", rig.now))
    rig.broker.step()  # the first message, into the shadow
    assert rig.core.streams[STREAM].shadow is not None
    assert rig.in_plane() == before | {"neighbor/port-9"}
    assert rig.watermark() == Mark(1, 3)
    rig.put(sent)
    rig.run()
    assert rig.core.streams[STREAM].shadow is None
    assert rig.agrees()


def test_a_log_at_fault_is_held_as_it_is_and_tried_ever_less_often(rig: Rig) -> None:
    rig.put(rig.vpc.publish(neighbor(9), claim=[neighbor(9), neighbor(10)]))
    rig.run()
    follows = len(rig.follows)
    assert rig.core.streams[STREAM].shadow is None
    assert "neighbor/port-9" in rig.in_plane()
    assert rig.watermark() == Mark(1, 3)
    rig.pass_time(300)
    assert 5 <= len(rig.follows) - follows <= 12
    assert rig.core.wakeup is not None
    assert rig.core.wakeup - rig.now <= RETRY_MAX_NS
    rig.put(rig.vpc.publish(neighbor(10)))  # what it had lost comes after all
    rig.run()
    rig.pass_time(61)
    assert rig.agrees()
    follows = len(rig.follows)
    rig.pass_time(300)
    assert len(rig.follows) == follows


def test_while_the_digest_differs_the_host_says_that_it_does_not_have_the_state(rig: Rig) -> None:
    stream = rig.core.streams[STREAM]
    stream.live.digest ^= 1
    sent = rig.vpc.publish(neighbor(1))
    rig.perform(rig.core.receive(STREAM, *sent, b"p", rig.now))
    assert list(rig.exceptions().values()) == ["PENDING DIGEST"]
    rig.put(sent)
    rig.run()
    assert not rig.exceptions()
    assert rig.agrees()


def test_subscriptions_that_drifted_are_followed_or_ended(rig: Rig) -> None:
    inbox = rig.core.streams[INBOX].live
    inbox.held[subscription().kind].clear()
    inbox.digest = 0
    rig.on_inbox(port(1))
    assert rig.agrees(rig.inbox)
    assert rig.applied(INBOX) == {"port/port-1", "subscription/vpc/vpc-1"}
    ghost = subscription(revision=1)._replace(id="vpc/ghost")
    inbox = rig.core.streams[INBOX].live
    inbox.held[ghost.kind]["vpc/ghost"] = ghost
    inbox.digest ^= 1
    rig.on_inbox(port(2))
    assert rig.applied(INBOX) == {"port/port-1", "port/port-2", "subscription/vpc/vpc-1"}


def test_a_host_checks_its_own_digest_on_the_inbox(rig: Rig) -> None:
    rig.on_inbox(port(1))
    rig.core.streams[INBOX].live.digest ^= 1
    rig.put(rig.inbox.publish(port(8), host="host-2"))
    rig.run()
    assert rig.core.counters.mismatches == 1
    assert rig.agrees(rig.inbox)
    assert rig.core.host == HOST


def test_a_log_that_was_trimmed_without_a_checkpoint_is_a_gap(rig: Rig) -> None:
    rig.broker.trim(TOPICS.of_stream(STREAM), 1)
    late = Rig(beside=rig)
    late.run()
    assert list(late.exceptions().values()) == ["REFUSED GAP"]
    assert late.in_plane() == set()
    checkpoint(rig.broker, rig.vpc)
    late.pass_time(3)
    assert late.in_plane() == rig.in_plane()
    assert not late.exceptions()


def test_a_subscription_may_say_where_to_begin(rig: Rig) -> None:
    topic = "shared"
    start = rig.broker.publish(topic, b"of another stream")
    for message in rig.broker.messages(TOPICS.of_stream(STREAM)):
        rig.broker.publish(topic, message.payload, properties=message.properties)
    late = Rig(host="host-2", beside=rig)
    fact = subscription(topic=topic, start_position=start)
    rig.put(rig.inbox.publish(fact, host="host-2"))
    rig.run()
    assert late.follows[-1][:3] == (STREAM, topic, start)
    assert (late.core.counters.gaps, late.core.counters.foreign) == (0, 0)
    assert late.applied() == rig.applied()


def test_what_was_pending_and_is_gone_when_read_again_is_not_missed_at_its_deadline() -> None:
    rig = Rig(deadline_s=30)
    rig.join(vpc())
    rig.on_vpc(neighbor(1))
    assert rig.exceptions() == {"neighbor/port-1": "PENDING MISSING_REFERENCE"}
    rig.broker.faults = Faults(drop=1.0)
    rig.on_vpc(subnet(), gone(neighbor(1)))
    rig.broker.faults = Faults()
    checkpoint(rig.broker, rig.vpc)
    # What it waited for comes with the checkpoint, in which it is no more.
    rig.perform(rig.core.position_gone(STREAM, rig.now))
    rig.run()
    assert rig.agrees()
    rig.pass_time(60)
    assert rig.exceptions() == {}
    assert rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1"}


def test_what_waits_together_when_read_again_is_not_deleted_with_the_first_of_it() -> None:
    rig = Rig()
    rig.slow = True
    rig.on_inbox(subscription())
    rig.on_vpc(vpc())  # it is on its way to the data plane
    rig.on_vpc(subnet(), *(neighbor(n) for n in range(3)))  # and all of these wait for it
    (waiting,) = set(rig.core.streams[STREAM].unsettled[Kind.NEIGHBOR].values())
    first, *others = waiting.ids
    rig.broker.faults = Faults(drop=1.0)
    rig.on_vpc(gone(neighbor(int(first.removeprefix("port-")))), subnet(revision=2))
    rig.broker.faults = Faults()
    checkpoint(rig.broker, rig.vpc)
    rig.perform(rig.core.position_gone(STREAM, rig.now))
    rig.run()
    while rig.waiting:
        rig.finish()
    assert rig.agrees()
    names = {f"neighbor/{id_}" for id_ in others}
    assert rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1", *names}
    assert rig.watermark() == Mark(1, 3)
