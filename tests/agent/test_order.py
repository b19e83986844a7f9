"""A stream's order as a host keeps it: duplicates, gaps, epochs, corruption, foreign messages."""

from __future__ import annotations

import pytest

from goalstate.bus.base import EARLIEST
from goalstate.gs import digest as digests
from goalstate.gs.packing import Addressed, encode
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.streams import Mark, StreamId
from tests.agent.rig import (
    HOST,
    INBOX,
    START_NS,
    STREAM,
    TOPICS,
    Publisher,
    Rig,
    gone,
    neighbor,
    port,
    subnet,
    vpc,
)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.join(vpc(), subnet())
    return rig


def test_a_host_follows_its_inbox_from_the_beginning() -> None:
    assert Rig().follows[0][:3] == (INBOX, TOPICS.of_stream(INBOX), EARLIEST)


def test_a_message_is_applied_and_the_watermark_says_so(rig: Rig) -> None:
    rig.on_vpc(neighbor(1), neighbor(2))
    assert rig.applied() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1", "neighbor/port-2"}
    assert rig.in_plane() == rig.applied()
    assert rig.watermark() == Mark(1, 2)
    assert rig.agrees()


def test_a_duplicate_changes_nothing(rig: Rig) -> None:
    sent = rig.vpc.publish(neighbor(1))
    for _ in range(3):
        rig.put(sent)
    rig.run()
    assert rig.core.counters.duplicates == 2
    assert rig.programmed.count("neighbor/port-1") == 1
    assert rig.agrees()


def test_a_gap_is_read_again_from_the_last_good_message(rig: Rig) -> None:
    position = rig.core.streams[STREAM].live.position
    missed, seen = rig.vpc.publish(neighbor(1)), rig.vpc.publish(neighbor(2))
    rig.perform(rig.core.receive(STREAM, *seen, b"p", rig.now))
    assert rig.follows[-1][:3] == (STREAM, TOPICS.of_stream(STREAM), position)
    assert rig.watermark() == Mark(1, 1)
    rig.put(missed)
    rig.put(seen)
    rig.run()
    assert rig.agrees()
    assert rig.core.counters.gaps == 1
    assert not rig.exceptions()


def test_a_gap_that_stays_is_read_again_ever_less_often_and_named(rig: Rig) -> None:
    rig.vpc.publish(neighbor(1))  # it never gets to the topic
    rig.put(rig.vpc.publish(neighbor(2)))
    rig.run()
    assert rig.exceptions() == {"vpc/vpc-1 1/2": "REFUSED GAP"}
    follows = len(rig.follows)
    rig.pass_time(300)
    again = len(rig.follows) - follows
    assert 5 <= again <= 2 * 12  # after 1, 2, 4, … 60, 60 seconds, and not more
    assert rig.applied() == {"vpc/vpc-1", "subnet/subnet-1"}
    assert rig.watermark() == Mark(1, 1)


def test_a_gap_that_closes_late_leaves_no_trace() -> None:
    rig = Rig()
    rig.join(vpc(), subnet())
    first, missed, seen = (rig.vpc.publish(neighbor(n)) for n in (1, 2, 3))
    rig.put(first)
    rig.put(seen)
    rig.run()
    assert "REFUSED GAP" in rig.exceptions().values()
    rig.put(missed)
    rig.put(seen)
    rig.run()
    assert not rig.exceptions()
    assert rig.agrees()
    follows = len(rig.follows)
    rig.pass_time(300)
    assert len(rig.follows) == follows


def test_a_lower_epoch_is_dropped(rig: Rig) -> None:
    old = rig.vpc.publish(neighbor(1))
    rig.put(old)
    rig.run()
    rig.vpc.epoch = 2
    rig.on_vpc(neighbor(2))
    late = Publisher(STREAM)
    late.mark = Mark(1, 2)
    rig.put(late.publish(neighbor(3)))
    rig.run()
    assert rig.core.counters.stale == 1
    assert "neighbor/port-3" not in rig.applied()
    assert rig.watermark() == Mark(2, 1)


