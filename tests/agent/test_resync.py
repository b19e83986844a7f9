"""Digests, reading again into a shadow, checkpoints."""

from __future__ import annotations

import pytest

from goalstate.agent.core import RETRY_MAX_NS
from goalstate.bus.base import EARLIEST
from goalstate.gs.envelope import MessageKind
from goalstate.gs.streams import Mark
from tests.agent.rig import (
    HOST,
    INBOX,
    STREAM,
    TOPICS,
    Publisher,
    Rig,
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
    assert rig.follows[-1] == (STREAM, TOPICS.of_stream(STREAM), EARLIEST)
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


# --- checkpoints ---


def checkpoint(publisher: Publisher, pieces: int = 2) -> list[tuple[dict[str, str], bytes]]:
    """The whole state of a stream, on it."""
    held = list(publisher.held[""].values())
    size = -(-len(held) // pieces)
    sent = [
        publisher.publish(
            *held[piece * size : (piece + 1) * size],
            kind=MessageKind.CHECKPOINT,
            chunk=piece + 1,
            chunks=pieces,
        )
        for piece in range(pieces)
    ]
    return [*sent, publisher.publish(kind=MessageKind.IN_SYNC)]


def trimmed(rig: Rig) -> Rig:
    """Another host that finds only what comes from the checkpoint on."""
    late = Rig()
    late.vpc = rig.vpc
    for sent in checkpoint(rig.vpc):
        late.put(sent)
    return late


def test_a_late_host_begins_with_a_checkpoint_and_is_in_sync_at_its_end(rig: Rig) -> None:
    late = trimmed(rig)
    late.on_inbox(subscription())
    assert late.watermark() == rig.vpc.mark == Mark(1, 5)
    assert late.agrees()
    assert late.in_plane() == rig.in_plane()
    late.on_vpc(neighbor(9))
    assert late.agrees()
    assert late.watermark() == Mark(1, 6)


def test_nothing_of_a_checkpoint_counts_before_its_end(rig: Rig) -> None:
    late = Rig()
    for sent in checkpoint(rig.vpc)[:-1]:
        late.put(sent)
    late.on_inbox(subscription())
    assert late.in_plane() == set()
    assert late.watermark() == Mark(0, 0)


def test_a_host_in_sync_takes_a_checkpoint_for_what_it_knows(rig: Rig) -> None:
    programs = len(rig.programs)
    for sent in checkpoint(rig.vpc):
        rig.put(sent)
    rig.run()
    assert len(rig.programs) == programs
    assert rig.watermark() == Mark(1, 5)
    assert rig.agrees()


def test_a_host_that_was_away_for_too_long_sweeps_what_the_checkpoint_does_not_hold(
    rig: Rig,
) -> None:
    rig.vpc.publish(gone(neighbor(0)))  # the host never sees this
    topic = TOPICS.of_stream(STREAM)
    for sent in checkpoint(rig.vpc):
        rig.put(sent)
    rig.broker.trim(topic, 3)
    rig.run()
    rig.pass_time(2)
    assert rig.agrees()
    assert "neighbor/port-0" not in rig.in_plane()
    assert not rig.exceptions()


def test_a_log_that_was_trimmed_without_a_checkpoint_is_a_gap(rig: Rig) -> None:
    late = Rig()
    late.put(rig.vpc.publish(neighbor(9)))
    late.on_inbox(subscription())
    assert list(late.exceptions().values()) == ["REFUSED GAP"]
    assert late.in_plane() == set()
    late.pass_time(3)
    for sent in checkpoint(rig.vpc):
        late.put(sent)
    late.run()
    assert late.in_plane() == rig.in_plane() | {"neighbor/port-9"}
    assert not late.exceptions()


def test_a_subscription_may_say_where_to_begin(rig: Rig) -> None:
    late = Rig()
    late.put(rig.vpc.publish(neighbor(9)))
    start = late.broker.messages(TOPICS.of_stream(STREAM))[-1].position
    for sent in checkpoint(rig.vpc):
        late.put(sent)
    late.on_inbox(subscription(start_position=start))
    assert late.follows[-1] == (STREAM, TOPICS.of_stream(STREAM), start)
    assert late.core.counters.gaps == 0
    assert late.applied() == rig.applied() | {"neighbor/port-9"}
