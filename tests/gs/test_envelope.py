"""The envelope: there and back as a map of strings, and what is wrong with one is named."""

from __future__ import annotations

import zlib
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs.envelope import (
    TRACES_LIMIT,
    CheckpointPlace,
    Envelope,
    MessageKind,
    from_properties,
    to_properties,
)
from goalstate.gs.errors import EnvelopeError
from goalstate.gs.streams import ORIGIN, Mark, StreamId, StreamKind, vpc_stream

POSITIVE = st.integers(1, 2**63)
MARKS = st.builds(Mark, POSITIVE, POSITIVE)
CHUNKS = st.integers(1, 10_000).flatmap(
    lambda count: st.tuples(st.integers(1, count), st.just(count))
)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    chunk, chunks = draw(CHUNKS)
    return Envelope(
        schema=draw(st.integers(0, 1000)),
        stream=StreamId(draw(st.sampled_from(StreamKind)), draw(st.text(min_size=1))),
        mark=draw(MARKS),
        kind=draw(st.sampled_from(MessageKind)),
        chunk=chunk,
        chunks=chunks,
        change=draw(st.integers(0, 2**63)),
        digest=draw(st.binary(min_size=16, max_size=16)).hex(),
        checksum=draw(st.binary(min_size=8, max_size=8)).hex(),
        published_ns=draw(st.integers(0, 2**63)),
        after=draw(st.none() | st.just(ORIGIN) | MARKS),
        traceparent=draw(st.text()),
        checkpoint=draw(st.none() | st.builds(CheckpointPlace, st.binary(), st.binary())),
        until=draw(st.none() | MARKS),
    )


GOOD = Envelope(
    schema=102,
    stream=vpc_stream("v"),
    mark=Mark(2, 1),
    kind=MessageKind.DELTA,
    chunk=1,
    chunks=3,
    change=7,
    digest="0" * 32,
    checksum="0" * 16,
    published_ns=5,
    after=Mark(1, 9),
    traceparent="00-1-2-01",
    checkpoint=CheckpointPlace(b"a", b"b"),
    until=Mark(2, 3),
)
OURS = to_properties(GOOD).keys()
REQUIRED = sorted(OURS - {"after", "traceparent", "checkpoint", "until"})


@given(envelopes())
def test_an_envelope_comes_back_as_it_was(envelope: Envelope) -> None:
    properties = to_properties(envelope)
    assert all(isinstance(value, str) for value in properties.values())
    assert from_properties(properties) == envelope


@given(envelopes(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_properties_of_others_do_not_disturb(envelope: Envelope, others: dict[str, str]) -> None:
    foreign = {name: value for name, value in others.items() if name not in OURS}
    assert from_properties(foreign | to_properties(envelope)) == envelope


def test_what_is_not_there_takes_no_place() -> None:
    less = GOOD._replace(after=None, traceparent="", checkpoint=None, until=None)
    bare = to_properties(less)
    assert bare.keys() == set(REQUIRED)
    assert from_properties(bare) == less


def test_the_trace_contexts_of_many_changes_take_little_place() -> None:
    traces = ",".join(f"00-00ab12{n:026x}-{n + 1:016x}-00" for n in range(300))
    properties = to_properties(GOOD._replace(traceparent=traces))
    assert "traceparent" not in properties
    assert len(properties["traceparents"]) < len(traces) / 3
    assert from_properties(properties).traceparent == traces


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_property_is_named(name: str) -> None:
    properties: dict[str, Any] = to_properties(GOOD)
    del properties[name]
    with pytest.raises(EnvelopeError, match=f"'{name}': missing") as caught:
        from_properties(properties)
    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schema", "two"),
        ("stream", "v"),
        ("stream", "host/v"),
        ("epoch", "1.5"),
        ("epoch", "0"),
        ("epoch", "-1"),
        ("seq", ""),
        ("seq", "0"),
        ("kind", "gossip"),
        ("chunk", "1"),
        ("chunk", "0/3"),
        ("chunk", "4/3"),
        ("chunk", "x/3"),
        ("change", "last"),
        ("published_ns", "now"),
        ("after", "1"),
        ("checkpoint", "YQ=="),
        ("checkpoint", "YQ==,?"),
        ("until", "1"),
        ("traceparents", "?"),
        ("traceparents", b64encode(b"no deflated text").decode()),
        ("traceparents", b64encode(zlib.compress(b"a" * (TRACES_LIMIT + 1))).decode()),
        ("traceparents", b64encode(zlib.compress(b"a" * 5000)[:-9]).decode()),
        ("traceparents", b64encode(zlib.compress("é".encode())).decode()),
    ],
)
def test_a_property_that_cannot_be_is_named(name: str, value: str) -> None:
    with pytest.raises(EnvelopeError, match=f"'{name}'") as caught:
        from_properties(to_properties(GOOD) | {name: value})
    assert caught.value.name == name
    assert caught.value.reason
