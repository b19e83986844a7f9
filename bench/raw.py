"""The yardstick: the plain Pulsar client, with nothing of ours, delivering to many readers.

A process of its own holds one non-durable reader for each receiver, all on one connection, as a
fleet of ours does, and a producer on another. It is told what to send; it answers with how long it
took from the call of `send` to each reader's callback.
"""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.connection import Connection
from time import time_ns
from types import TracebackType
from typing import Any, Self

import pulsar

#: Seconds for one message to reach all readers.
_DELIVERY_S = 30.0
#: Seconds for all readers to be opened.
_OPEN_S = 180.0


class Yardstick:
    """The process. To be used in a `with`."""

    def __init__(self, url: str, topic: str, readers: int) -> None:
        """Raises TimeoutError, and EOFError if the process failed."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other, url, topic, readers), daemon=True)
        self._process.start()
        other.close()
        try:
            self._answer(_OPEN_S)
        except BaseException:
            self.stop()
            raise

    def send(self, payload: bytes, properties: dict[str, str]) -> list[int]:
        """Nanoseconds from the call of `send` to each reader's callback, ascending."""
        self._pipe.send((payload, properties))
        latencies: list[int] = self._answer(_DELIVERY_S + 5)
        return latencies

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _answer(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError("the plain Pulsar client did not deliver in time")
        return self._pipe.recv()


def _serve(pipe: Connection, url: str, topic: str, readers: int) -> None:
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
    producer = sending.create_producer(topic, batching_enabled=False)
    pipe.send(readers)
    try:
        while True:
            payload, properties = pipe.recv()
            arrived.clear()
            complete.clear()
            sent = time_ns()
            producer.send(payload, properties=properties)
            if not complete.wait(_DELIVERY_S):
                return
            pipe.send(sorted(when - sent for when in arrived))
    except EOFError:
        sending.close()
        reading.close()
