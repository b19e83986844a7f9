"""The schema is Alcor's on the wire: compared with a table of its facts, and run against it.

The table (data/alcor-wire.json) lists the messages, enums and services with names, numbers, types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.gs.pb.alcor.schema import goalstate_pb2, provisioner_pb2, resources_pb2
from tests.gs.messages import any_of, descriptors

TABLE = json.loads(Path(__file__).with_name("data").joinpath("alcor-wire.json").read_text("utf-8"))
PACKAGE = TABLE["package"]
FILES = [m.DESCRIPTOR for m in (resources_pb2, goalstate_pb2, provisioner_pb2)]
FIRST_OWN_NUMBER = 1000

MESSAGES: dict[str, Descriptor] = {
    d.full_name.removeprefix(PACKAGE + "."): d
    for file in FILES
    for root in file.message_types_by_name.values()
    for d in descriptors(root)
}
ENUMS: dict[str, EnumDescriptor] = {
    e.full_name.removeprefix(PACKAGE + "."): e
    for e in [
        *(e for file in FILES for e in file.enum_types_by_name.values()),
        *(e for d in MESSAGES.values() for e in d.enum_types),
    ]
}
#: Additions: what there is and nothing else. Whoever adds one adds it here and in proto/README.md.
OWN_FIELDS = {
    "GoalStateOperationReply.incarnation",
    "GoalStateOperationReply.GoalStateOperationStatus.reason",
    "GoalState.host_id",
    "GoalState.host_resources",
    "HostResources.digest",
    "HostResources.subscriptions",
    "HostResources.explicit_neighbor_types",
    "NodeSubscribeInfo.stream",
    "NodeSubscribeInfo.revision_number",
    "NodeSubscribeInfo.channel",
    "NodeSubscribeInfo.start_position",
    "NeighborConfiguration.security_group_ids",
    "RouterConfiguration.vpc_id",
    "GatewayConfiguration.vpc_id",
    "DHCPConfiguration.port_id",
}
OWN_MESSAGES = {"HostResources.ExplicitNeighborType"}
OWN_ENUMS = {"NodeSubscribeInfo.Channel"}

SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
}
#: Whole messages, as opposed to the entries of maps.
WHOLE = sorted(name for name, facts in TABLE["messages"].items() if not facts.get("map_entry"))


def facts_of(field: FieldDescriptor) -> dict[str, Any]:
    """A compiled field as the table would write it."""
    if field.message_type is not None:
        type_ = field.message_type.full_name.removeprefix(PACKAGE + ".")
    elif field.enum_type is not None:
        type_ = field.enum_type.full_name.removeprefix(PACKAGE + ".")
    else:
        type_ = next((name for name, t in SCALARS.items() if t == field.type), str(field.type))
    facts: dict[str, Any] = {"number": field.number, "type": type_}
    return facts | {"repeated": True} if field.is_repeated else facts


def test_the_table_is_whole() -> None:
    counts = [len(TABLE[part]) for part in ("messages", "enums", "services")]
    assert counts == [54, 13, 2]
    assert PACKAGE == "alcor.schema"
    assert {file.package for file in FILES} == {PACKAGE}


def test_messages_and_enums_are_those_of_the_table_and_the_named_additions() -> None:
    assert MESSAGES.keys() == TABLE["messages"].keys() | OWN_MESSAGES
    assert ENUMS.keys() == TABLE["enums"].keys() | OWN_ENUMS


@pytest.mark.parametrize("name", sorted(TABLE["messages"]))
def test_a_message_has_the_fields_of_the_table(name: str) -> None:
    compiled = {f.name: facts_of(f) for f in MESSAGES[name].fields if f.number < FIRST_OWN_NUMBER}
    assert compiled == TABLE["messages"][name]["fields"]
    is_map_entry = MESSAGES[name].GetOptions().map_entry
    assert is_map_entry == TABLE["messages"][name].get("map_entry", False)


@pytest.mark.parametrize("name", sorted(TABLE["messages"]))
def test_fields_of_the_table_are_plain_proto3(name: str) -> None:
    for field in MESSAGES[name].fields:
        assert field.containing_oneof is None
        assert field.message_type is not None or not field.has_presence


def test_additions_are_those_listed_and_numbered_from_1000_up() -> None:
    additions = {
        f"{name}.{field.name}": field.number
        for name in TABLE["messages"]
        for field in MESSAGES[name].fields
        if field.name not in TABLE["messages"][name]["fields"]
    }
    assert additions.keys() == OWN_FIELDS
    assert min(additions.values()) >= FIRST_OWN_NUMBER


@pytest.mark.parametrize("name", sorted(TABLE["enums"]))
def test_an_enum_has_the_values_of_the_table(name: str) -> None:
    assert {v.name: v.number for v in ENUMS[name].values} == TABLE["enums"][name]


def test_services_have_the_methods_types_and_streaming_of_the_table() -> None:
    compiled = {
        service.name: {
            method.name: {
                "request": method.input_type.full_name.removeprefix(PACKAGE + "."),
                "reply": method.output_type.full_name.removeprefix(PACKAGE + "."),
                "client_streaming": method.client_streaming,
                "server_streaming": method.server_streaming,
            }
            for method in service.methods
        }
        for file in FILES
        for service in file.services_by_name.values()
    }
    assert compiled == TABLE["services"]


def plain_pool() -> descriptor_pool.DescriptorPool:
    """The schema of the table, without any addition, built without our .proto files."""
    file = descriptor_pb2.FileDescriptorProto(name="plain.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name in sorted(TABLE["messages"], key=lambda n: n.count(".")):
        parent, _, simple = name.rpartition(".")
        message = made[parent].nested_type.add() if parent else file.message_type.add()
        made[name] = message
        message.name = simple
        message.options.map_entry = TABLE["messages"][name].get("map_entry", False)
        for field_name, facts in TABLE["messages"][name]["fields"].items():
            field = message.field.add(name=field_name, number=facts["number"])
            repeated = facts.get("repeated", False)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if facts["type"] in SCALARS:
                field.type = SCALARS[facts["type"]]
            else:
                is_enum = facts["type"] in TABLE["enums"]
                field.type = field.TYPE_ENUM if is_enum else field.TYPE_MESSAGE
                field.type_name = f".{PACKAGE}.{facts['type']}"
    for name, values in TABLE["enums"].items():
        parent, _, simple = name.rpartition(".")
        enum = made[parent].enum_type.add() if parent else file.enum_type.add()
        enum.name = simple
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


POOL = plain_pool()


def plain(name: str) -> type[Message]:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def ours(name: str) -> type[Message]:
    return message_factory.GetMessageClass(MESSAGES[name])


@settings(max_examples=20)
@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
def test_a_message_with_additions_survives_a_reader_without_them(
    name: str, data: st.DataObject
) -> None:
    sent = data.draw(any_of(ours(name)))
    passed_on = plain(name).FromString(sent.SerializeToString())
    assert ours(name).FromString(passed_on.SerializeToString()) == sent


@settings(max_examples=20)
@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
def test_a_message_of_the_plain_schema_survives_us(name: str, data: st.DataObject) -> None:
    sent = data.draw(any_of(plain(name)))
    passed_on = ours(name).FromString(sent.SerializeToString())
    assert plain(name).FromString(passed_on.SerializeToString()) == sent


def test_a_plain_reader_sees_every_field_it_knows_and_keeps_the_rest() -> None:
    sent = goalstate_pb2.GoalStateV2(format_version=102)
    neighbor = sent.neighbor_states["n"].configuration
    neighbor.id = "n"
    neighbor.fixed_ips.add(subnet_id="s", ip_address="10.0.0.9")
    neighbor.security_group_ids.append("g")
    section = sent.host_resources["h"]
    section.resources.add(type=resources_pb2.NEIGHBOR, id="n")
    section.digest = bytes(range(16))
    section.subscriptions.add(topic="t", stream="vpc/v", revision_number=3)

    read: Any = plain("GoalStateV2").FromString(sent.SerializeToString())

    seen = read.neighbor_states["n"].configuration
    assert (seen.id, seen.fixed_ips[0].ip_address) == ("n", "10.0.0.9")
    assert [(r.type, r.id) for r in read.host_resources["h"].resources] == [(3, "n")]
    assert "security_group_ids" not in seen.DESCRIPTOR.fields_by_name
    seen.name = "renamed"
    back = goalstate_pb2.GoalStateV2.FromString(read.SerializeToString())
    assert back.neighbor_states["n"].configuration.name == "renamed"
    assert back.neighbor_states["n"].configuration.security_group_ids == ["g"]
    assert back.host_resources["h"] == section
