"""`diff`: what the hosts hold against what the accepted intent says that they must hold.

The expected state is worked out by the oracle, which shares nothing with the publisher but the
schema; the applied state is what each agent process says. A host that cannot be asked is unknown,
never equal; of a counting host only the inbox is compared, and it is listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from goalstate.cli import inspection
from goalstate.cli.errors import ExitCode, InputError
from goalstate.cli.northbound import DataPlaneManager, connect
from goalstate.cli.output import Output
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2 import HostSummary
from goalstate.gs.pb.goalstate.northbound.v1.intent_pb2 import Intent
from goalstate.gs.streams import StreamKind
from goalstate.scale import oracle
from goalstate.scale.oracle import Difference, Oracle


@dataclass
class Comparison:
    """The result over some hosts."""

    #: Number of the newest change when the intent was read, and when the last host was asked.
    change: int = 0
    change_after: int = 0
    #: Hosts that were compared, among them the counting ones.
    compared: list[str] = field(default_factory=list)
    counting: list[str] = field(default_factory=list)
    #: Resources that the compared hosts hold.
    resources: int = 0
    #: Hosts that could not be asked, and why.
    unknown: dict[str, str] = field(default_factory=dict)
    #: Differences in all, by host, and the first of them.
    total: int = 0
    by_host: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        if self.total:
            return ExitCode.REFUSED
        return ExitCode.UNDECIDED if self.unknown else ExitCode.OK

    def add(self, host: str, found: list[Difference], limit: int) -> None:
        self.compared.append(host)
        if found:
            self.total += len(found)
            self.by_host[host] = len(found)
            self.differences += found[: limit - len(self.differences)]


def diff(dpm: str, vpc: str, host: str, limit: int, out: Output) -> ExitCode:
    with connect(dpm) as client:
        found = compare(client, out, vpc=vpc, host=host, limit=limit)
    out.result(document(found))
    describe(found, out)
    return found.exit_code


def compare(
    client: DataPlaneManager,
    out: Output,
    *,
    intents: Iterable[Intent] | None = None,
    vpc: str = "",
    host: str = "",
    limit: int = 100,
) -> Comparison:
    """Compare all hosts, those with ports in a VPC, or one; keep `limit` differences.

    `intents`: what was sent, in order; without it, the publisher's word for it is taken.
    Raises CommandError.
    """
    status = client.status(hosts=True)
    own_stream = any(s.stream.startswith(f"{StreamKind.SECURITY_GROUP}/") for s in status.streams)
    expected = oracle.expected(
        [client.intent()] if intents is None else intents, security_groups_own_stream=own_stream
    )
    wanted = _wanted(expected, vpc, host)
    known = inspection.addresses(status.host_list)
    where = {one: known[one] for one in wanted if one in known}
    found = Comparison(change=status.change)
    found.unknown = {
        one: "no agent process says that it plays this host" for one in wanted if one not in known
    }
    with out.progress("hosts compared", len(where)) as bar:
        for answer in inspection.applied(where, lambda summary: Compared(expected, summary)):
            for one in answer.hosts:
                compared = answer.held.get(one)
                if compared is None:
                    found.unknown[one] = answer.why_not(one)
                    continue
                found.add(one, compared.finish(), limit)
                found.resources += compared.resources
                if compared.counting:
                    found.counting.append(one)
            bar.advance(len(answer.hosts))
    found.change_after = client.status().change
    return found


def _wanted(expected: Oracle, vpc: str, host: str) -> list[str]:
    """The hosts to compare. Raises InputError."""
    if host and host not in expected.groups:
        raise InputError(f"there is no host {host!r}", "`goalstate status --hosts` lists the hosts")
    if vpc and f"vpc/{vpc}" not in expected.streams:
        raise InputError(f"there is no VPC {vpc!r}", "`goalstate status` shows the VPC streams")
    return [
        one
        for one in sorted(expected.groups)
        if host in ("", one) and (not vpc or f"vpc/{vpc}" in expected.follows[one])
    ]


class Compared:
    """Compares a host's state while it comes in, so that it is never held as a whole."""

    def __init__(self, expected: Oracle, summary: HostSummary) -> None:
        self.counting = summary.counting
        self.resources = summary.resources
        self._comparison = oracle.Comparison(expected, summary.host, counting=summary.counting)

    def add(self, stream: str, state: Any) -> None:
        self._comparison.add_message(stream, state)

    def finish(self) -> list[Difference]:
        return self._comparison.finish()


def document(found: Comparison) -> dict[str, Any]:
    return {
        "change": found.change,
        "change_after": found.change_after,
        "hosts_compared": len(found.compared),
        "resources": found.resources,
        "counting_hosts": found.counting,
        "unknown_hosts": found.unknown,
        "differences_total": found.total,
        "differences_by_host": found.by_host,
        "differences": [difference._asdict() for difference in found.differences],
    }


def describe(found: Comparison, out: Output) -> None:
    if found.differences:
        out.table(("host", "kind", "id", "difference"), found.differences)
        more = found.total - len(found.differences)
        if more:
            out.text(f"… and {more} more")
    if found.unknown:
        _unknown(found.unknown, out)
    if found.counting:
        out.text(
            f"{len(found.counting)} counting hosts: not decoded, so only their inbox was compared"
        )
    if found.change != found.change_after:
        out.text(
            f"intent changed meanwhile (change {found.change} to {found.change_after}): "
            "differences may be of changes under way",
            style="yellow",
        )
    hosts = f"{len(found.compared)} hosts at change {found.change}"
    if found.total:
        out.text(f"{found.total} differences on {len(found.by_host)} of {hosts}", style="red")
    elif found.compared:
        out.text(f"no differences on {hosts}", style="green")
    else:
        out.text("no host could be compared", style="yellow")


def _unknown(unknown: Mapping[str, str], out: Output) -> None:
    out.text(f"{len(unknown)} hosts are unknown:", style="yellow")
    reasons: dict[str, list[str]] = {}
    for host, reason in unknown.items():
        reasons.setdefault(reason, []).append(host)
    for reason, hosts in reasons.items():
        shown = ", ".join(hosts[:5]) + (", …" if len(hosts) > 5 else "")
        out.text(f"  {len(hosts)} ({shown}): {reason}")
