"""A former publisher: it crashed, knows nothing of its successor, and still publishes something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from goalstate.bus.errors import BrokerUnreachable
from goalstate.bus.memory import MemoryBroker
from goalstate.dpm.core import Core
from goalstate.gs import envelope as envelopes
from goalstate.gs.errors import IntentRejected
from goalstate.gs.streams import Channel, Mark, StreamId, StreamKind
from goalstate.gs.topics import Topics
from goalstate.scale.random_intents import IntentSource
from goalstate.scale.simulate.checks import Streams
from goalstate.scale.simulate.hosts import Agent


class Place(NamedTuple):
    """Where it publishes."""

    broker: MemoryBroker
    topics: Topics
    streams: Streams
    agents: Iterable[Agent]
    now_ns: int


def publish_stale(
    former: Core, newest: Core, source: IntentSource, place: Place
) -> list[tuple[StreamId, Mark]]:
    """Accept an intent in `former` and publish what came of it, where `newest` serves. Gives what
    was said.

    Only of what the new one says more can anybody know that this is void. To all VPCs something
    more is said in the end, to racks where they have ports. On sessions nobody would hear it.
    """
    for _ in range(10):
        try:
            changes = former.plan(source.intent())
        except IntentRejected:
            continue
        if changes:
            break
    else:
        return []
    said = []
    for publication in former.accept(changes, place.now_ns).publications:
        envelope = publication.envelope
        stream, mark = envelope.stream, envelope.mark
        head = newest.streams.get(stream)
        vpc = stream.kind is StreamKind.VPC
        if (
            publication.channel is Channel.SESSION
            or head is None
            or not (vpc or _all_know_better(stream, mark, head.mark, place.agents))
        ):
            continue
        place.streams.foreign.add((stream, mark, envelope.digest))
        try:
            place.broker.publish(
                place.topics.of_stream(stream),
                publication.payload,
                properties=envelopes.to_properties(envelope),
            )
        except BrokerUnreachable:
            continue
        said.append((stream, mark))
    return said


def _all_know_better(stream: StreamId, said: Mark, head: Mark, agents: Iterable[Agent]) -> bool:
    """Has everybody who follows a stream heard of a later epoch on it?"""
    followed = [agent.core.streams.get(stream) for agent in agents]
    marks = [head, *(one.live.mark for one in followed if one is not None)]
    return min(marks).epoch > said.epoch
