"""What a fleet sees of the changes of a run: when its hosts got and applied each. Pure.

    HostCore ──received, applied──▶ Witness ──▶ latencies of hosts (Recorder)
                                        └──▶ one Seen for each change, when it is settled

Laws:

1.  A change is due on the hosts that follow a stream when the first of them gets a message of it;
    it is *settled* when all of these have applied it, or stopped following.
2.  A host that moved beyond a change without its message (by a checkpoint) has it from then on.
3.  What is not settled at the end was lost: the change is named, with the hosts.
4.  A message may be of several changes: each is due with it, and has its own latencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from goalstate.gs.envelope import Envelope
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.scale.load.recording import Recorder
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.stamps import Stamp, Stamps


class Seen(NamedTuple):
    """A change, as one fleet has seen it; times in ns since the Unix epoch, by the coordinator's
    clock. Of several streams, and of several fleets, it is put together by `merged`."""

    stamp: Stamp
    #: The first message of it was handed to the client of the broker.
    published_ns: int
    #: The first host, and the last one, had applied it.
    first_ns: int
    last_ns: int
    #: Deliveries: hosts that have it, of each stream.
    hosts: int
    #: Hosts that do not have it, though they follow the stream.
    missing: int = 0


def merged(one: Seen, other: Seen) -> Seen:
    """What two have seen of the same change. A time of 0 is none."""
    return Seen(
        one.stamp,
        _first(one.published_ns, other.published_ns),
        _first(one.first_ns, other.first_ns),
        max(one.last_ns, other.last_ns),
        one.hosts + other.hosts,
        one.missing + other.missing,
    )


def _first(one: int, other: int) -> int:
    return min(one, other) if one and other else one or other


class _Message:
    """What changes put on one stream together: of several messages, up to the last of them."""

    __slots__ = (
        *("first_ns", "hosts", "intended_ns", "last_ns", "published_ns", "stamps", "times"),
        "waiting",
    )

    def __init__(
        self, stamps: dict[int, list[Stamp]], published_ns: int, waiting: set[str]
    ) -> None:
        #: Of the changes, by phase.
        self.stamps = stamps
        #: Their intended starts, added up.
        self.intended_ns = sum(one.intended_ns for of in stamps.values() for one in of)
        self.published_ns = published_ns
        self.waiting = waiting
        self.hosts = 0
        self.first_ns = self.last_ns = 0
        #: When hosts got to a stage, as far as it is not recorded yet.
        self.times: dict[Stage, list[int]] = {Stage.RECEIVED: [], Stage.APPLIED: []}

    @property
    def changes(self) -> int:
        return sum(map(len, self.stamps.values()))


class Witness:
    """Of all hosts of a process."""

    def __init__(
        self,
        stamps: Stamps,
        recorder: Recorder,
        *,
        ahead_ns: int = 0,
    ) -> None:
        """`ahead_ns`: our clock minus the coordinator's."""
        #: Begin and end of each (ns, by the coordinator's clock), and whether it is measured: what
        #: was to start in none of them is not looked at.
        self.phases: list[tuple[int, int, bool]] = []
        self._stamps = stamps
        self._recorder = recorder
        self._ahead_ns = ahead_ns
        #: Hosts that have something of a stream.
        self._followers: dict[StreamId, set[str]] = {}
        #: The newest message of each stream that any host got.
        self._newest: dict[StreamId, Mark] = {}
        #: In the order of their marks.
        self._open: dict[StreamId, dict[Mark, _Message]] = {}
        self._settled: list[Seen] = []
        #: By host: sum of latencies (ns), and how many.
        self.hosts: dict[str, list[int]] = {}
        #: Is told of each host that gets on, where somebody wants to know.
        self.moved: Callable[[str], None] | None = None

    # --- called by the hosts' cores ---

    def received(self, host: str, stream: StreamId, envelope: Envelope, now: int) -> None:
        """A host took the next message of a stream."""
        if envelope.chunk != envelope.chunks or not envelope.traceparent:
            return
        mark = envelope.mark
        if mark > self._newest.get(stream, ORIGIN):
            self._begin(host, stream, envelope)
        message = self._open.get(stream, {}).get(mark)
        # A host that begins to follow may read what all others have had for long.
        if message is not None and host in message.waiting:
            message.times[Stage.RECEIVED].append(now - self._ahead_ns)

    def applied(self, host: str, stream: StreamId, mark: Mark, now: int) -> None:
        """All of a stream up to this mark is applied on a host."""
        followers = self._followers.get(stream)
        if followers is None:
            followers = self._followers[stream] = set()
        followers.add(host)
        if self.moved is not None:
            self.moved(host)
        messages = self._open.get(stream)
        if not messages:
            return
        now -= self._ahead_ns
        done = []
        for at, message in messages.items():
            if at > mark:
                break
            if host in message.waiting:
                message.waiting.discard(host)
                message.hosts += 1
                message.first_ns = message.first_ns or now
                message.last_ns = now
                message.times[Stage.APPLIED].append(now)
                of_host = self.hosts.setdefault(host, [0, 0])
                of_host[0] += max(0, now * message.changes - message.intended_ns)
                of_host[1] += message.changes
                if not message.waiting:
                    done.append(at)
        for at in done:
            self._settle(messages.pop(at))

    def left(self, host: str, stream: StreamId) -> None:
        """A host follows a stream no longer."""
        self._followers.get(stream, set()).discard(host)
        messages = self._open.get(stream, {})
        for at, message in list(messages.items()):
            message.waiting.discard(host)
            if not message.waiting:
                self._settle(messages.pop(at))

    # --- called by the worker ---

    def record(self) -> None:
        """Have the latencies recorded that are not yet."""
        for messages in self._open.values():
            for message in messages.values():
                self._record(message)

    def take(self) -> list[Seen]:
        """What was settled since the last time."""
        taken, self._settled = self._settled, []
        return taken

    def unsettled(self) -> Iterator[tuple[StreamId, Seen]]:
        for stream, messages in self._open.items():
            for message in messages.values():
                for seen in self._seen(message, len(message.waiting)):
                    yield stream, seen

    @property
    def under_way(self) -> int:
        """Changes on streams that are not settled."""
        return sum(one.changes for messages in self._open.values() for one in messages.values())

    def _begin(self, host: str, stream: StreamId, envelope: Envelope) -> None:
        """The first host gets a message; of changes of measured phases, others are to follow."""
        self._newest[stream] = envelope.mark
        stamps: dict[int, list[Stamp]] = {}
        for trace in envelope.traceparent.split(","):
            stamp = self._stamps.read(trace)
            phase = self._phase(stamp) if stamp is not None else None
            if stamp is not None and phase is not None:
                stamps.setdefault(phase, []).append(stamp)
        if not stamps:
            return
        waiting = self._followers.get(stream, set()) | {host}
        message = _Message(stamps, envelope.published_ns, waiting)
        self._open.setdefault(stream, {})[envelope.mark] = message

    def _settle(self, message: _Message) -> None:
        self._record(message)
        if message.hosts:
            self._settled += self._seen(message, 0)

    def _record(self, message: _Message) -> None:
        """The latency of each change on each host."""
        for stage, times in message.times.items():
            if not times:
                continue
            for phase, stamps in message.stamps.items():
                intended_ns = np.array([stamp.intended_ns for stamp in stamps])
                latencies_ns = np.maximum(np.subtract.outer(np.array(times), intended_ns), 0)
                self._recorder.record_all(phase, stage, latencies_ns)
            times.clear()

    def _seen(self, message: _Message, missing: int) -> list[Seen]:
        return [
            Seen(
                stamp,
                message.published_ns,
                message.first_ns,
                message.last_ns,
                message.hosts,
                missing,
            )
            for stamps in message.stamps.values()
            for stamp in stamps
        ]

    def _phase(self, stamp: Stamp) -> int | None:
        """The measured phase that a change is of."""
        for place, (begin_ns, end_ns, measured) in enumerate(self.phases):
            if begin_ns <= stamp.intended_ns < end_ns:
                return place if measured else None
        return None
