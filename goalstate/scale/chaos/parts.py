"""The parts of a region as processes, each behind a link of its own to the broker.

    client ──link──▶ dpm-a ──link──▶ ┌────────┐
           ──link──▶ dpm-b ──link──▶ │ broker │
                   agent-0 ──link──▶ │        │
                   agent-1 ──link──▶ └────────┘ …

A part can be killed (as by a power cut), stopped and continued, and started again with what it had
on disk. Whoever starts services elsewhere starts them again when they cannot start yet: so does
`start`. What a run looks at (the witness, the processes' ids) does not pass through links.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from goalstate.bus.brokers import Broker
from goalstate.bus.errors import BrokerFailed
from goalstate.bus.process import Child
from goalstate.scale.chaos.hosts import Witness
from goalstate.scale.chaos.link import Link

#: Seconds within which a part must have started, however often it takes to try; and between two.
START_S = 240.0
_AGAIN_S = 0.5


class Part(Protocol):
    """What can fail."""

    name: str

    @property
    def pid(self) -> int: ...

    async def start(self) -> None:
        """Start it (again); returns when it serves. Raises BrokerFailed."""

    async def kill(self) -> None:
        """kill -9."""

    async def stop(self) -> None:
        """End it in an orderly way; harmless if it does not run."""


def stop_process(part: Part) -> None:
    with suppress(ProcessLookupError):
        os.kill(part.pid, signal.SIGSTOP)


def continue_process(part: Part) -> None:
    with suppress(ProcessLookupError):
        os.kill(part.pid, signal.SIGCONT)


class Process:
    """One of our commands."""

    def __init__(
        self,
        name: str,
        arguments: list[str],
        directory: Path,
        settings: Mapping[str, str],
        link: Link,
    ) -> None:
        """`link`: the one to the broker."""
        self.name = name
        self.link = link
        #: When it was killed last, by the monotonic clock; 0: never.
        self.killed_at = 0.0
        self.starts = 0
        self._arguments = arguments
        self._directory = directory
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GOALSTATE")}
        self._env = {**kept, **settings}
        self._child: Child | None = None
        self._wanted = False

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def died(self) -> bool:
        """Has it ended without being told to?"""
        return self._wanted and self._child is not None and not self._child.alive

    @property
    def logs(self) -> list[Path]:
        """One for each time that it was started."""
        return sorted(self._directory.glob(f"{self.name}-*.log"))

    async def start(self) -> None:
        end = time.monotonic() + START_S
        while True:
            try:
                facts = await asyncio.to_thread(self._launch)
            except BrokerFailed:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(_AGAIN_S)
            else:
                self._wanted = True
                await self._started(facts)
                return

    def _launch(self) -> dict[str, Any]:
        self.starts += 1
        ready = self._directory / f"{self.name}-{self.starts}.ready"
        self._child = Child(
            [sys.executable, "-m", "goalstate.cli", *self._arguments, "--ready-file", str(ready)],
            what=self.name,
            log=ready.with_suffix(".log"),
            env=self._env,
        )
        self._child.await_ready(ready.exists, lambda text: None)
        facts: dict[str, Any] = json.loads(ready.read_text("utf-8"))
        return facts

    async def _started(self, facts: dict[str, Any]) -> None:
        """It serves at these addresses."""

    async def kill(self) -> None:
        assert self._child is not None
        self._wanted = False
        self.killed_at = time.monotonic()
        await asyncio.to_thread(self._child.kill)

    async def stop(self) -> None:
        self._wanted = False
        if self._child is not None:
            await asyncio.to_thread(self._child.stop)


class Publisher(Process):
    """A DPM; `client_link` is the one at which clients call it."""

    def __init__(self, *args: Any, client_link: Link) -> None:
        super().__init__(*args)
        self.client_link = client_link

    async def _started(self, facts: dict[str, Any]) -> None:
        self.client_link.target = facts["listen"]


class Agent(Process):
    """An agent process; `hosts` are those that it plays."""

    witness: Witness

    def __init__(self, *args: Any, hosts: list[str]) -> None:
        super().__init__(*args)
        self.hosts = hosts

    async def _started(self, facts: dict[str, Any]) -> None:
        if self.starts > 1 and hasattr(self, "witness"):
            await self.witness.close()
        self.witness = Witness(facts["listen"])

    async def stop(self) -> None:
        if hasattr(self, "witness"):
            await self.witness.close()
        await super().stop()


class BrokerPart:
    """The broker, as a part."""

    name = "broker"

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._starting: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int:
        (pid,) = self.broker.pids
        return pid

    async def start(self) -> None:
        self._starting = asyncio.ensure_future(asyncio.to_thread(self.broker.restart))
        await asyncio.shield(self._starting)

    async def kill(self) -> None:
        await asyncio.to_thread(self.broker.kill)

    async def stop(self) -> None:
        # What is being started can be stopped once it has started.
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        await asyncio.to_thread(self.broker.stop)
