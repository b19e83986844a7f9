"""A whole run: everything is wired here, and only here.

    plan ──▶ Faults ──kill, stop, cut──▶ parts (broker, DPMs, agent processes) and their links
    Load ──changes──▶ links ──▶ DPMs          │ inspection
      │                                       ▼
      └──▶ Ledger ◀── Waits, Judge ◀────── Witness

Laws:

1.  A run ends by itself, whatever happens, and ends every process that it started, by its id.
2.  What is judged does not depend on how fast anything is, but for the bounds within which things
    must have been mended.
3.  All that was started writes into one directory, beside the transcript; it stays after a run that
    did not hold, and where the caller named it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from goalstate.bus import brokers
from goalstate.scale.chaos.changes import Tenant, hosts, shapes
from goalstate.scale.chaos.faults import Faults
from goalstate.scale.chaos.judge import Judge
from goalstate.scale.chaos.ledger import Finding, Law, Ledger, rate
from goalstate.scale.chaos.link import Link
from goalstate.scale.chaos.load import Load
from goalstate.scale.chaos.parts import Agent, BrokerPart, Process, Publisher, continue_process
from goalstate.scale.chaos.plan import Fault, plan
from goalstate.scale.chaos.publishers import Publishers
from goalstate.scale.chaos.transcript import Transcript
from goalstate.scale.chaos.waits import Waits

#: Of the region; the topics go with the broker, which is the run's own.
REGION = "chaos"
_DPMS = ("dpm-a", "dpm-b")
#: Seconds of silence after which the other DPM takes over.
FAILOVER_AFTER_S = 3.0
#: What it takes to start a broker of each kind again, about.
_BROKER_START_S = {"apache": 25.0, "embedded": 1.0}
#: Checkpoints and snapshots small enough that a run of minutes has them.
_DPM = {
    "GOALSTATE_DPM_FAILOVER_AFTER_S": str(FAILOVER_AFTER_S),
    "GOALSTATE_DPM_CHECKPOINT_MIN_BYTES": str(64 * 1024),
    "GOALSTATE_DPM_SNAPSHOT_MIN_BYTES": str(1024 * 1024),
}
_AGENT = {"GOALSTATE_AGENT_LEASE_S": "15"}
#: How much longer than planned the faults may take, in times of the run and in seconds; and seconds
#: for what is under way after them.
_LATE, _LATE_S = 2.0, 240.0
_DECIDED_S = 120.0
#: Seconds for everything to be made before the faults begin.
BUILD_S = 300.0


class Settings(NamedTuple):
    seed: int
    seconds: float
    hosts: int
    ports: int
    #: Accepted changes per second, aimed at.
    rate: float
    broker: Literal["apache", "embedded"]
    #: Agent processes; each plays as many hosts.
    agents: int
    directory: Path


@dataclass
class Result:
    """What came of a run. Rates are of accepted changes per second."""

    settings: Settings
    findings: list[Finding]
    faults: Counter[Fault]
    #: Seconds until things were mended, by fault.
    mended: dict[Fault, list[float]]
    changes: Counter[tuple[str, str]]
    waits: Counter[str]
    accepted: int = 0
    rate: float = 0.0
    rate_served: float = 0.0
    outages: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0
    hosts_compared: int = 0
    ports: int = 0

    @property
    def held(self) -> bool:
        return not self.findings

    def count(self, law: Law) -> int:
        return sum(finding.law is law for finding in self.findings)


async def run(settings: Settings, note: Callable[[str], None]) -> Result:
    """Raises BrokerNotFound, BrokerFailed; ValueError where the figures do not fit together."""
    if settings.hosts < settings.agents:
        raise ValueError(f"{settings.agents} agent processes need at least as many hosts")
    async with AsyncExitStack() as stack:
        return await _Run(settings, note, stack).play()


class _Run:
    def __init__(
        self, settings: Settings, note: Callable[[str], None], stack: AsyncExitStack
    ) -> None:
        self._settings = settings
        self._note = note
        self._stack = stack
        # Racks of few hosts: a change of a port is read by all of its rack.
        self._group_size = max(2, min(10, settings.hosts // settings.agents))
        self._hosts = hosts(settings.hosts, self._group_size)
        self._ledger = Ledger()
        self._dpms: dict[str, Publisher] = {}
        self._agents: list[Agent] = []
        self._transcript = Transcript(settings.directory / "transcript.jsonl")
        stack.callback(self._transcript.close)

    async def play(self) -> Result:
        settings, note = self._settings, self._note
        self._transcript.write(
            "begun", **{**settings._asdict(), "directory": str(settings.directory)}
        )
        broker = await self._start_broker()
        await self._make_parts(broker)
        note("starting two DPMs and the agent processes")
        for dpm in self._dpms.values():  # one after the other: the first is active
            await dpm.start()
        await asyncio.gather(*(agent.start() for agent in self._agents))

        whole = [
            Tenant(shape, self._hosts, settings.seed)
            for shape in shapes(settings.hosts, settings.ports)
        ]
        tenants = {tenant.shape.id: tenant for tenant in whole}
        addresses = {name: dpm.client_link.address for name, dpm in self._dpms.items()}
        publishers = Publishers(addresses, whole[-1].shape.id)
        self._stack.push_async_callback(publishers.close)
        self._background(publishers.watch())
        load = Load(publishers, whole, self._ledger, rate=settings.rate, seed=settings.seed)
        judge = Judge(publishers, tenants, self._hosts, self._agents, self._ledger)
        note(f"making {len(whole)} VPCs")
        if not (await self._built(load, publishers) and await judge.converged()):
            return self._result(0.0, 0.0, None, None, None, publishers, tenants)

        group_of = {host.id: host.group for host in self._hosts}
        process_of = {host: agent for agent in self._agents for host in agent.hosts}
        waits = Waits(
            publishers, tenants, self._ledger, process_of.__getitem__, group_of, seed=settings.seed
        )
        faults = Faults(
            publishers, self._dpms, self._agents, broker, self._ledger, self._transcript
        )
        steps = plan(
            settings.seed,
            settings.seconds,
            failover_after_s=FAILOVER_AFTER_S,
            broker_start_s=_BROKER_START_S[settings.broker],
        )
        note(f"{len(steps)} faults in {settings.seconds:g} s, seed {settings.seed}")
        begun = time.monotonic()
        beside = [self._background(waits.run()), self._background(judge.watch())]
        enough = asyncio.Event()
        loading = asyncio.ensure_future(load.run(enough))
        failing = asyncio.ensure_future(faults.run(steps))
        try:
            await asyncio.sleep(settings.seconds)
            # Late faults are carried out all the same; the load goes on until then.
            await self._end(failing, _LATE * settings.seconds + _LATE_S, "the faults")
            ended = time.monotonic()
            enough.set()
            # What is under way must be decided before anything can be judged.
            decided = await self._end(loading, _DECIDED_S, "what was under way")
        finally:
            for task in (failing, loading, *beside):
                task.cancel()
            done = await asyncio.gather(failing, loading, *beside, return_exceptions=True)
        for error in done:
            if isinstance(error, Exception):
                raise error
        if not decided:
            return self._result(begun, ended, faults, waits, judge, publishers, tenants)
        note("the faults are over: comparing")
        self._transcript.write("faults over")
        await judge.judge()
        judge.processes([*self._dpms.values(), *self._agents])
        return self._result(begun, ended, faults, waits, judge, publishers, tenants)

    async def _built(self, load: Load, publishers: Publishers) -> bool:
        try:
            async with asyncio.timeout(BUILD_S):
                await load.build(self._hosts)
        except TimeoutError:
            self._ledger.find(Law.BOUND, f"the region was not made in {BUILD_S:g} s")
            return False
        return True

    async def _end(self, task: asyncio.Future[None], seconds: float, what: str) -> bool:
        """Wait for something to end within a bound. Did it?"""
        await asyncio.wait((task,), timeout=seconds)
        if not task.done():
            self._ledger.find(Law.BOUND, f"{what} did not end within {seconds:g} s more")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        return True

    def _background(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)
        return task

    # --- parts ---

    async def _start_broker(self) -> BrokerPart:
        place = self._settings.directory / "broker"
        found = await asyncio.to_thread(
            lambda: brokers.find(self._settings.broker, data_dir=place, progress=self._note)
        )
        broker = BrokerPart(found)
        self._stack.push_async_callback(broker.stop)
        self._note(f"broker: {found.describe()}")
        return broker

    async def _make_parts(self, broker: BrokerPart) -> None:
        settings, found = self._settings, broker.broker
        scheme, _, target = found.url.partition("://")

        async def link(target: str = "", *, rewrite: bool = False) -> Link:
            made = Link(target, rewrite=rewrite)
            await made.start()
            self._stack.push_async_callback(made.close)
            return made

        async def to_broker() -> tuple[Link, list[str]]:
            made = await link(target, rewrite=found.kind == "apache")
            common = ["--broker", f"{scheme}://{made.address}", "--region", REGION]
            return made, [*common, "--metrics-port", "0"]

        for name in _DPMS:
            to, common = await to_broker()
            admin = ["--admin-url", found.admin_url] if found.admin_url else []
            serve = ["dpm", "serve", *common, *admin, "--listen", "127.0.0.1:0"]
            self._dpms[name] = Publisher(
                name,
                serve,
                settings.directory,
                {**_DPM, "GOALSTATE_DPM_WRITER": name},
                to,
                client_link=await link(),
            )
        for number in range(settings.agents):
            first = number * settings.hosts // settings.agents
            last = (number + 1) * settings.hosts // settings.agents
            name = f"agent-{number}"
            to, common = await to_broker()
            play = ["agent", "run", *common, "--inspect", "127.0.0.1:0"]
            play += ["--hosts", str(last - first), "--first", str(first)]
            play += ["--group-size", str(self._group_size)]
            play += ["--state-dir", str(settings.directory / f"{name}.state")]
            names = [host.id for host in self._hosts[first:last]]
            self._agents.append(Agent(name, play, settings.directory, _AGENT, to, hosts=names))
        # All at once, and also those that are stopped.
        self._stack.push_async_callback(self._stop_all)

    async def _stop_all(self) -> None:
        processes: list[Process] = [*self._dpms.values(), *self._agents]
        for process in processes:
            with suppress(AssertionError):
                continue_process(process)
        await asyncio.gather(*(process.stop() for process in processes))

    # --- result ---

    def _result(
        self,
        begun: float,
        ended: float,
        faults: Faults | None,
        waits: Waits | None,
        judge: Judge | None,
        publishers: Publishers,
        tenants: dict[str, Tenant],
    ) -> Result:
        ledger = self._ledger
        outages = [
            (max(since, begun) - begun, min(until, ended) - begun)
            for since, until in publishers.all_outages
            if until > begun and since < ended
        ]
        overall, served = rate(ledger.accepted_at, begun, ended, publishers.all_outages)
        for finding in ledger.findings:
            self._transcript.write("finding", law=finding.law.value, what=finding.what)
        return Result(
            settings=self._settings,
            findings=ledger.findings,
            faults=faults.counts if faults else Counter(),
            mended=dict(faults.mended) if faults else {},
            changes=ledger.results,
            waits=waits.counts if waits else Counter(),
            accepted=sum(begun <= at <= ended for at in ledger.accepted_at),
            rate=overall,
            rate_served=served,
            outages=outages,
            seconds=ended - begun,
            hosts_compared=judge.hosts_compared if judge else 0,
            ports=sum(len(tenant.ports) for tenant in tenants.values()),
        )
