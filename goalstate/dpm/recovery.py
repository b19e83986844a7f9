"""What a publisher knows from its log: its whole state, and what its topics may still lack.

Redoing a record gives what doing it gave, marks and bytes included (see `core`, law 2). That holds
for one placement of security groups, so the log says which, and is refused under another.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from goalstate.bus.base import EARLIEST, Bus
from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.errors import LogUnreadable
from goalstate.dpm.inventory import Publication
from goalstate.gs import envelope as envelopes
from goalstate.gs import intent_codec
from goalstate.gs.derivation import Key
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.errors import EnvelopeError, GoalStateError, Violation
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Channel, Mark, StreamId
from goalstate.gs.topics import Topics

#: Topics whose newest message is asked for at once: to ask takes some brokers 0.1 s.
_HEADS_AT_ONCE = 50
#: So many changes can be waited for by their number.
REMEMBERED_CHANGES = 20_000

#: Changes by number, oldest first; what they published has its own way and is left out.
Changes = OrderedDict[int, Accepted]


def republished(names: Iterable[intent_pb2.ResourceName]) -> list[Key]:
    """What is to be put on streams again. Raises ValueError where a kind is none."""
    return [Key(Kind(name.type), name.id, name.host) for name in names]


def never_on_a_stream(place: int, key: Key) -> Violation:
    """Why what is named at a place cannot be put on streams again."""
    return Violation(
        f"resources[{place}]",
        "UNKNOWN_RESOURCE",
        f"{key.kind.name.lower()}/{key.id} never was on a stream",
    )


def remember(changes: Changes, accepted: Accepted) -> None:
    changes[accepted.change] = accepted._replace(publications=[])
    if len(changes) > REMEMBERED_CHANGES:
        changes.popitem(last=False)


def changes_of(record: log_pb2.Record) -> Sequence[log_pb2.Change]:
    """The changes that a record holds."""
    if record.HasField("change"):
        return [record.change]
    return record.group.changes


def named(record: log_pb2.Record) -> str:
    """A record, for people."""
    changes = changes_of(record)
    if not changes:
        return f"{record.WhichOneof('body')}"
    first, last = changes[0].change, changes[-1].change
    return f"change {first}" if first == last else f"changes {first} to {last}"


class Replay:
    """A core as its log makes it, record by record."""

    def __init__(self, topics: Topics, *, security_groups_own_stream: bool) -> None:
        self.core = Core(topics, security_groups_own_stream=security_groups_own_stream)
        self.records = 0
        #: Everything derived from changes up to this one is on its topics.
        self.published = 0
        self.changes: Changes = OrderedDict()
        #: The newest complete checkpoint of each stream that has one.
        self.checkpoints: dict[StreamId, log_pb2.Checkpointed] = {}
        #: Who writes the log, if that was heard since the snapshot that this began from.
        self.active: log_pb2.Alive | None = None
        self._unconfirmed: deque[tuple[int, Publication]] = deque()
        self._own_stream = security_groups_own_stream

    @property
    def unconfirmed(self) -> list[Publication]:
        """What may not be on its topic, in the order in which it was to be sent.

        What travels on sessions is not of it: whoever lacks that asks, and is told how things are.
        """
        return [publication for _, publication in self._unconfirmed]

    def settle(self) -> None:
        """Everything in it is on its topics, as a later record of the log says."""
        self.published = self.core.change
        self._unconfirmed.clear()

    def redo(self, record: log_pb2.Record, *, lost: bool = False) -> None:
        """Redo a record; `lost`: something that its writer wrote before it is missing.

        Raises LogUnreadable if the record cannot be what this publisher wrote.
        """
        self.records += 1
        body = record.WhichOneof("body")
        changes = changes_of(record)
        try:
            if body == "incarnation":
                self._begin(record.incarnation)
            elif changes:
                if lost and changes[0].change > self.core.change + 1:
                    # It builds on a change that did not get into the log, so neither was ever
                    # acknowledged: its writer stopped at the first that failed.
                    return
                self._redo_changes(changes)
            elif body == "published":
                self._published(record.published.change)
            elif body == "alive":
                self.active = record.alive
            elif body == "checkpointed":
                self._checkpointed(record.checkpointed)
            else:
                raise ValueError("it says nothing that is known here")
        except (ValueError, GoalStateError) as error:
            raise LogUnreadable(
                f"record {self.records} ({named(record)}) of {self.core.topics.intent_log}: {error}"
            ) from error

    def check_placement(self, own_stream: bool) -> None:
        """Raises ValueError unless security groups are placed so here too."""
        if own_stream != self._own_stream:
            was = "own-stream" if own_stream else "vpc-stream"
            raise ValueError(
                f"it was written with security_groups: {was}, and what is on the topics follows "
                "from that; serve it with the same setting, or serve another region"
            )

    def check_division(self, shards: int) -> None:
        """Raises ValueError unless the region has as many shards here; 0 stands for 1."""
        if (shards or 1) != self.core.topics.shards:
            raise ValueError(
                f"the region is divided into {shards or 1} shards, not into "
                f"{self.core.topics.shards}, and what belongs to which follows from that; serve it "
                "with the same setting (--shards), or serve another region"
            )

    def _begin(self, incarnation: log_pb2.Incarnation) -> None:
        self.check_placement(incarnation.security_groups_own_stream)
        self.check_division(incarnation.shards)
        if incarnation.epoch <= self.core.epoch:
            return  # another was quicker; whoever wrote this knows, and begins again
        policy = ChannelPolicy(incarnation.session_ports, incarnation.session_members)
        self.core.begin_epoch(incarnation.epoch, policy)
        self.active = log_pb2.Alive(writer=incarnation.writer, address=incarnation.address)

    def _redo_changes(self, changes: Sequence[log_pb2.Change]) -> None:
        for change in changes:
            planned = self.core.plan(intent_codec.from_proto(change.intent))
            again = republished(change.republished)
            self.core.take(planned, change.accepted_unix_ns, change.traceparent, again)
            if self.core.change != change.change:
                raise ValueError(f"it would be change {self.core.change} here")
        last = changes[-1].change
        for accepted in self.core.put():
            remember(self.changes, accepted)
            for publication in accepted.publications:
                if publication.begins:
                    # The log on the topic does not go on from it without a gap.
                    self.checkpoints.pop(publication.envelope.stream, None)
                if publication.channel is Channel.PULSAR:
                    self._unconfirmed.append((last, publication))
        self.core.logged(last)

    def _checkpointed(self, checkpoint: log_pb2.Checkpointed) -> None:
        # It counts also where something before it is lost: it was noted when all that it holds was
        # durable.
        stream = StreamId.parse(checkpoint.stream)
        state = self.core.streams.get(stream)
        if state is not None and not state.continues(Mark(checkpoint.epoch, checkpoint.sequence)):
            return  # meanwhile the stream was on another channel
        self.checkpoints[stream] = checkpoint
        self.core.inventory.checkpointed(stream, checkpoint.bytes, checkpoint.covers)

    def _published(self, change: int) -> None:
        if change > self.core.change:
            raise ValueError(f"there is no change {change} yet")
        self.published = change
        while self._unconfirmed and self._unconfirmed[0][0] <= change:
            self._unconfirmed.popleft()


async def not_on_topics(
    bus: Bus, topics: Topics, publications: Iterable[Publication]
) -> list[Publication]:
    """Those that their topics may lack, in their order. Raises BusError.

    A bus may fail one message and write a later one, and the first of them when it is sent again.
    From the first that is missing on, in its order, all are sent again: readers need the order, and
    know a repeated message by its mark.
    """
    publications = list(publications)
    marks: dict[StreamId, list[Mark]] = {}
    before: dict[StreamId, Mark] = {}
    for publication in publications:
        envelope = publication.envelope
        marks.setdefault(envelope.stream, []).append(envelope.mark)
        before.setdefault(envelope.stream, _before(envelope))
    first: dict[StreamId, Mark | None] = {}
    free = asyncio.Semaphore(_HEADS_AT_ONCE)

    async def look(stream: StreamId) -> None:
        async with free:
            topic = topics.of_stream(stream)
            first[stream] = await _first_missing(bus, topic, stream, before[stream], marks[stream])

    await asyncio.gather(*map(look, marks))
    return [
        publication
        for publication in publications
        if (missing := first[publication.envelope.stream]) is not None
        and publication.envelope.mark >= missing
    ]


async def _first_missing(
    bus: Bus, topic: str, stream: StreamId, before: Mark, marks: Sequence[Mark]
) -> Mark | None:
    """The first of these ascending marks that is not on the topic; None if all are.

    `before` is the mark before them, which is there, or was.
    """
    newest = await head_of(bus, topic, stream)
    if newest is None or newest.envelope.mark < marks[0]:
        return marks[0]
    # An IN_SYNC message has the mark of one that may not be there.
    if newest.envelope.mark == marks[0] and newest.envelope.kind is MessageKind.DELTA:
        return marks[1] if len(marks) > 1 else None
    # One that comes before what it follows is of no use to a reader: it counts in its order only,
    # and after what is before them all, wherever that is for the last time.
    found = 0
    async for message in bus.read_to_end(topic, EARLIEST):
        envelope = _envelope(message.properties, stream)
        if envelope is not None and envelope.kind is MessageKind.DELTA:
            if envelope.mark == before:
                found = 0
            elif found < len(marks) and envelope.mark == marks[found]:
                found += 1
    return marks[found] if found < len(marks) else None


def _before(envelope: Envelope) -> Mark:
    epoch, sequence = envelope.mark
    return Mark(epoch, sequence - 1) if sequence > 1 else envelope.after or ORIGIN


class Head(NamedTuple):
    """The newest message of a stream that is on its log."""

    #: Of an IN_SYNC message the mark is that of the message before.
    envelope: Envelope
    position: bytes


async def head_of(bus: Bus, topic: str, stream: StreamId, published: Mark = ORIGIN) -> Head | None:
    """The message with the highest mark on a topic; None if it holds none. Raises BusError.

    `published`: where the topic is at least, as far as is known.
    """
    last = await bus.last(topic)
    if last is None:
        return None
    envelope = _envelope(last.properties, stream)
    if envelope is not None and envelope.mark >= published:
        return Head(envelope, last.position)
    # The last is no message of ours (somebody wrote to the topic while no publisher held it), or
    # one that the broker wrote twice, the second time after later ones. A log read on from there
    # would lack these.
    head: Head | None = None
    async for message in bus.read_to_end(topic, EARLIEST):
        envelope = _envelope(message.properties, stream)
        if envelope is not None and (head is None or envelope.mark >= head.envelope.mark):
            head = Head(envelope, message.position)
    return head


def _envelope(properties: Mapping[str, str], stream: StreamId) -> Envelope | None:
    """The envelope of a message of the stream; None if it is no such message."""
    try:
        envelope = envelopes.from_properties(properties)
    except EnvelopeError:
        return None
    return envelope if envelope.stream == stream else None
