"""The walk of a packet through what two hosts hold."""

from __future__ import annotations

from typing import Any

import pytest

from goalstate.cli.held import Held
from goalstate.cli.reachability import (
    Departure,
    End,
    Finding,
    Packet,
    Step,
    Verdict,
    arrive,
    choose_ends,
    leave,
    verdict,
)
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.resources import Kind
from tests.cli.region import HOST_IPS, PORTS, VPC, held, inbox_state, rule, vpc_state

GROUP = resources_pb2.SecurityGroupConfiguration


def end(port: str) -> End:
    return End(port, PORTS[port][1], PORTS[port][2])


def packet(source: str, destination: str, protocol: str = "tcp", dport: int = 443) -> Packet:
    return Packet(VPC, end(source), end(destination), protocol, dport)


WEB_TO_WEB = packet("web-1", "web-2")
WEB_TO_DB = packet("web-1", "db-1", "tcp", 5432)


def walk(what: Packet, source: Held, destination: Held) -> list[Step]:
    departure = leave(what, source)
    if departure.local:
        return [*departure.steps, *arrive(what, departure, source)]
    if not departure.host_ip:
        return departure.steps
    return [*departure.steps, *arrive(what, departure, destination)]


def failures(steps: list[Step]) -> list[tuple[str, str, Finding]]:
    return [(s.host, s.resource, s.finding) for s in steps if s.finding is not Finding.OK]


def without(states: str, id_: str) -> Any:
    state = vpc_state()
    del getattr(state, states)[id_]
    return state


def test_a_packet_within_a_subnet_is_delivered() -> None:
    steps = walk(WEB_TO_WEB, held("host-a"), held("host-c"))
    assert verdict(steps) is Verdict.DELIVERED
    assert {step.host for step in steps} == {"host-a", "host-c"}


def test_a_packet_through_a_router_is_delivered_to_a_member_rule() -> None:
    steps = walk(WEB_TO_DB, held("host-a"), held("host-b"))
    assert verdict(steps) is Verdict.DELIVERED
    assert [s.text for s in steps if s.resource == "router/r1"] == [
        "joins subnet/front and subnet/back"
    ]


def test_a_packet_leaves_towards_the_host_that_the_neighbor_entry_names() -> None:
    departure = leave(WEB_TO_DB, held("host-a"))
    assert departure[1:] == (HOST_IPS["host-b"], False, 77, PORTS["db-1"][3])


def test_two_ports_of_one_host_need_no_neighbor_entry_to_reach_each_other() -> None:
    inbox = inbox_state("host-a")
    inbox.MergeFrom(inbox_state("host-c"))
    state = without("neighbor_states", "web-2")
    steps = walk(WEB_TO_WEB, held("host-a", state, inbox), held("host-c"))
    assert verdict(steps) is Verdict.DELIVERED
    assert {step.host for step in steps} == {"host-a"}


@pytest.mark.parametrize(
    ("states", "id_", "expected"),
    [
        ("neighbor_states", "db-1", "neighbor/db-1"),
        ("subnet_states", "front", "subnet/front"),
        ("subnet_states", "back", "subnet/back"),
        ("vpc_states", VPC, "vpc/vpc-1"),
        ("security_group_states", "web", "security_group/web"),
        ("router_states", "r1", "router/?"),
    ],
)
def test_what_the_source_host_lacks_is_named(states: str, id_: str, expected: str) -> None:
    steps = walk(WEB_TO_DB, held("host-a", without(states, id_)), held("host-b"))
    assert failures(steps) == [("host-a", expected, Finding.MISSING)]
    assert verdict(steps) is Verdict.NOT_DELIVERED


@pytest.mark.parametrize(
    ("states", "id_", "expected"),
    [
        ("subnet_states", "back", "subnet/back"),
        ("vpc_states", VPC, "vpc/vpc-1"),
        ("security_group_states", "db", "security_group/db"),
        ("neighbor_states", "web-1", "neighbor/web-1"),
    ],
)
def test_what_the_destination_host_lacks_is_named(states: str, id_: str, expected: str) -> None:
    steps = walk(WEB_TO_DB, held("host-a"), held("host-b", without(states, id_)))
    assert failures(steps) == [("host-b", expected, Finding.MISSING)]


