"""The file in which a process stores what its hosts hold: one SQLite database.

Laws:

1.  A batch is one transaction: after a crash, each stream is in the file as of one mark, and all
    streams of a host as of one moment.
2.  Nothing is lost that counts: the broker has it. So a batch need not be on the disk before the
    next (synchronous=NORMAL), and a file that cannot be used is set aside, not repaired.
3.  Equal payloads are stored once, and held once in memory, whichever hosts have them.
4.  One process has the file at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
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

FORMAT = "1"
#: Added to the name of a file that cannot be used.
ASIDE = ".set-aside"

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE streams (
    key INTEGER PRIMARY KEY, host TEXT NOT NULL, stream TEXT NOT NULL, topic TEXT NOT NULL,
    counting INTEGER NOT NULL, epoch INTEGER NOT NULL, sequence INTEGER NOT NULL,
    position BLOB NOT NULL, digest BLOB NOT NULL, expected BLOB, UNIQUE (host, stream)
);
CREATE TABLE payloads (hash BLOB PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE resources (
    stream INTEGER NOT NULL, kind INTEGER NOT NULL, id TEXT NOT NULL, revision INTEGER NOT NULL,
    hash BLOB, UNIQUE (stream, kind, id)
);
"""
_PUT_STREAM = """
INSERT INTO streams (host, stream, topic, counting, epoch, sequence, position, digest, expected)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (host, stream) DO UPDATE SET
    topic = excluded.topic, counting = excluded.counting, epoch = excluded.epoch,
    sequence = excluded.sequence, position = excluded.position, digest = excluded.digest,
    expected = excluded.expected
RETURNING key
"""


class _Unusable(Exception):
    """Why a file is set aside."""


class StateFile:
    """See the module's text. Its methods block; one thread calls them at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

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
        try:
            directory.mkdir(parents=True, exist_ok=True)
            try:
                return cls(path, _connected(path, meta))
            except (_Unusable, sqlite3.DatabaseError) as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log.warning("state file set aside", file=str(path), reason=str(error))
                _set_aside(path)
                return cls(path, _connected(path, meta))
        except (OSError, sqlite3.OperationalError) as error:
            raise StartError(
                f"{path} cannot be used to store what hosts hold: {error}; is another agent "
                "process using it? give another --state-dir"
            ) from None

    def load(self) -> dict[str, list[StoredStream]]:
        """What is stored, by host. Of a damaged file, nothing."""
        try:
            return self._load()
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            log.warning("stored state is not used", file=str(self.path), reason=str(error))
            return {}

    def _load(self) -> dict[str, list[StoredStream]]:
        run = self._connection.execute
        payloads: dict[bytes | None, bytes] = dict(run("SELECT hash, payload FROM payloads"))
        payloads[None] = b""
        kinds = {int(kind): kind for kind in Kind}
        resources: dict[int, list[Resource]] = {}
        for key, kind, id_, revision, hash_ in run(
            "SELECT stream, kind, id, revision, hash FROM resources ORDER BY rowid"
        ):
            if kind in kinds and hash_ in payloads:  # else the digest tells
                resources.setdefault(key, []).append(
                    Resource(kinds[kind], id_, revision, payloads[hash_])
                )
        hosts: dict[str, list[StoredStream]] = {}
        for key, host, stream, topic, counting, epoch, sequence, position, digest, expected in run(
            "SELECT key, host, stream, topic, counting, epoch, sequence, position, digest, "
            "expected FROM streams ORDER BY key"
        ):
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
        return hosts

    def write(self, updates: Iterable[Update]) -> None:
        """Store a batch, all of it or nothing. Raises sqlite3.Error."""
        run, many = self._connection.execute, self._connection.executemany
        with self._connection:
            run("BEGIN IMMEDIATE")
            for host, stream, head, whole, resources, gone in updates:
                if head is None or whole:
                    place = (host, str(stream))
                    where = "(SELECT key FROM streams WHERE host = ? AND stream = ?)"
                    run(f"DELETE FROM resources WHERE stream = {where}", place)
                if head is None:
                    run("DELETE FROM streams WHERE host = ? AND stream = ?", place)
                    continue
                (key,) = run(_PUT_STREAM, _row(host, stream, head)).fetchone()
                hashes = [
                    xxhash.xxh3_128_digest(one.payload) if one.payload else None
                    for one in resources
                ]
                many(
                    "INSERT OR IGNORE INTO payloads VALUES (?, ?)",
                    [
                        (hash_, one.payload)
                        for hash_, one in zip(hashes, resources, strict=True)
                        if hash_
                    ],
                )
                many(
                    "INSERT OR REPLACE INTO resources VALUES (?, ?, ?, ?, ?)",
                    [
                        (key, int(one.kind), one.id, one.revision, hash_)
                        for hash_, one in zip(hashes, resources, strict=True)
                    ],
                )
                many(
                    "DELETE FROM resources WHERE stream = ? AND kind = ? AND id = ?",
                    [(key, int(kind), id_) for kind, id_ in gone],
                )

    def close(self) -> None:
        """Nothing can be stored or loaded any more."""
        self._connection.close()


def _row(host: str, stream: StreamId, head: Head) -> tuple[object, ...]:
    topic, counting, mark, position, digest, expected = head
    return (
        *(host, str(stream), topic, counting, mark.epoch, mark.sequence, position),
        digests.to_bytes(digest),
        None if expected is None else digests.to_bytes(expected),
    )


def _connected(path: Path, meta: dict[str, str]) -> sqlite3.Connection:
    """Raises _Unusable, sqlite3.Error."""
    # The calls come from one thread at a time, not always the same.
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        with connection:
            connection.execute("BEGIN EXCLUSIVE")
            (damage,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if damage != "ok":
                raise _Unusable(damage)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if not tables:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    connection.execute(statement)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
            elif "meta" not in tables:
                raise _Unusable("it is no state file of an agent")
            found = dict(connection.execute("SELECT name, value FROM meta"))
            for name, value in meta.items():
                if found.get(name) != value:
                    raise _Unusable(f"it is of another {name.removesuffix('s')}")
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


def _set_aside(path: Path) -> None:
    """Rename a file, in the place of one that was set aside before."""
    for ending in ("-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)
    path.replace(path.with_name(path.name + ASIDE))
