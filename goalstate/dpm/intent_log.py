"""The durable intent log: a topic that holds every accepted intent, in order.

A record is larger than a message may be when its intent is, so it is written in parts. The parts
of a record follow each other, since there is one writer; a record whose last part is missing was
never acknowledged to anybody, and reading passes it over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from goalstate.bus.base import EARLIEST, Bus, Producer
from goalstate.bus.errors import ProducerFenced
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
        position = 0
        async for message in self._bus.read_to_end(self._topic, EARLIEST):
            position += 1
            try:
                part, _, of = message.properties.get("part", "1/1").partition("/")
                number, count = int(part), int(of)
                if number == 1:
                    parts = []
                elif number != len(parts) + 1:
                    raise ValueError(f"part {number} follows part {len(parts)}")
                parts.append(message.payload)
                if number == count:
                    yield log_pb2.Record.FromString(b"".join(parts))
                    parts = []
            except (DecodeError, ValueError) as error:
                raise LogUnreadable(
                    f"message {position} of the intent log {self._topic}: {error}"
                ) from error

    def append(self, record: log_pb2.Record) -> asyncio.Future[bytes]:
        """Append a record; the future is done when it is durable. Appends keep their order.

        The future raises BusError; the record may then be in the log or not.
        """
        if self._producer is None:
            raise LogHeld("the intent log is not open for writing")
        payload = record.SerializeToString()
        size = self._part_bytes
        if len(payload) <= size:
            return self._producer.send(payload)
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        sends = [
            self._producer.send(piece, properties={"part": f"{i}/{len(pieces)}"})
            for i, piece in enumerate(pieces, 1)
        ]
        return asyncio.ensure_future(_last(sends))

    async def close(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            await producer.close()


async def _last(sends: list[asyncio.Future[bytes]]) -> bytes:
    return (await asyncio.gather(*sends))[-1]
