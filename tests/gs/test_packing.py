"""Packing: what goes into messages comes out of them, each thing once, in the order given."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs import digest as digests
from goalstate.gs.errors import MalformedMessage
from goalstate.gs.packing import CHUNK_BYTES, Addressed, chunk, encode, subscriptions, unpack
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2
from goalstate.gs.resources import CONFIGURATION, STATES_FIELD, Kind, Resource
from goalstate.gs.versions import FORMAT_V2, detect

IDS = st.sampled_from(["a", "b", "ü/1", "a b"])
HOSTS = st.sampled_from(["h1", "h2"])
INBOX_KINDS = (Kind.PORT, Kind.DHCP, Kind.SUBSCRIPTION)
SHARED_KINDS = tuple(kind for kind in Kind if kind not in INBOX_KINDS)


@st.composite
def resources(draw: st.DrawFn, kinds: tuple[Kind, ...]) -> Resource:
    kind, id_, revision = draw(st.sampled_from(kinds)), draw(IDS), draw(st.integers(1, 3))
    if kind is Kind.SUBSCRIPTION:
        fact = goalstate_pb2.NodeSubscribeInfo(
            subscribe_operation=goalstate_pb2.Subscribe,
            topic=draw(st.text(max_size=3)),
            stream=id_,
            revision_number=revision,
        )
        payload = fact.SerializeToString()
    else:
        config = CONFIGURATION[kind](id=id_, revision_number=revision)
        if "name" in config.DESCRIPTOR.fields_by_name:
            config.name = draw(st.text(max_size=30))
        payload = config.SerializeToString()
    return Resource(kind, id_, revision, draw(st.sampled_from([payload, payload, b""])))


SHARED = st.lists(resources(SHARED_KINDS).map(lambda r: Addressed("", r)), max_size=12)
INBOX = st.lists(st.builds(Addressed, HOSTS, resources(INBOX_KINDS)), max_size=12)
LIMITS = st.sampled_from([1, 60, 200, CHUNK_BYTES])


def identity(item: Addressed) -> tuple[Kind, str, str]:
    host, resource = item
    return resource.kind, resource.id, host if resource.kind is Kind.SUBSCRIPTION else ""


def received(payload: bytes) -> list[Addressed]:
    """What a reader finds in a message, sorted."""
    message = goalstate_pb2.GoalStateV2.FromString(payload)
    hosts: dict[tuple[int, str], str] = {}
    found = []
    for host, section in message.host_resources.items():
        for named in section.resources:
            assert hosts.setdefault((named.type, named.id), host) == host
        found += [Addressed(host, resource) for resource, _ in subscriptions(section)]
    for resource, config in unpack(message):
        assert config.id == resource.id
        host = hosts.pop((int(resource.kind), resource.id), "")
        found.append(Addressed(host, resource))
    assert hosts == {}, "a section names what the message does not hold"
    return sorted(found)


@given(SHARED | INBOX, LIMITS)
def test_chunks_are_the_change_set_in_its_order(items: list[Addressed], limit: int) -> None:
    chunks = chunk(items, limit)
    assert [item for one in chunks for item in one] == items
    assert all(chunks)


@given(SHARED | INBOX, LIMITS)
def test_an_id_is_at_most_once_in_a_message(items: list[Addressed], limit: int) -> None:
    for one in chunk(items, limit):
        identities = [identity(item) for item in one]
        assert len(set(identities)) == len(identities)


@given(SHARED | INBOX, LIMITS)
def test_no_message_is_much_larger_than_the_limit_but_for_a_single_large_resource(
    items: list[Addressed], limit: int
) -> None:
    for one in chunk(items, limit):
        told = {item.host: 1 for item in one if item.host}
        # What is said of a host as such is not counted.
        assert len(one) == 1 or len(encode(one, told)) <= limit + 8 + 30 * len(told)


@given(SHARED | INBOX, LIMITS)
def test_messages_are_as_few_as_the_order_allows(items: list[Addressed], limit: int) -> None:
    chunks = chunk(items, limit)
    for one, following in pairwise(chunks):
        assert len(chunk([*one, following[0]], limit)) == 2


@given(SHARED | INBOX, LIMITS)
def test_what_is_packed_is_what_is_unpacked(items: list[Addressed], limit: int) -> None:
    for one in chunk(items, limit):
        assert received(encode(one)) == sorted(one)


@given(INBOX)
def test_every_host_concerned_is_told_its_digest(items: list[Addressed]) -> None:
    for one in chunk(items):
        told = {host: n << 100 for n, host in enumerate({item.host for item in one})}
        message = goalstate_pb2.GoalStateV2.FromString(encode(one, told))
        assert {host: section.digest for host, section in message.host_resources.items()} == {
            host: digests.to_bytes(value) for host, value in told.items()
        }


@given(SHARED | INBOX)
def test_the_same_content_is_the_same_bytes(items: list[Addressed]) -> None:
    for one in chunk(items):
        assert encode(one) == encode(list(one))


@given(SHARED | INBOX)
def test_a_message_says_its_format_first(items: list[Addressed]) -> None:
    assert detect(encode(items[:1])) == FORMAT_V2


@pytest.mark.parametrize(
    ("revision", "deleted", "operation"),
    [
        (1, False, resources_pb2.CREATE),
        (2, False, resources_pb2.UPDATE),
        (2, True, resources_pb2.DELETE),
    ],
)
def test_the_operation_says_whether_it_is_new(revision: int, deleted: bool, operation: int) -> None:
    config = resources_pb2.VpcConfiguration(id="v", revision_number=revision)
    payload = b"" if deleted else config.SerializeToString()
    message = goalstate_pb2.GoalStateV2.FromString(
        encode([Addressed("", Resource(Kind.VPC, "v", revision, payload))])
    )
    assert message.vpc_states["v"].operation_type == operation
    assert message.vpc_states["v"].configuration == config


def test_a_port_that_changes_hosts_within_a_rack_takes_two_messages_in_the_order_given() -> None:
    config = resources_pb2.PortConfiguration(id="p", revision_number=2)
    comes = Addressed("h2", Resource(Kind.PORT, "p", 2, config.SerializeToString()))
    goes = Addressed("h1", Resource(Kind.PORT, "p", 2, b""))
    assert chunk([comes, goes]) == [[comes], [goes]]


def test_an_ended_subscription_is_told_as_such() -> None:
    gone = Addressed("h", Resource(Kind.SUBSCRIPTION, "vpc/v", 4, b""))
    message = goalstate_pb2.GoalStateV2.FromString(encode([gone]))
    [(resource, fact)] = subscriptions(message.host_resources["h"])
    assert resource == gone.resource
    assert fact.subscribe_operation == goalstate_pb2.Unsubscribe


def test_kinds_are_unpacked_in_the_order_asked_for() -> None:
    items = [
        Addressed("", Resource(kind, "x", 1, CONFIGURATION[kind](id="x").SerializeToString()))
        for kind in STATES_FIELD
    ]
    message = goalstate_pb2.GoalStateV2.FromString(encode(items))
    asked = [Kind.NEIGHBOR, Kind.VPC]
    assert [resource.kind for resource, _ in unpack(message, asked)] == asked
    assert [resource.kind for resource, _ in unpack(message)] == list(STATES_FIELD)


def test_a_map_entry_that_holds_another_id_is_refused_by_name() -> None:
    message: Any = goalstate_pb2.GoalStateV2(format_version=FORMAT_V2)
    message.neighbor_states["n"].configuration.id = "other"
    with pytest.raises(MalformedMessage, match=r"neighbor_states\['n'\].*'other'"):
        list(unpack(message))
