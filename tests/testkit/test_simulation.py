"""The simulator of faults as a fixture: what it counts, and what it says of a broken law."""

from __future__ import annotations

from typing import Any

import pytest

from goalstate.agent.core import HostCore
from goalstate.agent.stream import Place, Reading
from goalstate.scale.simulate.run import Types
from goalstate.testkit import LawBroken, Simulation


def test_runs_in_which_no_law_is_broken_are_counted(goalstate_simulation: Simulation) -> None:
    assert goalstate_simulation(seed=3000, runs=3)["messages delivered"] > 0


def test_a_broken_law_comes_with_a_short_transcript_and_how_to_repeat_it(
    goalstate_simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reading.place

    def wrong(self: Reading, envelope: Any) -> Place:
        found = right(self, envelope)
        return Place.NEXT if found is Place.GAP else found

    monkeypatch.setattr(Reading, "place", wrong)
    with pytest.raises(LawBroken) as broken:
        goalstate_simulation(seed=3000, runs=300, tries=5)
    seed = broken.value.result.plan.seed
    first, *_, violation, again = str(broken.value).splitlines()
    assert first.startswith(f"seed {seed} breaks a law: ")
    assert "VIOLATION" in violation
    assert again.startswith(f"again: goalstate simulate-faults --seed {seed}")


def test_a_core_of_ones_own_is_played(goalstate_simulation: Simulation) -> None:
    made = []

    class Counted(HostCore):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            made.append(self.host)

    goalstate_simulation(seed=3000, runs=1, types=Types(host_core=Counted))
    assert made
