"""What a fleet sees of the changes of a run: when its hosts got and applied each. Pure.

    HostCore ──received, applied──▶ Witness ──▶ latencies of hosts (Recorder)
                                        └──▶ one Seen for each change, when it is settled

Laws:

1.  A change is due on the hosts that follow a stream when the first of them gets a message of it;
    it is *settled* when all of these have applied it, or stopped following.
2.  A host that moved beyond a change without its message (by a checkpoint) has it from then on.
3.  What is not settled at the end was lost: the change is named, with the hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

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
    """What one change put on one stream: of several messages, up to the last of them."""

    __slots__ = ("first_ns", "hosts", "last_ns", "phase", "published_ns", "stamp", "waiting")

    def __init__(self, stamp: Stamp, phase: int, published_ns: int, waiting: set[str]) -> None:
        self.stamp = stamp
        self.phase = phase
        self.published_ns = published_ns
        self.waiting = waiting
        self.hosts = 0
        self.first_ns = self.last_ns = 0


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
        #: The newest message of a change of the run, of each stream.
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
            latency_ns = max(0, now - self._ahead_ns - message.stamp.intended_ns)
            self._recorder.record(message.phase, Stage.RECEIVED, latency_ns)

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
                latency_ns = max(0, now - message.stamp.intended_ns)
                self._recorder.record(message.phase, Stage.APPLIED, latency_ns)
                of_host = self.hosts.setdefault(host, [0, 0])
                of_host[0] += latency_ns
                of_host[1] += 1
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

    def take(self) -> list[Seen]:
        """What was settled since the last time."""
        taken, self._settled = self._settled, []
        return taken

    def unsettled(self) -> Iterator[tuple[StreamId, Seen]]:
        for stream, messages in self._open.items():
            for message in messages.values():
                yield stream, self._seen(message, len(message.waiting))

    @property
    def under_way(self) -> int:
        """Changes on streams that are not settled."""
        return sum(map(len, self._open.values()))

    def _begin(self, host: str, stream: StreamId, envelope: Envelope) -> None:
        """The first host gets a message; of a change of a measured phase, others are to follow."""
        stamp = self._stamps.read(envelope.traceparent)
        phase = self._phase(stamp) if stamp is not None else None
        if stamp is None or phase is None:
            return
        self._newest[stream] = envelope.mark
        waiting = self._followers.get(stream, set()) | {host}
        message = _Message(stamp, phase, envelope.published_ns, waiting)
        self._open.setdefault(stream, {})[envelope.mark] = message

    def _settle(self, message: _Message) -> None:
        if message.hosts:
            self._settled.append(self._seen(message, 0))

    def _seen(self, message: _Message, missing: int) -> Seen:
        published_ns = message.published_ns
        return Seen(
            message.stamp, published_ns, message.first_ns, message.last_ns, message.hosts, missing
        )

    def _phase(self, stamp: Stamp) -> int | None:
        """The measured phase that a change is of."""
        for place, (begin_ns, end_ns, measured) in enumerate(self.phases):
            if begin_ns <= stamp.intended_ns < end_ns:
                return place if measured else None
        return None
