"""A simulated host: the agent's pure core, readers that fail and come back, a data plane with time.

One `Agent` is one incarnation. It ends with `stop`, and the next one of the host begins with
nothing. What the data plane holds is what it was told and confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

from goalstate.agent.actions import Action, Follow, Program, ReadBack, Unfollow
from goalstate.agent.beginning import beginning, is_sought
from goalstate.agent.checkpoint_readers import STALL_S
from goalstate.agent.core import HostCore, HostSettings
from goalstate.agent.follows import SessionReader
from goalstate.agent.reports import Batch, Reporter
from goalstate.bus.base import Message, Sink
from goalstate.bus.errors import BrokerUnreachable, PositionGone
from goalstate.bus.memory import MemoryBroker, MemoryReader
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import host_reports
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import StreamId, inbox_stream
from goalstate.gs.topics import Topics, is_session
from goalstate.scale.simulate.timeline import MS_NS, SECOND_NS, Due, Timeline

LEASE_S = 10.0
_REPORT_DELAY_NS = 10 * MS_NS
_RETRY_NS = 200 * MS_NS
_RETRY_MAX_NS = 5 * SECOND_NS


class Surroundings(Protocol):
    """What an agent lives in."""

    timeline: Timeline
    broker: MemoryBroker
    topics: Topics
    random: Random
    has_sessions: bool
    core_type: Callable[..., HostCore]

    def told(self, agent: Agent, report: agent_pb2.HostReport) -> None:
        """The agent sends a report."""
        ...

    def read(self, agent: Agent, stream: StreamId, message: Message) -> None:
        """The agent reads a message."""
        ...

    def programs(self, agent: Agent, operations: Sequence[Resource]) -> None:
        """The data plane of an agent does this now."""
        ...


class Session(Protocol):
    """Carries the streams that are on sessions."""

    def attach(self, stream: StreamId, start: bytes, sink: Sink) -> SessionReader: ...


class Agent:
    def __init__(
        self,
        around: Surroundings,
        host: str,
        group: str,
        session: Session,
        incarnation: int,
        skew_ns: int,
    ) -> None:
        self.host = host
        self.group = group
        self.incarnation = incarnation
        #: What its clock shows beyond the true time.
        self.skew_ns = skew_ns
        # Nothing drifts here: what an audit finds is an error of its own.
        settings = HostSettings(
            around.topics,
            audit_interval_ns=6 * SECOND_NS,
            sessions=around.has_sessions,
        )
        self.core = around.core_type(host, inbox_stream(group), settings)
        #: What the data plane holds.
        self.programmed: dict[tuple[Kind, str], Resource] = {}
        #: How long the data plane takes for a program, at most.
        self.program_ns = MS_NS
        self.stopped_ns: int | None = None
        #: Its host left the region, or its group.
        self.left = False
        self._around = around
        self._reporter = Reporter(self.core, incarnation=incarnation, lease_s=LEASE_S)
        self._session = session
        self._readers: dict[StreamId, MemoryReader | SessionReader] = {}
        #: Where a lost connection goes on: topic, and the newest position that came from it.
        self._places: dict[StreamId, tuple[str, bytes]] = {}
        self._opening: dict[StreamId, Due] = {}
        self._tick: Due | None = None
        self._tick_ns = 0
        self._report: Due | None = None
        self._full = True

    @property
    def now_ns(self) -> int:
        """By its own clock."""
        return self._around.timeline.now_ns + self.skew_ns

    def start(self) -> None:
        self._do(self.core.start(self.now_ns))
        self._heartbeat()

    def stop(self) -> None:
        """End, and do nothing any more, whatever is still on its way."""
        self.stopped_ns = self._around.timeline.now_ns
        for stream in list(self._readers):
            self._close(stream)
        for due in (*self._opening.values(), self._tick, self._report):
            if due is not None:
                due.cancel()

    def jump(self, by_ns: int) -> None:
        """Its clock is set."""
        self.skew_ns += by_ns
        self._wake()

    def reconnect(self) -> None:
        """The connection breaks, and is made anew: readers go on after what they gave last."""
        for stream, place in list(self._places.items()):
            if stream in self._readers:
                self._detach(stream)
                self._attach(stream, place, 0)

    # --- actions ---

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Follow):
                self._close(action.stream)
                self._open(action, 0)
            elif isinstance(action, Unfollow):
                self._close(action.stream)
            elif isinstance(action, Program):
                self._program(action)
            else:
                self._read_back(action)
        self._wake()
        if self.core.news:
            self._report_soon(_REPORT_DELAY_NS)

    def _program(self, program: Program) -> None:
        def done() -> None:
            if self.stopped_ns is not None:
                return
            around.programs(self, program.operations)
            for resource in program.operations:
                if resource.payload:
                    self.programmed[resource.kind, resource.id] = resource
                else:
                    self.programmed.pop((resource.kind, resource.id), None)
            self._do(self.core.programmed(program.number, {}, self.now_ns))

        around = self._around
        around.timeline.after(int(around.random.random() * self.program_ns), done)

    def _read_back(self, wanted: ReadBack) -> None:
        def done() -> None:
            if self.stopped_ns is None:
                self._do(self.core.read_back(wanted.number, wanted.kind, table, self.now_ns))

        table = {
            id_: one.payload for (kind, id_), one in self.programmed.items() if kind is wanted.kind
        }
        around = self._around
        around.timeline.after(int(around.random.random() * self.program_ns), done)

    # --- readers ---

    def _open(self, follow: Follow, failures: int) -> None:
        around = self._around
        stream = follow.stream
        if is_session(follow.topic):

            def sink(message: Message) -> None:
                if self._readers.get(stream) is reader:
                    self._receive(stream, message)

            reader = self._session.attach(stream, follow.start, sink)
            self._readers[stream] = reader
            return
        try:
            around.broker.check_reachable(follow.topic, self.host)
        except BrokerUnreachable:
            self._later(stream, failures, lambda: self._open(follow, failures + 1))
            return
        sought = is_sought(follow, around.topics)
        newest = around.broker.messages(follow.topic)[-1:] if sought else []
        begin = beginning(follow, newest[0] if newest else None, around.topics)
        self._attach(stream, begin, failures)

    def _attach(self, stream: StreamId, place: tuple[str, bytes], failures: int) -> None:
        broker = self._around.broker
        self._places[stream] = place

        def sink(message: Message) -> None:
            if self._readers.get(stream) is not reader:
                return
            topic, newest = self._places[stream]
            self._places[stream] = (topic, max(newest, message.position))
            self._receive(stream, message)

        try:
            reader = broker.attach(*place, sink, name=self.host)
        except BrokerUnreachable:
            self._later(stream, failures, lambda: self._attach(stream, place, failures + 1))
            return
        except PositionGone:
            self._do(self.core.position_gone(stream, self.now_ns))
            return
        self._readers[stream] = reader
        if place[0] == self._around.topics.checkpoints_of(stream):
            self._stalls(stream, reader, place[1])

    def _receive(self, stream: StreamId, message: Message) -> None:
        self._around.read(self, stream, message)
        self._do(
            self.core.receive(
                stream, message.properties, message.payload, message.position, self.now_ns
            )
        )

    def _stalls(self, stream: StreamId, reader: object, before: bytes) -> None:
        """A checkpoint of which nothing comes for long is read anew, as real readers do."""

        def look() -> None:
            if self.stopped_ns is not None or self._readers.get(stream) is not reader:
                return
            _, newest = self._places[stream]
            if newest != before:
                self._stalls(stream, reader, newest)
            else:
                self._do(self.core.position_gone(stream, self.now_ns))

        self._around.timeline.after(int(STALL_S * SECOND_NS), look)

    def _later(self, stream: StreamId, failures: int, what: Callable[[], None]) -> None:
        delay = min(_RETRY_NS << min(failures, 10), _RETRY_MAX_NS)
        self._opening[stream] = self._around.timeline.after(delay, what)

    def _close(self, stream: StreamId) -> None:
        self._detach(stream)
        self._places.pop(stream, None)
        opening = self._opening.pop(stream, None)
        if opening is not None:
            opening.cancel()

    def _detach(self, stream: StreamId) -> None:
        reader = self._readers.pop(stream, None)
        if isinstance(reader, SessionReader):
            reader.detach()
        elif reader is not None:
            self._around.broker.detach(reader)

    # --- time ---

    def _wake(self) -> None:
        """Have the core called when it wants to be."""
        wakeup = self.core.wakeup
        if wakeup is None:
            return
        when = wakeup - self.skew_ns
        if self._tick is None or when != self._tick_ns:
            if self._tick is not None:
                self._tick.cancel()
            self._tick_ns = when
            self._tick = self._around.timeline.at(when, self._ticked)

    def _ticked(self) -> None:
        self._tick = None
        self._do(self.core.tick(self.now_ns))

    # --- reports ---

    def _heartbeat(self) -> None:
        if self.stopped_ns is None:
            self._full = True
            self._report_soon(0)
            self._around.timeline.after(int(LEASE_S / 3 * SECOND_NS), self._heartbeat)

    def _report_soon(self, delay_ns: int) -> None:
        if self._report is None:
            self._report = self._around.timeline.after(delay_ns, self._send)

    def _send(self) -> None:
        self._report = None
        around = self._around
        batch = Batch()
        if not batch.add(self._reporter, full=self._full):
            return
        self._full = False
        message = batch.message("hosts", around.timeline.now_ns)
        for report in host_reports(message):
            around.told(self, report)
        try:
            around.broker.publish(
                around.topics.reports(0), message.SerializeToString(), sender=self.host
            )
        except BrokerUnreachable:
            # What it told is lost: it tells everything when it can.
            self._full = True
            self._report_soon(SECOND_NS)
