"""The northbound service of a region that is divided into shards (see `gs/sharding.py`).

    a call ─┬─ names a shard ─▶ that shard's NorthboundService, here or (`forwarding`) elsewhere
            └─ else ─▶ RegionService ─▶ the calls of shards that it takes ─▶ one answer

Laws:

1.  What one shard can answer, it answers, as if the region were that shard alone.
2.  A change is of one shard, so it is accepted whole or refused whole. An intent over several of
    them is refused, and so is one of hosts and VPCs: whoever sends it takes it apart.
3.  What is of several shards by its nature, an intent of hosts and resources that are republished,
    becomes a change of each of them. An intent of hosts that a shard would refuse, by what it had
    accepted when the intent came, is refused before any takes it. If some took it and others did
    not, the error says which; to send it again does no harm, and is the remedy.
4.  Ids and tunnel ids are the region's: what another shard has, as far as this publisher knows, is
    refused, unless whoever serves that shard has deleted it. What two shards accept within the same
    moment is not seen by this: a look at it afterwards counts and logs it.
5.  All is converged when every shard is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar, cast

import grpc
import structlog

from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import Overloaded
from goalstate.dpm.exceptions import LISTED
from goalstate.dpm.forwarding import BROKEN, OF_WAITS, OPTIONS, asked_shard, only, passed
from goalstate.dpm.intake import THREAD_ABOVE_BYTES
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.recovery import never_on_a_stream, republished
from goalstate.dpm.regional import merged_progress, merged_status
from goalstate.dpm.service import Context, NorthboundService, abort, check_resources, refuse
from goalstate.gs import intent_codec, sharding
from goalstate.gs.errors import IntentRejected, Violation
from goalstate.gs.intent import ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2_grpc as api_grpc
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.sharding import SHARD

log = structlog.get_logger()

#: Seconds after which what was accepted is looked at again: by then every publisher knows it.
LOOK_AGAIN_S = 1.0

#: Seconds within which a publisher hears of what another one accepted, and between two looks.
CATCH_UP_S = 5.0
CATCH_UP_LOOK_S = 0.01

_CODES = grpc.StatusCode

T = TypeVar("T")


class RegionService(api_grpc.DataPlaneManagerServicer):
    """`connect` before it is called, `close` at the end."""

    def __init__(
        self, engines: Sequence[Engine], services: Sequence[NorthboundService], metrics: Metrics
    ) -> None:
        """Engine and service of each shard, in their order."""
        self._engines = engines
        self._services = services
        self._metrics = metrics
        self._shards = len(engines)
        self._all = range(len(engines))
        self._channels: list[Any] = []
        self._stub: Any = None
        self._waits: Any = None
        self._looks: set[asyncio.Task[None]] = set()

    def connect(self, own: str) -> None:
        """Calls of shards go through the publisher's own server, at this address."""
        for options in (OPTIONS, OF_WAITS):
            self._channels.append(grpc.aio.insecure_channel(own, options=options))
        self._stub, self._waits = map(api_grpc.DataPlaneManagerStub, self._channels)

    async def close(self) -> None:
        for look in self._looks:
            look.cancel()
        for channel in self._channels:
            await channel.close()

    # --- intent ---

    async def Apply(
        self, request: api.ApplyRequest | Overloaded, context: Context
    ) -> api.ApplyReply:
        service = await self._asked(context)
        if service is not None or isinstance(request, Overloaded):
            return await (service or self._services[0]).Apply(request, context)
        belongs = await self._belongs(request.intent, context)
        if belongs.violations:
            await refuse(context, IntentRejected(belongs.violations))
        if belongs.place == sharding.HOSTS:
            whole = await self._apply_hosts(request, context)
            if whole.violations:
                found = [Violation(v.path, v.reason, v.message) for v in whole.violations]
                await refuse(context, IntentRejected(found))
            return whole
        shard = belongs.shard
        rivals = await self._rivals(request.intent, shard, context)
        if rivals:
            await refuse(context, IntentRejected(rivals))
        reply: api.ApplyReply
        if self._engines[shard].serving:
            reply = await self._services[shard].Apply(request, context)
        else:
            reply = await self._alike(
                self._stub.Apply(request, **self._as(shard, context)), context
            )
        return self._taken(request.intent, shard, reply)

    async def ApplyStream(
        self, request_iterator: AsyncIterator[api.ApplyRequest], context: Context
    ) -> AsyncIterator[api.ApplyReply]:
        service = await self._asked(context)
        if service is not None:
            async for reply in service.ApplyStream(request_iterator, context):
                yield reply
            return
        async for request in request_iterator:
            yield await self._apply_next(request, context)

    async def _apply_next(self, request: api.ApplyRequest, context: Context) -> api.ApplyReply:
        """The answer, which may be a refusal; anything else that fails ends the call."""
        belongs = await self._belongs(request.intent, context)
        if belongs.violations:
            return _refusal(request, belongs.violations)
        if belongs.place == sharding.HOSTS:
            return await self._apply_hosts(request, context)
        shard = belongs.shard
        rivals = await self._rivals(request.intent, shard, context)
        if rivals:
            return _refusal(request, rivals)
        reply: api.ApplyReply
        if self._engines[shard].serving:
            (reply,) = [r async for r in self._services[shard].ApplyStream(only(request), context)]
        else:
            reply = await self._alike(self._as_stream(shard, request, context), context)
        return self._taken(request.intent, shard, reply)

    async def _apply_hosts(self, request: api.ApplyRequest, context: Context) -> api.ApplyReply:
        """The answer, which may be a refusal."""
        violations = await self._of_hosts(request.intent, context)
        if violations:
            return _refusal(request, violations)
        # As streams, which wait where there is too much to do: none is to lack what others took.
        calls = {n: self._as_stream(n, request, context) for n in self._all}
        replies = await self._each(calls, "hosts are of every shard", context)
        refused = next((reply for reply in replies.values() if reply.violations), None)
        return refused or _whole(request, replies)

    async def _as_stream(
        self, shard: int, request: api.ApplyRequest, context: Context
    ) -> api.ApplyReply:
        """As a stream of one, which names all violations. Raises AioRpcError."""
        call = self._stub.ApplyStream(only(request), **self._as(shard, context))
        (reply,) = [one async for one in call]
        return cast(api.ApplyReply, reply)

    def _taken(
        self, intent: intent_pb2.Intent, shard: int, reply: api.ApplyReply
    ) -> api.ApplyReply:
        if reply.changed_objects:
            self._look_again(intent, shard)
        if reply.change:
            reply.shard_changes.add(shard=shard, change=reply.change)
        return reply

    async def _of_hosts(self, intent: intent_pb2.Intent, context: Context) -> Sequence[Violation]:
        """Why a shard would refuse it, by all that any had accepted when this was asked."""
        await asyncio.gather(*(self._catch_up(shard, context) for shard in self._all))
        for engine in self._engines:
            try:
                async with engine.lock:
                    await _work(intent, partial(_plan, engine, intent))
            except IntentRejected as error:
                return error.violations
        return ()

    async def _catch_up(self, shard: int, context: Context) -> None:
        """Until what is known here of a shard is what whoever serves it knew when this began."""
        engine = self._engines[shard]
        if engine.serving:
            return
        # As a stream, which is not shed: it may be for one that is asked.
        nothing = self._as_stream(shard, api.ApplyRequest(), context)
        newest = (await self._alike(nothing, context)).change
        try:
            async with asyncio.timeout(CATCH_UP_S):
                while engine.core.change < newest and not engine.serving:
                    await asyncio.sleep(CATCH_UP_LOOK_S)
        except TimeoutError:
            why = f"shard {shard} is at change {newest}, of which this publisher has not heard yet"
            await abort(context, _CODES.UNAVAILABLE, f"{why}; nothing was done")

    async def Republish(
        self, request: api.RepublishRequest, context: Context
    ) -> api.RepublishReply:
        service = await self._asked(context)
        if service is not None:
            return await service.Republish(request, context)
        await check_resources(request, context)
        parts: dict[int, api.RepublishRequest] = {}
        violations = []
        for place, (name, key) in enumerate(
            zip(request.resources, republished(request.resources), strict=True)
        ):
            knowing = [n for n in self._all if self._engines[n].core.inventory.knows(key)]
            for shard in knowing:
                parts.setdefault(shard, api.RepublishRequest()).resources.append(name)
            if not knowing:
                violations.append(never_on_a_stream(place, key))
        if violations:
            await refuse(context, IntentRejected(violations))
        calls = {n: self._stub.Republish(r, **self._as(n, context)) for n, r in parts.items()}
        replies = await self._each(calls, "the resources are of several shards", context)
        whole = api.RepublishReply()
        for shard, reply in sorted(replies.items()):
            whole.change = max(whole.change, reply.change)
            whole.streams.extend(reply.streams)
            whole.shard_changes.add(shard=shard, change=reply.change)
        return whole

    async def _each(self, calls: Mapping[int, Any], why: str, context: Context) -> dict[int, Any]:
        """What each shard answered; ends the call unless all of them took it, or all refused."""
        replies = await asyncio.gather(*calls.values(), return_exceptions=True)
        took, failed = {}, {}
        for shard, reply in zip(calls, replies, strict=True):
            if isinstance(reply, grpc.aio.AioRpcError):
                failed[shard] = str(reply.details())
            elif isinstance(reply, BaseException):
                raise reply
            elif isinstance(reply, api.ApplyReply) and reply.violations:
                failed[shard] = reply.violations[0].message
            else:
                took[shard] = reply
        if took and failed:
            whose = "; ".join(f"shard {shard}: {text}" for shard, text in failed.items())
            await abort(
                context,
                _CODES.UNAVAILABLE,
                f"{why}, and of these took them: {', '.join(map(str, took))}; {whose}; send them "
                "again, which does no harm",
            )
        errors = [reply for reply in replies if isinstance(reply, grpc.aio.AioRpcError)]
        if errors:
            await _fail_alike(context, errors[0])
        return dict(zip(calls, replies, strict=True))

    async def _belongs(self, intent: intent_pb2.Intent, context: Context) -> sharding.Belongs:
        missing: set[tuple[ObjectKind, str]] = set()

        def find(kind: ObjectKind, id_: str) -> str | None:
            vpc = self._vpc_of(kind, id_)
            if vpc is None:
                missing.add((kind, id_))
            return vpc

        belongs = await _work(intent, lambda: sharding.belongs(intent, self._shards, find))
        if not missing:
            return belongs
        # What was made lately is known for certain only to whoever serves its shard.
        found: dict[tuple[ObjectKind, str], str | None] = {}
        for kind, id_ in missing:
            found[kind, id_] = await self._vpc_as_told(kind, id_, context)

        def find_now(kind: ObjectKind, id_: str) -> str | None:
            return found.get((kind, id_)) or find(kind, id_)

        return await _work(intent, lambda: sharding.belongs(intent, self._shards, find_now))

    def _vpc_of(self, kind: ObjectKind, id_: str) -> str | None:
        for engine in self._engines:
            vpc = sharding.vpc_of(engine.core.desired, kind, id_)
            if vpc is not None:
                return vpc
        return None

    async def _vpc_as_told(self, kind: ObjectKind, id_: str, context: Context) -> str | None:
        request = api.GetIntentRequest(kind=int(kind), id=id_)  # type: ignore[arg-type]
        for shard, engine in enumerate(self._engines):
            if engine.serving:
                continue
            try:
                async for piece in self._stub.GetIntent(request, **self._as(shard, context)):
                    for dhcp in piece.dhcps:
                        return await self._vpc_as_told(ObjectKind.PORT, dhcp.port_id, context)
                    for field in ("subnets", "security_groups", "routers", "gateways", "ports"):
                        for object_ in getattr(piece, field):
                            return str(object_.vpc_id)
            except grpc.aio.AioRpcError as error:
                if error.code() is not _CODES.NOT_FOUND:
                    await _fail_alike(context, error)
        return None

    async def _rivals(
        self, intent: intent_pb2.Intent, shard: int, context: Context
    ) -> list[Violation]:
        """What other shards have of what it gives."""
        others = [n for n in self._all if n != shard]
        found = await self._had(intent, others)
        if found:
            # It may be gone, and whoever asks may have been told so.
            having = [n for n in others if await self._had(intent, [n])]
            await asyncio.gather(*(self._catch_up(n, context) for n in having))
            found = await self._had(intent, having)
        return found

    async def _had(self, intent: intent_pb2.Intent, shards: Sequence[int]) -> list[Violation]:
        """What these shards have of what it gives, as far as is known here."""
        states = {n: self._engines[n].core.desired for n in shards}
        return await _work(intent, lambda: sharding.rivals(intent, states))

    def _look_again(self, intent: intent_pb2.Intent, shard: int) -> None:
        async def look() -> None:
            await asyncio.sleep(LOOK_AGAIN_S)
            found = await self._had(intent, [n for n in self._all if n != shard])
            for violation in found:
                log.error("two shards have it; delete one of them", why=violation.message)
            self._metrics.duplicates.inc(len(found))

        task = asyncio.ensure_future(look())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    # --- convergence ---

    async def Wait(self, request: api.WaitRequest, context: Context) -> api.WaitReply:
        service = await self._asked(context)
        if service is not None:
            return await service.Wait(request, context)
        shards = await self._shards_of(request, context)
        calls = [self._waits.Wait(request, **self._as(shard, context)) for shard in shards]
        try:
            replies = await self._alike(asyncio.gather(*calls), context)
        finally:
            for call in calls:
                call.cancel()  # where another one failed, it may have long to go
        return merged_progress(dict(zip(shards, replies, strict=True)), request.max_stragglers)

    async def Watch(
        self, request: api.WaitRequest, context: Context
    ) -> AsyncIterator[api.WaitReply]:
        service = await self._asked(context)
        if service is not None:
            async for step in service.Watch(request, context):
                yield step
            return
        shards = await self._shards_of(request, context)
        newest: dict[int, api.WaitReply] = {}
        news = asyncio.Event()

        async def follow(shard: int) -> None:
            async for step in self._waits.Watch(request, **self._as(shard, context)):
                newest[shard] = step
                news.set()

        calls = [asyncio.ensure_future(follow(shard)) for shard in shards]
        following = asyncio.gather(*calls)
        following.add_done_callback(lambda _: news.set())
        try:
            while not following.done() or news.is_set():
                await news.wait()
                news.clear()
                if len(newest) == len(shards):
                    yield merged_progress(newest, request.max_stragglers)
            await following
        except grpc.aio.AioRpcError as error:
            await _fail_alike(context, error)
        finally:
            for call in calls:
                call.cancel()

    async def _shards_of(self, request: api.WaitRequest, context: Context) -> list[int]:
        target = request.WhichOneof("target")
        if target == "vpc_id":
            return [sharding.shard_of(request.vpc_id, self._shards)]
        if target == "all":
            return list(range(self._shards))
        if target == "change" and not request.HasField("shard"):
            await abort(
                context,
                _CODES.INVALID_ARGUMENT,
                f"shard: say whose change {request.change} is: each of the region's "
                f"{self._shards} shards has numbers of its own",
            )
        if request.shard >= self._shards:
            await abort(context, _CODES.INVALID_ARGUMENT, f"there is no shard {request.shard}")
        return [request.shard]

    # --- what is ---

    async def GetStatus(self, request: api.StatusRequest, context: Context) -> api.StatusReply:
        service = await self._asked(context)
        if service is None and request.vpc_id:
            service = self._services[sharding.shard_of(request.vpc_id, self._shards)]
        if service is not None:
            return await service.GetStatus(request, context)
        statuses = []
        for one in self._services:
            statuses.append(await one.GetStatus(request, context))
            await asyncio.sleep(0)
        return merged_status(statuses, request.max_exceptions or LISTED)

    async def GetIntent(
        self, request: api.GetIntentRequest, context: Context
    ) -> AsyncIterator[intent_pb2.Intent]:
        service = await self._asked(context)
        if service is not None:
            async for piece in service.GetIntent(request, context):
                yield piece
            return
        shards = list(range(self._shards))
        if request.vpc_id:
            shards = [sharding.shard_of(request.vpc_id, self._shards)]
        elif request.kind == intent_pb2.HOST:
            shards = [0]
        found, missing = False, None
        for shard in shards:
            try:
                async for piece in self._stub.GetIntent(request, **self._as(shard, context)):
                    if shard and piece.hosts:
                        continue  # shard 0 has told them
                    found = True
                    yield piece
            except grpc.aio.AioRpcError as error:
                if error.code() is not _CODES.NOT_FOUND:
                    await _fail_alike(context, error)
                missing = error
        if missing is not None and not found:
            await _fail_alike(context, missing)

    # --- calls of shards ---

    async def _asked(self, context: Context) -> NorthboundService | None:
        """The service of the shard that a call names; None: it names none."""
        shard = asked_shard(context)
        if shard is None:
            return None
        if not 0 <= shard < self._shards:
            await abort(
                context,
                _CODES.INVALID_ARGUMENT,
                f"{SHARD}: there is no shard {shard}, the region has {self._shards}",
            )
        return self._services[shard]

    def _as(self, shard: int, context: Context) -> dict[str, Any]:
        """What a call of a shard has of the call that it is a part of."""
        return {
            "metadata": (*passed(context), (SHARD, str(shard))),
            "timeout": context.time_remaining(),
        }

    async def _alike(self, answer: Awaitable[Any], context: Context) -> Any:
        """The answer of a call made for another one; that one ends as it did."""
        try:
            return await answer
        except grpc.aio.AioRpcError as error:
            await _fail_alike(context, error)


