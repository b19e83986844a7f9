"""The message port: named topics, each an ordered, retained log of messages.

Laws that every adapter keeps (`conformance` is the test of them):

1.  A topic is a log. All readers see one order, the order in which sends were accepted; the sends
    of one producer are accepted in the order of its calls.
2.  A send whose future has a result is in the log. One that failed may or may not be.
3.  A reader that starts at a position gets every message after it, once and in order, for as long
    as it is open, also when the broker goes away and comes back. (The memory bus breaks this law
    on demand: that is what its faults are for.)
4.  Readers leave nothing behind on the broker: whoever reads keeps its own position.
5.  A position is opaque bytes, meaningful only for the topic it came from.
6.  Answers of one producer come in the order of its sends. Only a failure may come before its turn:
    when a future has a result, the futures of all sends before it are done.

Nothing here knows what a goal state is: a topic is a string, a message is bytes with string
properties.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple, Protocol

#: Reading starts with the oldest message that the topic still holds.
EARLIEST = b""
#: Reading starts with the first message sent after the reader was opened.
LATEST = b"\xff"

#: Seconds for which closing a producer or a bus waits for sends that are not answered yet: enough
#: for a broker that is there, and no reason to stay for one that is not.
FLUSH_BOUND = 2.0

#: Seconds within which a producer that was thrown out hears so when it sends: where the client
#: learns of it at once this is a margin.
FENCED_BOUND = 5.0

#: The largest payload, in bytes, that every adapter takes in one message.
MAX_PAYLOAD = 4 * 1024 * 1024


class Message(NamedTuple):
    """One message as a reader gets it."""

    topic: str
    key: str
    properties: Mapping[str, str]
    payload: bytes
    position: bytes
    #: When the broker or the producer stamped it, in nanoseconds since the Unix epoch.
    published_ns: int


#: Called in the event loop's thread with each message, in order. It must not block.
Sink = Callable[[Message], None]


class Producer(Protocol):
    """Sends to one topic."""

    @property
    def topic(self) -> str: ...

    def send(
        self, payload: bytes, *, key: str = "", properties: Mapping[str, str] | None = None
    ) -> asyncio.Future[bytes]:
        """Queue one message; the future gives its position once the broker holds it.

        The future raises ProducerFenced, MessageTooLarge, BrokerUnreachable or BusClosed.
        """
        ...

    async def flush(self) -> None:
        """Wait until every send so far has been answered."""
        ...

    async def close(self) -> None:
        """Flush for at most FLUSH_BOUND seconds, then give the topic up.

        Sends that are still unanswered then fail with BusClosed. Whoever cannot do with that
        calls `flush` before. Closing twice is harmless.
        """
        ...


class Reader(Protocol):
    """An open reader; its messages go to the sink that it was opened with."""

    @property
    def topic(self) -> str: ...

    async def close(self) -> None:
        """Stop. After this returns the sink is not called any more."""
        ...


class Bus(Protocol):
    """A connection to a broker."""

    async def open_producer(
        self,
        topic: str,
        *,
        exclusive: bool = False,
        take_over: bool = False,
        batch: bool = False,
        name: str = "",
    ) -> Producer:
        """Open a producer.

        `exclusive`: nobody else may send to the topic meanwhile (raises ProducerFenced if somebody
        holds it). `take_over`, of an exclusive one: whoever holds it is thrown out instead, for
        good; what they have sent and not got into the log by then fails with ProducerFenced, as
        does what they send from then on, within FENCED_BOUND seconds while the broker answers.
        (It still raises ProducerFenced when somebody else is quicker at the same moment.)
        `batch`: gather sends for up to a few milliseconds, for throughput.
        """
        ...

    async def open_reader(self, topic: str, start: bytes, sink: Sink) -> Reader:
        """Open a reader that gives `sink` every message after position `start`.

        `start` is EARLIEST, LATEST or a message's position. The sink may be called before this
        returns, not after `Reader.close` was called. Raises PositionGone when the log
        no longer reaches back to it, BrokerUnreachable when nobody answers.
        """
        ...

    def read_to_end(self, topic: str, start: bytes) -> AsyncIterator[Message]:
        """The messages after `start` that the topic holds when the call is made, in order."""
        ...

    async def last(self, topic: str) -> Message | None:
        """The newest message of a topic, None if it holds none."""
        ...

    async def close(self) -> None:
        """Close all readers and producers (as `Producer.close` does), then the connection.

        Ends within a few seconds, also while the broker is away. Closing twice is harmless.
        """
        ...
