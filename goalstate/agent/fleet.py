"""Many hosts in one process: each with a core, readers and a data plane of its own; one bus.

    Bus ──messages──▶ Readers ──▶ HostCore ──▶ DataPlane
                        ▲  Follow, Unfollow │ ▲ programmed
                        └───────────────────┘ │          HostCore.news ──▶ Reports ──▶ Bus
                                     timer: tick, heartbeats

Laws:

1.  What one host knows no other host uses. Hosts share the connection; unless `shared_decoding` is
    off, also the reading of a message that the bus hands to several of them, and the reader of a
    checkpoint that they read at the same time.
2.  Reports are gathered: the news of all hosts until none came for the report delay become one
    message; where they keep coming, at the latest after `reporting.GATHER_DELAYS` of it. A host
    says everything (`full`) each third of its lease, hosts spread evenly over that time; and after
    a report was lost. What was refused for good is told once (`dead_letters`, `posting`).
3.  Fail static: without a broker, hosts keep what they have, and try again.
4.  With a state file, what hosts hold is stored some time after it came (`storing`), and is where
    they begin.
5.  Which hosts count is a function of their numbers and the share: the same hosts in every run.
6.  A fleet that is pushed to (`Answers`) reads no inbox and reports nothing on a bus: its answers
    are its reports, so that of two that know a host never both speak. It needs no bus, but for the
    topics that it is told to follow.
7.  A host can be played, silenced and released while the fleet runs. What is said for it afterwards
    has a higher incarnation than all that was said before.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from goalstate.agent.actions import Action, Follow, Program, ReadBack, Unfollow
from goalstate.agent.core import HostCore, HostSettings, Witness
from goalstate.agent.counters import Counters
from goalstate.agent.dataplanes import DataPlane, Readable, Refused
from goalstate.agent.decoding import Decoder, Received
from goalstate.agent.posting import Posting
from goalstate.agent.readers import Readers
from goalstate.agent.reporting import Reports
from goalstate.agent.reports import Reporter
from goalstate.agent.session import SessionClient
from goalstate.agent.state import Journal, StoredStream, snapshot
from goalstate.agent.state_file import StateFile
from goalstate.agent.storing import Storing
from goalstate.bus.base import Bus, Message
from goalstate.gs.streams import StreamId, StreamKind, inbox_stream, pushed_stream

log = structlog.get_logger()

#: Seconds between two looks at what is due.
TICK_S = 0.05


class Member(NamedTuple):
    """A host to play."""

    host: str
    group: str
    counting: bool = False


class FleetSettings(NamedTuple):
    host: HostSettings
    #: Topic on which this process reports.
    report_topic: str
    clock_id: str
    #: Topic on which it tells what data planes refused for good; empty: nowhere.
    dead_letter_topic: str = ""
    lease_s: float = 30.0
    report_delay_s: float = 0.005
    open_readers_at_a_time: int = 256
    read_checkpoints_at_a_time: int = 64
    inspection_address: str = ""
    #: Read a message once that several hosts get, instead of once for each of them.
    shared_decoding: bool = True


def counts(number: int, share: float) -> bool:
    """Is host `number` one of the share of hosts that count? They are spread evenly."""
    # The small number makes up for shares that are no binary fractions.
    return int((number + 1) * share + 1e-9) > int(number * share + 1e-9)


class Speaker(Protocol):
    """Tells somebody what becomes of the hosts: `Reports`, or the answers to who pushes."""

    async def start(self) -> None: ...

    def dirty(self, host: Host) -> None: ...

    def heartbeats(self, now: float) -> None: ...

    async def stop(self) -> None: ...


class Host:
    """One host of the fleet."""

    __slots__ = ("core", "data_plane", "fleet", "released", "reporter")

    def __init__(
        self, fleet: Fleet, core: HostCore, data_plane: DataPlane, reporter: Reporter
    ) -> None:
        self.fleet = fleet
        self.core = core
        self.data_plane = data_plane
        self.reporter = reporter
        self.released = False

    def received(self, stream: StreamId, message: Message) -> None:
        self.perform(
            self.core.receive(
                stream, message.properties, message.payload, message.position, time.time_ns()
            )
        )

    def pushed(self, received: Received) -> None:
        """The next message of what is pushed to the host."""
        self.perform(self.core.take(self.core.inbox, received, b"", time.time_ns()))

    def position_gone(self, stream: StreamId) -> None:
        self.perform(self.core.position_gone(stream, time.time_ns()))

    def is_empty(self, stream: StreamId) -> bool:
        return self.core.is_empty(stream)

    def tick(self, now: int) -> None:
        try:
            self.perform(self.core.tick(now))
        except Exception:  # one host's failure must not stop the clock of the others
            log.exception("tick failed", host=self.core.host)

    def perform(self, actions: Sequence[Action]) -> None:
        """Do what the core asks for, and what follows from that at once."""
        if actions:
            self._do(deque(actions))
        fleet, core = self.fleet, self.core
        if core.wakeup is not None:
            fleet.waking[self] = None
        if core.news:
            fleet.reports.dirty(self)
        if core.programming.exceptions.letters and fleet.posting is not None:
            fleet.posting.waiting(core)

    def _do(self, todo: deque[Action]) -> None:
        fleet = self.fleet
        while todo:
            action = todo.popleft()
            if isinstance(action, Program):
                self._program(action, todo)
            elif isinstance(action, ReadBack):
                self._read_back(action, todo)
            elif isinstance(action, Follow):
                if action.stream.kind is not StreamKind.PUSHED:
                    fleet.readers.follow(self, action)
            elif isinstance(action, Unfollow):
                fleet.readers.unfollow(self, action.stream)
                if fleet.witness is not None:
                    fleet.witness.left(self.core.host, action.stream)

    def _program(self, program: Program, todo: deque[Action]) -> None:
        at_once = True

        def done(refused: Refused) -> None:
            actions = self.core.programmed(program.number, refused, time.time_ns())
            if at_once:
                todo.extend(actions)
            elif not self.fleet.stopping and not self.released:
                self.perform(actions)

        self.data_plane.program(program.operations, done)
        at_once = False

    def _read_back(self, wanted: ReadBack, todo: deque[Action]) -> None:
        at_once = True

        def done(table: Mapping[str, bytes] | None) -> None:
            actions = self.core.read_back(wanted.number, wanted.kind, table, time.time_ns())
            if at_once:
                todo.extend(actions)
            elif not self.fleet.stopping:
                self.perform(actions)

        if isinstance(self.data_plane, Readable):
            self.data_plane.read_back(wanted.kind, done)
        else:
            done(None)
        at_once = False


class Fleet:
    """The hosts of a process. `start`, then `stop`, in one event loop."""

    def __init__(
        self,
        bus: Bus | None,
        members: Sequence[Member],
        settings: FleetSettings,
        data_plane: Callable[[str], DataPlane],
        state: StateFile | None = None,
        answers: Speaker | None = None,
        *,
        sessions: SessionClient | None = None,
        counters: Counters | None = None,
        witness: Witness | None = None,
    ) -> None:
        """`data_plane` makes the data plane of a host, `state` is where what it holds is stored.
        `sessions` carries the streams that are not on the bus, and is closed with the fleet;
        without it, hosts must refuse them (`HostSettings.sessions`). `counters` are shared with
        the fleets of other shards.

        `answers`: the hosts are pushed to, and this tells what became of it; only then there may be
        no bus. Raises ValueError for a host given twice.
        """
        self.counters = counters or Counters()
        self.witness = witness
        self.settings = settings
        self.decoder = Decoder() if settings.shared_decoding else Decoder(capacity=0)
        self.readers = Readers(
            bus,
            settings.host.topics,
            settings.open_readers_at_a_time,
            sessions,
            joining=settings.read_checkpoints_at_a_time,
            shared=settings.shared_decoding,
        )
        self.sessions = sessions
        self.waking: dict[Host, None] = {}
        self.hosts: dict[str, Host] = {}
        self.stopping = False
        self.incarnation = time.time_ns()
        self._state = state
        for member in members:
            inbox = inbox_stream(member.group) if answers is None else pushed_stream(member.host)
            self._make(member, inbox, data_plane(member.host), self.incarnation)
        if len(self.hosts) != len(members):
            raise ValueError("a host can be played once only")
        self._telling: Reports[Host] | None = None
        if answers is None:
            assert bus is not None
            self._telling = Reports(
                bus,
                settings.report_topic,
                [(host, host.reporter) for host in self.hosts.values()],
                self.counters,
                clock_id=settings.clock_id,
                lease_s=settings.lease_s,
                delay_s=settings.report_delay_s,
            )
        self.reports: Speaker = self._telling or answers  # type: ignore[assignment]
        #: None: there is no bus to write dead letters to.
        self.posting = (
            Posting(bus, settings.dead_letter_topic, self.counters, delay_s=settings.report_delay_s)
            if bus is not None
            else None
        )
        self._timer: asyncio.Task[None] | None = None
        self._storing: Storing | None = None

    async def start(self) -> None:
        """Begin to follow; returns when all inboxes are open. Raises BusError, BrokerUnreachable.

        A broker that goes away later is waited for instead.
        """
        await self.reports.start()
        stored: dict[str, list[StoredStream]] = {}
        if self._state is not None:
            stored = await asyncio.to_thread(self._state.load)
        now = time.time_ns()
        for host in self.hosts.values():
            host.perform(host.core.start(now, stored.pop(host.core.host, ())))
        if self._state is not None:
            self._storing = Storing(self._state, [host.core for host in self.hosts.values()])
            self._storing.start()
        self._timer = asyncio.create_task(self._tick())
        await self.readers.settled()

    async def stop(self) -> None:
        """Close the readers, store and report what is left, and stop. The bus stays open."""
        self.stopping = True
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait([self._timer])
        await self.readers.close()
        if self.sessions is not None:
            await self.sessions.close()
        if self._storing is not None:
            await self._storing.stop()
        if self.posting is not None:
            await self.posting.stop()
        await self.reports.stop()

    def _make(
        self,
        member: Member,
        inbox: StreamId,
        data_plane: DataPlane,
        incarnation: int,
        proxy_for: Sequence[int] | None = None,
    ) -> Host:
        core = HostCore(
            member.host,
            inbox,
            self.settings.host,
            counting=member.counting,
            decoder=self.decoder,
            counters=self.counters,
            journal=Journal() if self._state is not None else None,
            witness=self.witness,
        )
        reporter = Reporter(
            core,
            incarnation=incarnation,
            lease_s=self.settings.lease_s,
            inspection_address=self.settings.inspection_address,
            proxy_for=proxy_for,
        )
        host = self.hosts[member.host] = Host(self, core, data_plane, reporter)
        return host

    # --- hosts that come and go, in the place of an agent that is pushed to ---

    def play(
        self,
        member: Member,
        data_plane: DataPlane,
        stored: Iterable[StoredStream],
        proxy_for: Sequence[int],
    ) -> Host:
        """Play a host from now on, which holds what is `stored`; its data plane is empty."""
        assert self._telling is not None
        incarnation = time.time_ns()
        inbox = inbox_stream(member.group)
        host = self._make(member, inbox, data_plane, incarnation, proxy_for)
        host.perform(host.core.start(time.time_ns(), stored))
        self._telling.add(host, host.reporter)
        return host

    def silence(self, host: Host) -> None:
        """Say nothing more for a host, which goes on following."""
        assert self._telling is not None
        self._telling.remove(host)

    def release(self, host: Host) -> list[StoredStream]:
        """Play a host no longer; gives what it held."""
        self.silence(host)
        host.released = True
        self.waking.pop(host, None)
        del self.hosts[host.core.host]
        for stream in list(host.core.streams):
            self.readers.unfollow(host, stream)
            if self.witness is not None:
                self.witness.left(host.core.host, stream)
        return snapshot(host.core.streams)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        said = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            now = time.time_ns()
            for host in list(self.waking):
                wakeup = host.core.wakeup
                if wakeup is None:
                    del self.waking[host]
                elif wakeup <= now:
                    del self.waking[host]
                    host.tick(now)
            self.reports.heartbeats(loop.time())
            opening = self.readers.wanted - self.readers.open
            if opening and loop.time() - said > 1:
                said = loop.time()
                log.info(
                    "opening readers",
                    open=self.readers.open,
                    wanted=self.readers.wanted,
                    waiting=self.readers.waiting,
                )
