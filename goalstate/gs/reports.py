"""Reports of hosts, one host at a time, however they share a message."""

from __future__ import annotations

from collections.abc import Iterator

from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2


def host_reports(report: agent_pb2.Report) -> Iterator[agent_pb2.HostReport]:
    """What each host says. Raises ValueError where an entry shared by several is not whole."""
    yield from report.hosts
    for advance in report.advances:
        for row in rows(advance):
            yield alone(advance, row)


#: Host, incarnation, number of the report; of each place, when the host got there, and its digest.
Row = tuple[str, int, int, tuple[int, ...], tuple[bytes, ...]]


def rows(advance: agent_pb2.Advance) -> Iterator[Row]:
    """Of each host what it says. Raises ValueError where the columns do not fit each other."""
    hosts, places = len(advance.hosts), len(advance.places)
    found = [len(advance.incarnations), len(advance.numbers)]
    found += [len(advance.applied_unix_ns), len(advance.digests)]
    if found != [hosts, hosts, hosts * places, hosts * places] or not places:
        raise ValueError(f"an entry of {hosts} hosts and {places} places has columns of {found}")
    return zip(
        advance.hosts,
        advance.incarnations,
        advance.numbers,
        zip(*[iter(advance.applied_unix_ns)] * places, strict=True),
        zip(*[iter(advance.digests)] * places, strict=True),
        strict=True,
    )


def alone(advance: agent_pb2.Advance, row: Row) -> agent_pb2.HostReport:
    """The report of one of the hosts that share an entry."""
    host, incarnation, number, applied_ns, digests = row
    return agent_pb2.HostReport(
        host=host,
        incarnation=incarnation,
        number=number,
        lease_s=advance.lease_s,
        inspection_address=advance.inspection_address,
        streams=[
            agent_pb2.StreamReport(
                stream=place.stream,
                epoch=place.epoch,
                sequence=place.sequence,
                digest=digest,
                applied_unix_ns=when,
            )
            for place, when, digest in zip(advance.places, applied_ns, digests, strict=True)
        ],
    )
