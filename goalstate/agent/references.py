"""What the resources of a host refer to, and which changes wait for that. Pure.

Laws:

1.  A reference is there when it is applied on this host, on whatever stream it came; on its way
    when it is held and not applied yet; and not there when it is itself an exception, or not held.
2.  A change that waits is given back (`woken`) as soon as what it waits for may be otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from goalstate.agent.changes import EXCEPTIONS, Change, State
from goalstate.agent.decoding import Needs, Reference
from goalstate.agent.stream import Stream
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamId

#: Kinds that something refers to.
_REFERABLE = frozenset({Kind.VPC, Kind.SUBNET, Kind.SECURITY_GROUP})
#: A change in another state has stopped waiting.
_WAITING = (State.BLOCKED, State.PENDING, State.REFUSED)


class References:
    """Of one host, which follows these streams."""

    __slots__ = ("_streams", "_waiters", "blocked")

    def __init__(self, streams: Mapping[StreamId, Stream]) -> None:
        self._streams = streams
        self._waiters: dict[Reference, list[Change]] = {}
        #: So many changes wait for a reference on its way.
        self.blocked = 0

    def find(self, stream: Stream, reference: Reference) -> bool | None:
        """Is it there? False: it is on its way. None: it is not. `stream` is looked at first."""
        kind, id_ = reference
        on_its_way = False
        for one in (stream, *self._streams.values()):
            held = one.live.held.get(kind)
            if held and id_ in held:
                change = one.unsettled.get(kind, {}).get(id_)
                if change is None or id_ in change.before:
                    return True
                if change.state not in EXCEPTIONS and not change.attempts:
                    on_its_way = True
        return False if on_its_way else None

    def are_there(self, stream: Stream, needs: Iterable[Needs]) -> bool:
        """Are all of them there?"""
        references = {reference for some in set(needs) for reference in some}
        return all(self.find(stream, reference) for reference in references)

    def block(self, change: Change, reference: Reference) -> None:
        """Let a change wait for what is on its way."""
        change.state = State.BLOCKED
        self.blocked += 1
        self.wait(change, reference)

    def wait(self, change: Change, reference: Reference) -> None:
        """Let a change wait; it may have become an exception."""
        change.awaited = reference
        self._waiters.setdefault(reference, []).append(change)

    def woken(self, kind: Kind, ids: Iterable[str]) -> Iterable[Change]:
        """Changes that waited for these, and are to be looked at again, each at once."""
        if kind not in _REFERABLE or not self._waiters:
            return ()
        return self._woken(kind, ids)

    def _woken(self, kind: Kind, ids: Iterable[str]) -> Iterator[Change]:
        for id_ in ids:
            for change in self._waiters.pop((kind, id_), ()):
                if change.state not in _WAITING or change.awaited != (kind, id_):
                    continue
                if change.state is State.BLOCKED:
                    self.blocked -= 1
                change.awaited = None
                if change.standing():
                    yield change
