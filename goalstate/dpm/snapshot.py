"""Snapshots of the intent log: the publisher's state as of a place in the log, on a topic.

They make the start of a publisher as fast as its state is large, however long its log is, and let
the log be trimmed: what comes before the place of the oldest snapshot that is to be of use is not
read any more. (The message at that place has to stay: it is how a broker knows the place.)

Laws:

1.  A snapshot is a function of the log. It is made from the one before and the records after that,
    by whoever has time for it, and the publisher that serves is not held up.
2.  It is taken at a place where everything in it is on its topics, as the log says further on: so
    nothing that was to be sent is in it.
3.  Restoring it, and redoing what comes after, gives what redoing the whole log gives (see
    `snapshot_codec`, also for the one exception).
4.  It counts once its last message is written. One that is torn, corrupt or of another format is
    passed over, for the one before it, or for the log if that reaches back to its beginning.

On the topic: the sections, each after its length (4 bytes, big endian), joined and cut into
messages of about a megabyte; then the SnapshotEnd. Each has the properties `snapshot` (which one it
is of), `begin` (position after which that begins, in hexadecimal), `part` (its number from 1, or
`end`), and `previous`, the snapshot that it was made from, as `snapshot,begin`.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import NamedTuple

import structlog
import xxhash
from google.protobuf.message import DecodeError

from goalstate.bus.base import EARLIEST, Bus, Message
from goalstate.bus.errors import PositionGone
from goalstate.dpm import snapshot_codec
from goalstate.dpm.errors import LogUnreadable, SnapshotUnreadable
from goalstate.dpm.intent_log import BEGINNING, IntentLog, LogPlace
from goalstate.dpm.recovery import Replay, changes_of, named
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.topics import Topics

log = structlog.get_logger()

#: What this version writes, and all that it reads.
FORMAT = 1
#: Bytes in one message, about.
PART_BYTES = 1024 * 1024
#: A larger record (bytes) is redone in a thread, so that the loop stays responsive.
THREAD_ABOVE_BYTES = 100_000

_END = "end"
_LENGTH = struct.Struct(">I")


class SnapshotPolicy(NamedTuple):
    """When one is due: once the log after the last one has more bytes than both of these."""

    #: Bytes.
    at_least: int = 4 * 1024 * 1024
    #: Times the bytes of the last one. Redoing a byte of the log takes about six times as long as
    #: restoring a byte of a snapshot.
    times: float = 0.25

    def is_due(self, log_bytes: int, newest: log_pb2.SnapshotEnd | None) -> bool:
        """`log_bytes`: of the log after `newest`, the last one (None: there is none yet)."""
        return log_bytes > max(self.at_least, self.times * newest.bytes if newest else 0)


class Recovered(NamedTuple):
    replay: Replay
    #: The end of the snapshot that it began from; None: it is all from the log.
    snapshot: log_pb2.SnapshotEnd | None


async def recover(
    bus: Bus, topics: Topics, intent_log: IntentLog, *, security_groups_own_stream: bool
) -> Recovered:
    """What the newest snapshot that can be read, and the log after it, say.

    Raises LogUnreadable, BusError.
    """
    base = await _newest(bus, topics, security_groups_own_stream)
    async for record in _records_after(intent_log, topics, base):
        base.replay.redo(record, lost=intent_log.lost)
    return Recovered(base.replay, base.end)


async def newest_end(bus: Bus, topics: Topics) -> log_pb2.SnapshotEnd | None:
    """The end of the snapshot that was written last, if it is complete. Raises BusError."""
    last = await bus.last(topics.intent_snapshots)
    try:
        return _end(last) if last is not None else None
    except SnapshotUnreadable:
        return None


async def write_snapshot(
    bus: Bus,
    topics: Topics,
    *,
    writer: str,
    security_groups_own_stream: bool,
    part_bytes: int = PART_BYTES,
) -> log_pb2.SnapshotEnd | None:
    """Write a snapshot as of the newest place that can have one; None if there is no newer place.

    Needs nothing but the bus, so it may run in a process of its own. Where it does not, it lets
    others have their turn every 0.01 s or so, and redoes large intents in a thread. It holds a
    whole core of its own meanwhile. Raises LogUnreadable, BusError (ProducerFenced if another one
    is being written).
    """
    topic = topics.intent_snapshots
    producer = await bus.open_producer(topic, exclusive=True, name=writer)
    try:
        base = await _newest(bus, topics, security_groups_own_stream)
        before = base.replay.core.change
        place = await _advance(base, IntentLog(bus, topics.intent_log), topics)
        if base.replay.core.change == before:
            return None
        last = await bus.last(topic)
        own = _Name(secrets.token_hex(8), last.position if last is not None else EARLIEST)
        properties = {"snapshot": own.token, "begin": own.begin.hex()}
        if base.name is not None:
            properties["previous"] = str(base.name)
        parts = _Parts(part_bytes)
        for section in snapshot_codec.sections(base.replay):
            for part in parts.add(section):
                await producer.send(part, properties={**properties, "part": str(parts.count)})
            await asyncio.sleep(0)
        for part in parts.rest():
            await producer.send(part, properties={**properties, "part": str(parts.count)})
        core = base.replay.core
        end = log_pb2.SnapshotEnd(
            format=FORMAT,
            security_groups_own_stream=security_groups_own_stream,
            shards=topics.shards if topics.shards > 1 else 0,
            log=log_pb2.LogPlace(
                position=place.position,
                session=place.session,
                number=place.number,
                lost=place.lost,
                messages=place.messages,
                bytes=place.size,
            ),
            records=base.replay.records,
            epoch=core.epoch,
            change=core.change,
            parts=parts.count,
            bytes=parts.size,
            checksum=parts.checksum,
            session_ports=core.policy.ports,
            session_members=core.policy.members,
        )
        await producer.send(end.SerializeToString(), properties={**properties, "part": _END})
        return end
    finally:
        await producer.close()


class _Parts:
    """Sections joined, and cut into parts. `count`, `size` and `checksum` are of those given."""

    def __init__(self, part_bytes: int) -> None:
        self.count = 0
        self.size = 0
        self._part_bytes = part_bytes
        self._held = bytearray()
        self._hash = xxhash.xxh3_128()

    @property
    def checksum(self) -> bytes:
        return self._hash.digest()

    def add(self, section: bytes) -> Iterator[bytes]:
        self._held += _LENGTH.pack(len(section))
        self._held += section
        while len(self._held) >= self._part_bytes:
            yield self._cut()

    def rest(self) -> Iterator[bytes]:
        if self._held:
            yield self._cut()

    def _cut(self) -> bytes:
        part = bytes(self._held[: self._part_bytes])
        del self._held[: self._part_bytes]
        self.count += 1
        self.size += len(part)
        self._hash.update(part)
        return part


# --- from the log ---


class _Base(NamedTuple):
    """What reading the log begins with."""

    replay: Replay
    place: LogPlace
    #: None: there is no snapshot.
    name: _Name | None
    end: log_pb2.SnapshotEnd | None


async def _records_after(
    intent_log: IntentLog, topics: Topics, base: _Base
) -> AsyncIterator[log_pb2.Record]:
    is_first = base.end is None
    try:
        async for record in intent_log.records(base.place):
            if is_first:
                _check_first(record, topics)
                is_first = False
            yield record
    except PositionGone as error:
        raise LogUnreadable(
            f"the intent log {topics.intent_log} no longer reaches back to change "
            f"{base.replay.core.change}, as of which {topics.intent_snapshots} has its newest "
            "snapshot that can be read: what came after it is not known. Bring the log back from a "
            "backup, or serve another region and apply the intent there"
        ) from error


def _check_first(record: log_pb2.Record, topics: Topics) -> None:
    """Of the whole log: one whose beginning is gone may look whole. Raises LogUnreadable."""
    if record.WhichOneof("body") != "incarnation" or record.incarnation.epoch != 1:
        raise LogUnreadable(
            f"record 1 ({named(record)}) of {topics.intent_log}: it is not the first that a "
            f"publisher writes, so the log's beginning is gone, and {topics.intent_snapshots} has "
            "no snapshot that can be read. Bring one of the two topics back from a backup, or "
            "serve another region and apply the intent there"
        )


async def _advance(base: _Base, intent_log: IntentLog, topics: Topics) -> LogPlace:
    """Bring the base to the newest place up to which everything is published, as the log says."""
    replay, place = base.replay, base.place
    waiting: deque[tuple[log_pb2.Record, LogPlace]] = deque()
    read = 0
    async for record in _records_after(intent_log, topics, base):
        waiting.append((record, intent_log.place))
        if record.WhichOneof("body") == "published":
            while waiting and not _is_beyond(waiting[0][0], record.published.change):
                redone, place = waiting.popleft()
                if redone.ByteSize() > THREAD_ABOVE_BYTES:
                    await asyncio.to_thread(replay.redo, redone, lost=place.lost)
                else:
                    replay.redo(redone, lost=place.lost)
                    await asyncio.sleep(0)
            replay.settle()
        read += 1
        if read % 100 == 0:
            await asyncio.sleep(0)
    return place


def _is_beyond(record: log_pb2.Record, published: int) -> bool:
    return any(change.change > published for change in changes_of(record))


# --- from the topic of snapshots ---


class _Name(NamedTuple):
    """A snapshot on the topic. Of one that was given up half-way there is no end."""

    token: str
    #: Position after which it begins.
    begin: bytes

    def __str__(self) -> str:
        return f"{self.token},{self.begin.hex()}"

    @classmethod
    def parse(cls, text: str) -> _Name:
        """Raises ValueError."""
        token, _, begin = text.partition(",")
        return cls(token, bytes.fromhex(begin))


async def _newest(bus: Bus, topics: Topics, own_stream: bool) -> _Base:
    """The newest snapshot that can be read; else the beginning of the log.

    Raises LogUnreadable when it was written for the other placement of security groups, or another
    division of the region.
    """
    topic = topics.intent_snapshots
    name = await _newest_name(bus, topic)
    while name is not None:
        found = _Found(name)
        try:
            await found.read(bus, topic)
            replay = Replay(topics, security_groups_own_stream=own_stream)
            try:
                replay.check_placement(found.end.security_groups_own_stream)
                replay.check_division(found.end.shards)
            except ValueError as error:
                raise LogUnreadable(f"the snapshot on {topic}: {error}") from error
            restoring = snapshot_codec.Restoring(replay)
            for section in found.sections():
                restoring.take(section)
                await asyncio.sleep(0)
            restoring.finish(found.end)
            at = found.end.log
            place = LogPlace(
                at.position, at.session, at.number, at.lost, at.messages, at.bytes, found.end.epoch
            )
            return _Base(replay, place, name, found.end)
        except SnapshotUnreadable as error:
            log.warning(
                "a snapshot is passed over", topic=topic, snapshot=str(name), why=str(error)
            )
            name = found.previous
    return _Base(Replay(topics, security_groups_own_stream=own_stream), BEGINNING, None, None)


async def _newest_name(bus: Bus, topic: str) -> _Name | None:
    last = await bus.last(topic)
    if last is None:
        return None
    name = _name(last.properties)
    if name is None:
        # Somebody else wrote to the topic while nobody held it: look behind what is not ours.
        async for message in bus.read_to_end(topic, EARLIEST):
            name = _name(message.properties) or name
    return name


def _name(properties: Mapping[str, str]) -> _Name | None:
    try:
        return _Name(properties["snapshot"], bytes.fromhex(properties["begin"]))
    except (KeyError, ValueError):
        return None


def _end(message: Message) -> log_pb2.SnapshotEnd | None:
    """What a message says that is the end of a snapshot. Raises SnapshotUnreadable."""
    if message.properties.get("part") != _END:
        return None
    try:
        end = log_pb2.SnapshotEnd.FromString(message.payload)
    except DecodeError as error:
        raise SnapshotUnreadable(f"its end is no SnapshotEnd: {error}") from error
    if end.format != FORMAT:
        raise SnapshotUnreadable(f"it has format {end.format}, and this version reads {FORMAT}")
    return end


class _Found:
    """A snapshot, being read."""

    def __init__(self, name: _Name) -> None:
        self.end = log_pb2.SnapshotEnd()
        #: Known as soon as one message of it was seen.
        self.previous: _Name | None = None
        self._name = name
        self._parts: list[bytes] = []

    async def read(self, bus: Bus, topic: str) -> None:
        """Raises SnapshotUnreadable."""
        end: log_pb2.SnapshotEnd | None = None
        async for message in _read_after(bus, topic, self._name.begin):
            if message.properties.get("snapshot") != self._name.token or end is not None:
                continue
            try:
                if "previous" in message.properties:
                    self.previous = _Name.parse(message.properties["previous"])
                end = _end(message)
                if end is None and int(message.properties["part"]) == len(self._parts) + 1:
                    self._parts.append(message.payload)
                # Any other part is one that the broker wrote twice, or follows one that is missing.
            except (KeyError, ValueError) as error:
                raise SnapshotUnreadable(f"a message of it makes no sense: {error!r}") from error
        if end is None:
            raise SnapshotUnreadable("its end is missing")
        if len(self._parts) != end.parts:
            raise SnapshotUnreadable(
                f"of {end.parts} parts, the first {len(self._parts)} are there"
            )
        whole = xxhash.xxh3_128()
        for part in self._parts:
            whole.update(part)
        if whole.digest() != end.checksum:
            raise SnapshotUnreadable("its checksum is another one")
        self.end = end

    def sections(self) -> Iterator[bytes]:
        """Raises SnapshotUnreadable."""
        whole = memoryview(b"".join(self._parts))
        self._parts = []
        at = 0
        while at < len(whole):
            if at + _LENGTH.size > len(whole):
                raise SnapshotUnreadable("its last section is cut off")
            (length,) = _LENGTH.unpack_from(whole, at)
            at += _LENGTH.size
            if at + length > len(whole):
                raise SnapshotUnreadable("its last section is cut off")
            yield bytes(whole[at : at + length])
            at += length


async def _read_after(bus: Bus, topic: str, begin: bytes) -> AsyncIterator[Message]:
    try:
        async for message in bus.read_to_end(topic, begin):
            yield message
    except PositionGone:
        # Snapshots before this one were trimmed away; it may be there itself.
        async for message in bus.read_to_end(topic, EARLIEST):
            yield message
