"""The oracle agrees with a correct host, and finds whatever is wrong with another."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from goalstate.gs.derivation import Derivation, Key
from goalstate.gs.desired import Desired
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.intent_codec import to_proto
from goalstate.gs.packing import Addressed, encode
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.resources import Resource as Held
from goalstate.gs.topics import Topics
from goalstate.scale.generate import Region, delete_vpc, join_group, move_port, revoke_rule
from goalstate.scale.oracle import Difference, Oracle, Resource, compare, expected

REGION = Region(
    hosts=6,
    vpcs=(40, 12, 3),
    seed=3,
    group_size=2,
    router_share=1,
    gateway_share=1,
    dhcp_share=0.5,
    pair_share=0.3,
)
WORDS = {kind: kind.name.lower() for kind in Kind}


class Publisher:
    """What the publisher's derivation makes of intents, one after the other."""

    def __init__(self, own_stream: bool = False) -> None:
        self.desired = Desired()
        self.intents: list[Any] = []
        self.resources: dict[Key, Any] = {}
        self._derivation = Derivation(self.desired, Topics(), security_groups_own_stream=own_stream)
        self._own_stream = own_stream

    def apply(self, intent: Intent) -> None:
        changes = self.desired.plan(intent)
        self.desired.commit(changes)
        self.intents.append(to_proto(intent))
        for key in self._derivation.touched(changes):
            derived = self._derivation.build(key)
            if derived is None:
                self.resources.pop(key, None)
            else:
                derived.config.revision_number = len(self.intents)
                self.resources[key] = derived

    def oracle(self) -> Oracle:
        return expected(self.intents, security_groups_own_stream=self._own_stream)

    def hosts(self) -> list[str]:
        return list(self.desired.table(ObjectKind.HOST))

    def held(self, host: str) -> list[tuple[str, Resource]]:
        """What a correct host holds."""
        follows = {
            key.id for key in self.resources if key.kind is Kind.SUBSCRIPTION and key.host == host
        }
        return [
            (str(d.stream), Resource(WORDS[key.kind], key.id, d.config.SerializeToString()))
            for key, d in self.resources.items()
            if key.kind is not Kind.SUBSCRIPTION
            and (d.host == host if d.host else str(d.stream) in follows)
        ]

    def facts(self, host: str) -> tuple[str, goalstate_pb2.GoalStateV2]:
        """The host's subscriptions, as they are on its inbox."""
        group = self.desired.get(ObjectKind.HOST, host).group
        items = [
            Addressed(host, Held(Kind.SUBSCRIPTION, key.id, 1, d.config.SerializeToString()))
            for key, d in self.resources.items()
            if key.kind is Kind.SUBSCRIPTION and key.host == host
        ]
        return f"inbox/{group}", goalstate_pb2.GoalStateV2.FromString(encode(items))

    def differences(self) -> list[Difference]:
        oracle = self.oracle()
        return [
            difference
            for host in self.hosts()
            for difference in compare(oracle, host, [*self.held(host), self.facts(host)])
        ]


@pytest.fixture(params=[False, True], ids=["groups on the VPC's stream", "on their own"])
def publisher(request: pytest.FixtureRequest) -> Publisher:
    made = Publisher(own_stream=request.param)
    for intent in REGION.intents(piece=20):
        made.apply(intent)
    return made


def test_a_region_is_derived_as_the_oracle_expects_through_all_its_changes(
    publisher: Publisher,
) -> None:
    assert publisher.differences() == []
    port = REGION.port(1, 0)
    group = publisher.desired.get(ObjectKind.SECURITY_GROUP, REGION.group_id(1, "web"))
    host = publisher.desired.get(ObjectKind.HOST, "host-000001")
    vpc = publisher.desired.get(ObjectKind.VPC, REGION.vpc_id(2))
    gateway = publisher.desired.objects(ObjectKind.GATEWAY)
    outsider = next(
        p for i in range(40) if group.id not in (p := REGION.port(1, i)).security_group_ids
    )
    subnet = next(iter(publisher.desired.subnets_of_vpc(REGION.vpc_id(3))))
    changes = [
        move_port(port, host.id if port.host_id != host.id else "host-000002"),
        revoke_rule(group, f"{group.id}-http"),
        join_group(outsider, group.id),
        Intent(hosts=(host._replace(ip_address="100.99.0.1"),)),
        Intent(vpcs=(vpc._replace(tunnel_id=900, name="other"),)),
        Intent(ports=(REGION.port(1, 40)._replace(mac_address="02-AA-00-00-00-01"),)),
        Intent(ports=(REGION.port(1, 1)._replace(admin_down=True),)),
        Intent(ports=(REGION.port(1, 2)._replace(host_id=""),)),
        Intent(deletes=(Deletion(ObjectKind.GATEWAY, next(iter(gateway)).id),)),
        Intent(deletes=(Deletion(ObjectKind.SUBNET, subnet, True),)),
        delete_vpc(REGION.vpc_id(1)),
    ]
    for change in changes:
        publisher.apply(change)
        assert publisher.differences() == []
    assert publisher.hosts()