def test_a_missed_end_of_an_epoch_is_seen_and_repaired(rig: Rig) -> None:
    missed = rig.vpc.publish(neighbor(1))
    rig.vpc.epoch = 2
    first = rig.vpc.publish(neighbor(2))
    rig.perform(rig.core.receive(STREAM, *first, b"p", rig.now))
    assert rig.core.counters.gaps == 1
    rig.put(missed)
    rig.put(first)
    rig.run()
    assert rig.watermark() == Mark(2, 1)
    assert rig.agrees()


def test_a_new_epoch_that_begins_in_the_middle_is_a_gap(rig: Rig) -> None:
    rig.vpc.epoch = 2
    rig.vpc.publish(neighbor(1))
    rig.perform(rig.core.receive(STREAM, *rig.vpc.publish(neighbor(2)), b"p", rig.now))
    assert rig.core.counters.gaps == 1


def test_what_a_fenced_writer_wrote_too_late_is_taken_back(rig: Rig) -> None:
    zombie = Publisher(STREAM)
    zombie.mark, zombie.held = rig.vpc.mark, {"": dict(rig.vpc.held[""])}
    rig.put(zombie.publish(neighbor(66)))
    rig.run()
    assert "neighbor/port-66" in rig.in_plane()
    rig.vpc.epoch = 2
    rig.on_vpc(neighbor(1))
    assert rig.applied() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"}
    assert rig.in_plane() == rig.applied()
    assert rig.agrees()


def test_a_corrupted_message_is_read_once_more(rig: Rig) -> None:
    properties, payload = rig.vpc.publish(neighbor(1))
    rig.perform(rig.core.receive(STREAM, properties, payload[:-1] + b"?", b"p", rig.now))
    assert rig.core.counters.corrupted == 1
    assert "neighbor/port-1" not in rig.applied()
    rig.put((properties, payload))
    rig.run()
    assert rig.agrees()
    assert not rig.exceptions()


def test_a_message_that_stays_corrupted_is_refused_by_name_and_the_stream_goes_on(
    rig: Rig,
) -> None:
    properties, payload = rig.vpc.publish(neighbor(1))
    rig.put((properties, payload[:-1] + b"?"))
    rig.on_vpc(neighbor(2))
    assert rig.exceptions() == {"vpc/vpc-1 1/2": "REFUSED CHECKSUM"}
    assert "neighbor/port-2" in rig.applied()
    assert rig.watermark() == Mark(1, 3)
    follows = len(rig.follows)
    rig.on_vpc(neighbor(1, 2))  # its content comes otherwise: the digest agrees again
    assert not rig.exceptions()
    assert len(rig.follows) == follows
    assert rig.agrees()


def test_what_is_unreadable_on_an_inbox_stays_refused_while_others_get_messages(rig: Rig) -> None:
    properties, payload = rig.inbox.publish(port(1))
    rig.put((properties, payload[:-1] + b"?"))
    rig.run()
    refused = rig.exceptions()
    assert list(refused.values()) == ["REFUSED CHECKSUM"]
    rig.put(rig.inbox.publish(port(8), host="host-2"))
    rig.run()
    assert rig.exceptions() == refused
    rig.on_inbox(port(1, 2))
    assert not rig.exceptions()
    assert "port/port-1" in rig.applied(INBOX)


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"", "does not begin with a format version"),
        (b"\x08\x67", "version 103"),
        (b"\x08\x65", "102"),
        (b"\x08\x66\xff", "no GoalStateV2"),
        (b"\x08\x66\x08\x65", "a later one"),
        (b"\x08\x66" + b"\x00" * (6 << 20), "limit"),
    ],
    ids=["empty", "unknown", "v1", "malformed", "contradiction", "oversize"],
)
def test_an_intact_message_that_cannot_be_read_is_refused_by_name(
    rig: Rig, payload: bytes, why: str
) -> None:
    properties, _ = rig.vpc.publish()
    properties["checksum"] = digests.checksum(payload)
    rig.perform(rig.core.receive(STREAM, properties, payload, b"p", rig.now))
    (fault,) = rig.faults().values()
    assert fault.reason.startswith("UNREADABLE: ")
    assert why in fault.reason
    assert rig.watermark() == Mark(1, 2)


