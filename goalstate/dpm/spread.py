"""How the shards of a region spread over its publishers: who holds less takes first.

Each publisher tries for the log of every shard. One that finds a log that nobody holds, and holds
others, waits: the longer, the more it holds. So publishers that start together take shards in turn,
and the shards of one that is gone go to those that hold least.

One that comes later asks whoever holds clearly more than itself for one shard at a time (`asks`),
which that hands over in order (`gives`).

It is courtesy and nothing more: who writes is settled by the log alone (see `standby`).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

#: Seconds that each shard that is held lets others come first.
STEP_S = 0.1


def patience_s(held: int) -> float:
    """Seconds for which one that holds so many shards leaves another one to others."""
    return held * STEP_S


def asks(active: Sequence[str], own: str) -> int | None:
    """The shard that the publisher `own` asks for, given who serves each; None: for none.

    It asks whoever holds most, and only if that stays ahead or level after giving one.
    """
    held = Counter(active)
    most = max(held, key=lambda one: (held[one], one))
    if not gives(held[most], held[own]):
        return None
    return active.index(most)


def gives(held: int, asker_holds: int) -> bool:
    """Does one that holds so many shards give one to one that holds so many?"""
    return held - asker_holds >= 2


class Spread:
    """What the engines of one process hold, and their turns at taking more."""

    def __init__(self) -> None:
        #: The shards whose log is held.
        self.held: set[int] = set()
        self._taking = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, patience: float | None = None) -> AsyncIterator[None]:
        """One engine at a time, once it waited long enough for all that is held then.

        `patience`: seconds to wait instead.
        """
        since = time.monotonic()
        while True:
            async with self._taking:
                wait = patience_s(len(self.held)) if patience is None else patience
                left = since + wait - time.monotonic()
                if left <= 0:
                    yield
                    return
            await asyncio.sleep(left)
