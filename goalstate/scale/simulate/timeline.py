"""Virtual time: one list of what is due, and an asyncio loop that lives on it.

Laws: nothing waits, time passes only from one thing that is due to the next. Things due at the same
time happen in the order in which they were asked for. Nothing depends on addresses, hashes, or the
real clock, so the same calls give the same order in every process.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000
#: A time of day that a clock may be set back from by some minutes.
START_NS = 1_000_000 * SECOND_NS


class Due:
    """Something that is to happen; `cancel` says that it is not."""

    __slots__ = ("cancelled", "what")

    def __init__(self, what: Callable[[], object]) -> None:
        self.what = what
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Timeline:
    """The true time, in nanoseconds since the Unix epoch, and what is due when."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self._heap: list[tuple[int, int, Due]] = []
        self._ties = 0

    def after(self, delay_ns: int, what: Callable[[], object]) -> Due:
        return self.at(self.now_ns + delay_ns, what)

    def at(self, when_ns: int, what: Callable[[], object]) -> Due:
        due = Due(what)
        self._ties += 1
        heapq.heappush(self._heap, (max(when_ns, self.now_ns), self._ties, due))
        return due

    @property
    def next_ns(self) -> int | None:
        """When the next thing is due; None: nothing is."""
        heap = self._heap
        while heap and heap[0][2].cancelled:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_next(self) -> None:
        """Let the next thing happen. Raises IndexError if nothing is due."""
        if self.next_ns is None:
            raise IndexError("nothing is due")
        self.now_ns, _, due = heapq.heappop(self._heap)
        due.what()


class _Timer(asyncio.TimerHandle):
    due: Due

    def cancel(self) -> None:
        self.due.cancel()
        super().cancel()


class VirtualLoop(asyncio.BaseEventLoop):
    """The event loop of one process: what is ready runs when `run_ready` is called.

    Work for threads is done in the loop, one turn later. `failures` has what nobody caught.
    """

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.failures: list[str] = []
        self._timeline = timeline
        self._soon: deque[asyncio.Handle] = deque()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._dead = False

    def time(self) -> float:
        return (self._timeline.now_ns - START_NS) / 1e9

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._dead:
            self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        timer.due = self._timeline.at(
            START_NS + round(when * SECOND_NS), lambda: self._soon.append(timer)
        )
        return timer

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **options)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        answer = self.create_future()

        def work() -> None:
            try:
                answer.set_result(func(*args))
            except Exception as error:
                answer.set_exception(error)

        self.call_soon(work)
        return answer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not self._dead:
            self.failures.append(f"{context.get('message')}: {error!r}")

    def run_ready(self) -> None:
        """Run everything that is ready, and what gets ready by that."""
        soon = self._soon
        if not soon:
            return
        asyncio._set_running_loop(self)
        try:
            while soon:
                handle = soon.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(None)

    def kill(self) -> None:
        """The process is gone: nothing of it runs any more."""
        self._dead = True
        self._soon.clear()
        asyncio._set_running_loop(self)
        try:
            for task in list(self._tasks):
                # Not to be complained of when it is collected.
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                # One that waits for something on its way out does so for ever.
                with suppress(RuntimeError, ValueError):
                    task.get_coro().close()
        finally:
            asyncio._set_running_loop(None)
        self._tasks.clear()
        self._soon.clear()
        self.close()
