"""What a host says: its report to the publisher, and the same for who looks at it directly. Pure.

Laws:

1.  A report tells the streams that changed since the last one, or all (`full`); the exceptions it
    tells are always all there are. Where these are more than MAX_EXCEPTIONS, the rest is summed up:
    one exception for each stream and status, at the lowest mark left out, that says how many.
2.  A stream of which nothing is applied yet is told as well: the publisher sees that it should be.
3.  A digest is told only where the watermark is at what is held: before that it would be the digest
    of another place in the stream than the one reported.
4.  In one message, hosts that got to the same places of the same streams, and have nothing else to
    tell, share one entry (`Batch`): with many hosts in one process that is most of what is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from goalstate.agent.core import HostCore
from goalstate.agent.stream import Fault, Stream
from goalstate.gs import digest as digests
from goalstate.gs.packing import Addressed
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import Row, alone
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Mark, StreamId
from goalstate.gs.versions import FORMAT_V2

MAX_EXCEPTIONS = 1000
#: What an entry takes for each place, a host in it, and each of the places for a host, in bytes.
_ENTRY_BYTES = 60
_ROW_BYTES = 12
_PLACE_BYTES = 26
#: Format versions that an agent reads on streams.
READS = (FORMAT_V2,)

_PENDING = agent_pb2.ResourceException.PENDING
_REFUSED = agent_pb2.ResourceException.REFUSED
_RETRYING = agent_pb2.ResourceException.RETRYING


class Reporter:
    """Makes the reports of one host."""

    def __init__(
        self,
        core: HostCore,
        *,
        incarnation: int,
        lease_s: float,
        inspection_address: str = "",
        proxy_for: Sequence[int] | None = None,
    ) -> None:
        """`incarnation` must be above that of any earlier agent of the host.

        `proxy_for`: the format versions that an agent takes which is pushed to, and that this one
        reports for; None: it reports for itself.
        """
        self._core = core
        self._incarnation = incarnation
        self._lease_s = lease_s
        self._inspection_address = inspection_address
        self._proxy_for = proxy_for
        self._number = 0

    def report(self, *, full: bool) -> agent_pb2.HostReport | None:
        """What is to be told now; None if nothing changed and no full report is asked for."""
        core = self._core
        if not full and not core.news:
            return None
        self._number += 1
        streams = core.streams
        # Field by field: a constructor with keywords takes twice as long.
        report = agent_pb2.HostReport()
        report.host = core.host
        report.incarnation = self._incarnation
        report.number = self._number
        report.full = full
        report.lease_s = self._lease_s
        report.inspection_address = self._inspection_address
        if full:
            report.proxied = self._proxy_for is not None
            report.formats.extend(READS if self._proxy_for is None else self._proxy_for)
        for id_ in streams if full else core.news.streams:
            stream = streams.get(id_)
            if stream is not None and not stream.leaving:
                _tell(stream, report.streams.add())
        report.exceptions.extend(exceptions(core))
        report.dropped.extend(map(str, core.news.dropped))
        core.news.told()
        return report

    def advance(self) -> tuple[_Places, Row] | None:
        """What is to be told now, if that is no more than how far streams are applied."""
        core = self._core
        news = core.news
        if not news.streams or news.dropped or news.exceptions or news.revoked:
            return None
        if core.has_exceptions:
            return None
        streams = []
        for id_ in news.streams:
            stream = core.streams.get(id_)
            if stream is None or stream.leaving:
                return None
            streams.append(stream)
        self._number += 1
        news.told()
        places = tuple([(stream.id, stream.watermark) for stream in streams])
        return (
            (places, self._lease_s, self._inspection_address),
            (
                core.host,
                self._incarnation,
                self._number,
                tuple([stream.applied_ns for stream in streams]),
                tuple([_digest(stream) for stream in streams]),
            ),
        )


#: How far which streams are applied; seconds of the lease, inspection address.
_Places = tuple[tuple[tuple[StreamId, Mark], ...], float, str]


class Batch:
    """The reports of several hosts, as one message."""

    def __init__(self) -> None:
        self._hosts: list[agent_pb2.HostReport] = []
        self._advances: dict[_Places, list[Row]] = {}
        #: About how many bytes it takes.
        self.size = 0

    def add(self, reporter: Reporter, *, full: bool) -> bool:
        """Add what a host has to tell; did it have anything?"""
        advance = None if full else reporter.advance()
        if advance is not None:
            places, row = advance
            rows = self._advances.get(places)
            if rows is None:
                rows = self._advances[places] = []
                self.size += sum(_ENTRY_BYTES + len(id_.id) for id_, _ in places[0])
            rows.append(row)
            self.size += len(row[0]) + _ROW_BYTES + _PLACE_BYTES * len(row[3])
            return True
        report = reporter.report(full=full)
        if report is None:
            return False
        self._hosts.append(report)
        self.size += report.ByteSize()
        return True

    def message(self, clock_id: str, sent_unix_ns: int) -> agent_pb2.Report:
        message = agent_pb2.Report(hosts=self._hosts, clock_id=clock_id, sent_unix_ns=sent_unix_ns)
        for (places, lease_s, address), rows in self._advances.items():
            advance = agent_pb2.Advance(lease_s=lease_s, inspection_address=address)
            for id_, (epoch, sequence) in places:
                advance.places.add(stream=str(id_), epoch=epoch, sequence=sequence)
            hosts, incarnations, numbers, applied_ns, digests_ = zip(*rows, strict=True)
            advance.hosts.extend(hosts)
            advance.incarnations.extend(incarnations)
            advance.numbers.extend(numbers)
            advance.applied_unix_ns.extend(chain.from_iterable(applied_ns))
            advance.digests.extend(chain.from_iterable(digests_))
            if len(rows) == 1:  # it saves nothing, and publishers from before do not read it
                message.hosts.append(alone(advance, rows[0]))
            else:
                message.advances.append(advance)
        return message


def _is_told(stream: Stream) -> bool:
    """Is anything of it applied, and is it still followed?"""
    return stream.watermark != ORIGIN and not stream.leaving


def _tell(stream: Stream, report: agent_pb2.StreamReport) -> None:
    """Say how far a stream is applied."""
    report.stream = str(stream.id)
    report.epoch, report.sequence = stream.watermark
    report.applied_unix_ns = stream.applied_ns
    mark, when = stream.revoked
    if when:
        report.revoked_epoch, report.revoked_sequence = mark
        report.revoked_unix_ns = when
    report.digest = _digest(stream)


def _digest(stream: Stream) -> bytes:
    """Of what is held of a stream; empty if that cannot be told (law 3)."""
    live = stream.live
    if stream.counting or stream.watermark != live.mark:
        return b""
    return digests.to_bytes(live.digest)


def position(stream: Stream) -> agent_pb2.StreamReport | None:
    """How far a stream is applied; None if not at all, or if it is not followed any more."""
    if not _is_told(stream):
        return None
    report = agent_pb2.StreamReport(followed_unix_ns=stream.followed_ns)
    _tell(stream, report)
    return report


def exceptions(core: HostCore) -> Iterator[agent_pb2.ResourceException]:
    """Everything that is not applied, and why."""
    left_out: dict[tuple[StreamId, int], tuple[int, Fault]] = {}
    for number, (stream_id, kind, id_, fault) in enumerate(core.exceptions()):
        if number < MAX_EXCEPTIONS:
            yield _exception(stream_id, kind, id_, fault)
            continue
        status = _status(fault)
        count, lowest = left_out.get((stream_id, status), (0, fault))
        lowest = min(lowest, fault, key=lambda one: one.mark)
        left_out[stream_id, status] = (count + 1, lowest)
    for (stream_id, _), (count, lowest) in left_out.items():
        reason = f"LEFT_OUT: {count} more, the first because of {lowest.reason}"
        summed_up = _exception(stream_id, 0, "", lowest._replace(reason=reason, revision=0))
        summed_up.stands_for = count
        yield summed_up


def _status(fault: Fault) -> agent_pb2.ResourceException.Status.ValueType:
    if fault.pending:
        return _PENDING
    return _RETRYING if fault.retrying else _REFUSED


def _exception(
    stream_id: StreamId, kind: int, id_: str, fault: Fault
) -> agent_pb2.ResourceException:
    reason = fault.reason
    if fault.retrying:
        reason += f"; retrying, attempt {fault.attempts + 1}"
    elif fault.attempts > 1:
        reason += f"; gave up after {fault.attempts} attempts"
    return agent_pb2.ResourceException(
        stream=str(stream_id),
        epoch=fault.mark.epoch,
        sequence=fault.mark.sequence,
        type=kind,  # type: ignore[arg-type]
        id=id_,
        revision=fault.revision,
        status=_status(fault),
        reason=reason,
        attempts=fault.attempts,
    )


def summary(core: HostCore) -> agent_pb2.HostSummary:
    """The heads of one host."""
    heads = agent_pb2.HostSummary(
        host=core.host,
        counting=core.counting,
        resources=sum(stream.resources() for stream in core.streams.values()),
        exceptions=exceptions(core),
    )
    positions = map(position, core.streams.values())
    heads.streams.extend(at for at in positions if at is not None)
    return heads


def applied(core: HostCore, stream: Stream, kinds: Iterable[Kind] | None = None) -> list[Addressed]:
    """What a host has applied of a stream, as it can be packed; on its inbox addressed to it."""
    host = core.host if stream.id == core.inbox else ""
    return [
        Addressed(host, resource)
        for kind in (stream.kinds if kinds is None else kinds)
        for resource in stream.applied(kind).values()
    ]
