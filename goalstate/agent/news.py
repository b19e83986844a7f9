"""What a host's next report has to tell."""

from __future__ import annotations

from goalstate.gs.streams import StreamId


class News:
    """Of one host, since `told`."""

    __slots__ = ("dropped", "exceptions", "revoked", "streams")

    def __init__(self) -> None:
        #: Streams of which more is applied, or something else, and those that are followed no more.
        self.streams: dict[StreamId, None] = {}
        self.dropped: dict[StreamId, None] = {}
        #: Exceptions came, went or changed.
        self.exceptions = False
        #: On one of the streams, a permission was taken away.
        self.revoked = False

    def __bool__(self) -> bool:
        """Is there anything to tell?"""
        return bool(self.streams or self.dropped or self.exceptions)

    def told(self) -> None:
        """All of it was."""
        self.streams.clear()
        self.dropped.clear()
        self.exceptions = False
        self.revoked = False
