"""What a host stores to go on after a restart: which of it changed, and how it is restored. Pure.

Laws:

1.  What is stored of a stream is what was held of it at one mark (`Stream.live`), with the position
    from which it is read on. It may be older than what was held when the process died; then the
    rest comes again.
2.  Nothing that was read and could not be used is stored: a stream with such content is stored as
    one that was never read, and is read anew.
3.  What is stored is proved when it is loaded (`state_file`, law 3), and what is held of it by its
    digest when it is restored. What is not proved is not used.
4.  What was applied is not stored. A data plane is empty after a restart: everything that is held
    goes to it again, and the watermark begins when it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from goalstate.agent.stream import TOMBSTONES, Reading, Stream
from goalstate.gs import digest as digests
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import ORIGIN, Mark, StreamId


class Head(NamedTuple):
    """What is stored of a stream besides its resources."""

    topic: str
    #: Payloads were counted, not decoded: nothing is held, whatever the mark.
    counting: bool
    mark: Mark
    position: bytes
    digest: int
    #: See `Reading.expected`.
    expected: int | None


class StoredStream(NamedTuple):
    """A stream as it was stored. Resources without a payload are tombstones, oldest first."""

    stream: StreamId
    head: Head
    resources: Sequence[Resource]


class Update(NamedTuple):
    """What is to be stored of a stream, in the place of what is."""

    host: str
    stream: StreamId
    #: None: it is to be forgotten.
    head: Head | None
    #: Forget all of its resources before.
    whole: bool = False
    #: To be stored each in the place of the one of its kind and id; tombstones as above.
    resources: Sequence[Resource] = ()
    #: To be forgotten.
    gone: Sequence[tuple[Kind, str]] = ()


class Journal:
    """Where the streams of a host differ from what is stored of them."""

    __slots__ = ("_changed", "_stored")

    def __init__(self) -> None:
        #: By stream, groups of ids that were touched; None: all are.
        self._changed: dict[StreamId, list[tuple[Kind, Sequence[str]]] | None] = {}
        self._stored: set[StreamId] = set()

    def __bool__(self) -> bool:
        """Is there anything to store?"""
        return bool(self._changed)

    def moved(self, stream: StreamId) -> None:
        """Its head changed, or it is followed no longer."""
        self._changed.setdefault(stream, [])

    def touched(self, stream: StreamId, kind: Kind, ids: Sequence[str]) -> None:
        """These may have changed. The sequence must stay as it is."""
        groups = self._changed.setdefault(stream, [])
        if groups is not None:
            groups.append((kind, ids))

    def replaced(self, stream: StreamId) -> None:
        """All that is held of it may be another."""
        self._changed[stream] = None

    def found(self, streams: Iterable[StreamId]) -> None:
        """These are stored from an earlier run."""
        self._stored.update(streams)

    def failed(self, streams: Iterable[StreamId]) -> None:
        """What was taken could not be stored: everything is to be stored anew."""
        self._changed = dict.fromkeys((*self._stored, *self._changed, *streams))

    def take(self, host: str, streams: Mapping[StreamId, Stream]) -> list[Update]:
        """What is to be stored, all as of now; it counts as stored from here on."""
        updates = []
        for id_, groups in self._changed.items():
            stream = streams.get(id_)
            head = _head(stream) if stream is not None else None
            if stream is None or head is None:
                if id_ in self._stored or groups is None:
                    updates.append(Update(host, id_, None))
                self._stored.discard(id_)
                continue
            if groups is None or id_ not in self._stored:
                updates.append(Update(host, id_, head, True, _everything(stream.live)))
            else:
                updates.append(_difference(host, id_, head, stream.live, groups))
            self._stored.add(id_)
        self._changed = {}
        return updates


def snapshot(streams: Mapping[StreamId, Stream]) -> list[StoredStream]:
    """What a host holds, as it would be stored: another core can go on with it at once."""
    stored = []
    for id_, stream in streams.items():
        head = _head(stream)
        if head is not None:
            stored.append(StoredStream(id_, head, _everything(stream.live)))
    return stored


def _head(stream: Stream) -> Head | None:
    """None: nothing of it can be stored."""
    live = stream.live
    if stream.leaving or live.mark == ORIGIN or live.unread or live.malformed:
        return None
    return Head(stream.topic, stream.counting, live.mark, live.position, live.digest, live.expected)


def _everything(reading: Reading) -> list[Resource]:
    resources = [one for held in reading.held.values() for one in held.values()]
    for kind, tombstones in reading.tombstones.items():
        resources += [Resource(kind, id_, rev, b"") for id_, rev in tombstones.items()]
    return resources


def _difference(
    host: str,
    stream: StreamId,
    head: Head,
    reading: Reading,
    groups: Iterable[tuple[Kind, Sequence[str]]],
) -> Update:
    by_kind: dict[Kind, dict[str, None]] = {}
    for kind, some in groups:
        by_kind.setdefault(kind, {}).update(dict.fromkeys(some))
    resources: list[Resource] = []
    gone = []
    for kind, ids in by_kind.items():
        held = reading.held.get(kind, {})
        tombstones = reading.tombstones.get(kind, {})
        for id_ in ids:
            if id_ in held:
                resources.append(held[id_])
            elif id_ in tombstones:
                resources.append(Resource(kind, id_, tombstones[id_], b""))
            else:
                gone.append((kind, id_))
    return Update(host, stream, head, False, resources, gone)


def restored(stored: StoredStream) -> Reading | None:
    """The reading that was stored; None if it is not what it should be."""
    head = stored.head
    reading = Reading()
    reading.mark, reading.position = head.mark, head.position
    reading.digest, reading.expected = head.digest, head.expected
    if digests.of(stored.resources) != head.digest:
        return None
    for resource in stored.resources:
        kind, id_, revision, payload = resource
        if payload:
            reading.held.setdefault(kind, {})[id_] = resource
        else:
            reading.tombstones.setdefault(kind, {})[id_] = revision
    for tombstones in reading.tombstones.values():
        for id_ in list(tombstones)[:-TOMBSTONES]:
            del tombstones[id_]
    return reading
