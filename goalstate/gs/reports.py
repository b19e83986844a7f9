"""Reports of hosts, one host at a time, however they share a message."""

from __future__ import annotations

from collections.abc import Iterator

from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2


def host_reports(report: agent_pb2.Report) -> Iterator[agent_pb2.HostReport]:
    """What each host says. Raises ValueError where an entry shared by several is not whole."""
    yield from report.hosts
    for advance in report.advances:
        for host, incarnation, number, applied_ns in rows(advance):
            yield alone(advance, host, incarnation, number, applied_ns)


def rows(advance: agent_pb2.Advance) -> Iterator[tuple[str, int, int, int]]:
    """Of each host: its name, incarnation, number of the report, when it got there. Raises
    ValueError where these are not equally many."""
    columns = (advance.hosts, advance.incarnations, advance.numbers, advance.applied_unix_ns)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1:
        raise ValueError(f"an entry for hosts of {lengths} rows")
    return zip(*columns, strict=True)


def alone(
    advance: agent_pb2.Advance, host: str, incarnation: int, number: int, applied_ns: int
) -> agent_pb2.HostReport:
    """The report of one of the hosts that share an entry."""
    return agent_pb2.HostReport(
        host=host,
        incarnation=incarnation,
        number=number,
        lease_s=advance.lease_s,
        inspection_address=advance.inspection_address,
        streams=[
            agent_pb2.StreamReport(
                stream=advance.stream,
                epoch=advance.epoch,
                sequence=advance.sequence,
                digest=advance.digest,
                applied_unix_ns=applied_ns,
            )
        ],
    )
