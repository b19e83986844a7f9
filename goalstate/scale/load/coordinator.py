"""A run: workers are gathered, told what to do, started together, and what they saw is collected.

What blocks (starting processes, building the region) is done in threads, so that workers and the
broker are heard meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from goalstate.bus.base import Bus
from goalstate.bus.connect import connect
from goalstate.process import clock_id
from goalstate.scale.load import clocks, control, system
from goalstate.scale.load.clocks import Exchange, Offset
from goalstate.scale.load.collecting import Collected
from goalstate.scale.load.control import Line
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.generator import SECOND_NS
from goalstate.scale.load.system import System
from goalstate.scale.load.workload import Workload

Note = Callable[[str], None]

#: Questions to each clock; and seconds for all of the answers.
PINGS = 16
_PING_S = 30.0
#: Seconds for workers to come, and for all of them to be ready.
WORKERS_S = 300.0
READY_S = 900.0
#: Seconds beyond its phases that a generator may take, since changes are still answered.
_ANSWERS_S = 180.0
#: Between two looks at what says nothing by itself: whether processes live.
_LOOK_S = 0.5


class RunSettings(NamedTuple):
    directory: Path
    run: str
    #: Workers that come by themselves, of those that the workload needs; the others are started.
    external: int = 0
    #: Address of a DPM that runs, and the region that it serves; empty: one is started.
    dpm: str = ""
    region: str = ""
    listen: str = "127.0.0.1:0"
    #: Seconds from the word that it begins to the first phase.
    lead_s: float = 1.0


class Clock(NamedTuple):
    """Of a worker's machine: how far it is ahead of ours, before and after the run."""

    machine: str
    same: bool
    before: Offset
    after: Offset


class Finished(NamedTuple):
    """What came of a run."""

    workload: Workload
    settings: RunSettings
    collected: Collected
    clocks: dict[str, Clock]
    roles: dict[str, str]
    broker: str
    #: What hosts lack at the end, by the DPM; empty: nothing.
    behind: str
    #: Changes that nobody saw, though they concern hosts.
    unseen: int
    began_unix_s: float
    build_s: float


#: Is told, each second, how far it is.
Watch = Callable[[int, Collected], None]


async def run(workload: Workload, settings: RunSettings, note: Note, watch: Watch) -> Finished:
    """Raises LoadError, BusError, grpc.RpcError."""
    # Before anything is started.
    control.Place.of(settings.run)
    wanted = workload.fleet.processes + workload.generators
    if settings.external > wanted:
        raise LoadError(
            f"{settings.external} workers are to come, and the workload has work for {wanted}: "
            "fleet.processes + generators"
        )
    with ExitStack() as stack:
        under_test = await asyncio.to_thread(
            lambda: System(
                settings.directory,
                note,
                broker=workload.broker,
                layout=workload.layout,
                region=settings.region or settings.run,
                dpm=settings.dpm,
                listen=settings.listen,
            )
        )
        stack.enter_context(under_test)
        bus = await connect(under_test.broker.url)
        try:
            coordinator = Coordinator(workload, settings, under_test, note, watch)
            return await coordinator.run(bus)
        finally:
            await bus.close()


