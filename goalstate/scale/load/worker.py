"""A worker of a run: says that it is there, is assigned a part, plays it, and tells what it saw.

hello ─▶ (pings) ─▶ assignment ─▶ ready ─▶ start ─▶ progress… ─▶ stop ─▶ ended
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import psutil
import structlog
from pydantic import BaseModel

from goalstate.agent.__main__ import data_planes_of, make_fleets
from goalstate.agent.config import AgentConfig
from goalstate.agent.fleet import Fleet, Member, counts
from goalstate.bus.base import Bus
from goalstate.gs.naming import simulated_host
from goalstate.gs.streams import StreamKind
from goalstate.gs.topics import Topics
from goalstate.process import clock_id
from goalstate.scale.load import control
from goalstate.scale.load.changes import ChangeSource
from goalstate.scale.load.control import Assignment, Line, Lost
from goalstate.scale.load.dpm_target import DpmTarget
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.generator import SECOND_NS, Generator, Outcome, Target
from goalstate.scale.load.joining import Joining
from goalstate.scale.load.recording import Recorder
from goalstate.scale.load.stamps import Stamps
from goalstate.scale.load.system import used
from goalstate.scale.load.witness import Witness
from goalstate.scale.load.workload import Workload

log = structlog.get_logger()

#: Seconds for the coordinator to be there, and between two looks at what is waited for.
FOUND_S = 600.0
_LOOK_S = 0.02
#: Hosts named as the slowest.
_SLOWEST = 20


class RealClock:
    """This machine's clock, made the coordinator's."""

    def __init__(self, ahead_ns: int = 0) -> None:
        self._ahead_ns = ahead_ns

    def now_ns(self) -> int:
        return time.time_ns() - self._ahead_ns

    async def sleep_until(self, when_ns: int) -> None:
        late = when_ns - self.now_ns()
        if late > 0:
            await asyncio.sleep(late / SECOND_NS)


async def work(bus: Bus, run: str) -> None:
    """Take part in a run until it is over. Raises LoadError, BusError."""
    await Worker(run).work(bus)


class Worker:
    def __init__(self, run: str, name: str = "") -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._run = run
        self._assigned: asyncio.Future[Assignment] = asyncio.Future()
        self._started: asyncio.Future[int] = asyncio.Future()
        self._stopped: asyncio.Future[float] = asyncio.Future()
        self._over: asyncio.Future[None] = asyncio.Future()
        self._line: Line | None = None
        self._process = psutil.Process()

    async def work(self, bus: Bus) -> None:
        self._line = await Line.of_worker(bus, self._run, self._heard)
        try:
            hello = control.Hello(
                worker=self.name,
                clock_id=clock_id(),
                machine=socket.gethostname(),
                pid=os.getpid(),
            )
            await self._line.say(hello)
            async with asyncio.timeout(FOUND_S):
                assignment = await self._assigned
            log.info("assigned", role=assignment.role, part=assignment.part, run=self._run)
            if assignment.role == "generator":
                await self._generate(assignment)
            else:
                await self._play(bus, assignment)
            # Its clock is asked for once more.
            async with asyncio.timeout(FOUND_S):
                await self._over
        except TimeoutError:
            raise LoadError(f"nobody coordinates run {self._run}") from None
        except LoadError:
            raise
        except Exception as error:
            await self._line.say(control.Failed(worker=self.name, error=repr(error)))
            raise
        finally:
            await self._line.close()

    def _heard(self, message: control.FromCoordinator) -> None:
        match message:
            case control.Ping(worker=self.name, number=number):
                assert self._line is not None
                pong = control.Pong(worker=self.name, number=number, there_ns=time.time_ns())
                self._line.say(pong)
            case Assignment(worker=self.name):
                _settle(self._assigned, message)
            case control.Start(start_ns=start_ns):
                _settle(self._started, start_ns)
            case control.Over():
                _settle(self._over, None)
            case control.Stop(settle_s=settle_s, failed=failed):
                if failed:
                    error = LoadError(f"the run was given up: {failed}")
                    for future in (self._assigned, self._started, self._stopped, self._over):
                        _fail(future, error)
                else:
                    _settle(self._stopped, settle_s)

    # --- generators ---

    async def _generate(self, assigned: Assignment) -> None:
        workload, clock, recorder = assigned.workload, RealClock(assigned.ahead_ns), Recorder()
        target = DpmTarget(assigned.dpms, Stamps(self._run), workload.callers)
        generator = make_generator(assigned, target, clock, recorder)
        try:
            await self._say(control.Ready(worker=self.name))
            start_ns = await self._started

            def progress(second: int) -> control.Progress:
                sent, generator.sent = generator.sent, []
                return control.Progress(
                    worker=self.name,
                    part=assigned.part,
                    second=second,
                    histograms=recorder.take(),
                    outcomes=_outcomes(generator.outcomes),
                    accepted=[
                        (
                            one.stamp.number,
                            one.phase,
                            one.stamp.intended_ns,
                            one.answer.change,
                        )
                        for one in sent
                        if one.answer.outcome is Outcome.ACCEPTED
                    ],
                    waiting=generator.waiting,
                    usage=used(self._process),
                )

            await self._telling(generator.run(start_ns), clock, start_ns, progress)
            await self._say(control.Ended(worker=self.name, refusals=target.refusals))
        finally:
            await target.close()

    # --- fleets ---

    async def _play(self, bus: Bus, assigned: Assignment) -> None:
        workload, clock, recorder = assigned.workload, RealClock(assigned.ahead_ns), Recorder()
        witness = Witness(Stamps(self._run), recorder, ahead_ns=assigned.ahead_ns)
        config = agent_config(assigned)
        topics = Topics(
            f"persistent://goalstate/{assigned.region}",
            config.report_shards,
            shards=config.shards,
        )
        members, joining = members_of(workload, assigned.part, assigned.parts)
        fleets = make_fleets(config, topics, bus, members, witness=witness)
        try:
            await asyncio.gather(*(fleet.start() for fleet in fleets))
            await self._say(control.Ready(worker=self.name))
            start_ns = await self._started
            for phase, begin_s in workload.spans():
                begin_ns = start_ns + round(begin_s * SECOND_NS)
                end_ns = begin_ns + round(phase.seconds * SECOND_NS)
                witness.phases.append((begin_ns, end_ns, phase.measured))
            joins = Joining(
                workload,
                joining,
                fleets[0],
                data_planes_of(config),
                bus,
                topics,
                clock,
                recorder,
                part=assigned.part,
                parts=assigned.parts,
            )
            witness.moved = joins.moved if joining else None

            def progress(second: int) -> control.Progress:
                witness.record()
                return control.Progress(
                    worker=self.name,
                    part=assigned.part,
                    second=second,
                    histograms=recorder.take(),
                    seen=[control.from_seen(seen) for seen in witness.take()],
                    waiting=witness.under_way + len(joins.under_way),
                    usage=used(self._process),
                    **_counted(fleets),
                )

            async def until_settled() -> None:
                await joins.run(start_ns)
                settle_s = await self._stopped
                end = time.monotonic() + settle_s
                while (witness.under_way or joins.under_way) and time.monotonic() < end:
                    await asyncio.sleep(_LOOK_S)

            await self._telling(until_settled(), clock, start_ns, progress)
            lost = [
                Lost(seen=control.from_seen(seen), stream=str(stream))
                for stream, seen in witness.unsettled()
            ]
            slowest = sorted(witness.hosts.items(), key=lambda item: -item[1][0] / item[1][1])
            ended = control.Ended(
                worker=self.name,
                lost=lost[:1000],
                not_joined=len(joins.under_way),
                slowest=[
                    (host, total / count / 1e6, count)
                    for host, (total, count) in slowest[:_SLOWEST]
                ],
            )
            await self._say(ended)
        finally:
            for fleet in fleets:
                await fleet.stop()

    # --- both ---

    async def _telling(
        self,
        doing: Coroutine[Any, Any, None],
        clock: RealClock,
        start_ns: int,
        progress: Callable[[int], control.Progress],
    ) -> None:
        """Tell of each second while something is done, and of the last one when it is done."""
        task = asyncio.ensure_future(doing)
        second = 0
        try:
            while not task.done():
                await clock.sleep_until(start_ns + (second + 1) * SECOND_NS)
                said = progress(second)
                second = max(second + 1, (clock.now_ns() - start_ns) // SECOND_NS)
                self._line_of().say(said)
            await task
            await self._say(progress(second))
        finally:
            task.cancel()

    async def _say(self, message: BaseModel) -> None:
        await self._line_of().say(message)

    def _line_of(self) -> Line:
        assert self._line is not None
        return self._line


def make_generator(
    assigned: Assignment, target: Target, clock: RealClock, recorder: Recorder
) -> Generator:
    workload = assigned.workload
    part, parts = assigned.part, assigned.parts
    source = ChangeSource(
        workload.region.region(workload.layout),
        workload.region.vpc_count,
        Random(f"{workload.region.seed}/changes/{part}"),
        part=part,
        parts=parts,
    )
    return Generator(workload, source, target, clock, recorder, part=part, parts=parts)


def members_of(workload: Workload, part: int, parts: int) -> tuple[list[Member], list[Member]]:
    """The hosts that a fleet plays from the beginning, and those that join; every `parts`-th."""
    layout, fleet = workload.layout, workload.fleet
    there = workload.region.hosts - fleet.joining_hosts
    found: tuple[list[Member], list[Member]] = ([], [])
    for number in range(part, workload.region.hosts, parts):
        host = simulated_host(number, group_size=layout.group_size)
        counting = counts(number, fleet.counting_share)
        found[number >= there].append(Member(host.id, host.group, counting))
    return found


def agent_config(assigned: Assignment) -> AgentConfig:
    workload = assigned.workload
    return AgentConfig(
        broker="given://",
        region=assigned.region,
        report_shards=workload.layout.report_shards,
        shards=workload.layout.shards,
        hosts=workload.region.hosts,
        group_size=workload.layout.group_size,
        counting_share=workload.fleet.counting_share,
        decoding=workload.fleet.decoding,
        data_plane=workload.fleet.data_plane,
        dpm=tuple(assigned.dpms),
        metrics_port=None,
        inspect=None,
    )


def _outcomes(of: Counter) -> list:  # type: ignore[type-arg]
    return [(phase, kind, str(outcome), n) for (phase, kind, outcome), n in of.items()]


def _counted(fleets: list[Fleet]) -> dict[str, Any]:
    counters = fleets[0].counters
    return {
        "messages": sum(counters.messages[kind] for kind in StreamKind),
        "bytes": counters.bytes,
        "gaps": counters.gaps,
        "resyncs": counters.resyncs,
        "refused": counters.refused,
    }


def _settle(future: asyncio.Future, value: object) -> None:  # type: ignore[type-arg]
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future, error: Exception) -> None:  # type: ignore[type-arg]
    if not future.done():
        future.set_exception(error)
        future.exception()
