"""What workers tell, put together: distributions, outcomes, resources, and what was lost. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from goalstate.scale.load import control
from goalstate.scale.load.control import Usage
from goalstate.scale.load.generator import SECOND_NS, Outcome
from goalstate.scale.load.recording import Distributions, Key
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.witness import Seen, merged
from goalstate.scale.load.workload import ChangeKind


class Change(NamedTuple):
    """An accepted change of a measured phase."""

    phase: int
    intended_ns: int
    #: In the intent log.
    change: int


class Collected:
    """Of a run whose first phase begins at `start_ns`."""

    def __init__(self) -> None:
        self.start_ns = 0
        self.distributions = Distributions()
        #: By worker: by phase, kind and outcome.
        self._outcomes: dict[str, Counter[tuple[int, ChangeKind | None, Outcome]]] = {}
        #: By generator and number.
        self.accepted: dict[tuple[int, int], Change] = {}
        self._seen: dict[tuple[int, int], Seen] = {}
        #: By second, what each process has used; and bytes over the loopback device so far.
        self.resources: dict[int, dict[str, Usage]] = defaultdict(dict)
        self.loopback: dict[int, int] = {}
        #: Bytes so far, by what: when measuring began, and at its end.
        self.traffic: list[dict[str, int]] = []
        self.waiting: dict[str, int] = {}
        #: By worker: messages, bytes, gaps, resyncs, refused.
        self.fleets: dict[str, dict[str, int]] = {}
        self.lost: list[control.Lost] = []
        self.not_joined = 0
        self.refusals: list[str] = []
        self.slowest: list[tuple[str, float, int]] = []
        #: Changes that no host of any fleet has seen.
        self.unseen: list[tuple[int, int]] = []

    # --- as it comes ---

    def progress(self, said: control.Progress, role: str) -> None:
        self.distributions.add(said.second, said.histograms)
        self.waiting[said.worker] = said.waiting
        self.resources[said.second][f"{role} {said.worker}"] = said.usage
        if said.outcomes:
            self._outcomes[said.worker] = Counter(
                {(p, kind, Outcome(name)): n for p, kind, name, n in said.outcomes}
            )
        if role == "fleet":
            self.fleets[said.worker] = {
                "messages": said.messages,
                "bytes": said.bytes,
                "gaps": said.gaps,
                "resyncs": said.resyncs,
                "refused": said.refused,
            }
        generator = int(said.part)
        for number, phase, intended_ns, change in said.accepted:
            self.accepted[generator, number] = Change(phase, intended_ns, change)
        for row in said.seen:
            self._see(control.to_seen(row))

    def ended(self, said: control.Ended) -> None:
        self.lost += said.lost
        self.not_joined += said.not_joined
        self.refusals += said.refusals
        self.slowest += said.slowest
        for lost in said.lost:
            self._see(control.to_seen(lost.seen))

    def used(self, second: int, of: Mapping[str, Usage], loopback: int) -> None:
        self.resources[second].update(of)
        self.loopback[second] = loopback

    # --- at the end ---

    def finish(self) -> None:
        """All has come: put together what fleets have seen of each change."""
        values: dict[Key, list[tuple[int, int]]] = defaultdict(list)
        for at, change in self.accepted.items():
            seen = self._seen.get(at)
            if seen is None or not seen.hosts:
                self.unseen.append(at)
                continue
            for stage, when_ns in (
                (Stage.PUBLISHED, seen.published_ns),
                (Stage.FIRST_HOST, seen.first_ns),
                (Stage.LAST_HOST, 0 if seen.missing else seen.last_ns),
            ):
                if when_ns:
                    second = max(0, (when_ns - self.start_ns) // SECOND_NS)
                    latency_ns = max(0, when_ns - change.intended_ns)
                    values[Key(change.phase, stage)].append((second, latency_ns))
        for key, found in values.items():
            self.distributions.add_values(key, found)
        self.slowest.sort(key=lambda one: -one[1])

    @property
    def outcomes(self) -> Counter[tuple[int, ChangeKind | None, Outcome]]:
        return sum(self._outcomes.values(), Counter())

    def _see(self, seen: Seen) -> None:
        at = (seen.stamp.generator, seen.stamp.number)
        before = self._seen.get(at)
        self._seen[at] = merged(before, seen) if before is not None else seen
