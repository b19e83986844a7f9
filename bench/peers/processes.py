"""The two processes of a system that is measured: the source, and the hosts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection
from time import time_ns
from typing import Any, NamedTuple

import uvloop

from bench.alone import Answering
from bench.peers.arrivals import Arrivals, Reached
from bench.peers.base import Hosts, Peer, Work
from bench.system import MeasurementFailed
from goalstate.process import relax_garbage_collection

#: Seconds to start a process, and to open or close what is in it.
_OPEN_S = 120.0
#: Seconds for all hosts to have what was sent. A server that makes a copy for each host that joins,
#: one after the other, takes more than a tenth of a second for each of 10,000 ports.
DELIVERY_S = 300.0
_TOO_LATE = f"not within {DELIVERY_S:.0f} s"


class Span(NamedTuple):
    """When a call began and when it returned; ns since the epoch."""

    begun: int
    ended: int


class _Process(Answering):
    """Its calls are answered in turn; an error is handed over as its text."""

    def __init__(self, what: str, make: Callable[[], _Calls]) -> None:
        self._what = what
        super().__init__(
            partial(_serve, make),
            open_s=_OPEN_S,
            close_s=10,
            too_late=f"{what} did not answer in time",
        )

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def call(self, name: str, *arguments: Any, timeout_s: float = _OPEN_S) -> Any:
        """Raises MeasurementFailed."""
        self.ask((name, arguments))
        return self.result(timeout_s)

    def result(self, timeout_s: float = _OPEN_S) -> Any:
        """Of what was asked. Raises MeasurementFailed."""
        try:
            good, value = self.answer(timeout_s)
        except (TimeoutError, EOFError, OSError) as error:
            raise MeasurementFailed(f"{self._what}: {error or 'ended'}") from error
        if not good:
            raise MeasurementFailed(value)
        return value


class SourceProcess(_Process):
    def __init__(self, peer: Peer, work: Work, hosts: int) -> None:
        super().__init__("the source", partial(_SourceCalls, peer, work, hosts))

    def begin(self, vpc: str) -> None:
        self.call("begin", vpc)

    def state(self, vpc: str) -> Span:
        span: Span = self.call("state", vpc, timeout_s=DELIVERY_S + 10)
        return span

    def changes(self, vpc: str, first: int, count: int, rate: float | None) -> list[Span]:
        """One after the other, or so many a second: then each begins when it is due."""
        spans: list[Span] = self.call("changes", vpc, first, count, rate, timeout_s=DELIVERY_S + 10)
        return spans

    def admit(self, vpc: str, first: int, hosts: int) -> None:
        self.call("admit", vpc, first, hosts, timeout_s=DELIVERY_S + 10)


class HostsProcess(_Process):
    def __init__(self, peer: Peer) -> None:
        super().__init__("the hosts", partial(_HostsCalls, peer))

    def connect(self, vpc: str, first: int, number: int, *, late: bool = False) -> None:
        """Make hosts that do not follow yet; those of before stay."""
        self.call("connect", vpc, first, number, late)

    def expect(self, first: int, steps: int, units: int) -> None:
        """Of the hosts from this number on."""
        self.call("expect", first, steps, units)

    def follow(self, first: int) -> Span:
        span: Span = self.call("follow", first, timeout_s=DELIVERY_S + 10)
        return span

    def reached(self, first: int) -> list[Reached]:
        """Wait until all hosts have all steps. Raises MeasurementFailed."""
        reached: list[Reached] = self.call("reached", first, timeout_s=DELIVERY_S + 10)
        return reached

    def leave(self, first: int) -> None:
        self.call("leave", first)


class _Calls:
    """What a process can be asked."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class _SourceCalls(_Calls):
    def __init__(self, peer: Peer, work: Work, hosts: int) -> None:
        self._source = peer.source(work, hosts)

    async def open(self) -> None:
        await self._source.open()

    async def close(self) -> None:
        await self._source.close()

    async def begin(self, vpc: str) -> None:
        await self._source.begin(vpc)

    async def state(self, vpc: str) -> Span:
        return await _spanned(self._source.state(vpc))

    async def changes(self, vpc: str, first: int, count: int, rate: float | None) -> list[Span]:
        spans = []
        begun = time_ns()
        for number in range(count):
            due = begun + int(number / rate * 1e9) if rate else time_ns()
            await asyncio.sleep(max(0.0, (due - time_ns()) / 1e9))
            # A sleep may end a little early; what is late counts from when it was due.
            due = min(due, time_ns())
            await self._source.change(vpc, first + number)
            spans.append(Span(due, time_ns()))
        return spans

    async def admit(self, vpc: str, first: int, hosts: int) -> None:
        await self._source.admit(vpc, first, hosts)


class _HostsCalls(_Calls):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._hosts: dict[int, tuple[Hosts, int]] = {}
        self._arrivals: dict[int, Arrivals] = {}

    async def close(self) -> None:
        for first in list(self._hosts):
            await self.leave(first)

    async def connect(self, vpc: str, first: int, number: int, late: bool) -> None:
        hosts = self._peer.hosts(vpc, first, number, late=late)
        await hosts.connect()
        self._hosts[first] = hosts, number

    async def expect(self, first: int, steps: int, units: int) -> None:
        _, number = self._hosts[first]
        self._arrivals[first] = Arrivals(number, steps, units, time_ns, first)

    async def follow(self, first: int) -> Span:
        hosts, _ = self._hosts[first]

        def arrived(host: int, units: int) -> None:
            self._arrivals[first].arrived(host, units)

        try:
            return await asyncio.wait_for(_spanned(hosts.follow(arrived)), DELIVERY_S)
        except TimeoutError:
            raise MeasurementFailed(_TOO_LATE) from None

    async def reached(self, first: int) -> list[Reached]:
        arrivals = self._arrivals[first]
        if not await asyncio.to_thread(arrivals.complete.wait, DELIVERY_S):
            raise MeasurementFailed(f"{_TOO_LATE}; {arrivals.missing()}")
        return arrivals.reached()

    async def leave(self, first: int) -> None:
        hosts, _ = self._hosts.pop(first)
        await hosts.close()


async def _spanned(work: Awaitable[None]) -> Span:
    begun = time_ns()
    await work
    return Span(begun, time_ns())


def _serve(make: Callable[[], _Calls], pipe: Connection) -> None:
    logging.basicConfig(level=logging.CRITICAL)
    uvloop.run(_answer(make, pipe))


async def _answer(make: Callable[[], _Calls], pipe: Connection) -> None:
    calls = make()
    await calls.open()
    relax_garbage_collection()
    try:
        pipe.send(True)
        while True:
            name, arguments = await asyncio.to_thread(pipe.recv)
            try:
                answer = True, await getattr(calls, name)(*arguments)
            except Exception as error:  # whatever it is, its text is the reason
                named = "" if isinstance(error, MeasurementFailed) else f"{type(error).__name__}: "
                answer = False, f"{named}{error}"
            pipe.send(answer)
    except (EOFError, BrokenPipeError):  # nobody asks any more
        await calls.close()
