"""Security groups in a whole region: what membership costs on the wire, where groups go, and what
`trace` says of what hosts really hold; and that drift of a quiet stream shows at the publisher."""

from __future__ import annotations

import pytest

from goalstate.agent.reports import applied, summary
from goalstate.cli import reachability
from goalstate.cli.held import Held
from goalstate.cli.reachability import End, Packet, Verdict
from goalstate.dpm.convergence import Why
from goalstate.dpm.core import Accepted
from goalstate.gs import packing
from goalstate.gs.intent import (
    Direction,
    FixedIp,
    Host,
    Intent,
    Port,
    Protocol,
    Rule,
    SecurityGroup,
    Subnet,
    Vpc,
)
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamKind, security_group_stream, vpc_stream
from goalstate.scale.world import World, WorldSettings

HOSTS = {f"h{n}": "rack" for n in range(4)}
STREAM = vpc_stream("v")
MEMBERS_ONLY = Rule(
    "db",
    Direction.INGRESS,
    protocol=Protocol.TCP,
    port_min=5432,
    port_max=5432,
    remote_group_id="web",
)
OFFICE = Rule("office", Direction.INGRESS, remote_ip_prefix="10.0.9.0/24")
OUT = Rule("out")


def port(number: int, host: str, *groups: str, octet: int = 1) -> Port:
    return Port(
        f"p{number}",
        "v",
        mac_address=f"02:00:00:00:00:{number:02x}",
        host_id=host,
        fixed_ips=(FixedIp("s", f"10.0.{octet}.{number}"),),
        security_group_ids=groups,
    )


def region(settings: WorldSettings = WorldSettings()) -> World:
    """web-1 (h0) may talk to db (h1) as a member of its group; other (h2) may not."""
    world = World(settings)
    world.add_hosts(HOSTS)
    for intent in (
        Intent(
            hosts=tuple(
                Host(name, f"100.64.0.{n}", f"02:01:00:00:00:0{n}", "rack")
                for n, name in enumerate(HOSTS, 1)
            )
        ),
        Intent(
            vpcs=(Vpc("v", cidr="10.0.0.0/16", tunnel_id=7),),
            subnets=(Subnet("s", "v", cidr="10.0.0.0/16"),),
            security_groups=(
                SecurityGroup("web", "v", rules=(OUT,)),
                SecurityGroup("db", "v", rules=(MEMBERS_ONLY, OFFICE)),
                SecurityGroup("other", "v", rules=(OUT,)),
            ),
        ),
        Intent(
            ports=(
                port(1, "h0", "web"),
                port(2, "h1", "db"),
                port(3, "h2", "other"),
                port(4, "h3", "other", octet=9),
            )
        ),
    ):
        world.apply(intent)
    world.settle()
    assert world.progress().converged
    return world


@pytest.fixture
def world() -> World:
    return region()


def kinds(accepted: Accepted | None) -> dict[str, dict[str, int]]:
    """Stream → name of the map → how many entries a change put there."""
    assert accepted is not None
    found: dict[str, dict[str, int]] = {}
    for publication in accepted.publications:
        counts = found.setdefault(str(publication.envelope.stream), {})
        state = GoalStateV2.FromString(publication.payload)
        for resource, _ in packing.unpack(state):
            name = resource.kind.name.lower()
            counts[name] = counts.get(name, 0) + 1
    return found


# --- membership is a delta ---


def test_a_new_member_of_a_remote_group_is_one_neighbor_and_no_rule(world: World) -> None:
    accepted = world.apply(Intent(ports=(port(5, "h2", "web"),)))
    assert kinds(accepted) == {"vpc/v": {"neighbor": 1}, "inbox/rack": {"port": 1}}


def test_who_joins_or_leaves_a_group_is_one_neighbor_and_no_rule(world: World) -> None:
    for groups in (("other", "web"), ("other",)):
        accepted = world.apply(Intent(ports=(port(3, "h2", *groups),)))
        assert kinds(accepted) == {"vpc/v": {"neighbor": 1}, "inbox/rack": {"port": 1}}


