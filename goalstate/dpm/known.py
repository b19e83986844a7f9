"""What a publisher knows, as it is now: recovery, and following another one, make it anew."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from goalstate.dpm.core import Core
from goalstate.dpm.recovery import Changes, Replay
from goalstate.gs.streams import ORIGIN, Mark, StreamId


class Known:
    """A core, and those changes that can be waited for by their number. Whoever asks later may be
    told of another core."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.changes: Changes = OrderedDict()
        #: To be held while the core is changed, or looked at over more than one turn of the loop.
        self.lock = asyncio.Lock()

    def become(self, replay: Replay) -> None:
        self.core, self.changes = replay.core, replay.changes

    def waits_for(self, host: str, stream: StreamId) -> bool:
        return self.core.waits_for(host, stream)

    def digest_at(self, host: str, stream: StreamId, mark: Mark) -> int | None:
        # While it is locked, another thread may be half way.
        if self.lock.locked():
            return None
        return self.core.inventory.digest_at(host, stream, mark)

    def head(self, stream: StreamId) -> Mark:
        state = self.core.streams.get(stream)
        return state.mark if state is not None else ORIGIN
