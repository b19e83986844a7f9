"""What every process of ours does alike: logs, its clock's identity, binding, saying it is ready.

Imports none of the rooms.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grpc
import structlog
import uvloop
from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry, start_http_server

#: Largest gRPC message that we send or take unless told otherwise, in bytes.
MAX_GRPC_BYTES = 64 * 1024 * 1024
#: Calls of one connection at a time. Each that waits for something is one.
MAX_CALLS = 1000
#: Channel argument of all that calls a process of ours: never through a proxy.
DIRECTLY = ("grpc.enable_http_proxy", 0)
#: Metadata of an UNAVAILABLE that a publisher says: where the one is that serves the region, empty
#: if it does not know. An UNAVAILABLE without it says that no publisher answered.
ACTIVE_ADDRESS = "goalstate-active-address"
#: Trailing metadata of the answer to one that was shed: milliseconds after which to try again.
#: Clients of gRPC with a retry policy know it.
RETRY_AFTER = "grpc-retry-pushback-ms"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StartError(Exception):
    """The process cannot start as it was told to; the text says why and what to do."""


class AddressError(StartError):
    """What was given to listen on is no address."""


def clock_id() -> str:
    """Identity of the wall clock of this machine since it booted.

    Two processes with the same id read one clock, so that their times may be subtracted.
    """
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(16)  # no proof that the clock is shared: claim nothing


def configure_logging(form: Literal["json", "console"], level: str) -> None:
    """Structured logs on standard error, of ours and of the libraries."""
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def switch_threads_often() -> None:
    """Let the event loop have the interpreter soon when a thread works beside it.

    It asks for it anew in each of its turns, and a turn is short.
    """
    sys.setswitchinterval(0.0005)


def relax_garbage_collection() -> None:
    """Look for cycles rarely. To be called once, when what stays was imported.

    Publisher and hosts hold hundreds of thousands of tuples, which refer to nothing that refers
    back: looking through them again and again would cost a quarter of all work, and each time hold
    everything up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 50, 1000)


#: Services of ours, and those of Alcor's that we serve.
_CHECKED = ("/goalstate.", "/alcor.schema.")


class _Unreadable(NamedTuple):
    """Stands for a request that is none; says why."""

    reason: str


class _RefuseUnreadable(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers bytes that are no request with INVALID_ARGUMENT: by itself gRPC says UNKNOWN, as if
    it were our fault. For services of ours, in which every answer of a stream is yielded."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_CHECKED):
            return handler

        def deserialize(data: bytes) -> Any:
            try:
                return handler.request_deserializer(data)
            except DecodeError as error:
                return _Unreadable(str(error))

        async def checked(request: Any, context: Any) -> Any:
            if isinstance(request, _Unreadable):
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"these bytes are no request of {details.method}: {request.reason}",
                )
            return request

        async def all_checked(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for request in requests:
                yield await checked(request, context)

        async def unary_unary(request: Any, context: Any) -> Any:
            return await handler.unary_unary(await checked(request, context), context)

        async def unary_stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async for reply in handler.unary_stream(await checked(request, context), context):
                yield reply

        async def stream_stream(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for reply in handler.stream_stream(all_checked(requests, context), context):
                yield reply

        return handler._replace(
            request_deserializer=deserialize,
            unary_unary=handler.unary_unary and unary_unary,
            unary_stream=handler.unary_stream and unary_stream,
            stream_stream=handler.stream_stream and stream_stream,
        )


def grpc_server(
    max_receive_bytes: int = MAX_GRPC_BYTES,
    *interceptors: grpc.aio.ServerInterceptor,
    calls: int = MAX_CALLS,
) -> grpc.aio.Server:
    """A server with our limits; the interceptors see no request that cannot be read.

    Must be called with the event loop running. `calls`: of one connection at a time; a client lets
    more of them wait.
    """
    return grpc.aio.server(
        interceptors=[_RefuseUnreadable(), *interceptors],
        options=[
            ("grpc.max_receive_message_length", max_receive_bytes),
            ("grpc.max_send_message_length", MAX_GRPC_BYTES),
            ("grpc.max_concurrent_streams", calls),
            # Without this a second server on the port is not refused but gets half of the calls.
            ("grpc.so_reuseport", 0),
            # Who has a call open may ask whether we are there, so often (milliseconds).
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),
        ],
    )


def bind(server: grpc.aio.Server, address: str) -> str:
    """Bind a server; returns the address with its real port.

    Raises AddressError, or StartError if it is taken.
    """
    host, _, number = address.rpartition(":")
    if not host or not (number.isascii() and number.isdecimal()) or int(number) > 65535:
        raise AddressError(
            f"cannot listen on {address!r}: that is no address; write HOST:PORT, as 127.0.0.1:0"
        )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {address}: the port is taken, or the address is not this "
            "machine's; give another one, or port 0 for any free one"
        ) from error
    return f"{host}:{port}"


def write_ready_file(path: Path | None, facts: dict[str, Any]) -> None:
    """Say in a file, which appears all at once, where this process serves."""
    if path is None:
        return
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=path.name, delete=False
    ) as temporary:
        json.dump({**facts, "pid": os.getpid()}, temporary)
    os.replace(temporary.name, path)


def run_until_signal(run: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run a service in a loop of its own; SIGTERM and Ctrl-C set the event that it is given."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await run(stop)

    uvloop.run(main())


@contextmanager
def ended_alike() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what it started is stopped first."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`, unless `stop` is set before it is done: then it is cancelled. Was it done?"""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    working.cancel()
    stopped.cancel()
    await asyncio.gather(working, stopped, return_exceptions=True)
    if done:
        working.result()
    return done


def retrieved(done: asyncio.Future[Any]) -> None:
    """To be called back when it is done: an error of it counts as retrieved.

    For what several wait for, of whom none may be left then.
    """
    if not done.cancelled():
        done.exception()


def serve_metrics(
    address: str, port: int | None, registry: CollectorRegistry
) -> tuple[Any, Any] | None:
    """Serve metrics over HTTP from a thread; None where no port is given.

    Gives the server and its thread. Raises StartError if the port is taken.
    """
    if port is None:
        return None
    try:
        return start_http_server(port, addr=address, registry=registry)
    except OSError as error:
        raise StartError(
            f"cannot serve metrics on {address}:{port}: {error.strerror}; give another "
            "--metrics-port, or 0 for any free one"
        ) from error