def test_everything_that_is_missing_is_named_at_once() -> None:
    state = without("neighbor_states", "db-1")
    del state.security_group_states["web"]
    steps = walk(WEB_TO_DB, held("host-a", state), held("host-b"))
    assert {resource for _, resource, _ in failures(steps)} == {
        "security_group/web",
        "neighbor/db-1",
    }


@pytest.mark.parametrize(("source", "destination"), [("host-a", "host-c"), ("host-c", "host-a")])
def test_a_port_that_is_not_applied_is_named_at_its_end(source: str, destination: str) -> None:
    ends = {"host-a": "web-1", "host-c": "web-2"}
    what = packet(ends[source], ends[destination])
    nothing = inbox_state("host-x")
    lost = walk(what, held(source, inbox=nothing), held(destination))
    assert failures(lost) == [(source, f"port/{ends[source]}", Finding.MISSING)]
    lost = walk(what, held(source), held(destination, inbox=nothing))
    assert failures(lost) == [(destination, f"port/{ends[destination]}", Finding.MISSING)]


def test_the_reason_that_the_host_gives_for_a_missing_resource_is_told() -> None:
    there = held("host-c", inbox=inbox_state("host-x"))
    there.exceptions[Kind.PORT, "web-2"] = "pending: waits for subnet/front"
    steps = walk(WEB_TO_WEB, held("host-a"), there)
    assert [s.text for s in steps if s.finding is Finding.MISSING] == [
        "is not applied (pending: waits for subnet/front)"
    ]


def test_a_stale_neighbor_entry_sends_the_packet_to_a_host_without_the_port() -> None:
    state = vpc_state()
    state.neighbor_states["web-2"].configuration.host_ip_address = HOST_IPS["host-b"]
    departure = leave(WEB_TO_WEB, held("host-a", state))
    assert departure.host_ip == HOST_IPS["host-b"]
    steps = arrive(WEB_TO_WEB, departure, held("host-b"))
    assert failures(steps) == [("host-b", "port/web-2", Finding.MISSING)]


def test_a_neighbor_entry_without_a_host_leads_nowhere() -> None:
    state = vpc_state()
    state.neighbor_states["web-2"].configuration.host_ip_address = ""
    departure = leave(WEB_TO_WEB, held("host-a", state))
    assert departure.host_ip == ""
    assert failures(departure.steps) == [("host-a", "neighbor/web-2", Finding.WRONG)]


def test_an_address_that_belongs_to_another_neighbor_is_wrong() -> None:
    state = without("neighbor_states", "web-2")
    other = state.neighbor_states["old"].configuration
    other.id, other.vpc_id = "old", VPC
    other.fixed_ips.add(subnet_id="front", ip_address=PORTS["web-2"][2])
    steps = leave(WEB_TO_WEB, held("host-a", state)).steps
    assert failures(steps) == [("host-a", "neighbor/web-2", Finding.WRONG)]
    assert "neighbor/old" in steps[-1].text


def test_a_neighbor_entry_with_an_older_address_is_wrong() -> None:
    state = vpc_state()
    state.neighbor_states["web-2"].configuration.fixed_ips[0].ip_address = "10.0.1.99"
    steps = leave(WEB_TO_WEB, held("host-a", state)).steps
    assert failures(steps) == [("host-a", "neighbor/web-2", Finding.WRONG)]


def test_a_mac_address_that_the_port_no_longer_has_is_wrong() -> None:
    state = vpc_state()
    state.neighbor_states["web-2"].configuration.mac_address = "02:00:00:00:99:99"
    steps = walk(WEB_TO_WEB, held("host-a", state), held("host-c"))
    assert failures(steps) == [("host-c", "port/web-2", Finding.WRONG)]


def test_two_hosts_with_different_tunnel_ids_of_a_subnet_do_not_reach_each_other() -> None:
    state = vpc_state()
    state.subnet_states["front"].configuration.tunnel_id = 78
    steps = walk(WEB_TO_WEB, held("host-a"), held("host-c", state))
    assert failures(steps) == [("host-c", "subnet/front", Finding.WRONG)]


