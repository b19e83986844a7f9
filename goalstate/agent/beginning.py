"""Where the reading of a stream begins: with its newest checkpoint, or with what its log still has.

Pure: whoever reads looks up the newest message of the log, and asks here what to do with it.

A checkpoint says where its stream's log is to be read on, and positions are of one topic. So only
the log on the stream's own topic leads to a checkpoint, not a replica of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from goalstate.agent.actions import Follow
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


def beginning(follow: Follow, newest: Mapping[str, str] | None, topics: Topics) -> Beginning:
    """What to read first, where the newest message of the log has the properties `newest`.

    None: the log has no message, or it does not matter (`is_sought`). A message that is not of the
    stream says nothing of a checkpoint.
    """
    if newest is not None and is_sought(follow, topics):
        try:
            envelope = envelopes.from_properties(newest)
        except EnvelopeError:
            envelope = None
        if (
            envelope is not None
            and envelope.checkpoint is not None
            and envelope.stream == follow.stream
        ):
            return Beginning(topics.checkpoints_of(follow.stream), envelope.checkpoint.begin)
    return Beginning(follow.topic, follow.start)
