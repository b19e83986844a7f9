"""Passing a call on to the publisher that serves what it is about, where this one stands by.

    client ──▶ this publisher ─┬─ serves ──▶ NorthboundService
                               └─ stands by ──▶ the one that serves ──▶ its NorthboundService

Laws:

1.  What is passed on is answered as if the client had called the other one: metadata, deadline and
    cancellation reach that; answers, status, its details and the trailing metadata are that one's.
2.  A call is passed on once. A mark in its metadata says by whom; whoever gets a marked one answers
    by itself, with UNAVAILABLE if it does not serve either. So there are no loops.
3.  No answer lies about what was done, and nothing is sent twice. Nothing is sent before there is a
    connection, so what fails for want of one was not done. Where no answer comes, since the other
    one is gone, or another one serves meanwhile, the error says that it may have been done.
4.  Requests of a stream are passed on one by one, each when the one before it is answered, as the
    service itself takes them: when a stream breaks, at most one of them is in doubt.
5.  What is asked of this very publisher (GetStatus) is answered by it.
6.  In a region that is divided, a call is about the shard that its metadata names; one that names
    none is answered here (see `region`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import Message

from goalstate.dpm.engine import Engine
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.service import SERVICE, Context
from goalstate.gs.sharding import SHARD
from goalstate.process import ACTIVE_ADDRESS, DIRECTLY, MAX_GRPC_BYTES

log = structlog.get_logger()

#: Metadata of a call that was passed on: by whom. A client that sets it is answered where it asks.
FORWARDED_BY = "goalstate-forwarded-by"
#: Seconds within which the other one must be connected to.
CONNECT_S = 2.0
#: Seconds between two looks at whether those that calls went to still serve.
LOOK_S = 1.0

_OWN = frozenset({"GetStatus"})
_WAITS = frozenset({"Wait", "Watch"})
#: Metadata that belongs to one connection.
_OF_TRANSPORT = re.compile(r"grpc-|:|(user-agent|content-type|te)$")
#: What gRPC itself says where no answer comes.
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
#: And what it says, as INTERNAL, where a call ends just as something is written to it: then how it
#: ended is not known.
BROKEN = "Internal error from Core"
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_GRPC_BYTES),
    ("grpc.max_send_message_length", MAX_GRPC_BYTES),
    DIRECTLY,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
#: What waits has a connection of its own, so that it never takes another call's place on one.
OF_WAITS = (*OPTIONS, ("grpc.use_local_subchannel_pool", 1))
_Connectivity = grpc.ChannelConnectivity


class _Peer:
    """The channels to another publisher, and what is under way on them."""

    def __init__(self, address: str) -> None:
        self.address = address
        #: With the engine that each is about.
        self.calls: dict[Any, Engine] = {}
        self._channel, self._of_waits = (
            grpc.aio.insecure_channel(address, options=options) for options in (OPTIONS, OF_WAITS)
        )

    def _channel_of(self, method: str) -> Any:
        return self._of_waits if method.rpartition("/")[2] in _WAITS else self._channel

    async def connected(self, method: str) -> bool:
        """Does it answer, where this is called? Waits for that, CONNECT_S at the longest."""
        channel = self._channel_of(method)
        state = channel.get_state(try_to_connect=True)
        with suppress(TimeoutError, grpc.aio.UsageError):  # or it was closed meanwhile
            async with asyncio.timeout(CONNECT_S):
                while state in (_Connectivity.IDLE, _Connectivity.CONNECTING):
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        return state is _Connectivity.READY

    def call(self, engine: Engine, method: str, **more: Any) -> Any:
        """On the wire every call is a stream each way, whatever the ends make of it."""
        call = self._channel_of(method).stream_stream(method)(**more)
        self.calls[call] = engine
        call.add_done_callback(lambda call: self.calls.pop(call, None))
        return call

    async def close(self) -> None:
        """Ends what is under way."""
        for call in list(self.calls):
            call.cancel()
        await self._channel.close()
        await self._of_waits.close()


class _Way(NamedTuple):
    """Where a call goes, and why it is not answered here."""

    engine: Engine
    peer: _Peer
    problem: str


class Forwarding(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers the northbound service's calls with the answers of the publisher that serves.

    `close` once the server has stopped.
    """

    def __init__(self, engines: Sequence[Engine], metrics: Metrics) -> None:
        """Of each shard, in their order."""
        self._engines = engines
        self._metrics = metrics
        self._peers: dict[str, _Peer] = {}
        self._looking: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        for peer in self._peers.values():
            await peer.close()
        self._peers.clear()

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        service, _, name = details.method.rpartition("/")
        if handler is None or service != f"/{SERVICE}" or name in _OWN:
            return handler

        def serialize(reply: Any) -> bytes:
            return reply if isinstance(reply, bytes) else handler.response_serializer(reply)

        async def unary_unary(request: Any, context: Context) -> Any:
            way = self._way(context)
            # What was shed before it was read (`shedding`) is no message.
            if way is None or not isinstance(request, Message):
                return await handler.unary_unary(request, context)
            replies = self._passed_on(way, details.method, only(request), context)
            return [reply async for reply in replies][-1]

        async def unary_stream(request: Any, context: Context) -> AsyncIterator[Any]:
            way = self._way(context)
            if way is None:
                replies = handler.unary_stream(request, context)
            else:
                replies = self._passed_on(way, details.method, only(request), context)
            async for reply in replies:
                yield reply

        async def stream_stream(requests: Any, context: Context) -> AsyncIterator[Any]:
            way = self._way(context)
            if way is None:
                replies = handler.stream_stream(requests, context)
            else:
                replies = self._passed_on(way, details.method, requests, context, by_turns=True)
            async for reply in replies:
                yield reply

        return handler._replace(
            response_serializer=serialize,
            unary_unary=handler.unary_unary and unary_unary,
            unary_stream=handler.unary_stream and unary_stream,
            stream_stream=handler.stream_stream and stream_stream,
        )

    def _way(self, context: Context) -> _Way | None:
        """Where to pass a call on; None: it is to be answered here."""
        shard = asked_shard(context) if len(self._engines) > 1 else 0
        if shard is None or not 0 <= shard < len(self._engines):
            return None
        engine = self._engines[shard]
        active = engine.active
        if engine.serving or active is None or active.address in ("", engine.address):
            return None
        if any(key == FORWARDED_BY for key, _ in context.invocation_metadata() or ()):
            return None
        if active.address not in self._peers:
            self._peers[active.address] = _Peer(active.address)
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        return _Way(
            engine,
            self._peers[active.address],
            f"the publisher is not serving just now: {engine.problem}",
        )

    async def _passed_on(
        self,
        way: _Way,
        method: str,
        requests: AsyncIterator[Any],
        context: Context,
        *,
        by_turns: bool = False,
    ) -> AsyncIterator[bytes]:
        """The other one's answers; then the call has ended as it did there."""
        if not await way.peer.connected(method):
            await self._abort(context, way, "nobody answers there, and nothing was done")
        call = way.peer.call(
            way.engine,
            method,
            timeout=context.time_remaining(),
            metadata=(
                *passed(context),
                (FORWARDED_BY, way.engine.address),
            ),
        )
        try:
            replies = aiter(call)
            async for request in requests:
                await call.write(request.SerializeToString())
                if by_turns:
                    yield await anext(replies)
            await call.done_writing()
            async for reply in replies:
                yield reply
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, StopAsyncIteration):
            pass  # it has ended there; how, is asked below
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the client is gone
        finally:
            call.cancel()  # unless it has ended
        await self._end_alike(call, context, way)

    async def _end_alike(self, call: Any, context: Context, way: _Way) -> None:
        code, trailing = await call.code(), tuple(await call.trailing_metadata() or ())
        said = await call.details()
        no_answer = code in _NO_ANSWER or said == BROKEN
        if no_answer and all(key != ACTIVE_ADDRESS for key, _ in trailing):
            why = f"no answer came from there ({said}), and what was asked for may have been done"
            await self._abort(context, way, why)
        self._metrics.forwarded.labels(code=code.name).inc()
        if code is grpc.StatusCode.OK:
            context.set_trailing_metadata(trailing)
        else:
            await context.abort(code, said, trailing)

    async def _abort(self, context: Context, way: _Way, why: str) -> None:
        code = grpc.StatusCode.UNAVAILABLE
        self._metrics.forwarded.labels(code=code.name).inc()
        trailing = ((ACTIVE_ADDRESS, way.peer.address),)
        await context.abort(code, f"{way.problem}; {why}", trailing)

    async def _look(self) -> None:
        """End what is under way to one that does not serve any more: it may never be answered."""
        while True:
            await asyncio.sleep(LOOK_S)
            for peer in self._peers.values():
                for call, engine in list(peer.calls.items()):
                    active = engine.active
                    if active is not None and active.address != peer.address:
                        log.info("passed on to one that serves no more", address=peer.address)
                        call.cancel()
            serve = {e.active.address if e.active is not None else None for e in self._engines}
            if None not in serve:
                for address in self._peers.keys() - serve:
                    await self._peers.pop(address).close()


async def only(request: Any) -> AsyncIterator[Any]:
    """The requests of a stream that has this one."""
    yield request


def asked_shard(context: Context) -> int | None:
    """The shard that a call names, -1 if that is no number; None: it names none."""
    for key, value in context.invocation_metadata() or ():
        if key == SHARD:
            return int(value) if value.isascii() and value.isdecimal() else -1
    return None


def passed(context: Context) -> list[tuple[str, str | bytes]]:
    """The metadata of a call that a call made for it has as well."""
    metadata = context.invocation_metadata() or ()
    return [(key, value) for key, value in metadata if not _OF_TRANSPORT.match(key)]
