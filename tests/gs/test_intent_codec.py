"""Intents as messages and as text: nothing is lost, and what is no intent is told apart with its
place."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs import intent, intent_codec
from goalstate.gs.errors import GoalStateError, IntentSyntaxError
from goalstate.gs.intent import (
    AddressPair,
    Deletion,
    Destination,
    Dhcp,
    FixedIp,
    Gateway,
    Host,
    Intent,
    Object,
    ObjectKind,
    Port,
    Route,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from tests.gs.region import BASE

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
UINT32 = st.integers(0, (1 << 32) - 1)


def tuples(of: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=3).map(tuple)


OPTIONS = st.dictionaries(TEXT, TEXT, max_size=3).map(lambda d: tuple(sorted(d.items())))
RULES = st.builds(
    Rule,
    TEXT,
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 5),
    UINT32,
    UINT32,
    TEXT,
    TEXT,
)
INTENTS = st.builds(
    Intent,
    tuples(st.builds(Host, TEXT, TEXT, TEXT, TEXT, TEXT)),
    tuples(st.builds(Vpc, TEXT, TEXT, TEXT, TEXT, UINT32, tuples(TEXT), st.integers(0, 2))),
    tuples(
        st.builds(
            Subnet,
            TEXT,
            TEXT,
            TEXT,
            TEXT,
            TEXT,
            TEXT,
            st.booleans(),
            st.integers(0, (1 << 64) - 1),
            TEXT,
            tuples(TEXT),
            OPTIONS,
        )
    ),
    tuples(st.builds(SecurityGroup, TEXT, TEXT, TEXT, tuples(RULES))),
    tuples(
        st.builds(
            Router,
            TEXT,
            TEXT,
            TEXT,
            TEXT,
            tuples(TEXT),
            tuples(st.builds(Route, TEXT, TEXT, TEXT, UINT32)),
        )
    ),
    tuples(
        st.builds(
            Gateway, TEXT, TEXT, st.integers(0, 9), tuples(st.builds(Destination, TEXT, TEXT))
        )
    ),
    tuples(
        st.builds(
            Port,
            TEXT,
            TEXT,
            TEXT,
            TEXT,
            TEXT,
            tuples(st.builds(FixedIp, TEXT, TEXT)),
            tuples(st.builds(AddressPair, TEXT, TEXT)),
            tuples(TEXT),
            TEXT,
            TEXT,
            st.booleans(),
        )
    ),
    tuples(st.builds(Dhcp, TEXT, TEXT, TEXT)),
    tuples(st.builds(Deletion, st.integers(0, 9), TEXT, st.booleans())),
)


@given(INTENTS)
def test_a_message_and_back_loses_nothing(given_intent: Intent) -> None:
    message = intent_codec.to_proto(given_intent)
    raw = message.SerializeToString()
    assert intent_codec.from_proto(intent_pb2.Intent.FromString(raw)) == given_intent


def known_enums(given_intent: Intent) -> bool:
    rules = [rule for group in given_intent.security_groups for rule in group.rules]
    return (
        all(r.direction < 2 and r.ethertype < 2 and r.protocol < 4 for r in rules)
        and all(gateway.type < 6 for gateway in given_intent.gateways)
        and all(deletion.kind < 9 for deletion in given_intent.deletes)
    )


@pytest.mark.no_cover  # other tests trace the same code
@given(INTENTS.filter(known_enums))
def test_text_and_back_loses_nothing(given_intent: Intent) -> None:
    assert intent_codec.load(intent_codec.to_yaml(given_intent), "text") == [given_intent]


def test_numbers_of_the_tuples_enums_are_the_messages() -> None:
    for ours, theirs in (
        (ObjectKind, intent_pb2.ObjectKind),
        (intent.Direction, intent_pb2.SecurityGroup.Direction),
        (intent.EtherType, intent_pb2.SecurityGroup.EtherType),
        (intent.Protocol, intent_pb2.SecurityGroup.Protocol),
        (intent.GatewayType, intent_pb2.Gateway.Type),
    ):
        numbers = {name: value for name, value in theirs.items() if "UNSPECIFIED" not in name}
        assert numbers == {member.name: member.value for member in ours}


@pytest.mark.parametrize(
    "type_", [Host, Vpc, Subnet, SecurityGroup, Router, Gateway, Port, Dhcp, Deletion]
)
def test_fields_of_the_tuples_are_the_messages(type_: type[Object]) -> None:
    message = getattr(intent_pb2, type_.__name__)
    assert set(type_._fields) == {field.name for field in message.DESCRIPTOR.fields}


def test_ids_that_repeat_are_held_once() -> None:
    raw = intent_codec.to_proto(BASE).SerializeToString()
    ports = intent_codec.from_proto(intent_pb2.Intent.FromString(raw)).ports
    assert ports[0].vpc_id is ports[1].vpc_id
    assert ports[0].fixed_ips[0].subnet_id is ports[1].fixed_ips[0].subnet_id
    assert ports[0].security_group_ids[0] is ports[1].security_group_ids[0]


def test_several_documents_are_several_intents_in_order() -> None:
    text = "vpcs: [{id: a}]\n---\n---\nvpcs: [{id: b}]\n--- \nports:\n"
    loaded = intent_codec.load(text, "text")
    assert [[vpc.id for vpc in i.vpcs] for i in loaded] == [["a"], ["b"], []]


def test_addresses_need_no_quotes() -> None:
    text = "ports:\n- {id: 7, mac_address: 12:34:56:12:34:56, name: yes}\n"
    (loaded,) = intent_codec.load(text, "text")
    assert loaded.ports[0] == Port("7", mac_address="12:34:56:12:34:56", name="yes")


def test_what_yaml_offers_can_be_used() -> None:
    text = """\
