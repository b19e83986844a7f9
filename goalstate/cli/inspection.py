"""Agent processes, as the commands see them: what their hosts have applied.

Which process plays a host is known from the publisher's status, which has it from the hosts'
reports. A process that does not answer costs its hosts, not the command: they are unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from goalstate.cli.errors import CommandError, Undecided
from goalstate.cli.rpc import CALL_S, Server
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2_grpc import InspectionStub
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind

#: Requests to a process at a time.
_AT_ONCE = 4
#: Hosts in one request: bounds what is lost when it fails.
_HOSTS_A_CALL = 50
#: Seconds for one request of applied state.
_APPLIED_S = 300.0
_START = "is `goalstate agent run --inspect` up, and its address reachable from here?"


class Sink(Protocol):
    """Takes in what one host holds, piece by piece."""

    def add(self, stream: str, state: Any) -> None:
        """A piece (GoalStateV2) of what the host holds of a stream."""


S = TypeVar("S", bound=Sink)


class Answer(NamedTuple, Generic[S]):
    """What was got of some hosts: `held` has those that their process plays, else `error`."""

    hosts: Sequence[str]
    held: Mapping[str, S]
    error: CommandError | None = None

    def why_not(self, host: str) -> str:
        """Why there is nothing of a host that was asked for."""
        return self.error.message if self.error else "its agent process does not play it any more"


def addresses(hosts: Iterable[api.HostStatus]) -> dict[str, str]:
    """Host → address of the process that plays it, for those that told one."""
    return {host.host: host.inspection_address for host in hosts if host.inspection_address}


def applied(
    where: Mapping[str, str],
    sink: Callable[[agent_pb2.HostSummary], S],
    *,
    stream: str = "",
    kind: Kind | None = None,
) -> Iterator[Answer[S]]:
    """What each host of `where` (host → address) has applied, some hosts at a time.

    `sink` makes what takes in a host's state, given its summary. `stream` and `kind` narrow the
    state to one of them.
    """
    by_address: dict[str, list[str]] = defaultdict(list)
    for host, address in sorted(where.items()):
        by_address[address].append(host)
    for address, hosts in by_address.items():
        try:
            server = Server("agent process", address, _START)
            known = _summaries(server)
        except CommandError as error:
            yield Answer(hosts, {}, error)
            continue

        def ask(
            some: list[str],
            server: Server = server,
            known: Mapping[str, agent_pb2.HostSummary] = known,
        ) -> Answer[S]:
            held = {host: sink(known[host]) for host in some if host in known}
            try:
                _fill(server, held, stream, kind)
            except CommandError as error:
                return Answer(some, {}, error)
            return Answer(some, held)

        calls = [hosts[at : at + _HOSTS_A_CALL] for at in range(0, len(hosts), _HOSTS_A_CALL)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # In groups, so that the answers that wait for the caller stay few.
            for at in range(0, len(calls), _AT_ONCE):
                yield from pool.map(ask, calls[at : at + _AT_ONCE])


def of_host(address: str, host: str, sink: Callable[[agent_pb2.HostSummary], S]) -> S:
    """What one host has applied. Raises CommandError where that cannot be had."""
    for answer in applied({host: address}, sink):
        if answer.error is not None:
            raise answer.error
        if host in answer.held:
            return answer.held[host]
    raise Undecided(
        f"the agent process at {address} does not play {host} any more",
        "`goalstate status --hosts` shows when it last reported",
    )


def _summaries(server: Server) -> dict[str, agent_pb2.HostSummary]:
    with server.connected() as channel, server.errors("the inspection"):
        reply = InspectionStub(channel).ListHosts(agent_pb2.ListHostsRequest(), timeout=CALL_S)
    return {summary.host: summary for summary in reply.hosts}


def _fill(server: Server, held: Mapping[str, Sink], stream: str, kind: Kind | None) -> None:
    if not held:
        return  # no hosts in a request means all of them
    request = agent_pb2.GetAppliedRequest(hosts=sorted(held), stream=stream)
    if kind is not None:
        request.type = int(kind)  # type: ignore[assignment]
        request.filter_type = True
    with server.connected() as channel, server.errors("the inspection"):
        for piece in InspectionStub(channel).GetApplied(request, timeout=_APPLIED_S):
            if piece.host in held:
                held[piece.host].add(piece.stream, piece.state)
