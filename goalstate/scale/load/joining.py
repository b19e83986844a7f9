"""Hosts that begin to follow while a run goes on, at their times, and when they have everything.

A host has everything once it has applied its inbox, and each stream that it then follows, up to
what their logs ended with when it was first asked for: at the earliest at that host's own time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from goalstate.agent.dataplanes import DataPlane
from goalstate.agent.fleet import Fleet, Host, Member
from goalstate.bus.base import Bus
from goalstate.gs import envelope as envelopes
from goalstate.gs.errors import EnvelopeError
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.topics import Topics
from goalstate.scale.load import arrivals
from goalstate.scale.load.generator import SECOND_NS, Clock, changes_share
from goalstate.scale.load.recording import Recorder
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.workload import Workload


class Joining:
    """Of one fleet process, `part` of `parts`."""

    def __init__(
        self,
        workload: Workload,
        members: Sequence[Member],
        fleet: Fleet,
        data_planes: Callable[[str], DataPlane],
        bus: Bus,
        topics: Topics,
        clock: Clock,
        recorder: Recorder,
        *,
        part: int,
        parts: int,
    ) -> None:
        """`members` are the hosts that are to join, in their order."""
        self._workload = workload
        self._members = list(reversed(members))
        self._fleet = fleet
        self._data_planes = data_planes
        self._bus = bus
        self._topics = topics
        self._clock = clock
        self._recorder = recorder
        self._part, self._parts = part, parts
        #: Hosts that have not everything yet: the phase, and when they were to join.
        self.under_way: dict[str, tuple[int, int]] = {}
        self._heads: dict[StreamId, asyncio.Future[Mark]] = {}

    async def run(self, start_ns: int) -> None:
        """Have hosts join; returns after the last phase, while some may still be on their way."""
        for place, (phase, begin_s) in enumerate(self._workload.spans()):
            share = 1 - changes_share(phase)
            if not share:
                continue
            random = Random(f"joining/{self._workload.region.seed}/{place}/{self._part}")
            begin_ns = start_ns + round(begin_s * SECOND_NS)
            for at_s in arrivals.starts(
                phase.arrival, phase.seconds, random, part=self._part, parts=self._parts
            ):
                if not self._members:
                    return
                if share < 1 and random.random() >= share:
                    continue
                due_ns = begin_ns + round(at_s * SECOND_NS)
                await self._clock.sleep_until(due_ns)
                self._join(self._members.pop(), place, due_ns)

    def moved(self, host: str) -> None:
        """A host got on. To be called by the witness."""
        if host not in self.under_way:
            return
        there = self._fleet.hosts.get(host)
        if there is None or not self._has_all(there):
            return
        phase, due_ns = self.under_way.pop(host)
        if self._workload.phases[phase].measured:
            latency_ns = max(0, self._clock.now_ns() - due_ns)
            self._recorder.record(phase, Stage.JOINED, latency_ns)

    def _join(self, member: Member, phase: int, due_ns: int) -> None:
        self.under_way[member.host] = (phase, due_ns)
        self._fleet.play(member, self._data_planes(member.host), (), ())

    def _has_all(self, host: Host) -> bool:
        """Asks for what is not known yet: the host's next step, or the answer, looks again."""
        all_there = True
        for stream in host.core.streams.values():
            head = self._heads.get(stream.id)
            if head is None:
                head = self._heads[stream.id] = asyncio.ensure_future(self._head(stream.id))
                head.add_done_callback(lambda _: self._look())
            if not head.done() or stream.watermark < head.result() or stream.reading.loading:
                all_there = False
        return all_there

    def _look(self) -> None:
        for host in list(self.under_way):
            self.moved(host)

    async def _head(self, stream: StreamId) -> Mark:
        last = await self._bus.last(self._topics.of_stream(stream))
        if last is None:
            return ORIGIN
        try:
            return envelopes.from_properties(last.properties).mark
        except EnvelopeError:
            return ORIGIN
