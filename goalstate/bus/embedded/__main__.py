"""`python -m goalstate.bus.embedded --port PORT --data-dir DIR`: the embedded broker's process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from goalstate.bus.embedded.server import Server
from goalstate.bus.embedded.store import Store


async def serve(port: int, data_dir: Path) -> int:
    """Serve until SIGTERM or SIGINT (gives 0), or until the log cannot be written (gives 1).

    Raises OSError if port or directory cannot be used.
    """
    store = Store(data_dir)
    if store.torn:
        print(f"cut {store.torn} bytes of an unfinished write off the log", flush=True)
    server = Server(store)
    bound = await server.start(port)
    print(f"embedded://127.0.0.1:{bound}", flush=True)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, server.ended.set)
    await server.ended.wait()
    await server.close()
    if server.failure:
        print(
            f"the embedded broker ends: its log in {data_dir} cannot be written: {server.failure}",
            file=sys.stderr,
        )
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="goalstate.bus.embedded", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    try:
        return asyncio.run(serve(options.port, options.data_dir))
    except OSError as error:
        print(f"the embedded broker cannot start: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
