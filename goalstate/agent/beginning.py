"""Where the reading of a stream begins: with its newest checkpoint, or with what its log still has.

Pure: whoever reads looks up the newest message of the log, and asks here what to do with it.

A checkpoint says where its stream's log is to be read on, and positions are of one topic. So only
the log on the stream's own topic leads to a checkpoint, not a replica of it.
"""

from __future__ import annotations

from typing import NamedTuple

from goalstate.agent.actions import Follow
from goalstate.bus.base import Message
from goalstate.gs import envelope as envelopes
from goalstate.gs.errors import EnvelopeError
from goalstate.gs.topics import Topics


class Beginning(NamedTuple):
    """A topic, and the position after which it is read; empty: from the first message it has."""

    topic: str
    start: bytes

    def is_checkpoint_of(self, follow: Follow) -> bool:
        """Is it a checkpoint, and not the log that is to be followed?"""
        return self.topic != follow.topic


def is_sought(follow: Follow, topics: Topics) -> bool:
    """Does where to begin depend on the newest message of the log?"""
    return not follow.start and follow.topic == topics.of_stream(follow.stream)


def beginning(follow: Follow, newest: Message | None, topics: Topics) -> Beginning:
    """What to read first, where `newest` is the newest message of the log.

    None: the log has no message, or it does not matter (`is_sought`). A message that is not of the
    stream says nothing of a checkpoint. A log that has nothing new is read on from its end: a
    stream that comes back from sessions goes on there.
    """
    if newest is not None and is_sought(follow, topics):
        try:
            envelope = envelopes.from_properties(newest.properties)
        except EnvelopeError:
            envelope = None
        if envelope is not None and envelope.stream == follow.stream:
            if envelope.mark <= follow.known:
                return Beginning(follow.topic, newest.position)
            if envelope.checkpoint is not None:
                topic = topics.checkpoints_of(follow.stream)
                return Beginning(topic, envelope.checkpoint.begin)
    return Beginning(follow.topic, follow.start)
