"""An incarnation of the publisher: what serves for as long as the log is its own.

    intake ─▶ publisher ─▶ router ─┬─▶ topics ─▶ checkpoints
                                   └─▶ sessions

Laws:

1.  It begins from the log: first of all it publishes what the topics do not have yet, under its old
    marks.
2.  It is used once: after a failure another one is made from the log.
3.  The notes in the log of what is published only save work at the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from goalstate.bus.base import Bus
from goalstate.dpm.building import newest_of
from goalstate.dpm.checkpoints import CheckpointPolicy, Checkpoints, place_of
from goalstate.dpm.errors import NotServing
from goalstate.dpm.intake import Intake
from goalstate.dpm.inventory import Publication
from goalstate.dpm.leadership import Leadership
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.publisher import BusTransport, Publisher
from goalstate.dpm.recovery import Replay
from goalstate.dpm.rings import Rings
from goalstate.dpm.routing import Router
from goalstate.dpm.sessions import CheckpointBuilder, Sessions
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import Channel, StreamId

log = structlog.get_logger()


class Incarnation:
    def __init__(
        self,
        bus: Bus,
        replay: Replay,
        leadership: Leadership,
        missing: Sequence[Publication],
        *,
        lock: asyncio.Lock,
        checkpoints: CheckpointPolicy,
        group_interval_s: float,
        clock_ns: Callable[[], int],
        metrics: Metrics,
        lost: Callable[[BaseException], None],
    ) -> None:
        """`replay`: of the whole log. `missing`: what the topics do not have of it. `lock`: nobody
        changes the core while it is held. `group_interval_s`, `lost`: see `Intake`."""
        core = replay.core
        self.leadership = leadership
        #: Up to which change the log says that everything is published.
        self.noted = replay.published
        self._core = core
        self._lock = lock
        self._metrics = metrics
        transport = BusTransport(
            bus,
            core.topics,
            clock_ns=clock_ns,
            sent=self._on_sent,
            prove=leadership.prove,
            checkpoints={s: place_of(c) for s, c in replay.checkpoints.items()},
        )
        on_sessions = {
            s: at.mark for s, at in core.streams.items() if at.channel is Channel.SESSION
        }
        builder = CheckpointBuilder(core, lock=lock, durable=self._durable, clock_ns=clock_ns)
        self.sessions = Sessions(
            Rings(on_sessions), builder.build, clock_ns=clock_ns, sent=metrics.sent
        )
        self.publisher = Publisher(
            Router(transport, self.sessions, self._came_back), replay.published
        )
        self.intake = Intake(
            core,
            replay.changes,
            leadership.log,
            lock=lock,
            interval_s=group_interval_s,
            publish=self.publisher.publish,
            lost=lost,
        )
        self.checkpoints = Checkpoints(
            bus,
            core,
            transport,
            leadership.log,
            policy=checkpoints,
            newest=replay.checkpoints,
            lock=lock,
            durable=self._durable,
            clock_ns=clock_ns,
            metrics=metrics,
        )
        # Under one number: it counts as published when the last of it is confirmed. Where a stream
        # came back by it, rings and checkpoints know: it may be on sessions again by now.
        self.publisher.publish(core.change, [one._replace(begins=False) for one in missing])

    @property
    def serving(self) -> bool:
        """Does it accept intents, and is what it says of them the newest?"""
        return self.intake.accepting and self.leadership.is_fresh

    async def remind(self, stream: StreamId) -> None:
        """Say where a quiet stream ends."""
        async with self._lock:
            state = self._core.streams.get(stream)
            if state is None or state.channel is not Channel.PULSAR:
                return  # on a session nothing is lost that is not asked for again
            newest = newest_of(self._core, stream)
        try:
            await self._durable()  # so all up to there is given to the transport
        except NotServing:
            return
        if self.intake.accepting and state.channel is Channel.PULSAR:
            log.info("reminding of the end of a stream", stream=str(stream), mark=str(newest.mark))
            self.publisher.remind(newest)

    async def note_published(self) -> None:
        """Have the log say what is published, if that is more than it says. Raises BusError."""
        published = self.publisher.published
        if published > self.noted:
            note = log_pb2.Published(change=published)
            await self.leadership.log.append(log_pb2.Record(published=note))
            self.noted = published

    async def finish(self) -> None:
        """Have all published that is durable, and noted. Raises BusError."""
        await self.publisher.drain()
        await self.note_published()

    async def _durable(self) -> None:
        await self.intake.durable()

    def _on_sent(self, publication: Publication) -> None:
        self._metrics.sent(publication)
        self.checkpoints.consider(publication.envelope.stream)

    def _came_back(self, stream: StreamId) -> None:
        self.checkpoints.begin_again(stream)
