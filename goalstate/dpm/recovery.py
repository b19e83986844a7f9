"""What a publisher knows from its log: its whole state, and what its topics may still lack.

Redoing a record gives what doing it gave, marks and bytes included (see `core`, law 2). That holds
for one placement of security groups, so the log says which, and is refused under another.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence

from goalstate.bus.base import EARLIEST, Bus
from goalstate.dpm.core import Accepted, Core, Publication
from goalstate.dpm.errors import LogUnreadable
from goalstate.gs import envelope as envelopes
from goalstate.gs import intent_codec
from goalstate.gs.envelope import Envelope
from goalstate.gs.errors import EnvelopeError, GoalStateError
from goalstate.gs.pb.goalstate.log.v1 import log_pb2
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.topics import Topics

#: So many changes can be waited for by their number.
REMEMBERED_CHANGES = 20_000

#: Changes by number, oldest first; what they published has its own way and is left out.
Changes = OrderedDict[int, Accepted]


def remember(changes: Changes, accepted: Accepted) -> None:
    changes[accepted.change] = accepted._replace(publications=[])
    if len(changes) > REMEMBERED_CHANGES:
        changes.popitem(last=False)


class Replay:
    """A core as its log makes it, record by record."""

    def __init__(self, topics: Topics, *, security_groups_own_stream: bool) -> None:
        self.core = Core(topics, security_groups_own_stream=security_groups_own_stream)
        self.records = 0
        #: Everything derived from changes up to this one is on its topics.
        self.published = 0
        self.changes: Changes = OrderedDict()
        self._unconfirmed: deque[tuple[int, Publication]] = deque()
        self._own_stream = security_groups_own_stream

    @property
    def unconfirmed(self) -> list[Publication]:
        """What may not be on its topic, in the order in which it was to be sent."""
        return [publication for _, publication in self._unconfirmed]

    def redo(self, record: log_pb2.Record, *, lost: bool = False) -> None:
        """Redo a record; `lost`: something that its writer wrote before it is missing.

        Raises LogUnreadable if the record cannot be what this publisher wrote.
        """
        self.records += 1
        body = record.WhichOneof("body")
        try:
            if body == "incarnation":
                self._begin(record.incarnation)
            elif body == "change":
                if lost and record.change.change > self.core.change + 1:
                    # It builds on a change that did not get into the log, so neither was ever
                    # acknowledged: its writer stopped at the first that failed.
                    return
                self._change(record.change)
            elif body == "published":
                self._published(record.published.change)
            else:
                raise ValueError("it says nothing that is known here")
        except (ValueError, GoalStateError) as error:
            name = f"change {record.change.change}" if body == "change" else f"{body}"
            raise LogUnreadable(
                f"record {self.records} ({name}) of {self.core.topics.intent_log}: {error}"
            ) from error

    def _begin(self, incarnation: log_pb2.Incarnation) -> None:
        if incarnation.security_groups_own_stream != self._own_stream:
            was = "own-stream" if incarnation.security_groups_own_stream else "vpc-stream"
            raise ValueError(
                f"it was written with security_groups: {was}, and what is on the topics follows "
                "from that; serve it with the same setting, or serve another region"
            )
        self.core.begin_epoch(incarnation.epoch)

    def _change(self, change: log_pb2.Change) -> None:
        changes = self.core.plan(intent_codec.from_proto(change.intent))
        accepted = self.core.accept(changes, change.accepted_unix_ns, change.traceparent)
        if accepted.change != change.change:
            raise ValueError(f"it would be change {accepted.change} here")
        remember(self.changes, accepted)
        self._unconfirmed.extend((accepted.change, p) for p in accepted.publications)

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

    A bus may fail one message and write a later one. From the first that is missing on all are sent
    again: readers need the order, and know a repeated message by its mark.
    """
    publications = list(publications)
    marks: dict[StreamId, list[Mark]] = {}
    for publication in publications:
        marks.setdefault(publication.envelope.stream, []).append(publication.envelope.mark)
    first = {
        stream: await _first_missing(bus, topics.of_stream(stream), stream, of_stream)
        for stream, of_stream in marks.items()
    }
    return [
        publication
        for publication in publications
        if (missing := first[publication.envelope.stream]) is not None
        and publication.envelope.mark >= missing
    ]


async def _first_missing(
    bus: Bus, topic: str, stream: StreamId, marks: Sequence[Mark]
) -> Mark | None:
    """The first of these ascending marks that is not on the topic; None if all are."""
    head = await _head(bus, topic, stream)
    if head < marks[0]:
        return marks[0]
    if head == marks[0]:
        return marks[1] if len(marks) > 1 else None
    there = set()
    async for message in bus.read_to_end(topic, EARLIEST):
        envelope = _envelope(message.properties, stream)
        if envelope is not None:
            there.add(envelope.mark)
    return next((mark for mark in marks if mark not in there), None)


async def _head(bus: Bus, topic: str, stream: StreamId) -> Mark:
    """The highest mark on a topic."""
    last = await bus.last(topic)
    if last is None:
        return ORIGIN
    envelope = _envelope(last.properties, stream)
    if envelope is not None:
        return envelope.mark
    # Somebody else wrote to the topic while no publisher held it: look behind what is not ours.
    head = ORIGIN
    async for message in bus.read_to_end(topic, EARLIEST):
        envelope = _envelope(message.properties, stream)
        if envelope is not None:
            head = max(head, envelope.mark)
    return head


def _envelope(properties: Mapping[str, str], stream: StreamId) -> Envelope | None:
    """The envelope of a message of the stream; None if it is no such message."""
    try:
        envelope = envelopes.from_properties(properties)
    except EnvelopeError:
        return None
    return envelope if envelope.stream == stream else None