class Coordinator:
    def __init__(
        self,
        workload: Workload,
        settings: RunSettings,
        under_test: System,
        note: Note,
        watch: Watch,
    ) -> None:
        self._workload = workload
        self._settings = settings
        self._system = under_test
        self._note = note
        self._watch = watch
        self._collected = Collected()
        self._hellos: dict[str, control.Hello] = {}
        self._pongs: dict[tuple[str, int], tuple[int, int]] = {}
        self._pinged = 0
        self._roles: dict[str, str] = {}
        self._ready: set[str] = set()
        self._ended: set[str] = set()
        self._failed = ""
        #: Something was heard.
        self._news = asyncio.Event()

    async def run(self, bus: Bus) -> Finished:
        settings = self._settings
        line = await Line.of_coordinator(bus, settings.run, self._heard)
        try:
            return await self._run(line)
        except BaseException as error:
            # Those that came by themselves are not to wait for ever.
            await line.say(control.Stop(failed=str(error) or type(error).__name__))
            raise
        finally:
            await line.close()

    async def _run(self, line: Line) -> Finished:
        workload, under_test = self._workload, self._system
        await asyncio.to_thread(under_test.check_empty)
        await self._gather()
        before = await self._clocks(line)
        began = time.monotonic()
        region = workload.region.region(workload.layout)
        self._note(f"making {region.hosts:,} hosts, and VPCs {workload.region.vpcs}")

        def build() -> None:
            under_test.build(region.host_intents())
            for number in range(1, workload.region.vpc_count + 1):
                under_test.build(region.vpc_intents(number))

        await asyncio.to_thread(build)
        self._assign(line, before)
        await self._until(
            lambda: len(self._ready) == len(self._roles), READY_S, "workers are ready"
        )
        self._note("waiting until all hosts have everything")
        behind = await asyncio.to_thread(under_test.converged, READY_S)
        if behind:
            raise LoadError(f"the region did not get ready: {behind}")
        build_s = time.monotonic() - began

        began_unix_s = time.time() + self._settings.lead_s
        start_ns = self._collected.start_ns = round(began_unix_s * SECOND_NS)
        await line.say(control.Start(start_ns=start_ns))
        self._note(f"phases begin; they take {workload.seconds:g} s")
        sampling = asyncio.ensure_future(self._sample(start_ns))
        try:
            bound = self._settings.lead_s + workload.seconds + _ANSWERS_S
            await self._until_ended("generator", bound)
            # At once, so that what comes after the last phase is not in it.
            self._collected.traffic.append(await asyncio.to_thread(under_test.traffic))
            await line.say(control.Stop(settle_s=workload.settle_s))
            await self._until_ended("fleet", workload.settle_s + _ANSWERS_S)
        finally:
            sampling.cancel()
        self._collected.finish()
        behind = await asyncio.to_thread(under_test.converged, workload.settle_s)
        unseen = await asyncio.to_thread(self._unseen)
        after = await self._clocks(line)
        await line.say(control.Over())
        return Finished(
            workload,
            self._settings,
            self._collected,
            {
                worker: Clock(
                    hello.machine, before[worker] is clocks.SAME, before[worker], after[worker]
                )
                for worker, hello in self._hellos.items()
                if worker in self._roles
            },
            self._roles,
            under_test.broker.describe(),
            behind,
            unseen,
            began_unix_s,
            build_s,
        )

    # --- workers ---

    def _heard(self, message: control.FromWorker) -> None:
        now = time.time_ns()
        self._news.set()
        match message:
            case control.Hello():
                self._hellos[message.worker] = message
            case control.Pong():
                self._pongs[message.worker, message.number] = (message.there_ns, now)
            case control.Ready():
                self._ready.add(message.worker)
            case control.Progress():
                if message.worker in self._roles:
                    self._collected.progress(message, self._roles[message.worker])
            case control.Ended():
                if message.worker in self._roles:
                    self._collected.ended(message)
                    self._ended.add(message.worker)
            case control.Failed():
                self._failed = f"worker {message.worker} failed: {message.error}"

    async def _gather(self) -> None:
        """Start the workers that do not come by themselves, and wait for all."""
        wanted = self._workload.fleet.processes + self._workload.generators
        own = wanted - self._settings.external
        if self._settings.external:
            self._note(
                f"waiting for {self._settings.external} workers: "
                f"goalstate load worker {self._settings.run} --broker {self._system.broker.url}"
            )
        arguments = ["load", "worker", self._settings.run, "--broker", self._system.broker.url]
        for number in range(own):
            await asyncio.to_thread(
                self._system.serve, f"worker-{number}", arguments, {}, ready=False
            )
        await self._until(lambda: len(self._hellos) >= wanted, WORKERS_S, f"{wanted} workers came")
        # By machine, so that fleets and generators are spread in the same way each time.
        workers = sorted(self._hellos, key=lambda name: (self._hellos[name].machine, name))[:wanted]
        processes = self._workload.fleet.processes
        for place, worker in enumerate(workers):
            self._roles[worker] = "fleet" if place < processes else "generator"

    def _assign(self, line: Line, offsets: dict[str, Offset]) -> None:
        parts = {"fleet": 0, "generator": 0}
        wholes = {"fleet": self._workload.fleet.processes, "generator": self._workload.generators}
        for worker, role in self._roles.items():
            line.say(
                control.Assignment(
                    worker=worker,
                    role=role,  # type: ignore[arg-type]
                    part=parts[role],
                    parts=wholes[role],
                    workload=self._workload,
                    region=self._system.region,
                    dpms=[self._system.dpm_elsewhere],
                    ahead_ns=offsets[worker].ahead_ns,
                )
            )
            parts[role] += 1

    async def _clocks(self, line: Line) -> dict[str, Offset]:
        """How far the workers' clocks are ahead of ours."""
        ours = clock_id()
        found = {}
        for worker in self._roles:
            if self._hellos[worker].clock_id == ours:
                found[worker] = clocks.SAME
                continue
            exchanges = []
            for _ in range(PINGS):
                self._pinged += 1
                number, sent_ns = self._pinged, time.time_ns()
                line.say(control.Ping(worker=worker, number=number))
                at = (worker, number)
                await self._until(
                    partial(self._pongs.__contains__, at), _PING_S, f"{worker} answers"
                )
                there_ns, came_ns = self._pongs[at]
                exchanges.append(Exchange(sent_ns, there_ns, came_ns))
            found[worker] = clocks.offset(exchanges)
        return found

    async def _until(self, true: Callable[[], bool], bound_s: float, what: str) -> None:
        """Raises LoadError where it does not come true, or something failed."""
        end = time.monotonic() + bound_s
        while not true():
            self._failed = self._failed or self._system.ended()
            if self._failed:
                raise LoadError(self._failed)
            if time.monotonic() > end:
                raise LoadError(f"not within {bound_s:g} s: {what}")
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._news.wait()

    async def _until_ended(self, role: str, bound_s: float) -> None:
        wanted = {worker for worker, of in self._roles.items() if of == role}
        await self._until(lambda: wanted <= self._ended, bound_s, f"each {role} ended")

    # --- measuring beside it ---

    async def _sample(self, start_ns: int) -> None:
        """Each second, what DPM and broker have used."""
        second = -1
        begins = next(int(begin) for phase, begin in self._workload.spans() if phase.measured)
        while True:
            await asyncio.sleep(
                max(0.0, (start_ns + (second + 1) * SECOND_NS - time.time_ns()) / SECOND_NS)
            )
            self._collected.used(second, self._system.used(), system.loopback_bytes())
            if second == begins - 1:
                self._collected.traffic.append(await asyncio.to_thread(self._system.traffic))
            if second >= 0:
                self._watch(second, self._collected)
            second += 1

    def _unseen(self) -> int:
        """How many changes that nobody saw concern hosts."""
        accepted = self._collected.accepted
        return sum(self._system.concerned(accepted[at].change) > 0 for at in self._collected.unseen)
