"""Reports of hosts, off the bus and into convergence.

A report that makes no sense is counted, and does not spoil the others that came with it.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from goalstate.bus.base import LATEST, Bus, Message, Reader
from goalstate.dpm.convergence import Convergence, Wait
from goalstate.dpm.metrics import Metrics
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.topics import Topics

log = structlog.get_logger()


class Reports:
    """Reads the topics of reports."""

    def __init__(
        self,
        convergence: Convergence,
        *,
        clock_id: str,
        clock_ns: Callable[[], int],
        steady_ns: Callable[[], int],
        metrics: Metrics,
        taken: Callable[[set[Wait]], None],
    ) -> None:
        """`clock_id`, `clock_ns`, `steady_ns`: see `Convergence.report`. `taken` is called after
        each message, with the waits that it moved."""
        self._convergence = convergence
        self._clock_id = clock_id
        self._clock_ns = clock_ns
        self._steady_ns = steady_ns
        self._metrics = metrics
        self._taken = taken
        self._readers: list[Reader] = []

    async def open(self, bus: Bus, topics: Topics) -> None:
        """Raises BusError."""
        for shard in range(topics.report_shards):
            reader = await bus.open_reader(topics.reports(shard), LATEST, self._take)
            self._readers.append(reader)

    async def close(self) -> None:
        for reader in self._readers:
            await reader.close()

    def _take(self, message: Message) -> None:
        try:
            report = agent_pb2.Report.FromString(message.payload)
        except Exception as error:
            log.warning("unreadable report", topic=message.topic, error=str(error))
            self._metrics.reports.labels(result="unreadable").inc()
            return
        now, steady = self._clock_ns(), self._steady_ns()
        same_clock = report.clock_id == self._clock_id
        moved: set[Wait] = set()
        for host in report.hosts:
            try:
                moved |= self._convergence.report(host, now, same_clock, steady)
                self._metrics.reports.labels(result="taken").inc()
            except ValueError as error:
                log.warning("bad report", host=host.host, error=str(error))
                self._metrics.reports.labels(result="bad").inc()
        for advance in report.advances:
            try:
                moved |= self._convergence.advance(advance, now, same_clock, steady)
                self._metrics.reports.labels(result="taken").inc(len(advance.hosts))
            except ValueError as error:
                log.warning("bad report", hosts=len(advance.hosts), error=str(error))
                self._metrics.reports.labels(result="bad").inc(len(advance.hosts))
        self._taken(moved)
