"""Files that a user names: read whole, with errors that say what to do; `-` is standard input."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from goalstate.cli.errors import InputError


def read_bytes(path: str) -> bytes:
    """Raises InputError."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give a file that can be read") from None


def write_bytes(path: Path, content: bytes) -> None:
    """The file is there whole, or as it was before. Raises InputError."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(
            f"{path}: {error.strerror}", "give a file in a directory that can be written to"
        ) from None