def test_a_version_that_the_envelope_contradicts_is_refused(rig: Rig) -> None:
    properties, payload = rig.vpc.publish(neighbor(1))
    rig.perform(rig.core.receive(STREAM, {**properties, "schema": "101"}, payload, b"p", rig.now))
    (fault,) = rig.faults().values()
    assert "the envelope says format version 101" in fault.reason


def test_messages_without_an_envelope_or_of_another_stream_are_no_part_of_it(rig: Rig) -> None:
    topic = TOPICS.of_stream(STREAM)
    rig.broker.publish(topic, b"hello")
    rig.put(Publisher(StreamId.parse("vpc/other")).publish(vpc(id_="other")), topic)
    rig.on_vpc(neighbor(1))
    assert rig.core.counters.foreign == 2
    assert rig.watermark() == Mark(1, 2)
    assert rig.agrees()


def test_a_reader_that_was_closed_is_not_listened_to(rig: Rig) -> None:
    sent = rig.vpc.publish(neighbor(1))
    assert rig.core.receive(StreamId.parse("vpc/unknown"), *sent, b"p", rig.now) == []


def test_what_comes_when_the_log_no_longer_reaches_back_is_read_from_its_beginning(
    rig: Rig,
) -> None:
    rig.on_vpc(neighbor(1))
    rig.perform(rig.core.position_gone(STREAM, rig.now))
    assert rig.follows[-1].start == EARLIEST
    rig.run()
    assert rig.agrees()
    assert rig.watermark() == Mark(1, 2)


def test_a_higher_revision_replaces_and_a_lower_one_is_dropped(rig: Rig) -> None:
    rig.on_vpc(neighbor(1, 3, host_ip="100.64.0.3"))
    rig.put(rig.vpc.publish(neighbor(1, 2, host_ip="100.64.0.2"), claim=[]))
    rig.run()
    assert rig.core.counters.out_of_order == 1
    rig.put(rig.vpc.publish(neighbor(1, 3, host_ip="100.64.0.3")))
    rig.run()
    assert rig.core.counters.out_of_order == 1  # the same once more is a success
    assert rig.programmed.count("neighbor/port-1") == 1
    rig.on_vpc(neighbor(1, 4, host_ip="100.64.0.4"))
    hop = rig.plane.next_hop("vpc-1", "10.0.0.1")
    assert hop is not None
    assert hop.host_ip_address == "100.64.0.4"
    assert rig.agrees()


def test_a_deletion_is_applied_and_nothing_older_brings_it_back(rig: Rig) -> None:
    rig.on_vpc(neighbor(1))
    rig.on_vpc(gone(neighbor(1)))
    assert "neighbor/port-1" not in rig.in_plane()
    rig.put(rig.vpc.publish(neighbor(1, 2), claim=[]))
    rig.run()
    assert "neighbor/port-1" not in rig.in_plane()
    assert rig.core.counters.out_of_order == 1
    rig.on_vpc(neighbor(1, 3))
    assert "neighbor/port-1" in rig.in_plane()
    assert rig.agrees()


def test_deleting_what_is_absent_is_a_success(rig: Rig) -> None:
    rig.on_vpc(gone(neighbor(1)))
    rig.on_vpc(gone(neighbor(1)))
    assert rig.watermark() == Mark(1, 3)
    assert rig.core.counters.out_of_order == 0
    assert not rig.exceptions()
    rig.put(rig.vpc.publish(neighbor(1, 2), claim=[]))
    rig.run()
    assert "neighbor/port-1" not in rig.in_plane()


def test_only_the_newest_deletions_are_remembered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goalstate.agent.stream.TOMBSTONES", 2)
    for number in (1, 2, 3):
        rig.on_vpc(gone(neighbor(number)))
    (tombstones,) = rig.core.streams[STREAM].live.tombstones.values()
    assert list(tombstones) == ["port-2", "port-3"]


