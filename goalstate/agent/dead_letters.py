"""Dead letters: what was refused for good, told once. Pure.

Laws:

1.  A refusal of a resource is told once for each revision, for as long as it stands. A host that
    begins anew tells again what is refused again, so a letter that is lost in a crash is no loss:
    the exception is in the reports anyway.
2.  A letter is made when it is sent, of what is so then: a refusal that is gone is not told.
3.  What cannot be read at all, a message or a resource, is an exception and no letter: there is no
    resource that a data plane could be asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from goalstate.agent.stream import Fault, Stream
from goalstate.gs import packing
from goalstate.gs.packing import Addressed
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import StreamId, StreamKind

#: Bytes that a letter takes in a message beside its own.
_AROUND = 4

#: A resource of a host: stream, kind, id.
Name = tuple[StreamId, Kind, str]


class DeadLetters:
    """Which refusals of one host are to be told, and which were."""

    __slots__ = ("_told", "_waiting")

    def __init__(self) -> None:
        #: When each was refused that is to be told; nanoseconds since the Unix epoch.
        self._waiting: dict[Name, int] = {}
        #: Revisions that were told.
        self._told: dict[Name, int] = {}

    def __bool__(self) -> bool:
        """Is there anything to tell?"""
        return bool(self._waiting)

    def refused(self, name: Name, revision: int, now: int) -> None:
        if self._told.get(name) != revision:
            self._waiting.setdefault(name, now)

    def cleared(self, name: Name) -> None:
        """The resource is applied or gone."""
        self._waiting.pop(name, None)
        self._told.pop(name, None)

    def take(
        self,
        host: str,
        streams: Mapping[StreamId, Stream],
        exceptions: Mapping[Name, Fault],
        limit: int,
    ) -> list[agent_pb2.DeadLetter]:
        """Letters of about `limit` bytes at the most; they count as told."""
        letters: list[agent_pb2.DeadLetter] = []
        size = 0
        while self._waiting and size < limit:
            name = next(iter(self._waiting))
            refused_ns = self._waiting.pop(name)
            fault, stream = exceptions.get(name), streams.get(name[0])
            if stream is None or fault is None or fault.pending or fault.retrying:
                continue
            _, kind, id_ = name
            wanted = stream.live.held.get(kind, {}).get(id_)
            if wanted is None:
                wanted = Resource(kind, id_, fault.revision, b"")
            elif wanted.revision != fault.revision:
                continue  # a newer one is on its way, and has its own fate
            letter = _letter(host, stream.id, wanted, fault, refused_ns)
            self._told[name] = letter.revision
            letters.append(letter)
            size += letter.ByteSize() + _AROUND
        return letters

    def lost(self, letters: Iterable[agent_pb2.DeadLetter]) -> None:
        """These were taken and could not be sent: they are to be told as before."""
        for letter in letters:
            name = (StreamId.parse(letter.stream), Kind(letter.type), letter.id)
            if self._told.pop(name, None) is not None:
                self._waiting.setdefault(name, letter.refused_unix_ns)


def _letter(
    host: str, stream: StreamId, wanted: Resource, fault: Fault, refused_ns: int
) -> agent_pb2.DeadLetter:
    own = host if stream.kind is StreamKind.INBOX else ""
    content = packing.encode([Addressed(own, wanted)])
    return agent_pb2.DeadLetter(
        host=host,
        stream=str(stream),
        epoch=fault.mark.epoch,
        sequence=fault.mark.sequence,
        type=int(wanted.kind),  # type: ignore[arg-type]
        id=wanted.id,
        revision=fault.revision,
        reason=fault.reason,
        attempts=fault.attempts,
        refused_unix_ns=refused_ns,
        resource=goalstate_pb2.GoalStateV2.FromString(content),
    )