def one_host(publisher: Publisher) -> tuple[str, list[tuple[str, Any]]]:
    host = REGION.port(1, 0).host_id
    return host, [*publisher.held(host), publisher.facts(host)]


@pytest.fixture
def simple() -> Publisher:
    made = Publisher()
    for intent in REGION.intents():
        made.apply(intent)
    return made


@pytest.mark.parametrize(
    "kind", ["vpc", "subnet", "security_group", "router", "gateway", "neighbor", "port", "dhcp"]
)
def test_each_missing_or_altered_resource_is_found(simple: Publisher, kind: str) -> None:
    host, held = one_host(simple)
    oracle = simple.oracle()
    index = next(i for i, (_, r) in enumerate(held) if getattr(r, "kind", "") == kind)
    stream, resource = held[index]
    missing = compare(oracle, host, held[:index] + held[index + 1 :])
    assert missing == [Difference(host, kind, resource.id, f"missing (stream {stream})")]

    derived = simple.resources[Key(Kind[kind.upper()], resource.id)]
    config = copy.deepcopy(derived.config)
    config.revision_number, config.request_id = 77, "other"
    unseen = (stream, resource._replace(payload=config.SerializeToString()))
    assert compare(oracle, host, [*held[:index], unseen, *held[index + 1 :]]) == []
    field = next(f for f in config.DESCRIPTOR.fields if f.name in ("mac_address", "vpc_id", "cidr"))
    setattr(config, field.name, "wrong")
    altered = (stream, resource._replace(payload=config.SerializeToString()))
    (found,) = compare(oracle, host, [*held[:index], altered, *held[index + 1 :]])
    assert found[:3] == (host, kind, resource.id)
    right = getattr(derived.config, field.name)
    assert found.what == f"{field.name} is wrong, must be {right}"


def test_every_altered_copy_is_found_however_often_the_right_one_was_seen(
    simple: Publisher,
) -> None:
    oracle = simple.oracle()
    for host in simple.hosts():
        assert compare(oracle, host, [*simple.held(host), simple.facts(host)]) == []
    host, held = one_host(simple)
    index = next(i for i, (_, r) in enumerate(held) if getattr(r, "kind", "") == "neighbor")
    stream, resource = held[index]
    other = next(r for s, r in held[index + 1 :] if s == stream and r.kind == "neighbor")
    # The right payload of another resource under this one's id.
    held[index] = (stream, resource._replace(payload=other.payload))
    found = compare(oracle, host, held)
    assert [d.what for d in found] == [f"holds the configuration of {other.id!r}"]


def test_what_must_not_be_there_is_found(simple: Publisher) -> None:
    oracle = simple.oracle()
    host, held = one_host(simple)
    strangers = [h for h in simple.hosts() if f"vpc/{REGION.vpc_id(3)}" not in oracle.follows[h]]
    stream, resource = held[0]
    assert [d.what for d in compare(oracle, host, [*held, held[0]])] == [
        f"held twice (stream {stream})"
    ]
    inbox = f"inbox/{oracle.groups[host]}"
    other_port = next(
        r for h in strangers if h != host for _, r in simple.held(h) if r.kind == "port"
    )
    (found,) = compare(oracle, host, [*held, (inbox, other_port)])
    assert found == Difference(host, "port", other_port.id, "unexpected")
    foreign = (f"vpc/{REGION.vpc_id(3)}", resource)
    found_by_stranger = compare(
        oracle, strangers[0], [*simple.held(strangers[0]), simple.facts(strangers[0]), foreign]
    )
    assert [(d.kind, d.id) for d in found_by_stranger] == [("stream", foreign[0])]
    assert compare(oracle, "nobody", [])[0].what == "there is no such host in the intent"