def test_a_port_that_is_switched_off_stops_the_packet_at_either_end() -> None:
    for host, port in (("host-a", "web-1"), ("host-c", "web-2")):
        inbox = inbox_state(host)
        inbox.port_states[port].configuration.admin_state_up = False
        hosts = {"host-a": held("host-a"), "host-c": held("host-c")}
        hosts[host] = held(host, inbox=inbox)
        steps = walk(WEB_TO_WEB, hosts["host-a"], hosts["host-c"])
        assert failures(steps) == [(host, f"port/{port}", Finding.DENIED)]


def test_a_port_may_send_only_from_addresses_that_it_has() -> None:
    forged = WEB_TO_WEB._replace(source=End("web-1", "front", "10.0.1.200"))
    steps = leave(forged, held("host-a")).steps
    assert ("host-a", "port/web-1", Finding.WRONG) in failures(steps)
    inbox = inbox_state("host-a")
    inbox.port_states["web-1"].configuration.allow_address_pairs.add(ip_address="10.0.1.192/26")
    assert failures(leave(forged, held("host-a", inbox=inbox)).steps) == []


def test_an_allowed_address_is_reached_by_its_own_mac_address() -> None:
    state, inbox = vpc_state(), inbox_state("host-c")
    for config in (
        state.neighbor_states["web-2"].configuration,
        inbox.port_states["web-2"].configuration,
    ):
        config.allow_address_pairs.add(ip_address="10.0.1.50", mac_address="02:00:00:00:00:50")
    what = WEB_TO_WEB._replace(destination=End("web-2", "front", "10.0.1.50"))
    departure = leave(what, held("host-a", state))
    assert departure.mac_address == "02:00:00:00:00:50"
    assert failures(arrive(what, departure, held("host-c", inbox=inbox))) == []


# --- rules ---


def test_traffic_that_no_egress_rule_allows_is_denied_at_the_source() -> None:
    steps = walk(packet("web-1", "web-2", "udp", 53), held("host-a"), held("host-c"))
    assert failures(steps)[0] == ("host-a", "security_group/web", Finding.DENIED)


def test_traffic_that_no_ingress_rule_allows_is_denied_at_the_destination() -> None:
    steps = walk(packet("web-1", "web-2", "tcp", 22), held("host-a"), held("host-c"))
    assert failures(steps) == [("host-c", "security_group/web", Finding.DENIED)]
    assert "no ingress rule" in steps[-1].text
    assert "tcp 22 from 10.0.1.10" in steps[-1].text


def test_a_group_without_egress_rules_lets_nothing_out() -> None:
    steps = walk(packet("db-1", "web-1"), held("host-b"), held("host-a"))
    assert failures(steps) == [("host-b", "security_group/db", Finding.DENIED)]


def test_a_port_without_groups_is_unfiltered() -> None:
    inbox = inbox_state("host-c")
    del inbox.port_states["web-2"].configuration.security_group_ids[:]
    steps = walk(packet("web-1", "web-2", "tcp", 22), held("host-a"), held("host-c", inbox=inbox))
    assert verdict(steps) is Verdict.DELIVERED


def test_one_allowing_group_is_enough_although_another_is_missing() -> None:
    inbox = inbox_state("host-c")
    inbox.port_states["web-2"].configuration.security_group_ids.add(id="absent")
    steps = walk(WEB_TO_WEB, held("host-a"), held("host-c", inbox=inbox))
    assert verdict(steps) is Verdict.DELIVERED


def test_who_is_no_member_of_the_remote_group_is_denied() -> None:
    state = vpc_state()
    del state.neighbor_states["web-1"].configuration.security_group_ids[:]
    steps = walk(WEB_TO_DB, held("host-a"), held("host-b", state))
    assert failures(steps) == [("host-b", "neighbor/web-1", Finding.DENIED)]
    assert "is not one" in steps[-1].text


