"""Subscriptions, counting, reports."""

from __future__ import annotations

import pytest

from goalstate.agent import reports
from goalstate.gs import digest as digests
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import Resource
from goalstate.gs.streams import Mark, inbox_stream, vpc_stream
from tests.agent.rig import (
    HOST,
    INBOX,
    START_NS,
    STREAM,
    TOPICS,
    Publisher,
    Rig,
    gone,
    group,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)

# --- subscriptions ---


def test_the_end_of_a_subscription_takes_everything_of_the_stream_out_in_reverse_order() -> None:
    rig = Rig()
    rig.join(vpc(), subnet(), group(), *(neighbor(n) for n in range(3)))
    rig.on_inbox(port(1, groups=["group-1"]))
    rig.programs.clear()
    rig.on_inbox(gone(port(1)), gone(subscription()))
    kinds = [name.split("/")[0] for name in rig.programmed]
    assert kinds == ["-neighbor"] * 3 + ["-port", "-security_group", "-subnet", "-vpc"]
    assert rig.in_plane() == set()
    assert STREAM not in rig.core.streams
    assert STREAM not in rig.readers
    assert rig.watermark(INBOX) == Mark(1, 3)


def test_a_subscription_that_begins_anew_reads_from_the_beginning() -> None:
    rig = Rig()
    rig.join(vpc(), subnet(), neighbor(1))
    rig.on_inbox(gone(subscription()))
    rig.on_inbox(subscription(revision=3))
    assert rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"}
    assert rig.agrees()
    report = rig.report()
    assert report is not None
    assert list(report.dropped) == ["vpc/vpc-1"]
    assert [one.stream for one in report.streams] == ["inbox/rack-1", "vpc/vpc-1"]


def test_what_was_on_its_way_when_a_subscription_ended_is_programmed_when_it_begins_anew() -> None:
    rig = Rig()
    rig.slow = True
    rig.on_inbox(subscription())
    rig.on_vpc(vpc())
    # All of it waits: for the VPC, which is being programmed, and for the subnet after it.
    rig.on_vpc(subnet(), neighbor(1))
    rig.on_inbox(gone(subscription()))
    rig.on_inbox(subscription(revision=3))
    while rig.waiting:
        rig.finish()
    assert rig.watermark() == Mark(1, 2)
    assert rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"}


def test_a_subscription_that_begins_anew_before_the_end_was_programmed_loses_nothing() -> None:
    rig = Rig()
    rig.join(vpc(), subnet(), neighbor(1), neighbor(2))
    rig.slow = True
    rig.on_vpc(neighbor(1, 2), neighbor(3), neighbor(4, subnets=["nowhere"]))
    rig.on_inbox(gone(subscription()))
    assert rig.core.streams[STREAM].leaving
    assert not rig.exceptions()
    rig.on_inbox(subscription(revision=3))
    while rig.waiting:
        rig.finish()
    assert rig.agrees()
    assert rig.in_plane() == rig.applied()
    assert {"neighbor/port-1", "neighbor/port-2", "neighbor/port-3"} < rig.in_plane()
    assert rig.watermark() == Mark(1, 2)


def test_a_stream_that_is_left_slowly_is_forgotten_when_all_of_it_is_out() -> None:
    rig = Rig(limit=1)
    rig.join(vpc(), subnet(), neighbor(1))
    rig.slow = True
    rig.on_vpc(neighbor(1, 2))
    rig.on_inbox(gone(subscription()))
    report = rig.report(full=True)
    assert report is not None
    assert [one.stream for one in report.streams] == ["inbox/rack-1"]
    while rig.waiting:
        rig.finish()
    assert STREAM not in rig.core.streams
    assert rig.in_plane() == set()


def test_the_same_subscription_once_more_opens_nothing() -> None:
    rig = Rig()
    rig.join(vpc())
    follows = len(rig.follows)
    rig.on_inbox(subscription(revision=2))
    assert len(rig.follows) == follows


def test_a_subscription_that_moves_to_another_topic_goes_on_where_it_was() -> None:
    rig = Rig()
    rig.join(vpc(), subnet())
    history = rig.broker.messages(TOPICS.of_stream(STREAM))
    for message in history:
        rig.broker.publish("replica", message.payload, properties=message.properties)
    rig.on_inbox(subscription(revision=2, topic="replica"))
    assert rig.follows[-1].topic == "replica"
    rig.put(rig.vpc.publish(neighbor(1)), "replica")
    rig.run()
    assert rig.core.counters.duplicates == 1
    assert rig.agrees()


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (subscription(channel=1), "UNSUPPORTED_CHANNEL"),
        (subscription(inbox_stream("rack-2")), "WRONG_STREAM"),
        (subscription("nothing"), "MALFORMED"),
    ],
)
def test_a_subscription_that_cannot_be_followed_is_refused(fact: Resource, reason: str) -> None:
    rig = Rig()
    rig.on_inbox(fact)
    assert list(rig.exceptions().values()) == [f"REFUSED {reason}"]
    assert len(rig.follows) == 1
    assert rig.agrees(rig.inbox)
    rig.on_inbox(gone(fact))
    assert not rig.exceptions()
    assert rig.watermark(INBOX) == Mark(1, 2)


# --- counting ---


