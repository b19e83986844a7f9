"""What hosts end up with depends on the intent as it stands, not on the path that led there.

Every scenario is also run with the objects of each intent reversed, split into intents of one
object, squashed into one intent of the final state, and with each intent applied twice; with large
and tiny messages; and over many seeds of a bus that loses, repeats and reorders messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from goalstate.bus.memory import Faults
from goalstate.gs.intent import (
    FIELDS,
    AddressPair,
    Deletion,
    Destination,
    Dhcp,
    FixedIp,
    Gateway,
    GatewayType,
    Host,
    Intent,
    ObjectKind,
    Port,
    Route,
    Router,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from goalstate.gs.resources import Kind, configuration
from goalstate.scale.world import World, WorldSettings

SEEDS = 1000
RACKS = {"h0": "r0", "h1": "r0", "h2": "r1", "h3": "r1", "h4": "r2"}


def host(number: int) -> Host:
    return Host(
        f"h{number}", f"100.64.0.{number + 1}", f"02:00:00:00:00:{number:02x}", RACKS[f"h{number}"]
    )


def port(vpc: int, number: int, on: str, *groups: str, ip: int = 0, name: str = "") -> Port:
    return Port(
        id=f"v{vpc}-p{number}",
        vpc_id=f"v{vpc}",
        name=name,
        mac_address=f"02:01:00:00:{vpc:02x}:{number:02x}",
        host_id=on,
        fixed_ips=(FixedIp(f"v{vpc}-s1", f"10.{vpc}.1.{ip or number + 10}"),),
        security_group_ids=groups,
    )


def network(vpc: int) -> Intent:
    v = f"v{vpc}"
    return Intent(
        vpcs=(Vpc(v, f"tenant {vpc}", "project", f"10.{vpc}.0.0/16", 100 + vpc),),
        subnets=(
            Subnet(f"{v}-s1", v, "one", f"10.{vpc}.1.0/24", f"10.{vpc}.1.1", dhcp_enable=True),
            Subnet(f"{v}-s2", v, "two", f"10.{vpc}.2.0/24"),
        ),
        security_groups=(
            SecurityGroup(
                f"{v}-web",
                v,
                "web",
                (
                    Rule("in", 1, 0, 1, 443, 443, "0.0.0.0/0"),
                    Rule("peer", 1, 0, 0, 0, 0, "", f"{v}-web"),
                    Rule("out"),
                ),
            ),
            SecurityGroup(f"{v}-db", v, "db", (Rule("in", 1, 0, 1, 5432, 5432, "", f"{v}-web"),)),
        ),
        routers=(
            Router(
                f"{v}-r",
                v,
                mac_address="02:02:00:00:00:01",
                subnet_ids=(f"{v}-s1", f"{v}-s2"),
                routes=(Route("default", "0.0.0.0/0", f"10.{vpc}.1.1", 1),),
            ),
        ),
    )


IGW = Gateway("v1-igw", "v1", GatewayType.IGW, (Destination("10.1.1.1", "02:03:00:00:00:01"),))
HOSTS = Intent(hosts=tuple(host(n) for n in range(5)))


def build() -> list[Intent]:
    return [
        HOSTS,
        network(1),
        Intent(
            ports=tuple(port(1, n, f"h{n % 4}", "v1-web") for n in range(6)),
            dhcps=(Dhcp("v1-d0", "v1-p0", "zero"),),
        ),
        network(2)._replace(ports=(port(2, 0, "h0", "v2-db"), port(2, 1, "h4", "v2-web"))),
    ]


def moves() -> list[Intent]:
    """VMs migrate: within a rack, to another one, away from and back to a host."""
    return [
        *build(),
        Intent(ports=(port(1, 0, "h1", "v1-web"),)),
        Intent(ports=(port(1, 1, "h4", "v1-web"),)),
        Intent(ports=(port(2, 1, "h0", "v2-web"),)),
        Intent(ports=(port(2, 1, "h4", "v2-web"),)),
    ]


def regrouping() -> list[Intent]:
    """Ports join and leave security groups, and a group loses a rule."""
    web = network(1).security_groups[0]
    return [
        *build(),
        Intent(ports=(port(1, 2, "h2", "v1-web", "v1-db"), port(1, 3, "h3"))),
        Intent(security_groups=(web._replace(rules=web.rules[1:]),)),
        Intent(ports=(port(2, 0, "h0", "v2-web"),)),
    ]


def renumbering() -> list[Intent]:
    """Two ports swap their addresses, a host gets others, a subnet and a VPC change."""
    vpc = network(1).vpcs[0]
    return [
        *build(),
        Intent(ports=(port(1, 4, "h0", "v1-web", ip=15), port(1, 5, "h1", "v1-web", ip=14))),
        Intent(hosts=(host(2)._replace(ip_address="100.64.9.9"),)),
        Intent(subnets=(network(1).subnets[1]._replace(dns=("10.1.0.2",)),)),
        Intent(vpcs=(vpc._replace(name="renamed", tunnel_id=777),)),
        Intent(gateways=(IGW,)),
        Intent(
            ports=(
                port(1, 0, "h0", "v1-web", name="named")._replace(
                    allowed_address_pairs=(AddressPair("10.1.1.200"),)
                ),
            )
        ),
    ]


def removal() -> list[Intent]:
    """Ports, a DHCP, a group and a whole VPC go; one comes back under its old id."""
    return [
        *build(),
        Intent(deletes=(Deletion(ObjectKind.DHCP, "v1-d0"),)),
        Intent(deletes=tuple(Deletion(ObjectKind.PORT, f"v1-p{n}") for n in (0, 1))),
        Intent(deletes=(Deletion(ObjectKind.SECURITY_GROUP, "v1-db"),)),
        Intent(deletes=(Deletion(ObjectKind.VPC, "v2", True),)),
        Intent(ports=(port(1, 0, "h3", "v1-web"),)),
        network(2)._replace(ports=(port(2, 0, "h2", "v2-web"),)),
    ]


SCENARIOS: dict[str, Callable[[], list[Intent]]] = {
    f.__name__: f for f in (build, moves, regrouping, renumbering, removal)
}


# --- paths ---


def as_written(intents: list[Intent]) -> list[Intent]:
    return intents


def reverse(field: Any) -> Any:
    return tuple(reversed(field))


def objects_reversed(intents: list[Intent]) -> list[Intent]:
    return [Intent(*map(reverse, intent)) for intent in intents]


def split(intents: list[Intent]) -> list[Intent]:
    """One object an intent, in the order of dependency. What only holds together stays so."""

    def pieces(intent: Intent) -> Iterator[Intent]:
        for field in FIELDS.values():
            for one in getattr(intent, field):
                yield Intent(**{field: (one,)})
        for deletion in intent.deletes:
            yield Intent(deletes=(deletion,))

    def swaps(intent: Intent) -> bool:
        return {p.id for p in intent.ports} == {"v1-p4", "v1-p5"}

    return [
        piece for intent in intents for piece in ([intent] if swaps(intent) else pieces(intent))
    ]


def squashed(intents: list[Intent]) -> list[Intent]:
    world = World()
    for intent in intents:
        world.apply(intent)
    return [world.desired()]


def twice(intents: list[Intent]) -> list[Intent]:
    """Each intent again after itself; a deletion cannot be: what it deletes is gone."""
    return [i for intent in intents for i in (intent, intent._replace(deletes=())) if any(i)]


PATHS = (as_written, objects_reversed, split, squashed, twice)

Content = dict[str, dict[tuple[Kind, str], bytes]]


def content(world: World) -> Content:
    """What each host's data plane was told to hold, without the revisions: they tell the path."""
    held: Content = {}
    for name, one in world.hosts.items():
        held[name] = {}
        for key, resource in one.programmed.items():
            config = configuration(resource)
            config.ClearField("revision_number")
            held[name][key] = config.SerializeToString(deterministic=True)
    return held


