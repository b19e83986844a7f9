"""Time for generators that passes only while everybody waits."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from itertools import count
from typing import Any

#: Turns of the loop after which nobody has anything left to do before time passes.
_TURNS = 30


class VirtualClock:
    def __init__(self, now_ns: int = 1_000_000_000_000) -> None:
        self._now_ns = now_ns
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = count()

    def now_ns(self) -> int:
        return self._now_ns

    async def sleep_until(self, when_ns: int) -> None:
        if when_ns <= self._now_ns:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (when_ns, next(self._number), future))
        await future

    async def sleep(self, ns: int) -> None:
        await self.sleep_until(self._now_ns + ns)

    async def play(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` to its end, in no time of its own."""
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if self._sleepers and not task.done():
                when_ns, _, future = heapq.heappop(self._sleepers)
                self._now_ns = when_ns
                if not future.done():
                    future.set_result(None)
        await task
