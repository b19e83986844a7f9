"""A publisher that a test drives message by message: to feed agents, ours or somebody else's.

It is the only writer of the streams that it writes to, as the DPM is in another region: order,
digests and checksums are right, unless a test asks for what goes wrong on the way (a message again,
one that is lost, a new epoch) or writes a message itself (`send`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.message import Message

from goalstate.bus.base import Producer
from goalstate.bus.errors import ProducerFenced
from goalstate.gs import digest as digests
from goalstate.gs import packing
from goalstate.gs.envelope import Envelope, MessageKind, to_properties
from goalstate.gs.packing import Addressed
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.resources import CONFIGURATION, Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamKind
from goalstate.gs.versions import FORMAT_V2
from goalstate.testkit.errors import KitError, hide
from goalstate.testkit.region import Region, stream_id

__tracebackhide__ = hide

_KINDS: dict[Any, Kind] = {type_: kind for kind, type_ in CONFIGURATION.items()}
#: A resource on a stream: the host that it is for (on an inbox), kind and id.
_Key = tuple[str, Kind, str]


class _Log:
    """A stream as it was written so far."""

    def __init__(self) -> None:
        self.mark = ORIGIN
        #: Hash of what is on it, 0 for what was deleted, and the newest revision.
        self.hashes: dict[_Key, int] = {}
        self.revisions: dict[_Key, int] = {}
        #: What was sent, newest last: payload and properties.
        self.sent: list[tuple[bytes, dict[str, str]]] = []

    def next_revision(self, host: str, kind: Kind, id_: str) -> int:
        return self.revisions.get((host, kind, id_), 0) + 1

    def digest(self, host: str = "") -> int:
        """Of the stream, or of what one host is to hold of it."""
        hashes = (hash_ for key, hash_ in self.hashes.items() if host in ("", key[0]))
        return sum(hashes) & digests.MASK


class StreamPublisher:
    """Writes streams of a region, named vpc/ID, sg/ID or inbox/GROUP."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._epoch = 1
        self._change = 0
        self._logs: dict[str, _Log] = {}
        self._producers: dict[str, Producer] = {}

    # --- messages in their order ---

    def put(
        self, stream: str, *configurations: Message, host: str = "", lost: bool = False
    ) -> Envelope:
        """Put resources on a stream, as one change; gives the envelope of its last message.

        They are Alcor configurations, or on an inbox NodeSubscribeInfo (see `subscribe`). One
        without a revision gets the next one. On an inbox, `host` is whose they are. `lost`: it
        takes its place in the order, and does not get to the topic. Raises KitError where another
        writer holds the stream, or the name is of none.
        """
        log = self._log(stream)
        items = []
        for configuration in configurations:
            kind = _KINDS.get(type(configuration))
            if kind is None:
                raise KitError(f"a {type(configuration).__name__} is no configuration")
            copy: Any = type(configuration)()
            copy.CopyFrom(configuration)
            id_ = copy.stream if kind is Kind.SUBSCRIPTION else copy.id
            copy.revision_number = copy.revision_number or log.next_revision(host, kind, id_)
            payload = copy.SerializeToString()
            items.append(Addressed(host, Resource(kind, id_, copy.revision_number, payload)))
        return self._publish(stream, log, items, lost)

    def delete(
        self, stream: str, kind: str, *ids: str, host: str = "", lost: bool = False
    ) -> Envelope:
        """Delete resources of a kind (a word, as neighbor or port) from a stream; else as `put`."""
        log = self._log(stream)
        try:
            number = Kind[kind.upper()]
        except KeyError:
            kinds = ", ".join(known.name.lower() for known in Kind)
            raise KitError(f"{kind!r} is no kind of resource; the kinds are {kinds}") from None
        items = [
            Addressed(host, Resource(number, id_, log.next_revision(host, number, id_), b""))
            for id_ in ids
        ]
        return self._publish(stream, log, items, lost)

    def subscribe(self, inbox: str, host: str, stream: str) -> Envelope:
        """Tell a host, by its inbox, to follow a stream."""
        topic = self._region.topic(stream)
        fact = goalstate_pb2.NodeSubscribeInfo(stream=stream, topic=topic)
        return self.put(inbox, fact, host=host)

    def unsubscribe(self, inbox: str, host: str, stream: str) -> Envelope:
        """Tell a host that it needs a stream no longer."""
        return self.delete(inbox, "subscription", stream, host=host)

    # --- what goes wrong on the way ---

    def again(self, stream: str, back: int = 1) -> None:
        """Send the last message of a stream once more, or the one `back` messages before its end.

        Raises KitError where there is none.
        """
        sent = self._log(stream).sent
        if not 1 <= back <= len(sent):
            raise KitError(f"{len(sent)} messages were sent on {stream}: there is no {back}th last")
        self.send(stream, *sent[-back])

    def new_epoch(self) -> None:
        """From now on write as a successor of this publisher would, who knows all that it sent."""
        self._epoch += 1

    def send(self, stream: str, payload: bytes, properties: Mapping[str, str]) -> None:
        """Put any message on a stream's topic. What else is sent does not count it.

        Raises KitError where another writer holds the stream or the name is of none, and BusError.
        """
        producer = self._producer(stream)
        connection = self._region.connection

        async def send() -> None:
            await producer.send(payload, properties=properties)

        connection.call(send())

    def envelope(self, stream: str, payload: bytes, **changed: Any) -> dict[str, str]:
        """Properties with which a payload is the next message of a stream, for `send`.

        `changed` are fields of `goalstate.gs.envelope.Envelope`. Nothing is counted.
        """
        log = self._log(stream)
        envelope = self._next(stream, log, payload, digests.to_hex(log.digest()))
        return to_properties(envelope._replace(**changed))

    # --- inside ---

    def _publish(self, stream: str, log: _Log, items: Iterable[Addressed], lost: bool) -> Envelope:
        listed = list(items)
        inbox = stream_id(stream).kind is StreamKind.INBOX
        for host, resource in listed:
            if bool(host) != inbox:
                raise KitError(
                    f"{resource.name} on {stream}: "
                    + ("say which host it is for" if inbox else "only inboxes are of a host")
                )
        if not listed:
            raise KitError(f"nothing to put on {stream}")
        chunks = packing.chunk(listed)
        self._change += 1
        for number, chunk in enumerate(chunks, 1):
            for host, resource in chunk:
                kind, id_, revision, payload = resource
                log.hashes[host, kind, id_] = digests.item(kind, payload) if payload else 0
                log.revisions[host, kind, id_] = revision
            hosts = {host: log.digest(host) for host, _ in chunk if host}
            payload = packing.encode(chunk, hosts)
            envelope = self._next(stream, log, payload, digests.to_hex(log.digest()))
            envelope = envelope._replace(chunk=number, chunks=len(chunks))
            log.mark = envelope.mark
            if not lost:
                properties = to_properties(envelope)
                self.send(stream, payload, properties)
                log.sent.append((payload, properties))
        return envelope

    def _next(self, stream: str, log: _Log, payload: bytes, digest: str) -> Envelope:
        begins = log.mark.epoch != self._epoch
        return Envelope(
            schema=FORMAT_V2,
            stream=stream_id(stream),
            mark=Mark(self._epoch, 1 if begins else log.mark.sequence + 1),
            kind=MessageKind.DELTA,
            chunk=1,
            chunks=1,
            change=max(self._change, 1),
            digest=digest,
            checksum=digests.checksum(payload),
            published_ns=time.time_ns(),
            after=log.mark if begins else None,
        )

    def _log(self, stream: str) -> _Log:
        stream_id(stream)
        return self._logs.setdefault(stream, _Log())

    def _producer(self, stream: str) -> Producer:
        producer = self._producers.get(stream)
        if producer is None:
            connection = self._region.connection
            topic = self._region.topic(stream)
            try:
                opened = connection.call(connection.bus.open_producer(topic, exclusive=True))
            except ProducerFenced as error:
                raise KitError(
                    f"{stream} has another writer: stop the DPM first, or use a region without "
                    f"one ({error})"
                ) from None
            producer = self._producers[stream] = opened
        return producer
