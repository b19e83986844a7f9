"""The file in which a process stores what its hosts hold: one SQLite database.

Laws:

1.  A batch is one transaction: after a crash, each stream is in the file as of one mark, and all
    streams of a host as of one moment.
2.  Nothing is lost that counts: the broker has it. So a batch need not be on the disk before the
    next (synchronous=NORMAL), and a file that cannot be used is set aside, not repaired.
3.  Of each stream the file has a proof: a checksum of its head, with the sum of the hashes of its
    rows, which costs as little to keep up as `gs/digest`. What is loaded is what was written: a
    stream that is not as its proof says is not loaded, and forgotten.
4.  Equal payloads are stored once, and held once in memory, whichever hosts have them.
5.  One process has the file at a time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import structlog
import xxhash

from goalstate.agent.state import Head, StoredStream, Update
from goalstate.gs import digest as digests
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Mark, StreamId
from goalstate.gs.topics import encode
from goalstate.process import StartError

log = structlog.get_logger()

FORMAT = "2"
#: Added to the name of a file that cannot be used.
ASIDE = ".set-aside"

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE streams (
    key INTEGER PRIMARY KEY, host TEXT NOT NULL, stream TEXT NOT NULL, topic TEXT NOT NULL,
    counting INTEGER NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
    position BLOB NOT NULL, digest BLOB NOT NULL, expected BLOB,
    rows BLOB NOT NULL, proof BLOB NOT NULL, UNIQUE (host, stream)
);
CREATE TABLE payloads (hash BLOB PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE resources (
    stream INTEGER NOT NULL, kind INTEGER NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL,
    hash BLOB, UNIQUE (stream, kind, id)
);
"""
_PUT_STREAM = """
INSERT INTO streams (
    host, stream, topic, counting, epoch, sequence, position, digest, expected, rows, proof
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (host, stream) DO UPDATE SET
    topic = excluded.topic, counting = excluded.counting, epoch = excluded.epoch,
    sequence = excluded.sequence, position = excluded.position, digest = excluded.digest,
    expected = excluded.expected, rows = excluded.rows, proof = excluded.proof
RETURNING key
"""


#: One that is there already is written only if it is damaged.
_PUT_PAYLOAD = """
INSERT INTO payloads VALUES (?, ?)
ON CONFLICT (hash) DO UPDATE SET payload = excluded.payload WHERE payload IS NOT excluded.payload
"""
_FORGET_RESOURCE = """
DELETE FROM resources WHERE stream = ? AND kind = ? AND id = ? RETURNING kind, id, revision, hash
"""
#: Errors of SQLite that say nothing of the file.
_NOT_THE_FILE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
}


class _Unusable(Exception):
    """Why a file is set aside."""


