"""A made-up region is the same each time, valid, and as large as was asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from goalstate.gs.desired import Desired
from goalstate.gs.intent import Intent, ObjectKind
from goalstate.gs.naming import simulated_host
from goalstate.scale.generate import (
    ALCOR_MIX,
    Region,
    delete_vpc,
    join_group,
    move_port,
    parse_mix,
    revoke_rule,
)

SMALL = Region(hosts=7, vpcs=(130, 12, 3, 1), seed=5)


def applied(region: Region, piece: int = 10_000) -> Desired:
    desired = Desired()
    for intent in region.intents(piece):
        desired.commit(desired.plan(intent))
    return desired


def test_a_mix_says_how_many_ports_each_vpc_has() -> None:
    assert parse_mix("2x3, 1x100000") == (3, 3, 100_000)
    assert (len(parse_mix(ALCOR_MIX)), sum(parse_mix(ALCOR_MIX))) == (100, 10_000)


@pytest.mark.parametrize("text", ["", "5", "5x", "x5", "5x5,", "-1x5", "0x5", "5x0", "axb", "²x1"])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"both numbers|expected as"):
        parse_mix(text)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("uuids", [False, True])
def test_a_region_is_valid_and_complete(seed: int, uuids: bool) -> None:
    region = Region(hosts=200, vpcs=parse_mix(ALCOR_MIX), seed=seed, uuids=uuids)
    desired = applied(region)
    counts = desired.counts()
    assert counts[ObjectKind.HOST] == 200
    assert counts[ObjectKind.VPC] == 100
    assert counts[ObjectKind.PORT] == 10_000
    assert counts[ObjectKind.SECURITY_GROUP] == 300
    assert 30 <= counts[ObjectKind.ROUTER] <= 70
    assert 15 <= counts[ObjectKind.GATEWAY] <= 45
    assert 1_800 <= counts[ObjectKind.DHCP] <= 2_200
    assert 50 <= sum(bool(p.allowed_address_pairs) for p in desired.objects(ObjectKind.PORT)) <= 150
    sizes = sorted(len(desired.ports_of_vpc(vpc.id)) for vpc in desired.objects(ObjectKind.VPC))
    assert sizes == [10] * 50 + [100] * 45 + [1000] * 5
    spread = [len(desired.ports_of_host(host.id)) for host in desired.objects(ObjectKind.HOST)]
    assert min(spread) >= 20
    assert max(spread) <= 90


def test_hosts_are_the_simulated_ones() -> None:
    for index, host in enumerate(applied(SMALL).objects(ObjectKind.HOST)):
        simulated = simulated_host(index)
        assert (host.id, host.group) == (simulated.id, simulated.group)
        assert (host.ip_address, host.mac_address) == (simulated.ip_address, simulated.mac_address)


def test_pieces_make_the_same_region() -> None:
    pieces = list(SMALL.intents(piece=50))
    assert [len(intent.hosts) for intent in pieces] == [7, 0, 0, 0, 0, 0, 0]
    assert [len(intent.ports) for intent in pieces] == [0, 50, 50, 30, 12, 3, 1]
    assert [bool(intent.vpcs) for intent in pieces] == [False, True, False, False, True, True, True]
    whole, cut = applied(SMALL), applied(SMALL, piece=50)
    for kind in ObjectKind:
        assert whole.table(kind) == cut.table(kind)


def test_the_seed_decides_and_nothing_else() -> None:
    assert list(SMALL.intents()) == list(SMALL.intents())
    other = Region(hosts=7, vpcs=SMALL.vpcs, seed=6)
    assert list(other.intents()) != list(SMALL.intents())
    # A VPC does not depend on the others.
    alone = Region(hosts=7, vpcs=(130,), seed=5)
    assert list(alone.vpc_intents(1)) == list(SMALL.vpc_intents(1))


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_every_process_makes_the_same_region(hash_seed: str) -> None:
    program = (
        "from goalstate.scale.generate import Region; "
        "print(hash(0), repr(list(Region(7, (130, 12, 3, 1), 5).intents())))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{hash(0)} {list(SMALL.intents())!r}\n"


def test_uuids_look_like_uuids_and_differ() -> None:
    region = Region(hosts=2, vpcs=(30, 30), uuids=True)
    ids = [p.id for intent in region.intents() for p in intent.ports]
    ids += [v.id for intent in region.intents() for v in intent.vpcs]
    assert len(set(ids)) == len(ids)
    assert all(
        re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f-]{16}", i) for i in ids
    )


def test_there_is_room_for_more_ports() -> None:
    for number, ports in enumerate(SMALL.vpcs, 1):
        desired = applied(SMALL)
        more = [SMALL.port(number, index) for index in range(ports, ports + max(ports // 4, 4))]
        desired.commit(desired.plan(Intent(ports=more)))
        with pytest.raises(ValueError, match="no room"):
            SMALL.port(number, 100_000)


def test_a_region_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one host"):
        Region(hosts=0, vpcs=(1,))
    with pytest.raises(ValueError, match="does not fit"):
        Region(hosts=1, vpcs=(1, 16_000_000))
    assert Region(hosts=1, vpcs=(1_000_000,)).port(1, 999_999).fixed_ips


def test_shares_of_nothing_and_of_all() -> None:
    none = Region(2, (5, 5), router_share=0, gateway_share=0, dhcp_share=0, pair_share=0)
    counts = applied(none).counts()
    assert Counter(counts)[ObjectKind.ROUTER] == counts[ObjectKind.DHCP] == 0
    everything = Region(2, (5, 5), router_share=1, gateway_share=1, dhcp_share=1, pair_share=1)
    counts = applied(everything).counts()
    assert (counts[ObjectKind.ROUTER], counts[ObjectKind.GATEWAY]) == (2, 2)
    assert counts[ObjectKind.DHCP] == 10


def test_the_changes_of_a_demo_are_accepted() -> None:
    desired = applied(SMALL)
    port = SMALL.port(1, 0)
    target = next(h.id for h in desired.objects(ObjectKind.HOST) if h.id != port.host_id)
    group = desired.get(ObjectKind.SECURITY_GROUP, SMALL.group_id(1, "web"))
    desired.commit(desired.plan(move_port(port, target)))
    assert desired.get(ObjectKind.PORT, port.id).host_id == target
    desired.commit(desired.plan(revoke_rule(group, f"{group.id}-http")))
    assert desired.get(ObjectKind.SECURITY_GROUP, group.id).rules == ()
    with pytest.raises(ValueError, match="no rule"):
        revoke_rule(group, "x")
    outsider = next(
        p for i in range(130) if group.id not in (p := SMALL.port(1, i)).security_group_ids
    )
    desired.commit(desired.plan(join_group(outsider, group.id)))
    assert outsider.id in desired.ports_of_group(group.id)
    desired.commit(desired.plan(delete_vpc(SMALL.vpc_id(1))))
    assert desired.counts()[ObjectKind.PORT] == 16