def test_subscriptions_are_compared_too(simple: Publisher) -> None:
    oracle = simple.oracle()
    host, held = one_host(simple)
    stream = f"vpc/{REGION.vpc_id(1)}"
    assert Difference(host, "subscription", stream, "missing") in compare(oracle, host, held[:-1])
    inbox, facts = copy.deepcopy(held[-1])
    section = facts.host_resources[host]
    section.subscriptions.add(stream="vpc/other", subscribe_operation=goalstate_pb2.Subscribe)
    section.subscriptions.add(stream="vpc/more", subscribe_operation=goalstate_pb2.Unsubscribe)
    assert compare(oracle, host, [*held[:-1], (inbox, facts)]) == [
        Difference(host, "subscription", "vpc/other", "unexpected")
    ]


def test_a_counting_host_is_asked_for_its_inbox_only(simple: Publisher) -> None:
    oracle = simple.oracle()
    host, held = one_host(simple)
    inbox = [(stream, r) for stream, r in held if stream.startswith("inbox/")]
    assert compare(oracle, host, inbox, counting=True) == []
    assert compare(oracle, host, inbox)
    assert compare(oracle, host, inbox[1:], counting=True)


def test_messages_are_compared_like_resources(simple: Publisher) -> None:
    oracle = simple.oracle()
    host, held = one_host(simple)
    kinds = {word: kind for kind, word in WORDS.items()}
    messages: list[tuple[str, Any]] = [held[-1]]
    for stream in dict.fromkeys(stream for stream, _ in held[:-1]):
        items = [
            Addressed("", Held(kinds[r.kind], r.id, 1, r.payload))
            for s, r in held[:-1]
            if s == stream
        ]
        messages.append((stream, goalstate_pb2.GoalStateV2.FromString(encode(items))))
    assert compare(oracle, host, messages) == []
    states = next(m.neighbor_states for _, m in messages[1:] if m.neighbor_states)
    del states[next(iter(states))]
    broken = [(s, copy.deepcopy(m)) for s, m in messages]
    for _, message in broken:
        for entry in message.neighbor_states.values():
            entry.configuration.host_ip_address = "100.64.0.99"
    assert {d.kind for d in compare(oracle, host, broken)} == {"neighbor"}


def test_fields_that_the_schema_does_not_know_are_found(simple: Publisher) -> None:
    oracle = simple.oracle()
    host, held = one_host(simple)
    stream, resource = held[0]
    unknown = resource.payload + b"\xfa\xff\x01\x01x"  # field 4095, one byte
    found = compare(oracle, host, [(stream, resource._replace(payload=unknown)), *held[1:]])
    assert [d.what for d in found] == ["has fields that are not in the schema"]


def test_the_order_of_intents_counts_and_later_ones_win() -> None:
    a, b = Publisher(), Publisher()
    for intent in (*REGION.host_intents(), *REGION.vpc_intents(2)):
        a.apply(intent)
        b.apply(intent)
    port = REGION.port(2, 0)
    targets = [h for h in a.hosts() if h != port.host_id][:2]
    for publisher, order in ((a, targets), (b, targets[::-1])):
        for target in order:
            publisher.apply(move_port(port, target))
        assert port.id in publisher.oracle().inboxes[order[-1]]["port"]
        assert port.id not in publisher.oracle().inboxes[order[0]]["port"]


def test_a_cascade_passes_through_what_is_deleted_without_one() -> None:
    publisher = Publisher()
    for intent in (*REGION.host_intents(), *REGION.vpc_intents(2)):
        publisher.apply(intent)
    dhcp = next(iter(publisher.desired.objects(ObjectKind.DHCP)))
    publisher.apply(
        Intent(
            deletes=(
                Deletion(ObjectKind.PORT, dhcp.port_id),
                Deletion(ObjectKind.VPC, REGION.vpc_id(2), True),
            )
        )
    )
    assert publisher.differences() == []
    assert not any(inbox["dhcp"] for inbox in publisher.oracle().inboxes.values())
