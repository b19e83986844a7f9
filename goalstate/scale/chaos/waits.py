"""Waits while things fail, each that says "converged" held against what the hosts say themselves.

For a wait that converged, hosts that the change concerns are asked at once: each must be at the
change's mark of the stream or beyond, must not have got there after the answer, and must hold what
the change put (by the mark in its name, or something newer) and not what it deleted. What a later
change touched, sent by then, says nothing any more. Of hosts whose process was killed since the
change was accepted nothing is asked: they go on from what they had stored.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

import grpc

from goalstate.gs.intent import Dhcp, ObjectKind, Port
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale.chaos.changes import Change, Key, Tenant, mark_of
from goalstate.scale.chaos.hosts import Held
from goalstate.scale.chaos.ledger import Acknowledged, Law, Ledger
from goalstate.scale.chaos.parts import Agent
from goalstate.scale.chaos.publishers import Publishers

K = ObjectKind
#: Waits under way at once; seconds for one, and between two.
SAMPLERS = 3
_TIMEOUT_S = 10.0
_REST_S = 0.1
#: Hosts of a VPC that are asked after a wait.
_HOSTS = 6

#: Where a configuration of a kind is: type, field of GoalStateV2, and where its mark is ("": none).
_WHERE: dict[ObjectKind, tuple[Any, str, str]] = {
    K.VPC: (resources_pb2.VPC, "vpc_states", "name"),
    K.SUBNET: (resources_pb2.SUBNET, "subnet_states", "name"),
    K.SECURITY_GROUP: (resources_pb2.SECURITYGROUP, "security_group_states", "name"),
    K.ROUTER: (resources_pb2.ROUTER, "router_states", ""),
    K.GATEWAY: (resources_pb2.GATEWAY, "gateway_states", ""),
    K.PORT: (resources_pb2.PORT, "port_states", "name"),
    K.DHCP: (resources_pb2.DHCP, "dhcp_states", "port_host_name"),
}
_NEIGHBOR = (resources_pb2.NEIGHBOR, "neighbor_states", "")


class Claim(NamedTuple):
    """One object that a host must hold, or must not, once a change is on it."""

    stream: str
    where: tuple[Any, str, str]
    key: Key
    holds: bool


class Waits:
    """`process_of` gives the agent process of a host."""

    def __init__(
        self,
        publishers: Publishers,
        tenants: Mapping[str, Tenant],
        ledger: Ledger,
        process_of: Callable[[str], Agent],
        group_of: Mapping[str, str],
        *,
        seed: int,
    ) -> None:
        self._publishers = publishers
        self._tenants = tenants
        self._ledger = ledger
        self._process_of = process_of
        self._group_of = group_of
        self._random = Random(f"waits/{seed}")
        #: How waits ended, and how many hosts and objects were looked at.
        self.counts: Counter[str] = Counter()

    async def run(self) -> None:
        """Wait for changes until cancelled."""
        await asyncio.gather(*(self._sample() for _ in range(SAMPLERS)))

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_REST_S)
            if not self._ledger.recent:
                continue
            chosen = self._random.choice(list(self._ledger.recent)[-40:])
            request = api.WaitRequest(timeout_s=_TIMEOUT_S, change=chosen.number)
            if self._random.random() < 0.3:
                # By the VPC: the newest of it that was answered, whichever that is by now.
                chosen = self._ledger.newest[chosen.change.vpc]
                request = api.WaitRequest(timeout_s=_TIMEOUT_S, vpc_id=chosen.change.vpc)
            reply = await self._publishers.wait(request)
            answered_ns = time.time_ns()
            if reply is None:
                self.counts["not answered"] += 1
            elif not reply.converged:
                self.counts["not converged in time"] += 1
            else:
                self.counts["converged"] += 1
                await self._check(chosen, set(reply.expired_hosts), answered_ns)

    async def _check(self, chosen: Acknowledged, expired: set[str], answered_ns: int) -> None:
        """Ask hosts whether they have it."""
        change = chosen.change
        claims = self._claims(change)
        asked: dict[tuple[Agent, str, tuple[Any, str, str]], dict[str, list[Claim]]] = {}
        for host, of_host in claims.items():
            if host in expired:
                continue
            for claim in of_host:
                hosts = asked.setdefault((self._process_of(host), claim.stream, claim.where), {})
                hosts.setdefault(host, []).append(claim)
        for (process, stream, where), of_hosts in asked.items():
            try:
                held = await process.witness.held(of_hosts, stream, where[0], where[1])
            except grpc.aio.AioRpcError:
                self.counts["process did not answer"] += 1
                continue
            if process.killed_at >= chosen.sent_at:
                self.counts["process was killed meanwhile"] += 1
                continue
            for host, of_host in of_hosts.items():
                self.counts["hosts asked"] += 1
                self._judge(chosen, host, of_host, held.get(host), answered_ns)

    def _claims(self, change: Change) -> dict[str, list[Claim]]:
        """What hosts must hold and must not, host by host."""
        claims: dict[str, list[Claim]] = defaultdict(list)
        vpc_stream = f"vpc/{change.vpc}"
        followers = self._followers(change)
        chosen = self._random.sample(followers, min(_HOSTS, len(followers)))
        for key in change.touched:
            kind, _ = key
            after, before = change.after(key, made=True), change.was.get(key)
            if kind not in (K.PORT, K.DHCP):
                for host in chosen:
                    claims[host].append(Claim(vpc_stream, _WHERE[kind], key, after is not None))
                continue
            if kind is K.PORT:
                for host in chosen[:2]:  # of a large VPC a host says all its neighbors
                    claims[host].append(Claim(vpc_stream, _NEIGHBOR, key, after is not None))
            now_at, was_at = self._host_of(change, after), self._host_of(change, before)
            if now_at:
                claims[now_at].append(Claim(self._inbox(now_at), _WHERE[kind], key, True))
            if was_at and was_at != now_at:
                claims[was_at].append(Claim(self._inbox(was_at), _WHERE[kind], key, False))
            if len(claims) > 4 * _HOSTS:
                break
        return claims

    def _inbox(self, host: str) -> str:
        return f"inbox/{self._group_of[host]}"

    def _host_of(self, change: Change, object_: Any) -> str:
        if isinstance(object_, Port):
            return object_.host_id
        if isinstance(object_, Dhcp):
            key = (K.PORT, object_.port_id)
            port = change.puts.get(key) or change.was.get(key)
            port = port or self._tenants[change.vpc].model.objects.get(key)
            # A port that was moved since is somewhere else, with its answer.
            untouched = self._ledger.last_sent.get(key, 0) <= change.mark
            return port.host_id if isinstance(port, Port) and untouched else ""
        return ""

    def _followers(self, change: Change) -> list[str]:
        """Hosts with a port of the VPC that nothing has touched since: they follow its stream."""
        last = self._ledger.last_sent
        return sorted(
            {
                port.host_id
                for key, port in self._tenants[change.vpc].model.objects.items()
                if isinstance(port, Port) and last[key] <= change.mark
            }
        )

    def _judge(
        self,
        chosen: Acknowledged,
        host: str,
        claims: list[Claim],
        held: Held | None,
        answered_ns: int,
    ) -> None:
        change = chosen.change
        stream = claims[0].stream
        said = f"wait for change {chosen.number} ({change.what} in {change.vpc}) converged, and "
        wanted = chosen.marks.get(stream)
        newer = self._ledger.last_sent
        if stream.startswith("vpc/") and host not in self._followers(change):
            return  # a change that was sent meanwhile may have ended that
        at = held.position if held is not None else None
        if wanted is not None and (at is None or at.mark < wanted):
            where = "not" if at is None else f"at {at.mark}"
            self._early(f"{said}{host} is {where} on {stream}, which had it at {wanted}")
            return
        if at is not None and at.mark == wanted and at.applied_unix_ns > answered_ns:
            late_ms = (at.applied_unix_ns - answered_ns) / 1e6
            self._early(f"{said}{host} had it {late_ms:.1f} ms after that")
            return
        for claim in claims:
            self.counts["objects looked at"] += 1
            kind, id_ = claim.key
            configuration: Any = held.configurations.get(id_) if held is not None else None
            field = claim.where[2]
            mark = mark_of(getattr(configuration, field)) if configuration and field else 0
            touched_since = newer[claim.key] > change.mark
            answer = change.puts.get(claim.key)
            if isinstance(answer, Dhcp):  # it is where its port is, which may have moved since
                touched_since |= newer.get((K.PORT, answer.port_id), 0) > change.mark
            if claim.holds and configuration is not None and (mark >= change.mark or not field):
                continue
            if touched_since or (not claim.holds and configuration is None):
                continue
            what = "nothing" if configuration is None else f"that of change {mark}"
            self._early(f"{said}{host} holds {what} of {kind.name.lower()} {id_}")

    def _early(self, what: str) -> None:
        self._ledger.find(Law.EARLY, what)
