"""Alcor's services, as an agent process serves them: whoever speaks the schema can drive its hosts.

Laws:

1.  One reply for each message, in order. Of the messages of one stream WINDOW are under way; more
    are read when the first of them was answered.
2.  What cannot be used as a whole (the version of another format, a v1 where several hosts could be
    meant) is refused as a whole, with INVALID_ARGUMENT or FAILED_PRECONDITION; all else has its
    status in the reply.
3.  A format that the process is not to take is UNIMPLEMENTED, as if there were no such rpc. So are
    the two rpcs in which a host asks, and is answered, about single packets' peers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import NoReturn

import grpc
import structlog

from goalstate.agent.alcor import pushes
from goalstate.agent.alcor.answers import Answers, Outcome
from goalstate.agent.alcor.pushes import Entry, Verdict
from goalstate.agent.fleet import Fleet
from goalstate.agent.reports import READS
from goalstate.gs.errors import MessageError
from goalstate.gs.pb.alcor.schema import goalstate_pb2, provisioner_pb2_grpc, resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2, agent_pb2_grpc
from goalstate.gs.resources import Kind
from goalstate.gs.streams import StreamId, StreamKind
from goalstate.gs.topics import Topics
from goalstate.gs.versions import FORMAT_V1, FORMAT_V2

log = structlog.get_logger()

#: Messages of one stream that are under way at a time.
WINDOW = 16
#: Trailing metadata of a reply that has no place for a reason.
REASON = "goalstate-reason"

#: Of several hosts' statuses for one resource the worst is told: this is worse from left to right.
_WORSE = (
    resources_pb2.SUCCESS,
    resources_pb2.PENDING,
    resources_pb2.OUT_OF_ORDER,
    resources_pb2.INVALID_ARG,
    resources_pb2.FAILURE,
)
_NOT_HERE = Verdict(resources_pb2.INVALID_ARG, "it is for no host that this process plays")
_MICROSECONDS_MAX = (1 << 32) - 1


class Provisioner(provisioner_pb2_grpc.GoalStateProvisionerServicer):
    """Puts what is pushed through the cores of a fleet's hosts."""

    def __init__(self, fleet: Fleet, answers: Answers, formats: Collection[int]) -> None:
        self._fleet = fleet
        self._answers = answers
        self._formats = formats

    async def PushNetworkResourceStates(
        self, request: goalstate_pb2.GoalState, context: grpc.aio.ServicerContext
    ) -> goalstate_pb2.GoalStateOperationReply:
        await self._taken(FORMAT_V1, context)
        hosts = self._fleet.hosts
        host = request.host_id or (next(iter(hosts)) if len(hosts) == 1 else "")
        if not host:
            await _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"a GoalState says not for whom it is, and this process plays {len(hosts)} hosts",
            )
        if host not in hosts:
            await _abort(
                context, grpc.StatusCode.INVALID_ARGUMENT, f"this process does not play {host!r}"
            )
        try:
            entries = {host: pushes.of_v1(request)}
        except MessageError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return await self._reply(FORMAT_V1, self._push(entries), [])

    async def PushGoalStatesStream(
        self,
        request_iterator: AsyncIterator[goalstate_pb2.GoalStateV2],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[goalstate_pb2.GoalStateOperationReply]:
        await self._taken(FORMAT_V2, context)
        replies: asyncio.Queue[asyncio.Task[goalstate_pb2.GoalStateOperationReply] | str | None]
        replies = asyncio.Queue(WINDOW)

        async def read() -> None:
            end = None
            async for state in request_iterator:
                try:
                    entries, foreign = pushes.of_v2(state, self._fleet.hosts)
                except MessageError as error:
                    end = str(error)
                    break
                # Pushed before it is queued: the order of arrival is the order of taking.
                reply = self._reply(FORMAT_V2, self._push(entries), foreign)
                await replies.put(asyncio.create_task(reply))
            await replies.put(end)

        reading = asyncio.create_task(read())
        try:
            while isinstance(reply := await _either(replies.get(), reading), asyncio.Task):
                yield await reply
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            while not replies.empty():
                if isinstance(left := replies.get_nowait(), asyncio.Task):
                    left.cancel()
        if reply is not None:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, reply)

    async def RequestGoalStates(
        self, request: goalstate_pb2.HostRequest, context: grpc.aio.ServicerContext
    ) -> goalstate_pb2.HostRequestReply:
        await _abort(
            context,
            grpc.StatusCode.UNIMPLEMENTED,
            "hosts ask this of whoever publishes; this is a host",
        )

    async def PushGoalstates(
        self, request: goalstate_pb2.NeighborRulesRequest, context: grpc.aio.ServicerContext
    ) -> goalstate_pb2.GoalStateOperationReply:
        await _abort(
            context,
            grpc.StatusCode.UNIMPLEMENTED,
            "this answers what a host asked, and this one does not ask; push a goal state",
        )

    async def _taken(self, version: int, context: grpc.aio.ServicerContext) -> None:
        if version not in self._formats:
            await _abort(
                context,
                grpc.StatusCode.UNIMPLEMENTED,
                f"this process does not take format {version}",
            )

    def _push(self, entries: Mapping[str, Sequence[Entry]]) -> list[asyncio.Future[list[Outcome]]]:
        fleet = self._fleet
        return [
            self._answers.push(fleet.hosts[host], some, fleet.incarnation)
            for host, some in entries.items()
        ]

    async def _reply(
        self,
        version: int,
        answers: Iterable[asyncio.Future[list[Outcome]]],
        foreign: Iterable[Entry],
    ) -> goalstate_pb2.GoalStateOperationReply:
        outcomes = [Outcome(entry, _NOT_HERE, 0.0) for entry in foreign]
        for some in await asyncio.gather(*answers):
            outcomes += some
        return reply_of(version, outcomes, self._fleet.incarnation)


