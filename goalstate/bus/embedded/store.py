"""The logs of the embedded broker: lists in memory, one append-only file on disk.

File: 8 bytes that name the store, then entries: length u32, CRC-32 u32 (of the rest), topic length
u16, topic, record. In an entry whose topic length is 0 a claim follows: its number u64, the topic.
Laws:

1.  `append` and `claim` only gather; what `commit` has returned from is in the file and survives
    the process.
2.  Opening replays the file up to the first entry that is not whole, and cuts the rest off: that
    can only be the tail of a write that nobody was told about.
3.  One process at a time has the file open.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import struct
import zlib
from pathlib import Path

from goalstate.bus.embedded.wire import with_length

_ENTRY_HEAD = struct.Struct(">II")
_TOPIC_LENGTH = struct.Struct(">H")
_CLAIM_HEAD = struct.Struct(">HQ")
_NAME_LENGTH = 8


class Store:
    """The logs under one directory. Raises OSError if it cannot be used."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(directory / "log", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise OSError(f"{directory} is in use by another broker") from error
        #: Topic → records in order, each with its length before it.
        self.logs: dict[str, list[bytes]] = {}
        #: Topic → the number of the newest claim to it.
        self.claims: dict[str, int] = {}
        #: Bytes that were cut off the file's end at the start.
        self.torn = 0
        self._gathered: list[bytes] = []
        self.name = self._replay()

    def append(self, topic: str, record: bytes) -> int:
        """Add a record to a topic, whose name is not empty; gives its index."""
        name = topic.encode()
        self._gather(_TOPIC_LENGTH.pack(len(name)), name, record)
        log = self.logs.setdefault(topic, [])
        log.append(with_length(record))
        return len(log) - 1

    def claim(self, topic: str, number: int) -> None:
        """Remember the newest claim to a topic."""
        self._gather(_CLAIM_HEAD.pack(0, number), topic.encode())
        self.claims[topic] = number

    def _gather(self, *parts: bytes) -> None:
        body = b"".join(parts)
        self._gathered += (_ENTRY_HEAD.pack(len(body), zlib.crc32(body)), body)

    def commit(self) -> None:
        """Write what was gathered. Raises OSError (then the store must not be used any more)."""
        data = memoryview(b"".join(self._gathered))
        self._gathered.clear()
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        self.commit()
        os.close(self._file)

    def _replay(self) -> bytes:
        size = os.fstat(self._file).st_size
        with open(self._file, "rb", closefd=False) as file:
            name = file.read(_NAME_LENGTH)
            if len(name) < _NAME_LENGTH:
                name = secrets.token_bytes(_NAME_LENGTH)
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, name, 0)
                good = _NAME_LENGTH
            else:
                good = _NAME_LENGTH
                while len(head := file.read(_ENTRY_HEAD.size)) == _ENTRY_HEAD.size:
                    length, checksum = _ENTRY_HEAD.unpack(head)
                    if length > size - good:
                        break
                    body = file.read(length)
                    if len(body) < length or zlib.crc32(body) != checksum:
                        break
                    self._take(body)
                    good += _ENTRY_HEAD.size + length
        self.torn = max(0, size - good)
        if self.torn:
            os.ftruncate(self._file, good)
        os.lseek(self._file, good, os.SEEK_SET)
        return name

    def _take(self, body: bytes) -> None:
        """Take an entry back."""
        (length,) = _TOPIC_LENGTH.unpack_from(body)
        if not length:
            _, number = _CLAIM_HEAD.unpack_from(body)
            self.claims[body[_CLAIM_HEAD.size :].decode()] = number
            return
        begin = _TOPIC_LENGTH.size + length
        topic = body[_TOPIC_LENGTH.size : begin].decode()
        self.logs.setdefault(topic, []).append(with_length(body[begin:]))
