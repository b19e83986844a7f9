"""Files that a user names: errors that say what to do; `-` is standard input.

Law: a file that is written is there whole at the end, or as it was before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from goalstate.cli.errors import InputError


def read_bytes(path: str) -> bytes:
    """Raises InputError."""
    if path == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give a file that can be read") from None


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` when the block has ended well.

    Raises InputError.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}", "give a file in a directory that can be written to"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Raises InputError."""
    with written(path) as file:
        file.write(content)