def with_rule(rule_: Any) -> Held:
    state = vpc_state()
    rules = state.security_group_states["web"].configuration.security_group_rules
    del rules[:]
    rules.append(rule_)
    return held("host-c", state)


@pytest.mark.parametrize(
    ("rule_", "protocol", "dport", "allowed"),
    [
        (rule("r", GROUP.INGRESS, resources_pb2.ICMP), "icmp", 0, True),
        (rule("r", GROUP.INGRESS, resources_pb2.ICMP, port_range_min=8), "icmp", 0, True),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP), "icmp", 0, False),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP), "tcp", 65535, True),
        (rule("r", GROUP.EGRESS, resources_pb2.TCP), "tcp", 443, False),
        (rule("r", GROUP.INGRESS, resources_pb2.UDP), "tcp", 443, False),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP, ethertype=1), "tcp", 443, False),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP, port_range_min=443), "tcp", 443, True),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP, port_range_min=443), "tcp", 444, False),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP, port_range_max=100), "tcp", 101, False),
        (rule("r", GROUP.INGRESS, resources_pb2.TCP, port_range_max=100), "tcp", 100, True),
        (
            rule("r", GROUP.INGRESS, resources_pb2.TCP, remote_ip_prefix="10.0.1.10/32"),
            "tcp",
            1,
            True,
        ),
        (
            rule("r", GROUP.INGRESS, resources_pb2.TCP, remote_ip_prefix="10.0.9.0/24"),
            "tcp",
            1,
            False,
        ),
        (
            rule("r", GROUP.INGRESS, resources_pb2.TCP, remote_ip_prefix="no prefix"),
            "tcp",
            1,
            False,
        ),
    ],
)
def test_a_rule_allows_what_it_names_and_nothing_else(
    rule_: Any, protocol: str, dport: int, allowed: bool
) -> None:
    what = packet("web-1", "web-2", protocol, dport)
    steps = arrive(what, leave(what, held("host-a")), with_rule(rule_))
    assert (failures(steps) == []) is allowed


# --- routes ---


def with_routes(*routes: tuple[str, str, int]) -> Held:
    state = vpc_state()
    table = state.router_states["r1"].configuration.subnet_routing_tables[0]
    for destination, next_hop, priority in routes:
        table.routing_rules.add(destination=destination, next_hop_ip=next_hop, priority=priority)
    return held("host-a", state)


def test_a_longer_route_takes_the_packet_elsewhere() -> None:
    steps = leave(WEB_TO_DB, with_routes(("10.0.2.10/32", "10.0.1.1", 0))).steps
    assert failures(steps) == [("host-a", "router/r1", Finding.WRONG)]
    assert "10.0.1.1" in steps[-1].text


def test_a_route_as_long_as_the_joined_subnet_or_shorter_changes_nothing() -> None:
    source = with_routes(("0.0.0.0/0", "10.0.1.1", 0), ("10.0.2.0/24", "10.0.1.1", 0))
    assert failures(leave(WEB_TO_DB, source).steps) == []


def test_of_equal_routes_the_smallest_priority_number_is_taken() -> None:
    routes = (("10.0.2.0/25", "10.0.1.2", 9), ("10.0.2.0/25", "10.0.1.3", 1))
    for order in (routes, routes[::-1]):
        assert "10.0.1.3" in leave(WEB_TO_DB, with_routes(*order)).steps[-1].text


def test_a_router_that_does_not_join_the_destination_is_named() -> None:
    state = vpc_state()
    del state.router_states["r1"].configuration.subnet_routing_tables[1:]
    steps = leave(WEB_TO_DB, held("host-a", state)).steps
    assert failures(steps) == [("host-a", "router/r1", Finding.MISSING)]


def test_without_the_destination_subnet_joined_a_default_route_is_followed() -> None:
    state = vpc_state()
    router = state.router_states["r1"].configuration
    del router.subnet_routing_tables[1:]
    router.subnet_routing_tables[0].routing_rules.add(
        destination="0.0.0.0/0", next_hop_ip="10.0.1.1"
    )
    steps = leave(WEB_TO_DB, held("host-a", state)).steps
    assert failures(steps) == [("host-a", "router/r1", Finding.WRONG)]


