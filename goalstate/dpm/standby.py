"""Standing by: following the intent log, and becoming its writer when that is gone or silent.

    follow ─┬─ nobody holds the log ────────────┐
            └─ its holder is silent: take over ─┴─▶ read on ─▶ Incarnation ─▶ read on ─▶ serve

Laws:

1.  Whoever holds the log's exclusive producer may write; a session of the log ends where another
    begins (`intent_log`, law 5). So of several that try at once one wins, and what a former writer
    still says after that counts for nothing.
2.  The log is read before it is opened for writing, however long that takes: whoever holds it is
    heard within a second, and one that has much to read is not silent.
3.  After the Incarnation is in the log, what came in before it is redone as well: a broker may
    still write what the former writer had under way. That was acknowledged, perhaps.
4.  Silence counts only while the broker answers and we run ourselves: neither an outage of the
    broker nor our own pause is held against the active one. Nor is it that a word of it has not
    been delivered: before the log is taken from anybody, it is read.
5.  Whoever holds logs of other shards lets others come first (see `spread`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from goalstate.bus.base import Bus, Message
from goalstate.bus.errors import BusError
from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.errors import LogHeld
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.leadership import Leadership
from goalstate.dpm.recovery import Replay
from goalstate.dpm.snapshot import recover
from goalstate.dpm.spread import Spread, patience_s
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.topics import Topics

log = structlog.get_logger()

#: Seconds between two attempts to get a log that nobody may hold any more.
ATTEMPT_S = 0.5
#: Seconds for which what is written to the log is gathered before it is read.
GATHER_S = 0.05


class Standby:
    """One publisher's way to the log. Used once: what `take` gives is the end of it."""

    def __init__(
        self,
        bus: Bus,
        topics: Topics,
        *,
        writer: str,
        address: str,
        security_groups_own_stream: bool,
        channels: ChannelPolicy,
        failover_after_s: float,
        clock_ns: Callable[[], int],
        followed: Callable[[], None] = lambda: None,
        spread: Spread | None = None,
    ) -> None:
        """`failover_after_s`: seconds of silence after which the log is taken over. `followed` is
        called after more of the log was redone while somebody else holds it. `spread` knows what
        else this process holds."""
        self._bus = bus
        self._topics = topics
        #: What we say of ourselves.
        self.alive = log_pb2.Alive(writer=writer, address=address)
        self._own_stream = security_groups_own_stream
        self._channels = channels
        self._failover_after_s = failover_after_s
        self._clock_ns = clock_ns
        self._followed = followed
        self._spread = spread or Spread()
        self._heard = asyncio.Event()
        self.intent_log = IntentLog(bus, topics.intent_log)
        #: The state as the log says, as far as it is read. Belongs to whoever takes the log.
        self.replay = Replay(topics, security_groups_own_stream=security_groups_own_stream)
        self.snapshot: log_pb2.SnapshotEnd | None = None
        #: When our incarnation was sent, by the monotonic clock.
        self._proven_at = 0.0

    async def read(self) -> None:
        """Read all that there is. To be called first. Raises LogUnreadable, BusError."""
        self.replay, self.snapshot = await recover(
            self._bus,
            self._topics,
            self.intent_log,
            security_groups_own_stream=self._own_stream,
        )

    async def take(self, *, take_over: bool = False) -> log_pb2.Incarnation:
        """Become the log's writer, with all that is in the log redone; gives the new incarnation.

        `take_over`: also if somebody holds it. Raises LogHeld, LogUnreadable, BusError; then it is
        held by nobody through us, and may be tried again.
        """
        await self._open(take_over)
        try:
            await self._read_on()
            while True:
                incarnation = log_pb2.Incarnation(
                    epoch=self.replay.core.epoch + 1,
                    writer=self.alive.writer,
                    unix_ns=self._clock_ns(),
                    security_groups_own_stream=self._own_stream,
                    address=self.alive.address,
                    session_ports=self._channels.ports,
                    session_members=self._channels.members,
                    shards=self._topics.shards if self._topics.shards > 1 else 0,
                )
                self._proven_at = time.monotonic()
                await self.intent_log.append(log_pb2.Record(incarnation=incarnation))
                if await self._read_on() == incarnation:
                    return incarnation
                # One that was thrown out got its own in first, under the same number.
        except BaseException:
            await self.leave()
            raise

    async def take_when_free(self, *, yields: bool = False) -> log_pb2.Incarnation:
        """Follow the log until it can be taken, and take it. Raises LogUnreadable, BusError.

        `yields`: let another one take it first, as long as one that is silent would be waited for.
        """
        reader = await self._bus.open_reader(
            self._topics.intent_log, self.intent_log.place.position, self._hear
        )
        try:
            self._heard.set()
            silent_s = 0.0
            last = time.monotonic()
            while True:
                if self._heard.is_set():
                    self._heard.clear()
                    if await self._read_on() is not None:
                        yields = False
                    self._followed()
                    silent_s = 0.0
                elif not yields or silent_s >= self._patience_s:
                    silent = silent_s >= self._patience_s
                    if silent and await self._has_said_more():
                        silent_s = 0.0
                        continue
                    try:
                        taken = await self.take(take_over=silent)
                    except LogHeld:
                        if silent:  # another one was quicker, and is to be heard first
                            silent_s = 0.0
                    else:
                        log.info("took the log over", epoch=taken.epoch, silent_s=silent_s)
                        return taken
                left = max(0.0, self._patience_s - silent_s)
                await self._hear_for(min(ATTEMPT_S, left))
                now = time.monotonic()
                silent_s += min(now - last, 2 * ATTEMPT_S)
                last = now
        finally:
            await reader.close()

    async def _has_said_more(self) -> bool:
        """Is there more in the log than was heard of?"""
        before = self.intent_log.place
        await self._read_on()
        if self.intent_log.place == before:
            return False
        self._followed()
        return True

    async def _open(self, take_over: bool) -> None:
        """Open the log for writing, when it is our turn among those that may. Raises LogHeld."""
        if not take_over and self._spread.held:
            await self.intent_log.open(self.alive.writer)
            await self.intent_log.close()  # free; perhaps somebody takes it who holds less
        async with self._spread.turn(0.0 if take_over else None):
            await self.intent_log.open(self.alive.writer, take_over=take_over)
            self._spread.held.add(self._topics.shard)

    @property
    def _patience_s(self) -> float:
        """Seconds of silence after which the log is taken over."""
        return self._failover_after_s + patience_s(len(self._spread.held))

    def leadership(self) -> Leadership:
        """Of the log that was taken."""
        return Leadership(
            self.intent_log,
            self.alive,
            proven_at=self._proven_at,
            valid_s=self._failover_after_s,
        )

    async def leave(self) -> None:
        """Give up the log, if it is held through us."""
        self._spread.held.discard(self._topics.shard)
        try:
            await self.intent_log.close()
        except BusError as error:
            log.warning("closing the intent log", error=str(error))

    async def _hear_for(self, seconds: float) -> None:
        """Until something is written to the log, at most for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._heard.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER_S)

    def _hear(self, message: Message) -> None:
        self._heard.set()

    async def _read_on(self) -> log_pb2.Incarnation | None:
        """Redo what was written since; gives the newest incarnation in that which counts."""
        newest = None
        async for record in self.intent_log.records(self.intent_log.place):
            above = record.incarnation.epoch > self.replay.core.epoch
            self.replay.redo(record, lost=self.intent_log.lost)
            if record.WhichOneof("body") == "incarnation" and above:
                newest = record.incarnation
        return newest
