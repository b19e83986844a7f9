"""What an accepted intent does to the desired state, and what one can ask of it."""

from __future__ import annotations

import pytest

from goalstate.gs.addresses import prefix
from goalstate.gs.desired import Desired
from goalstate.gs.errors import StalePlan
from goalstate.gs.intent import (
    AddressPair,
    Deletion,
    Dhcp,
    FixedIp,
    Intent,
    ObjectKind,
    Port,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from tests.gs.region import (
    BASE,
    GROUPS,
    HOSTS,
    PORTS,
    SUBNETS,
    VPCS,
    apply,
    contents,
    port,
    region,
    snapshot,
    violations,
)

K = ObjectKind


def test_questions_are_answered_from_the_objects() -> None:
    d = region()
    assert d.get(K.PORT, "p7") == PORTS[0]
    assert d.get(K.PORT, "nobody") is None
    assert sorted(d.ports_of_host("h1")) == ["p10", "p7"]
    assert sorted(d.ports_of_vpc("v1")) == ["p10", "p7", "p8", "p9"]
    assert sorted(d.ports_of_group("g1")) == ["p10", "p7", "p8"]
    assert d.hosts_of_vpc("v1") == {"h1": 2, "h2": 1}
    assert d.hosts_of_group("g1") == {"h1": 2, "h2": 1}
    assert list(d.subnets_of_vpc("v1")) == ["s1", "s2", "s6"]
    assert list(d.groups_of_vpc("v1")) == ["g1", "g2"]
    assert list(d.routers_of_vpc("v1")) == list(d.routers_of_subnet("s1")) == ["x1"]
    assert list(d.gateways_of_vpc("v1")) == ["y1"]
    assert list(d.dhcps_of_port("p7")) == ["d1"]
    assert d.addresses_of_subnet("s1") == {"10.0.1.7": "p7", "10.0.1.8": "p8"}
    assert list(d.objects(K.HOST)) == list(HOSTS)
    assert d.counts()[K.PORT] == 5


def test_questions_about_what_is_not_there_have_empty_answers() -> None:
    d = Desired()
    for empty in (
        d.ports_of_host("x"),
        d.ports_of_vpc("x"),
        d.ports_of_group("x"),
        d.hosts_of_vpc("x"),
        d.hosts_of_group("x"),
        d.subnets_of_vpc("x"),
        d.groups_of_vpc("x"),
        d.routers_of_vpc("x"),
        d.gateways_of_vpc("x"),
        d.routers_of_subnet("x"),
        d.dhcps_of_port("x"),
        d.addresses_of_subnet("x"),
        d.macs_of_vpc("x"),
        d.tunnel_users(1),
        d.objects(K.PORT),
        list(d.users(K.SECURITY_GROUP, "x")),
    ):
        assert len(empty) == 0


def test_an_equal_object_is_no_change() -> None:
    d = region()
    assert len(d.plan(BASE)) == 0
    changed = BASE._replace(ports=(*PORTS[1:], PORTS[0]._replace(name="new")))
    assert [(c.kind, c.before, c.after) for c in d.plan(changed)] == [
        (K.PORT, PORTS[0], PORTS[0]._replace(name="new"))
    ]


def test_changes_come_in_the_order_of_kinds_and_deletions_last_in_reverse() -> None:
    d = region()
    added = [(c.kind, c.before is None) for c in Desired().plan(BASE)]
    assert added == sorted(added)
    gone = [c.kind for c in d.plan(Intent(deletes=(Deletion(K.VPC, "v1", True),)))]
    assert gone == sorted(gone, reverse=True)
    both = Intent(ports=(port(20),), deletes=(Deletion(K.PORT, "p9"),))
    assert [(c.before is None, c.after is None) for c in d.plan(both)] == [
        (True, False),
        (False, True),
    ]


def test_addresses_are_kept_in_one_form() -> None:
    d = region()
    apply(
        d,
        Intent(
            ports=(
                port(
                    20,
                    mac_address="02-00-00-02-00-AA",
                    fixed_ips=(FixedIp("s6", "FD00:0:0:1:0:0:0:20"),),
                    allowed_address_pairs=(
                        AddressPair("FD00::1:0/112", "02:00:00:00:00:AB"),
                        AddressPair("10.9.9.9"),
                    ),
                ),
            )
        ),
    )
    kept = d.get(K.PORT, "p20")
    assert kept.mac_address == "02:00:00:02:00:aa"
    assert kept.fixed_ips == (FixedIp("s6", "fd00:0:0:1::20"),)
    assert kept.allowed_address_pairs == (
        AddressPair("fd00::1:0/112", "02:00:00:00:00:ab"),
        AddressPair("10.9.9.9"),
    )


def test_two_ports_may_swap_addresses() -> None:
    d = region()
    a, b = PORTS[0], PORTS[1]
    swapped = Intent(
        ports=(
            a._replace(fixed_ips=b.fixed_ips, mac_address=b.mac_address),
            b._replace(fixed_ips=a.fixed_ips, mac_address=a.mac_address),
        )
    )
    apply(d, swapped)
    assert d.addresses_of_subnet("s1") == {"10.0.1.7": "p8", "10.0.1.8": "p7"}
    assert d.macs_of_vpc("v1")[a.mac_address] == "p8"


def test_subnets_may_swap_their_blocks_together_with_their_ports() -> None:
    d = region()
    apply(d, Intent(deletes=(Deletion(K.ROUTER, "x1"),)))
    s1, s2 = SUBNETS[0], SUBNETS[1]
    intent = Intent(
        subnets=(
            s1._replace(cidr=s2.cidr, gateway_ip="10.0.2.1"),
            s2._replace(cidr=s1.cidr),
        ),
        ports=(
            PORTS[0]._replace(fixed_ips=(FixedIp("s1", "10.0.2.7"),)),
            PORTS[1]._replace(fixed_ips=(FixedIp("s1", "10.0.2.8"),)),
            PORTS[3]._replace(fixed_ips=(FixedIp("s2", "10.0.1.10"),)),
        ),
    )
    apply(d, intent)
    assert list(d.subnets_overlapping("v1", prefix("10.0.1.0/25"))) == ["s2"]


def test_a_new_port_may_take_what_a_deleted_one_gives_up() -> None:
    d = region()
    apply(
        d,
        Intent(
            ports=(PORTS[1]._replace(id="p30"),),
            deletes=(Deletion(K.PORT, "p8"),),
        ),
    )
    assert d.addresses_of_subnet("s1")["10.0.1.8"] == "p30"
    assert d.hosts_of_vpc("v1") == {"h1": 2, "h2": 1}


def test_moving_and_unbinding_a_port_follows_its_hosts() -> None:
    d = region()
    apply(d, Intent(ports=(PORTS[1]._replace(host_id="h3"),)))
    assert d.hosts_of_vpc("v1") == {"h1": 2, "h3": 1}
    assert d.hosts_of_group("g2") == {"h3": 1}
    apply(d, Intent(ports=(PORTS[1]._replace(host_id=""),)))
    assert d.hosts_of_vpc("v1") == {"h1": 2}
    assert list(d.ports_of_host("h3")) == []
    assert "p8" in d.ports_of_group("g2")


def test_a_cascade_takes_all_that_refers_to_it_and_what_refers_to_that() -> None:
    d = region()
    apply(d, Intent(deletes=(Deletion(K.SUBNET, "s1", True),)))
    assert d.get(K.ROUTER, "x1") is None
    assert d.get(K.PORT, "p7") is None
    assert d.get(K.DHCP, "d1") is None
    assert d.get(K.PORT, "p9") is not None
    apply(d, Intent(deletes=(Deletion(K.VPC, "v1", True), Deletion(K.VPC, "v2", True))))
    assert {k for k, count in d.counts().items() if count} == {K.HOST}


def test_a_cascade_passes_through_what_is_deleted_without_one() -> None:
    d = region()
    apply(d, Intent(deletes=(Deletion(K.PORT, "p7"), Deletion(K.VPC, "v1", True))))
    assert d.get(K.DHCP, "d1") is None
    assert list(d.dhcps_of_port("p7")) == []


def test_a_cascade_spares_what_the_intent_moves_away() -> None:
    d = region()
    moved = PORTS[0]._replace(fixed_ips=(FixedIp("s2", "10.0.2.7"),))
    apply(d, Intent(ports=(moved,), deletes=(Deletion(K.SUBNET, "s1", True),)))
    assert d.get(K.PORT, "p7") == moved
    assert d.get(K.DHCP, "d1") is not None
    assert d.get(K.PORT, "p8") is None


def test_what_is_in_use_may_go_with_its_users_or_once_they_let_go() -> None:
    d = region()
    group = GROUPS[1]._replace(rules=())
    free = tuple(PORTS[i]._replace(security_group_ids=()) for i in (0, 1, 3))
    apply(
        d, Intent(security_groups=(group,), ports=free, deletes=(Deletion(K.SECURITY_GROUP, "g1"),))
    )
    assert list(d.groups_of_vpc("v1")) == ["g2"]
    apply(
        d,
        Intent(
            deletes=(
                Deletion(K.PORT, "q1"),
                Deletion(K.SUBNET, "t1"),
                Deletion(K.SECURITY_GROUP, "k1"),
                Deletion(K.VPC, "v2"),
            )
        ),
    )
    assert d.get(K.VPC, "v2") is None


def test_groups_that_name_each_other_come_and_go_together() -> None:
    d = region()
    pair = (
        SecurityGroup("a", "v1", "", (Rule("r", remote_group_id="b"),)),
        SecurityGroup("b", "v1", "", (Rule("r", remote_group_id="a"),)),
    )
    before = contents(d)
    apply(d, Intent(security_groups=pair))
    assert violations(d, Intent(deletes=(Deletion(K.SECURITY_GROUP, "a"),)))
    apply(d, Intent(deletes=(Deletion(K.SECURITY_GROUP, "a"), Deletion(K.SECURITY_GROUP, "b"))))
    assert contents(d) == before


def test_a_group_that_only_names_itself_is_not_in_use() -> None:
    d = region()
    own = SecurityGroup("a", "v1", "", (Rule("r", remote_group_id="a"),))
    apply(d, Intent(security_groups=(own,)))
    apply(d, Intent(deletes=(Deletion(K.SECURITY_GROUP, "a"),)))
    assert d.get(K.SECURITY_GROUP, "a") is None


def test_a_host_without_ports_may_change_its_group_and_any_host_its_addresses() -> None:
    d = region()
    apply(d, Intent(hosts=(HOSTS[2]._replace(group="rack-2"),)))
    apply(d, Intent(hosts=(HOSTS[0]._replace(ip_address="100.64.1.1"),)))
    assert d.host_with_ip("100.64.1.1") == "h1"
    assert d.host_with_ip("100.64.0.1") is None


def test_a_vpc_grows_and_a_subnet_with_it() -> None:
    d = region()
    apply(d, Intent(vpcs=(VPCS[0]._replace(cidr="10.0.0.0/8"),)))
    apply(d, Intent(subnets=(SUBNETS[1]._replace(cidr="10.0.2.0/23"),)))
    assert d.get(K.SUBNET, "s2").cidr == "10.0.2.0/23"


def test_a_subnet_shrinks_as_far_as_its_ports_allow() -> None:
    d = region()
    apply(d, Intent(subnets=(SUBNETS[0]._replace(cidr="10.0.1.0/28"),)))
    assert violations(d, Intent(ports=(port(20),)))


def test_one_vpc_may_use_its_tunnel_id_for_its_subnets_too() -> None:
    d = region()
    apply(d, Intent(subnets=(Subnet("s9", "v1", cidr="10.0.9.0/24", tunnel_id=1),)))
    apply(d, Intent(vpcs=(VPCS[0]._replace(tunnel_id=50),)))
    assert dict(d.tunnel_users(1)) == {(K.SUBNET, "s9"): "v1"}
    swapped = (VPCS[0]._replace(tunnel_id=2), VPCS[1]._replace(tunnel_id=50))
    apply(d, Intent(vpcs=swapped))
    assert dict(d.tunnel_users(2)) == {(K.VPC, "v1"): "v1"}


def test_small_blocks_have_no_network_address_to_spare() -> None:
    d = region()
    apply(d, Intent(subnets=(Subnet("s9", "v1", cidr="10.0.9.0/31"),)))
    ends = [port(n, fixed_ips=(FixedIp("s9", f"10.0.9.{n - 20}"),)) for n in (20, 21)]
    apply(d, Intent(ports=ends))
    assert len(d.addresses_of_subnet("s9")) == 2


def test_a_subnet_may_change_router_within_an_intent() -> None:
    d = region()
    other = Router("x2", "v1", "", "02:00:00:00:0a:02", ("s1",))
    apply(d, Intent(routers=(other,), deletes=(Deletion(K.ROUTER, "x1"),)))
    assert list(d.routers_of_subnet("s1")) == ["x2"]


def test_a_port_may_change_its_dhcp_within_an_intent() -> None:
    d = region()
    apply(d, Intent(dhcps=(Dhcp("d2", "p7"),), deletes=(Deletion(K.DHCP, "d1"),)))
    assert list(d.dhcps_of_port("p7")) == ["d2"]


def test_a_plan_for_another_state_is_not_committed() -> None:
    d = region()
    plan = d.plan(Intent(ports=(port(20),)))
    apply(d, Intent(ports=(port(21),)))
    before = snapshot(d)
    with pytest.raises(StalePlan, match="version 1"):
        d.commit(plan)
    assert snapshot(d) == before


def test_everything_can_be_taken_away_again() -> None:
    d = region()
    everything = [Deletion(kind, object_.id, True) for kind in K for object_ in d.objects(kind)]
    apply(d, Intent(deletes=everything))
    assert contents(d) == contents(Desired())


def test_an_ipv6_vpc_and_a_double_stack_port_are_valid() -> None:
    d = region()
    apply(
        d,
        Intent(
            vpcs=(Vpc("v6", cidr="FD01::/48", tunnel_id=6),),
            subnets=(Subnet("w6", "v6", cidr="fd01:0:0:5::/64"),),
            ports=(
                port(21, fixed_ips=(FixedIp("s1", "10.0.1.21"), FixedIp("s6", "fd00:0:0:1::21"))),
                Port(
                    "w",
                    "v6",
                    mac_address="02:00:00:06:00:01",
                    fixed_ips=(FixedIp("w6", "fd01:0:0:5::"),),
                ),
            ),
        ),
    )
    assert d.get(K.VPC, "v6").cidr == "fd01::/48"
