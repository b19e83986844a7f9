"""Succession: which of a shard's engines serves, and how one becomes the one that does.

                    ┌───── lost it, handed it over ◀───┐
                    ▼                                  │
    read ─▶ standing by ─ takes the log ─▶ recovers ─▶ serves

Laws:

1.  One engine serves, the others stand by (see `standby`). It serves only while it has lately
    proved that the log is its own (`leadership`). One that was thrown out, or whose broker gave the
    log to another, may believe so for as long. Then nothing that it accepts gets into the log, and
    what it says of how things are it proves first (`confirm`). It stands by as soon as it knows.
2.  At start, and when memory is ahead of the log: read the newest snapshot of the log, redo the
    log after it, begin a new epoch, and serve as a new `incarnation`. What is known stays as it is
    until the log is read, and is exchanged only for what a later epoch says.
3.  What was accepted is brought to its end before the log is left in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from goalstate.bus.errors import BusError
from goalstate.dpm.errors import LogHeld, NotServing
from goalstate.dpm.incarnation import Incarnation
from goalstate.dpm.known import Known
from goalstate.dpm.leadership import Leadership
from goalstate.dpm.publisher import BACKOFF_S
from goalstate.dpm.standby import Standby
from goalstate.gs.pb.goalstate.log.v1 import log_pb2

log = structlog.get_logger()

#: How often in `failover_after_s` whoever serves says that it is there.
_SAID_ALIVE = 3
#: Seconds within which what was accepted must be durable, and published, when it stops.
STOP_S = 5.0


class Succession:
    def __init__(
        self,
        known: Known,
        *,
        failover_after_s: float,
        new_standby: Callable[[Callable[[], None]], Standby],
        begin: Callable[[Standby, Leadership], Awaitable[Incarnation]],
        answered: Callable[[], Awaitable[object]],
        became: Callable[[], None],
    ) -> None:
        """`failover_after_s`: seconds of silence after which a standby takes over.

        `new_standby` makes a way to the log; what it is given is called as more of the log is
        redone. `begin` makes the incarnation that follows from it, and raises BusError. `answered`
        waits until all intents that were begun are answered. `became` is called when what is known
        was exchanged.
        """
        #: Another engine serves, and what is known is what the log says of it.
        self.standing_by = False
        #: None: it holds no log, or does not know yet what to publish.
        self.incarnation: Incarnation | None = None
        #: Set when it cannot go on, with the reason in `failure`.
        self.failed = asyncio.Event()
        self.failure: Exception | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self._known = known
        self._failover_after_s = failover_after_s
        self._new_standby = new_standby
        self._begin = begin
        self._answered = answered
        self._became = became
        self._problem = "starting"
        self._standby = new_standby(self._stand_by)
        #: Of the log that was taken last.
        self._leadership: Leadership | None = None
        self._checkpointing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Become what the log says; then serve, or stand by if another one serves.

        Raises LogUnreadable, BusError.
        """
        self._standby = self._new_standby(self._stand_by)
        await self._standby.read()
        self.go_on(self._say_alive())
        try:
            await self._standby.take()
        except LogHeld:
            self._stand_by()
            self.go_on(self._become_active(read=True))
        else:
            await self._serve()

    async def stop(self) -> None:
        """Stop accepting, finish what was accepted, and leave."""
        if self.incarnation is not None:
            self.incarnation.intake.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._finish_accepted()
        try:
            async with asyncio.timeout(STOP_S):
                if self.incarnation is not None:
                    await self.incarnation.publisher.close()
                await self._standby.leave()
        except TimeoutError:
            log.warning("stopped without giving its topics up; closing the bus does that")

    def go_on(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside serving, until it is done or the engine stops."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    # --- standing by ---

    def _stand_by(self) -> None:
        """Another one holds the log: once it has begun an epoch, what it wrote is what counts."""
        self._problem = "somebody else holds the intent log"
        replay, core = self._standby.replay, self._known.core
        if core is replay.core:
            return
        if not self.standing_by and replay.core.epoch <= core.epoch:
            return
        self._known.become(replay)
        self.standing_by = True
        self._became()
        log.info("standing by", epoch=replay.core.epoch, change=replay.core.change)

    async def _become_active(self, *, read: bool, yields: bool = False) -> None:
        """Take the log once it can be had, and serve. `read`: it was read to its end just now;
        `yields`: another one is to take it now, and we only if that does not come."""
        delay, longest = BACKOFF_S
        while True:
            try:
                if not read:
                    self._standby = self._new_standby(self._stand_by)
                    await self._standby.read()
                    read = True
                try:
                    if yields:
                        raise LogHeld("it is another one's turn")
                    await self._standby.take()
                except LogHeld:
                    # The broker may also take our own lost connection for another writer.
                    self._stand_by()
                    await self._standby.take_when_free(yields=yields)
                await self._serve()
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

    # --- serving ---

    async def _serve(self) -> None:
        """Serve as the writer of the log; until then, everything is left as it is."""
        standby = self._standby
        # From now on the log is told that we are there.
        self._leadership = leadership = standby.leadership()
        try:
            self.incarnation = incarnation = await self._begin(standby, leadership)
        except BaseException:
            await standby.leave()
            raise
        self._known.become(standby.replay)
        self.standing_by = False
        self._problem = ""
        self._became()
        self._checkpointing = self.go_on(incarnation.checkpoints.run())

    async def _say_alive(self) -> None:
        """Let those who stand by know, and know ourselves, that the log is ours."""
        while True:
            await asyncio.sleep(self._failover_after_s / _SAID_ALIVE)
            leadership = self._leadership
            if leadership is None or not leadership.log.is_open:
                continue
            try:
                await leadership.prove()
            except BusError as error:
                self._on_unproven(leadership, error)

    def _on_unproven(self, leadership: Leadership, error: BusError) -> None:
        incarnation = self.incarnation
        if incarnation is None or incarnation.leadership is not leadership:
            return  # meanwhile it was left
        if incarnation.intake.accepting:
            incarnation.intake.fail(error)

    async def confirm(self) -> None:
        """Make sure that what the log holds by now is known here, whoever else may serve.

        A former active one does not know yet that it is one. So before it says how things are, it
        proves by a record sent after it was asked that the log is its own. Raises NotServing.
        """
        leadership = self.now_serving().leadership
        try:
            await leadership.confirm()
        except TimeoutError:
            raise NotServing("the intent log does not answer") from None
        except BusError as error:
            self._on_unproven(leadership, error)
            raise NotServing(f"the intent log does not answer: {error}") from error

    # --- leaving ---

    async def hand_over(self) -> bool:
        """Leave the log to another one, in order, and stand by; False: it is not ours just now.

        What was accepted is brought to its end first. Returns when the log can be taken.
        """
        async with self._known.lock:
            incarnation = self.incarnation
            if incarnation is None or not incarnation.serving:
                return False
            incarnation.intake.close()
            self._problem = "handing over to another publisher"
        core = self._known.core
        log.info("handing over", shard=core.topics.shard, epoch=core.epoch)
        await self._finish_accepted()
        await self._leave_the_log()
        self.go_on(self._become_active(read=False, yields=True))
        return True

    async def _finish_accepted(self) -> None:
        """Have durable and published what was accepted. It is not serving any more."""
        incarnation = self.incarnation
        try:
            async with asyncio.timeout(STOP_S):
                await self._answered()
                if incarnation is not None:
                    await incarnation.finish()
        except (TimeoutError, BusError) as error:
            # Whatever is in the log is published by whoever serves next.
            why = str(error) or "no answer in time"
            log.warning("left with work outstanding", error=why)
            if incarnation is not None:
                incarnation.intake.fail(BusError(why))

    def lost_the_log(self, error: BaseException) -> None:
        """Memory is ahead of the log: become what the log says, when the broker lets us."""
        self.go_on(self._recover(error))

    async def _recover(self, error: BaseException) -> None:
        log.error("memory is ahead of the intent log; recovering", error=str(error))
        self._problem = f"recovering, since the intent log failed: {error}"
        await self._leave_the_log()
        await self._become_active(read=False)

    async def _leave_the_log(self) -> None:
        """Let go of it and of all topics."""
        async with self._known.lock:
            pass  # nobody works on the core any more, in a thread or otherwise
        if self._checkpointing is not None:
            self._checkpointing.cancel()
            await asyncio.gather(self._checkpointing, return_exceptions=True)
        # First the log: a topic that is being opened waits for a proof in it.
        await self._standby.leave()
        if self.incarnation is not None:
            await self.incarnation.publisher.close()
            self.incarnation = None

    # --- what is ---

    @property
    def serving(self) -> bool:
        """Does it accept intents, and is what it says of them the newest?"""
        return self.incarnation is not None and self.incarnation.serving

    def now_serving(self) -> Incarnation:
        """Raises NotServing."""
        if self.incarnation is None or not self.incarnation.serving:
            raise NotServing(f"the publisher is not serving just now: {self.problem}")
        return self.incarnation

    @property
    def problem(self) -> str:
        """Why it does not serve just now; empty while it does."""
        if self.standing_by:
            active = self.active
            where = f" at {active.address}" if active is not None and active.address else ""
            who = f"{active.writer}{where}" if active is not None else "another publisher"
            return f"standing by; {who} serves the region"
        incarnation = self.incarnation
        if incarnation is not None and incarnation.intake.accepting and not incarnation.serving:
            return "the intent log does not answer"
        return self._problem

    @property
    def active(self) -> log_pb2.Alive | None:
        """Who serves the region; None: not known."""
        if self.serving:
            return self._standby.alive
        return self._standby.replay.active if self.standing_by else None
