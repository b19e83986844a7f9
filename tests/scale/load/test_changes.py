"""Changes that are valid whatever else is under way."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from goalstate.gs.desired import Desired
from goalstate.scale.generate import Region
from goalstate.scale.load.changes import Change, ChangeSource
from goalstate.scale.load.workload import ChangeKind, Phase

K = ChangeKind
ALL = [kind for kind in ChangeKind if kind is not K.JOIN_HOST]


def phase(*kinds: ChangeKind, ports: int = 1, vpcs: str = "") -> Phase:
    return Phase.model_validate(
        {
            "name": "p",
            "seconds": 1,
            "arrival": {"shape": "constant", "rate": 1},
            "changes": dict.fromkeys(kinds, 1),
            "ports": ports,
            "vpcs": vpcs,
        }
    )


def built(region: Region, vpcs: int) -> Desired:
    desired = Desired()
    for intent in region.host_intents():
        desired.commit(desired.plan(intent))
    for number in range(1, vpcs + 1):
        for intent in region.vpc_intents(number):
            desired.commit(desired.plan(intent))
    return desired


@pytest.mark.no_cover  # other tests trace the same code
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ports", [1, 7])
def test_all_kinds_are_valid_in_whatever_order_they_are_answered(seed: int, ports: int) -> None:
    """Two generators; up to 40 changes of each are under way, and come to be in any order."""
    region = Region(hosts=9, vpcs=(60, 12, 5, 30, 8, 1))
    desired = built(region, 4)
    random = Random(seed)
    sources = [ChangeSource(region, 4, Random(f"{seed}/{n}"), part=n, parts=2) for n in (0, 1)]
    wanted = phase(*ALL, ports=ports)
    under_way: list[tuple[ChangeSource, Change]] = []
    kinds: Counter[ChangeKind] = Counter()
    for _ in range(3000):
        source = random.choice(sources)
        change = source.draw(wanted)
        if change is not None:
            under_way.append((source, change))
        if change is None or len(under_way) > 80 or random.random() < 0.3:
            if not under_way:
                continue
            source, change = under_way.pop(random.randrange(len(under_way)))
            accepted = random.random() < 0.9
            if accepted:
                changes = desired.plan(change.intent)
                assert changes, change
                desired.commit(changes)
                kinds[change.kind] += 1
            source.done(change, accepted=accepted)
    assert set(kinds) == set(ALL)
    assert min(kinds.values()) >= 3, kinds


def test_what_one_change_touches_no_other_touches_until_it_is_answered() -> None:
    region = Region(hosts=3, vpcs=(10,))
    source = ChangeSource(region, 1, Random(1))
    drawn = []
    while (change := source.draw(phase(K.MOVE_PORTS, K.DELETE_PORTS))) is not None:
        drawn.append(change)
    assert sorted(index for change in drawn for index in change.ports) == list(range(10))
    source.done(drawn[0], accepted=False)
    again = source.draw(phase(K.DELETE_PORTS))
    assert again is not None and again.ports == drawn[0].ports


def test_a_vpc_is_chosen_by_its_ports_or_as_the_phase_says() -> None:
    region = Region(hosts=3, vpcs=(900, 100, 500))
    source = ChangeSource(region, 3, Random(1))
    drawn: Counter[int] = Counter()
    for _ in range(1500):
        change = source.draw(phase(K.MOVE_PORTS, vpcs="1-2"))
        assert change is not None
        source.done(change, accepted=True)
        drawn[change.vpc] += 1
    assert set(drawn) == {1, 2}
    assert drawn[1] / 1500 == pytest.approx(0.9, abs=0.03)


def test_a_moved_port_is_where_it_was_moved_to_when_it_changes_again() -> None:
    region = Region(hosts=50, vpcs=(1,))
    source = ChangeSource(region, 1, Random(1))
    moved = source.draw(phase(K.MOVE_PORTS))
    assert moved is not None
    source.done(moved, accepted=True)
    leaves = source.draw(phase(K.LEAVE_GROUP, K.JOIN_GROUP))
    assert leaves is not None
    assert leaves.intent.ports[0].host_id == moved.intent.ports[0].host_id
    source.done(leaves, accepted=True)
    # Deleted and made again, it is as the region makes it.
    for kind in (K.DELETE_PORTS, K.CREATE_PORTS):
        while True:
            change = source.draw(phase(kind))
            assert change is not None
            source.done(change, accepted=True)
            if kind is K.DELETE_PORTS or change.ports == (0,):
                break
    assert change is not None and change.intent.ports == (region.port(1, 0),)


def test_a_seed_gives_the_same_changes_again() -> None:
    region = Region(hosts=9, vpcs=(60, 12))

    def drawn(seed: int) -> list[Change | None]:
        source = ChangeSource(region, 2, Random(seed))
        return [source.draw(phase(K.CREATE_PORTS, K.MOVE_PORTS)) for _ in range(30)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
