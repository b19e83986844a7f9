"""Building a checkpoint: what is on a stream, slice by slice, as messages. Pure.

The envelope's text says what a checkpoint is, and why it may be built while the stream goes on.
How many messages it makes is in each of them, so it is held until it is complete.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from goalstate.dpm.core import Core
from goalstate.dpm.inventory import Publication
from goalstate.gs import digest as digests
from goalstate.gs import packing
from goalstate.gs.envelope import CheckpointPlace, Envelope, MessageKind
from goalstate.gs.packing import Addressed
from goalstate.gs.streams import Mark, StreamId
from goalstate.gs.versions import FORMAT_V2

#: So many resources are built at a time: some 0.01 s of work.
SLICE = 500


class _Chunk(NamedTuple):
    payload: bytes
    #: Of the stream when it was built.
    digest: str


class Building:
    """A checkpoint of a stream, being built. Between two steps the core may change."""

    def __init__(self, core: Core, stream: StreamId) -> None:
        state = core.streams[stream]
        self.done = False
        #: The stream's mark when it was begun.
        self.begun = state.mark
        #: Once it is done: the stream's mark when the last of it was built, its digest, and the
        #: newest change.
        self.until = state.mark
        self.digest = ""
        self.change = 0
        self._core = core
        self._stream = stream
        self._keys = core.on_stream(stream)
        self._chunks: list[_Chunk] = []
        self._rest: list[Addressed] = []

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(len(payload) for payload, _ in self._chunks)

    def step(self) -> None:
        """Build the next slice. Raises RuntimeError, see `Inventory.rebuild`."""
        core = self._core
        state = core.streams[self._stream]
        part = list(islice(self._keys, SLICE))
        cut = packing.chunk(self._rest + core.inventory.rebuild(self._stream, part))
        # The last is filled up by the next slice.
        self._rest = cut.pop() if cut and part else []
        if not part and not cut and not self._chunks:
            cut = [[]]
        self.digest = digests.to_hex(state.digest)
        for items in cut:
            hosts = {host: core.inventory.host_digest(host) for host, _ in items if host}
            self._chunks.append(_Chunk(packing.encode(items, hosts), self.digest))
        if not part:
            self.done, self.until, self.change = True, state.mark, core.change

    def publications(self, mark: Mark, place: CheckpointPlace) -> list[Publication]:
        """The messages, once it is done; the log is to be read on after `mark`, one that was the
        stream's when this was begun or before, which is at `place`."""
        envelope = envelope_at(self._stream, mark, self.digest, self.change)
        publications = [
            Publication(
                envelope._replace(
                    chunk=number,
                    chunks=len(self._chunks),
                    digest=digest,
                    checksum=digests.checksum(payload),
                ),
                payload,
            )
            for number, (payload, digest) in enumerate(self._chunks, 1)
        ]
        end = in_sync(envelope)
        closing = end.envelope._replace(checkpoint=place, until=self.until)
        return [*publications, Publication(closing, end.payload)]


def envelope_at(stream: StreamId, mark: Mark, digest: str, change: int) -> Envelope:
    """Of a checkpoint's only message, but for its content and the time."""
    return Envelope(
        schema=FORMAT_V2,
        stream=stream,
        mark=mark,
        kind=MessageKind.CHECKPOINT,
        chunk=1,
        chunks=1,
        change=change,
        digest=digest,
        checksum="",
        published_ns=0,
    )


def newest_of(core: Core, stream: StreamId) -> Envelope:
    """Of the message that brought a stream to where it is, but for its content and the time."""
    state = core.streams[stream]
    return envelope_at(stream, state.mark, digests.to_hex(state.digest), core.change)


def in_sync(newest: Envelope) -> Publication:
    """A message that changes nothing, to follow the newest one of a log."""
    payload = packing.encode([])
    envelope = newest._replace(
        kind=MessageKind.IN_SYNC,
        chunk=1,
        chunks=1,
        checksum=digests.checksum(payload),
        after=None,
        traceparent="",
    )
    return Publication(envelope, payload)
