"""What every process of ours does alike: logs, its clock's identity, binding, saying it is ready.

Imports none of the rooms.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

import grpc
import structlog
import uvloop

#: Largest gRPC message that we send or take, in bytes.
MAX_GRPC_BYTES = 64 * 1024 * 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class StartError(Exception):
    """The process cannot start as it was told to; the text says why and what to do."""


def clock_id() -> str:
    """Identity of the wall clock of this machine since it booted.

    Two processes with the same id read one clock, so that their times may be subtracted.
    """
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"process-{os.getpid()}"  # no proof that the clock is shared: claim nothing


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


def relax_garbage_collection() -> None:
    """Look for cycles rarely. To be called once, when what stays was imported.

    Publisher and hosts hold hundreds of thousands of tuples, which refer to nothing that refers
    back: looking through them again and again would cost a quarter of all work, and each time hold
    everything up.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 50, 1000)


def grpc_server() -> grpc.aio.Server:
    """A server with our limits. Must be called with the event loop running."""
    return grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", MAX_GRPC_BYTES),
            ("grpc.max_send_message_length", MAX_GRPC_BYTES),
            # Without this a second server on the port is not refused but gets half of the calls.
            ("grpc.so_reuseport", 0),
        ]
    )


def bind(server: grpc.aio.Server, address: str) -> str:
    """Bind a server; returns the address with its real port. Raises StartError if it is taken."""
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartError(
            f"cannot listen on {address}: the port is taken, or the address is not this "
            "machine's; give another one, or port 0 for any free one"
        ) from error
    host, _, _ = address.rpartition(":")
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
