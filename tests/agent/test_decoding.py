from __future__ import annotations

from typing import Any

import pytest

from goalstate.agent.decoding import Decoder, parse
from goalstate.gs.errors import EnvelopeError, OversizeMessage
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.agent.v1.frame_pb2 import Frame
from goalstate.gs.resources import STATES_FIELD, Kind, Resource
from tests.agent.rig import HOST, STREAM, Publisher, gone, neighbor, port, subnet, vpc


def test_the_frame_has_the_fields_of_goal_state_v2() -> None:
    def shape(descriptor: Any) -> dict[int, tuple[str, bool]]:
        return {field.number: (field.name, field.is_repeated) for field in descriptor.fields}

    def state_of(descriptor: Any, name: str) -> Any:
        entry = descriptor.fields_by_name[name].message_type
        return entry.fields_by_name["value"].message_type

    frame, whole = Frame.DESCRIPTOR, goalstate_pb2.GoalStateV2.DESCRIPTOR
    assert shape(frame) == shape(whole)
    for name in STATES_FIELD.values():
        assert shape(state_of(frame, name)) == shape(state_of(whole, name))


def test_a_payload_is_the_bytes_that_were_written_also_where_they_are_not_understood() -> None:
    unknown = b"\xa2\x06\x03new"  # field 100, which nobody has
    written = neighbor(1)._replace(payload=neighbor(1).payload + unknown)
    properties, _ = Publisher(STREAM).publish()
    message = Frame(format_version=102)
    message.neighbor_states["port-1"].configuration = written.payload
    message.neighbor_states["port-1"].operation_type = 1  # type: ignore[assignment]
    received = Decoder().receive(properties, message.SerializeToString())
    (group,) = received.content(HOST).groups
    assert group.resources == [written]


def test_resources_come_in_groups_by_kind_and_what_is_done_with_them() -> None:
    sent = Publisher(STREAM).publish(
        vpc(),
        subnet(),
        subnet("subnet-2"),
        neighbor(1),
        neighbor(2, subnets=["subnet-2"]),
        neighbor(3, vpc_id="other"),
        gone(neighbor(4)),
    )
    groups = Decoder().receive(*sent).content(HOST).groups
    shapes = {(g.kind, g.deletion, bool(g.refusal)): sorted(g.ids) for g in groups}
    assert shapes == {
        (Kind.VPC, False, False): ["vpc-1"],
        (Kind.SUBNET, False, False): ["subnet-1", "subnet-2"],
        (Kind.NEIGHBOR, False, False): ["port-1", "port-2"],
        (Kind.NEIGHBOR, False, True): ["port-3"],
        (Kind.NEIGHBOR, True, False): ["port-4"],
    }
    (neighbors,) = (g for g in groups if sorted(g.ids) == ["port-1", "port-2"])
    assert sorted((part.needs[0][0][1], part.ids) for part in neighbors.parts) == [
        ("subnet-1", ["port-1"]),
        ("subnet-2", ["port-2"]),
    ]
    assert neighbors.parts is neighbors.parts


def test_one_message_is_read_once_for_all_who_get_the_same_objects() -> None:
    decoder = Decoder(capacity=2)
    sent = [Publisher(STREAM).publish(neighbor(n)) for n in range(3)]
    first = decoder.receive(*sent[0])
    assert decoder.receive(*sent[0]) is first
    assert decoder.receive(dict(sent[0][0]), sent[0][1]) is not first
    assert (decoder.read, decoder.shared) == (2, 1)
    decoder.receive(*sent[1])
    decoder.receive(*sent[2])
    assert decoder.receive(*sent[0]) is not first  # forgotten by now


def test_not_more_bytes_than_allowed_are_remembered() -> None:
    decoder = Decoder(capacity_bytes=100)
    sent = [Publisher(STREAM).publish(neighbor(n)) for n in range(2)]
    first = decoder.receive(*sent[0])
    decoder.receive(*sent[1])
    assert decoder.receive(*sent[0]) is not first


def test_another_payload_with_the_same_properties_is_another_message() -> None:
    decoder = Decoder()
    properties, payload = Publisher(STREAM).publish(neighbor(1))
    assert decoder.receive(properties, payload).intact
    assert not decoder.receive(properties, payload + b"?").intact


def test_what_has_no_envelope_raises() -> None:
    with pytest.raises(EnvelopeError, match="'schema': missing"):
        Decoder().receive({}, b"")


def test_the_size_is_checked_before_anything_is_parsed() -> None:
    with pytest.raises(OversizeMessage):
        parse(b"\xff" * (5 * 1024 * 1024 + 1), 102)


def test_what_one_host_gets_of_an_inbox_is_its_own() -> None:
    sent = Publisher(STREAM._replace(kind=STREAM.kind.INBOX)).publish(port(1), port(2))
    received = Decoder().receive(*sent)
    (group,) = received.content(HOST).groups
    assert sorted(group.ids) == ["port-1", "port-2"]
    assert received.content("host-2").groups == []
    assert isinstance(group.resources[0], Resource)
