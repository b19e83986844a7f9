"""What hosts hold after random intents, against what the oracle works out from the intents alone.

Each sequence is played in a region of its own: hosts come, go and change their group, the publisher
is succeeded by another, and the bus delivers now more, now less before the next intent comes.
A failure names the seed of its sequence: `play(seed)` is that sequence again.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from goalstate.agent.reports import applied
from goalstate.bus.memory import Faults
from goalstate.dpm.core import Accepted
from goalstate.gs import digest as digests
from goalstate.gs import intent_codec, packing
from goalstate.gs.errors import IntentRejected, Violation
from goalstate.gs.intent import FIELDS, Intent, ObjectKind
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import inbox_stream
from goalstate.scale import oracle
from goalstate.scale.random_intents import IntentSource, moves, region
from goalstate.scale.world import World, WorldSettings
from tests.dpm.reading import Readings

SEQUENCES = 200
#: Of them, how many are played by other processes too.
REPLAYED = 40
#: Random intents of a sequence, at least and at most.
LENGTH = (15, 45)
ACCEPTED = 15 * SEQUENCES
REFUSED = 8 * SEQUENCES
ROOT = Path(__file__).resolve().parents[2]


class Played(NamedTuple):
    """A sequence and what came of it."""

    seed: int
    settings: WorldSettings
    world: World
    #: Those accepted that changed anything, and what was accepted with each.
    intents: list[intent_pb2.Intent]
    accepted: list[Accepted]
    refusals: list[list[Violation]]
    #: How many agents stopped because their host went or changed its group.
    stopped: int


def play(seed: int) -> Played:
    random = Random(seed)
    settings = WorldSettings(
        faults=Faults(seed=seed),  # none, but the readers' turns are drawn from it
        security_groups_own_stream=seed % 2 == 1,
        chunk_bytes=(packing.CHUNK_BYTES, 300, 1)[seed % 3],
    )
    played = Played(seed, settings, World(settings), [], [], [], 0)
    world = played.world
    source = IntentSource(random)
    drawn = [source.intent() for _ in range(random.randint(*LENGTH))]
    stopped = 0
    for intent in [*region(), *drawn]:
        message = intent_codec.to_proto(intent)
        try:
            # As it would come out of the log.
            accepted = world.apply(intent_codec.from_proto(message))
        except IntentRejected as rejected:
            played.refusals.append(rejected.violations)
            continue
        if accepted is not None:
            played.intents.append(message)
            played.accepted.append(accepted)
        stopped += run_agents(world)
        if random.random() < 0.1:
            world.core.begin_epoch(world.core.epoch + 1)
        if random.random() < 0.3:
            world.settle()
        for _ in range(random.randrange(20)):
            world.broker.step()
    world.settle()
    return played._replace(stopped=stopped)


def run_agents(world: World) -> int:
    """Let an agent run on every host there is, in the host's group; how many had to stop."""
    groups = {host.id: host.group for host in world.core.desired.objects(ObjectKind.HOST)}
    astray = [
        name
        for name, host in world.hosts.items()
        if name not in groups or host.core.inbox != inbox_stream(groups[name])
    ]
    for name in astray:
        world.remove_host(name)
    world.add_hosts({name: group for name, group in groups.items() if name not in world.hosts})
    return len(astray)


@contextmanager
def seed_named(seed: int) -> Iterator[None]:
    """Whatever fails within names the seed."""
    try:
        yield
    except Exception as error:
        error.add_note(f"the sequence is that of seed {seed}")
        raise


@cache
def sequences() -> list[Played]:
    """For tests that are not traced for the coverage (a fixture would be, at thrice the time)."""
    played = []
    for seed in range(SEQUENCES):
        with seed_named(seed):
            played.append(play(seed))
    return played


@pytest.mark.no_cover
def test_intents_of_every_kind_are_accepted_and_refused() -> None:
    put, deleted = Counter[ObjectKind](), Counter[ObjectKind]()
    for played in sequences():
        for intent in played.intents:
            put.update({kind: len(getattr(intent, field)) for kind, field in FIELDS.items()})
            deleted.update(ObjectKind(deletion.kind) for deletion in intent.deletes)
    assert sum(len(played.intents) for played in sequences()) >= ACCEPTED
    assert sum(len(played.refusals) for played in sequences()) >= REFUSED
    assert min(put[kind] for kind in ObjectKind) >= SEQUENCES, put
    assert min(deleted[kind] for kind in ObjectKind) >= SEQUENCES // 40, deleted
    assert sum(moves(played.intents) for played in sequences()) >= 2 * SEQUENCES
    assert sum(played.stopped for played in sequences()) >= SEQUENCES // 4


