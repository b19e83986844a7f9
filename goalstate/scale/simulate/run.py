"""One run: a region in virtual time, to which its plan happens, and which has to come to rest.

    client ─▶ engines (active, standby) ─▶ wire ─▶ broker ──▶ agents ─▶ data planes
       ▲ answers, waits     ▲ clocks, crashes └ sessions ┘      │
       └── checks ◀─────────┴──────────────────────┴ cuts ──────┘ reports

Law: a run is a function of its plan and its seed. What happens next is drawn from the seed, and
nothing depends on real time or on the process that it runs in; a transcript changes nothing.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import PurePath
from random import Random
from typing import NamedTuple

from goalstate.agent.core import HostCore
from goalstate.bus.base import Message
from goalstate.bus.memory import Faults, MemoryBroker
from goalstate.dpm.convergence import HostView
from goalstate.dpm.core import Accepted
from goalstate.dpm.engine import Engine
from goalstate.gs.intent import Intent, ObjectKind
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import Resource
from goalstate.gs.streams import Channel, StreamId
from goalstate.gs.topics import Topics
from goalstate.scale.random_intents import IntentSource, moves
from goalstate.scale.simulate import checks
from goalstate.scale.simulate.checks import Violation
from goalstate.scale.simulate.client import Client
from goalstate.scale.simulate.fleet import Fleet
from goalstate.scale.simulate.former import Place, publish_stale
from goalstate.scale.simulate.hosts import Agent
from goalstate.scale.simulate.plan import Fault, Plan, Step
from goalstate.scale.simulate.processes import Process, at_virtual_time
from goalstate.scale.simulate.timeline import MS_NS, SECOND_NS, START_NS, Due, Timeline
from goalstate.scale.simulate.wire import Arrival, Trouble, Wire

#: Within this time after all faults are over, everything has to have come right.
HEAL_NS = 900 * SECOND_NS
#: A run has some thousand steps of virtual time; one with more than this turns in a circle.
MOST_STEPS = 60_000
#: A delivery follows the one before after this time, at most.
_DELIVERY_NS = MS_NS // 2
_CRASHES = {
    Fault.CRASH_BEFORE_LOG: (True, False),
    Fault.CRASH_AFTER_LOG: (True, True),
    Fault.CRASH_BEFORE_PUBLISH: (False, False),
    Fault.CRASH_AFTER_PUBLISH: (False, True),
}


class Types(NamedTuple):
    """What the region is made of; a test may plant a defect here."""

    engine: Callable[..., Engine] = Engine
    host_core: Callable[..., HostCore] = HostCore


TYPES = Types()


class Result(NamedTuple):
    plan: Plan
    #: What is wrong; empty: nothing.
    violation: str
    #: When it was found, or the run ended: seconds of virtual time from the beginning.
    seconds: float
    #: What happened, how often.
    counts: Counter[str]
    transcript: list[str]


class Run:
    def __init__(self, plan: Plan, types: Types = TYPES, *, record: bool = False) -> None:
        self.plan = plan
        self.timeline = Timeline()
        self.topics = Topics(report_shards=1)
        self.random = Random(f"run/{plan.seed}")
        self.broker = MemoryBroker(lambda: self.timeline.now_ns, Faults(seed=plan.seed))
        self.wire = Wire(self.broker, self.timeline, Random(f"wire/{plan.seed}"), self._arrives)
        self.own_stream = plan.security_groups_own_stream
        self.group_interval_ms = plan.group_interval_ms
        self.has_sessions = plan.has_sessions
        self.engine_type = types.engine
        self.core_type = types.host_core
        self.counts = Counter[str]()
        self.transcript: list[str] = []
        self.processes = [
            Process(self, f"dpm-{n}", channels) for n, channels in enumerate(plan.publishers, 1)
        ]
        self.fleet = Fleet(self)
        self.agents = self.fleet.agents
        self.all_agents = self.fleet.all_agents
        self._record = record
        self.reports = checks.Told()
        self.streams = checks.Streams(self.broker, self.topics)
        self.client = Client(self)
        self._cut_names = Counter[str]()
        self._cut_topics = Counter[str]()
        self._armed: list[tuple[Step, bool, bool]] = []
        self._broken = ""
        self._steps = 0
        self._healing = False
        #: All faults are over, and what a former publisher said is made void.
        self._healed = False

    def play(self) -> Result:
        violation = ""
        say = self.say if self._record else None
        with at_virtual_time(self.timeline, say, self.plan.log_part_bytes, self._durable):
            try:
                self._play()
            except Violation as error:
                violation = str(error)
            except Exception as error:  # of an agent: its process would be no more
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{PurePath(last.filename).name}:{last.lineno}"
                violation = f"{error!r} at {place}: {last.line}"
            finally:
                for process in self.processes:
                    if process.loop is not None:
                        process.loop.kill()
        if violation:
            self.say(f"VIOLATION: {violation}")
        self._count()
        seconds = (self.timeline.now_ns - START_NS) / SECOND_NS
        return Result(self.plan, violation, seconds, self.counts, self.transcript)

    def say(self, text: str) -> None:
        if self._record:
            seconds = (self.timeline.now_ns - START_NS) / SECOND_NS
            self.transcript.append(f"{len(self.transcript) + 1:5d} {seconds:11.6f}s  {text}")

    # --- time ---

    def _play(self) -> None:
        for process in self.processes:
            process.start()
        for step in self.plan.steps:
            self.timeline.at(START_NS + step.at_ms * MS_NS, partial(self._do, step))
        last = max((s.at_ms for s in self.plan.steps), default=0)
        self._go_on(START_NS + max(last, self.plan.ends_ms) * MS_NS + SECOND_NS)
        self._heal()
        deadline = self.timeline.now_ns + HEAL_NS
        while True:
            self._go_on(self.timeline.now_ns + SECOND_NS)
            engine = self._serving()
            wrong = self._not_settled(engine)
            if engine is not None and not wrong:
                break
            if self.timeline.now_ns > deadline:
                raise Violation(
                    f"not at rest {HEAL_NS // SECOND_NS} s after the last fault: {wrong[0]}"
                    + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
                )
        accepted = checks.changes(self.broker, self.topics)
        self.client.check_log(accepted)
        if engine.core.change != len(accepted):
            raise Violation(
                f"the publisher is at change {engine.core.change}, the log at {len(accepted)}"
            )
        checks.check_hosts(accepted, self.agents, own_stream=self.own_stream)
        self.say("everything agrees")

    def _go_on(self, until_ns: int) -> None:
        timeline, broker, random = self.timeline, self.broker, self.random.random
        while True:
            self._turn()
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise Violation(f"no rest within {MOST_STEPS} steps: something turns in a circle")
            due = timeline.next_ns
            if not broker.idle:
                at = timeline.now_ns + int(random() * _DELIVERY_NS)
                if due is None or at < due:
                    timeline.now_ns = at
                    broker.step()
                    continue
            if due is None or due > until_ns:
                timeline.now_ns = max(timeline.now_ns, until_ns)
                return
            timeline.run_next()

    def _turn(self) -> None:
        for process in self.processes:
            process.turn()
            if process.loop is not None and process.loop.failures:
                raise Violation(f"{process.name} failed: {process.loop.failures[0]}")
        if self._broken:
            raise Violation(self._broken)

    # --- what processes and agents tell ---

    def started(self, process: Process) -> None:
        engine = process.engine
        assert engine is not None
        self.counts["publisher starts"] += 1
        self.say(f"{process.name} {'serves' if engine.serving else 'stands by'}")

    def ended(self, process: Process) -> None:
        self.reports.forget_beliefs(process.name)
        self.fleet.lost(process)

    def believed(self, process: Process, host: str, view: HostView) -> None:
        applied = {stream: mark for stream, (mark, _) in view.applied.items()}
        try:
            self.reports.believed(process.name, host, view.incarnation, view.number, applied)
        except Violation as error:
            self.fail(str(error))

    def fail(self, text: str) -> None:
        """Something within a process is wrong: the run ends once the process had its turn."""
        self._broken = self._broken or text

    def told(self, agent: Agent, report: agent_pb2.HostReport) -> None:
        self.counts["reports"] += 1
        self.reports.told(report)
        if self._record:
            marks = ", ".join(f"{s.stream} {s.epoch}/{s.sequence}" for s in report.streams)
            drops = "".join(f", dropped {name}" for name in report.dropped)
            # In an order of their own: that of a message's maps is another in each process.
            faults = sorted(f", {e.stream} {e.id} {e.reason}" for e in report.exceptions)
            self.say(f"{agent.host} reports ({report.number}) {marks}{drops}{''.join(faults)}")

    def read(self, agent: Agent, stream: StreamId, message: Message) -> None:
        if self._record:
            properties = message.properties
            place = f"{properties.get('epoch')}/{properties.get('seq')}"
            kind = properties.get("kind")
            what = "" if kind == "delta" else f" ({kind})"
            self.say(f"{agent.host} is given {stream} {place}{what}")

    def programs(self, agent: Agent, operations: Sequence[Resource]) -> None:
        self.counts["operations programmed"] += len(operations)
        if self._record:
            names = sorted(
                f"{'' if r.payload else '-'}{r.kind.name.lower()}/{r.id}:{r.revision}"
                for r in operations
            )
            self.say(f"{agent.host} programs {' '.join(names)}")

    def _durable(self, accepted: Accepted) -> None:
        if self.has_sessions:
            self.streams.durable(accepted.publications)

    def _arrives(self, arrival: Arrival, written: bool) -> None:
        """A send of a publisher gets to the broker: the moment for a crash that waits for it."""
        if written and self._record:
            name = arrival.topic.removeprefix(f"{self.topics.prefix}/")
            mark = arrival.properties
            is_stream = "epoch" in mark
            place = (
                f" {mark['epoch']}/{mark['seq']} of change {mark['change']}" if is_stream else ""
            )
            self.say(f"the broker gets {name}{place}")
        if not self._armed:
            return
        is_log = arrival.topic == self.topics.intent_log
        for armed in self._armed:
            step, of_log, after = armed
            if of_log == is_log and after == written:
                self._armed.remove(armed)
                self._crash(step)
                return

    # --- steps ---

    def _do(self, step: Step) -> None:
        if step.intent is not None:
            name = f"intent-{step.number}"
            self.say(f"step {step.number}: a client sends {name}")
            self.client.send(name, step.intent)
        elif step.fault is not None:
            self._strike(step, step.fault)

    def _strike(self, step: Step, fault: Fault) -> None:
        lasts_ns = step.lasts_ms * MS_NS
        lasts = f" for {step.lasts_ms} ms" if step.lasts_ms > 0 else ""
        process = self.processes[int(step.choice * len(self.processes))]
        hosts = sorted(self.agents)
        agent = self.agents[hosts[int(step.choice * len(hosts))]] if hosts else None
        happened = True
        whom = ""
        if fault is Fault.LOSSES:
            share = 0.05 + 0.45 * step.strength
            self.broker.faults = Faults(0, share * step.choice, share / 2, share)
            self.after(lasts_ns, self._no_losses)
        elif fault is Fault.SENDS:
            share = 0.3 * step.strength
            self.wire.trouble = Trouble(share * step.choice, share * (1 - step.choice), share / 2)
            self.after(lasts_ns, self._no_trouble)
        elif fault is Fault.BROKER_DOWN:
            self.broker.stop()
            self.after(lasts_ns, self.broker.start)
        elif fault is Fault.TOPIC_CUT:
            topics = self.broker.topics or [self.topics.intent_log]
            topic = topics[int(step.choice * len(topics))]
            whom = f" {topic.removeprefix(self.topics.prefix + '/')}"
            self._cut(lasts_ns, self._cut_topics, topic)
        elif fault is Fault.PUBLISHER_CUT:
            whom = f" {process.name}"
            self._cut(lasts_ns, self._cut_names, process.name)
        elif fault is Fault.CRASH:
            whom = f" {process.name}"
            happened = process.crash(lasts_ns)
        elif fault in _CRASHES:
            self._armed.append((step, *_CRASHES[fault]))
            return
        elif fault is Fault.PAUSE:
            whom = f" {process.name}"
            happened = process.pause(lasts_ns)
            # What it still says then reaches the streams: the broker knows nothing of it.
            self.wire.fenced = frozenset((self.topics.intent_log,))
        elif fault is Fault.PUBLISHER_CLOCK:
            whom = f" {process.name} by {step.lasts_ms} ms"
            lasts = ""
            process.skew_ns += lasts_ns
        elif fault is Fault.STALE_WRITER:
            if all(p.former is None for p in self.processes):
                process.crash(MS_NS)
            self.after(lasts_ns, partial(self._publish_stale, step))
            return
        elif fault is Fault.SESSION_CUT:
            racks = sorted(self.fleet.links)
            happened = bool(racks)
            if happened:
                rack = racks[int(step.choice * len(racks))]
                whom = f" {rack}"
                self.fleet.links[rack].cut(lasts_ns)
        elif agent is None:
            happened = False
        else:
            whom = f" {agent.host}"
            if fault is Fault.HOST_CUT:
                self._cut(lasts_ns, self._cut_names, agent.host)
            elif fault is Fault.RECONNECT:
                agent.reconnect()
            elif fault is Fault.RESTART:
                self.fleet.stop(agent.host)
                self.after(lasts_ns, self.fleet.run)
            elif fault is Fault.HOST_CLOCK:
                whom += f" by {step.lasts_ms} ms"
                lasts = ""
                self.fleet.set_clock(agent, lasts_ns)
            elif fault is Fault.SLOW:
                agent.program_ns = lasts_ns // 8
        if happened:
            self.counts[fault.value] += 1
            self.say(f"step {step.number}: {fault.value}{whom}{lasts}")

    def after(self, delay_ns: int, what: Callable[[], None]) -> Due:
        return self.timeline.after(delay_ns, what)

    def _no_losses(self) -> None:
        self.broker.faults = Faults()

    def _no_trouble(self) -> None:
        self.wire.trouble = Trouble()

    def _crash(self, step: Step) -> None:
        assert step.fault is not None
        serving = [p for p in self.processes if p.serving] or self.processes
        process = serving[int(step.choice * len(serving))]
        if process.crash(step.lasts_ms * MS_NS):
            self.counts[step.fault.value] += 1
            self.say(
                f"step {step.number}: {step.fault.value}: {process.name}, for {step.lasts_ms} ms"
            )

    def _cut(self, lasts_ns: int, cuts: Counter[str], what: str) -> None:
        cuts[what] += 1
        self._apply_cuts()

        def heal() -> None:
            if cuts[what] > 0:
                cuts[what] -= 1
                self._apply_cuts()

        self.after(lasts_ns, heal)

    def _apply_cuts(self) -> None:
        self.broker.heal()
        self.broker.partition(names=+self._cut_names, topics=+self._cut_topics)

    def _publish_stale(self, step: Step) -> None:
        """One that crashed, and knows nothing of its successor, still publishes something."""
        if self._healing:
            return
        serving = self._serving()
        former = next((p.former for p in self.processes if p.former is not None), None)
        if serving is None or former is None or not 0 < former.epoch < serving.core.epoch:
            return
        source = IntentSource(Random(f"stale/{self.plan.seed}/{step.number}"), self.plan.size)
        agents = self.agents.values()
        place = Place(self.broker, self.topics, self.streams, agents, self.timeline.now_ns)
        said = publish_stale(former, serving.core, source, place)
        for stream, mark in said:
            self.say(f"step {step.number}: the former publisher says {stream} {mark}")
        self.counts[Fault.STALE_WRITER.value] += bool(said)

    def _serving(self) -> Engine | None:
        return next((engine for p in self.processes if (engine := p.serving)), None)

    def hosts_may_have_changed(self, engine: Engine) -> None:
        """An intent was accepted: whoever runs the hosts hears of it after a while."""
        if self.fleet.has_other_hosts(engine):
            self.after(int(self.random.random() * 50 * MS_NS), self.fleet.run)

    # --- in the end ---

    def _heal(self) -> None:
        self.say("all faults are over")
        self._healing = True
        self._armed.clear()
        self._no_losses()
        self._no_trouble()
        self._cut_names.clear()
        self._cut_topics.clear()
        self.wire.fenced = None
        self.broker.heal()
        self.broker.start()
        for process in self.processes:
            process.heal()
        self.fleet.run()
        for agent in self.agents.values():
            agent.program_ns = MS_NS
        for link in self.fleet.links.values():
            link.heal()
        if self.streams.foreign:
            self.after(2 * SECOND_NS, self._say_more)
        else:
            self._healed = True

    def _say_more(self) -> None:
        """Something more is said to every VPC and to every rack with ports: a late word of a former
        publisher shows by nothing else.
        """
        engine = self._serving()
        if engine is None:
            self.after(SECOND_NS, self._say_more)
            return
        vpcs = tuple(
            vpc._replace(name=f"{vpc.name}-after")
            for vpc in engine.core.desired.objects(ObjectKind.VPC)
        )
        ports = tuple(
            port._replace(name=f"{port.name}-after")
            for port in engine.core.desired.objects(ObjectKind.PORT)
        )
        if vpcs:
            self.client.send("intent-after", Intent(vpcs=vpcs, ports=ports))
        self._healed = True

    def _not_settled(self, engine: Engine | None) -> list[str]:
        if engine is None or not self._healed:
            return ["no publisher serves"]
        wrong = self.client.undecided()
        if self.fleet.has_other_hosts(engine):
            self.fleet.run()
            wrong.append("hosts changed")
        wrong += checks.unsettled(engine.core, self.agents, self.fleet.groups)
        if engine.backlog:
            wrong.append(f"{engine.backlog} messages are not confirmed")
        return wrong + self.client.waiting()

    def _count(self) -> None:
        broker, counts = self.broker, self.counts
        counts["messages delivered"] += broker.delivered
        counts["deliveries dropped"] += broker.dropped
        counts["deliveries repeated"] += broker.duplicated
        counts["deliveries reordered"] += broker.held_back
        accepted = checks.changes(broker, self.topics)
        counts["changes in the log"] += len(accepted)
        counts["changes in a group"] += checks.in_groups(broker, self.topics)
        counts["moves to another VPC"] += moves(change.intent for change in accepted)
        counts.update(self.wire.troubles)
        switched = Counter(self.streams.switches.values())
        counts["streams switched to sessions"] += switched[Channel.SESSION]
        counts["streams switched to topics"] += switched[Channel.PULSAR]
        for link in self.fleet.links.values():
            counts["sessions opened"] += link.opened
            counts["messages on sessions"] += link.follows.messages
        for agents in self.all_agents.values():
            for agent in agents:
                seen = agent.core.counters
                counts["gaps seen by agents"] += seen.gaps
                counts["stale messages dropped by agents"] += seen.stale
                counts["streams read again by agents"] += seen.resyncs
