"""The inspection service of an agent process: what its hosts have applied, as they hold it.

A piece of what a host has applied is a GoalStateV2 of a few hundred KB; what came on its inbox is
in the form that it came in, with the host's section. All pieces of one host and stream are of one
moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import grpc

from goalstate.agent.core import HostCore
from goalstate.agent.fleet import Fleet
from goalstate.agent.reports import applied, position, summary
from goalstate.agent.stream import Stream
from goalstate.gs import packing
from goalstate.gs.pb.alcor.schema import goalstate_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamId


class InspectionService(agent_pb2_grpc.InspectionServicer):
    def __init__(self, *fleets: Fleet) -> None:
        """Of the same hosts, one fleet for each shard of the region."""
        self._fleets = fleets

    async def ListHosts(
        self, request: agent_pb2.ListHostsRequest, context: grpc.aio.ServicerContext
    ) -> agent_pb2.ListHostsReply:
        heads: dict[str, agent_pb2.HostSummary] = {}
        for fleet in self._fleets:
            for name, host in fleet.hosts.items():
                one = summary(host.core)
                if name in heads:  # what is single is the same, or adds up
                    one.resources += heads[name].resources
                    heads[name].MergeFrom(one)
                else:
                    heads[name] = one
        return agent_pb2.ListHostsReply(hosts=heads.values())

    async def GetApplied(
        self, request: agent_pb2.GetAppliedRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[agent_pb2.Applied]:
        hosts = self._fleets[0].hosts
        unknown = [host for host in request.hosts if host not in hosts]
        if unknown:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"this process does not play {', '.join(unknown[:20])}"
            )
        only = None
        if request.stream:
            try:
                only = StreamId.parse(request.stream)
            except ValueError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"stream: {error}")
        kinds = None
        if request.filter_type:
            try:
                kinds = [Kind(request.type)]
            except ValueError:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"type: {request.type} is no kind of resource"
                )
        for name in request.hosts or list(hosts):
            for fleet in self._fleets:
                host = fleet.hosts.get(name)
                if host is None:
                    continue  # a proxy released it while others were told
                for stream in list(host.core.streams.values()):
                    if only in (None, stream.id):
                        for piece in pieces(host.core, stream, kinds, summary=request.summary):
                            yield piece


def pieces(
    core: HostCore, stream: Stream, kinds: list[Kind] | None, *, summary: bool
) -> Iterator[agent_pb2.Applied]:
    """What a host has applied of a stream, of `kinds` or of all; the last piece says so."""
    head = agent_pb2.Applied(
        host=core.host,
        stream=str(stream.id),
        position=position(stream),
        counting=stream.counting,
    )
    # Taken now, whole: while the pieces are sent the host goes on.
    chunks = [] if summary else packing.chunk(applied(core, stream, kinds))
    for number, chunk in enumerate(chunks or [[]], 1):
        piece = agent_pb2.Applied()
        piece.CopyFrom(head)
        piece.state.CopyFrom(goalstate_pb2.GoalStateV2.FromString(packing.encode(chunk)))
        piece.last = number >= len(chunks)
        yield piece
