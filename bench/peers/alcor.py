"""Alcor's pattern on Pulsar: each host has a topic, and gets a full copy by a producer of its own.

The producer is made for the message and closed after it, and sends synchronously.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.peers.base import Hosts, Place, Source, Work
from bench.peers.pulsar_client import Readers, quiet_client, version


@dataclass(frozen=True)
class Alcor:
    url: str
    topics: str
    version: str
    servers: tuple[int, ...]
    name: str = "Alcor's pattern"
    how: str = (
        "the whole state as one message for each host, on a topic of its own; a new producer for "
        "each message, synchronous, no compression; who joins is sent a copy"
    )
    no_late: str | None = None
    publishers: tuple[int, ...] = ()

    def units(self, work: Work) -> int:
        return 1

    def source(self, work: Work, hosts: int) -> Source:
        return _Pusher(self, work, hosts)

    def hosts(self, vpc: str, first: int, number: int, *, late: bool) -> Hosts:
        topics = [self.topic(vpc, host) for host in range(first, first + number)]
        return Readers(self.url, topics, first, late=late)

    def topic(self, vpc: str, host: int) -> str:
        return f"{self.topics}-{vpc}-{host}"


def start(place: Place) -> Alcor:
    broker = place.broker()
    topics = f"persistent://public/default/{place.scratch.name}-alcor"
    return Alcor(broker.url, topics, version(broker.describe()), broker.pids)


class _Pusher:
    def __init__(self, peer: Alcor, work: Work, hosts: int) -> None:
        self._peer = peer
        self._hosts = hosts
        self._changes = work.changes
        # Serialized messages one after the other are one message with the fields of all.
        self._state = b"".join(sent.payload for sent in work.state)

    async def open(self) -> None:
        self._client = quiet_client(self._peer.url)

    async def begin(self, vpc: str) -> None: ...

    async def state(self, vpc: str) -> None:
        self._push(vpc, range(self._hosts), self._state)

    async def change(self, vpc: str, number: int) -> None:
        self._push(vpc, range(self._hosts), self._changes[number].payload)

    async def admit(self, vpc: str, first: int, hosts: int) -> None:
        self._push(vpc, range(first, first + hosts), self._state)

    def _push(self, vpc: str, hosts: range, payload: bytes) -> None:
        for host in hosts:
            producer = self._client.create_producer(
                self._peer.topic(vpc, host), batching_enabled=False
            )
            producer.send(payload)
            producer.close()

    async def close(self) -> None:
        self._client.close()
