"""What belongs to which shard: a function of ids, for VPCs and for all that they have."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.gs import intent_codec, sharding
from goalstate.gs.desired import Desired
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.sharding import ANYWHERE, HOSTS, shard_of
from tests.dpm.test_path_independence import HOSTS as SOME_HOSTS
from tests.dpm.test_path_independence import build, network, port

K = ObjectKind
SHARDS = 5
V1, V2 = shard_of("v1", SHARDS), shard_of("v2", SHARDS)


def nowhere(kind: ObjectKind, id_: str) -> str | None:
    return None


def message(*intents: Intent) -> intent_pb2.Intent:
    """All of them as one."""
    whole = intent_pb2.Intent()
    for intent in intents:
        whole.MergeFrom(intent_codec.to_proto(intent))
    return whole


def accepted(*intents: Intent) -> Desired:
    state = Desired()
    for intent in intents:
        state.commit(state.plan(intent))
    return state


@pytest.mark.parametrize(
    ("vpc", "shard"), [("v1", 4), ("v2", 0), ("vpc-0001", 4), ("", 3), ("é✓🙂", 1)]
)
def test_the_shard_of_a_vpc_is_the_same_for_good(vpc: str, shard: int) -> None:
    assert shard_of(vpc, SHARDS) == shard


@given(st.text(), st.integers(1, 1000))
def test_there_is_a_shard_for_every_vpc(vpc: str, shards: int) -> None:
    assert 0 <= shard_of(vpc, shards) < shards
    assert shard_of(vpc, 1) == 0


def test_vpcs_are_spread_evenly() -> None:
    counts = Counter(shard_of(f"vpc-{n:04d}", 8) for n in range(8000))
    assert set(counts) == set(range(8))
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_all_that_a_vpc_has_is_of_its_shard() -> None:
    for number in (1, 2):
        intent = message(network(number), Intent(ports=(port(number, 0, "h0"),)))
        intent.dhcps.add(id="d", port_id=intent.ports[0].id)
        found = sharding.belongs(intent, SHARDS, nowhere)
        assert found == (shard_of(f"v{number}", SHARDS), [])


def test_hosts_are_of_no_shard_alone() -> None:
    assert sharding.belongs(message(SOME_HOSTS), SHARDS, nowhere) == (HOSTS, [])


def test_an_intent_over_two_shards_is_no_change_and_each_stranger_is_named() -> None:
    found = sharding.belongs(message(network(1), network(2)), SHARDS, nowhere)
    assert found.place == V1
    assert {v.reason for v in found.violations} == {"OTHER_SHARD"}
    assert found.violations[0].path == "vpcs[1]"
    assert f"VPC v2 is of shard {V2}, and VPC v1 (vpcs[0]) of shard {V1}" in (
        found.violations[0].message
    )
    assert len(found.violations) == len(list(sharding.placed(message(network(2)), SHARDS, nowhere)))
    assert sharding.belongs(message(network(1), network(2)), 1, nowhere) == (0, [])


def test_hosts_and_vpcs_are_no_one_change() -> None:
    found = sharding.belongs(message(SOME_HOSTS, network(1)), SHARDS, nowhere)
    assert {v.reason for v in found.violations} == {"HOSTS_APART"}


def test_what_goes_is_of_the_shard_where_it_is() -> None:
    state = accepted(*build())

    def find(kind: ObjectKind, id_: str) -> str | None:
        return sharding.vpc_of(state, kind, id_)

    for kind in (K.SUBNET, K.SECURITY_GROUP, K.PORT, K.DHCP):
        for object_ in state.objects(kind):
            going = message(Intent(deletes=(Deletion(kind, object_.id),)))
            vpc = sharding.vpc_of(state, kind, object_.id)
            assert vpc in ("v1", "v2")
            assert sharding.belongs(going, SHARDS, find) == (shard_of(vpc, SHARDS), [])
    going = message(Intent(deletes=(Deletion(K.VPC, "v2"),)))
    assert sharding.belongs(going, SHARDS, find) == (V2, [])
    going = message(Intent(deletes=(Deletion(K.HOST, "h0"),)))
    assert sharding.belongs(going, SHARDS, find) == (HOSTS, [])
    for kind_number in (K.PORT, 99):
        going = message(Intent(deletes=(Deletion(kind_number, "nothing"),)))
        assert sharding.belongs(going, SHARDS, find) == (ANYWHERE, [])


def test_the_parts_of_an_intent_are_all_of_it_in_an_order_in_which_they_can_stand() -> None:
    state = accepted(*build())

    def find(kind: ObjectKind, id_: str) -> str | None:
        return sharding.vpc_of(state, kind, id_)

    going = Intent(
        deletes=(Deletion(K.HOST, "h9"), Deletion(K.VPC, "v2", True), Deletion(K.PORT, "none"))
    )
    whole = message(network(2), SOME_HOSTS, network(1), going)
    parts = sharding.split(whole, SHARDS, find)
    places = [place for place, _ in parts]
    assert places == [HOSTS, *sorted({V1, V2}), HOSTS]
    assert [d.id for d in parts[-1][1].deletes] == ["h9"]
    gone = {place: [d.id for d in part.deletes] for place, part in parts[1:-1]}
    assert gone == {V1: ["none"] if V1 < V2 else [], V2: ["v2"] if V1 < V2 else ["v2", "none"]}
    for place, part in parts:
        assert sharding.belongs(part, SHARDS, find) == (place, [])
    for field in ("hosts", "vpcs", "subnets", "security_groups", "routers", "ports", "deletes"):
        taken_apart = [one.id for _, part in parts for one in getattr(part, field)]
        assert sorted(taken_apart) == sorted(one.id for one in getattr(whole, field))


def test_what_is_of_one_shard_is_one_part() -> None:
    assert sharding.split(message(network(1)), SHARDS, nowhere) == [(V1, message(network(1)))]
    assert sharding.split(message(SOME_HOSTS), SHARDS, nowhere) == [(HOSTS, message(SOME_HOSTS))]


def test_what_may_be_over_several_shards_is_known_without_asking() -> None:
    assert not sharding.is_wide(message(network(1), Intent(ports=(port(1, 0, "h0"),))))
    assert not sharding.is_wide(message(SOME_HOSTS))
    assert not sharding.is_wide(message(Intent(deletes=(Deletion(K.PORT, "p"),))))
    assert sharding.is_wide(message(network(1), network(2)))
    assert sharding.is_wide(message(SOME_HOSTS, network(1)))
    assert sharding.is_wide(message(network(1), Intent(deletes=(Deletion(K.PORT, "p"),))))
    assert sharding.is_wide(message(Intent(deletes=(Deletion(K.PORT, "p"), Deletion(K.PORT, "q")))))


def test_what_another_shard_has_is_a_rival() -> None:
    other = accepted(*build())
    given_there = next(iter(other.objects(K.PORT)))
    vpc = next(iter(other.objects(K.VPC)))
    intent = message(
        Intent(ports=(given_there._replace(vpc_id="v9"),), vpcs=(vpc._replace(id="v9"),))
    )
    found = sharding.rivals(intent, {3: other})
    assert [(v.path, v.reason) for v in found] == [
        ("ports[0].id", "DUPLICATE_ID"),
        ("vpcs[0].tunnel_id", "DUPLICATE_TUNNEL_ID"),
    ]
    assert all("(shard 3)" in v.message for v in found)
    assert sharding.rivals(message(network(1)), {3: Desired()}) == []
    assert sharding.rivals(message(SOME_HOSTS), {3: other}) == [], "hosts are of all shards"
