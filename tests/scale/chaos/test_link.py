"""What a link lets through, and what it holds."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from goalstate.bus.base import EARLIEST, Message
from goalstate.bus.brokers import Broker
from goalstate.bus.connect import connect
from goalstate.scale.chaos.link import Link, _Frames

#: Seconds within which what must come comes.
BOUND = 20.0


class Server:
    """Answers with what it is told, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""

    def protocol(self) -> asyncio.Protocol:
        server = self

        class Echo(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                server.heard += data
                self.transport.write(data)

        return Echo()


class Client(asyncio.Protocol):
    """One connection through a link."""

    def __init__(self) -> None:
        self.heard = b""
        self.closed = False

    @classmethod
    async def connect(cls, link: Link) -> Client:
        host, _, port = link.address.rpartition(":")
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, host, int(port))
        return client

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True

    def say(self, text: bytes) -> None:
        self.transport.write(text)

    async def hear(self, text: bytes) -> None:
        """Wait until this was heard, from the beginning, and nothing else."""
        await until(lambda: len(self.heard) >= len(text))
        assert self.heard == text


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Server, Link]]:
    server = Server()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server.protocol, "127.0.0.1", 0)
    link = Link(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
    await link.start()
    try:
        yield server, link
    finally:
        await link.close()
        listening.close()
        await listening.wait_closed()


def played(scenario: Callable[[Server, Link], Coroutine[Any, Any, None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(BOUND), linked() as (server, link):
            await scenario(server, link)

    asyncio.run(play())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_what_is_said_passes_in_both_directions() -> None:
    async def scenario(server: Server, link: Link) -> None:
        client = await Client.connect(link)
        client.say(b"one")
        await client.hear(b"one")

    played(scenario)


def test_while_it_is_cut_nothing_passes_and_after_that_all_does_in_order() -> None:
    async def scenario(server: Server, link: Link) -> None:
        client = await Client.connect(link)
        client.say(b"before ")
        await client.hear(b"before ")
        link.cut()
        said = [b"%d " % number for number in range(100)]
        for text in said:
            client.say(text)
        late = await Client.connect(link)  # a new one is taken, and told nothing
        late.say(b"late ")
        # Another link to the same place shows that time went by and nothing came.
        other = Link(link.target)
        await other.start()
        beside = await Client.connect(other)
        beside.say(b"beside ")
        await beside.hear(b"beside ")
        assert server.heard == b"before beside "
        assert not client.closed
        link.mend()
        await client.hear(b"before " + b"".join(said))
        await late.hear(b"late ")
        await other.close()

    played(scenario)


def test_what_was_held_for_a_connection_that_is_gone_is_lost_with_it() -> None:
    async def scenario(server: Server, link: Link) -> None:
        client = await Client.connect(link)
        client.say(b"before ")
        await client.hear(b"before ")
        link.cut()
        client.say(b"too late ")
        await until(lambda: any(pair.near._held for pair in link._pairs))
        client.transport.abort()
        await until(lambda: all(pair.near.gone for pair in link._pairs))
        link.mend()
        after = await Client.connect(link)
        after.say(b"after ")
        await after.hear(b"after ")
        assert server.heard == b"before after "

    played(scenario)


def test_a_reset_closes_all_connections_and_new_ones_can_be_made() -> None:
    async def scenario(server: Server, link: Link) -> None:
        clients = [await Client.connect(link) for _ in range(3)]
        for client in clients:
            client.say(b"one")
            await client.hear(b"one")
        link.reset()
        await until(lambda: all(client.closed for client in clients))
        again = await Client.connect(link)
        again.say(b"again")
        await again.hear(b"again")

    played(scenario)


def test_a_delay_delays_and_changes_no_order_also_where_it_ends() -> None:
    async def scenario(server: Server, link: Link) -> None:
        client = await Client.connect(link)
        link.delay_s = 0.05
        begun = asyncio.get_running_loop().time()
        client.say(b"one ")
        await client.hear(b"one ")
        assert asyncio.get_running_loop().time() - begun >= 0.1
        link.delay_s = BOUND * 2
        client.say(b"two ")
        await until(lambda: any(pair.near._held for pair in link._pairs))
        client.say(b"three ")
        link.mend()
        client.say(b"four ")
        await client.hear(b"one two three four ")

    played(scenario)


def test_where_nobody_listens_a_connection_is_closed() -> None:
    async def scenario(server: Server, link: Link) -> None:
        link.target = "127.0.0.1:1"
        client = await Client.connect(link)
        await until(lambda: client.closed)

    played(scenario)


def test_an_end_that_leaves_is_heard_of_after_its_last_words() -> None:
    async def scenario(server: Server, link: Link) -> None:
        client = await Client.connect(link)
        client.say(b"last")
        client.transport.close()
        await until(lambda: server.heard == b"last")
        await until(lambda: not link._pairs)

    played(scenario)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_address_is_exchanged_also_where_it_comes_in_pieces(size: int) -> None:
    def frame(body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + body

    old, new = b"127.0.0.1:40000", b"127.0.0.1:50000"
    bodies = [b"ping", b"at pulsar://" + old + b" it is, " + old, b"", b"127.0.0.1:4", old[:9]]
    sent = b"".join(map(frame, bodies))
    frames = _Frames(old, new)
    passed = b"".join(frames.whole(sent[at : at + size]) for at in range(0, len(sent), size))
    assert passed == b"".join(frame(body.replace(old, new)) for body in bodies)


def test_a_client_of_apache_pulsar_stays_on_its_link(apache_broker: Broker) -> None:
    """Its lookups answer with the broker's own address: a client that went there would not be cut
    off."""
    _, _, target = apache_broker.url.partition("://")

    async def play() -> None:
        link = Link(target, rewrite=True)
        await link.start()
        topic = "persistent://public/default/chaos-link"
        heard: list[bytes] = []
        came = asyncio.Event()

        def receive(message: Message) -> None:
            heard.append(message.payload)
            came.set()

        direct = await connect(apache_broker.url)
        behind = await connect(f"pulsar://{link.address}")
        try:
            producer = await direct.open_producer(topic)
            await behind.open_reader(topic, EARLIEST, receive)
            await producer.send(b"one")
            await came.wait()
            link.cut()
            await producer.send(b"two")
            # A reader that is not behind the link gets it, and so the other one could have.
            passed = asyncio.Event()
            await direct.open_reader(
                topic, EARLIEST, lambda message: passed.set() if message.payload == b"two" else None
            )
            await passed.wait()
            assert heard == [b"one"]
            came.clear()
            link.mend()
            await came.wait()
            assert heard == [b"one", b"two"]
        finally:
            link.mend()
            await behind.close()
            await direct.close()
            await link.close()

    async def bounded() -> None:
        async with asyncio.timeout(3 * BOUND):
            await play()

    asyncio.run(bounded())
