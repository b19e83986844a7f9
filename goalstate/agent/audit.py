"""The audit of one host: is what it holds, and what its data plane holds, still what it was? Pure.

Digests are compared with each message; of a stream on which nothing happens, and of a data plane
that somebody else touches, nothing but looking tells.

Laws:

1.  Everything is looked at once within `interval_ns`, in slices of a few thousand resources with
    SLICE_NS between them, and rests between the rounds. Hosts begin at different times, by a hash
    of their names.
2.  Of each stream, the digest of what is held is computed anew, and compared with the running one
    and with the publisher's. What is compared was taken at one moment, so that a stream that
    changes meanwhile gives no false alarm. Where only the running digest is wrong it is set right;
    else the stream is read again.
3.  Of each kind, what the data plane holds is compared with what was applied, if it can be read
    back. What differs or is missing is programmed again; what nobody wants is deleted. What is on
    its way is not looked at, nor is what changed since it was read back, or what two streams have.
4.  Where nothing is wrong, nothing is sent, programmed or reported.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import xxhash

from goalstate.agent.counters import Counters
from goalstate.agent.programming import Programming
from goalstate.agent.stream import Reading, Stream
from goalstate.gs import digest as digests
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import StreamId

#: Resources in a slice; more where a round would take too long.
SLICE = 2000
SLICE_NS = 50_000_000
#: The part of the interval that a round takes at the most.
_ROUND = 4
#: Kinds that a data plane holds.
_PROGRAMMED = tuple(kind for kind in Kind if kind is not Kind.SUBSCRIPTION)


class Found(NamedTuple):
    """What somebody else has to do."""

    #: Streams that hold something else than they should: to be read again.
    drifted: list[Stream]
    #: The kind of which the data plane is to be read back; None: none.
    kind: Kind | None = None


class _Sum:
    """The digest of a stream as it was at one moment, while it is computed."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.reading: Reading = stream.live
        self.left = [one for held in self.reading.held.values() for one in held.values()]
        self.running = self.reading.digest
        self.expected = self.reading.expected
        self.sum = digests.EMPTY


class _Part(NamedTuple):
    """What a stream held of a kind, by id; what was on its way is `open`."""

    stream: Stream
    held: Mapping[str, Resource]
    open: Collection[str]
    #: Those that were not looked at yet.
    left: Iterator[Resource]

    def concerns(self, id_: str) -> bool:
        return id_ in self.held or id_ in self.open


class _Comparison:
    """What a data plane held of a kind, while it is compared with what was applied."""

    def __init__(self, kind: Kind, table: Mapping[str, bytes], streams: list[Stream]) -> None:
        self.kind = kind
        self.table = dict(table)
        self.parts = []
        for stream in streams:
            held = dict(stream.live.held.get(kind, {}))
            open_ = frozenset(stream.unsettled.get(kind, ()))
            self.parts.append(_Part(stream, held, open_, iter(held.values())))
        self.wanted = {id_ for part in self.parts for id_ in part.open}


