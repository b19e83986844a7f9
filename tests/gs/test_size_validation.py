"""What would not fit into a message is refused before anything of it is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goalstate.bus.base import MAX_PAYLOAD
from goalstate.gs.derivation import Derivation
from goalstate.gs.desired import Desired
from goalstate.gs.intent import (
    AddressPair,
    Destination,
    Dhcp,
    Gateway,
    Intent,
    Port,
    Route,
    Rule,
)
from goalstate.gs.size_validation import MAX_RESOURCE_BYTES
from goalstate.gs.topics import Topics
from tests.gs.region import (
    GATEWAYS,
    GROUPS,
    PORTS,
    ROUTERS,
    SUBNETS,
    VPCS,
    apply,
    region,
    snapshot,
    violations,
)

LONG = "x" * MAX_RESOURCE_BYTES


def many(count: int, make: Any) -> tuple[Any, ...]:
    return tuple(make(n) for n in range(count))


TOO_LARGE = {
    "vpcs[0]": Intent(vpcs=(VPCS[0]._replace(name=LONG),)),
    "subnets[0]": Intent(subnets=(SUBNETS[0]._replace(dhcp_options=(("a", LONG),)),)),
    "security_groups[0]": Intent(
        security_groups=(GROUPS[0]._replace(rules=many(10_000, lambda n: Rule(f"rule-{n}"))),)
    ),
    "routers[0]": Intent(
        routers=(
            ROUTERS[0]._replace(
                subnet_ids=("s1", "s2"),
                routes=many(15_000, lambda n: Route(f"r{n}", "0.0.0.0/0", "10.0.1.1")),
            ),
        )
    ),
    "gateways[0]": Intent(
        gateways=(
            GATEWAYS[0]._replace(
                destinations=many(20_000, lambda n: Destination("100.64.9.9", "02:00:00:00:0b:01"))
            ),
        )
    ),
    "ports[0]": Intent(ports=(PORTS[0]._replace(device_owner=LONG),)),
    "dhcps[0]": Intent(dhcps=(Dhcp("d1", "p7", LONG),)),
}


@pytest.mark.parametrize("path", TOO_LARGE)
def test_what_is_too_large_is_refused_by_name_and_changes_nothing(path: str) -> None:
    desired = region()
    before = snapshot(desired)
    [violation] = violations(desired, TOO_LARGE[path])
    assert (violation.path, violation.reason) == (path, "TOO_LARGE")
    assert str(MAX_RESOURCE_BYTES) in violation.message
    assert snapshot(desired) == before


def test_text_counts_by_its_bytes() -> None:
    name = "é" * (MAX_RESOURCE_BYTES // 2)
    [violation] = violations(region(), Intent(ports=(PORTS[0]._replace(name=name),)))
    assert violation.reason == "TOO_LARGE"


def test_gateways_make_their_vpc_too_large_together() -> None:
    desired = region()
    apply(desired, Intent(gateways=many(9000, lambda n: Gateway(f"gw-{n}", "v1"))))
    more = Intent(gateways=many(2000, lambda n: Gateway(f"more-{n}", "v1")))
    [violation] = violations(desired, more)
    assert (violation.path, violation.reason) == ("gateways[1999].vpc_id", "TOO_LARGE")
    # One that is there already is none more.
    assert violations(desired, Intent(gateways=(Gateway("gw-1", "v1", 1),))) == []
    assert violations(desired, more._replace(vpcs=(), gateways=more.gateways[:5])) == []


def test_a_gateway_of_an_unknown_vpc_is_refused_for_that() -> None:
    [violation] = violations(region(), Intent(gateways=(Gateway("y2", "nowhere"),)))
    assert violation.reason == "UNKNOWN_REFERENCE"


def pairs(count: int) -> tuple[AddressPair, ...]:
    return many(count, lambda n: AddressPair(f"fd00:0:0:1:ffff:ffff:{n:x}:0/112"))


@st.composite
def large_intents(draw: st.DrawFn) -> Intent:
    """Objects whose lists and texts are long, accepted or not."""
    text = st.sampled_from(["", "n" * 5000, "é✓" * 3000, "x" * 700_000])
    count = st.sampled_from([0, 1, 70, 3000])
    group_id = "g" * 190
    rule = Rule("r" * 150, 1, 1, 0, 0, 0, "fd00:0:0:1::/64")
    return Intent(
        vpcs=(VPCS[0]._replace(name=draw(text)),),
        subnets=(SUBNETS[0]._replace(name=draw(text), dhcp_options=(("o", draw(text)),)),),
        security_groups=(
            GROUPS[0]._replace(
                id=group_id,
                name=draw(text),
                rules=many(draw(count), lambda n: rule._replace(id=f"{rule.id}{n}")),
            ),
        ),
        routers=(
            ROUTERS[0]._replace(
                subnet_ids=("s1", "s2"),
                routes=many(draw(count), lambda n: Route(f"r{n}", "fd00::/48", "fd00::1", n)),
            ),
        ),
        gateways=(
            GATEWAYS[0]._replace(
                destinations=many(
                    draw(count), lambda n: Destination("fd00::ffff:ffff:1", "02:00:00:00:0b:01")
                )
            ),
        ),
        ports=(
            PORTS[0]._replace(
                name=draw(text),
                device_id=draw(text),
                allowed_address_pairs=pairs(draw(count)),
                security_group_ids=(group_id,),
            ),
        ),
        dhcps=(Dhcp("d1", "p7", draw(text)),),
    )


@settings(max_examples=12)
@given(large_intents())
def test_whatever_is_accepted_becomes_resources_of_an_allowed_size(intent: Intent) -> None:
    desired = region()
    if violations(desired, intent):
        assert {v.reason for v in violations(desired, intent)} == {"TOO_LARGE"}
        return
    changes = apply(desired, intent)
    derivation = Derivation(desired, Topics())
    for key in derivation.touched(changes):
        derived = derivation.build(key)
        assert derived is not None
        assert derived.config.ByteSize() <= MAX_RESOURCE_BYTES


def test_what_is_allowed_fits_into_a_message_of_every_broker() -> None:
    assert 2 * MAX_RESOURCE_BYTES <= MAX_PAYLOAD


def test_a_large_port_that_is_small_enough_is_taken() -> None:
    desired: Desired = region()
    large: Port = PORTS[0]._replace(allowed_address_pairs=pairs(10_000), name="n" * 100_000)
    apply(desired, Intent(ports=(large,)))
