"""Every broker that is offered passes the one kit."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import pytest

from goalstate.bus import conformance
from goalstate.bus.base import Bus
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.bus.embedded import EmbeddedBus
from goalstate.bus.errors import BrokerUnreachable
from goalstate.bus.memory import MemoryBroker, MemoryBus
from goalstate.bus.process import free_ports

_topics = itertools.count()


class MemoryHarness:
    deaths = 3

    def __init__(self) -> None:
        self._broker = MemoryBroker(time.time_ns)

    async def connect(self) -> Bus:
        self._broker.check_reachable("")
        return MemoryBus(self._broker)

    async def connect_to_nobody(self) -> Bus:
        raise BrokerUnreachable("a memory broker is an object: there is no address to miss")

    def topic(self, name: str) -> str:
        return f"{name}-{next(_topics)}"

    async def kill(self) -> None:
        self._broker.stop()

    async def restart(self) -> None:
        self._broker.start()


class ProcessHarness:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._run = time.time_ns()
        # A restart of Apache Pulsar takes some 20 s, most of it the client's growing pauses.
        self.deaths = 3 if broker.kind == "embedded" else 1

    async def connect(self) -> Bus:
        url = self._broker.url
        if self._broker.kind == "embedded":
            return await EmbeddedBus.connect(url, timeout=3)
        return await connect(url)

    async def connect_to_nobody(self) -> Bus:
        scheme = self._broker.url.split(":")[0]
        return await connect(f"{scheme}://127.0.0.1:{free_ports(1)[0]}")

    def topic(self, name: str) -> str:
        return f"persistent://public/default/{name}-{self._run}-{next(_topics)}"

    async def kill(self) -> None:
        await asyncio.to_thread(self._broker.kill)

    async def restart(self) -> None:
        await asyncio.to_thread(self._broker.restart)


BROKERS: dict[str, Callable[[pytest.FixtureRequest], conformance.Harness]] = {
    "memory": lambda request: MemoryHarness(),
    "embedded": lambda request: ProcessHarness(request.getfixturevalue("embedded_broker")),
    "apache": lambda request: ProcessHarness(request.getfixturevalue("apache_broker")),
}


@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize(
    "check", [*conformance.CHECKS, *conformance.RESTART_CHECKS], ids=lambda check: check.__name__
)
def test_conforms(broker: str, check: conformance.Check, request: pytest.FixtureRequest) -> None:
    asyncio.run(check(BROKERS[broker](request)))
