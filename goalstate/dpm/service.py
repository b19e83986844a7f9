"""The northbound gRPC service: speaks goalstate.northbound.v1 and calls the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from goalstate.dpm.convergence import Lease, Progress
from goalstate.dpm.engine import Engine, Outcome
from goalstate.dpm.errors import NotServing, Overloaded, UnknownChange
from goalstate.dpm.exceptions import WHY, tell_exceptions
from goalstate.dpm.metrics import Metrics
from goalstate.gs import digest as digests
from goalstate.gs import intent_codec
from goalstate.gs.errors import IntentError, IntentRejected
from goalstate.gs.intent import FIELDS, Intent, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import (
    dataplane_manager_pb2 as api,
)
from goalstate.gs.pb.goalstate.northbound.v1 import (
    dataplane_manager_pb2_grpc as api_grpc,
)
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.streams import ORIGIN, Channel, StreamKind
from goalstate.process import ACTIVE_ADDRESS, RETRY_AFTER

#: Bytes of violations that a refusal names: a client takes 8 KB of trailers, unless told otherwise.
VIOLATION_BYTES = 4096
#: Characters of one text in the trailers.
TEXT_CHARACTERS = 600
#: Objects in one piece of GetIntent.
PIECE_OBJECTS = 2000
MAX_WAIT_S = 24 * 3600.0
#: 55 in version 00; later versions may be longer (W3C Trace Context, section 3.2.4).
TRACEPARENT_CHARACTERS = 200
SERVICE = api.DESCRIPTOR.services_by_name["DataPlaneManager"].full_name

#: grpc.aio.ServicerContext; the library has no types.
Context: TypeAlias = Any


class NorthboundService(api_grpc.DataPlaneManagerServicer):
    def __init__(self, engine: Engine, metrics: Metrics, *, broker: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._broker = broker
        self._started = time.monotonic()

    # --- intent ---

    async def Apply(
        self, request: api.ApplyRequest | Overloaded, context: Context
    ) -> api.ApplyReply:
        try:
            if isinstance(request, Overloaded):
                raise request
            return await self._apply(request, context)
        except IntentRejected as error:
            await refuse(context, error)
        except Overloaded as error:
            await self._abort_shed(context, error)
        except NotServing as error:
            await abort_unavailable(context, self._engine, error)

    async def ApplyStream(
        self, request_iterator: AsyncIterator[api.ApplyRequest], context: Context
    ) -> AsyncIterator[api.ApplyReply]:
        async for request in request_iterator:
            try:
                yield await self._apply_when_admitted(request, context)
            except IntentRejected as error:
                yield api.ApplyReply(
                    request_id=request.request_id,
                    violations=[
                        api.Violation(path=v.path, reason=v.reason, message=v.message)
                        for v in error.violations
                    ],
                )
            except NotServing as error:
                await abort_unavailable(context, self._engine, error)

    async def _apply_when_admitted(
        self, request: api.ApplyRequest, context: Context
    ) -> api.ApplyReply:
        """A stream has its order, so nothing of it is shed: what comes next on it waits instead."""
        while True:
            try:
                return await self._apply(request, context)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s)

    async def _apply(self, request: api.ApplyRequest, context: Context) -> api.ApplyReply:
        started = time.perf_counter()
        try:
            traceparent = _traceparent(context, request.traceparent)
            outcome = await self._engine.apply(request.intent, traceparent)
        except IntentRejected:
            self._metrics.changes.labels(result="refused").inc()
            raise
        except NotServing:
            self._metrics.changes.labels(result="unavailable").inc()
            raise
        self._metrics.changes.labels(
            result="accepted" if outcome.changed_objects else "unchanged"
        ).inc()
        self._metrics.apply_seconds.observe(time.perf_counter() - started)
        return _reply(request.request_id, outcome)

    async def Republish(
        self, request: api.RepublishRequest, context: Context
    ) -> api.RepublishReply:
        await check_resources(request, context)
        try:
            outcome = await self._engine.republish(request.resources, _traceparent(context))
        except IntentRejected as error:
            await refuse(context, error)
        except Overloaded as error:
            await self._abort_shed(context, error)
        except NotServing as error:
            await abort_unavailable(context, self._engine, error)
        self._metrics.changes.labels(result="republished").inc()
        return api.RepublishReply(change=outcome.change, streams=_positions(outcome))

    # --- convergence ---

    async def Wait(self, request: api.WaitRequest, context: Context) -> api.WaitReply:
        started = time.perf_counter()
        progress = await self._wait(request, context)
        return _wait_reply(progress, time.perf_counter() - started)

    async def Watch(
        self, request: api.WaitRequest, context: Context
    ) -> AsyncIterator[api.WaitReply]:
        started = time.perf_counter()
        progress: asyncio.Queue[Progress] = asyncio.Queue(maxsize=1)

        def newest(now: Progress) -> None:
            # A slow watcher sees fewer steps, never older ones.
            if progress.full():
                progress.get_nowait()
            progress.put_nowait(now)

        waiting = asyncio.ensure_future(self._wait(request, context, newest))
        try:
            while not waiting.done() or not progress.empty():
                getting = asyncio.ensure_future(progress.get())
                await asyncio.wait({getting, waiting}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    yield _wait_reply(getting.result(), time.perf_counter() - started)
                else:
                    getting.cancel()
            await waiting
        finally:
            waiting.cancel()

    async def _wait(
        self,
        request: api.WaitRequest,
        context: Context,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Progress:
        target = request.WhichOneof("target")
        problem = ""
        if target is None:
            problem = "target: say what to wait for: a change, a VPC, or all"
        elif not 0 <= request.quorum <= 1:
            problem = f"quorum: {request.quorum:g} is not a share from 0 to 1"
        elif not 0 <= request.timeout_s <= MAX_WAIT_S:
            problem = f"timeout_s: {request.timeout_s:g} is not from 0 to {MAX_WAIT_S:g}"
        elif request.shard and self._engine.topics.shards == 1:
            problem = f"shard: there is no shard {request.shard}: the region is not divided"
        if problem:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        await self._check_serving(context)
        if target == "vpc_id" and not self._engine.knows_vpc(request.vpc_id):
            await abort(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"there is no VPC {request.vpc_id!r}, and never was",
            )
        try:
            progress = await self._engine.wait(
                change=request.change if target == "change" else None,
                vpc=request.vpc_id if target == "vpc_id" else None,
                quorum=request.quorum or 1.0,
                timeout_s=request.timeout_s,
                max_stragglers=request.max_stragglers or 20,
                on_progress=on_progress,
            )
            if progress.converged and progress.latencies_ns:
                self._metrics.convergence_seconds.observe(max(progress.latencies_ns) / 1e9)
            return progress
        except UnknownChange as error:
            await abort(context, grpc.StatusCode.NOT_FOUND, str(error))
        except NotServing as error:
            await abort_unavailable(context, self._engine, error)

    # --- what is ---

    async def GetStatus(self, request: api.StatusRequest, context: Context) -> api.StatusReply:
        engine = self._engine
        if request.vpc_id and not engine.knows_vpc(request.vpc_id):
            await abort(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"there is no VPC {request.vpc_id!r}, and never was",
            )
        async with engine.lock:
            return self._status(request)

    def _status(self, request: api.StatusRequest) -> api.StatusReply:
        vpc_id = request.vpc_id
        engine, core, now = self._engine, self._engine.core, self._engine.steady_ns()
        reply = api.StatusReply(
            writer=engine.writer,
            epoch=core.epoch,
            change=core.change,
            objects={kind.name.lower(): count for kind, count in core.desired.counts().items()},
            broker=self._broker,
            uptime_s=time.monotonic() - self._started,
            serving=engine.serving,
            problem=engine.problem,
            role=_role(engine),
        )
        if engine.active is not None:
            reply.active_writer = engine.active.writer
            reply.active_address = engine.active.address
        if request.brief:
            return reply
        groups: dict[str, set[str]] = {}
        for host in core.desired.objects(ObjectKind.HOST):
            groups.setdefault(host.group, set()).add(host.id)
        if vpc_id:
            wanted = set(core.desired.hosts_of_vpc(vpc_id))
            streams = {r.stream for r in core.requirements_of_vpc(vpc_id)}
        else:
            wanted = set().union(*groups.values())
            streams = set(core.streams)
        for stream in sorted(streams):
            state = core.streams[stream]
            inbox = stream.kind is StreamKind.INBOX
            followers = groups.get(stream.id, set()) if inbox else state.followers
            views = (engine.convergence.hosts.get(host) for host in followers)
            reply.streams.add(
                stream=str(stream),
                topic="" if state.channel is Channel.SESSION else engine.topics.of_stream(stream),
                epoch=state.mark.epoch,
                sequence=state.mark.sequence,
                digest=digests.to_hex(state.digest),
                resources=state.resources,
                followers=len(followers),
                followers_current=sum(
                    view is not None and view.applied.get(stream, (ORIGIN, 0))[0] >= state.mark
                    for view in views
                ),
                channel=state.channel.name.lower(),
            )
        count = dict.fromkeys(Lease, 0)
        for host_id in sorted(wanted):
            lease = engine.convergence.lease(host_id, now)
            count[lease] += 1
            if request.hosts:
                view = engine.convergence.hosts.get(host_id)
                reply.host_list.add(
                    host=host_id,
                    group=core.desired.get(ObjectKind.HOST, host_id).group,
                    lease=lease.value,
                    last_report_age_s=(now - view.reported_ns) / 1e9 if view else -1,
                    ports=len(core.desired.ports_of_host(host_id)),
                    exceptions=sum(e.stands_for for e in view.exceptions) if view else 0,
                    inspection_address=view.inspection_address if view else "",
                    formats=view.formats if view else (),
                    proxied=view.proxied if view else False,
                )
        tell_exceptions(reply, core, engine.convergence, sorted(wanted), request)
        reply.hosts_live = count[Lease.LIVE]
        reply.hosts_expired = count[Lease.EXPIRED]
        reply.hosts_never_reported = count[Lease.NEVER_REPORTED]
        return reply

    async def GetIntent(
        self, request: api.GetIntentRequest, context: Context
    ) -> AsyncIterator[intent_pb2.Intent]:
        if request.kind not in (0, *ObjectKind):
            await abort(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                f"kind: there is no kind {request.kind}",
            )
        try:
            await self._engine.confirm()
        except NotServing as error:
            await abort_unavailable(context, self._engine, error)
        async with self._engine.lock:
            pieces = self._pieces(request)
        try:
            # What is accepted in memory only may be lost: who was told of it would be told wrong.
            await self._engine.durable()
        except NotServing as error:
            await abort_unavailable(context, self._engine, error)
        if not pieces and request.id:
            kind = ObjectKind(request.kind).word if request.kind else "object"
            await abort(context, grpc.StatusCode.NOT_FOUND, f"there is no {kind} {request.id!r}")
        for piece in pieces:
            yield intent_codec.to_proto(piece)

    async def _check_serving(self, context: Context) -> None:
        """Another one may know more by now, unless this one is sure to be the active one."""
        if not self._engine.serving:
            problem = NotServing(f"the publisher is not serving just now: {self._engine.problem}")
            await abort_unavailable(context, self._engine, problem)

    async def _abort_shed(self, context: Context, error: Overloaded) -> NoReturn:
        self._metrics.changes.labels(result="shed").inc()
        after_ms = str(max(1, round(error.retry_after_s * 1000)))
        context.set_trailing_metadata(((RETRY_AFTER, after_ms),))
        await abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))

    def _pieces(self, request: api.GetIntentRequest) -> list[Intent]:
        desired = self._engine.core.desired
        kinds = [ObjectKind(request.kind)] if request.kind else list(ObjectKind)
        pieces = []
        for kind in kinds:
            if request.id:
                found = desired.get(kind, request.id)
                objects = [found] if found is not None else []
            else:
                objects = list(desired.objects(kind))
            if request.vpc_id:
                objects = [o for o in objects if self._vpc_of(kind, o) == request.vpc_id]
            for at in range(0, len(objects), PIECE_OBJECTS):
                pieces.append(Intent(**{FIELDS[kind]: objects[at : at + PIECE_OBJECTS]}))
        return pieces

    def _vpc_of(self, kind: ObjectKind, object_: Any) -> str:
        """The VPC that an object belongs to; empty for a host."""
        if kind is ObjectKind.HOST:
            return ""
        if kind is ObjectKind.VPC:
            return str(object_.id)
        if kind is ObjectKind.DHCP:
            object_ = self._engine.core.desired.get(ObjectKind.PORT, object_.port_id)
        return str(object_.vpc_id)


async def abort_unavailable(context: Context, engine: Engine, error: NotServing) -> NoReturn:
    """Answer UNAVAILABLE, and say who serves where that is known."""
    active = engine.active
    address = active.address if active is not None else ""
    context.set_trailing_metadata(((ACTIVE_ADDRESS, address),))
    await abort(context, grpc.StatusCode.UNAVAILABLE, str(error))


def _role(engine: Engine) -> api.StatusReply.Role.ValueType:
    if engine.standing_by:
        return api.StatusReply.STANDBY
    return api.StatusReply.ACTIVE if engine.serving else api.StatusReply.UNKNOWN


async def check_resources(request: api.RepublishRequest, context: Context) -> None:
    """Ends the call unless it names something, and only of kinds that there are."""
    if not request.resources:
        await abort(
            context, grpc.StatusCode.INVALID_ARGUMENT, "resources: name what is to come again"
        )
    unknown = {name.type for name in request.resources} - set(Kind)
    if unknown:
        text = f"resources: there is no kind {min(unknown)}"
        await abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)


async def abort(context: Context, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, _short(text))
    raise AssertionError("abort returned")


def _short(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]}…"


def _traceparent(context: Context, own: str = "") -> str:
    """A request's own trace context, or else its call's. What is longer than any is none: it would
    be in every message, as would a list of several."""
    for key, value in () if own else context.invocation_metadata() or ():
        if key == "traceparent":
            own = value if isinstance(value, str) else value.decode("ascii", "replace")
    return own if len(own) <= TRACEPARENT_CHARACTERS and "," not in own else ""


def _reply(request_id: str, outcome: Outcome) -> api.ApplyReply:
    return api.ApplyReply(
        request_id=request_id,
        change=outcome.change,
        changed_objects=outcome.changed_objects,
        streams=_positions(outcome),
    )


def _positions(outcome: Outcome) -> list[api.StreamPosition]:
    return [
        api.StreamPosition(stream=str(r.stream), epoch=r.mark.epoch, sequence=r.mark.sequence)
        for r in outcome.requirements
    ]


async def refuse(context: Context, error: IntentError) -> NoReturn:
    violations = error.violations if isinstance(error, IntentRejected) else ()
    detail = error_details_pb2.BadRequest()
    for v in violations:
        named = detail.field_violations.add(
            field=_short(v.path), description=_short(f"{v.reason}: {v.message}"), reason=v.reason
        )
        if detail.ByteSize() > VIOLATION_BYTES:
            detail.field_violations.remove(named)
            break
    packed = any_pb2.Any()
    packed.Pack(detail)
    message = f"the intent was refused: {len(violations)} violation(s)"
    if len(detail.field_violations) < len(violations):
        message += f", of which {len(detail.field_violations)} are given"
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=message, details=[packed])
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")


def _wait_reply(progress: Progress, elapsed_s: float) -> api.WaitReply:
    reply = api.WaitReply(
        converged=progress.converged,
        hosts=progress.hosts,
        hosts_applied=progress.applied,
        hosts_needed=progress.needed,
        stragglers=[
            api.Straggler(
                host=s.host,
                why=WHY[s.why],
                stream=str(s.stream),
                applied=str(s.applied) if s.applied > ORIGIN else "",
                wanted=str(s.wanted),
                resource=s.resource,
                reason=s.reason,
            )
            for s in progress.stragglers
        ],
        stragglers_total=progress.hosts - progress.applied,
        expired_hosts=progress.expired,
        elapsed_s=elapsed_s,
    )
    _tell_latency(reply.latency, progress.latencies_ns, progress.same_clock)
    _tell_latency(reply.revocation_latency, progress.revocations_ns, progress.same_clock)
    return reply


def _tell_latency(latency: api.Latency, latencies_ns: list[int], same_clock: bool) -> None:
    """Fill it, unless there is none."""
    if not latencies_ns:
        return
    ordered = sorted(latencies_ns)

    def rank(share: float) -> float:
        # Nearest rank: a latency that was seen, not one between two.
        return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)] / 1e6

    latency.count = len(ordered)
    latency.p50_ms = rank(0.5)
    latency.p90_ms = rank(0.9)
    latency.p99_ms = rank(0.99)
    latency.max_ms = ordered[-1] / 1e6
    latency.clock = (
        "same clock"
        if same_clock
        else "hosts on other clocks: time of receipt of their report, an upper bound"
    )
