"""A fleet on a memory bus."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from goalstate.agent.core import HostSettings
from goalstate.agent.dataplanes import DataPlane, MemoryDataPlane
from goalstate.agent.fleet import Fleet, FleetSettings, Member
from goalstate.agent.state_file import StateFile
from goalstate.bus.base import LATEST, Message, Sink
from goalstate.bus.memory import MemoryBroker, MemoryBus
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import host_reports
from goalstate.gs.streams import StreamId
from tests.agent.rig import TOPICS, Sent

#: Seconds until a condition that does not come fails its test.
PATIENCE_S = 20.0


async def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Let the loop run until something is so. Raises AssertionError, naming it."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        await asyncio.sleep(0)


class FleetRig:
    """A broker, a bus that can be told to fail, and the reports of a fleet."""

    def __init__(self, broker: MemoryBroker | None = None) -> None:
        self.broker = broker or MemoryBroker(time.time_ns)
        self.bus = FailingBus(self.broker, "fleet")
        self.hosts: dict[str, agent_pb2.HostReport] = {}
        self.reports: list[agent_pb2.Report] = []
        for shard in range(TOPICS.report_shards):
            self.broker.attach(TOPICS.reports(shard), LATEST, self._reported)

    def _reported(self, message: Message) -> None:
        report = agent_pb2.Report.FromString(message.payload)
        self.reports.append(report)
        for host in host_reports(report):
            self.hosts[host.host] = host

    def put(self, sent: Sent) -> None:
        properties, payload = sent
        topic = TOPICS.of_stream(StreamId.parse(properties["stream"]))
        self.broker.publish(topic, payload, properties=properties)

    @asynccontextmanager
    async def fleet(
        self,
        members: Sequence[Member],
        *,
        data_plane: Callable[[str], DataPlane] = lambda host: MemoryDataPlane(),
        lease_s: float = 30,
        limit: int = 4096,
        open_at_a_time: int = 256,
        joining: int = 64,
        pending_deadline_s: float = 30,
        state: StateFile | None = None,
        audit_s: float = 0,
    ) -> AsyncIterator[Fleet]:
        settings = FleetSettings(
            HostSettings(
                TOPICS,
                int(pending_deadline_s * 1e9),
                limit,
                audit_interval_ns=int(audit_s * 1e9),
            ),
            TOPICS.reports(0),
            "clock-1",
            TOPICS.dead_letters(0),
            lease_s=lease_s,
            open_readers_at_a_time=open_at_a_time,
            read_checkpoints_at_a_time=joining,
            inspection_address="127.0.0.1:1",
        )
        fleet = Fleet(self.bus, members, settings, data_plane, state)
        await fleet.start()
        try:
            yield fleet
        finally:
            await fleet.stop()
            await self.bus.close()

    def told(self, host: str, stream: str) -> tuple[int, int]:
        """The watermark that a host's reports told last."""
        for report in reversed(self.reports):
            for one in host_reports(report):
                if one.host == host:
                    for position in one.streams:
                        if position.stream == stream:
                            return position.epoch, position.sequence
        return 0, 0


class FailingBus(MemoryBus):
    """A memory bus that counts opens and looks, and fails or holds them up when it is told to."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        super().__init__(broker, name)
        #: Raised by the next opens, one each.
        self.failures: list[Exception] = []
        #: The same of producers.
        self.producer_failures: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.opening = 0
        self.most_opening = 0
        self.opened = 0
        #: Looks at the newest message, by topic; and as above, for these.
        self.looks = Counter[str]()
        self.look_failures: list[Exception] = []
        self.look_gate = asyncio.Event()
        self.look_gate.set()
        self.looking = 0

    async def last(self, topic: str) -> Message | None:
        self.looks[topic] += 1
        self.looking += 1
        try:
            await asyncio.sleep(0)
            await self.look_gate.wait()
            if self.look_failures:
                raise self.look_failures.pop(0)
            return await super().last(topic)
        finally:
            self.looking -= 1

    async def open_producer(self, topic: str, **options: Any) -> Any:
        if self.producer_failures:
            raise self.producer_failures.pop(0)
        return await super().open_producer(topic, **options)

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> Any:
        self.opening += 1
        self.most_opening = max(self.most_opening, self.opening)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if self.failures:
                raise self.failures.pop(0)
            self.opened += 1
            return await super().open_reader(topic, start, sink)
        finally:
            self.opening -= 1
