"""Checkpoints: read first, then the log after them; exact where they end."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from goalstate.agent.actions import Follow
from goalstate.agent.beginning import Beginning, beginning, is_sought
from goalstate.agent.repair import RETRY_MAX_NS
from goalstate.bus.base import EARLIEST, Message
from goalstate.bus.memory import Faults
from goalstate.gs.envelope import CheckpointPlace, MessageKind
from goalstate.gs.resources import Kind
from goalstate.gs.streams import Mark
from tests.agent.rig import (
    HOST,
    INBOX,
    STREAM,
    TOPICS,
    Checkpoint,
    Publisher,
    Rig,
    checkpoint,
    gone,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)

LOG = TOPICS.of_stream(STREAM)
CHECKPOINTS = TOPICS.checkpoints_of(STREAM)
OTHER = "host-2"


@pytest.fixture
def rig() -> Rig:
    """A host that follows a VPC of 8 resources, at 1/3 of its stream."""
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.on_vpc(*(neighbor(n) for n in range(5)))
    rig.on_vpc(neighbor(5))
    return rig


def messages(rig: Rig) -> int:
    return sum(rig.core.counters.messages.values())


def late(rig: Rig, *, counting: bool = False) -> Rig:
    """The same host, started anew with nothing."""
    late = Rig(beside=rig, counting=counting)
    late.run()
    return late


def test_a_new_host_reads_the_checkpoint_and_then_the_log(rig: Rig) -> None:
    checkpoint(rig.broker, rig.vpc)
    rig.on_vpc(neighbor(6))
    host = late(rig)
    # The inbox has one message; of the stream it read two chunks, their end and one message.
    assert messages(host) == 1 + 4
    assert host.watermark() == Mark(1, 4)
    assert host.agrees()
    assert host.in_plane() == rig.in_plane()
    rig.on_vpc(neighbor(7))
    assert host.watermark() == rig.watermark() == Mark(1, 5)
    assert host.agrees()
    assert host.core.counters.gaps == host.core.counters.duplicates == 0


def test_a_quiet_stream_is_in_sync_where_its_checkpoint_ends(rig: Rig) -> None:
    written = checkpoint(rig.broker, rig.vpc)
    host = late(rig)
    assert host.watermark() == Mark(1, 3)
    assert host.agrees()
    assert host.in_plane() == rig.in_plane()
    assert host.follows[-1][:3] == (STREAM, LOG, written.place.log)


def test_the_checkpoint_of_an_empty_stream_is_one(rig: Rig) -> None:
    rig.on_vpc(*map(gone, (*(neighbor(n) for n in range(6)), subnet(), vpc())))
    written = Checkpoint(rig.broker, rig.vpc, 1)
    written.add()
    written.close()
    host = late(rig)
    assert host.watermark() == Mark(1, 4)
    assert host.agrees()
    assert host.in_plane() == set()


def test_nothing_of_a_checkpoint_counts_before_it_is_exact(rig: Rig) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 2)
    written.add(vpc(), subnet())
    rig.on_vpc(neighbor(0, 2))
    written.add(*(neighbor(n, 2 if n == 0 else 1) for n in range(6)))
    written.close()
    host = Rig(beside=rig)
    reached = []
    while host.broker.step():
        stream = host.core.streams.get(STREAM)
        if stream is not None:
            reached.append(stream.watermark)
            if stream.watermark == Mark(0, 0):
                assert host.in_plane() == set()
    assert list(dict.fromkeys(reached)) == [Mark(0, 0), Mark(1, 4)]
    assert host.agrees()


def test_a_host_in_sync_passes_over_what_the_log_says_of_a_checkpoint(rig: Rig) -> None:
    before = (messages(rig), len(rig.programs), len(rig.follows))
    checkpoint(rig.broker, rig.vpc)
    checkpoint(rig.broker, rig.inbox)
    rig.run()
    assert (messages(rig), len(rig.programs), len(rig.follows)) == before
    assert rig.core.counters.duplicates == rig.core.counters.gaps == 0
    # It is the newest message of the log that was read: the log may be trimmed up to it.
    assert rig.core.streams[STREAM].live.position == rig.broker.messages(LOG)[-1].position


def test_what_the_log_says_of_a_checkpoint_shows_a_gap(rig: Rig) -> None:
    rig.broker.faults = Faults(drop=1.0)
    rig.on_vpc(neighbor(7))
    rig.broker.faults = Faults()
    assert rig.watermark() == Mark(1, 3)
    checkpoint(rig.broker, rig.vpc)
    rig.run()
    assert rig.core.counters.gaps == 1
    assert rig.watermark() == Mark(1, 4)
    assert rig.agrees()


def test_a_fuzzy_checkpoint_is_exact_where_it_ends(rig: Rig) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 3)
    written.add(vpc(), subnet(), neighbor(0))
    rig.on_vpc(neighbor(0, 2))  # newer than in its chunk
    rig.on_vpc(neighbor(1, 2), neighbor(6))  # newer than the mark
    rig.on_vpc(neighbor(1, 3), gone(neighbor(2)))  # in no chunk
    written.add(neighbor(1, 3), neighbor(3), neighbor(6))
    rig.on_vpc(gone(neighbor(3)), gone(neighbor(6)))  # in a chunk
    rig.on_vpc(neighbor(6, 3))  # and there again
    written.add(neighbor(4), neighbor(5))
    written.close()
    host = late(rig)
    assert host.agrees()
    assert host.in_plane() == rig.in_plane()
    assert host.watermark() == Mark(1, 8)
    counters = host.core.counters
    assert (counters.mismatches, counters.out_of_order, counters.gaps) == (0, 0, 0)


@pytest.mark.parametrize("chunks_after", [0, 1, 2])
def test_a_port_that_moves_between_hosts_while_the_checkpoint_is_written(
    rig: Rig, chunks_after: int
) -> None:
    rig.on_inbox(port(1))
    rig.put(rig.inbox.publish(subscription(), port(2), host=OTHER))
    written = Checkpoint(rig.broker, rig.inbox, 2)

    def move() -> None:
        rig.put(rig.inbox.publish(port(1)._replace(revision=2, payload=b"")))
        rig.put(rig.inbox.publish(port(1, 2), host=OTHER))

    for number, host in enumerate((HOST, OTHER)):
        if number == chunks_after:
            move()
        written.add(*rig.inbox.held[host].values(), host=host)
    if chunks_after == 2:
        move()
    written.close()
    rig.run()
    one, other = late(rig), Rig(host=OTHER, beside=rig)
    other.run()
    for host_rig, ports in ((one, set()), (other, {"port/port-1", "port/port-2"})):
        assert host_rig.agrees(rig.inbox)
        assert host_rig.watermark(INBOX) == rig.inbox.mark
        assert {name for name in host_rig.applied(INBOX) if name.startswith("port/")} == ports
        assert host_rig.core.counters.mismatches == 0


def test_a_counting_host_gets_its_watermark_from_a_checkpoint_that_it_does_not_decode(
    rig: Rig,
) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 1)
    rig.on_vpc(neighbor(6))
    written.add(*rig.vpc.held[""].values())
    written.close()
    host = late(rig, counting=True)
    assert host.watermark() == Mark(1, 4)
    assert host.core.streams[STREAM].resources() == 0
    rig.on_vpc(neighbor(7))
    assert host.watermark() == Mark(1, 5)
    assert host.core.counters.mismatches == host.core.counters.gaps == 0


def test_a_host_whose_place_in_the_log_is_gone_sweeps_what_the_checkpoint_does_not_hold(
    rig: Rig,
) -> None:
    rig.broker.detach(rig.readers.pop(STREAM))  # it is away
    rig.put(rig.vpc.publish(gone(neighbor(0)), neighbor(1, 2)))
    rig.put(rig.vpc.publish(neighbor(8)))
    checkpoint(rig.broker, rig.vpc)
    rig.broker.trim(LOG, 2)  # the message at the checkpoint's mark, and what tells of it
    rig.perform([Follow(STREAM, LOG, rig.core.streams[STREAM].live.position)])
    assert "neighbor/port-0" in rig.in_plane()  # until it knows better
    rig.run()
    assert rig.agrees()
    assert "neighbor/port-0" not in rig.in_plane()
    assert rig.in_plane() == rig.applied()
    assert rig.watermark() == Mark(1, 5)
    assert rig.core.counters.resyncs == 1
    assert not rig.exceptions()


def test_what_a_checkpoint_brings_in_vain_is_of_all_messages_that_may_have_brought_it(
    rig: Rig,
) -> None:
    """Which one did is not known, and a wait for any of them must not end."""
    rig.broker.detach(rig.readers.pop(STREAM))  # it is away
    rig.put(rig.vpc.publish(neighbor(7, subnets=["nowhere"])))
    rig.put(rig.vpc.publish(neighbor(8)))
    checkpoint(rig.broker, rig.vpc)
    rig.perform(rig.core.position_gone(STREAM, rig.now))
    rig.run()
    host = late(rig)
    for one, lacked in ((rig, Mark(1, 4)), (host, Mark(0, 1))):
        assert one.watermark() == Mark(1, 5)
        (fault,) = one.faults().values()
        assert (fault.pending, fault.mark) == (True, lacked)
    # And so is what comes in its place, though that came with a message of its own.
    rig.on_vpc(neighbor(7, 2, subnets=["nowhere"]))
    for one, lacked in ((rig, Mark(1, 4)), (host, Mark(0, 1))):
        (fault,) = one.faults().values()
        assert (fault.revision, fault.mark) == (2, lacked)


def test_a_chunk_that_cannot_be_read_is_missed_at_all_messages_that_it_stands_for(rig: Rig) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 2)
    written.add(vpc(), subnet())
    written.chunk += 1
    kind = MessageKind.CHECKPOINT
    written._put(written.topic, rig.vpc.sent(b"\xff", written.mark, kind, 2, 2))
    written.close()
    faults = late(rig).faults().values()
    assert [one.mark for one in faults if one.reason.startswith("UNREADABLE")] == [Mark(0, 0)]


def test_what_waits_behind_a_checkpoint_and_is_refused_is_of_the_messages_before(rig: Rig) -> None:
    rig.broker.detach(rig.readers.pop(STREAM))  # it is away
    rig.put(rig.vpc.publish(neighbor(7)))
    rig.put(rig.vpc.publish(neighbor(8)))
    checkpoint(rig.broker, rig.vpc)
    rig.slow = True
    rig.perform(rig.core.position_gone(STREAM, rig.now))
    rig.run()
    rig.on_vpc(neighbor(7, 2, subnets=["nowhere"]))
    while rig.waiting:
        rig.finish()
    (fault,) = rig.faults().values()
    assert fault.pending
    assert fault.mark == Mark(1, 6), "its first revision was applied"


def test_a_checkpoint_that_is_gone_is_looked_up_again_ever_less_often(rig: Rig) -> None:
    checkpoint(rig.broker, rig.vpc)
    checkpoint(rig.broker, rig.vpc)
    rig.broker.trim(CHECKPOINTS, 0)
    rig.broker.trim(LOG, 1)
    host = late(rig)
    assert list(host.exceptions().values()) == ["REFUSED GAP"]
    host.pass_time(300)
    assert 5 <= len(host.follows) <= 15
    assert host.core.wakeup is not None
    assert host.core.wakeup - host.now <= RETRY_MAX_NS
    rig.on_vpc(neighbor(7))
    checkpoint(rig.broker, rig.vpc)
    host.pass_time(61)
    assert host.agrees()
    assert host.in_plane() == rig.in_plane()
    assert not host.exceptions()
    follows = len(host.follows)
    host.pass_time(300)
    assert len(host.follows) == follows


def test_the_log_after_a_checkpoint_may_be_gone_too(rig: Rig) -> None:
    checkpoint(rig.broker, rig.vpc)
    rig.on_vpc(neighbor(7))
    rig.broker.trim(LOG, 1)
    host = late(rig)
    # What the checkpoint says of 1/3 is true, and more cannot be known.
    assert host.watermark() == Mark(1, 3)
    assert list(host.exceptions().values()) == ["REFUSED GAP"]
    checkpoint(rig.broker, rig.vpc)
    host.pass_time(3)
    assert host.agrees()
    assert not host.exceptions()


def test_drift_is_repaired_from_the_checkpoint(rig: Rig) -> None:
    checkpoint(rig.broker, rig.vpc)
    rig.run()
    live = rig.core.streams[STREAM].live
    del live.held[neighbor(0).kind]["port-0"]
    live.held[neighbor(0).kind]["port-77"] = neighbor(77)
    rig.plane.program([gone(neighbor(0)), neighbor(77)], lambda _: None)
    live.digest ^= 1
    before = messages(rig)
    rig.on_vpc(neighbor(9))
    assert rig.core.counters.mismatches == 1
    assert messages(rig) - before == 1 + 4
    assert rig.agrees()
    assert rig.in_plane() == rig.applied()
    assert "neighbor/port-77" not in rig.in_plane()
    assert rig.watermark() == Mark(1, 4)


def test_a_checkpoint_that_is_not_what_it_says_is_found_out_where_it_ends(rig: Rig) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 1)
    written.add(vpc(), subnet())
    written.close()
    host = late(rig)
    # It is read again, to the same end; then the checkpoint is at fault, and held as it is.
    assert host.core.counters.mismatches == 2
    assert host.in_plane() == {"vpc/vpc-1", "subnet/subnet-1"}
    checkpoint(rig.broker, rig.vpc)
    host.pass_time(3)
    assert host.agrees()


def test_chunks_of_an_abandoned_checkpoint_are_passed_over(rig: Rig) -> None:
    late_writer = Publisher(STREAM)
    late_writer.mark = Mark(1, 1)
    abandoned = Checkpoint(rig.broker, late_writer, 3)
    written = Checkpoint(rig.broker, rig.vpc, 2)
    abandoned.add(neighbor(90))
    written.add(vpc(), subnet(), *(neighbor(n) for n in range(3)))
    abandoned.add(neighbor(91))
    written.add(*(neighbor(n) for n in range(3, 6)))
    written.close()
    host = late(rig)
    assert host.core.counters.stale == 1
    assert host.agrees()
    assert host.in_plane() == rig.in_plane()


def test_a_checkpoint_is_written_across_epochs(rig: Rig) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 1)
    rig.vpc.epoch = 2
    rig.on_vpc(neighbor(6))
    written.add(*rig.vpc.held[""].values())
    written.close()
    host = late(rig)
    assert host.watermark() == Mark(2, 1)
    assert host.agrees()


def test_a_corrupted_chunk_is_read_once_more_and_then_refused(rig: Rig) -> None:
    written = Checkpoint(rig.broker, rig.vpc, 2)
    written.add(vpc(), subnet())
    spoiled = rig.vpc.sent(b"?", written.mark, MessageKind.CHECKPOINT, 2, 2)
    spoiled[0]["checksum"] = "0" * 16
    rig.broker.publish(CHECKPOINTS, spoiled[1], properties=spoiled[0])
    written.chunk = 2
    written.close()
    host = late(rig)
    assert host.core.counters.corrupted == 1
    assert list(host.exceptions().values()) == ["REFUSED CHECKSUM"]
    assert host.watermark() == Mark(1, 3)
    assert host.in_plane() == {"vpc/vpc-1", "subnet/subnet-1"}


def test_a_subscription_that_moves_to_another_topic_while_a_checkpoint_is_read(rig: Rig) -> None:
    history = rig.broker.messages(LOG)
    checkpoint(rig.broker, rig.vpc)
    for message in history:
        rig.broker.publish("replica", message.payload, properties=message.properties)
    host = Rig(beside=rig)
    while STREAM not in host.core.streams or not host.core.streams[STREAM].reading.chunk:
        assert host.broker.step()
    rig.on_inbox(subscription(revision=2, topic="replica"))
    assert host.agrees()
    assert host.in_plane() == rig.in_plane()


# --- where to begin ---

PLACE = CheckpointPlace(b"begin", b"log")


def test_where_to_begin() -> None:
    publisher = Publisher(STREAM)
    without = publisher.publish(vpc())[0]
    publisher.checkpoint = PLACE
    told = publisher.publish(subnet())[0]
    elsewhere = {**told, "stream": "vpc/another"}
    first = Beginning(LOG, EARLIEST)
    follow = Follow(STREAM, LOG, EARLIEST)
    assert is_sought(follow, TOPICS)
    assert beginning(follow, newest(told), TOPICS) == (CHECKPOINTS, b"begin")
    for message in (None, newest({}), newest(without), newest(elsewhere)):
        assert beginning(follow, message, TOPICS) == first
    known = follow._replace(start=b"here")
    replica = follow._replace(topic="replica")
    for other in (known, replica):
        assert not is_sought(other, TOPICS)
        assert beginning(other, newest(told), TOPICS) == (other.topic, other.start)


def test_a_log_that_has_nothing_new_is_read_on_from_its_end() -> None:
    publisher = Publisher(STREAM)
    publisher.checkpoint = PLACE
    told = newest(publisher.publish(vpc())[0])
    mark = Mark(int(told.properties["epoch"]), int(told.properties["seq"]))
    follow = Follow(STREAM, LOG, EARLIEST, known=mark)
    assert beginning(follow, told, TOPICS) == (LOG, told.position)
    behind = follow._replace(known=Mark(mark.epoch, mark.sequence - 1))
    assert beginning(behind, told, TOPICS) == (CHECKPOINTS, b"begin")


def test_a_gap_does_not_wait_once_the_log_tells_of_a_new_checkpoint(rig: Rig) -> None:
    rig.vpc.publish(neighbor(6))  # it never gets to the topic
    rig.put(rig.vpc.publish(neighbor(7)))
    rig.run()
    assert "REFUSED GAP" in rig.exceptions().values()
    follows = len(rig.follows)
    checkpoint(rig.broker, rig.vpc)
    rig.run()
    rig.perform(rig.core.tick(rig.now))
    rig.run()
    assert rig.agrees()
    assert not rig.exceptions()
    after = len(rig.follows)
    assert after > follows
    rig.pass_time(300)
    assert len(rig.follows) == after


def newest(properties: Mapping[str, str]) -> Message:
    """The newest message of a log."""
    return Message(LOG, "", properties, b"", b"newest", 0)


# --- the state and not the path ---

_steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5)),
        st.tuples(st.just("delete"), st.integers(0, 5)),
        st.tuples(st.just("chunk"), st.just(0)),
        st.tuples(st.just("close"), st.just(0)),
        st.tuples(st.just("epoch"), st.just(0)),
        st.tuples(st.just("trim"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps=_steps, seed=st.integers(0, 2**16), faults=st.sampled_from([0.0, 0.2]))
@example(
    steps=[
        *[("put", 0), ("chunk", 0), ("put", 0), ("close", 0), ("chunk", 0)],
        *[("put", 0), ("put", 0), ("put", 0), ("chunk", 0)],
    ],
    seed=55,
    faults=0.2,
)
def test_a_host_that_comes_late_holds_what_one_holds_that_was_always_there(
    steps: list[tuple[str, int]], seed: int, faults: float
) -> None:
    rig = Rig(faults=Faults(seed, duplicate=faults, reorder=faults))
    rig.join(vpc(), subnet())
    revisions: dict[int, int] = {}
    written: Checkpoint | None = None
    rest: list[tuple[Kind, str]] = []
    for what, number in steps:
        if what in ("put", "delete"):
            revision = revisions[number] = revisions.get(number, 0) + 1
            resource = neighbor(number, revision)
            rig.on_vpc(resource._replace(payload=b"") if what == "delete" else resource)
        elif what == "epoch":
            rig.vpc.epoch += 1
        elif what == "chunk" and written is None:
            written = Checkpoint(rig.broker, rig.vpc, 8)
            rest = list(rig.vpc.held[""])
        elif what == "chunk" and written is not None and written.chunk < 7:
            _write(written, rest, 2)
        elif what == "close" and written is not None:
            while written.chunk < 7:
                _write(written, rest, 1)
            # Also what came since, which is of no harm.
            written.add(*rig.vpc.held[""].values())
            written.close()
            written = None
        elif what == "trim" and rig.vpc.checkpoint is not None:
            _trim(rig)
    host = Rig(beside=rig)
    for one in (rig, host):
        one.run()
        for _ in range(200):
            # A later checkpoint that came before the end of this one, and has none itself.
            one.stall()
            if one.core.wakeup is not None:
                one.pass_time(60)
    assert host.agrees()
    assert rig.agrees()
    assert host.in_plane() == rig.in_plane()
    assert host.watermark() == rig.watermark() == rig.vpc.mark
    assert not host.exceptions()


def _write(written: Checkpoint, rest: list[tuple[Kind, str]], number: int) -> None:
    """The next chunk: what is still there of some of what was there when it began."""
    held = written.publisher.held[""]
    keys, rest[:] = rest[:number], rest[number:]
    written.add(*(resource for key, resource in held.items() if key in keys))


def _trim(rig: Rig) -> None:
    """Forget what is before the newest checkpoint."""
    place = rig.vpc.checkpoint
    assert place is not None
    for topic, position in ((LOG, place.log), (CHECKPOINTS, place.begin)):
        after = rig.broker.messages(topic, position)
        rig.broker.trim(topic, len(after) + 1)