@pytest.mark.no_cover
def test_every_host_applies_what_follows_from_the_intents() -> None:
    for played in sequences():
        expected = oracle.expected(
            played.intents, security_groups_own_stream=played.settings.security_groups_own_stream
        )
        with seed_named(played.seed):
            assert set(expected.groups) == set(played.world.hosts)
            for host in played.world.hosts:
                assert oracle.compare(expected, host, held(played.world, host)) == []


def held(world: World, name: str) -> Iterator[tuple[str, goalstate_pb2.GoalStateV2]]:
    """All that a host has applied, by stream."""
    host = world.hosts[name].core
    for stream in host.streams.values():
        message = packing.encode(applied(host, stream))
        yield str(stream.id), goalstate_pb2.GoalStateV2.FromString(message)


@pytest.mark.no_cover
def test_every_data_plane_holds_what_its_host_says_it_applied() -> None:
    for played in sequences():
        for name, host in played.world.hosts.items():
            said = {
                (kind, id_): resource
                for stream in host.core.streams.values()
                for kind in stream.kinds
                if kind is not Kind.SUBSCRIPTION
                for id_, resource in stream.applied(kind).items()
            }
            with seed_named(played.seed):
                assert host.programmed == said, name


@pytest.mark.no_cover
def test_hosts_and_publisher_agree_and_the_publisher_knows_it() -> None:
    for played in sequences():
        progress = played.world.progress()
        with seed_named(played.seed):
            assert played.world.disagreements() == []
            assert progress.stragglers == []
            assert progress.converged


@pytest.mark.no_cover
def test_every_digest_is_that_of_what_was_published() -> None:
    for played in sequences():
        core = played.world.core
        with seed_named(played.seed):
            # It works out the digests of each message anew, and compares them.
            readings = Readings(p for one in played.accepted for p in one.publications)
            for stream, head in core.streams.items():
                resources = readings.held.get(stream, {})
                assert head.digest == digests.of(resources.values()), stream
                assert head.resources == len(resources), stream
            for host in core.desired.objects(ObjectKind.HOST):
                digest = readings.host_digest(host.id, inbox_stream(host.group))
                assert core.inventory.host_digest(host.id) == digest, host


def test_an_agent_that_stopped_takes_nothing_in_any_more() -> None:
    world = World()
    for intent in region():
        world.apply(intent)
    run_agents(world)
    world.settle()
    port = next(iter(world.core.desired.objects(ObjectKind.PORT)))
    agent = world.hosts[port.host_id]
    before = dict(agent.programmed)
    world.remove_host(port.host_id)
    world.apply(Intent(ports=(port._replace(name="another"),)))
    world.settle()
    assert agent.programmed == before
    world.add_hosts({port.host_id: agent.core.inbox.id})
    world.settle()
    assert world.hosts[port.host_id].programmed != before
    assert world.progress().converged


def fingerprint(played: Played) -> str:
    """The seed, and a hash of all that was published, is to be waited for, and was refused."""
    hashed = hashlib.sha256()
    for accepted in played.accepted:
        hashed.update(repr(accepted.publications).encode())
        for stream, mark, hosts, _ in accepted.requirements:
            hashed.update(repr((stream, mark, hosts and sorted(hosts))).encode())
    hashed.update(repr(played.refusals).encode())
    return f"{played.seed} {hashed.hexdigest()}"


def print_fingerprints() -> None:
    for seed in range(REPLAYED):
        print(fingerprint(play(seed)))


@pytest.mark.no_cover
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_publishes_the_same_byte_for_byte(hash_seed: str) -> None:
    # The order of a set, and the hash of a text, are others there: nothing may follow from them.
    replay = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tests.scale.test_differential import print_fingerprints; print_fingerprints()",
        ],
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (replay.returncode, replay.stderr) == (0, "")
    assert replay.stdout.splitlines() == [fingerprint(one) for one in sequences()[:REPLAYED]]
