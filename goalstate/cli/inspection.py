"""Agent processes, as the commands see them: what their hosts have applied.

Which process plays a host is known from the publisher's status, which has it from the hosts'
reports. A process that does not answer costs its hosts, not the command: they are unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from goalstate.cli.errors import CommandError
from goalstate.cli.held import Held
from goalstate.cli.rpc import CALL_S, Server
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.pb.goalstate.agent.v1.agent_pb2_grpc import InspectionStub
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.resources import Kind

#: Agent processes asked at a time.
_AT_ONCE = 4
#: Hosts in one request: bounds what is held in memory at a time.
_HOSTS_A_CALL = 50
#: Seconds for one request of applied state.
_APPLIED_S = 300.0
_START = "is `goalstate agent run --inspect` up, and its address reachable from here?"

T = TypeVar("T")


def addresses(hosts: Iterable[api.HostStatus]) -> dict[str, str]:
    """Host → address of the process that plays it, for those that told one."""
    return {host.host: host.inspection_address for host in hosts if host.inspection_address}


class Pieces(NamedTuple):
    """Some hosts, and what was got of them, or why not."""

    hosts: Sequence[str]
    error: CommandError | None
    held: Mapping[str, Held]


def applied(
    where: Mapping[str, str],
    *,
    stream: str = "",
    kind: Kind | None = None,
    exceptions: bool = False,
) -> Iterator[Pieces]:
    """What each host of `where` (host → address) has applied, some hosts at a time.

    `stream` and `kind` narrow it to one of them; `exceptions` adds what hosts refused or wait for.
    A host that its process does not know any more is not in `held`.
    """
    by_address: dict[str, list[str]] = defaultdict(list)
    for host, address in sorted(where.items()):
        by_address[address].append(host)
    calls = [
        (address, hosts[first : first + _HOSTS_A_CALL])
        for address, hosts in by_address.items()
        for first in range(0, len(hosts), _HOSTS_A_CALL)
    ]

    def ask(call: tuple[str, list[str]]) -> Pieces:
        address, hosts = call
        try:
            return Pieces(hosts, None, _applied(address, hosts, stream, kind, exceptions))
        except CommandError as error:
            return Pieces(hosts, error, {})

    yield from _in_parallel(calls, ask)


def _applied(
    address: str, hosts: Sequence[str], stream: str, kind: Kind | None, exceptions: bool
) -> dict[str, Held]:
    server = Server("agent process", address, _START)
    request = agent_pb2.GetAppliedRequest(hosts=hosts, stream=stream)
    if kind is not None:
        request.type = int(kind)  # type: ignore[assignment]
        request.filter_type = True
    held: dict[str, Held] = {}
    with server.connected() as channel:
        stub = InspectionStub(channel)
        with server.errors("the inspection"):
            for piece in stub.GetApplied(request, timeout=_APPLIED_S):
                one = held.setdefault(piece.host, Held(piece.host, counting=piece.counting))
                one.add(piece.stream, piece.state)
            if exceptions:
                for summary in stub.ListHosts(agent_pb2.ListHostsRequest(), timeout=CALL_S).hosts:
                    if summary.host in hosts:
                        _note_exceptions(held, summary)
    return held


def _note_exceptions(held: dict[str, Held], summary: agent_pb2.HostSummary) -> None:
    one = held.setdefault(summary.host, Held(summary.host, counting=summary.counting))
    one.counting = one.counting or summary.counting
    for exception in summary.exceptions:
        status = agent_pb2.ResourceException.Status.Name(exception.status).lower()
        why = f"{status}: {exception.reason}" if exception.reason else status
        one.exceptions[Kind(exception.type), exception.id] = why


def summary(address: str, host: str) -> agent_pb2.HostSummary | None:
    """Heads, counts and exceptions of one host; None where its process does not know it.

    Raises CommandError.
    """
    server = Server("agent process", address, _START)
    with server.connected() as channel, server.errors("the inspection"):
        reply = InspectionStub(channel).ListHosts(agent_pb2.ListHostsRequest(), timeout=CALL_S)
    return next((one for one in reply.hosts if one.host == host), None)


def _in_parallel(calls: Sequence[Any], ask: Callable[[Any], T]) -> Iterator[T]:
    """The answers in the order of the calls, with only a few answers ahead of the caller."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(calls), _AT_ONCE):
            yield from pool.map(ask, calls[first : first + _AT_ONCE])
