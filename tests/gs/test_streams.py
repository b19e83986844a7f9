"""Names of streams and marks, and the order of marks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs.streams import (
    ORIGIN,
    Mark,
    StreamId,
    StreamKind,
    inbox_stream,
    pushed_stream,
    security_group_stream,
    vpc_stream,
)

NUMBERS = st.integers(0, 2**64 - 1)


@given(st.sampled_from(StreamKind), st.text(min_size=1))
def test_a_streams_name_is_read_back_whatever_its_id(kind: StreamKind, id_: str) -> None:
    assert StreamId.parse(str(StreamId(kind, id_))) == StreamId(kind, id_)


def test_each_kind_of_stream_has_its_own_word() -> None:
    made = [
        vpc_stream("x"),
        security_group_stream("x"),
        inbox_stream("x"),
        pushed_stream("x"),
    ]
    assert [str(stream) for stream in made] == ["vpc/x", "sg/x", "inbox/x", "pushed/x"]
    assert {stream.kind for stream in made} == set(StreamKind)


@pytest.mark.parametrize("text", ["", "vpc", "vpc/", "/x", "host/x", "VPC/x"])
def test_what_names_no_stream_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        StreamId.parse(text)


@given(NUMBERS, NUMBERS)
def test_a_mark_is_read_back_from_its_text(epoch: int, sequence: int) -> None:
    assert Mark.parse(str(Mark(epoch, sequence))) == Mark(epoch, sequence)


@pytest.mark.parametrize("text", ["", "1", "1/", "/1", "a/1", "1/2/3"])
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Mark.parse(text)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_the_epoch_counts_before_the_sequence(e: int, s: int, f: int, t: int) -> None:
    assert (Mark(e, s) < Mark(f, t)) == (e < f or (e == f and s < t))


def test_everything_is_after_the_origin() -> None:
    assert Mark(1, 1) > ORIGIN
    assert Mark(0, 1) > ORIGIN
