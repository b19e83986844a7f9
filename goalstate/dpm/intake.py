"""Intake: changes are accepted in memory, appended to the intent log, and answered once durable.

    proposed ─▶ group ─▶ plan, accept (in memory) ─▶ intent log ─ durable ─▶ publish, answer

Laws:

1.  A change is published and answered once it is durable, in the order of changes.
2.  What is proposed while a group is on its way into the log is accepted together, as the next one:
    a record of the log, and one change set on each stream (group commit). So under load the cost of
    a change falls, and without it none waits for another. `interval_s` has them wait for longer.
3.  A group of FULL_BYTES waits for nothing: large intents are on their way at the same time.
4.  When an append fails, memory is ahead of the log, and nothing more is accepted: what was not
    durable is answered with NotServing, since it may be in the log or not.
5.  What changes nothing is answered once all that it may repeat is durable.
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
#: Bytes of intents in a group, about.
FULL_BYTES = 64 * 1024


class Taken(NamedTuple):
    """A change that was taken in."""

    #: None: it changes nothing.
    accepted: Accepted | None
    #: The newest change then.
    newest: int
    #: Done once it may be said; None: at once. Raises NotServing.
    answer: asyncio.Future[None] | None


class _Proposed(NamedTuple):
    change: log_pb2.Change
    size: int
    taken: asyncio.Future[Taken]


class _Appended(NamedTuple):
    durable: asyncio.Future[bytes]
    accepted: Sequence[Accepted]
    answer: asyncio.Future[None]


class Intake:
    """Of one incarnation of the publisher."""

    def __init__(
        self,
        core: Core,
        changes: Changes,
        intent_log: IntentLog,
        *,
        lock: asyncio.Lock,
        interval_s: float,
        publish: Callable[[int, Sequence[Publication]], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        """`lock`: the core's. `interval_s`: seconds from the begin of a group to that of the next,
        at least. `publish` is given what came of each group, once that is durable. `lost` is called
        when memory is ahead of the log, unless nothing was to be accepted any more."""
        self.accepting = True
        #: Groups on their way into the log, in the order of changes.
        self.appended: deque[_Appended] = deque()
        self._core = core
        self._changes = changes
        self._log = intent_log
        self._lock = lock
        self._interval_s = interval_s
        self._publish = publish
        self._lost = lost
        self._proposed: deque[_Proposed] = deque()
        self._proposed_bytes = 0
        self._gathering: asyncio.Task[None] | None = None
        #: Something happened for which a group may be waiting.
        self._news = asyncio.Event()
        #: When the next group may begin, by the loop's clock.
        self._next = 0.0

    async def take(self, change: log_pb2.Change) -> Taken:
        """Accept a change, and send it to the log. The core's lock must not be held.

        Raises IntentRejected, NotServing.
        """
        size = change.ByteSize()
        proposed = _Proposed(change, size, asyncio.get_running_loop().create_future())
        self._proposed.append(proposed)
        self._proposed_bytes += size
        if self._gathering is None:
            self._gathering = asyncio.ensure_future(self._gather())
        elif self._proposed_bytes >= FULL_BYTES:
            self._news.set()
        return await proposed.taken

    async def _gather(self) -> None:
        """Take in what is proposed, group by group, until nothing is."""
        while self._proposed:
            await self._wait_for_turn()
            async with self._lock:
                group = self._group()
                try:
                    await self._take(group)
                except NotServing as error:
                    for proposed in group:
                        proposed.taken.set_exception(error)
        self._gathering = None

    async def _wait_for_turn(self) -> None:
        loop = asyncio.get_running_loop()
        while self.accepting and self._proposed_bytes < FULL_BYTES:
            pause = None if self.appended else self._next - loop.time()
            if pause is not None and pause <= 0:
                return
            self._news.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                return

    def _group(self) -> list[_Proposed]:
        """What is next, in its order: some small ones, or a large one alone."""
        group: list[_Proposed] = []
        size = 0
        while self._proposed and (not group or size + self._proposed[0].size <= FULL_BYTES):
            proposed = self._proposed.popleft()
            group.append(proposed)
            size += proposed.size
        self._proposed_bytes -= size
        return group

    async def _take(self, group: Sequence[_Proposed]) -> None:
        """Raises NotServing: then nothing of the group was taken."""
        if not self.accepting:
            raise NotServing("the publisher leaves the intent log; nothing of the intent was taken")
        loop = asyncio.get_running_loop()
        self._next = loop.time() + self._interval_s
        changes = [proposed.change for proposed in group]
        try:
            if _are_large(changes):
                outcomes = await asyncio.to_thread(self._accept, changes)
            else:
                outcomes = self._accept(changes)
            if self.accepting:
                self._append(changes, outcomes)
        except Exception as error:
            # A defect of ours: how much of the intent is in memory is not known.
            log.exception("intent failed")
            self.fail(error)
            raise NotServing(f"the intent failed ({error!r}); recovering") from error
        if not self.accepting:
            # Meanwhile the log failed: what was accepted above is forgotten with the rest.
            raise NotServing("the intent log failed; nothing of the intent was taken")
        # What makes one a repetition may still be on its way into the log.
        answer = self.appended[-1].answer if self.appended else None
        for proposed, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, IntentRejected):
                proposed.taken.set_exception(outcome)
            else:
                proposed.taken.set_result(Taken(outcome, self._core.change, answer))

    def _accept(self, changes: Sequence[log_pb2.Change]) -> list[Accepted | IntentRejected | None]:
        """What became of each; None: it changes nothing."""
        outcomes: list[IntentRejected | bool] = []
        for change in changes:
            try:
                outcomes.append(self._accept_one(change))
            except IntentRejected as error:
                outcomes.append(error)
        accepted = iter(self._core.put())
        return [
            outcome if isinstance(outcome, IntentRejected) else next(accepted) if outcome else None
            for outcome in outcomes
        ]

    def _accept_one(self, change: log_pb2.Change) -> bool:
        """Does it change anything?"""
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
            return False
        core.take(changes, change.accepted_unix_ns, change.traceparent, again)
        return True

    def _append(
        self,
        changes: Sequence[log_pb2.Change],
        outcomes: Sequence[Accepted | IntentRejected | None],
    ) -> None:
        """Send those that were accepted to the log."""
        logged, accepted = [], []
        for change, outcome in zip(changes, outcomes, strict=True):
            if isinstance(outcome, Accepted):
                change.change = outcome.change
                logged.append(change)
                accepted.append(outcome)
        if not accepted:
            return
        if len(logged) == 1:
            record = log_pb2.Record(change=logged[0])
        else:
            record = log_pb2.Record(group=log_pb2.Group(changes=logged))
        durable = self._log.append(record)
        answer = asyncio.get_running_loop().create_future()
        self.appended.append(_Appended(durable, accepted, answer))
        durable.add_done_callback(self._on_durable)

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
            last = accepted[-1]
            self._core.logged(last.change)
            for one in accepted:
                remember(self._changes, one)
            self._publish(last.change, last.publications)
            if not answer.done():
                answer.set_result(None)
        self._news.set()

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
        self._news.set()

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
        self._news.set()
        if was_accepting:
            self._lost(error)


def _are_large(changes: Sequence[log_pb2.Change]) -> bool:
    """Do they take long to work on? A cascade may, however short it is to say."""
    return (
        any(deletion.cascade for change in changes for deletion in change.intent.deletes)
        or any(len(change.republished) > THREAD_ABOVE_RESOURCES for change in changes)
        or sum(change.intent.ByteSize() for change in changes) > THREAD_ABOVE_BYTES
    )