vpcs:
- &base {id: v1, cidr: 10.0.0.0/8, tunnel_id: 0x10, name: }
- {<<: *base, id: v2, tunnel_id: "17"}
subnets:
- id: s
  dhcp_enable: on
  dhcp_options: {mtu: 1450}
deletes:
- kind: port
  id: p
"""
    with pytest.raises(IntentSyntaxError, match="0x10"):
        intent_codec.load(text, "text")
    (loaded,) = intent_codec.load(text.replace("0x10", "16"), "text")
    assert loaded.vpcs == (
        Vpc("v1", cidr="10.0.0.0/8", tunnel_id=16),
        Vpc("v2", cidr="10.0.0.0/8", tunnel_id=17),
    )
    assert loaded.subnets[0].dhcp_enable
    assert loaded.subnets[0].dhcp_options == (("mtu", "1450"),)
    assert loaded.deletes == (Deletion(ObjectKind.PORT, "p"),)


@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_json_is_read_too(indent: int | str | None) -> None:
    plain = yaml.safe_load(intent_codec.to_yaml(BASE))
    plain["vpcs"][0]["name"] = "\U0001f600 \\ud83d\\ude00 / é"
    (loaded,) = intent_codec.load(json.dumps(plain, indent=indent), "text")
    assert loaded.vpcs[0].name == "\U0001f600 \\ud83d\\ude00 / é"
    assert loaded.ports == BASE.ports


@pytest.mark.parametrize(
    ("text", "line", "path", "part"),
    [
        ("", 1, "", "empty"),
        ("---\n# nothing\n", 1, "", "empty"),
        ("ports:\n- id: p\n  fixed_ipz: []\n", 3, "ports[0].fixed_ipz", "did you mean fixed_ips?"),
        ("prots: []", 1, "prots", "did you mean ports?"),
        ("hosts: []\nqqq: 1", 2, "qqq", "known: hosts, vpcs"),
        ("vpcs: []\n---\nprots: []", 3, "prots", "ports"),
        ("- 1", 1, "", "a list is no Intent"),
        ("hello", 1, "", "'hello' is no Intent"),
        ("vpcs: {id: a}", 1, "vpcs", "a mapping is no list"),
        ("vpcs: [a]", 1, "vpcs[0]", "'a' is no Vpc"),
        ("vpcs:\n- id: a\n  id: b\n", 3, "vpcs[0]", "'id' is given twice"),
        ("vpcs:\n- {id: a, tunnel_id: ten}", 2, "vpcs[0].tunnel_id", "no whole number"),
        ("vpcs: [{tunnel_id: 1.5}]", 1, "vpcs[0].tunnel_id", "no whole number"),
        ("vpcs: [{tunnel_id: -1}]", 1, "vpcs[0].tunnel_id", "not within 0"),
        ("vpcs: [{tunnel_id: 4294967296}]", 1, "vpcs[0].tunnel_id", "not within 0"),
        ("vpcs: [{tunnel_id: []}]", 1, "vpcs[0].tunnel_id", "a list is given"),
        ("vpcs: [{id: {a: b}}]", 1, "vpcs[0].id", "a mapping is given"),
        ("vpcs: [{secondary_cidrs: 10.0.0.0/8}]", 1, "vpcs[0].secondary_cidrs", "is no list"),
        ("ports: [{admin_down: 1}]", 1, "ports[0].admin_down", "neither true nor false"),
        ("ports: [{admin_down: 'true'}]", 1, "ports[0].admin_down", "neither true nor false"),
        ("deletes: [{kind: prot}]", 1, "deletes[0].kind", "known: "),
        ("subnets: [{dhcp_options: [a]}]", 1, "subnets[0].dhcp_options", "no mapping"),
        ("? [a]\n: b", 1, "", "cannot be a key"),
        ("vpcs:\n- id: [\n", 3, "", "no YAML"),
        ("vpcs:\n\t- id: a", 2, "", "no YAML"),
        ("a: *b", 1, "", "alias"),
        ("vpcs:\n- id: \x01", 2, "", "not allowed"),
        ("vpcs:\n- id: \ud800", 2, "", "Unicode"),
        ('{"vpcs": [{"id": "\\ud83d"}]}', 1, "", "no YAML"),
        ("vpcs: [{<<: 1}]", 1, "", "mapping"),
    ],
)
def test_what_is_no_intent_is_refused_with_its_place(
    text: str, line: int, path: str, part: str
) -> None:
    with pytest.raises(IntentSyntaxError) as caught:
        intent_codec.load(text, "file.yaml")
    error = caught.value
    assert (error.source, error.line, error.path) == ("file.yaml", line, path)
    assert part in error.reason
    assert str(error).startswith(f"file.yaml:{line}: ")


def test_every_error_of_shape_is_told_and_the_first_one_is_the_errors_own() -> None:
    text = """\
