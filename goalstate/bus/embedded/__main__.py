"""`python -m goalstate.bus.embedded --port PORT --data-dir DIR`: the embedded broker's process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from goalstate.bus.embedded.server import Server
from goalstate.bus.embedded.store import Store


async def serve(port: int, data_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT. Raises OSError if port or directory cannot be used."""
    store = Store(data_dir)
    if store.torn:
        print(f"cut {store.torn} bytes of an unfinished write off the log", flush=True)
    server = Server(store)
    bound = await server.start(port)
    print(f"embedded://127.0.0.1:{bound}", flush=True)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await stop.wait()
    await server.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="goalstate.bus.embedded", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    try:
        asyncio.run(serve(options.port, options.data_dir))
    except OSError as error:
        print(f"the embedded broker cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
