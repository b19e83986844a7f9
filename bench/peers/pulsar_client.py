"""Apache Pulsar by its plain client: a topic for the VPC, a non-durable reader for each host.

And goalstate's own messages, published by its own bus, to the same plain readers.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pulsar

from bench.hold import Sent
from bench.peers.base import Arrived, Hosts, Place, Source, Work
from goalstate.bus.base import Bus, Producer
from goalstate.bus.connect import connect
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2

_COMPRESSIONS = {
    "none": pulsar.CompressionType.NONE,
    "LZ4": pulsar.CompressionType.LZ4,
    "ZSTD": pulsar.CompressionType.ZSTD,
}
#: Messages that the client keeps ready for a reader.
_QUEUE = 200
#: Readers that are opened at once.
_OPENING = 20


def quiet_client(url: str) -> Any:
    return pulsar.Client(url, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, "/dev/null"))


@dataclass(frozen=True)
class Pulsar:
    """The client's way, with one producer."""

    url: str
    topics: str
    version: str
    servers: tuple[int, ...]
    compression: str
    #: Each host parses each message, and throws it away.
    parse: bool = False
    #: The source is goalstate's bus, and messages have goalstate's envelopes.
    ours: bool = False
    no_late: str | None = None
    publishers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.ours:
            return "goalstate's messages"
        return f"Pulsar client, {self.compression}" + (", parsed" if self.parse else "")

    @property
    def how(self) -> str:
        sender = "goalstate's bus (LZ4, its envelopes)" if self.ours else "a producer"
        return f"{sender}; a non-durable reader for each host, all on one connection"

    def units(self, work: Work) -> int:
        return len(work.state)

    def source(self, work: Work, hosts: int) -> Source:
        return _OurBus(self, work) if self.ours else _Producer(self, work)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        topics = [self.topic(vpc)] * number
        return Readers(self.url, topics, first, late=late, parse=self.parse)

    def topic(self, vpc: str) -> str:
        return f"{self.topics}-{vpc}"


def start(place: Place, compression: str, *, parse: bool = False, ours: bool = False) -> Pulsar:
    broker = place.broker()
    name = f"{'ours' if ours else 'plain'}-{compression}{'-parsed' if parse else ''}"
    return Pulsar(
        broker.url,
        f"persistent://public/default/{place.scratch.name}-{name}",
        version(broker.describe()),
        broker.pids,
        compression,
        parse,
        ours,
    )


def version(description: str) -> str:
    return f"{description.rpartition(' at ')[0] or description}, pulsar-client {pulsar.__version__}"


class _Producer:
    def __init__(self, peer: Pulsar, work: Work) -> None:
        self._peer = peer
        self._work = work
        self._producers: dict[str, Any] = {}

    async def open(self) -> None:
        self._client = quiet_client(self._peer.url)

    async def begin(self, vpc: str) -> None:
        self._producers[vpc] = self._client.create_producer(
            self._peer.topic(vpc),
            batching_enabled=False,
            compression_type=_COMPRESSIONS[self._peer.compression],
        )

    async def state(self, vpc: str) -> None:
        for sent in self._work.state:
            self._producers[vpc].send_async(sent.payload, lambda result, position: None)
        self._producers[vpc].flush()

    async def change(self, vpc: str, number: int) -> None:
        self._producers[vpc].send(self._work.changes[number].payload)

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        self._client.close()


class _OurBus:
    def __init__(self, peer: Pulsar, work: Work) -> None:
        self._peer = peer
        self._work = work
        self._producers: dict[str, Producer] = {}

    async def open(self) -> None:
        self._bus: Bus = await connect(self._peer.url)

    async def begin(self, vpc: str) -> None:
        self._producers[vpc] = await self._bus.open_producer(self._peer.topic(vpc))

    async def state(self, vpc: str) -> None:
        await asyncio.gather(*(self._send(vpc, sent) for sent in self._work.state))

    async def change(self, vpc: str, number: int) -> None:
        await self._send(vpc, self._work.changes[number])

    async def _send(self, vpc: str, sent: Sent) -> None:
        await self._producers[vpc].send(sent.payload, key=vpc, properties=sent.properties)

    async def admit(self, vpc: str, first: int, hosts: int) -> None: ...

    async def close(self) -> None:
        await self._bus.close()


class Readers:
    """A plain reader for each host, on the topic given for it."""

    def __init__(
        self, url: str, topics: list[str], first: int, *, late: bool, parse: bool = False
    ) -> None:
        self._url = url
        self._topics = topics
        self._first = first
        self._start = pulsar.MessageId.earliest if late else pulsar.MessageId.latest
        self._parse = parse

    async def connect(self) -> None:
        self._client = quiet_client(self._url)
        # A topic is looked up, and its connection made, by asking for one.
        self._client.get_topic_partitions(self._topics[0])

    async def follow(self, arrived: Arrived) -> None:
        def follow(host: int, topic: str) -> None:
            self._client.create_reader(
                topic,
                self._start,
                reader_listener=partial(self._take, arrived, host),
                receiver_queue_size=_QUEUE,
            )

        # Opening one waits for the broker's answer.
        with ThreadPoolExecutor(_OPENING) as pool:
            list(pool.map(follow, count(self._first), self._topics))

    def _take(self, arrived: Arrived, host: int, reader: Any, message: Any) -> None:
        if self._parse:
            GoalStateV2.FromString(message.data())
        arrived(host, 1)

    async def close(self) -> None:
        self._client.close()
