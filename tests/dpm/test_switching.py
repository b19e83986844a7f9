"""A VPC that goes to another channel under load: nothing is lost, nothing is applied twice.

The region is in one thread (`scale/world.py`): what happens next is drawn from a seed. Hosts lag at
random, messages of the bus are repeated and reordered, sessions are cut with all that is under way.
"""

from __future__ import annotations

from random import Random

import pytest

from goalstate.bus.memory import Faults
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.gs.errors import IntentRejected
from goalstate.gs.intent import Deletion, Intent, ObjectKind
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, vpc_stream
from goalstate.scale.world import World, WorldSettings
from tests.dpm.test_channels import ports, without
from tests.dpm.test_path_independence import HOSTS as ALL_HOSTS
from tests.dpm.test_path_independence import (
    PATHS,
    RACKS,
    SCENARIOS,
    assert_at_rest,
    content,
    network,
    port,
)

V1 = vpc_stream("v1")
PULSAR, SESSION = Channel.PULSAR, Channel.SESSION
#: The scenarios' VPCs have up to six ports: they switch in the midst of most of them.
FEW = ChannelPolicy(3, 6)
#: And these never do.
MANY = ChannelPolicy(1000, 1000)


class Watched(World):
    """Watermarks never go back."""

    def __init__(self, settings: WorldSettings) -> None:
        super().__init__(settings)
        self.watermarks: dict[tuple[object, StreamId], Mark] = {}
        self.switches = 0

    def step(self) -> bool:
        happened = super().step()
        for host in self.hosts.values():
            for id_, stream in host.core.streams.items():
                if stream.leaving:
                    self.watermarks.pop((host, id_), None)
                    continue
                before = self.watermarks.get((host, id_), ORIGIN)
                # A stream that is followed anew begins anew.
                assert stream.watermark >= before or stream.watermark == ORIGIN
                self.watermarks[host, id_] = stream.watermark
        return happened

    def go(self, intent: Intent) -> None:
        accepted = self.apply(intent)
        self.switches += sum(p.begins for p in accepted.publications) if accepted else 0

    def some_steps(self, number: int) -> None:
        for _ in range(number):
            self.step()

    def repeated(self) -> int:
        return sum(host.repeated for host in self.hosts.values())


def under_load(seed: int, settings: WorldSettings, *, late: bool = True) -> Watched:
    """Ports come and go in two VPCs, and these go to and fro; some hosts start in the midst."""
    random = Random(f"load/{seed}")
    world = Watched(settings)
    now, then = ("h0", "h1", "h2"), ("h3", "h4")
    world.add_hosts({name: RACKS[name] for name in (now if late else (*now, *then))})
    for intent in (ALL_HOSTS, network(1), network(2)):
        world.go(intent)
    for turn in range(12):
        vpc = random.choice((1, 2))
        there = [p for p in world.core.desired.ports_of_vpc(f"v{vpc}")]
        if there and random.random() < 0.45:
            gone = random.sample(sorted(there), random.randint(1, len(there)))
            world.go(Intent(deletes=tuple(Deletion(ObjectKind.PORT, id_) for id_ in gone)))
        else:
            come = tuple(
                port(
                    vpc, n, f"h{random.randrange(5)}", random.choice((f"v{vpc}-web", f"v{vpc}-db"))
                )
                for n in random.sample(range(8), random.randint(1, 6))
            )
            world.go(Intent(ports=come))
        world.some_steps(random.choice((0, 1, 4, 20)))
        if random.random() < 0.2:
            world.write_checkpoints()
        if late and turn == 6:
            world.add_hosts({name: RACKS[name] for name in then})
    world.settle()
    return world


# --- nothing lost, nothing twice ---


