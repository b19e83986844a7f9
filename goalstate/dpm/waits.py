"""Waiting for convergence: each call is told when its hosts are there, at the latest in time.

Laws (those of what counts as applied are in `convergence`):

1.  A wait goes on while the publisher recovers, with what was known before, so that none ends
    early. Then what is wanted of a change stays; of a VPC, or of everything, it is what the new
    core says: some of it may have been lost with the log that it was to go into.
2.  Once another publisher serves, waits end with NotServing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from goalstate.dpm.convergence import Convergence, Progress, Wait
from goalstate.dpm.core import Requirement
from goalstate.dpm.errors import UnknownChange
from goalstate.dpm.known import Known
from goalstate.dpm.recovery import REMEMBERED_CHANGES
from goalstate.gs.streams import ORIGIN

#: Seconds between two steps that a watcher is told of, at least.
WATCH_STEP_S = 0.1


class Wanted(NamedTuple):
    """That a share of the hosts concerned have a change, or all of a VPC, or everything."""

    change: int | None
    vpc: str | None
    #: Above 0, at most 1.
    quorum: float


class Waits:
    def __init__(
        self,
        known: Known,
        convergence: Convergence,
        *,
        steady_ns: Callable[[], int],
        check: Callable[[], None],
    ) -> None:
        """`steady_ns`: see `Convergence.report`. `check` raises NotServing once another publisher
        serves; `wake_all` is to be called then."""
        self.waiting: dict[Wait, asyncio.Event] = {}
        self._known = known
        self._convergence = convergence
        self._steady_ns = steady_ns
        self._check = check

    def wake(self, moved: Iterable[Wait]) -> None:
        """Their hosts have reported something."""
        for wait in moved:
            event = self.waiting.get(wait)
            if event is not None:
                event.set()

    def wake_all(self) -> None:
        for event in self.waiting.values():
            event.set()

    async def until(
        self,
        deadline: float,
        wanted: Wanted,
        max_stragglers: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> Progress:
        """Wait for it until `deadline`, by the monotonic clock.

        Takes longer by what an intent takes that is being worked on. Raises UnknownChange,
        ValueError for a bad quorum, NotServing.
        """
        async with self._known.lock:
            core = self._known.core
            wait = self._begin(wanted)
        event = self.waiting[wait] = asyncio.Event()
        try:
            while True:
                event.clear()
                self._check()
                progress = self._convergence.progress(wait, self._steady_ns(), max_stragglers)
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
                if self._known.core is not core and wanted.change is None:
                    async with self._known.lock:
                        core = self._known.core
                        renewed = self._begin(wanted)
                    self._end(wait)
                    wait = renewed
                    self.waiting[wait] = event
        finally:
            self._end(wait)

    def _end(self, wait: Wait) -> None:
        self._convergence.end(wait)
        del self.waiting[wait]

    def _begin(self, wanted: Wanted) -> Wait:
        requirements, accepted_ns = self._required(wanted)
        concerns = [(r.stream, r.mark, self._known.core.concerned(r)) for r in requirements]
        # Of one change only: of several, the host tells the newest.
        revocations = (
            {r.stream: r.revoked for r in requirements if r.revoked > ORIGIN}
            if wanted.change is not None
            else {}
        )
        return self._convergence.begin(concerns, accepted_ns, wanted.quorum, revocations)

    def _required(self, wanted: Wanted) -> tuple[list[Requirement], int]:
        core, (change, vpc, _) = self._known.core, wanted
        if change is not None:
            accepted = self._known.changes.get(change)
            if accepted is None:
                raise UnknownChange(
                    f"change {change} is not known (newest: {core.change}; the last "
                    f"{REMEMBERED_CHANGES} can be waited for by number): wait for the VPC instead"
                )
            return accepted.requirements, accepted.accepted_ns
        if vpc is not None:
            return core.requirements_of_vpc(vpc), core.accepted_ns(vpc)
        return core.requirements_of_all(), core.accepted_ns()
