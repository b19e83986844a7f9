"""Posts the dead letters of a fleet's hosts: few messages, however many there are.

There is at most one message in each report delay, of about MESSAGE_BYTES at the most, and one under
way at a time; the rest waits. The topic is opened with the first letter.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from goalstate.agent.core import HostCore
from goalstate.agent.counters import Counters
from goalstate.bus.base import Bus, Producer
from goalstate.bus.errors import BusError
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2

log = structlog.get_logger()

MESSAGE_BYTES = 512 * 1024
RETRY_S = 1.0
#: Seconds that the last letters get to arrive.
STOP_S = 2.0


class Posting:
    """`stop` ends it; until then it goes on by itself."""

    def __init__(self, bus: Bus, topic: str, counters: Counters, *, delay_s: float) -> None:
        """Without a topic nothing is posted."""
        self._bus = bus
        self._topic = topic
        self._counters = counters
        self._delay_s = delay_s
        self._hosts: dict[HostCore, None] = {}
        self._producer: Producer | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    @property
    def open(self) -> bool:
        """Was there ever a letter?"""
        return self._producer is not None

    def waiting(self, core: HostCore) -> None:
        """A host has letters."""
        if not self._topic:
            return
        self._hosts[core] = None
        if self._task is None and not self._stopping.is_set():
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Post what fits into a last message, then close."""
        self._stopping.set()
        if self._task is not None:
            try:
                async with asyncio.timeout(STOP_S):
                    await self._task
            except TimeoutError:
                log.warning("stopped with dead letters on their way")
        if self._producer is not None:
            try:
                await self._producer.close()
            except BusError as error:
                log.warning("dead letters are lost", error=str(error))

    async def _run(self) -> None:
        delay_s = self._delay_s
        stopping = False
        try:
            while self._hosts and not stopping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._stopping.wait()
                stopping = self._stopping.is_set()
                delay_s = self._delay_s if await self._post() else RETRY_S
        finally:
            self._task = None

    async def _post(self) -> bool:
        """Send one message; did it arrive?"""
        taken: list[tuple[HostCore, list[agent_pb2.DeadLetter]]] = []
        message = agent_pb2.DeadLetters()
        for core in list(self._hosts):
            room = MESSAGE_BYTES - message.ByteSize()
            if room <= 0:
                break
            letters = core.dead_letters(room)
            if letters:
                taken.append((core, letters))
                message.letters.extend(letters)
            if not core.programming.exceptions.letters:
                del self._hosts[core]
        if not taken:
            return True
        try:
            if self._producer is None:
                self._producer = await self._bus.open_producer(self._topic)
            await self._producer.send(message.SerializeToString())
        except BusError as error:
            log.warning("dead letters are not written yet", error=str(error))
            for core, letters in taken:
                core.programming.exceptions.letters.lost(letters)
                self._hosts[core] = None
            return False
        self._counters.dead_letters += len(message.letters)
        return True
