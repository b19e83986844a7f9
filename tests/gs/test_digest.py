"""The digest of a set of resources: of what is in it, whatever the way there."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs import digest
from goalstate.gs.resources import Kind, Resource

RESOURCES = st.builds(
    Resource,
    st.sampled_from(Kind),
    st.text(max_size=3),
    st.integers(1, 9),
    st.binary(min_size=1, max_size=20),
)
SETS = st.lists(RESOURCES, max_size=8)


@given(SETS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(resources: list[Resource], order: random.Random) -> None:
    shuffled = list(resources)
    order.shuffle(shuffled)
    assert digest.of(shuffled) == digest.of(resources)


@given(SETS, RESOURCES)
def test_a_change_costs_one_addition_and_one_subtraction(
    resources: list[Resource], one: Resource
) -> None:
    without, whole = digest.of(resources), digest.of([*resources, one])
    item = digest.item(one.kind, one.payload)
    assert whole == (without + item) & digest.MASK
    assert without == (whole - item) & digest.MASK


@given(SETS, RESOURCES)
def test_a_deletion_counts_for_nothing(resources: list[Resource], one: Resource) -> None:
    gone = one._replace(payload=b"")
    assert gone.deleted
    assert digest.of([*resources, gone]) == digest.of(resources)


def test_nothing_has_the_empty_digest() -> None:
    assert digest.of([]) == digest.EMPTY


@given(st.sampled_from(Kind), st.sampled_from(Kind), st.binary(min_size=1))
def test_equal_bytes_of_two_kinds_differ(one: Kind, other: Kind, payload: bytes) -> None:
    assert (digest.item(one, payload) == digest.item(other, payload)) == (one is other)


@given(st.sampled_from(Kind), st.binary(min_size=1), st.binary(min_size=1))
def test_another_content_is_another_hash(kind: Kind, one: bytes, other: bytes) -> None:
    assert (digest.item(kind, one) == digest.item(kind, other)) == (one == other)


@given(st.integers(0, digest.MASK))
def test_both_forms_of_a_digest_say_the_same_in_full_length(value: int) -> None:
    assert int.from_bytes(digest.to_bytes(value), "big") == value
    assert digest.to_hex(value) == digest.to_bytes(value).hex()
    assert len(digest.to_hex(value)) == 32


def test_a_checksum_is_sixteen_digits_and_finds_a_changed_bit() -> None:
    payload = bytes(range(100))
    changed = bytes([payload[0] ^ 1, *payload[1:]])
    assert len(digest.checksum(payload)) == 16
    assert digest.checksum(payload) != digest.checksum(changed)
    assert digest.checksum(payload) == digest.checksum(bytes(list(payload)))
