"""GoalState (101) and GoalStateV2 (102) cannot be taken for each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs.errors import (
    FormatMismatch,
    GoalStateError,
    MalformedMessage,
    MessageError,
    OversizeMessage,
    UnknownFormatVersion,
)
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalState, GoalStateV2
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2, MESSAGE_LIMIT, check, decode, detect
from tests.gs.messages import v1_states, v2_states

PREFIX_V1, PREFIX_V2 = b"\x08\x65", b"\x08\x66"


def v1_bytes() -> bytes:
    state = GoalState(format_version=FORMAT_V1)
    state.vpc_states.add().configuration.id = "v"
    return state.SerializeToString()


def v2_bytes() -> bytes:
    state = GoalStateV2(format_version=FORMAT_V2)
    state.vpc_states["v"].configuration.id = "v"
    return state.SerializeToString()


@given(v1_states())
def test_every_v1_is_told_from_its_bytes(state: GoalState) -> None:
    payload = state.SerializeToString()
    assert payload.startswith(PREFIX_V1)
    assert detect(payload) == FORMAT_V1
    assert decode(payload) == state
    assert decode(payload, declared=FORMAT_V1) == state
    with pytest.raises(FormatMismatch):
        decode(payload, declared=FORMAT_V2)


@given(v2_states())
def test_every_v2_is_told_from_its_bytes(state: GoalStateV2) -> None:
    payload = state.SerializeToString()
    assert payload.startswith(PREFIX_V2)
    assert detect(payload) == FORMAT_V2
    assert decode(payload) == state
    assert decode(payload, declared=FORMAT_V2) == state
    with pytest.raises(FormatMismatch):
        decode(payload, declared=FORMAT_V1)


@given(st.binary(max_size=40))
def test_whatever_follows_the_version_decides_nothing(rest: bytes) -> None:
    assert (detect(PREFIX_V1 + rest), detect(PREFIX_V2 + rest)) == (FORMAT_V1, FORMAT_V2)


def test_without_the_version_the_same_bytes_would_be_both() -> None:
    both = v1_bytes().removeprefix(PREFIX_V1)
    assert GoalState.FromString(both).vpc_states
    assert GoalStateV2.FromString(both).host_resources
    with pytest.raises(UnknownFormatVersion):
        decode(both)


def test_one_parsed_as_the_other_is_refused() -> None:
    confused = GoalStateV2.FromString(v1_bytes())
    with pytest.raises(FormatMismatch, match=r"GoalStateV2 says format version 102.* 101"):
        check(confused)
    with pytest.raises(FormatMismatch):
        check(GoalState(format_version=FORMAT_V2))
    check(GoalState(format_version=FORMAT_V1))
    check(GoalStateV2(format_version=FORMAT_V2))


@pytest.mark.parametrize("message", [GoalState(), GoalStateV2()])
def test_a_parsed_message_without_version_is_refused(message: GoalState | GoalStateV2) -> None:
    with pytest.raises(UnknownFormatVersion) as caught:
        check(message)
    assert caught.value.found is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        GoalState().SerializeToString(),
        b"\x12\x00",  # begins with field 2
        b"\x0a\x01\x65",  # field 1, but no varint
        b"hello",
    ],
)
def test_a_missing_version_is_refused(payload: bytes) -> None:
    with pytest.raises(
        UnknownFormatVersion, match="does not begin with a format version"
    ) as caught:
        decode(payload)
    assert caught.value.found is None


@pytest.mark.parametrize("version", [0, 1, 100, 103, 2**32 - 1])
def test_an_unknown_version_is_named(version: int) -> None:
    payload = b"\x08" + GoalState(format_version=version or 1).SerializeToString()[1:]
    payload = payload if version else b"\x08\x00"
    with pytest.raises(UnknownFormatVersion, match=str(version)) as caught:
        decode(payload)
    assert caught.value.found == version
    with pytest.raises(UnknownFormatVersion, match=f"envelope has format version {version}"):
        decode(v1_bytes(), declared=version)


def test_a_version_that_is_not_in_front_is_refused() -> None:
    moved = v2_bytes().removeprefix(PREFIX_V2) + PREFIX_V2
    assert GoalStateV2.FromString(moved).format_version == FORMAT_V2
    with pytest.raises(UnknownFormatVersion):
        decode(moved)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (v1_bytes() + PREFIX_V2, "101, but a later one of the same message 102"),
        (v2_bytes() + PREFIX_V1, "102, but a later one of the same message 101"),
        (v1_bytes() + b"\x08\x00", "101, but a later one of the same message 0"),
    ],
)
def test_a_second_version_that_disagrees_is_refused(payload: bytes, message: str) -> None:
    with pytest.raises(FormatMismatch, match=message):
        decode(payload)


def test_the_two_run_together_are_refused() -> None:
    for payload in (v1_bytes() + v2_bytes(), v2_bytes() + v1_bytes()):
        with pytest.raises((FormatMismatch, MalformedMessage)):
            decode(payload)


@pytest.mark.parametrize(
    "front", [b"\x08\xe5\x80\x00", b"\x88\x00\x65", b"\x08\xe5\x80\x80\x80\x10"]
)
def test_a_version_in_more_bytes_than_needed_counts_as_protobuf_reads_it(front: bytes) -> None:
    assert GoalState.FromString(front).format_version == FORMAT_V1
    assert detect(front) == FORMAT_V1
    assert decode(front) == GoalState(format_version=FORMAT_V1)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x08",  # ends within the first field
        b"\xff" * 20,  # no varint
        b"\x00\x01",  # field number 0
        b"\x0f\x01",  # no wire type
        v1_bytes()[:-1],  # truncated
        PREFIX_V2 + b"\x12\x06\x0a\x04\xff\xfe\xfd\xfc",  # invalid UTF-8 in a key
        PREFIX_V1 + b"\x12\x06\x12\x04\x1a\x02\xff\xfe",  # and in a field
    ],
)
def test_malformed_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(payload)


def test_an_oversize_payload_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(OversizeMessage, match="11 bytes is over the limit of 10"):
        decode(b"\xff" * 11, limit=10)
    with pytest.raises(OversizeMessage):
        decode(PREFIX_V1 + bytes(MESSAGE_LIMIT))
    assert decode(v1_bytes(), limit=len(v1_bytes()))


@given(st.binary(max_size=60), st.sampled_from([None, 0, FORMAT_V1, FORMAT_V2]))
def test_arbitrary_bytes_give_a_message_or_a_named_error(
    payload: bytes, declared: int | None
) -> None:
    try:
        message = decode(payload, declared=declared)
    except GoalStateError as error:
        assert isinstance(error, MessageError)
        assert str(error)
    else:
        check(message)


@given(st.data())
def test_a_damaged_message_gives_a_message_or_a_named_error(data: st.DataObject) -> None:
    payload = bytearray(data.draw(v2_states()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    try:
        message = decode(cut)
    except GoalStateError as error:
        assert isinstance(error, MessageError)
    else:
        check(message)