def _plan(engine: Engine, intent: intent_pb2.Intent) -> None:
    engine.core.desired.plan(intent_codec.from_proto(intent))


async def _work(intent: intent_pb2.Intent, work: Callable[[], T]) -> T:
    """What a large intent takes is done in a thread, so that the loop stays responsive."""
    if intent.ByteSize() > THREAD_ABOVE_BYTES:
        return await asyncio.to_thread(work)
    return work()


def _whole(request: api.ApplyRequest, replies: Mapping[int, api.ApplyReply]) -> api.ApplyReply:
    """The answer to an intent that became a change of several shards."""
    whole = api.ApplyReply(request_id=request.request_id)
    for shard, reply in sorted(replies.items()):
        whole.change = max(whole.change, reply.change)
        whole.changed_objects = max(whole.changed_objects, reply.changed_objects)
        whole.streams.extend(reply.streams)
        whole.shard_changes.add(shard=shard, change=reply.change)
    return whole


def _refusal(request: api.ApplyRequest, violations: Sequence[Violation]) -> api.ApplyReply:
    return api.ApplyReply(
        request_id=request.request_id,
        violations=[
            api.Violation(path=v.path, reason=v.reason, message=v.message) for v in violations
        ],
    )


async def _fail_alike(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    if error.details() == BROKEN:
        why = "a publisher's answer was lost, and what was asked for may have been done"
        await abort(context, _CODES.UNAVAILABLE, why)
    await context.abort(error.code(), error.details(), tuple(error.trailing_metadata() or ()))
    raise AssertionError("abort returned")