def run(intents: list[Intent], settings: WorldSettings = WorldSettings()) -> World:
    world = World(settings)
    world.add_hosts(RACKS)
    for intent in intents:
        world.apply(intent)
        # Some of it happens before the next intent comes: how much is drawn from the seed too.
        for _ in range(len(intent.ports) + 3):
            world.broker.step()
    world.settle()
    return world


def assert_at_rest(world: World) -> None:
    """Hosts and publisher agree, and the publisher knows it."""
    assert world.disagreements() == []
    assert not [fault for h in world.hosts.values() for fault in h.core.exceptions()]
    world.report(full=True)
    world.broker.run_until_idle()


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, bool], Content]:
    """What each scenario ends in on an undisturbed bus, for each placement of security groups.

    Where a group has its own stream, only the hosts of its members hold it.
    """
    return {
        (name, own): content(run(scenario(), WorldSettings(security_groups_own_stream=own)))
        for name, scenario in SCENARIOS.items()
        for own in (False, True)
    }


@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("chunk_bytes", [512 * 1024, 1], ids=["packed", "one-each"])
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_path_ends_in_the_same_state(
    scenario: str,
    path: Callable[[list[Intent]], list[Intent]],
    chunk_bytes: int,
    own_stream: bool,
    expected: dict[tuple[str, bool], Content],
) -> None:
    settings = WorldSettings(chunk_bytes=chunk_bytes, security_groups_own_stream=own_stream)
    world = run(path(SCENARIOS[scenario]()), settings)
    assert_at_rest(world)
    assert world.progress().converged
    assert content(world) == expected[scenario, own_stream]


