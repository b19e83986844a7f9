"""Intake: changes are accepted in memory, appended to the intent log, and answered once durable.

    plan ─▶ accept (in memory) ─▶ intent log ─ durable ─▶ publish, answer

Laws:

1.  A change is published and answered once it is durable, in the order of changes.
2.  Changes are accepted while earlier ones are still on their way into the log.
3.  When an append fails, memory is ahead of the log, and nothing more is accepted: what was not
    durable is answered with NotServing, since it may be in the log or not.
4.  What changes nothing is answered once all that it may repeat is durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from goalstate.bus.errors import BusError
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.errors import NotServing
from goalstate.dpm.intent_log import IntentLog
from goalstate.dpm.inventory import Publication
from goalstate.dpm.recovery import Changes, never_on_a_stream, remember, republished
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentRejected
from goalstate.gs.pb.goalstate.log.v1 import log_pb2

log = structlog.get_logger()

#: A larger intent (bytes) is worked on in a thread, so that the loop stays responsive: it takes a
#: call in within some of its turns, and what it has not taken in, it cannot shed.
THREAD_ABOVE_BYTES = 8_000
#: Likewise, resources that are published again.
THREAD_ABOVE_RESOURCES = 100


class Taken(NamedTuple):
    """A change that was taken in."""

    #: None: it changes nothing.
    accepted: Accepted | None
    #: Done once it may be said; None: at once. Raises NotServing.
    answer: asyncio.Future[None] | None


class _Appended(NamedTuple):
    durable: asyncio.Future[bytes]
    accepted: Accepted
    answer: asyncio.Future[None]


class Intake:
    """Of one incarnation of the publisher."""

    def __init__(
        self,
        core: Core,
        changes: Changes,
        intent_log: IntentLog,
        *,
        publish: Callable[[int, Sequence[Publication]], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        """`publish` is given what came of each change, once that is durable. `lost` is called when
        memory is ahead of the log, unless nothing was to be accepted any more."""
        self.accepting = True
        #: On their way into the log, in the order of changes.
        self.appended: deque[_Appended] = deque()
        self._core = core
        self._changes = changes
        self._log = intent_log
        self._publish = publish
        self._lost = lost

    async def take(self, change: log_pb2.Change) -> Taken:
        """Accept a change, and send it to the log. The core's lock must be held.

        Raises IntentRejected, NotServing.
        """
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
            self.fail(error)
            raise NotServing(f"the intent failed ({error!r}); recovering") from error
        if not self.accepting:
            # Meanwhile the log failed: what was accepted above is forgotten with the rest.
            raise NotServing("the intent log failed; nothing of the intent was taken")
        if accepted is None:
            # What makes it a repetition may still be on its way into the log.
            return Taken(None, self.appended[-1].answer if self.appended else None)
        change.change = accepted.change
        durable = self._log.append(log_pb2.Record(change=change))
        answer = asyncio.get_running_loop().create_future()
        self.appended.append(_Appended(durable, accepted, answer))
        durable.add_done_callback(self._on_durable)
        return Taken(accepted, answer)

    def _accept(self, change: log_pb2.Change) -> Accepted | None:
        core = self._core
        changes = core.plan(intent_codec.from_proto(change.intent))
        again = republished(change.republished)
        unknown = [
            never_on_a_stream(place, key)
            for place, key in enumerate(again)
            if not core.inventory.knows(key)
        ]
        if unknown:
            raise IntentRejected(unknown)
        if not changes and not again:
            return None
        return core.accept(changes, change.accepted_unix_ns, change.traceparent, again)

    def _on_durable(self, done: asyncio.Future[bytes]) -> None:
        if not done.cancelled():
            done.exception()  # what failed after the first failure is not looked at below
        while self.appended and self.appended[0].durable.done():
            durable, accepted, answer = self.appended[0]
            error = None if durable.cancelled() else durable.exception()
            if error is not None or durable.cancelled():
                self.fail(error or BusError("cancelled"))
                return
            self.appended.popleft()
            self._core.logged(accepted.change)
            remember(self._changes, accepted)
            self._publish(accepted.change, accepted.publications)
            if not answer.done():
                answer.set_result(None)

    async def durable(self) -> None:
        """Wait until all that was accepted so far is in the log. Raises NotServing."""
        if self.appended:
            # Shielded: others wait for it too.
            await asyncio.shield(self.appended[-1].answer)
        elif not self.accepting:
            raise NotServing("the intent log failed")

    def close(self) -> None:
        """Accept nothing more. What was accepted goes on."""
        self.accepting = False

    def fail(self, error: BaseException) -> None:
        """Accept nothing more, and give up what is not durable."""
        was_accepting, self.accepting = self.accepting, False
        failed, self.appended = self.appended, deque()
        for _, _, answer in failed:
            if not answer.done():
                answer.set_exception(
                    NotServing(f"the intent log failed ({error}); the intent may be in it or not")
                )
                answer.exception()
        if was_accepting:
            self._lost(error)


def _is_large(change: log_pb2.Change) -> bool:
    """Does it take long to work on? A cascade may, however short it is to say."""
    if len(change.republished) > THREAD_ABOVE_RESOURCES:
        return True
    cascades = any(deletion.cascade for deletion in change.intent.deletes)
    return change.intent.ByteSize() > THREAD_ABOVE_BYTES or cascades
