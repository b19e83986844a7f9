"""Checkpoints: the whole state of a stream on a topic of its own, so that nobody reads a long log.

Laws (the envelope's text says what a checkpoint is):

1.  What a checkpoint holds, brought by the log after its mark M as far as `until`, is the stream's
    state there. A resource that came, changed or went while it was built is on the log after M.
2.  It is built in slices, and what is accepted waits for one slice at the most.
3.  It counts once the intent log says so, and that it does only when all that it holds is durable
    and its last message is confirmed. Until then the one before is in force: to fail or to stop on
    the way costs time and nothing else.
4.  A stream's log grows by what its state makes up times a factor, then there is a new checkpoint.
    What comes while one is written is read after it, and so counts for the next.
    With a maximal age there is always one that is not much older, also of a stream that is quiet
    or whose VPC is gone, so that topics can have a retention.
5.  A stream that was on another channel left a gap in its log. No checkpoint of before that counts,
    and as soon as it comes back a new one is due.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import structlog

from goalstate.bus.base import Bus, Producer
from goalstate.bus.errors import BusError
from goalstate.dpm.building import Building, newest_of
from goalstate.dpm.core import Core
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.inventory import Publication, StreamState
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.publisher import BusTransport
from goalstate.dpm.recovery import Head
from goalstate.gs import envelope as envelopes
from goalstate.gs.envelope import CheckpointPlace
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import ORIGIN, Channel, StreamId

log = structlog.get_logger()

#: So many checkpoints are written at once; each is in memory as a whole meanwhile.
AT_ONCE = 4
#: Seconds before what failed is tried again: doubled at each failure up to the second number.
BACKOFF_S = (1.0, 60.0)
#: Seconds within which a broker must confirm one message.
CONFIRM_S = 30.0
#: Seconds between two looks for checkpoints that are too old.
LOOK_S = 1.0

_NS = 1_000_000_000


class CheckpointPolicy(NamedTuple):
    """When one is due: once what was put on the stream since the last was begun is more than both
    of these, or that is older than `max_age_s`."""

    #: Bytes of payload.
    min_bytes: int = 1024 * 1024
    #: Times the bytes of the stream's state.
    factor: float = 2.0
    #: Seconds; None: it may be as old as it likes.
    max_age_s: float | None = None

    def is_outweighed(self, state: StreamState) -> bool:
        """Is it time for one because of what was put on the stream?"""
        return state.written > max(self.min_bytes, self.factor * state.size)


def place_of(checkpoint: log_pb2.Checkpointed) -> CheckpointPlace:
    return CheckpointPlace(checkpoint.begin, checkpoint.log_position)


class Checkpoints:
    """Writes the checkpoints of one incarnation of the publisher."""

    def __init__(
        self,
        bus: Bus,
        core: Core,
        transport: BusTransport,
        intent_log: IntentLog,
        *,
        policy: CheckpointPolicy,
        newest: Mapping[StreamId, log_pb2.Checkpointed],
        lock: asyncio.Lock,
        durable: Callable[[], Awaitable[None]],
        clock_ns: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        """`newest`: of each stream that has one. `lock`: nobody changes the core while it is held.
        `durable`: waits until all that the core accepted so far is in the log; raises NotServing.
        """
        self._bus = bus
        self._core = core
        self._transport = transport
        self._log = intent_log
        self._policy = policy
        self._lock = lock
        self._durable = durable
        self._clock_ns = clock_ns
        self._metrics = metrics
        #: Streams whose checkpoint is due, and since when (ns since the epoch), oldest first.
        self._due: OrderedDict[StreamId, int] = OrderedDict()
        self._queue: asyncio.Queue[StreamId] = asyncio.Queue()
        #: How old the newest checkpoint of each stream is that is not due, oldest first: when it
        #: was begun. Where there is none yet: when the stream was first seen.
        self._begun: OrderedDict[StreamId, int] = OrderedDict()
        #: Streams that came back to their topic and have no checkpoint since.
        self._stale = {
            stream
            for stream, state in core.streams.items()
            if state.continues(state.mark) and state.began > ORIGIN and stream not in newest
        }
        if policy.max_age_s is not None:
            self._begun.update(
                sorted(
                    (
                        # What is on a stream without one is as old as may be.
                        (stream, newest[stream].begun_unix_ns if stream in newest else 0)
                        for stream, state in core.streams.items()
                        if state.mark > ORIGIN and state.channel is Channel.PULSAR
                    ),
                    key=lambda begun: begun[1],
                )
            )

    @property
    def due_s(self) -> float:
        """For how long the one has been due that is due for longest; 0 if none is."""
        since = next(iter(self._due.values()), None)
        return 0.0 if since is None else max(0.0, (self._clock_ns() - since) / _NS)

    def consider(self, stream: StreamId) -> None:
        """To be called when something was put on a stream."""
        state = self._core.streams[stream]
        if state.channel is not Channel.PULSAR:
            return
        if self._policy.is_outweighed(state):
            self._is_due(stream)
        elif self._policy.max_age_s is not None and stream not in self._due:
            self._begun.setdefault(stream, self._clock_ns())

    def begin_again(self, stream: StreamId) -> None:
        """The stream comes back to its topic: whoever lags or joins needs a checkpoint soon."""
        self._stale.add(stream)
        self._is_due(stream)

    async def run(self) -> None:
        """Write what is due, until cancelled."""
        async with self._lock:
            for stream, state in self._core.streams.items():
                outweighed = state.channel is Channel.PULSAR and self._policy.is_outweighed(state)
                if outweighed or stream in self._stale:
                    self._is_due(stream)
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work())
            if self._policy.max_age_s is not None:
                group.create_task(self._look_at_ages(self._policy.max_age_s))

    async def _look_at_ages(self, max_age_s: float) -> None:
        while True:
            too_old = self._clock_ns() - max_age_s * _NS
            while self._begun and next(iter(self._begun.values())) <= too_old:
                self._is_due(next(iter(self._begun)))
            await asyncio.sleep(LOOK_S)

    def _is_due(self, stream: StreamId) -> None:
        self._begun.pop(stream, None)
        if stream not in self._due:
            self._due[stream] = self._clock_ns()
            self._queue.put_nowait(stream)

    async def _work(self) -> None:
        delay, longest = BACKOFF_S
        while True:
            stream = await self._queue.get()
            try:
                begun = self._clock_ns()
                await self.write(stream)
            except Exception as error:
                # The old one is in force, whatever it was; a stream that cannot have a new one
                # must not hold up the others.
                log.warning("no checkpoint was written", stream=str(stream), error=repr(error))
                self._metrics.checkpoints.labels(result="failed").inc()
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)
                self._queue.put_nowait(stream)
                continue
            delay = BACKOFF_S[0]
            del self._due[stream]
            if stream in self._stale:
                self._is_due(stream)
                continue
            if self._policy.max_age_s is not None:
                self._begun[stream] = begun
            self.consider(stream)

    # --- one checkpoint ---

    async def write(self, stream: StreamId) -> None:
        """Write one now, due or not; two of one stream at once exclude each other. Of a stream that
        is not on its topic, or was not for a while meanwhile, there is none.

        Raises BusError, NotServing, TimeoutError, RuntimeError (see `Inventory.rebuild`).
        """
        state = self._core.streams[stream]
        if state.channel is not Channel.PULSAR:
            self._stale.discard(stream)
            return
        begun, covers = self._clock_ns(), state.written
        head = await self._head(stream)
        topic = self._core.topics.checkpoints_of(stream)
        producer = await self._transport.open_producer(topic)
        try:
            last = await self._bus.last(topic)
            place = CheckpointPlace(last.position if last is not None else b"", head.position)
            built = await self._build(stream)
            # Nothing of what is not durable may ever be read as if it were.
            await self._durable()
            for publication in built.publications(head.envelope.mark, place):
                await self._send(producer, publication)
        finally:
            try:
                await producer.close()
            except BusError as error:
                log.debug("closing a producer", topic=topic, error=str(error))
        mark = head.envelope.mark
        checkpointed = log_pb2.Checkpointed(
            stream=str(stream),
            epoch=mark.epoch,
            sequence=mark.sequence,
            begin=place.begin,
            log_position=place.log,
            bytes=built.size,
            begun_unix_ns=begun,
            covers=covers,
        )
        await self._log.append(log_pb2.Record(checkpointed=checkpointed))
        if not state.continues(mark):
            log.info("a checkpoint came too late", stream=str(stream), mark=str(mark))
            return
        self._stale.discard(stream)
        self._core.inventory.checkpointed(stream, built.size, covers)
        self._metrics.checkpoints.labels(result="written").inc()
        self._metrics.checkpoint_bytes.inc(built.size)
        log.info("checkpoint written", stream=str(stream), mark=str(mark), bytes=built.size)
        await self._transport.announce(stream, place)

    async def _head(self, stream: StreamId) -> Head:
        head = await self._transport.head(stream, self._core.streams[stream].mark)
        if head is not None and self._core.streams[stream].continues(head.envelope.mark):
            return head
        # What was on the log is gone by the topic's retention, or is of a time before the stream
        # was on another channel, or the first of it is on its way.
        async with self._lock:
            newest = newest_of(self._core, stream)
        await self._durable()  # so all up to there is given to the transport
        async with asyncio.timeout(CONFIRM_S):
            return await self._transport.begin(newest)

    async def _build(self, stream: StreamId) -> Building:
        async with self._lock:
            building = Building(self._core, stream)
        while not building.done:
            async with self._lock:
                building.step()
            await asyncio.sleep(0)
        return building

    async def _send(self, producer: Producer, publication: Publication) -> None:
        stamped = publication.envelope._replace(published_ns=self._clock_ns())
        async with asyncio.timeout(CONFIRM_S):
            await producer.send(
                publication.payload,
                key=stamped.stream.id,
                properties=envelopes.to_properties(stamped),
            )
