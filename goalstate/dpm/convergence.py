"""Convergence: which hosts have applied what. Pure: no IO, no clock.

Laws:

1.  A host has applied a change when, on every stream where the change concerns it, its reported
    watermark is at the change's mark or beyond, and it reports no exception (refused or pending
    resource) of that stream up to that mark.
2.  A wait is never early: nothing counts but what a host itself reported. A host that never
    reported is a straggler. A host whose lease expired is left out of the quorum and listed; when
    that leaves no host at all, nothing has converged.
3.  A host that no longer follows a stream is not waited for on it.
4.  What a host holds of a stream at its head is compared with what was published, by the digest in
    each of its reports. A difference is an exception as those that it reports, until it is gone.
    A host that says that it is beyond the head has applied nothing that counts: it holds what
    somebody else published, or its state is broken.
5.  A report costs the work of its host and of the waits that it is in, not of all hosts.
6.  A host that is behind the head of a stream that it follows is noted (`reminders`): what it lost
    may have been the last. One that is there, with exceptions, has nothing to be reminded of.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from goalstate.dpm.reminders import Reminders
from goalstate.gs import digest as digests
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import alone, rows
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Mark, StreamId

#: Hosts that have something when they are at a mark of a stream.
Concern = tuple[StreamId, Mark, frozenset[str]]

#: Seconds; a host says how long it counts as live, within reason.
MAX_LEASE_S = 30 * 24 * 3600.0


_ENDLESS = Mark(1 << 64, 0)
#: A revocation that was not.
_NEVER = (ORIGIN, 0, 0)


class Lease(Enum):
    LIVE = "live"
    EXPIRED = "expired"
    NEVER_REPORTED = "never reported"


class Why(Enum):
    BEHIND = "behind"
    NEVER_REPORTED = "never reported"
    REFUSED = "refused"
    PENDING = "pending"
    RETRYING = "retrying"
    #: What a host holds of a stream is not what was published.
    DRIFT = "drift"


_WHY = {
    agent_pb2.ResourceException.PENDING: Why.PENDING,
    agent_pb2.ResourceException.RETRYING: Why.RETRYING,
}


class ExceptionReport(NamedTuple):
    """A resource that a host could not apply."""

    stream: StreamId
    mark: Mark
    why: Why
    resource: str
    reason: str
    #: Number of the kind and id; no id where it is of the stream or a message of it.
    kind: int = 0
    id: str = ""
    revision: int = 0
    attempts: int = 0
    #: How many it stands for.
    stands_for: int = 1


class Straggler(NamedTuple):
    host: str
    why: Why
    stream: StreamId
    applied: Mark
    wanted: Mark
    resource: str = ""
    reason: str = ""


class Progress(NamedTuple):
    """How far the hosts concerned by a wait are."""

    converged: bool
    hosts: int  # concerned, without the expired ones
    applied: int
    needed: int  # by the quorum
    stragglers: list[Straggler]
    expired: list[str]
    #: Per host that applied it after acceptance: nanoseconds from acceptance to application.
    latencies_ns: list[int]
    same_clock: bool
    #: Of a change that takes a permission away: the same, to when that was done.
    revocations_ns: list[int]


class HostView:
    """What one host last reported."""

    __slots__ = (
        "applied",
        "drifted",
        "exceptions",
        "formats",
        "incarnation",
        "inspection_address",
        "lease_until_ns",
        "number",
        "proxied",
        "reported_ns",
        "revoked",
        "same_clock",
    )

    def __init__(self) -> None:
        self.incarnation = -1
        self.number = -1
        self.lease_until_ns = 0
        self.reported_ns = 0
        self.inspection_address = ""
        self.same_clock = True
        #: Watermark of each stream, and when it got there (nanoseconds since the Unix epoch).
        self.applied: dict[StreamId, tuple[Mark, int]] = {}
        #: Message of the newest revocation of each stream, and when the last one was applied: as
        #: `applied` has it, and as the host's clock says.
        self.revoked: dict[StreamId, tuple[Mark, int, int]] = {}
        #: All of them; those of `drifted` are the last.
        self.exceptions: list[ExceptionReport] = []
        #: Streams of which it holds something else than it should, and the digest that says so.
        self.drifted: dict[StreamId, tuple[bytes, ExceptionReport]] = {}
        #: Format versions that its agent reads, and whether a proxy pushes to that and reports.
        self.formats: tuple[int, ...] = ()
        self.proxied = False

    def renew(
        self, number: int, now_ns: int, lease_ns: int, inspection_address: str, same_clock: bool
    ) -> None:
        """A report of that number came, whatever it told. Times by a clock that nobody sets."""
        self.number = number
        self.reported_ns = now_ns
        self.lease_until_ns = now_ns + lease_ns
        self.inspection_address = inspection_address
        self.same_clock = same_clock


class Wait:
    """The hosts concerned by something, and which of them have it."""

    def __init__(
        self,
        requirements: Iterable[Concern],
        accepted_ns: int,
        quorum: float,
        revocations: Mapping[StreamId, Mark],
    ) -> None:
        self.accepted_ns = accepted_ns
        self.revocations = revocations
        self.quorum = quorum
        #: What each host that is not there yet must reach.
        self.missing: dict[str, list[tuple[StreamId, Mark]]] = {}
        for stream, mark, hosts in requirements:
            for host in hosts:
                self.missing.setdefault(host, []).append((stream, mark))
        self.concerned = len(self.missing)
        self.latencies_ns: list[int] = []
        self.revocations_ns: list[int] = []
        self.same_clock = True

    @property
    def may_have_converged(self) -> bool:
        """Have enough hosts applied it, even if no lease has expired? Cheap; never wrongly true."""
        return self.concerned - len(self.missing) >= _needed(self.quorum, self.concerned)


def _lease_ns(lease_s: float) -> int:
    """Raises ValueError where it is none."""
    if not 0 <= lease_s <= MAX_LEASE_S:
        raise ValueError(f"a lease of {lease_s:g} s is none")
    return int(lease_s * 1e9)


def _needed(quorum: float, hosts: int) -> int:
    # A share of a host is the whole host; the correction is for 0.1 * 30 being above 3.
    return max(math.ceil(quorum * hosts - 1e-9), min(hosts, 1))


class Convergence:
    """Reports of hosts in, progress of waits out."""

    def __init__(
        self,
        follows: Callable[[str, StreamId], bool],
        digest_at: Callable[[str, StreamId, Mark], int | None] = lambda host, stream, mark: None,
        head: Callable[[StreamId], Mark] = lambda stream: _ENDLESS,
    ) -> None:
        """`digest_at`: of what a host is to hold of a stream at a mark, where that is known.
        `head`: the mark that a stream is at."""
        self.hosts: dict[str, HostView] = {}
        self.reminders = Reminders()
        self._follows = follows
        self._digest_at = digest_at
        self._head = head
        self._waits: dict[str, set[Wait]] = {}

    # --- reports ---

    def report(
        self,
        report: agent_pb2.HostReport,
        now_ns: int,
        same_clock: bool = True,
        steady_ns: int | None = None,
    ) -> set[Wait]:
        """Take one host's report in; returns the waits that it moved.

        `now_ns`: when it was received; `steady_ns`: the same by a clock that nobody sets, by which
        leases run (None: `now_ns` is by such a one). `same_clock`: the host's times are by the
        same clock as ours; if not, the time of receipt stands for that of application, which can
        only make a latency longer. Raises ValueError when a stream's name, a kind or the lease is
        none.
        """
        steady_ns = now_ns if steady_ns is None else steady_ns
        view = self.hosts.get(report.host) or HostView()
        # Of two agents that play one host the newer is believed, as long as it lives.
        older = report.incarnation < view.incarnation and steady_ns > view.lease_until_ns
        if not older and (report.incarnation, report.number) <= (view.incarnation, view.number):
            return set()
        streams = [
            (
                StreamId.parse(s.stream),
                Mark(s.epoch, s.sequence),
                s.applied_unix_ns if same_clock else now_ns,
            )
            for s in report.streams
        ]
        exceptions = [
            ExceptionReport(
                StreamId.parse(e.stream),
                Mark(e.epoch, e.sequence),
                _WHY.get(e.status, Why.REFUSED),
                f"{Kind(e.type).name.lower()}/{e.id}" if e.id else "message",
                e.reason,
                e.type,
                e.id,
                e.revision,
                e.attempts,
                e.stands_for or 1,
            )
            for e in report.exceptions
        ]
        dropped = [StreamId.parse(name) for name in report.dropped]
        lease_ns = _lease_ns(report.lease_s)
        self.hosts[report.host] = view
        lost = report.number != view.number + 1  # and with it, perhaps, that a stream was dropped
        if report.full or lost or report.incarnation != view.incarnation:
            view.applied, view.drifted = {}, {}
        if report.full:
            view.formats, view.proxied = tuple(report.formats), report.proxied
        if report.incarnation != view.incarnation:
            view.revoked = {}
        for stream in dropped:
            view.applied.pop(stream, None)
            view.revoked.pop(stream, None)
            view.drifted.pop(stream, None)
        for (stream, mark, applied_ns), told in zip(streams, report.streams, strict=True):
            view.applied[stream] = (mark, applied_ns)
            if told.revoked_unix_ns:
                revoked = Mark(told.revoked_epoch, told.revoked_sequence)
                when = told.revoked_unix_ns if same_clock else now_ns
                if view.revoked.get(stream, _NEVER)[2] != told.revoked_unix_ns:
                    view.revoked[stream] = (revoked, when, told.revoked_unix_ns)
            self._compare(report.host, view, stream, mark, told.digest)
            head = self._head(stream)
            if mark < head and self._follows(report.host, stream):
                self.reminders.lags(stream, head, steady_ns)
        view.exceptions = exceptions + [found for _, found in view.drifted.values()]
        view.incarnation = report.incarnation
        view.renew(report.number, steady_ns, lease_ns, report.inspection_address, same_clock)
        return self._settled(report.host)

    def advance(
        self,
        advance: agent_pb2.Advance,
        now_ns: int,
        same_clock: bool = True,
        steady_ns: int | None = None,
    ) -> set[Wait]:
        """Take in that hosts got further: the same as a report of each of them, at a fraction of
        its cost. Arguments and ValueError as of `report`; then nothing is taken in.
        """
        steady_ns = now_ns if steady_ns is None else steady_ns
        hosts = rows(advance)
        places = [
            (StreamId.parse(place.stream), Mark(place.epoch, place.sequence))
            for place in advance.places
        ]
        lease_ns = _lease_ns(advance.lease_s)
        expected = [self._digest_of_all(*place) for place in places]
        heads = [self._head(stream) for stream, _ in places]
        moved: set[Wait] = set()
        for row in hosts:
            host, incarnation, number, applied_ns, told = row
            view = self.hosts.get(host)
            if (
                view is None
                or view.incarnation != incarnation
                or view.number + 1 != number
                or view.exceptions
            ):
                moved |= self.report(alone(advance, row), now_ns, same_clock, steady_ns)
                continue
            for (stream, mark), when, digest, known, head in zip(
                places, applied_ns, told, expected, heads, strict=True
            ):
                view.applied[stream] = (mark, when if same_clock else now_ns)
                if digest and digest != known:
                    self._compare(host, view, stream, mark, digest)
                if mark < head and self._follows(host, stream):
                    self.reminders.lags(stream, head, steady_ns)
            if view.drifted:
                view.exceptions = [found for _, found in view.drifted.values()]
            view.renew(number, steady_ns, lease_ns, advance.inspection_address, same_clock)
            if host in self._waits:
                moved |= self._settled(host)
        return moved

    def _digest_of_all(self, stream: StreamId, mark: Mark) -> bytes | None:
        """Of what each host is to hold of a stream; None: not known, or not the same for all."""
        known = None if stream.kind.for_hosts else self._digest_at("", stream, mark)
        return None if known is None else digests.to_bytes(known)

    def _settled(self, host: str) -> set[Wait]:
        """The waits that what a host reported has moved."""
        moved = {w for w in self._waits.get(host, ()) if self._settle(w, host)}
        for wait in moved:
            self._forget(wait, host)
        return moved

    def _compare(
        self, host: str, view: HostView, stream: StreamId, mark: Mark, digest: bytes
    ) -> None:
        """Does a host hold what it should? Where it is behind the head that is not known.

        Then it keeps comparing by itself: a quiet stream is where nobody else does.
        """
        known = self._digest_at(host, stream, mark) if digest else None
        if known is not None:
            expected = digests.to_bytes(known)
            if expected == digest:
                view.drifted.pop(stream, None)
            else:
                reason = (
                    f"DRIFT: the digest of what it holds at {mark} is {digest.hex()}, and of what "
                    f"was published {expected.hex()}"
                )
                found = ExceptionReport(stream, mark, Why.DRIFT, "stream", reason)
                view.drifted[stream] = (expected, found)
        elif stream in view.drifted:
            expected, found = view.drifted[stream]
            if found.mark != mark or expected == digest:
                del view.drifted[stream]

    def lease(self, host: str, steady_ns: int) -> Lease:
        view = self.hosts.get(host)
        if view is None:
            return Lease.NEVER_REPORTED
        return Lease.LIVE if steady_ns <= view.lease_until_ns else Lease.EXPIRED

    def forget(self, host: str) -> None:
        """The host is no longer part of the region."""
        self.hosts.pop(host, None)

    # --- waits ---

    def begin(
        self,
        requirements: Iterable[Concern],
        accepted_ns: int,
        quorum: float = 1.0,
        revocations: Mapping[StreamId, Mark] = MappingProxyType({}),
    ) -> Wait:
        """Begin to wait; to be given back with `end`. Raises ValueError for a bad quorum.

        Whoever has it already is found by `progress`.

        `revocations`: where on its streams that is which takes a permission away.
        """
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum {quorum:g} is not above 0 and at most 1")
        wait = Wait(requirements, accepted_ns, quorum, revocations)
        for host in wait.missing:
            self._waits.setdefault(host, set()).add(wait)
        return wait

    def end(self, wait: Wait) -> None:
        for host in wait.missing:
            self._forget(wait, host)

    def progress(self, wait: Wait, steady_ns: int, max_stragglers: int = 20) -> Progress:
        # Who follows what may have changed without a report.
        for host in list(wait.missing):
            if self._settle(wait, host):
                self._forget(wait, host)
        expired: list[str] = []
        behind: list[str] = []
        for host in wait.missing:
            (expired if self.lease(host, steady_ns) is Lease.EXPIRED else behind).append(host)
        hosts = wait.concerned - len(expired)
        applied = wait.concerned - len(wait.missing)
        needed = _needed(wait.quorum, hosts)
        return Progress(
            converged=applied >= needed and (hosts > 0 or wait.concerned == 0),
            hosts=hosts,
            applied=applied,
            needed=needed,
            stragglers=[
                self._straggler(wait, host) for host in heapq.nsmallest(max_stragglers, behind)
            ],
            expired=sorted(expired),
            latencies_ns=wait.latencies_ns,
            same_clock=wait.same_clock,
            revocations_ns=wait.revocations_ns,
        )

    def _forget(self, wait: Wait, host: str) -> None:
        waits = self._waits.get(host)
        if waits is not None:
            waits.discard(wait)
            if not waits:
                del self._waits[host]

    def _settle(self, wait: Wait, host: str) -> bool:
        """Take the host off the missing ones if it has applied everything, or follows nothing of
        it any more: then it is not concerned."""
        view = self.hosts.get(host)
        wants: list[StreamId] = []
        applied_at = 0
        for stream, mark in wait.missing[host]:
            if not self._follows(host, stream):
                continue
            at, when = view.applied.get(stream, (ORIGIN, 0)) if view is not None else (ORIGIN, 0)
            if view is None or at < mark:
                return False
            wants.append(stream)
            applied_at = max(applied_at, when)
            if at > self._head(stream):
                return False  # nobody published what it says that it has
            if view.exceptions and any(
                e.stream == stream and e.mark <= mark for e in view.exceptions
            ):
                return False
        del wait.missing[host]
        if view is None or not wants:
            wait.concerned -= 1
            return True
        if applied_at >= wait.accepted_ns > 0:
            wait.latencies_ns.append(applied_at - wait.accepted_ns)
            wait.same_clock = wait.same_clock and view.same_clock
        if wait.revocations:
            revoked_at = 0
            for stream in wants:
                revoked = wait.revocations.get(stream)
                at, when, _ = view.revoked.get(stream, _NEVER)
                if revoked is not None and at >= revoked:
                    revoked_at = max(revoked_at, when)
            if revoked_at >= wait.accepted_ns > 0:
                wait.revocations_ns.append(revoked_at - wait.accepted_ns)
        return True

    def _straggler(self, wait: Wait, host: str) -> Straggler:
        """Why a host is missing that cannot be settled."""
        view = self.hosts.get(host)
        wants = [want for want in wait.missing[host] if self._follows(host, want[0])]
        if view is None:
            stream, mark = wants[0]
            return Straggler(host, Why.NEVER_REPORTED, stream, ORIGIN, mark)
        reached = [view.applied.get(stream, (ORIGIN, 0))[0] for stream, _ in wants]
        for (stream, mark), at in zip(wants, reached, strict=True):
            for e in view.exceptions:
                if e.stream == stream and e.mark <= mark:
                    return Straggler(host, e.why, stream, at, mark, e.resource, e.reason)
        for (stream, mark), at in zip(wants, reached, strict=True):
            head = self._head(stream)
            if at > head:
                reason = f"AHEAD: it says that it is at {at}, and what was published ends at {head}"
                return Straggler(host, Why.DRIFT, stream, at, mark, "stream", reason)
        (stream, mark), at = next(
            (want, at) for want, at in zip(wants, reached, strict=True) if at < want[1]
        )
        return Straggler(host, Why.BEHIND, stream, at, mark)