class Audit:
    """`step` is to be called when `due_ns` has come."""

    def __init__(
        self,
        host: str,
        streams: Mapping[StreamId, Stream],
        programming: Programming,
        counters: Counters,
        interval_ns: int,
    ) -> None:
        self._host = host
        self._streams = streams
        self._programming = programming
        self._counters = counters
        self._interval_ns = interval_ns
        #: When there is something to do next; None: `start` was not called.
        self.due_ns: int | None = None
        self._began_ns = 0
        self._slice = SLICE
        self._left: deque[StreamId | Kind] = deque()
        self._work: _Sum | _Comparison | None = None
        #: The data plane is being read back.
        self._asked: Kind | None = None
        self._readable = True

    def start(self, now: int) -> None:
        drawn = xxhash.xxh3_64_intdigest(self._host.encode())
        self.due_ns = now + (self._interval_ns // 2 * drawn >> 64)

    def step(self, now: int, *, busy: bool) -> Found:
        """Look at the next slice. `busy`: a program is under way."""
        self.due_ns = now + SLICE_NS
        found = Found([])
        if self._asked is not None:
            self._asked = None  # it did not answer, or too late
        work = self._work
        if isinstance(work, _Sum):
            found = Found(self._add(work))
        elif work is not None:
            self._compare(work, now)
        elif self._left:
            found = self._next(busy)
        else:
            self._begin(now)
        if self._work is None and self._asked is None and not self._left:
            self._rest(now)
        return found

    def read_back(self, kind: Kind, table: Mapping[str, bytes] | None, now: int) -> None:
        """The data plane holds this of a kind: payloads by id. None: it cannot be read back."""
        if self._asked is not kind:
            return
        self._asked = None
        self.due_ns = now + SLICE_NS
        if table is None:
            self._readable = False
            self._left.clear()
        else:
            self._work = _Comparison(kind, table, list(self._streams.values()))

    def lost(self, now: int) -> None:
        """What was read back is of no use: something was programmed meanwhile. Ask again."""
        if self._asked is not None:
            self._left.appendleft(self._asked)
            self._asked = None
            self.due_ns = now + SLICE_NS

    def _begin(self, now: int) -> None:
        self._began_ns = now
        self._left.extend(self._streams)
        if self._readable:
            self._left.extend(_PROGRAMMED)
        total = 2 * sum(
            len(held) for stream in self._streams.values() for held in stream.live.held.values()
        )
        slices = max(1, self._interval_ns // _ROUND // SLICE_NS - 2 * len(self._left))
        self._slice = max(SLICE, -(-total // slices))

    def _rest(self, now: int) -> None:
        """Nothing is left of the round: the next one begins so that it ends in time."""
        self._counters.audits += 1
        took = now - self._began_ns
        period = max(self._interval_ns // 2, self._interval_ns - 2 * took)
        self.due_ns = max(self._began_ns + period, now + SLICE_NS)

    def _next(self, busy: bool) -> Found:
        item = self._left[0]
        if isinstance(item, Kind):
            if busy:
                return Found([])  # what was read back would be old
            self._asked = self._left.popleft()  # type: ignore[assignment]
            self.due_ns = (self.due_ns or 0) + self._interval_ns // _ROUND
            return Found([], item)
        self._left.popleft()
        stream = self._streams.get(item)
        if stream is not None and _is_sound(stream) and not stream.counting:
            self._work = _Sum(stream)
            return Found(self._add(self._work))
        return Found([])

    # --- what is held ---

    def _add(self, work: _Sum) -> list[Stream]:
        some, work.left = work.left[-self._slice :], work.left[: -self._slice]
        work.sum = (work.sum + digests.of(some)) & digests.MASK
        if work.left:
            return []
        self._work = None
        stream, total = work.stream, work.sum
        if total == work.running and work.expected in (None, total):
            return []
        if self._streams.get(stream.id) is not stream or stream.live is not work.reading:
            return []
        if not _is_sound(stream):
            return []
        if total == work.expected:
            self._counters.drifts["digest"] += 1
            stream.live.digest = (stream.live.digest + total - work.running) & digests.MASK
            return []
        self._counters.drifts["held"] += 1
        return [stream]

    # --- what the data plane holds ---

    def _compare(self, work: _Comparison, now: int) -> None:
        room = self._slice
        for part in work.parts:
            some = list(islice(part.left, room))
            room -= len(some)
            for resource in some:
                work.wanted.add(resource.id)
                if work.table.get(resource.id) == resource.payload or resource.id in part.open:
                    continue
                if self._is_settled(part, resource) and not any(
                    other.concerns(resource.id) for other in work.parts if other is not part
                ):
                    self._counters.drifts["data_plane"] += 1
                    self._programming.drifted(part.stream, resource.kind, resource.id, now)
            if room <= 0:
                return
        self._work = None
        odd = work.table.keys() - work.wanted
        self._counters.drifts["data_plane"] += self._programming.strays.found(work.kind, odd)

    def _is_settled(self, part: _Part, resource: Resource) -> bool:
        """Is it as it was, applied, and this stream's alone?"""
        stream, kind, id_ = part.stream, resource.kind, resource.id
        if self._streams.get(stream.id) is not stream or stream.leaving:
            return False
        if stream.live.held.get(kind, {}).get(id_) != resource:
            return False
        return id_ not in stream.unsettled.get(kind, {}) and not any(
            id_ in other.live.held.get(kind, {}) or id_ in other.unsettled.get(kind, {})
            for other in self._streams.values()
            if other is not stream
        )


def _is_sound(stream: Stream) -> bool:
    """Is it held whole, as far as is known? Else it is being mended already."""
    return not (
        stream.leaving
        or stream.shadow is not None
        or stream.disagreements
        or stream.live.loading
        or stream.live.unread
        or stream.live.malformed
    )
