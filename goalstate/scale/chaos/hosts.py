"""What hosts hold, as their agent processes say: the witness against whom publishers are judged.

It is read from each process directly and computed by nobody else. A process that does not answer
is no witness.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import grpc

from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.scale import oracle
from goalstate.scale.chaos.publishers import OPTIONS

#: Seconds for an answer: beyond how long a process is ever stopped.
ANSWER_S = 20.0
#: Hosts in one question of all that they hold.
_HOSTS_A_CALL = 25


class Position(NamedTuple):
    """How far a stream is applied on a host, and when it got there."""

    mark: tuple[int, int]
    applied_unix_ns: int


class Held(NamedTuple):
    """Some of what one host has applied of one stream."""

    position: Position | None
    #: Configurations (messages) by id.
    configurations: dict[str, object]


class Witness:
    """One agent process."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = agent_pb2_grpc.InspectionStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def positions(self) -> dict[tuple[str, str, int], tuple[int, int]]:
        """(host, stream, since when it is followed) → mark. Raises grpc.aio.AioRpcError, as do the
        others."""
        reply = await self._stub.ListHosts(agent_pb2.ListHostsRequest(), timeout=ANSWER_S)
        return {
            (host.host, at.stream, at.followed_unix_ns): (at.epoch, at.sequence)
            for host in reply.hosts
            for at in host.streams
        }

    async def held(
        self,
        hosts: Iterable[str],
        stream: str,
        type_: resources_pb2.ResourceType.ValueType,
        field: str,
    ) -> dict[str, Held]:
        """What hosts have applied of a stream, of one type, which is in that field of GoalStateV2.

        A host that does not follow the stream is not in the answer.
        """
        request = agent_pb2.GetAppliedRequest(
            hosts=sorted(hosts), stream=stream, type=type_, filter_type=True
        )
        found: dict[str, Held] = {}
        async for piece in self._stub.GetApplied(request, timeout=ANSWER_S):
            if piece.host not in found:
                at = piece.position if piece.HasField("position") else None
                position = at and Position((at.epoch, at.sequence), at.applied_unix_ns)
                found[piece.host] = Held(position, {})
            for id_, state in getattr(piece.state, field).items():
                found[piece.host].configurations[id_] = state.configuration
        return found

    async def compare(self, expected: oracle.Oracle, hosts: list[str]) -> list[oracle.Difference]:
        """Everything in which hosts differ from what they must hold."""
        differences: list[oracle.Difference] = []
        for at in range(0, len(hosts), _HOSTS_A_CALL):
            some = hosts[at : at + _HOSTS_A_CALL]
            comparisons = {host: oracle.Comparison(expected, host) for host in some}
            request = agent_pb2.GetAppliedRequest(hosts=some)
            async for piece in self._stub.GetApplied(request, timeout=10 * ANSWER_S):
                comparisons[piece.host].add_message(piece.stream, piece.state)
            for comparison in comparisons.values():
                differences += comparison.finish()
        return differences