vpcs:
- {idd: v1, tunnel_id: ten, secondary_cidrs: [a, [b]], id: {a: b}}
- just a word
subnets: {id: s}
ports:
- {id: p, id: q, ? [x] : y, mac_address: m}
---
deletes: [{kind: prot}]
subnets: [{dhcp_options: {mtu: [1], ttl: 1}}]
---
vpcs: [
"""
    with pytest.raises(IntentSyntaxError) as caught:
        intent_codec.load(text, "f")
    error = caught.value
    assert (error.line, error.path) == (2, "vpcs[0].idd")
    assert error.reason == "Vpc has no such field (did you mean id?)"
    assert [(one.line, one.path) for one in error.others] == [
        (2, "vpcs[0].tunnel_id"),
        (2, "vpcs[0].secondary_cidrs[1]"),
        (2, "vpcs[0].id"),
        (3, "vpcs[1]"),
        (4, "subnets"),
        (6, "ports[0]"),
        (6, "ports[0]"),
        (8, "deletes[0].kind"),
        (9, "subnets[0].dhcp_options.mtu"),
        (12, ""),
    ]
    assert str(error).splitlines() == [str(IntentSyntaxError("f", 2, error.path, error.reason))] + [
        str(one) for one in error.others
    ]


def test_of_a_flood_of_errors_the_message_names_the_first() -> None:
    with pytest.raises(IntentSyntaxError) as caught:
        intent_codec.load("vpcs: [" + "{idd: v}, " * 30 + "]", "f")
    assert len(caught.value.others) == 29
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "… and 10 more errors"


def test_a_tag_makes_nothing_since_the_schema_decides() -> None:
    assert intent_codec.load("vpcs: !!python/object:os.system []", "file.yaml") == [Intent()]


def test_deep_nesting_is_refused() -> None:
    for text in ("[" * 100_000, "- " * 100_000, '{"a":' * 100_000):
        with pytest.raises(IntentSyntaxError):
            intent_codec.load(text, "file.yaml")


@given(st.text(max_size=40))
def test_any_text_is_an_intent_or_a_named_error(text: str) -> None:
    try:
        intent_codec.load(text, "text")
    except GoalStateError as error:
        assert isinstance(error, IntentSyntaxError)
