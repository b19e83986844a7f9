"""When a host that has something to go on with reads a stream again.

What makes one host do so may make all do so that follow the stream, who may be as many as it has
resources, in many processes. So each waits for a moment of its own, out of a time that grows with
what there is to be read. A host that has nothing, or little, does not wait.

The moment is drawn by what the host and its state are, so that a run can be repeated.
"""

from __future__ import annotations

from goalstate.agent.stream import Stream
from goalstate.gs import digest as digests

#: Nanoseconds for each resource that is held; at the most; and what is less than the least is none.
SPREAD_NS = 50_000
SPREAD_MAX_NS = 10_000_000_000
SPREAD_LEAST_NS = 50_000_000


def moment(host: str, stream: Stream) -> int:
    """Nanoseconds from now on."""
    span = min(stream.live.size() * SPREAD_NS, SPREAD_MAX_NS)
    if span < SPREAD_LEAST_NS:
        return 0
    drawn = f"{host} {stream.id} {stream.live.mark}".encode()
    return span * int(digests.checksum(drawn), 16) >> 64
