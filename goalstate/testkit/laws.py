"""The laws of a stream, as a reader sees them who keeps no state but the messages. Pure.

1.  Marks: the first message has sequence 1 after nothing. Then comes the next sequence of the same
    epoch, or sequence 1 of a higher epoch that names the mark before it as `after`. The same
    message may come again. IN_SYNC messages take no place in the order.
2.  The chunks of one change come one after the other, and are all there.
3.  The revision of a resource grows, for each host. What is listed under an id is the configuration
    with that id.
4.  The digest after each message is that of what is then on the stream. On an inbox every resource
    is some host's, and each such host is told the digest of what it then holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from goalstate.gs import digest as digests
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.packing import subscriptions
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1.frame_pb2 import Frame
from goalstate.gs.resources import CONFIGURATION, STATES_FIELD, Kind, Resource
from goalstate.gs.streams import ORIGIN, StreamKind

_DELETE = resources_pb2.DELETE


class Change(NamedTuple):
    """What a message does to one resource of one host (none: of every reader)."""

    host: str
    resource: Resource


class Log:
    """A stream as far as it was read."""

    def __init__(self) -> None:
        self.last: Envelope | None = None
        #: Host, kind and id → what is there.
        self.held: dict[tuple[str, Kind, str], Resource] = {}
        self._revisions: dict[tuple[str, Kind, str], int] = {}

    def read(self, envelope: Envelope, payload: bytes) -> Iterator[str]:
        """Take in the next message; gives every law that it breaks, in words."""
        if envelope.kind is not MessageKind.DELTA:
            return
        last = self.last
        if last is not None and (envelope.mark, envelope.checksum) == (last.mark, last.checksum):
            return  # once more
        yield from self._order(envelope, last)
        self.last = envelope
        frame = Frame.FromString(payload)
        for change in _changes(frame, envelope.stream.kind is StreamKind.INBOX):
            if isinstance(change, str):
                yield change
                continue
            yield from self._take(change)
        expected = digests.to_hex(self._digest(self.held))
        if envelope.digest != expected:
            yield f"its digest is {envelope.digest}, that of what is on the stream is {expected}"
        for host, section in sorted(frame.host_resources.items()):
            held = digests.to_bytes(self._digest(key for key in self.held if key[0] == host))
            if section.digest != held:
                told = section.digest.hex() or "none"
                yield f"the digest for host {host} is {told}, that of what it holds is {held.hex()}"

    def _order(self, envelope: Envelope, last: Envelope | None) -> Iterator[str]:
        mark, before = envelope.mark, ORIGIN if last is None else last.mark
        if last is not None and mark.epoch == before.epoch:
            if mark.sequence != before.sequence + 1:
                yield f"its mark is {mark}, after {before}"
        elif mark.epoch < before.epoch:
            yield f"its epoch is {mark.epoch}, after {before.epoch}"
        elif mark.sequence != 1 or (envelope.after or ORIGIN) != before:
            yield (
                f"it begins epoch {mark.epoch} with sequence {mark.sequence} after "
                f"{envelope.after or 'nothing'}, and not with sequence 1 after {before}"
            )
        done = last is None or last.chunk == last.chunks
        wanted = 1 if last is None or done else last.chunk + 1
        if envelope.chunk != wanted:
            yield f"it is chunk {envelope.chunk} of {envelope.chunks}, and {wanted} was to come"

    def _take(self, change: Change) -> Iterator[str]:
        host, resource = change
        kind, id_, revision, payload = resource
        known = self._revisions.get((host, kind, id_), 0)
        if revision <= known:
            yield f"{resource.name} has revision {revision}, and had {known} before"
        self._revisions[host, kind, id_] = max(revision, known)
        if payload:
            self.held[host, kind, id_] = resource
        else:
            self.held.pop((host, kind, id_), None)

    def _digest(self, keys: Iterable[tuple[str, Kind, str]]) -> int:
        return digests.of(self.held[key] for key in keys)


def _changes(frame: Frame, inbox: bool) -> Iterator[Change | str]:
    owners: dict[tuple[int, str], str] = {}
    for host, section in frame.host_resources.items():
        owners.update({(one.type, one.id): host for one in section.resources})
        for fact, _ in subscriptions(section):
            yield Change(host, fact)
    for kind, field in STATES_FIELD.items():
        for id_, state in getattr(frame, field).items():
            config = CONFIGURATION[kind].FromString(state.configuration)
            owner = owners.get((kind, id_), "")
            if config.id != id_:
                yield f"{kind.name.lower()}/{id_} holds the configuration of {config.id!r}"
            if bool(owner) != inbox:
                yield f"{kind.name.lower()}/{id_} is of " + ("no host" if inbox else f"{owner}")
            gone = state.operation_type == _DELETE
            payload = b"" if gone else state.configuration
            yield Change(owner, Resource(kind, id_, config.revision_number, payload))
