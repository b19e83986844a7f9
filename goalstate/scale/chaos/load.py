"""The client that makes changes, at a rate, whatever fails.

Each worker has VPCs of its own and changes one of them at a time, so that the order of a VPC's
changes is known without asking anybody; many workers make many changes at once. After an answer was
lost the worker asks whoever serves then what became of the change: wholly there, or wholly not.

The rate is of accepted changes: what an outage cost is made up for afterwards, within reason.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from random import Random
from typing import Any

from goalstate.gs import intent_codec
from goalstate.gs.intent import FIELDS, Host, Intent, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.scale.chaos.changes import Change, Key, Model, Tenant, message, name_of
from goalstate.scale.chaos.ledger import Law, Ledger
from goalstate.scale.chaos.publishers import AnswerLost, Publishers, Refused, Shed

#: Changes under way at once.
WORKERS = 96
#: Aimed above the rate, so that it is reached; and how much faster an outage is made up for.
_ABOVE = 1.05
_CATCH_UP = 2.5
_TICK_S = 0.02
#: Seconds after which a worker tries again whose change was shed, at least and at most.
_AFTER_SHED_S = (0.1, 0.5)
#: Of a change that touches more, so many objects are read after its answer was lost, and then all.
_READ_ONE_BY_ONE = 6


class Load:
    def __init__(
        self,
        publishers: Publishers,
        tenants: list[Tenant],
        ledger: Ledger,
        *,
        rate: float,
        seed: int,
    ) -> None:
        self._publishers = publishers
        self._tenants = tenants
        self._ledger = ledger
        self._rate = rate
        self._random = Random(f"load/{seed}")
        self._marks = itertools.count(1)
        self._turns = asyncio.Semaphore(0)
        self._ending = False

    async def build(self, region: list[Host]) -> None:
        """Make the hosts known, and then all VPCs, as fast as they are taken."""
        known = intent_codec.to_proto(Intent(hosts=region))
        while True:
            try:
                await self._publishers.apply(known, name_of(0))
                break
            except (Shed, AnswerLost):
                continue  # said again, it changes nothing
        left = iter(self._tenants)

        async def work() -> None:
            for tenant in left:
                while not tenant.model.objects:
                    await self._make(tenant, tenant.create(next(self._marks)))

        await asyncio.gather(*(work() for _ in range(8)))

    async def run(self, until: asyncio.Event) -> None:
        """Make changes until the event is set, and bring what is under way to its end."""
        workers = [
            asyncio.ensure_future(self._work(self._tenants[number::WORKERS]))
            for number in range(min(WORKERS, len(self._tenants)))
        ]
        pace = asyncio.ensure_future(self._pace())
        try:
            stopped = asyncio.ensure_future(until.wait())
            await asyncio.wait((stopped, pace, *workers), return_when=asyncio.FIRST_COMPLETED)
            self._ending = True
            pace.cancel()
            for _ in workers:
                self._turns.release()
            await asyncio.gather(*workers)
        finally:
            for task in (pace, stopped, *workers):
                task.cancel()

    async def _pace(self) -> None:
        """Give turns: as many as the rate asks for by now, less what was made or is being made."""
        begun = time.monotonic()
        before = self._ledger.accepted
        given = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            wanted = _ABOVE * self._rate * (time.monotonic() - begun)
            made = self._ledger.accepted - before + self._ledger.under_way
            given = min(given + _CATCH_UP * self._rate * _TICK_S, WORKERS)
            while given >= 1 and made + self._turns._value < wanted:
                self._turns.release()
                given -= 1

    async def _work(self, tenants: list[Tenant]) -> None:
        while True:
            await self._turns.acquire()
            if self._ending:
                return
            tenant = self._random.choice(tenants)
            await self._make(tenant, tenant.next(next(self._marks)))

    async def _make(self, tenant: Tenant, change: Change) -> None:
        """Have a change made, and find out what came of it."""
        ledger = self._ledger
        intent = intent_codec.to_proto(change.intent)
        await self._publishers.serving()
        sent_at = time.monotonic()
        floor = ledger.send(change)
        try:
            reply = await self._publishers.apply(intent, name_of(change.mark))
        except Refused as error:
            ledger.refuse(change, str(error))
        except Shed:
            ledger.results[change.what, "shed"] += 1
            await asyncio.sleep(self._random.uniform(*_AFTER_SHED_S))
        except AnswerLost:
            there = await self._came_to_be(tenant, change)
            ledger.decide(change, there, time.monotonic())
            if there:
                tenant.model.apply(change)
        else:
            ledger.accept(change, reply, floor, sent_at, time.monotonic())
            tenant.model.apply(change)
        finally:
            ledger.end()

    async def _came_to_be(self, tenant: Tenant, change: Change) -> bool:
        """Is a change there whose answer was lost? It is there wholly, or not at all."""
        touched = change.touched
        if len(touched) <= _READ_ONE_BY_ONE:
            held = {key: await self._publishers.object(*key) for key in touched}
        else:
            objects = by_key(await self._publishers.intent(change.vpc))
            held = {key: objects.get(key) for key in touched}
        differs = {
            made: [key for key in touched if not _same(key, held[key], change, made=made)]
            for made in (True, False)
        }
        if change.invalid and not differs[False]:
            return False
        for made in (True, False):
            if not differs[made]:
                return made
        self._ledger.find(
            Law.TORN,
            f"{change.vpc}: of change {change.mark} ({change.what}) "
            f"{len(differs[True])} of {len(touched)} objects are not as after it, as "
            f"{differs[True][0][1]}, and {len(differs[False])} are not as before, as "
            f"{differs[False][0][1]}",
        )
        # What stands is what later changes must be valid on.
        whole = intent_codec.from_proto(await self._publishers.intent(change.vpc))
        tenant.model = Model()
        for kind, field in FIELDS.items():
            for one in getattr(whole, field):
                tenant.model.objects[kind, one.id] = one
        return False


def by_key(whole: intent_pb2.Intent) -> dict[Key, Any]:
    """The messages of an intent's objects."""
    return {(kind, one.id): one for kind in ObjectKind for one in getattr(whole, FIELDS[kind])}


def _same(key: Key, held: Any, change: Change, *, made: bool) -> bool:
    wanted = change.after(key, made=made)
    if held is None or wanted is None:
        return held is None and wanted is None
    return bool(held == getattr(message([wanted]), FIELDS[key[0]])[0])