def test_a_counting_host_checks_order_and_bytes_and_decodes_only_its_inbox() -> None:
    rig = Rig(counting=True)
    rig.join(vpc(), subnet(), neighbor(1))
    rig.on_inbox(port(1))  # it cannot know of the subnet, and does not wait for it
    properties, payload = rig.vpc.publish(neighbor(2))
    rig.perform(rig.core.receive(STREAM, properties, payload + b"?", b"", rig.now))
    assert rig.core.counters.corrupted == 1
    rig.put((properties, payload))
    rig.run()
    assert rig.watermark() == Mark(1, 2)
    assert rig.in_plane() == {"port/port-1"}
    assert rig.core.streams[STREAM].resources() == 0
    assert not rig.exceptions()
    report = rig.report()
    assert report is not None
    assert {one.stream: len(one.digest) for one in report.streams} == {
        "inbox/rack-1": 16,
        "vpc/vpc-1": 0,
    }
    rig.vpc.publish()
    rig.put(rig.vpc.publish())
    rig.run()
    assert rig.core.counters.gaps > 0


# --- reports ---


def test_a_report_tells_what_changed_and_nothing_twice() -> None:
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.now = START_NS + 5
    rig.on_vpc(neighbor(1))
    report = rig.report()
    assert report is not None
    assert (report.host, report.incarnation, report.number, report.full) == (HOST, 7, 1, False)
    stream = report.streams[1]
    assert (stream.stream, stream.epoch, stream.sequence) == ("vpc/vpc-1", 1, 2)
    assert stream.applied_unix_ns == START_NS + 5
    assert stream.digest == digests.to_bytes(rig.vpc.digest())
    assert rig.report() is None
    rig.on_vpc()
    report = rig.report()
    assert report is not None
    assert [one.stream for one in report.streams] == ["vpc/vpc-1"]
    assert report.number == 2


def test_a_full_report_tells_everything() -> None:
    rig = Rig()
    rig.join(vpc())
    rig.report()
    report = rig.report(full=True)
    assert report is not None
    assert report.full
    assert [one.stream for one in report.streams] == ["inbox/rack-1", "vpc/vpc-1"]


def test_no_digest_is_told_for_what_is_not_applied_yet() -> None:
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.slow = True
    rig.on_vpc(neighbor(1))
    report = rig.report(full=True)
    assert report is not None
    assert report.streams[1].sequence == 1
    assert report.streams[1].digest == b""


def test_exceptions_are_complete_in_each_report() -> None:
    rig = Rig(deadline_s=10)
    rig.join(vpc(), neighbor(1))
    for status in (agent_pb2.ResourceException.PENDING, agent_pb2.ResourceException.REFUSED):
        report = rig.report()
        assert report is not None
        (exception,) = report.exceptions
        assert (exception.stream, exception.epoch, exception.sequence) == ("vpc/vpc-1", 1, 1)
        assert (exception.type, exception.id, exception.revision) == (3, "port-1", 1)
        assert exception.status == status
        assert exception.reason.startswith("MISSING_REFERENCE")
        rig.pass_time(11)
    rig.on_vpc(subnet())
    report = rig.report()
    assert report is not None
    assert not report.exceptions


def test_too_many_exceptions_are_summed_up_truthfully(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MAX_EXCEPTIONS", 3)
    rig = Rig()
    rig.join(vpc(), *(neighbor(n) for n in range(10)))
    rig.on_vpc(neighbor(50, vpc_id="other"))
    report = rig.report()
    assert report is not None
    assert len(report.exceptions) == 5
    pending, refused = report.exceptions[3:]
    assert pending.reason.startswith("LEFT_OUT: 7 more, the first because of MISSING_REFERENCE")
    assert (pending.id, pending.sequence, pending.status) == ("", 1, pending.PENDING)
    assert refused.reason.startswith("LEFT_OUT: 1 more")
    assert (refused.sequence, refused.status) == (2, refused.REFUSED)


def test_the_summary_of_a_host_counts_what_is_applied() -> None:
    rig = Rig()
    rig.join(vpc(), subnet(), neighbor(1), neighbor(2, subnets=["nowhere"]))
    summary = reports.summary(rig.core)
    assert summary.resources == 4  # with the subscription
    assert len(summary.exceptions) == 1
    assert [one.stream for one in summary.streams] == ["inbox/rack-1", "vpc/vpc-1"]


def test_streams_do_not_mix() -> None:
    rig = Rig()
    other = Publisher(vpc_stream("vpc-2"))
    rig.join(vpc(), subnet())
    rig.on_inbox(subscription(other.stream))
    rig.put(other.publish(vpc(id_="vpc-2"), subnet("subnet-2", vpc_id="vpc-2")))
    rig.run()
    rig.on_inbox(gone(subscription(other.stream)))
    assert rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1"}


def test_what_was_under_way_when_a_stream_was_left_does_not_count_for_its_return() -> None:
    rig = Rig()
    rig.join()
    rig.slow = True
    rig.on_vpc(vpc(), subnet())  # 1/1, of which the VPC is under way
    rig.on_inbox(gone(subscription()))
    rig.on_inbox(subscription(revision=3))
    rig.finish()
    assert rig.watermark() == Mark(0, 0)
    while rig.waiting:
        rig.finish()
    assert rig.watermark() == Mark(1, 1)
    assert rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1"}


def test_nor_does_what_was_under_way_and_had_been_overtaken() -> None:
    rig = Rig()
    rig.join()
    rig.slow = True
    rig.on_vpc(vpc(), subnet(), neighbor(1))
    rig.on_vpc(vpc(2))
    rig.on_inbox(gone(subscription()))
    rig.on_inbox(subscription(revision=3))
    while "neighbor/port-1" not in rig.in_plane():
        assert rig.watermark() == Mark(0, 0)
        rig.finish()
    assert rig.watermark() == Mark(1, 2)


def test_a_report_tells_also_what_is_followed_and_has_brought_nothing_yet() -> None:
    rig = Rig()
    rig.on_inbox(subscription())
    report = rig.report(full=True)
    assert report is not None
    told = {one.stream: Mark(one.epoch, one.sequence) for one in report.streams}
    assert told == {str(INBOX): Mark(1, 1), str(STREAM): Mark(0, 0)}