def test_a_bad_resource_spoils_itself_only(rig: Rig) -> None:
    payload = encode([Addressed("", neighbor(1)), Addressed("", neighbor(2))])
    bad = payload.replace(b"\x1a\x06port-2", b"\x1a\x06port-\xff")  # the id inside, not UTF-8
    assert bad != payload
    properties, _ = rig.vpc.publish(neighbor(1), claim=[neighbor(1)])
    properties["checksum"] = digests.checksum(bad)
    rig.put((properties, bad))
    rig.run()
    assert "neighbor/port-1" in rig.applied()
    assert rig.exceptions() == {"neighbor/port-2": "REFUSED MALFORMED"}
    assert rig.watermark() == Mark(1, 2)
    rig.put(rig.vpc.publish(neighbor(2, 2)))
    rig.run()
    assert not rig.exceptions()


def test_a_key_that_is_not_the_id_inside_is_malformed(rig: Rig) -> None:
    payload = encode([Addressed("", subnet("subnet-9"))])
    bad = payload.replace(b"\x0a\x08subnet-9", b"\x0a\x08subnet-8", 1)
    assert bad != payload
    properties, _ = rig.vpc.publish()
    properties["checksum"] = digests.checksum(bad)
    rig.put((properties, bad))
    rig.run()
    assert rig.exceptions() == {"subnet/subnet-8": "REFUSED MALFORMED"}


def test_a_resource_of_another_vpc_is_refused_and_the_digest_still_agrees(rig: Rig) -> None:
    rig.on_vpc(neighbor(1), neighbor(2, vpc_id="vpc-2"), subnet("subnet-2", vpc_id="vpc-2"))
    assert rig.exceptions() == {
        "neighbor/port-2": "REFUSED WRONG_VPC",
        "subnet/subnet-2": "REFUSED WRONG_VPC",
    }
    assert rig.applied() == rig.in_plane() == {"vpc/vpc-1", "subnet/subnet-1", "neighbor/port-1"}
    assert rig.agrees()
    assert rig.watermark() == Mark(1, 2)
    rig.on_vpc(neighbor(2, 2))
    assert set(rig.exceptions()) == {"subnet/subnet-2"}


def test_a_kind_that_has_no_place_on_a_stream_is_refused(rig: Rig) -> None:
    rig.on_vpc(port(5))
    assert rig.exceptions() == {"port/port-5": "REFUSED WRONG_STREAM"}
    rig.on_inbox(neighbor(6))
    assert rig.exceptions()["neighbor/port-6"] == "REFUSED WRONG_STREAM"
    assert "port/port-5" not in rig.in_plane()


def test_only_the_hosts_own_section_of_the_inbox_counts_but_every_message_is_in_order(
    rig: Rig,
) -> None:
    rig.put(rig.inbox.publish(port(7), host="host-2"))
    rig.on_inbox(port(1))
    assert rig.applied(INBOX) == {"port/port-1", "subscription/vpc/vpc-1"}
    assert rig.watermark(INBOX) == Mark(1, 3)
    assert rig.agrees(rig.inbox)


def test_a_section_that_names_what_the_message_lacks_is_an_exception(rig: Rig) -> None:
    message = goalstate_pb2.GoalStateV2(format_version=102)
    message.host_resources[HOST].resources.add(type=2, id="port-9")
    message.host_resources[HOST].resources.add(type=99, id="thing")
    payload = message.SerializeToString()
    properties, _ = rig.inbox.publish()
    properties["checksum"] = digests.checksum(payload)
    rig.put((properties, payload))
    rig.run()
    faults = {(kind, id_): fault.reason for _, kind, id_, fault in rig.core.exceptions()}
    assert faults.keys() == {(2, "port-9"), (99, "thing")}
    assert all(reason.startswith("MALFORMED") for reason in faults.values())


def test_time_is_an_argument(rig: Rig) -> None:
    rig.now = START_NS + 5 * 10**9
    rig.on_vpc(neighbor(1))
    assert rig.core.streams[STREAM].applied_ns == START_NS + 5 * 10**9
    assert rig.core.counters.delays.total == pytest.approx(5.0)
