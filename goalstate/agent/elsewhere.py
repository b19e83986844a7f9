"""What other streams of a host have of the ids of a change. Pure.

An id may go from one VPC to another. Who lags in the older one, or begins to follow it, has the id
on two streams for a while, and the data plane can hold it once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from goalstate.agent.changes import Change, State
from goalstate.agent.stream import Stream
from goalstate.gs.resources import Resource

#: As a revision: lower than all.
_NEVER = -1


class Elsewhere(NamedTuple):
    """The newest that another stream has of an id, and wants there."""

    #: To compare with: what is pushed has revisions of its own, and counts as older than all.
    revision: int
    resource: Resource
    #: It is in the program that is put together, or under way; else it is applied.
    flying: bool


def elsewhere(change: Change, streams: Iterable[Stream]) -> dict[str, Elsewhere]:
    """Of each id what another stream applied, or is about to; nothing of what it only waits for."""
    found: dict[str, Elsewhere] = {}
    stream, kind = change.stream, change.kind
    for other in streams:
        held = other.live.held.get(kind)
        if not held or other is stream or held.keys().isdisjoint(change.ids):
            continue
        comparable = not (stream.id.kind.for_hosts or other.id.kind.for_hosts)
        unsettled = other.unsettled.get(kind, {})
        for id_ in change.ids:
            there = held.get(id_)
            waiting = unsettled.get(id_) if there is not None else None
            flying = waiting is not None and waiting.state is State.FLYING
            if waiting is not None and not flying:
                there = waiting.before.get(id_)
            if there is None:
                continue
            revision = there.revision if comparable else _NEVER
            if id_ not in found or found[id_].revision < revision:
                found[id_] = Elsewhere(revision, there, flying)
    return found
