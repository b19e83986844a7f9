"""What must hold at the end of a run, and while it goes on.

At the end, when every part runs and nothing fails any more: all hosts are there and say that they
have everything; the publisher's word for the intent is what the client was told, change by change;
every host holds what follows from that by the oracle; no process has failed. While it goes on: the
positions of streams on hosts do not go back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import grpc

from goalstate.gs.intent import Host, Object
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.scale import oracle
from goalstate.scale.chaos.changes import Key, Tenant, mark_of, message, name_of
from goalstate.scale.chaos.ledger import Law, Ledger
from goalstate.scale.chaos.load import by_key
from goalstate.scale.chaos.parts import Agent, Process
from goalstate.scale.chaos.publishers import Publishers

#: Seconds within which everything must have converged after the faults.
CONVERGED_S = 180.0
_WAIT_S = 20.0
_LOOK_S = 0.2
#: Seconds between two looks at the positions of hosts.
_POSITIONS_S = 3.0
_TRACEBACK = b"Traceback (most recent call last)"


class Judge:
    def __init__(
        self,
        publishers: Publishers,
        tenants: Mapping[str, Tenant],
        hosts: list[Host],
        agents: list[Agent],
        ledger: Ledger,
    ) -> None:
        self._publishers = publishers
        self._tenants = tenants
        self._hosts = hosts
        self._agents = agents
        self._ledger = ledger
        self.hosts_compared = 0

    # --- while it goes on ---

    async def watch(self) -> None:
        """Look at the positions of streams now and then, on hosts and at the publisher."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_streams())
            for agent in self._agents:
                group.create_task(self._watch_positions(agent))

    async def _watch_streams(self) -> None:
        while True:
            await asyncio.sleep(_POSITIONS_S)
            known = dict(self._ledger.marks)
            for stream in (await self._publishers.status()).streams:
                at = (stream.epoch, stream.sequence)
                if at < known.get(stream.stream, (0, 0)):
                    self._ledger.find(
                        Law.BACK,
                        f"{stream.stream} is at {at}, and was at {known[stream.stream]} before",
                    )

    async def _watch_positions(self, agent: Agent) -> None:
        """Who left a stream, and follows it again, may begin with what is old."""
        last: dict[tuple[str, str, int], tuple[int, int]] = {}
        starts = agent.starts
        while True:
            await asyncio.sleep(_POSITIONS_S)
            try:
                found = await agent.witness.positions()
            except grpc.aio.AioRpcError:
                continue
            if agent.starts == starts:
                for place, at in found.items():
                    before = last.get(place, (0, 0))
                    if at < before:
                        host, stream, _ = place
                        self._ledger.find(
                            Law.BACK, f"{host} is at {at} on {stream}, and was at {before} before"
                        )
            last, starts = found, agent.starts

    # --- at the end ---

    async def judge(self) -> None:
        if await self.converged():
            await self._compare_intent()
            await self._compare_hosts()

    async def converged(self) -> bool:
        """Wait until all hosts have everything, by their own word."""
        end = time.monotonic() + CONVERGED_S
        why = "nobody serves"
        try:
            async with asyncio.timeout(CONVERGED_S + _WAIT_S):
                while True:
                    request = api.WaitRequest(all=True, timeout_s=_WAIT_S)
                    reply = await self._publishers.wait(request)
                    if reply is not None:
                        status = await self._publishers.status()
                        live = status.hosts_live == len(self._hosts)
                        if reply.converged and live and not reply.expired_hosts:
                            return True
                        why = (
                            f"{status.hosts_live} of {len(self._hosts)} hosts are live, "
                            f"{reply.hosts_applied} of {reply.hosts} have everything: "
                            + "; ".join(_said(one) for one in reply.stragglers[:5])
                        )
                    if time.monotonic() > end:
                        break
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            pass
        self._ledger.find(Law.CONVERGENCE, f"not within {CONVERGED_S:g} s: {why}")
        return False

    async def _compare_intent(self) -> None:
        """The publisher's word against what the client was told."""
        held = by_key(await self._publishers.intent())
        wanted: dict[Key, Object] = {}
        for tenant in self._tenants.values():
            wanted.update(tenant.model.objects)
        expected = by_key(message(chain(self._hosts, wanted.values())))
        lost: dict[tuple[str, int], list[str]] = {}
        for key in held.keys() | expected.keys():
            if held.get(key) == expected.get(key):
                continue
            kind, id_ = key
            mark = self._ledger.last_sent.get(key, 0)
            is_ = "is not there"
            if key in held:
                of = mark_of(getattr(held[key], "name", "") or getattr(held[key], "host_name", ""))
                is_ = f"is as after {name_of(of)}" if of else "is there"
            must = "must not be there" if key not in expected else "must be as the client was told"
            lost.setdefault((name_of(mark), mark), []).append(
                f"{kind.name.lower()} {id_} {is_}, {must}"
            )
        for (name, _), objects in sorted(lost.items(), key=lambda one: one[0][1]):
            self._ledger.find(Law.LOST, f"change {name}: {len(objects)} objects, as: {objects[0]}")

    async def _compare_hosts(self) -> None:
        """What hosts hold against what follows from what the client was told."""
        objects = chain.from_iterable(t.model.objects.values() for t in self._tenants.values())
        expected = oracle.expected([message(chain(self._hosts, objects))])
        for agent in self._agents:
            try:
                differences = await agent.witness.compare(expected, agent.hosts)
            except grpc.aio.AioRpcError as error:
                self._ledger.find(Law.PROCESS, f"{agent.name} does not answer: {error.details()}")
                continue
            self.hosts_compared += len(agent.hosts)
            for one in differences:
                law = Law.RESURRECTED if one.what.startswith("unexpected") else Law.DIFFERENCE
                self._ledger.find(law, f"{one.host}: {one.kind} {one.id}: {one.what}")

    def processes(self, processes: Iterable[Process]) -> None:
        """No process ended by itself, and none wrote a traceback into its log."""
        for process in processes:
            if process.died:
                self._ledger.find(Law.PROCESS, f"{process.name} ended by itself; see its log")
            for log in process.logs:
                if count := log.read_bytes().count(_TRACEBACK):
                    self._ledger.find(Law.PROCESS, f"{count} tracebacks in {log}")


def _said(straggler: Any) -> str:
    why = api.Straggler.Why.Name(straggler.why).lower()
    return (
        f"{straggler.host} {why} on {straggler.stream} at {straggler.applied or 'nothing'}, "
        f"wanted {straggler.wanted} {straggler.resource} {straggler.reason}".rstrip()
    )
