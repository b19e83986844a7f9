"""Takes each publication to the channel that its stream is on.

The marks of a stream go on whatever carries them, and its writer is the one whom the intent log
names: so a switch needs no epoch of its own. What a switch needs is done here, when its first
message (`Publication.begins`) comes by; all before it was given to the other channel.
"""

from __future__ import annotations

from collections.abc import Callable

from goalstate.dpm.inventory import Publication
from goalstate.dpm.publisher import BusTransport
from goalstate.dpm.sessions import Sessions
from goalstate.gs.envelope import Envelope
from goalstate.gs.streams import Channel, StreamId


class Router:
    """A `StreamTransport` over both channels."""

    def __init__(
        self, topics: BusTransport, sessions: Sessions, came_back: Callable[[StreamId], None]
    ) -> None:
        """`came_back` is called when a stream goes on on its topic after it was on sessions."""
        self._topics = topics
        self._sessions = sessions
        self._came_back = came_back

    def send(self, publication: Publication, confirmed: Callable[[], None]) -> None:
        stream = publication.envelope.stream
        if publication.begins:
            # What the topic has is not continued, now or when the stream comes back.
            self._topics.begin_again(stream)
        if publication.channel is Channel.SESSION:
            self._sessions.send(publication, confirmed)
            return
        if publication.begins:
            self._sessions.leave(stream)
        self._topics.send(publication, confirmed)
        if publication.begins:
            self._came_back(stream)

    def remind(self, newest: Envelope) -> None:
        self._topics.remind(newest)

    async def drain(self) -> None:
        await self._topics.drain()

    async def close(self) -> None:
        await self._sessions.close()
        await self._topics.close()
