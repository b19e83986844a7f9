"""The durable intent log: a topic that holds every accepted intent, in order.

Laws:

1.  A record is larger than a message may be when its intent is, so it is written in parts, which
    follow each other, since there is one writer. A record whose last part is missing was never
    acknowledged to anybody, and reading passes it over.
2.  A bus may write what was under way while a connection broke twice. So each message has a number
    within its writer's session, and reading passes over what it has had.
3.  A bus may fail to write one message and write a later one. Where the numbers of a session have a
    gap, `lost` says so: what that session wrote after it may build on what is not there.
4.  Reading on from the place of a record gives what reading from the beginning gives after it.
5.  A session begins with an Incarnation whose epoch is above all before, and there the one before
    ends. What else a writer that was thrown out, or that failed as it began, may still get into the
    log is passed over. That brokers refuse it as well is nothing that what is read depends on; what
    is acknowledged does, since an append that a broker takes counts as durable.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import NamedTuple

from google.protobuf.message import DecodeError

from goalstate.bus.base import EARLIEST, Bus, Message, Producer
from goalstate.bus.errors import BusClosed, ProducerFenced
from goalstate.dpm.errors import LogHeld, LogUnreadable
from goalstate.gs.pb.goalstate.log.v1 import log_pb2

#: Bytes of a record in one message.
PART_BYTES = 1024 * 1024


class LogPlace(NamedTuple):
    """The end of a record in the log, and what its reader knows there."""

    #: Of the record's last message.
    position: bytes
    #: The session that wrote it, and its number within that.
    session: str
    number: int
    #: Is a message of the session missing before it?
    lost: bool
    #: How many messages of the log there are up to it, and their payload in bytes.
    messages: int
    size: int
    #: Of the newest incarnation.
    epoch: int


BEGINNING = LogPlace(EARLIEST, "", 0, False, 0, 0, 0)


class IntentLog:
    """Reads the log, and appends to it as its only writer."""

    def __init__(self, bus: Bus, topic: str, *, part_bytes: int = PART_BYTES) -> None:
        self._bus = bus
        self._topic = topic
        self._part_bytes = part_bytes
        self._producer: Producer | None = None
        #: While `records` is read: where the last one ends.
        self.place = BEGINNING
        #: Bytes of payload in what was read of the log and appended to it, repetitions included.
        self.size = 0
        self._session = secrets.token_hex(8)
        self._number = 0

    async def open(self, writer: str, *, take_over: bool = False) -> None:
        """Become the log's writer; `take_over`: throw out who is. Raises LogHeld, BusError."""
        try:
            self._producer = await self._bus.open_producer(
                self._topic, exclusive=True, take_over=take_over, name=writer
            )
        except ProducerFenced as error:
            raise LogHeld(
                f"another publisher holds the intent log {self._topic}; stop it, "
                "or serve another region"
            ) from error

    @property
    def is_open(self) -> bool:
        """For writing, by us; whether the broker thinks so too shows at the next append."""
        return self._producer is not None

    @property
    def lost(self) -> bool:
        """While `records` is read: is a message of the session that wrote the last one missing?"""
        return self.place.lost

    async def records(self, start: LogPlace = BEGINNING) -> AsyncIterator[log_pb2.Record]:
        """Every whole record after `start` so far, oldest first.

        Raises LogUnreadable, and PositionGone when the log no longer reaches back to `start`.
        """
        parts: list[bytes] = []
        had = (start.session, start.number)
        lost = start.lost
        epoch = start.epoch
        position = start.messages
        self.place = start
        self.size = start.size
        async for message in self._bus.read_to_end(self._topic, start.position):
            position += 1
            self.size += len(message.payload)
            try:
                session, number = message.properties["session"], int(message.properties["number"])
                if session == had[0] and number <= had[1]:
                    continue
                begins = session != had[0]
                if begins and had[0] and not _is_above(epoch, message):
                    continue
                ahead = number != 1 and not had[0] if begins else number != had[1] + 1
                lost = ahead or (lost and not begins)
                if ahead:
                    parts = []  # their end is missing, and the beginning of what comes
                had = (session, number)
                part, _, parts_text = message.properties["part"].partition("/")
                if int(part) == 1:
                    parts = []
                elif int(part) != len(parts) + 1 and lost:
                    parts = []
                    continue
                elif int(part) != len(parts) + 1:
                    raise ValueError(f"part {part} follows part {len(parts)}")
                parts.append(message.payload)
                if len(parts) == int(parts_text):
                    record = log_pb2.Record.FromString(b"".join(parts))
                    parts = []
                    epoch = max(epoch, record.incarnation.epoch)
                    self.place = LogPlace(
                        message.position, session, number, lost, position, self.size, epoch
                    )
                    yield record
            except KeyError as error:
                raise LogUnreadable(
                    f"message {position} of the intent log {self._topic} has no property {error}"
                ) from error
            except (DecodeError, ValueError) as error:
                raise LogUnreadable(
                    f"message {position} of the intent log {self._topic}: {error}"
                ) from error

    def append(self, record: log_pb2.Record) -> asyncio.Future[bytes]:
        """Append a record; the future is done when it is durable. Appends keep their order.

        The future raises BusError; the record may then be in the log or not.
        """
        if self._producer is None:
            closed: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            closed.set_exception(BusClosed("the intent log is not open for writing"))
            return closed
        payload = record.SerializeToString()
        self.size += len(payload)
        size = self._part_bytes
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        sends = []
        for part, piece in enumerate(pieces, 1):
            self._number += 1
            properties = {
                "session": self._session,
                "number": str(self._number),
                "part": f"{part}/{len(pieces)}",
            }
            sends.append(self._producer.send(piece, properties=properties))
        return sends[0] if len(sends) == 1 else asyncio.ensure_future(_last(sends))

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.close()


def _is_above(epoch: int, message: Message) -> bool:
    """Is it an Incarnation of a later epoch? One is small, and so in one part."""
    if message.properties["part"] != "1/1":
        return False
    try:
        return log_pb2.Record.FromString(message.payload).incarnation.epoch > epoch
    except DecodeError:
        return False


async def _last(sends: list[asyncio.Future[bytes]]) -> bytes:
    return (await asyncio.gather(*sends))[-1]
