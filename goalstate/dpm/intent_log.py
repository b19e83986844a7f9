"""The durable intent log: a topic that holds every accepted intent, in order.

Laws:

1.  A record is larger than a message may be when its intent is, so it is written in parts, which
    follow each other, since there is one writer. A record whose last part is missing was never
    acknowledged to anybody, and reading passes it over.
2.  A bus may write what was under way while a connection broke twice. So each message has a number
    within its writer's session, and reading passes over what it has had.
3.  A bus may fail to write one message and write a later one. Where the numbers of a session have a
    gap, `lost` says so: what that session wrote after it may build on what is not there.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from goalstate.bus.base import EARLIEST, Bus, Producer
from goalstate.bus.errors import BusClosed, ProducerFenced
from goalstate.dpm.errors import LogHeld, LogUnreadable
from goalstate.gs.pb.goalstate.log.v1 import log_pb2

#: Bytes of a record in one message.
PART_BYTES = 1024 * 1024


class IntentLog:
    """Reads the log, and appends to it as its only writer."""

    def __init__(self, bus: Bus, topic: str, *, part_bytes: int = PART_BYTES) -> None:
        self._bus = bus
        self._topic = topic
        self._part_bytes = part_bytes
        self._producer: Producer | None = None
        #: While `records` is read: is a message of the session that wrote the last one missing?
        self.lost = False
        self._session = secrets.token_hex(8)
        self._number = 0

    async def open(self, writer: str) -> None:
        """Become the log's writer. Raises LogHeld, BrokerUnreachable."""
        try:
            self._producer = await self._bus.open_producer(self._topic, exclusive=True, name=writer)
        except ProducerFenced as error:
            raise LogHeld(
                f"another publisher holds the intent log {self._topic}; stop it, "
                "or serve another region"
            ) from error

    async def records(self) -> AsyncIterator[log_pb2.Record]:
        """Every whole record so far, oldest first. Raises LogUnreadable."""
        parts: list[bytes] = []
        had = ("", 0)
        position = 0
        async for message in self._bus.read_to_end(self._topic, EARLIEST):
            position += 1
            try:
                session, number = message.properties["session"], int(message.properties["number"])
                if session == had[0] and number <= had[1]:
                    continue
                expected = had[1] + 1 if session == had[0] else 1
                self.lost = number != expected or (self.lost and session == had[0])
                had = (session, number)
                part, _, parts_text = message.properties["part"].partition("/")
                if int(part) == 1:
                    parts = []
                elif int(part) != len(parts) + 1 and self.lost:
                    parts = []
                    continue
                elif int(part) != len(parts) + 1:
                    raise ValueError(f"part {part} follows part {len(parts)}")
                parts.append(message.payload)
                if len(parts) == int(parts_text):
                    yield log_pb2.Record.FromString(b"".join(parts))
                    parts = []
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


async def _last(sends: list[asyncio.Future[bytes]]) -> bytes:
    return (await asyncio.gather(*sends))[-1]
