"""Carries a plan of faults out on the parts, and measures how long it is until things are mended.

At most one fault meets a part at a time. When the plan cannot be kept, since something takes longer
to start than was thought, what comes later comes later by as much.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from goalstate.bus.errors import BrokerFailed
from goalstate.scale.chaos.ledger import Law, Ledger
from goalstate.scale.chaos.parts import (
    Agent,
    BrokerPart,
    Part,
    Publisher,
    continue_process,
    stop_process,
)
from goalstate.scale.chaos.plan import Fault, Step
from goalstate.scale.chaos.publishers import Publishers
from goalstate.scale.chaos.transcript import Transcript

#: Seconds within which somebody must serve again.
MENDED_S = 90.0
#: Seconds that bytes are delayed on a link that is far.
_FAR_S = (0.05, 0.3)
_LOOK_S = 0.02


class Faults:
    def __init__(
        self,
        publishers: Publishers,
        dpms: dict[str, Publisher],
        agents: list[Agent],
        broker: BrokerPart,
        ledger: Ledger,
        transcript: Transcript,
    ) -> None:
        self._publishers = publishers
        self._dpms = dpms
        self._agents = agents
        self._broker = broker
        self._ledger = ledger
        self._transcript = transcript
        self._busy: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        #: How often each happened, and seconds until things were mended.
        self.counts: Counter[Fault] = Counter()
        self.mended: dict[Fault, list[float]] = defaultdict(list)

    async def run(self, steps: list[Step]) -> None:
        """All of them, in order; returns when the last is over."""
        begun = time.monotonic()
        late = 0.0
        last_end = 0.0
        under_way: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            for step in steps:
                if step.at_s >= last_end and under_way:
                    await asyncio.wait(under_way)
                now = time.monotonic() - begun
                late = max(late, now - step.at_s)
                await asyncio.sleep(max(0.0, step.at_s + late - now))
                task = group.create_task(self._carry_out(step))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                last_end = max(last_end, step.at_s + step.lasts_s)

    async def _carry_out(self, step: Step) -> None:
        async with self._part(step) as part:
            self._transcript.write(
                "fault",
                number=step.number,
                fault=step.fault.value,
                part=part.name,
                lasts_s=step.lasts_s,
            )
            self.counts[step.fault] += 1
            begun, epoch = time.monotonic(), self._publishers.epoch
            mended_s: float | None
            if step.fault in (Fault.KILL_ACTIVE, Fault.PAUSE_ACTIVE):
                # While it is away the other one takes over. It may be that one that goes on, if it
                # was stopped for no longer than the other one took.
                back = asyncio.Event()

                async def away() -> None:
                    await self._do(step, part)
                    if step.fault is Fault.PAUSE_ACTIVE:
                        back.set()

                mended_s, _ = await asyncio.gather(self._served(epoch, begun, back), away())
            else:
                await self._do(step, part)
                mended_s = time.monotonic() - begun - step.lasts_s
                if step.fault is Fault.KILL_BROKER:
                    mended_s = await self._served(0, begun + step.lasts_s)
            if mended_s is None:
                self._ledger.find(
                    Law.BOUND, f"{step.fault.value}: nobody serves after {MENDED_S:g} s"
                )
                return
            self.mended[step.fault].append(mended_s)
            self._transcript.write(
                "mended",
                number=step.number,
                fault=step.fault.value,
                part=part.name,
                seconds=round(mended_s, 3),
            )

    @asynccontextmanager
    async def _part(self, step: Step) -> AsyncIterator[Part]:
        """The part that it meets, which no other fault meets meanwhile."""
        while True:
            part = self._chosen(step)
            async with self._busy[part.name]:
                # While others had it, the other one may have become active.
                if part is self._chosen(step):
                    yield part
                    return

    def _chosen(self, step: Step) -> Part:
        fault = step.fault
        if fault in (Fault.KILL_BROKER, Fault.PAUSE_BROKER):
            return self._broker
        if fault in (
            Fault.KILL_AGENT,
            Fault.PAUSE_AGENT,
            Fault.CUT_AGENT,
            Fault.RESET_AGENT,
            Fault.DELAY_AGENT,
        ):
            return self._agents[int(step.choice * len(self._agents))]
        active = self._publishers.active or self._publishers.last
        if fault is Fault.KILL_STANDBY:
            return next(dpm for name, dpm in self._dpms.items() if name != active)
        return self._dpms[active]

    async def _do(self, step: Step, part: Part) -> None:
        fault = step.fault
        if fault in (Fault.KILL_ACTIVE, Fault.KILL_STANDBY, Fault.KILL_AGENT, Fault.KILL_BROKER):
            await part.kill()
            await asyncio.sleep(step.lasts_s)
            try:
                await part.start()
            except BrokerFailed as error:
                self._ledger.find(Law.PROCESS, f"{part.name} did not start again: {error}")
        elif fault in (Fault.PAUSE_ACTIVE, Fault.PAUSE_AGENT, Fault.PAUSE_BROKER):
            stop_process(part)
            try:
                await asyncio.sleep(step.lasts_s)
            finally:
                continue_process(part)
        else:
            await self._disturb(step, part)

    async def _disturb(self, step: Step, part: Part) -> None:
        """What happens at a link."""
        assert isinstance(part, Publisher | Agent)
        fault, link = step.fault, part.link
        if fault in (Fault.CUT_CLIENT, Fault.RESET_CLIENT):
            assert isinstance(part, Publisher)
            link = part.client_link
        if fault in (Fault.RESET_ACTIVE, Fault.RESET_AGENT, Fault.RESET_CLIENT):
            link.reset()
            return
        if fault in (Fault.DELAY_ACTIVE, Fault.DELAY_AGENT):
            least, most = _FAR_S
            link.delay_s = least + (most - least) * step.choice
        else:
            link.cut()
        try:
            await asyncio.sleep(step.lasts_s)
        finally:
            link.mend()

    async def _served(
        self, above: int, since: float, back: asyncio.Event | None = None
    ) -> float | None:
        """Seconds from then until somebody serves under a higher epoch, or, once who served is
        `back`, at all; None: not in time."""
        end = time.monotonic() + MENDED_S
        while not (
            self._publishers.active
            and (self._publishers.epoch > above or (back is not None and back.is_set()))
        ):
            if time.monotonic() > end:
                return None
            await asyncio.sleep(_LOOK_S)
        return time.monotonic() - since
