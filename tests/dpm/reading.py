"""A reader of publications that trusts nothing: it checks every law of a stream on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from goalstate.dpm.inventory import Publication
from goalstate.gs import digest as digests
from goalstate.gs.envelope import Envelope
from goalstate.gs.packing import subscriptions, unpack
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId, StreamKind

#: Kind, id, and on an inbox stream the host.
Place = tuple[Kind, str, str]


class Readings:
    """What was published on each stream, by a reader that saw all of it."""

    def __init__(
        self, publications: Iterable[Publication] = (), *, in_groups: bool = False
    ) -> None:
        """`in_groups`: a message may be of several changes, and tells of each resource the last."""
        self._in_groups = in_groups
        self.marks: dict[StreamId, Mark] = {}
        self.held: dict[StreamId, dict[Place, Resource]] = {}
        self.messages = 0
        #: Of each resource, wherever it is: the change that touched it last, and its revision.
        self._revisions: dict[Place, tuple[int, int]] = {}
        self._chunks: dict[tuple[StreamId, int], int] = {}
        self.read(publications)

    def read(self, publications: Iterable[Publication]) -> None:
        for publication in publications:
            self._read(publication)

    def _read(self, publication: Publication) -> None:
        envelope, payload, *_ = publication
        stream = envelope.stream
        assert envelope.checksum == digests.checksum(payload)
        self._order(publication)
        message = goalstate_pb2.GoalStateV2.FromString(payload)
        assert message.format_version == envelope.schema == 102
        held = self.held.setdefault(stream, {})
        for host, resource in contents(message):
            assert bool(host) == (stream.kind is StreamKind.INBOX)
            self._take(envelope, host, resource)
        assert digests.to_hex(digests.of(held.values())) == envelope.digest
        for host, section in message.host_resources.items():
            assert section.digest == digests.to_bytes(self.host_digest(host, stream))
        self.messages += 1

    def _order(self, publication: Publication) -> None:
        envelope = publication.envelope
        before = self.marks.get(envelope.stream, ORIGIN)
        if envelope.mark.epoch == before.epoch:
            assert envelope.mark.sequence == before.sequence + 1
            assert envelope.after is None
        else:
            assert envelope.mark.epoch > before.epoch
            assert envelope.mark.sequence == 1
            assert envelope.after == before
        self.marks[envelope.stream] = envelope.mark
        key = (envelope.stream, envelope.change)
        assert envelope.chunk == self._chunks.get(key, 0) + 1
        assert envelope.chunk <= envelope.chunks
        self._chunks[key] = envelope.chunk

    def _take(self, envelope: Envelope, host: str, resource: Resource) -> None:
        place = (resource.kind, resource.id, host)
        # A subscription is a resource of its host. Anything else that a change takes from one host
        # and gives to another is one resource, at one revision.
        key = place if resource.kind is Kind.SUBSCRIPTION else (*place[:2], "")
        change, known = self._revisions.get(key, (0, 0))
        if self._in_groups:
            assert resource.revision >= known + (envelope.change != change)
        else:
            assert resource.revision == known + (envelope.change != change)
        self._revisions[key] = (envelope.change, resource.revision)
        held = self.held[envelope.stream]
        if resource.deleted:
            assert self._in_groups or place in held, "a deletion of what is not there"
            held.pop(place, None)
        else:
            held[place] = resource

    def host_digest(self, host: str, inbox: StreamId) -> int:
        return digests.of(r for (_, _, h), r in self.held.get(inbox, {}).items() if h == host)

    def ids(self, stream: StreamId, kind: Kind) -> set[str]:
        return {id_ for k, id_, _ in self.held.get(stream, {}) if k is kind}


def contents(message: Any) -> list[tuple[str, Resource]]:
    """Every resource of a message with its host ("" on a shared stream)."""
    hosts = {
        (named.type, named.id): host
        for host, section in message.host_resources.items()
        for named in section.resources
    }
    found = [(hosts.get((int(r.kind), r.id), ""), r) for r, _ in unpack(message)]
    for host, section in message.host_resources.items():
        found += [(host, resource) for resource, _ in subscriptions(section)]
    return found
