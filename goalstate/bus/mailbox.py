"""Hands work from foreign threads to an event loop, many items for one wake-up.

A client library calls back from its own threads, once per message. One `call_soon_threadsafe` per
callback would spend most of the time waking the loop and passing the interpreter lock back and
forth. So callbacks are put into a deque; only the first of a burst wakes the loop, and while a
burst lasts the loop comes back by timer instead, which leaves the lock to the callback threads.

Laws:

1.  Items are handled in the loop's thread, in the order in which they were put.
2.  `put` never blocks and never raises. `put_weighed` blocks its (foreign) thread while the weight
    of what waits is above the bound, and not any more once the mailbox is closed.
3.  After `close` nothing is handled any more.
4.  An item that raises is reported to the loop's exception handler; the next ones are handled.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

#: The longest time in seconds that items are handled before the loop may run other work.
_TURN = 0.005
#: Items between two looks at the clock.
_STRIDE = 32
#: A turn of at least this many items is a burst: the loop comes back without being woken.
_BURST = 8
#: How long in seconds the loop leaves a burst alone.
_LINGER = 0.0005

Handler = Callable[..., object]


class Mailbox:
    """The mailbox of one loop. Made in the loop's thread; `bound` is in the unit of the weights."""

    def __init__(self, bound: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[tuple[int, Handler, tuple[Any, ...]]] = deque()
        self._bound = bound
        self._weight = 0
        # Taken for each message, which through a Condition takes Python code of its own.
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._awake = False
        self._closed = False

    def put(self, handler: Handler, *args: Any) -> None:
        """Have `handler(*args)` called in the loop. From any thread."""
        if not self._closed:
            self._items.append((0, handler, args))
            self._wake()

    def put_weighed(self, weight: int, handler: Handler, *args: Any) -> None:
        """As `put`, but wait for room first. From any thread but the loop's."""
        with self._lock:
            while self._weight > self._bound and not self._closed:
                self._room.wait()
            self._weight += weight
        if not self._closed:
            self._items.append((weight, handler, args))
            self._wake()

    def close(self) -> None:
        """Drop what waits and let blocked threads go."""
        with self._lock:
            self._closed = True
            self._items.clear()
            self._room.notify_all()

    def _wake(self) -> None:
        # Both sides run under the interpreter lock: an item put before the flag is cleared is seen
        # by `_turn`, one put afterwards finds the flag cleared and wakes the loop.
        if self._awake or self._closed:
            return
        self._awake = True
        try:
            self._loop.call_soon_threadsafe(self._turn)
        except RuntimeError:  # the loop was closed under a client that still calls back
            self._closed = True

    def _turn(self) -> None:
        items = self._items
        handled = 0
        weight = 0
        end = monotonic() + _TURN
        while items:
            heft, handler, args = items.popleft()
            weight += heft
            handled += 1
            try:
                handler(*args)
            except Exception as error:
                self._loop.call_exception_handler(
                    {"message": f"{handler!r} raised", "exception": error}
                )
            if handled % _STRIDE == 0 and monotonic() > end:
                break
        if weight:
            with self._lock:
                self._weight -= weight
                self._room.notify_all()
        if self._closed:
            return
        if items:
            self._loop.call_soon(self._turn)
        elif handled >= _BURST:
            self._loop.call_later(_LINGER, self._turn)
        else:
            self._awake = False
            if items:
                self._wake()
