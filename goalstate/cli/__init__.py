"""The `goalstate` command: thin, calls the rooms.

Every module of this room is imported by the command that needs it, so that `goalstate --help` and
a mistyped option answer at once.
"""

from __future__ import annotations

import os


def main() -> None:
    """The entry point of the command; ends the process with an exit code."""
    # gRPC reads this once, when it is imported; what it would say of a busy port, we say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from goalstate.cli.app import app  # noqa: PLC0415 - importing the package stays free

    app(prog_name="goalstate")
