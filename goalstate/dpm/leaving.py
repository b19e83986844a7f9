"""Hosts that leave streams by changes that the log may not have. Pure.

A host that is to leave a stream is not waited for there any more. But a change that fails on its
way into the log never was: recovery forgets it, and the host stays. So until the log has a change,
the hosts that leave by it count as followers, or a wait for an earlier change would end without
them.

May be asked while another thread adds to it.
"""

from __future__ import annotations

from collections import deque

from goalstate.gs.streams import StreamId


class Leaving:
    def __init__(self) -> None:
        #: Of each change by which a host leaves, in the order of their numbers.
        self._changes: deque[tuple[int, set[tuple[str, StreamId]]]] = deque()

    def add(self, change: int, host: str, stream: StreamId) -> None:
        """To be called before the host is taken off the stream."""
        if not self._changes or self._changes[-1][0] != change:
            self._changes.append((change, set()))
        self._changes[-1][1].add((host, stream))

    def logged(self, change: int) -> None:
        """The log has all changes up to this one."""
        while self._changes and self._changes[0][0] <= change:
            self._changes.popleft()

    def leaves(self, host: str, stream: StreamId) -> bool:
        # A copy of a deque is made at once, whatever other threads do.
        return bool(self._changes) and any((host, stream) in one for _, one in list(self._changes))

    def of(self, stream: StreamId) -> set[str]:
        """Those that leave a stream. Not to be asked while another thread adds to it."""
        return {host for _, one in self._changes for host, left in one if left == stream}