# Tracing them for the coverage would take twice as long as the runs themselves.
@pytest.mark.no_cover
@pytest.mark.parametrize("block", range(10))
def test_every_seed_of_a_bad_bus_ends_in_the_same_state(
    block: int, expected: dict[tuple[str, bool], Content]
) -> None:
    names = list(SCENARIOS)
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        name = names[seed % len(names)]
        path = PATHS[seed // len(names) % len(PATHS)]
        settings = WorldSettings(
            faults=Faults(seed=seed, duplicate=0.2, reorder=0.2),
            chunk_bytes=(512 * 1024, 400, 1)[seed % 3],
            security_groups_own_stream=seed % 2 == 1,
        )
        world = run(path(SCENARIOS[name]()), settings)
        where = f"seed {seed}, {name}, {path.__name__}"
        assert world.disagreements() == [], where
        assert content(world) == expected[name, settings.security_groups_own_stream], where


def touch(world: World) -> Intent:
    """An intent that puts something new on every stream there is."""
    desired = world.desired()
    on_each_rack = {group: name for name, group in RACKS.items()}
    return network(9)._replace(
        vpcs=(*network(9).vpcs, *(v._replace(name="touched") for v in desired.vpcs)),
        security_groups=(
            *network(9).security_groups,
            *(g._replace(name="touched") for g in desired.security_groups),
        ),
        ports=tuple(port(9, n, name) for n, name in enumerate(on_each_rack.values())),
    )


@pytest.mark.no_cover
@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_was_lost_on_the_way_is_found_and_repaired(scenario: str, own_stream: bool) -> None:
    undisturbed = run(SCENARIOS[scenario](), WorldSettings(security_groups_own_stream=own_stream))
    undisturbed.apply(touch(undisturbed))
    undisturbed.settle()
    for seed in range(20):
        world = run(
            SCENARIOS[scenario](),
            WorldSettings(
                faults=Faults(seed=seed, drop=0.2, duplicate=0.1, reorder=0.2),
                security_groups_own_stream=own_stream,
            ),
        )
        # The loss of a stream's last message shows with the next one.
        world.broker.faults = Faults(seed=seed)
        world.apply(touch(world))
        world.settle()
        assert world.broker.dropped > 0, f"seed {seed} loses nothing"
        assert world.disagreements() == [], f"seed {seed}"
        assert content(world) == content(undisturbed), f"seed {seed}"