class SubscribeInfo(provisioner_pb2_grpc.SubscribeInfoProvisionerServicer):
    """Makes the hosts of a fleet that is pushed to follow topics."""

    def __init__(self, fleet: Fleet, answers: Answers, topics: Topics, *, broker: bool) -> None:
        self._fleet = fleet
        self._answers = answers
        self._topics = topics
        self._broker = broker

    async def PushNodeSubscribeInfo(
        self, request: goalstate_pb2.NodeSubscribeInfo, context: grpc.aio.ServicerContext
    ) -> goalstate_pb2.SubscribeOperationReply:
        verdict = await self._follow(request)
        if verdict.reason:
            log.warning("a subscription is refused", topic=request.topic, reason=verdict.reason)
            context.set_trailing_metadata([(REASON, verdict.reason)])
        return goalstate_pb2.SubscribeOperationReply(operationStatus=verdict.status)

    async def _follow(self, fact: goalstate_pb2.NodeSubscribeInfo) -> Verdict:
        if not self._broker:
            reason = "this agent was started without a broker, and cannot follow a topic"
            return Verdict(resources_pb2.FAILURE, reason)
        try:
            stream = (
                StreamId.parse(fact.stream) if fact.stream else self._topics.stream_of(fact.topic)
            )
        except ValueError as error:
            return Verdict(resources_pb2.INVALID_ARG, str(error))
        if stream.kind is StreamKind.PUSHED:
            return Verdict(resources_pb2.INVALID_ARG, f"{stream} is on no topic")
        entry = pushes.of_subscription(fact, stream)
        fleet = self._fleet
        answers = await asyncio.gather(
            *(self._answers.push(host, [entry], fleet.incarnation) for host in fleet.hosts.values())
        )
        return max(
            (outcome.verdict for outcomes in answers for outcome in outcomes),
            key=lambda verdict: _WORSE.index(verdict.status),
        )


class Capabilities(agent_pb2_grpc.CapabilitiesServicer):
    """Says what the process can be driven by."""

    def __init__(self, fleet: Fleet, push_formats: Sequence[int]) -> None:
        """Without formats that it takes by push, the fleet follows streams by itself."""
        self._fleet = fleet
        self._push_formats = push_formats

    async def GetCapabilities(
        self, request: agent_pb2.GetCapabilitiesRequest, context: grpc.aio.ServicerContext
    ) -> agent_pb2.GetCapabilitiesReply:
        return agent_pb2.GetCapabilitiesReply(
            follows=not self._push_formats,
            stream_formats=READS,
            push_formats=self._push_formats,
            hosts=list(self._fleet.hosts),
            incarnation=self._fleet.incarnation,
        )


def reply_of(
    version: int, outcomes: Iterable[Outcome], incarnation: int
) -> goalstate_pb2.GoalStateOperationReply:
    """A reply, with one status for each resource: the worst that a host gave. Times in µs."""
    worst: dict[tuple[Kind, str], Outcome] = {}
    longest = 0.0
    for outcome in outcomes:
        longest = max(longest, outcome.elapsed_s)
        key = (outcome.entry.kind, outcome.entry.id)
        known = worst.get(key)
        if known is None or _rank(outcome) > _rank(known):
            worst[key] = outcome
    reply = goalstate_pb2.GoalStateOperationReply(
        format_version=version,
        message_total_operation_time=_microseconds(longest),
        incarnation=incarnation,
    )
    for entry, verdict, elapsed_s in worst.values():
        status = reply.operation_statuses.add()
        status.resource_id = entry.id
        status.resource_type = int(entry.kind)  # type: ignore[assignment]
        status.operation_type = entry.operation  # type: ignore[assignment]
        status.operation_status = verdict.status
        status.dataplane_programming_time = _microseconds(elapsed_s)
        status.state_elapse_time = _microseconds(elapsed_s)
        status.reason = verdict.reason
    return reply


def _rank(outcome: Outcome) -> int:
    return _WORSE.index(outcome.verdict.status)


def _microseconds(seconds: float) -> int:
    return min(int(seconds * 1e6), _MICROSECONDS_MAX)


async def _either(
    getting: object, reading: asyncio.Task[None]
) -> asyncio.Task[goalstate_pb2.GoalStateOperationReply] | str | None:
    """The next of the replies, or the error that ended the reading."""
    get = asyncio.ensure_future(getting)  # type: ignore[call-overload]
    await asyncio.wait((get, reading), return_when=asyncio.FIRST_COMPLETED)
    if not get.done() and reading.exception() is not None:
        get.cancel()
        reading.result()
    return await get  # type: ignore[no-any-return]


async def _abort(context: grpc.aio.ServicerContext, code: grpc.StatusCode, reason: str) -> NoReturn:
    await context.abort(code, reason)
    raise AssertionError("abort does not return")