def test_the_cost_of_a_member_does_not_grow_with_the_group(world: World) -> None:
    def cost(number: int) -> int:
        accepted = world.apply(Intent(ports=(port(number, "h2", "web"),)))
        assert accepted is not None
        assert len(accepted.publications) == 2
        return sum(
            len(p.payload)
            for p in accepted.publications
            if p.envelope.stream.kind is StreamKind.VPC
        )

    first = cost(10)
    world.apply(Intent(ports=tuple(port(n, "h2", "web") for n in range(11, 99))))
    assert cost(99) == first


# --- where groups go ---


def test_a_group_on_its_own_stream_goes_to_hosts_with_a_member_only() -> None:
    world = region(WorldSettings(security_groups_own_stream=True))
    db = security_group_stream("db")
    assert world.core.streams[db].followers == {"h1"}
    accepted = world.apply(Intent(security_groups=(SecurityGroup("db", "v", rules=(OFFICE,)),)))
    assert kinds(accepted) == {"sg/db": {"security_group": 1}}
    world.settle()
    assert world.progress().converged
    holders = {
        name for name, host in world.hosts.items() if (Kind.SECURITY_GROUP, "db") in host.programmed
    }
    assert holders == {"h1"}
    # A member on another host brings the group there, and the last one that leaves takes it along.
    world.apply(Intent(ports=(port(3, "h2", "db"),)))
    world.apply(Intent(ports=(port(2, "h1", "web"),)))
    world.settle()
    assert world.core.streams[db].followers == {"h2"}
    assert (Kind.SECURITY_GROUP, "db") not in world.hosts["h1"].programmed
    assert (Kind.SECURITY_GROUP, "db") in world.hosts["h2"].programmed


# --- what hosts hold decides ---


def held(world: World, host: str) -> Held:
    """As the inspection service of an agent process tells it."""
    core = world.hosts[host].core
    one = Held(summary(core))
    for stream in core.streams.values():
        for chunk in packing.chunk(applied(core, stream)):
            one.add(str(stream.id), GoalStateV2.FromString(packing.encode(chunk)))
    return one


def verdict(world: World, source: Port, destination: Port, dport: int = 5432) -> Verdict:
    begin, end = (End(p.id, "s", p.fixed_ips[0].ip_address) for p in (source, destination))
    packet = Packet("v", begin, end, "tcp", dport)
    departure = reachability.leave(packet, held(world, source.host_id))
    there = held(world, destination.host_id)
    return reachability.verdict([*departure.steps, *reachability.arrive(packet, departure, there)])


def test_trace_judges_by_the_rules_and_the_membership_that_hosts_hold(world: World) -> None:
    db = port(2, "h1", "db")
    assert verdict(world, port(1, "h0", "web"), db) is Verdict.DELIVERED
    assert verdict(world, port(1, "h0", "web"), db, 80) is Verdict.NOT_DELIVERED
    assert verdict(world, port(3, "h2", "other"), db) is Verdict.NOT_DELIVERED
    assert verdict(world, port(4, "h3", "other", octet=9), db) is Verdict.DELIVERED  # its prefix

    # Membership is in force once the hosts hold it, and not when it is accepted.
    world.apply(Intent(ports=(port(3, "h2", "other", "web"),)))
    assert verdict(world, port(3, "h2", "other"), db) is Verdict.NOT_DELIVERED
    world.settle()
    assert verdict(world, port(3, "h2", "other"), db) is Verdict.DELIVERED

    # And a rule that is taken away counts until it is taken away there.
    world.apply(Intent(security_groups=(SecurityGroup("db", "v", rules=(OFFICE,)),)))
    assert verdict(world, port(1, "h0", "web"), db) is Verdict.DELIVERED
    world.settle()
    assert verdict(world, port(1, "h0", "web"), db) is Verdict.NOT_DELIVERED


# --- drift ---


@pytest.mark.parametrize("stream", [STREAM, None])
def test_drift_of_a_quiet_stream_shows_at_the_publisher(world: World, stream: object) -> None:
    core = world.hosts["h1"].core
    live = core.streams[core.inbox if stream is None else STREAM].live
    live.digest ^= 1
    world.report(full=True)
    world.settle()
    (found,) = world.convergence.hosts["h1"].exceptions
    assert found.why is Why.DRIFT
    progress = world.progress()
    assert [(s.host, s.why) for s in progress.stragglers] == [("h1", Why.DRIFT)]
    live.digest ^= 1
    world.report(full=True)
    world.settle()
    assert world.progress().converged
