"""The session of an agent process, with publishers that are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from goalstate.agent import session
from goalstate.agent.session import SessionClient
from goalstate.gs.pb.goalstate.session.v1 import session_pb2_grpc
from goalstate.process import ACTIVE_ADDRESS, bind
from goalstate.scale.chaos.link import Link
from tests.agent.fleet_rig import wait_until


class Publisher(session_pb2_grpc.StreamSessionsServicer):
    """Serves sessions, in which it has nothing to tell, until it stops."""

    def __init__(self, serves: str = "") -> None:
        """`serves`: the address of the one that serves, if it is not this one."""
        self.serves = serves
        self.stops = asyncio.Event()

    async def Open(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        if not self.serves:
            await context.send_initial_metadata(())
            await self.stops.wait()
        context.set_trailing_metadata(((ACTIVE_ADDRESS, self.serves),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not serving just now")
        yield  # never: it is a stream


@asynccontextmanager
async def publisher(one: Publisher | None = None) -> AsyncIterator[str]:
    # Takes pings however often they come.
    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 1)])
    session_pb2_grpc.add_StreamSessionsServicer_to_server(one or Publisher(), server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@asynccontextmanager
async def client(*addresses: str) -> AsyncIterator[SessionClient]:
    """One that has something to follow."""
    one = SessionClient(addresses)
    await one.open_reader("session:vpc/vpc-1", b"", lambda message: None)
    try:
        yield one
    finally:
        await one.close()


def test_a_publisher_that_is_gone_without_a_word_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where nothing was said for long. Of what a session asks, only the pace is quicker."""
    options = [(name, n // 50 if name.endswith("_ms") else n) for name, n in session._OPTIONS]
    monkeypatch.setattr(session, "_OPTIONS", options)

    async def scenario() -> None:
        async with publisher() as address:
            link = Link(address)
            async with client(await link.start()) as one:
                await wait_until(lambda: one.is_open, "a session is open")
                link.cut()
                await wait_until(lambda: not one.is_open, "it is over")
            await link.close()

    asyncio.run(scenario())


def test_no_proxy_is_asked_for_a_publisher(through_a_proxy: None) -> None:
    async def scenario() -> None:
        async with publisher() as address, client(address) as one:
            await wait_until(lambda: one.is_open, "a session is open")

    asyncio.run(scenario())


def test_a_publisher_that_was_named_once_is_tried_again_when_no_other_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "BACKOFF_S", (0.001, 0.001))

    async def scenario() -> None:
        active = Publisher()
        async with publisher(active) as there, AsyncExitStack() as standby:
            given = await standby.enter_async_context(publisher(Publisher(serves=there)))
            async with client(given) as one:
                await wait_until(lambda: one.is_open, "a session with the one that was named")
                await standby.aclose()
                active.stops.set()
                await wait_until(lambda: not one.is_open, "it is over")
                active.stops.clear()
                await wait_until(lambda: one.is_open, "another one")

    asyncio.run(scenario())
