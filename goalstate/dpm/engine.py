"""The engine of one shard: intents in, waits and reports answered, whoever serves just now.

    apply ─▶ intake ─▶ intent log ─▶ publisher ─▶ topics     `incarnation`, while it serves
               ▼                                             `succession`: serve, or stand by
             known ─▶ waits ◀─ convergence ◀─ reports        at any time

Laws (those of its parts are theirs):

1.  An intent is durable before its caller hears so, and before any host hears of it (`intake`).
2.  While it does not serve, what is asked is answered with NotServing, or from what is known, and
    says so. Waits go on while it recovers, and end when another engine serves (`waits`).
3.  Snapshots of the log are written beside serving, by another process where there is one for it;
    nothing depends on them but how long a start takes.
4.  What is under way is bounded; beyond it, intents are shed (see `admission`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from goalstate.bus.base import Bus
from goalstate.bus.errors import BusError
from goalstate.dpm.admission import Admission, AdmissionPolicy
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.dpm.checkpoints import CheckpointPolicy, Checkpoints
from goalstate.dpm.convergence import Convergence, Progress, Wait
from goalstate.dpm.core import Core, Requirement
from goalstate.dpm.errors import NotServing
from goalstate.dpm.incarnation import Incarnation
from goalstate.dpm.known import Known
from goalstate.dpm.leadership import Leadership
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.recovery import not_on_topics
from goalstate.dpm.reports import Reports
from goalstate.dpm.sessions import Sessions
from goalstate.dpm.snapshot import SnapshotPolicy, write_snapshot
from goalstate.dpm.snapshot_upkeep import SnapshotUpkeep
from goalstate.dpm.spread import Spread
from goalstate.dpm.standby import Standby
from goalstate.dpm.succession import Succession
from goalstate.dpm.waits import Waits, Wanted
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import vpc_stream
from goalstate.gs.topics import Topics

log = structlog.get_logger()

#: Bytes that a resource which is published again counts as, where load is measured.
REPUBLISHED_BYTES = 200
#: Seconds between two notes in the log of what is published.
PUBLISHED_NOTE_S = 1.0
#: Seconds of silence after which a standby takes over.
FAILOVER_AFTER_S = 3.0


class Outcome(NamedTuple):
    change: int
    changed_objects: int
    requirements: list[Requirement]


class Engine:
    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        writer: str,
        clock_id: str,
        metrics: Metrics,
        failover_after_s: float = FAILOVER_AFTER_S,
        security_groups_own_stream: bool = False,
        channels: ChannelPolicy = NEVER,
        clock_ns: Callable[[], int] = time.time_ns,
        steady_ns: Callable[[], int] = time.monotonic_ns,
        snapshots: SnapshotPolicy = SnapshotPolicy(),
        snapshot_writer: Callable[[], Awaitable[None]] | None = None,
        checkpoints: CheckpointPolicy = CheckpointPolicy(),
        admission: Admission | None = None,
        spread: Spread | None = None,
        group_interval_s: float = 0.0,
    ) -> None:
        """`failover_after_s`: seconds, alike for all engines of a region. `group_interval_s`: see
        `Intake`. `snapshot_writer` writes
        a snapshot of the log elsewhere; without one, it is written here (see
        `snapshot.write_snapshot`). `spread` is shared by the engines of a process, which serve the
        shards of one region."""
        self.writer = writer
        #: Where it is to be called, HOST:PORT; to be set before `start`.
        self.address = ""
        self.topics = topics
        self._bus = bus
        self._clock_ns = clock_ns
        #: The clock of leases, in nanoseconds: nobody sets it.
        self.steady_ns = steady_ns
        self._metrics = metrics
        self._own_stream = security_groups_own_stream
        self._channels = channels
        self._failover_after_s = failover_after_s
        self._checkpoint_policy = checkpoints
        self._spread = spread or Spread()
        self._group_interval_s = group_interval_s
        self._admission = admission or Admission(AdmissionPolicy())
        self._admission.backlogs.append(lambda: self._backlog_bytes)
        self._snapshots = SnapshotUpkeep(
            bus, topics, snapshots, snapshot_writer or self._write_snapshot_here
        )
        self._applying: set[asyncio.Task[Outcome]] = set()
        self._known = known = Known(
            Core(topics, security_groups_own_stream=security_groups_own_stream)
        )
        self.convergence = Convergence(known.waits_for, known.digest_at, known.head)
        self._waits = Waits(
            known, self.convergence, steady_ns=steady_ns, check=self._check_not_standing_by
        )
        self._reports = Reports(
            self.convergence,
            clock_id=clock_id,
            clock_ns=clock_ns,
            steady_ns=steady_ns,
            metrics=metrics,
            taken=self._on_reported,
        )
        self._succession = Succession(
            known,
            failover_after_s=failover_after_s,
            new_standby=self._new_standby,
            begin=self._begin_incarnation,
            answered=self._all_answered,
            became=self._on_became,
        )

    # --- life ---

    async def start(self) -> None:
        """Become what the log says; then serve, or stand by if another one serves.

        Raises LogUnreadable, BusError.
        """
        await self._reports.open(self._bus, self.topics)
        await self._succession.start()
        self._succession.go_on(self._keep_up())

    async def stop(self) -> None:
        """Stop accepting, finish what was accepted, and leave."""
        await self._succession.stop()
        await self._reports.close()

    async def hand_over(self) -> bool:
        """Leave the log to another one, in order, and stand by; False: it is not ours just now.

        What was accepted is brought to its end first. Returns when the log can be taken.
        """
        return await self._succession.hand_over()

    def _new_standby(self, followed: Callable[[], None]) -> Standby:
        return Standby(
            self._bus,
            self.topics,
            writer=self.writer,
            address=self.address,
            security_groups_own_stream=self._own_stream,
            channels=self._channels,
            failover_after_s=self._failover_after_s,
            clock_ns=self._clock_ns,
            followed=followed,
            spread=self._spread,
        )

    async def _begin_incarnation(self, standby: Standby, leadership: Leadership) -> Incarnation:
        """What follows from a log that was taken. Raises BusError."""
        begun = time.monotonic()
        replay, snapshot = standby.replay, standby.snapshot
        missing = await not_on_topics(self._bus, self.topics, replay.unconfirmed)
        incarnation = Incarnation(
            self._bus,
            replay,
            leadership,
            missing,
            lock=self.lock,
            checkpoints=self._checkpoint_policy,
            group_interval_s=self._group_interval_s,
            clock_ns=self._clock_ns,
            metrics=self._metrics,
            lost=self._succession.lost_the_log,
        )
        self._snapshots.newest = snapshot
        log.info(
            "recovered",
            epoch=replay.core.epoch,
            change=replay.core.change,
            records=replay.records,
            of_snapshot=snapshot.records if snapshot is not None else 0,
            published_again=len(missing),
            seconds=round(time.monotonic() - begun, 3),
        )
        return incarnation

    async def _all_answered(self) -> None:
        if self._applying:
            await asyncio.wait(self._applying)

    def _on_became(self) -> None:
        """What is known was exchanged."""
        self._metrics.epoch.labels(shard=self.topics.shard).set(self.core.epoch)
        if self.standing_by:
            self._waits.wake_all()

    # --- beside serving ---

    async def _keep_up(self) -> None:
        """Now and then, have what is published noted, and snapshots written."""
        while True:
            await asyncio.sleep(PUBLISHED_NOTE_S)
            incarnation = self._incarnation
            if incarnation is None or not incarnation.intake.accepting:
                continue
            log_bytes = incarnation.leadership.log.size
            if self._snapshots.is_due(log_bytes):
                self._succession.go_on(self._snapshots.take(log_bytes))
            try:
                await incarnation.note_published()
            except BusError as error:
                # The note only saves work at the next start; a lost log shows at the next append.
                log.warning("cannot note what is published", error=str(error))

    async def _write_snapshot_here(self) -> None:
        await write_snapshot(
            self._bus,
            self.topics,
            writer=self.writer,
            security_groups_own_stream=self._own_stream,
        )

    def _on_reported(self, moved: set[Wait]) -> None:
        self._waits.wake(moved)
        incarnation = self._incarnation
        if incarnation is not None and incarnation.intake.accepting:
            for stream in self.convergence.reminders.take(self.steady_ns()):
                self._succession.go_on(incarnation.remind(stream))

    # --- intent ---

    async def apply(self, message: intent_pb2.Intent, traceparent: str = "") -> Outcome:
        """Accept an intent; returns when it is durable.

        Raises IntentRejected, Overloaded, NotServing (then it is either wholly accepted or wholly
        not). A caller that goes away does not undo it: what was begun is brought to its end.
        """
        change = log_pb2.Change(intent=message, traceparent=traceparent)
        return await self._begin(change, message.ByteSize())

    async def republish(
        self, names: Sequence[intent_pb2.ResourceName], traceparent: str = ""
    ) -> Outcome:
        """Put resources on their streams again; as `apply`, with the same errors."""
        change = log_pb2.Change(republished=names, traceparent=traceparent)
        return await self._begin(change, len(names) * REPUBLISHED_BYTES)

    async def _begin(self, change: log_pb2.Change, size: int) -> Outcome:
        self._admission.enter(size, self._unconfirmed, time.monotonic())
        task = asyncio.ensure_future(self._apply(change))
        self._applying.add(task)
        task.add_done_callback(partial(self._applied, size))
        return await asyncio.shield(task)

    def check_load(self, size: int) -> None:
        """Raises Overloaded where an intent of so many bytes would be shed just now."""
        self._admission.check(size, self._unconfirmed, time.monotonic())

    @property
    def _unconfirmed(self) -> int:
        return sum(backlog() for backlog in self._admission.backlogs)

    @property
    def _backlog_bytes(self) -> int:
        return self._incarnation.publisher.backlog_bytes if self._incarnation is not None else 0

    def _applied(self, size: int, task: asyncio.Task[Outcome]) -> None:
        self._applying.discard(task)
        self._admission.leave(size, time.monotonic())
        if not task.cancelled():
            task.exception()  # its caller may be gone, and an error is not to be reported twice

    async def _apply(self, change: log_pb2.Change) -> Outcome:
        change.accepted_unix_ns = self._clock_ns()
        intake = self._succession.now_serving().intake
        accepted, newest, answer = await intake.take(change)
        if answer is not None:
            await answer
        if accepted is None:
            await self.confirm()
            return Outcome(newest, 0, [])
        return Outcome(accepted.change, accepted.changed_objects, accepted.requirements)

    async def durable(self) -> None:
        """Wait until all that was accepted so far is in the log. Raises NotServing."""
        if self._incarnation is None:
            raise NotServing("the intent log failed")
        await self._incarnation.intake.durable()

    # --- convergence ---

    async def confirm(self) -> None:
        """Make sure that what the log holds by now is known here, whoever else may serve.

        Raises NotServing.
        """
        await self._succession.confirm()

    async def wait(
        self,
        *,
        change: int | None = None,
        vpc: str | None = None,
        quorum: float,
        timeout_s: float,
        max_stragglers: int,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Wait until the hosts concerned have applied a change, or all of a VPC, or everything.

        Returns at the latest after `timeout_s` seconds, and what an intent that is being worked on
        takes. Raises UnknownChange, ValueError, and NotServing once another engine serves.
        """
        deadline = time.monotonic() + timeout_s
        if change is None:
            await self.confirm()
        wanted = Wanted(change, vpc, quorum)
        return await self._waits.until(deadline, wanted, max_stragglers, on_progress)

    def _check_not_standing_by(self) -> None:
        if self.standing_by:
            raise NotServing(f"the publisher does not serve any more: {self.problem}")

    # --- what is ---

    @property
    def core(self) -> Core:
        """The core as it is now: recovery makes another."""
        return self._known.core

    @property
    def serving(self) -> bool:
        """Does it accept intents, and is what it says of them the newest?"""
        return self._succession.serving

    @property
    def held(self) -> int:
        """How many shards this process holds."""
        return len(self._spread.held)

    @property
    def standing_by(self) -> bool:
        """Does another one serve, and is what is known here what the log says of it?"""
        return self._succession.standing_by

    @property
    def problem(self) -> str:
        """Why it does not serve just now; empty while it does."""
        return self._succession.problem

    @property
    def active(self) -> log_pb2.Alive | None:
        """Who serves the region; None: not known."""
        return self._succession.active

    @property
    def failed(self) -> asyncio.Event:
        """Set when it cannot go on, with the reason in `failure`."""
        return self._succession.failed

    @property
    def failure(self) -> Exception | None:
        return self._succession.failure

    @property
    def _incarnation(self) -> Incarnation | None:
        return self._succession.incarnation

    @property
    def backlog(self) -> int:
        """Messages that no broker has confirmed yet."""
        return self._incarnation.publisher.backlog if self._incarnation is not None else 0

    @property
    def sessions(self) -> Sessions | None:
        """What agents' sessions are served from; None: while it does not serve."""
        return self._incarnation.sessions if self._incarnation is not None else None

    @property
    def checkpoints(self) -> Checkpoints | None:
        """Writes those of streams; None: while it does not serve."""
        return self._incarnation.checkpoints if self._incarnation is not None else None

    @property
    def checkpoint_due_s(self) -> float:
        """For how long the checkpoint has been due that is due for longest; 0 if none is."""
        return self.checkpoints.due_s if self.checkpoints is not None else 0.0

    @property
    def lock(self) -> asyncio.Lock:
        """To be held while the core is looked at over more than one turn of the loop."""
        return self._known.lock

    def knows_vpc(self, vpc: str) -> bool:
        """Is there such a VPC, or was there ever?"""
        return vpc_stream(vpc) in self.core.streams