def test_a_subnet_whose_prefix_does_not_hold_the_destination_is_wrong() -> None:
    state = vpc_state()
    state.subnet_states["front"].configuration.cidr = "10.0.7.0/24"
    steps = leave(WEB_TO_WEB, held("host-a", state)).steps
    assert failures(steps) == [("host-a", "subnet/front", Finding.WRONG)]


# --- what a host cannot say ---


def test_a_counting_source_makes_the_verdict_unknown_not_negative() -> None:
    steps = walk(WEB_TO_WEB, held("host-a", counting=True), held("host-c"))
    assert verdict(steps) is Verdict.UNKNOWN
    assert {s.resource for s in steps if s.finding is Finding.UNKNOWN} == {
        "vpc/vpc-1",
        "subnet/front",
        "security_group/web",
        "neighbor/web-2",
    }


def test_a_counting_host_does_know_its_ports() -> None:
    steps = leave(WEB_TO_DB, held("host-a", inbox=inbox_state("host-x"), counting=True)).steps
    assert ("host-a", "port/web-1", Finding.MISSING) in failures(steps)
    assert verdict(steps) is Verdict.NOT_DELIVERED


def test_a_router_that_a_counting_host_may_have_is_unknown() -> None:
    source = held("host-a", counting=True)
    steps = leave(WEB_TO_DB, source).steps
    assert verdict(steps) is Verdict.UNKNOWN


def test_the_verdict_follows_from_the_findings() -> None:
    def of(*findings: Finding) -> Verdict:
        return verdict([Step("h", "r", finding, "") for finding in findings])

    assert of(Finding.OK, Finding.OK) is Verdict.DELIVERED
    assert of(Finding.OK, Finding.UNKNOWN) is Verdict.UNKNOWN
    assert of(Finding.UNKNOWN, Finding.MISSING) is Verdict.NOT_DELIVERED
    assert of(Finding.DENIED) is Verdict.NOT_DELIVERED
    assert of(Finding.WRONG) is Verdict.NOT_DELIVERED


# --- which addresses ---


def test_addresses_in_a_common_subnet_come_first() -> None:
    ends = choose_ends(
        ("a", [("s1", "10.0.1.1"), ("s2", "10.0.2.1")]),
        ("b", [("s2", "10.0.2.2"), ("s1", "10.0.1.2")]),
    )
    assert ends == (End("a", "s1", "10.0.1.1"), End("b", "s1", "10.0.1.2"))


def test_addresses_are_of_one_ip_version() -> None:
    both = [("s1", "10.0.1.1"), ("s6", "fd00::1")]
    assert choose_ends(("a", both), ("b", [("t6", "fd01::2")])) == (
        End("a", "s6", "fd00::1"),
        End("b", "t6", "fd01::2"),
    )
    assert choose_ends(("a", both), ("b", both), 6) == (
        End("a", "s6", "fd00::1"),
        End("b", "s6", "fd00::1"),
    )
    assert choose_ends(("a", [("s1", "10.0.1.1")]), ("b", [("s6", "fd00::1")])) is None


def test_ipv6_packets_meet_ipv6_rules_only() -> None:
    state = vpc_state()
    rules = state.security_group_states["web"].configuration.security_group_rules
    del rules[:]
    rules.append(rule("six", GROUP.INGRESS, resources_pb2.TCP, ethertype=resources_pb2.IPV6))
    state.subnet_states["front"].configuration.cidr = "fd00::/64"
    inbox = inbox_state("host-c")
    inbox.port_states["web-2"].configuration.fixed_ips[0].ip_address = "fd00::2"
    what = Packet(VPC, End("web-1", "front", "fd00::1"), End("web-2", "front", "fd00::2"), "tcp", 1)
    departure = Departure([], HOST_IPS["host-c"], False, 77, PORTS["web-2"][3])
    assert failures(arrive(what, departure, held("host-c", state, inbox))) == []
    assert failures(arrive(what, departure, held("host-c", inbox=inbox))) == [
        ("host-c", "security_group/web", Finding.DENIED)
    ]
