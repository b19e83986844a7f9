"""Sends the reports of a fleet's hosts, gathered into few messages."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

import structlog

from goalstate.agent.counters import Counters
from goalstate.agent.reports import Batch, Reporter
from goalstate.bus.base import Bus, Producer
from goalstate.bus.errors import BusError

log = structlog.get_logger()

#: How many times the report delay news are gathered for, at most, while they keep coming.
GATHER_DELAYS = 20
#: A message takes reports up to about this size, in bytes.
MESSAGE_BYTES = 512 * 1024
#: Messages on their way to the broker at a time; meanwhile news gather for longer.
UNDER_WAY = 4
RETRY_S = 1.0
#: Seconds that the last reports get to arrive.
STOP_S = 2.0

H = TypeVar("H")


class Reports(Generic[H]):
    """See `fleet`, law 2."""

    def __init__(
        self,
        bus: Bus,
        topic: str,
        hosts: Sequence[tuple[H, Reporter]],
        counters: Counters,
        *,
        clock_id: str,
        lease_s: float,
        delay_s: float,
    ) -> None:
        self._bus = bus
        self._topic = topic
        self._reporters = dict(hosts)
        self._counters = counters
        self._clock_id = clock_id
        self._delay_s = delay_s
        self._producer: Producer | None = None
        self._dirty: dict[H, None] = {}
        #: Hosts whose next report has to say everything.
        self._full: dict[H, None] = dict.fromkeys(self._reporters)
        # Whose heartbeat is next, and how many of them are due.
        self._ring = deque(self._reporters)
        self._lease_s = lease_s
        self._credit = 0.0
        self._last: float | None = None
        self._under_way: set[asyncio.Future[bytes]] = set()
        # Delays since the first of the news that wait, news in all, and how many at the last delay.
        self._delays = 0
        self._news = 0
        self._seen = 0
        self._flush: asyncio.TimerHandle | None = None
        self._stopping = False

    async def start(self) -> None:
        """Raises BusError."""
        self._producer = await self._bus.open_producer(self._topic)

    def add(self, host: H, reporter: Reporter) -> None:
        """One host more reports from now on; it says everything at once."""
        self._reporters[host] = reporter
        self._ring.append(host)
        self._full[host] = None
        self.dirty(host)

    def remove(self, host: H) -> None:
        """Nothing more is said for a host, not even what it has to tell now."""
        if self._reporters.pop(host, None) is not None:
            self._ring.remove(host)
            self._full.pop(host, None)
            self._dirty.pop(host, None)

    def dirty(self, host: H) -> None:
        """A host has something to tell."""
        if host not in self._reporters:
            return
        self._news += 1
        if not self._dirty:
            self._soon(self._delay_s)
        self._dirty[host] = None

    def heartbeats(self, now: float) -> None:
        """Let the hosts whose turn has come say everything. `now` is the loop's time, seconds.

        At the first call all hosts do: so their publisher hears of them at once.
        """
        if self._last is None:
            due = len(self._ring)
        else:
            self._credit += (now - self._last) * len(self._ring) / (self._lease_s / 3)
            due = min(int(self._credit), len(self._ring))
            self._credit -= due
        self._last = now
        for host in [self._ring[place] for place in range(due)]:
            self._full[host] = None
            self.dirty(host)
        self._ring.rotate(-due)

    async def stop(self) -> None:
        """Send what there is to tell, then close."""
        self._stopping = True
        if self._flush is not None:
            self._flush.cancel()
        if self._producer is None:
            return
        self._send()
        if self._under_way:
            _, left = await asyncio.wait(self._under_way, timeout=STOP_S)
            if left:
                # The bus gives its producers up; waiting here as well would take as long again.
                log.warning("stopped with reports on their way", messages=len(left))
                return
        try:
            await self._producer.close()
        except BusError as error:
            log.warning("reports are lost", error=str(error))

    def _soon(self, delay_s: float) -> None:
        if self._flush is None and not self._stopping:
            self._flush = asyncio.get_running_loop().call_later(delay_s, self._flushed)

    def _flushed(self) -> None:
        self._flush = None
        self._delays += 1
        if self._news != self._seen and self._delays < GATHER_DELAYS:
            # A change is just reaching the hosts: telling of it would keep the others from it.
            self._seen = self._news
            self._soon(self._delay_s)
        elif len(self._under_way) < UNDER_WAY:
            self._delays = 0
            self._send()
        # Else the answer of one that is under way brings us back.

    def _send(self) -> None:
        dirty, self._dirty = list(self._dirty), {}
        batch = Batch()
        hosts: list[H] = []
        for host in dirty:
            if not batch.add(self._reporters[host], full=host in self._full):
                continue
            self._full.pop(host, None)
            hosts.append(host)
            if batch.size > MESSAGE_BYTES:
                self._send_one(batch, hosts)
                batch, hosts = Batch(), []
        if hosts:
            self._send_one(batch, hosts)

    def _send_one(self, batch: Batch, hosts: list[H]) -> None:
        assert self._producer is not None
        self._counters.reports += len(hosts)
        message = batch.message(self._clock_id, time.time_ns())
        answer = self._producer.send(message.SerializeToString())
        self._under_way.add(answer)

        def answered(answer: asyncio.Future[bytes]) -> None:
            self._under_way.discard(answer)
            error = None if answer.cancelled() else answer.exception()
            if error is not None and not self._stopping:
                # What these hosts told is lost, so each tells everything, when it can.
                log.warning("a report is lost", hosts=len(hosts), error=str(error))
                left = [host for host in hosts if host in self._reporters]
                self._full.update(dict.fromkeys(left))
                self._dirty.update(dict.fromkeys(left))
                self._soon(RETRY_S)
            elif self._dirty:
                self._soon(0)

        answer.add_done_callback(answered)
