"""Leadership: that the intent log is our own, as far as was proved lately.

Laws:

1.  A record that got into the log proves that the log was ours when it was sent: those of a writer
    that was thrown out do not (`intent_log`, law 5).
2.  Nobody takes the log from one that proved so less than `valid_s` ago, but a broker that gives it
    away may. So for as long leadership is taken for granted; before it is said how things are, it
    is proved anew (`confirm`).
"""

from __future__ import annotations

import asyncio
import time

from goalstate.dpm.intent_log import IntentLog
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.process import retrieved


class Leadership:
    """Of one log, from its taking until it is left."""

    def __init__(
        self, intent_log: IntentLog, alive: log_pb2.Alive, *, proven_at: float, valid_s: float
    ) -> None:
        """`alive`: what the record says that proves it. `proven_at`: when the record was sent that
        took the log, by the monotonic clock. `valid_s`: seconds."""
        self.log = intent_log
        #: When the newest record was sent that proved the log to be ours.
        self.proven_at = proven_at
        self._alive = alive
        self._valid_s = valid_s
        self._proof: asyncio.Future[None] | None = None

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() - self.proven_at < self._valid_s

    async def prove(self) -> None:
        """Raises BusError unless the log is ours."""
        sent_at = time.monotonic()
        await self.log.append(log_pb2.Record(alive=self._alive))
        self.proven_at = max(self.proven_at, sent_at)

    async def confirm(self) -> None:
        """Prove it by a record that is sent after this was asked.

        Questions that come together share a record. Raises BusError, TimeoutError.
        """
        asked_at = time.monotonic()
        while self.proven_at <= asked_at:
            if self._proof is None or self._proof.done():
                self._proof = asyncio.ensure_future(self.prove())
                self._proof.add_done_callback(retrieved)
            async with asyncio.timeout(self._valid_s):
                await asyncio.shield(self._proof)