@pytest.mark.no_cover  # other tests trace the same code
@pytest.mark.parametrize("own_stream", [False, True], ids=["vpc-stream", "own-stream"])
@pytest.mark.parametrize("block", range(4))
def test_a_switch_under_load_loses_nothing_and_applies_nothing_twice(
    block: int, own_stream: bool
) -> None:
    switches = 0
    for seed in range(block * 12, block * 12 + 12):
        settings = WorldSettings(
            # Many small messages, often out of order, are more than a reader ever gets through.
            faults=Faults(seed=seed, duplicate=0.2, reorder=(0.2, 0.02)[seed % 2]),
            security_groups_own_stream=own_stream,
            chunk_bytes=(512 * 1024, 1)[seed % 2],
            channels=FEW,
            cuts=(0.0, 0.05, 0.3)[seed % 3],
            ring_bytes=(256 * 1024, 400, 0)[seed % 3],
        )
        world = under_load(seed, settings)
        where = f"seed {seed}"
        assert world.disagreements() == [], where
        assert world.progress().converged, where
        assert world.repeated() == 0, where
        switches += world.switches
        topics = under_load(seed, settings._replace(channels=NEVER, faults=Faults(seed=seed)))
        assert content(world) == content(topics), where
    assert switches > 30, "there is something to see"


def test_hosts_that_are_up_to_date_do_as_many_operations_as_without_a_switch() -> None:
    """Each change is waited for, so nothing can be left out, and nothing needs a checkpoint."""
    done = {}
    switching = ChannelPolicy(7, 100)
    for channels in (switching, MANY, NEVER):
        world = Watched(WorldSettings(channels=channels))
        world.add_hosts(RACKS)
        for intent in (ALL_HOSTS, network(1), ports(1, 4, "v1-web")):
            world.go(intent)
        world.settle()
        for _ in range(3):
            for n in range(5, 10):
                world.go(ports(n, n, "v1-web"))
                world.settle()
            for n in range(5, 10):
                world.go(without(n, n))
                world.settle()
        assert_at_rest(world)
        done[channels] = {name: host.operations for name, host in world.hosts.items()}
        assert world.switches == (6 if channels == switching else 0)
        counters = [host.core.counters for host in world.hosts.values()]
        assert sum(one.resyncs + one.gaps for one in counters) == 0
    assert done[switching] == done[MANY] == done[NEVER]


def test_a_host_that_begins_with_the_switch_gets_its_state_from_the_first_checkpoint() -> None:
    world = region()
    assert V1 not in world.hosts["h0"].core.streams
    for _ in range(3):
        world.go(ports(4, 4))  # the fourth port is one too many, and on h0
        world.settle()
        assert_at_rest(world)
        world.go(without(2, 4))
        world.go(ports(2, 3))
        world.settle()
    resyncs = {name: host.core.counters.resyncs for name, host in world.hosts.items()}
    assert resyncs == {name: 3 * (name == "h0") for name in RACKS}
    assert world.repeated() == 0


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
@pytest.mark.parametrize("channels", [FEW, MANY], ids=["switching", "sessions"])
def test_every_path_ends_in_the_same_state_on_every_channel(
    scenario: str, path: object, channels: ChannelPolicy
) -> None:
    assert callable(path)
    expected = content(run(SCENARIOS[scenario](), NEVER, 0))
    for seed in range(3):
        world = run(path(SCENARIOS[scenario]()), channels, seed)
        assert_at_rest(world)
        assert world.progress().converged
        assert content(world) == expected


def run(intents: list[Intent], channels: ChannelPolicy, seed: int) -> World:
    world = World(WorldSettings(faults=Faults(seed=seed), channels=channels, cuts=0.1 * seed))
    world.add_hosts(RACKS)
    for intent in intents:
        world.apply(intent)
        for _ in range(len(intent.ports) + 3):
            world.step()
    world.settle()
    return world


# --- who is how far ---


