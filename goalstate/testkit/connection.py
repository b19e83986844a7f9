"""A bus for tests, which are synchronous: its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from goalstate.bus.base import Bus
from goalstate.bus.connect import connect

T = TypeVar("T")

#: Seconds for one call.
CALL_S = 60.0


class Connection:
    """One connection to a broker. Calls block, and raise what the bus raises."""

    def __init__(self, url: str) -> None:
        """Raises BrokerUnreachable, BusError."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="goalstate-testkit", daemon=True
        )
        self._thread.start()
        try:
            self.bus: Bus = self.call(connect(url))
        except BaseException:
            self._end()
            raise

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the bus. Raises what it raises, and TimeoutError after CALL_S."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    def close(self) -> None:
        try:
            self.call(self.bus.close())
        finally:
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()
