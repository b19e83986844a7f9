"""The session of an agent process, with publishers that are played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from goalstate.agent import session
from goalstate.agent.session import SessionClient
from goalstate.gs.pb.goalstate.session.v1 import session_pb2_grpc
from goalstate.process import bind
from goalstate.scale.chaos.link import Link
from tests.agent.fleet_rig import wait_until


class Publisher(session_pb2_grpc.StreamSessionsServicer):
    """Serves sessions, and has nothing to tell."""

    async def Open(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        await context.send_initial_metadata(())
        async for _ in request_iterator:
            pass
        for nothing in ():
            yield nothing


@asynccontextmanager
async def publisher() -> AsyncIterator[str]:
    # Takes pings however often they come.
    server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 1)])
    session_pb2_grpc.add_StreamSessionsServicer_to_server(Publisher(), server)
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
