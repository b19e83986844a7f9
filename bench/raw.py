"""The yardstick: the plain Pulsar client, with nothing of ours, delivering to many readers.

A process of its own holds one non-durable reader for each receiver, all on one connection, as a
fleet of ours does, and a producer on another. It is told what to send; it answers with how long it
took from the call of `send` to each reader's callback.
"""

from __future__ import annotations

import threading
from functools import partial
from multiprocessing.connection import Connection
from time import time_ns
from typing import Any

import pulsar

from bench.alone import Answering
from goalstate.bus.pulsar_client import packed

#: Seconds for one message to reach all readers.
_DELIVERY_S = 30.0
#: Seconds for all readers to be opened.
_OPEN_S = 180.0


class Yardstick(Answering):
    """The process. To be used in a `with`."""

    def __init__(self, url: str, topic: str, readers: int) -> None:
        """Raises TimeoutError, and EOFError if the process failed."""
        super().__init__(
            partial(_serve, url, topic, readers),
            open_s=_OPEN_S,
            close_s=10,
            too_late="the plain Pulsar client did not deliver in time",
        )

    def send(self, payload: bytes, properties: dict[str, str]) -> list[int]:
        """Nanoseconds from the call of `send` to each reader's callback, ascending."""
        self.ask((payload, properties))
        latencies: list[int] = self.answer(_DELIVERY_S + 5)
        return latencies


def _serve(url: str, topic: str, readers: int, pipe: Connection) -> None:
    logger = pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null")
    reading = pulsar.Client(url, logger=logger)
    sending = pulsar.Client(url, logger=logger)
    arrived: list[int] = []
    complete = threading.Event()

    def listener(reader: Any, message: Any) -> None:
        arrived.append(time_ns())
        if len(arrived) == readers:
            complete.set()

    for _ in range(readers):
        reading.create_reader(
            topic, pulsar.MessageId.latest, reader_listener=listener, receiver_queue_size=200
        )
    producer = sending.create_producer(
        topic, batching_enabled=False, compression_type=pulsar.CompressionType.LZ4
    )
    pipe.send(readers)
    try:
        while True:
            payload, properties = pipe.recv()
            arrived.clear()
            complete.clear()
            sent = time_ns()
            producer.send(payload, properties=packed(properties))
            if not complete.wait(_DELIVERY_S):
                return
            pipe.send(sorted(when - sent for when in arrived))
    except EOFError:
        sending.close()
        reading.close()