class StateFile:
    """See the module's text. Its methods block; threads that call them at once wait."""

    def __init__(self, path: Path, meta: dict[str, str], connection: sqlite3.Connection) -> None:
        self.path = path
        self._meta = meta
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: Path, region: str, hosts: Sequence[str]) -> StateFile:
        """The file of a process that plays `hosts`, made if need be.

        One of another region, of other hosts or of another format, or a damaged one, is set aside.
        Raises StartError if there can be none, or if another process has it.
        """
        path = directory / f"{encode(hosts[0])}.sqlite3"
        meta = {
            "format": FORMAT,
            "region": region,
            "hosts": sha256("\n".join(sorted(hosts)).encode()).hexdigest(),
        }
        with _or_start_error(path):
            directory.mkdir(parents=True, exist_ok=True)
            try:
                connection = _connected(path, meta)
            except Exception as error:  # whatever a damaged file makes of it
                if not _is_of_the_file(error, path):
                    raise
                connection = _anew(path, meta, error)
            return cls(path, meta, connection)

    def load(self) -> dict[str, list[StoredStream]]:
        """What is stored and proved, by host; the rest is forgotten.

        A damaged file is set aside. Raises StartError if there can be no other in its place.
        """
        with self._lock:
            try:
                hosts, damaged = self._load()
                if damaged:
                    self._forget(damaged)
                return hosts
            except Exception as error:  # whatever a damaged file makes of it
                with _or_start_error(self.path):
                    self._connection.close()
                    self._connection = _anew(self.path, self._meta, error)
                return {}

    def _load(self) -> tuple[dict[str, list[StoredStream]], set[int]]:
        """What is proved, and the keys of what is not."""
        run = self._connection.execute
        payloads: dict[bytes | None, bytes] = {
            hash_: payload
            for hash_, payload in run("SELECT hash, payload FROM payloads")
            if isinstance(payload, bytes) and xxhash.xxh3_128_digest(payload) == hash_
        }
        payloads[None] = b""
        kinds = {int(kind): kind for kind in Kind}
        resources: dict[int, list[Resource]] = {}
        sums: dict[int, int] = {}
        lacking = set()
        for key, *row in run(
            "SELECT stream, kind, id, revision, hash FROM resources ORDER BY rowid"
        ):
            kind, id_, revision, hash_ = row
            sums[key] = sums.get(key, 0) + _hashed(row)
            if kind in kinds and hash_ in payloads:
                resources.setdefault(key, []).append(
                    Resource(kinds[kind], id_, revision, payloads[hash_])
                )
            else:
                lacking.add(key)
        damaged = lacking | sums.keys()
        hosts: dict[str, list[StoredStream]] = {}
        for key, proof, *row in run(
            "SELECT key, proof, host, stream, topic, counting, epoch, sequence, position, digest, "
            "expected, rows FROM streams ORDER BY key"
        ):
            host, stream, topic, counting, epoch, sequence, position, digest, expected, rows = row
            known = digests.to_bytes(sums.get(key, 0) & digests.MASK)
            if key in lacking or known != rows or _proof(row) != proof:
                damaged.add(key)
                log.warning("a stored stream is damaged", file=str(self.path), stream=repr(stream))
                continue
            damaged.discard(key)
            head = Head(
                topic,
                bool(counting),
                Mark(epoch, sequence),
                position,
                int.from_bytes(digest, "big"),
                None if expected is None else int.from_bytes(expected, "big"),
            )
            stored = StoredStream(StreamId.parse(stream), head, resources.pop(key, []))
            hosts.setdefault(host, []).append(stored)
        return hosts, damaged

    def _forget(self, keys: Iterable[int]) -> None:
        """Of these streams nothing is stored any more."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            for name, column in (("resources", "stream"), ("streams", "key")):
                self._connection.executemany(
                    f"DELETE FROM {name} WHERE {column} IS ?", [(key,) for key in keys]
                )

    def write(self, updates: Iterable[Update]) -> None:
        """Store a batch, all of it or nothing. Raises sqlite3.Error."""
        with self._lock, self._connection:
            run, many = self._connection.execute, self._connection.executemany
            run("BEGIN IMMEDIATE")
            for host, stream, head, whole, resources, gone in updates:
                key, known = run(
                    "SELECT key, rows FROM streams WHERE host = ? AND stream = ?",
                    (host, str(stream)),
                ).fetchone() or (None, digests.to_bytes(0))
                if head is None or whole:
                    run("DELETE FROM resources WHERE stream = ?", (key,))
                    known = digests.to_bytes(0)
                if head is None:
                    run("DELETE FROM streams WHERE key = ?", (key,))
                    continue
                total = int.from_bytes(known, "big")
                if not whole:
                    for kind, id_ in (*((one.kind, one.id) for one in resources), *gone):
                        for old in run(_FORGET_RESOURCE, (key, int(kind), id_)):
                            total -= _hashed(old)
                rows = [
                    (
                        *(int(one.kind), one.id, one.revision),
                        xxhash.xxh3_128_digest(one.payload) if one.payload else None,
                    )
                    for one in resources
                ]
                total += sum(map(_hashed, rows))
                (key,) = run(_PUT_STREAM, _row(host, stream, head, total)).fetchone()
                many(
                    _PUT_PAYLOAD,
                    [
                        (row[-1], one.payload)
                        for row, one in zip(rows, resources, strict=True)
                        if one.payload
                    ],
                )
                many(
                    "INSERT OR REPLACE INTO resources VALUES (?, ?, ?, ?, ?)",
                    [(key, *row) for row in rows],
                )

    def close(self) -> None:
        """Nothing can be stored or loaded any more."""
        with self._lock:
            self._connection.close()


def _hashed(row: Sequence[object]) -> int:
    """The hash of a row, 128 bits. The text tells values apart that differ in type alone."""
    return xxhash.xxh3_128_intdigest(repr(tuple(row)).encode())


def _proof(row: Sequence[object]) -> bytes:
    return digests.to_bytes(_hashed(row))


def _row(host: str, stream: StreamId, head: Head, total: int) -> tuple[object, ...]:
    """A stream with its head, with the sum of the hashes of its rows, and with the proof of it."""
    topic, counting, mark, position, digest, expected = head
    row = (
        *(host, str(stream), topic, int(counting), mark.epoch, mark.sequence, position),
        digests.to_bytes(digest),
        None if expected is None else digests.to_bytes(expected),
        digests.to_bytes(total & digests.MASK),
    )
    return (*row, _proof(row))


@contextmanager
def _or_start_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StartError(
            f"{path} cannot be used to store what hosts hold: {error}; is another agent "
            "process using it? give another --state-dir"
        ) from None


def _is_of_the_file(error: Exception, path: Path) -> bool:
    """Does it tell of the file's content, not of who else has it or of the disk?"""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    # Also a file whose head is damaged may say that it must not be written.
    denied = code == sqlite3.SQLITE_READONLY and not os.access(path, os.W_OK)
    return not (isinstance(error, OSError) or code in _NOT_THE_FILE or denied)


def _connected(path: Path, meta: dict[str, str]) -> sqlite3.Connection:
    """Raises _Unusable, sqlite3.Error, and what else a damaged file leads to."""
    statements = [one.strip() for one in _SCHEMA.split(";") if one.strip()]
    # The calls come from one thread at a time, not always the same.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            (damage,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if damage != "ok":
                raise _Unusable(damage)
            tables = dict(
                connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            )
            if not tables:
                for statement in statements:
                    connection.execute(statement)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            elif "meta" not in tables:
                raise _Unusable("it is no state file of an agent")
            found = dict(connection.execute("SELECT name, value FROM meta"))
            for name, value in meta.items():
                if found.get(name) != value:
                    raise _Unusable(f"it is of another {name.removesuffix('s')}")
            if tables and sorted(tables.values()) != sorted(statements):
                raise _Unusable("its tables are others")
            # What no resource has any more; while the process runs, nobody looks.
            connection.execute(
                "DELETE FROM payloads WHERE hash NOT IN "
                "(SELECT hash FROM resources WHERE hash IS NOT NULL)"
            )
        # Not before it is known that the file is one of ours.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _anew(path: Path, meta: dict[str, str], reason: Exception) -> sqlite3.Connection:
    """Set a file aside, in the place of one that was before, and begin another.

    Raises OSError, sqlite3.Error.
    """
    log.warning("state file set aside", file=str(path), reason=str(reason))
    for ending in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ASIDE))
    return _connected(path, meta)
