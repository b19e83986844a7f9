"""Simulated hosts: each number has one name and one address, and no two have the same."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goalstate.gs import addresses
from goalstate.gs.naming import GROUP_SIZE, simulated_host

LAST = (1 << 22) - 3
NUMBERS = st.integers(0, LAST)


@given(NUMBERS, NUMBERS)
@example(0, LAST)
def test_two_hosts_share_no_name_and_no_address(one: int, other: int) -> None:
    pairs = zip(simulated_host(one), simulated_host(other), strict=True)
    same = [a == b for a, b in pairs]
    assert [same[0], *same[2:]] == [one == other] * 3


@given(NUMBERS)
@example(0)
@example(LAST)
def test_addresses_are_of_the_shared_space_and_in_normal_form(number: int) -> None:
    host = simulated_host(number)
    assert ipaddress.ip_address(host.ip_address) in ipaddress.ip_network("100.64.0.0/10")
    assert addresses.ip(host.ip_address)[0] == host.ip_address
    assert addresses.mac(host.mac_address) == host.mac_address


@given(NUMBERS, st.integers(1, 1000))
def test_neighbors_in_number_share_a_group(number: int, size: int) -> None:
    first = number - number % size
    group = simulated_host(number, group_size=size).group
    assert simulated_host(first, group_size=size).group == group
    if first:
        assert simulated_host(first - 1, group_size=size).group != group


def test_two_fleets_differ_by_their_prefix() -> None:
    one, other = simulated_host(7, prefix="a"), simulated_host(7, prefix="b")
    assert one.id != other.id
    assert one.group != other.group


def test_names_sort_as_numbers_do_up_to_a_million() -> None:
    names = [simulated_host(n).id for n in (0, 9, 10, 99_999, 100_000, 999_999)]
    assert names == sorted(names)
    assert simulated_host(GROUP_SIZE).group != simulated_host(0).group


@pytest.mark.parametrize("number", [-1, LAST + 1])
def test_there_is_no_host_beyond_the_address_space(number: int) -> None:
    with pytest.raises(ValueError, match=str(number)):
        simulated_host(number)
