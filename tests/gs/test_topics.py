"""Names of topics: any id makes one, no two the same, and none means another thing to Pulsar."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goalstate.gs.streams import StreamId, StreamKind, inbox_stream, vpc_stream
from goalstate.gs.topics import Topics, decode, encode

IDS = st.text(min_size=1)
STREAMS = st.builds(StreamId, st.sampled_from(StreamKind), IDS)
TOPICS = Topics("persistent://goalstate/region-1", 4)
#: What Pulsar takes in a name without giving it a meaning of its own.
PLAIN = re.compile(r"[A-Za-z0-9_.~-]+\Z")
PARTITION = re.compile(r"-partition-\d+\Z")


@given(IDS)
@example("a-partition-3")
@example("../../public/default/x")
@example("%2F")
@example("\x00\n é✓🙂")
@example("__transaction_pending_ack")
def test_any_id_is_encoded_reversibly_into_plain_characters(id_: str) -> None:
    name = encode(id_)
    assert decode(name) == id_
    assert PLAIN.match(name)
    assert len(name) <= 3 * len(id_.encode())


@given(IDS, IDS)
@example("a~41", "aA")
@example("a~", "a~7e")
def test_two_ids_have_two_names(one: str, other: str) -> None:
    assert (encode(one) == encode(other)) == (one == other)


@pytest.mark.parametrize("id_", ["vpc-1", "3f2a.b_C", "0"])
def test_a_readable_id_stays_as_it_is(id_: str) -> None:
    assert encode(id_) == id_


@given(STREAMS)
@example(vpc_stream("x-partition-0"))
@example(inbox_stream("__change_events"))
def test_a_streams_topic_is_no_partition_and_no_topic_of_the_brokers_own(stream: StreamId) -> None:
    name = TOPICS.of_stream(stream).removeprefix(TOPICS.prefix + "/")
    assert PLAIN.match(name)
    assert not PARTITION.search(name)
    assert not name.startswith("_")
    assert name.endswith(".log")


@given(STREAMS)
def test_the_stream_is_read_back_from_its_topic(stream: StreamId) -> None:
    assert TOPICS.stream_of(TOPICS.of_stream(stream)) == stream


@given(STREAMS, STREAMS)
@example(StreamId(StreamKind.VPC, "a"), StreamId(StreamKind.SECURITY_GROUP, "a"))
def test_two_streams_never_share_a_topic(one: StreamId, other: StreamId) -> None:
    assert (TOPICS.of_stream(one) == TOPICS.of_stream(other)) == (one == other)


@pytest.mark.parametrize("text", ["a b", "~4", "~zz", "~61", "~2F", "~c3", "é", "a~"])
def test_a_name_that_no_id_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)


@pytest.mark.parametrize(
    "name",
    ["intent.log", "reports.0", "vpc.a", "switch.a.log", "vpc.~41.log", "vpc.a.log-partition-1"],
)
def test_a_topic_without_a_stream_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        TOPICS.stream_of(f"{TOPICS.prefix}/{name}")


def test_a_topic_of_another_region_is_refused() -> None:
    with pytest.raises(ValueError, match="carries no stream"):
        TOPICS.stream_of("persistent://goalstate/region-2/vpc.a.log")


def test_reports_are_spread_over_the_shards_and_are_no_stream_nor_the_intent_log() -> None:
    shards = {TOPICS.reports(number) for number in range(100)}
    assert len(shards) == TOPICS.report_shards
    for topic in (*shards, TOPICS.intent_log):
        assert topic.startswith(TOPICS.prefix + "/")
        with pytest.raises(ValueError):
            TOPICS.stream_of(topic)


def test_shards_share_no_topic_and_the_first_has_the_names_of_an_undivided_region() -> None:
    divided = TOPICS._replace(shards=12).all_shards()
    stream = vpc_stream("shard-1.vpc.a")
    names = [
        (*map(t.reports, range(4)), t.intent_log, t.intent_snapshots, t.of_stream(stream))
        for t in divided
    ]
    assert len({name for of_shard in names for name in of_shard}) == 12 * 7
    assert divided[0]._replace(shards=1) == TOPICS
    for topics in divided:
        assert topics.stream_of(topics.of_stream(stream)) == stream
        for other in divided:
            if other is not topics:
                with pytest.raises(ValueError):
                    other.stream_of(topics.of_stream(vpc_stream("a")))
