"""The engine: the pure core, wired to the durable log, the publisher and the hosts' reports.

    apply ─▶ plan ─▶ accept (in memory) ─▶ intent log ─ durable ─▶ answer, publish ─▶ topics
                                                                        reports ─▶ convergence

Laws:

1.  An intent is durable before its caller hears so, and before any host hears of it.
2.  Intents are accepted in memory while earlier ones are still on their way into the log, so the
    log's latency does not limit the rate. When an append fails, memory is ahead of the log: the
    engine stops accepting, and becomes itself again from the log.
3.  At start, and after such a failure: read the newest snapshot of the log, redo the log after it,
    begin a new epoch, and first of all publish in it what the topics do not have yet, under its old
    marks. Until the log is read, waits go on with what was known before, so that none ends early.
4.  Snapshots of the log are written beside serving, by another process where there is one for it;
    nothing depends on them but how long a start takes.
5.  What is under way is bounded; beyond it, intents are shed (see `admission`).
6.  One of a region's engines serves, the others stand by (see `standby`). It serves only while it
    has lately proved that the log is its own: by a record that got into it, sent less than
    `failover_after_s` ago. One that was thrown out, or whose broker gave the log to another, may
    believe so for as long. Then nothing that it accepts gets into the log, and what it says of how
    things are it proves first (`confirm`). It stands by as soon as it knows, and its waits end with
    NotServing.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog

from goalstate.bus.base import LATEST, Bus, Message, Reader
from goalstate.bus.errors import BusError
from goalstate.dpm.admission import Admission, AdmissionPolicy
from goalstate.dpm.building import newest_of
from goalstate.dpm.channels import NEVER, ChannelPolicy
from goalstate.dpm.checkpoints import CheckpointPolicy, Checkpoints, place_of
from goalstate.dpm.convergence import Convergence, Progress, Wait
from goalstate.dpm.core import Accepted, Core, Requirement
from goalstate.dpm.errors import LogHeld, NotServing, UnknownChange
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.inventory import Publication
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.publisher import BACKOFF_S, BusTransport, Publisher
from goalstate.dpm.recovery import (
    REMEMBERED_CHANGES,
    Changes,
    never_on_a_stream,
    not_on_topics,
    remember,
    republished,
)
from goalstate.dpm.rings import Rings
from goalstate.dpm.routing import Router
from goalstate.dpm.sessions import CheckpointBuilder, Sessions
from goalstate.dpm.snapshot import SnapshotPolicy, newest_end, write_snapshot
from goalstate.dpm.spread import Spread
from goalstate.dpm.standby import Standby
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentRejected
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId, vpc_stream
from goalstate.gs.topics import Topics
from goalstate.process import retrieved

log = structlog.get_logger()

#: A larger intent (bytes) is worked on in a thread, so that the loop stays responsive: it takes a
#: call in within some of its turns, and what it has not taken in, it cannot shed.
THREAD_ABOVE_BYTES = 8_000
#: Likewise, resources that are published again.
THREAD_ABOVE_RESOURCES = 100
#: Bytes that one of these counts as, where load is measured.
REPUBLISHED_BYTES = 200
#: Seconds between two steps that a watcher is told of, at least.
WATCH_STEP_S = 0.1
#: Seconds between two notes in the log of what is published.
PUBLISHED_NOTE_S = 1.0
#: Seconds of silence after which a standby takes over.
FAILOVER_AFTER_S = 3.0
#: How often in that time whoever serves says that it is there.
_SAID_ALIVE = 3
#: Seconds within which what was accepted must be durable, and published, when it stops.
STOP_S = 5.0


class Outcome(NamedTuple):
    change: int
    changed_objects: int
    requirements: list[Requirement]


class _Appended(NamedTuple):
    durable: asyncio.Future[bytes]
    accepted: Accepted
    answer: asyncio.Future[None]


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
    ) -> None:
        """`failover_after_s`: seconds, alike for all engines of a region. `snapshot_writer` writes
        a snapshot of the log elsewhere; without one, it is written here (see
        `snapshot.write_snapshot`). `spread` is shared by the engines of a process, which serve the
        shards of one region."""
        self.writer = writer
        #: Where it is to be called, HOST:PORT; to be set before `start`.
        self.address = ""
        self.topics = topics
        self._bus = bus
        self._clock_id = clock_id
        self._clock_ns = clock_ns
        #: The clock of leases, in nanoseconds: nobody sets it.
        self.steady_ns = steady_ns
        self._metrics = metrics
        self._own_stream = security_groups_own_stream
        self._channels = channels
        self._failover_after_s = failover_after_s
        self._spread = spread or Spread()
        self._standby = self._new_standby()
        #: Another engine serves, and `core` is what the log says of it.
        self._standing_by = False
        #: When the newest record that proved the log to be ours was sent, by the monotonic clock.
        self._proven_at = 0.0
        self._proof: asyncio.Future[None] | None = None
        self._lock = asyncio.Lock()
        self._serving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._report_readers: list[Reader] = []
        self._appended: deque[_Appended] = deque()
        self._moved: dict[Wait, asyncio.Event] = {}
        self._applying: set[asyncio.Task[Outcome]] = set()
        self._snapshots = snapshots
        self._snapshot_writer = snapshot_writer or self._write_snapshot_here
        self._snapshotting = False
        self._checkpoint_policy = checkpoints
        self._admission = admission or Admission(AdmissionPolicy())
        self._admission.backlogs.append(lambda: self._backlog_bytes)
        #: Bytes of the log when the last snapshot was begun, whatever came of it.
        self._snapshot_tried = 0
        #: Set when it cannot go on, with the reason in `failure`.
        self.failed = asyncio.Event()
        self.failure: Exception | None = None
        self._problem = "starting"
        self.convergence = Convergence(self._follows, self._digest_at, self._head)
        # What recovery makes anew:
        self.core = Core(topics, security_groups_own_stream=security_groups_own_stream)
        self._changes: Changes = OrderedDict()
        self._log = IntentLog(bus, topics.intent_log)
        self._publisher: Publisher | None = None
        #: What agents' sessions are served from; None: while it does not serve.
        self.sessions: Sessions | None = None
        self._noted = 0
        self._snapshot: log_pb2.SnapshotEnd | None = None
        self._checkpoints: Checkpoints | None = None
        self._checkpointing: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Become what the log says; then serve, or stand by if another one serves.

        Raises LogUnreadable, BusError.
        """
        for shard in range(self.topics.report_shards):
            reader = await self._bus.open_reader(
                self.topics.reports(shard), LATEST, self._on_report
            )
            self._report_readers.append(reader)
        self._standby = self._new_standby()
        await self._standby.read()
        self._go_on(self._say_alive())
        try:
            incarnation = await self._standby.take()
        except LogHeld:
            self._stand_by()
            self._go_on(self._become_active(read=True))
        else:
            await self._serve(incarnation)
        self._go_on(self._note_published())

    async def stop(self) -> None:
        """Stop accepting, finish what was accepted, and leave."""
        self._serving = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self._report_readers:
            await reader.close()
        await self._finish_accepted()
        try:
            async with asyncio.timeout(STOP_S):
                if self._publisher is not None:
                    await self._publisher.close()
                await self._close_log(self._log)
        except TimeoutError:
            log.warning("stopped without giving its topics up; closing the bus does that")

    def _go_on(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside serving, until it is done or the engine stops."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _new_standby(self) -> Standby:
        return Standby(
            self._bus,
            self.topics,
            writer=self.writer,
            address=self.address,
            security_groups_own_stream=self._own_stream,
            channels=self._channels,
            failover_after_s=self._failover_after_s,
            clock_ns=self._clock_ns,
            followed=self._stand_by,
            spread=self._spread,
        )

    def _stand_by(self) -> None:
        """Another one holds the log: once it has begun an epoch, what it wrote is what counts."""
        self._problem = "somebody else holds the intent log"
        replay = self._standby.replay
        if self.core is replay.core:
            return
        if not self._standing_by and replay.core.epoch <= self.core.epoch:
            return
        self.core, self._changes = replay.core, replay.changes
        self._metrics.epoch.labels(shard=self.topics.shard).set(self.core.epoch)
        self._publisher = self.sessions = None
        self._standing_by = True
        for event in self._moved.values():
            event.set()
        log.info("standing by", epoch=self.core.epoch, change=self.core.change)

    async def _become_active(self, *, read: bool, yields: bool = False) -> None:
        """Take the log once it can be had, and serve. `read`: it was read to its end just now;
        `yields`: another one is to take it now, and we only if that does not come."""
        delay, longest = BACKOFF_S
        while True:
            try:
                if not read:
                    self._standby = self._new_standby()
                    await self._standby.read()
                    read = True
                try:
                    if yields:
                        raise LogHeld("it is another one's turn")
                    incarnation = await self._standby.take()
                except LogHeld:
                    # The broker may also take our own lost connection for another writer.
                    self._stand_by()
                    incarnation = await self._standby.take_when_free(yields=yields)
                await self._serve(incarnation)
                return
            except BusError as failure:
                read = False
                log.warning("cannot recover yet", error=str(failure))
                self._problem = f"cannot recover from the intent log yet: {failure}"
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)
            except Exception as failure:
                self.failure = failure
                self.failed.set()
                return

    async def _serve(self, incarnation: log_pb2.Incarnation) -> None:
        """Serve as the writer of the log; until then, everything is left as it is."""
        begun = time.monotonic()
        standby = self._standby
        replay, snapshot, intent_log = standby.replay, standby.snapshot, standby.intent_log
        core = replay.core
        self._log = intent_log  # from now on it is told that we are there
        try:
            missing = await not_on_topics(self._bus, self.topics, replay.unconfirmed)
        except BaseException:
            await self._close_log(intent_log)
            raise
        transport = BusTransport(
            self._bus,
            self.topics,
            clock_ns=self._clock_ns,
            sent=self._on_sent,
            prove=partial(self._prove, intent_log),
            checkpoints={s: place_of(c) for s, c in replay.checkpoints.items()},
        )
        on_sessions = {
            s: at.mark for s, at in core.streams.items() if at.channel is Channel.SESSION
        }
        builder = CheckpointBuilder(
            core, lock=self._lock, durable=self.durable, clock_ns=self._clock_ns
        )
        sessions = Sessions(
            Rings(on_sessions), builder.build, clock_ns=self._clock_ns, sent=self._metrics.sent
        )
        publisher = Publisher(Router(transport, sessions, self._came_back), replay.published)
        # Under one number: it counts as published when the last of it is confirmed. Where a stream
        # came back by it, rings and checkpoints know: it may be on sessions again by now.
        publisher.publish(core.change, [one._replace(begins=False) for one in missing])
        self.core, self._changes = core, replay.changes
        self._publisher, self._noted = publisher, replay.published
        self.sessions = sessions
        self._snapshot = snapshot
        self._metrics.epoch.labels(shard=self.topics.shard).set(core.epoch)
        self._proven_at = max(self._proven_at, standby.proven_at)
        self._standing_by = False
        self._serving = True
        self._problem = ""
        self._checkpoints = Checkpoints(
            self._bus,
            core,
            transport,
            intent_log,
            policy=self._checkpoint_policy,
            newest=replay.checkpoints,
            lock=self._lock,
            durable=self.durable,
            clock_ns=self._clock_ns,
            metrics=self._metrics,
        )
        self._checkpointing = self._go_on(self._checkpoints.run())
        log.info(
            "recovered",
            epoch=incarnation.epoch,
            change=core.change,
            records=replay.records,
            of_snapshot=snapshot.records if snapshot is not None else 0,
            published_again=len(missing),
            seconds=round(time.monotonic() - begun, 3),
        )

    async def hand_over(self) -> bool:
        """Leave the log to another one, in order, and stand by; False: it is not ours just now.

        What was accepted is brought to its end first. Returns when the log can be taken.
        """
        async with self._lock:
            if not self.serving:
                return False
            self._serving = False
            self._problem = "handing over to another publisher"
        log.info("handing over", shard=self.topics.shard, epoch=self.core.epoch)
        await self._finish_accepted()
        await self._leave_the_log()
        self._go_on(self._become_active(read=False, yields=True))
        return True

    async def _finish_accepted(self) -> None:
        """Have durable and published what was accepted. It is not serving any more."""
        try:
            async with asyncio.timeout(STOP_S):
                if self._applying:
                    await asyncio.wait(self._applying)
                if self._publisher is not None:
                    await self._publisher.drain()
                    if self._publisher.published > self._noted:
                        note = log_pb2.Published(change=self._publisher.published)
                        await self._log.append(log_pb2.Record(published=note))
        except (TimeoutError, BusError) as error:
            # Whatever is in the log is published by whoever serves next.
            why = str(error) or "no answer in time"
            log.warning("left with work outstanding", error=why)
            self._fail_appended(BusError(why))

    async def _lost_the_log(self, error: BaseException) -> None:
        """Memory is ahead of the log: become what the log says, when the broker lets us."""
        log.error("memory is ahead of the intent log; recovering", error=str(error))
        self._problem = f"recovering, since the intent log failed: {error}"
        await self._leave_the_log()
        await self._become_active(read=False)

    async def _leave_the_log(self) -> None:
        """Let go of it and of all topics."""
        async with self._lock:
            pass  # nobody works on the core any more, in a thread or otherwise
        self._checkpoints = self.sessions = None
        if self._checkpointing is not None:
            self._checkpointing.cancel()
            await asyncio.gather(self._checkpointing, return_exceptions=True)
        # First the log: a topic that is being opened waits for a proof in it.
        await self._close_log(self._log)
        if self._publisher is not None:
            await self._publisher.close()

    async def _close_log(self, intent_log: IntentLog) -> None:
        self._spread.held.discard(self.topics.shard)
        try:
            await intent_log.close()
        except BusError as error:
            log.warning("closing the intent log", error=str(error))

    async def _note_published(self) -> None:
        while True:
            await asyncio.sleep(PUBLISHED_NOTE_S)
            publisher = self._publisher
            self._snapshot_if_due()
            if not self._serving or publisher is None or publisher.published <= self._noted:
                continue
            noted = publisher.published
            try:
                await self._log.append(log_pb2.Record(published=log_pb2.Published(change=noted)))
                if self._publisher is publisher:
                    self._noted = noted
            except BusError as error:
                # The note only saves work at the next start; a lost log shows at the next append.
                log.warning("cannot note what is published", error=str(error))

    def _snapshot_if_due(self) -> None:
        covered = self._snapshot.log.bytes if self._snapshot is not None else 0
        grown = self._log.size - max(covered, self._snapshot_tried)
        if (
            self._serving
            and not self._snapshotting
            and self._snapshots.is_due(grown, self._snapshot)
        ):
            self._snapshotting = True
            self._snapshot_tried = self._log.size
            self._go_on(self._take_snapshot())

    async def _take_snapshot(self) -> None:
        """Have a snapshot written. Nothing depends on it but how long the next start takes."""
        try:
            await self._snapshot_writer()
            end = await newest_end(self._bus, self.topics)
            if end is not None and end != self._snapshot:
                self._snapshot = end
                log.info("snapshot written", change=end.change, bytes=end.bytes)
        except Exception as error:
            log.warning("no snapshot of the intent log was written", error=str(error))
        finally:
            self._snapshotting = False

    async def _write_snapshot_here(self) -> None:
        await write_snapshot(
            self._bus,
            self.topics,
            writer=self.writer,
            security_groups_own_stream=self._own_stream,
        )

    async def _say_alive(self) -> None:
        """Let those who stand by know, and know ourselves, that the log is ours."""
        while True:
            await asyncio.sleep(self._failover_after_s / _SAID_ALIVE)
            intent_log = self._log
            if not intent_log.is_open:
                continue
            try:
                await self._prove(intent_log)
            except BusError as error:
                if intent_log is self._log and self._serving:
                    self._fail_appended(error)

    async def _prove(self, intent_log: IntentLog) -> None:
        """Raises BusError unless the log is ours."""
        sent_at = time.monotonic()
        alive = log_pb2.Alive(writer=self.writer, address=self.address)
        await intent_log.append(log_pb2.Record(alive=alive))
        if intent_log is self._log:
            self._proven_at = max(self._proven_at, sent_at)

    async def confirm(self) -> None:
        """Make sure that what the log holds by now is known here, whoever else may serve.

        A former active one does not know yet that it is one. So before it says how things are, it
        proves by a record sent after it was asked that the log is its own. Questions that come
        together share a record. Raises NotServing.
        """
        asked_at = time.monotonic()
        while self._proven_at <= asked_at:
            if not self.serving:
                raise NotServing(f"the publisher is not serving just now: {self.problem}")
            if self._proof is None or self._proof.done():
                self._proof = asyncio.ensure_future(self._prove(self._log))
                self._proof.add_done_callback(retrieved)
            try:
                async with asyncio.timeout(self._failover_after_s):
                    await asyncio.shield(self._proof)
            except TimeoutError:
                raise NotServing("the intent log does not answer") from None
            except BusError as error:
                if self._serving:
                    self._fail_appended(error)
                raise NotServing(f"the intent log does not answer: {error}") from error

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
        return self._publisher.backlog_bytes if self._publisher is not None else 0

    def _applied(self, size: int, task: asyncio.Task[Outcome]) -> None:
        self._applying.discard(task)
        self._admission.leave(size, time.monotonic())
        if not task.cancelled():
            task.exception()  # its caller may be gone, and an error is not to be reported twice

    async def _apply(self, change: log_pb2.Change) -> Outcome:
        async with self._lock:
            if not self.serving:
                raise NotServing(f"the publisher is not serving just now: {self.problem}")
            change.accepted_unix_ns = self._clock_ns()
            try:
                if _is_large(change):
                    accepted = await asyncio.to_thread(self._accept, change)
                else:
                    accepted = self._accept(change)
            except IntentRejected:
                raise
            except Exception as error:
                # A defect of ours: how much of the intent is in memory is not known.
                log.exception("intent failed")
                self._fail_appended(error)
                raise NotServing(f"the intent failed ({error!r}); recovering") from error
            if not self._serving:
                # Meanwhile the log failed: what was accepted above is forgotten with the rest.
                raise NotServing("the intent log failed; nothing of the intent was taken")
            if accepted is None:
                # What makes it a repetition may still be on its way into the log.
                earlier = self._appended[-1].answer if self._appended else None
                newest = self.core.change
            else:
                change.change = accepted.change
                durable = self._log.append(log_pb2.Record(change=change))
                answer = asyncio.get_running_loop().create_future()
                self._appended.append(_Appended(durable, accepted, answer))
                durable.add_done_callback(self._on_durable)
        if accepted is None:
            if earlier is not None:
                await earlier
            await self.confirm()
            return Outcome(newest, 0, [])
        await answer
        return Outcome(accepted.change, accepted.changed_objects, accepted.requirements)

    def _accept(self, change: log_pb2.Change) -> Accepted | None:
        changes = self.core.plan(intent_codec.from_proto(change.intent))
        again = republished(change.republished)
        unknown = [
            never_on_a_stream(place, key)
            for place, key in enumerate(again)
            if not self.core.inventory.knows(key)
        ]
        if unknown:
            raise IntentRejected(unknown)
        if not changes and not again:
            return None
        return self.core.accept(changes, change.accepted_unix_ns, change.traceparent, again)

    def _on_durable(self, done: asyncio.Future[bytes]) -> None:
        if not done.cancelled():
            done.exception()  # what failed after the first failure is not looked at below
        while self._appended and self._appended[0].durable.done():
            durable, accepted, answer = self._appended[0]
            error = None if durable.cancelled() else durable.exception()
            if error is not None or durable.cancelled():
                self._fail_appended(error or BusError("cancelled"))
                return
            self._appended.popleft()
            self.core.logged(accepted.change)
            assert self._publisher is not None
            remember(self._changes, accepted)
            self._publisher.publish(accepted.change, accepted.publications)
            if not answer.done():
                answer.set_result(None)

    def _fail_appended(self, error: BaseException) -> None:
        was_serving, self._serving = self._serving, False
        failed, self._appended = self._appended, deque()
        for _, _, answer in failed:
            if not answer.done():
                answer.set_exception(
                    NotServing(f"the intent log failed ({error}); the intent may be in it or not")
                )
                answer.exception()
        if was_serving:  # not once it stops
            self._go_on(self._lost_the_log(error))

    async def durable(self) -> None:
        """Wait until all that was accepted so far is in the log. Raises NotServing."""
        if self._appended:
            # Shielded: others wait for it too.
            await asyncio.shield(self._appended[-1].answer)
        elif not self._serving:
            raise NotServing("the intent log failed")

    def _on_sent(self, publication: Publication) -> None:
        self._metrics.sent(publication)
        if self._checkpoints is not None:
            self._checkpoints.consider(publication.envelope.stream)

    def _came_back(self, stream: StreamId) -> None:
        if self._checkpoints is not None:
            self._checkpoints.begin_again(stream)

    # --- convergence ---

    def _follows(self, host: str, stream: StreamId) -> bool:
        return self.core.waits_for(host, stream)  # of the core as it is now: recovery makes another

    def _digest_at(self, host: str, stream: StreamId, mark: Mark) -> int | None:
        # While it is locked, another thread may be half way.
        return None if self._lock.locked() else self.core.inventory.digest_at(host, stream, mark)

    def _head(self, stream: StreamId) -> Mark:
        state = self.core.streams.get(stream)
        return state.mark if state is not None else ORIGIN

    def _on_report(self, message: Message) -> None:
        try:
            report = agent_pb2.Report.FromString(message.payload)
        except Exception as error:
            log.warning("unreadable report", topic=message.topic, error=str(error))
            self._metrics.reports.labels(result="unreadable").inc()
            return
        now, steady = self._clock_ns(), self.steady_ns()
        same_clock = report.clock_id == self._clock_id
        moved: set[Wait] = set()
        for host in report.hosts:
            try:
                moved |= self.convergence.report(host, now, same_clock, steady)
                self._metrics.reports.labels(result="taken").inc()
            except ValueError as error:
                log.warning("bad report", host=host.host, error=str(error))
                self._metrics.reports.labels(result="bad").inc()
        for wait in moved:
            event = self._moved.get(wait)
            if event is not None:
                event.set()
        if self._serving:
            for stream in self.convergence.reminders.take(steady):
                self._go_on(self._remind(stream))

    async def _remind(self, stream: StreamId) -> None:
        """Say where a quiet stream ends."""
        core, publisher = self.core, self._publisher
        async with self._lock:
            state = core.streams.get(stream)
            if state is None or state.channel is not Channel.PULSAR:
                return  # on a session nothing is lost that is not asked for again
            newest = newest_of(core, stream)
        try:
            await self.durable()  # so all up to there is given to the transport
        except NotServing:
            return
        on_topic = state.channel is Channel.PULSAR
        if self._serving and on_topic and publisher is not None and publisher is self._publisher:
            log.info("reminding of the end of a stream", stream=str(stream), mark=str(newest.mark))
            publisher.remind(newest)

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
        async with self._lock:
            core = self.core
            wait = self._begin_wait(change, vpc, quorum)
        event = self._moved[wait] = asyncio.Event()
        try:
            while True:
                event.clear()
                if self._standing_by:
                    raise NotServing(f"the publisher does not serve any more: {self.problem}")
                progress = self.convergence.progress(wait, self.steady_ns(), max_stragglers)
                if on_progress is not None:
                    on_progress(progress)
                left = deadline - time.monotonic()
                if progress.converged or left <= 0:
                    return progress
                try:
                    # Look at the latest after a second: leases expire without a report.
                    async with asyncio.timeout(min(left, 1.0)):
                        await event.wait()
                        if on_progress is not None:
                            await asyncio.sleep(WATCH_STEP_S)
                        while on_progress is None and not wait.may_have_converged:
                            event.clear()
                            await event.wait()
                except TimeoutError:
                    pass
                if self.core is not core and change is None:
                    # What was wanted may have been lost with the log that it was to go into.
                    async with self._lock:
                        core = self.core
                        renewed = self._begin_wait(change, vpc, quorum)
                    self._end(wait)
                    wait = renewed
                    self._moved[wait] = event
        finally:
            self._end(wait)

    def _end(self, wait: Wait) -> None:
        self.convergence.end(wait)
        del self._moved[wait]

    def _begin_wait(self, change: int | None, vpc: str | None, quorum: float) -> Wait:
        requirements, accepted_ns = self._required(change, vpc)
        concerns = [(r.stream, r.mark, self.core.concerned(r)) for r in requirements]
        # Of one change only: of several, the host tells the newest.
        revocations = (
            {r.stream: r.revoked for r in requirements if r.revoked > ORIGIN}
            if change is not None
            else {}
        )
        return self.convergence.begin(concerns, accepted_ns, quorum, revocations)

    def _required(self, change: int | None, vpc: str | None) -> tuple[list[Requirement], int]:
        if change is not None:
            accepted = self._changes.get(change)
            if accepted is None:
                raise UnknownChange(
                    f"change {change} is not known (newest: {self.core.change}; the last "
                    f"{REMEMBERED_CHANGES} can be waited for by number): wait for the VPC instead"
                )
            return accepted.requirements, accepted.accepted_ns
        if vpc is not None:
            return self.core.requirements_of_vpc(vpc), self.core.accepted_ns(vpc)
        return self.core.requirements_of_all(), self.core.accepted_ns()

    # --- what is ---

    @property
    def serving(self) -> bool:
        """Does it accept intents, and is what it says of them the newest?"""
        return self._serving and time.monotonic() - self._proven_at < self._failover_after_s

    @property
    def held(self) -> int:
        """How many shards this process holds."""
        return len(self._spread.held)

    @property
    def standing_by(self) -> bool:
        return self._standing_by

    @property
    def problem(self) -> str:
        """Why it does not serve just now; empty while it does."""
        if self._standing_by:
            active = self.active
            where = f" at {active.address}" if active is not None and active.address else ""
            who = f"{active.writer}{where}" if active is not None else "another publisher"
            return f"standing by; {who} serves the region"
        if self._serving and not self.serving:
            return "the intent log does not answer"
        return self._problem

    @property
    def active(self) -> log_pb2.Alive | None:
        """Who serves the region; None: not known."""
        if self.serving:
            return log_pb2.Alive(writer=self.writer, address=self.address)
        return self._standby.replay.active if self._standing_by else None

    @property
    def backlog(self) -> int:
        return self._publisher.backlog if self._publisher is not None else 0

    @property
    def checkpoint_due_s(self) -> float:
        """For how long the checkpoint has been due that is due for longest; 0 if none is."""
        return self._checkpoints.due_s if self._checkpoints is not None else 0.0

    @property
    def lock(self) -> asyncio.Lock:
        """To be held while the core is looked at over more than one turn of the loop."""
        return self._lock

    def knows_vpc(self, vpc: str) -> bool:
        """Is there such a VPC, or was there ever?"""
        return vpc_stream(vpc) in self.core.streams


def _is_large(change: log_pb2.Change) -> bool:
    """Does it take long to work on? A cascade may, however short it is to say."""
    if len(change.republished) > THREAD_ABOVE_RESOURCES:
        return True
    cascades = any(deletion.cascade for deletion in change.intent.deletes)
    return change.intent.ByteSize() > THREAD_ABOVE_BYTES or cascades
