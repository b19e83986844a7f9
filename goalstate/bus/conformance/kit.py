"""What every check uses: the harness, how to wait, what to expect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from goalstate.bus.base import Bus, Message, Producer
from goalstate.bus.errors import BusError

#: Seconds until a condition that should come about counts as never.
BOUND = 60.0


class Nonconformity(AssertionError):
    """A broker or its adapter does not do what `base.py` says."""


class Harness(Protocol):
    """What the kit needs to know of a broker."""

    @property
    def deaths(self) -> int:
        """How many times in a row the broker is killed, at least 1."""
        ...

    async def connect(self) -> Bus:
        """A new connection."""
        ...

    async def connect_to_nobody(self) -> Bus:
        """A connection to an address of the same kind where nobody answers."""
        ...

    def topic(self, name: str) -> str:
        """The full name of a topic that nobody has used yet."""
        ...

    async def kill(self) -> None:
        """End the broker as a power cut would."""
        ...

    async def restart(self) -> None:
        """Start it again at the same address with what it had on disk."""
        ...


Check = Callable[[Harness], Coroutine[Any, Any, None]]


async def until(what: str, condition: Callable[[], bool], bound: float = BOUND) -> None:
    """Wait for a condition. Raises Nonconformity naming it after `bound` seconds."""
    end = time.monotonic() + bound
    while not condition():
        if time.monotonic() > end:
            raise Nonconformity(f"did not happen within {bound:.0f} s: {what}")
        await asyncio.sleep(0.002)


def expect(what: str, seen: object, expected: object) -> None:
    """Raises Nonconformity unless both are equal."""
    if seen != expected:
        raise Nonconformity(f"{what}: expected {_short(expected)}, saw {_short(seen)}")


async def expect_error(what: str, kind: type[BusError], action: Awaitable[object]) -> None:
    """Raises Nonconformity unless `action` raises `kind`."""
    try:
        result = await action
    except kind:
        return
    except BusError as error:
        raise Nonconformity(f"{what}: expected {kind.__name__}, saw {error!r}") from error
    raise Nonconformity(f"{what}: expected {kind.__name__}, saw {_short(result)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}… ({len(text)} characters)"


@asynccontextmanager
async def connected(harness: Harness) -> AsyncIterator[Bus]:
    bus = await harness.connect()
    try:
        yield bus
    finally:
        await bus.close()


def payloads_of(messages: Iterable[Message]) -> list[bytes]:
    return [message.payload for message in messages]


async def send_all(producer: Producer, payloads: Iterable[bytes]) -> list[bytes]:
    return list(await asyncio.gather(*[producer.send(payload) for payload in payloads]))


def numbers(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def watched(sends: Iterable[asyncio.Future[bytes]]) -> list[int]:
    """Grows by the number of each send that has a result, in the order in which they came."""
    accepted: list[int] = []

    def watch(number: int, send: asyncio.Future[bytes]) -> None:
        def answered(done: asyncio.Future[bytes]) -> None:
            if not done.cancelled() and done.exception() is None:
                accepted.append(number)

        send.add_done_callback(answered)

    for number, send in enumerate(sends):
        watch(number, send)
    return accepted