def region(channels: ChannelPolicy = FEW) -> Watched:
    """All hosts follow a VPC of three ports, and have it."""
    world = Watched(WorldSettings(channels=channels))
    world.add_hosts(RACKS)
    for intent in (ALL_HOSTS, network(1), ports(1, 3)):
        world.go(intent)
    world.settle()
    return world


def test_a_wait_for_the_change_that_switched_ends_when_all_follow_the_new_channel() -> None:
    world = region()
    (name,) = {n for n, h in world.hosts.items() if V1 in h.core.streams} - {"h2", "h3"}
    link = world.links[RACKS[name]]
    link.cut()
    accepted = world.apply(ports(4, 4))
    assert accepted is not None
    world.settle()
    assert world.core.channel_of_vpc("v1") is PULSAR
    assert world.progress().converged, "on Pulsar no session is needed"
    world.go(without(2, 4))
    world.settle()
    assert world.core.channel_of_vpc("v1") is SESSION
    assert not world.progress().converged
    link.connect(world.sessions)
    world.settle()
    assert world.progress().converged


def test_a_host_that_joins_while_nothing_of_the_switch_is_on_the_topic_yet_gets_there() -> None:
    world = region()
    world.go(ports(4, 4))
    world.settle()
    world.go(without(2, 4))
    world.settle()
    world.remove_host("h1")
    accepted = world.core.accept(world.core.plan(ports(4, 7)), world.now_ns)
    on_inboxes = [p for p in accepted.publications if p.envelope.stream != V1]
    world.publish(on_inboxes)
    world.add_hosts({"h1": RACKS["h1"]})
    world.broker.run_until_idle()
    world.publish(p for p in accepted.publications if p.envelope.stream == V1)
    world.settle()
    assert_at_rest(world)
    assert world.progress().converged


def test_a_host_that_was_away_over_both_switches_gets_there() -> None:
    world = region()
    link = world.links["r1"]
    link.cut()
    world.broker.partition(names={"h2", "h3"})
    for intent in (ports(4, 6), ports(7, 7), without(2, 7), ports(8, 8), without(8, 8)):
        world.go(intent)
        world.settle()
    world.broker.heal()
    link.connect(world.sessions)
    world.settle()
    assert world.disagreements() == []
    assert world.progress().converged
    assert world.repeated() == 0


def test_a_new_publisher_tells_who_is_up_to_date_nothing() -> None:
    world = region()
    messages = {name: link.follows.messages for name, link in world.links.items()}
    world.restart()
    world.settle()
    assert {name: link.follows.messages for name, link in world.links.items()} == messages
    world.go(Intent(ports=(port(1, 1, "h1", name="renamed"), port(1, 3, "h2"))))
    world.settle()
    assert_at_rest(world)


def test_who_lags_when_a_new_publisher_begins_gets_the_state_as_it_is_by_then() -> None:
    world = region(MANY)
    link = world.links["r1"]
    link.cut()
    for n in range(10):
        world.go(Intent(ports=(port(1, 4, "h0", ip=30 + n),)))
    world.restart()
    before = {name: world.hosts[name].operations for name in ("h2", "h3")}
    world.settle()
    assert_at_rest(world)
    for name, operations in before.items():
        assert world.hosts[name].operations == operations + 1, "what came between is left out"


def test_hosts_of_a_process_share_what_comes() -> None:
    world = region(MANY)
    link = world.links["r1"]
    followers = [n for n in ("h2", "h3") if V1 in world.hosts[n].core.streams]
    assert followers == ["h2", "h3"]
    assert len(link.follows) == 1
    before = link.follows.messages
    world.go(ports(4, 4))
    world.settle()
    assert link.follows.messages == before + 1


def test_an_intent_that_is_refused_switches_nothing() -> None:
    world = region()
    bad = ports(4, 9).ports[0]._replace(host_id="nowhere")
    with pytest.raises(IntentRejected):
        world.apply(Intent(ports=(*ports(5, 9).ports, bad)))
    assert world.core.channel_of_vpc("v1") is SESSION
