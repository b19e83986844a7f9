"""The session of one agent process with a publisher, in one thread and without a connection.

Nothing on it is lost, repeated or reordered while it holds, and all that is under way is when it is
cut: that is what gRPC promises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from random import Random
from typing import Any

from goalstate.agent.follows import Follows
from goalstate.dpm.sessions import Session, Sessions
from goalstate.gs.pb.goalstate.session.v1 import session_pb2
from goalstate.gs.streams import Mark, StreamId


class Link:
    """`follows` is what the process asks for."""

    def __init__(self) -> None:
        self.follows = Follows()
        self._sessions: Sessions | None = None
        self._session: Session | None = None
        self._asked: deque[session_pb2.Request] = deque()

    def connect(self, sessions: Sessions) -> None:
        """Begin anew, with this publisher."""
        self.cut()
        self._sessions, self._session = sessions, sessions.begin()
        self.follows.connected(self._asked.append)

    def cut(self) -> None:
        """All that is under way is lost."""
        self.follows.disconnected()
        self._asked.clear()
        if self._sessions is not None and self._session is not None:
            self._sessions.end(self._session)
        self._sessions = self._session = None

    @property
    def idle(self) -> bool:
        """Is nothing under way?"""
        return not self._asked and (self._session is None or not self._session.size)

    def step(self, random: Random) -> None:
        """Let one request arrive, or one message."""
        sessions, session = self._sessions, self._session
        if sessions is None or session is None:
            return
        if self._asked and (not session.size or random.random() < 0.5):
            request = self._asked.popleft()
            if request.HasField("follow"):
                asked = request.follow
                mark = Mark(asked.epoch, asked.sequence)
                at_once(sessions.follow(session, asked.id, StreamId.parse(asked.stream), mark))
            else:
                sessions.unfollow(session, request.unfollow.id)
            return
        carried = session.pop()
        if carried is not None:
            self.follows.take(carried)


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run to its end what has nothing to wait for. Raises RuntimeError if it has."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise RuntimeError("it waits, and there is nobody who would wake it")
