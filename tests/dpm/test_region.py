"""Publishers that share a region which is divided into shards: one answers for all, whichever is
asked, and each VPC has one writer."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from goalstate.agent import __main__ as agent
from goalstate.agent.config import AgentConfig
from goalstate.dpm import __main__ as publisher
from goalstate.dpm import peers, spread, standby
from goalstate.dpm.admission import Admission
from goalstate.dpm.convergence import Progress
from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import LogUnreadable, Overloaded
from goalstate.dpm.region import RegionService
from goalstate.gs import intent_codec
from goalstate.gs.intent import Deletion, Host, Intent, ObjectKind, Vpc
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.resources import Kind
from goalstate.gs.sharding import shard_of
from goalstate.gs.topics import Topics
from goalstate.process import RETRY_AFTER, StartError
from tests.dpm.test_path_independence import build, network, port
from tests.dpm.test_service import (
    BOUND,
    CODES,
    Served,
    config,
    error_of,
    intent,
    metrics_at,
    served,
    violations,
)
from tests.dpm.wires import Region, Wire, until

SHARDS = 6
VPCS = range(1, 13)
HOSTS = 4
NAMES = ("one", "two", "three")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing changes hands while a test does not want it."""
    monkeypatch.setattr(spread, "STEP_S", 0.02)
    monkeypatch.setattr(peers, "LOOK_S", 3600.0)


@asynccontextmanager
async def publishers(region: Region, *names: str, **more: Any) -> AsyncIterator[list[Served]]:
    """Started together."""
    async with AsyncExitStack() as stack:
        starts = [
            stack.enter_async_context(served(region, shards=SHARDS, writer=name, **more))
            for name in names
        ]
        yield list(await asyncio.gather(*starts))


@asynccontextmanager
async def agents(
    region: Region, address: str, *, audit_interval_s: float = 0, **more: Any
) -> AsyncIterator[dict[str, Any]]:
    """The hosts, made known to the publisher at `address`."""
    given = {"hosts": HOSTS, "group_size": 2, "shards": SHARDS, "lease_s": 5.0, **more}
    settings = AgentConfig(
        broker="memory://",
        region="region",
        report_shards=1,
        metrics_port=0,
        inspect=None,
        **{"register_with": address, **given},
    ).model_copy(update={"audit_interval_s": audit_interval_s})  # shorter than it may be
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stop, bus = asyncio.Event(), region.bus()
    running = asyncio.ensure_future(agent.run(settings, ready=ready.set_result, stop=stop, bus=bus))
    waits: list[asyncio.Future[Any]] = [running, ready]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    try:
        yield ready.result()
    finally:
        stop.set()
        await running
        await bus.close()


def play(
    scenario: Callable[[Region, list[Served]], Coroutine[None, None, None]],
    names: Sequence[str] = NAMES,
    **more: Any,
) -> None:
    async def main() -> None:
        region = Region()
        async with publishers(region, *names, **more) as started:
            await scenario(region, started)

    asyncio.run(main())


def vpc(number: int) -> Intent:
    """A network with a port on each host."""
    ports = tuple(port(number, n, f"host-{n:06d}", f"v{number}-web") for n in range(HOSTS))
    return network(number)._replace(ports=ports)


def shard(number: int) -> int:
    return shard_of(f"v{number}", SHARDS)


async def settled(*of: Served) -> list[api.ShardStatus]:
    """Until these agree on who serves each shard, and that those are of them."""
    names = {(await one.status(brief=True)).writer for one in of}
    async with asyncio.timeout(BOUND):
        while True:
            statuses = [await one.status(brief=True) for one in of]
            serve = [tuple(s.active_writer for s in status.shards) for status in statuses]
            active = [
                sum(status.shards[n].role == api.StatusReply.ACTIVE for status in statuses)
                for n in range(SHARDS)
            ]
            if len(set(serve)) == 1 and set(serve[0]) <= names and active == [1] * SHARDS:
                return list(statuses[0].shards)
            await asyncio.sleep(0.001)


async def converged(one: Served) -> api.WaitReply:
    request = api.WaitRequest(all=True, timeout_s=BOUND)
    reply: api.WaitReply = await one.stub.Wait(request, timeout=2 * BOUND)
    assert reply.converged, reply
    return reply


def writers(region: Region) -> list[dict[int, str]]:
    """Of each shard: who wrote its log, by epoch."""
    found = []
    for topics in Topics(shards=SHARDS).all_shards():
        whole = Region()
        whole.broker, whole.topics = region.broker, topics
        begun = [r.incarnation for r in whole.log() if r.HasField("incarnation")]
        assert all(i.shards == SHARDS for i in begun)
        found.append({i.epoch: i.writer for i in begun})
    return found


def test_publishers_that_start_together_share_the_shards() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        shards = await settled(*started)
        assert {one.active_writer for one in shards} == set(NAMES)
        assert [set(one) for one in writers(region)] == [{1}] * SHARDS, "no shard changed hands"
        roles = [(await one.status(brief=True)).role for one in started]
        assert roles == [api.StatusReply.ACTIVE] * 3

    play(scenario)


def test_whichever_is_asked_everything_is_served_and_converges() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        await settled(*started)
        async with agents(region, started[1].facts["listen"]):
            for number in VPCS:
                reply = await started[number % 3].apply(vpc(number))
                assert [c.shard for c in reply.shard_changes] == [shard(number)]
                assert reply.change == reply.shard_changes[0].change > 0
            for one in started:
                waited = await converged(one)
                assert waited.hosts == waited.hosts_applied == HOSTS * SHARDS
                status = await one.status(hosts=True)
                assert dict(status.objects)["vpc"] == len(VPCS)
                assert dict(status.objects)["host"] == HOSTS
                assert {h.host: h.ports for h in status.host_list} == {
                    f"host-{n:06d}": len(VPCS) for n in range(HOSTS)
                }
                assert status.hosts_live == HOSTS
                assert {
                    (s.stream, s.shard) for s in status.streams if s.stream.startswith("vpc/")
                } == {(f"vpc/v{n}", shard(n)) for n in VPCS}
                whole, _ = await intent(one)
                assert {v.id for v in whole.vpcs} == {f"v{n}" for n in VPCS}
                assert [h.id for h in whole.hosts] == [f"host-{n:06d}" for n in range(HOSTS)]
                assert len(whole.ports) == HOSTS * len(VPCS)
                (only, _) = await intent(one, kind=intent_pb2.PORT, id="v7-p2")
                assert [p.vpc_id for p in only.ports] == ["v7"]
            steps = started[0].stub.Watch(api.WaitRequest(all=True, timeout_s=BOUND))
            assert [step async for step in steps][-1].converged
            for number in (1, 2, 3):
                request = api.WaitRequest(vpc_id=f"v{number}", timeout_s=BOUND)
                assert (await started[0].stub.Wait(request, timeout=BOUND)).converged

    play(scenario)


def test_all_has_not_converged_while_one_shard_has_not() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        (one,) = started
        async with agents(region, one.facts["listen"]):
            await one.apply(vpc(1), vpc(2))
            await converged(one)
            lonely = Host("lonely", "100.64.9.9", "02:00:00:00:09:09", "rack-9")
            await one.apply(Intent(hosts=(lonely,)))
            await one.apply(Intent(ports=(port(2, 9, "lonely"),)))
            request = api.WaitRequest(all=True, timeout_s=0)
            missing: set[tuple[str, int]] = set()
            async with asyncio.timeout(BOUND):
                while missing != {("lonely", shard(2))}:
                    reply = await one.stub.Wait(request, timeout=BOUND)
                    assert not reply.converged
                    missing = {(s.host, s.shard) for s in reply.stragglers}
            request = api.WaitRequest(vpc_id="v1", timeout_s=BOUND)
            assert (await one.stub.Wait(request, timeout=BOUND)).converged

    play(scenario, ["one"])


@pytest.mark.parametrize("watch", [False, True])
def test_a_wait_that_fails_in_one_shard_ends_in_all(
    monkeypatch: pytest.MonkeyPatch, watch: bool
) -> None:
    waiting = Counter[Engine]()
    wait = Engine.wait

    async def counted(engine: Engine, **what: Any) -> Progress:
        waiting[engine] += 1
        try:
            return await wait(engine, **what)
        finally:
            waiting[engine] -= 1

    monkeypatch.setattr(Engine, "wait", counted)

    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        shards = await settled(*started)
        hosts = (Host("host-000000", "100.64.9.9", "02:00:00:00:09:09", "r"),)
        await one.apply(Intent(hosts=hosts))
        for number in VPCS:  # of hosts that nobody plays
            await two.apply(network(number), Intent(ports=(port(number, 0, "host-000000"),)))
        lost = next(s.shard for s in shards if s.active_writer == "two")
        region.cut(Wire.DEAD, Topics(shards=SHARDS, shard=lost).intent_log)
        call = one.stub.Watch if watch else one.stub.Wait
        asked = call(api.WaitRequest(all=True, timeout_s=3600.0), timeout=BOUND)
        await until(lambda: sum(waiting.values()) == SHARDS, "every shard waits")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            _ = [step async for step in asked] if watch else await asked
        assert error.value.code() is CODES.UNAVAILABLE
        await until(lambda: not sum(waiting.values()), "none waits any more")
        region.mend()

    play(scenario)


def test_a_change_is_waited_for_by_its_shard_and_number() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        async with agents(region, started[0].facts["listen"]):
            reply = await started[1].apply(vpc(4))
            (of,) = reply.shard_changes
            wanted = api.WaitRequest(change=of.change, shard=of.shard, timeout_s=BOUND)
            assert (await started[2].stub.Wait(wanted, timeout=BOUND)).converged
            wanted.ClearField("shard")
            error = await error_of(started[2].stub.Wait(wanted, timeout=BOUND))
            assert error.code() is CODES.INVALID_ARGUMENT
            assert "say whose change" in str(error.details())
            wanted.shard = SHARDS
            assert (await error_of(started[2].stub.Wait(wanted))).code() is CODES.INVALID_ARGUMENT

    play(scenario)


def test_what_is_no_one_change_is_refused_with_every_stranger_named() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        (one,) = started
        first, second = network(1), network(2)
        assert shard(1) != shard(2)
        both = Intent(vpcs=(*first.vpcs, *second.vpcs))
        error = await error_of(one.apply(both))
        assert error.code() is CODES.INVALID_ARGUMENT
        assert [(v.field, v.reason) for v in violations(error)] == [("vpcs[1]", "OTHER_SHARD")]
        with_hosts = first._replace(hosts=(Host("h", "100.64.9.9", "02:00:00:00:09:09", "r"),))
        found = violations(await error_of(one.apply(with_hosts)))
        assert {v.reason for v in found} == {"HOSTS_APART"}
        assert (await one.status(brief=True)).change == 0

    play(scenario, ["one"])


def test_ids_and_tunnels_are_the_regions() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        (one,) = started
        await one.apply(
            Intent(hosts=(Host("host-000000", "100.64.9.9", "02:00:00:00:09:09", "r"),))
        )
        await one.apply(network(1))
        await one.apply(Intent(ports=(port(1, 0, "host-000000"),)))
        other = network(2)
        error = await error_of(
            one.apply(other._replace(vpcs=(other.vpcs[0]._replace(tunnel_id=101),)))
        )
        assert [(v.field, v.reason) for v in violations(error)] == [
            ("vpcs[0].tunnel_id", "DUPLICATE_TUNNEL_ID")
        ]
        await one.apply(other)
        taken = port(2, 0, "host-000000")._replace(id="v1-p0")
        error = await error_of(one.apply(Intent(ports=(taken,))))
        assert [(v.field, v.reason) for v in violations(error)] == [("ports[0].id", "DUPLICATE_ID")]

    play(scenario, ["one"])


def test_what_was_made_through_one_goes_through_another_at_once() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        await settled(*started)
        one, two, three = started
        for number in VPCS:
            await one.apply(network(number))
            going = Intent(deletes=(Deletion(ObjectKind.SUBNET, f"v{number}-s2"),))
            router = network(number).routers[0]._replace(subnet_ids=(f"v{number}-s1",))
            await two.apply(Intent(routers=(router,)))
            assert (await three.apply(going)).changed_objects == 1
        error = await error_of(two.apply(Intent(deletes=(Deletion(ObjectKind.PORT, "none"),))))
        assert [v.reason for v in violations(error)] == ["UNKNOWN_ID"]

    play(scenario)


def test_what_was_deleted_is_free_at_once_whichever_shard_had_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(standby, "GATHER_S", 0.2)  # what others do is heard of late

    async def scenario(region: Region, started: list[Served]) -> None:
        await settled(*started)
        one = started[0]

        async def is_known() -> None:
            while not (await one.status(brief=True)).objects["vpc"]:
                await asyncio.sleep(0.001)

        for number in VPCS:
            await one.apply(Intent(vpcs=(Vpc(f"v{number}", cidr="10.0.0.0/16", tunnel_id=7),)))
            await asyncio.wait_for(is_known(), BOUND)
            again = Intent(vpcs=(Vpc(f"v{number + 1}", cidr="10.0.0.0/16", tunnel_id=7),))
            if shard(number + 1) != shard(number):
                error = await error_of(one.apply(again))
                assert [v.reason for v in violations(error)] == ["DUPLICATE_TUNNEL_ID"]
            await one.apply(Intent(deletes=(Deletion(ObjectKind.VPC, f"v{number}"),)))

    play(scenario)


def test_hosts_are_of_every_shard_and_stay_where_any_needs_them() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        await settled(*started)
        hosts = Intent(hosts=(Host("host-000000", "100.64.9.9", "02:00:00:00:09:09", "r"),))
        reply = await one.apply(hosts)
        assert [c.shard for c in reply.shard_changes] == list(range(SHARDS))
        again = await two.apply(hosts)
        assert again.changed_objects == 0
        await one.apply(network(5))
        await one.apply(Intent(ports=(port(5, 0, "host-000000"),)))
        going = Intent(deletes=(Deletion(ObjectKind.HOST, "host-000000"),))
        error = await error_of(one.apply(going))
        assert {v.reason for v in violations(error)} == {"IN_USE"}
        for n in range(SHARDS):
            stub, asked = two.stub, {"metadata": [("goalstate-shard", str(n))], "timeout": BOUND}
            found = [
                p async for p in stub.GetIntent(api.GetIntentRequest(kind=intent_pb2.HOST), **asked)
            ]
            assert [h.id for piece in found for h in piece.hosts] == ["host-000000"]

    play(scenario)


def test_hosts_that_a_shard_needs_go_from_none_however_lately_they_are_needed() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        await settled(*started)
        all_hosts = [f"host-{n:06d}" for n in VPCS]
        await started[0].apply(
            *(
                Intent(hosts=(Host(id_, f"100.64.9.{n}", f"02:00:00:00:09:{n:02x}", "r"),))
                for n, id_ in enumerate(all_hosts)
            )
        )
        for number, id_ in zip(VPCS, all_hosts, strict=True):
            one, other = started[number % 3], started[(number + 1) % 3]
            await one.apply(network(number))
            await one.apply(Intent(ports=(port(number, 0, id_),)))
            going = Intent(deletes=(Deletion(ObjectKind.HOST, id_),))
            found = violations(await error_of(other.apply(going)))
            assert {v.reason for v in found} == {"IN_USE"}
        for each in range(SHARDS):
            asked = {"metadata": [("goalstate-shard", str(each))], "timeout": BOUND}
            request = api.GetIntentRequest(kind=intent_pb2.HOST)
            told = [piece async for piece in started[0].stub.GetIntent(request, **asked)]
            assert sorted(h.id for piece in told for h in piece.hosts) == all_hosts

    play(scenario)


def test_hosts_that_cannot_be_told_to_a_shard_are_taken_by_none() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        shards = await settled(*started)
        others = next(s.shard for s in shards if s.active_writer != NAMES[0])
        hosts = Intent(hosts=(Host("host-000000", "100.64.9.9", "02:00:00:00:09:09", "r"),))
        region.cut(Wire.FAILS, Topics(shards=SHARDS, shard=others).intent_log)
        assert (await error_of(one.apply(hosts))).code() is CODES.UNAVAILABLE
        region.mend()
        await settled(*started)
        assert (await two.status(brief=True)).change == 0

    play(scenario)


def test_an_answer_that_is_lost_between_publishers_is_no_error_of_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that ends as it is written to has this error, whatever ended it."""

    async def lost(*_: Any) -> None:
        none = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(CODES.INTERNAL, none, none, "Internal error from Core")

    async def scenario(region: Region, started: list[Served]) -> None:
        await settled(*started)
        monkeypatch.setattr(RegionService, "_as_stream", lost)
        error = await error_of(started[0].apply(build()[0]))
        assert error.code() is CODES.UNAVAILABLE
        assert "may have been done" in str(error.details())

    play(scenario)


def test_who_took_hosts_is_said_where_not_all_shards_did(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing_is_known_before(*_: Any) -> tuple[()]:
        return ()

    monkeypatch.setattr(RegionService, "_of_hosts", nothing_is_known_before)

    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        await settled(*started)
        hosts = Intent(hosts=(Host("host-000000", "100.64.9.9", "02:00:00:00:09:09", "r"),))
        lost = Topics(shards=SHARDS, shard=3).intent_log
        region.cut(Wire.FAILS, lost)
        error = await error_of(one.apply(hosts))
        region.mend()
        assert error.code() is CODES.UNAVAILABLE
        assert "hosts are of every shard, and of these took them: 0, 1, 2, 4, 5; shard 3: " in str(
            error.details()
        )
        await settled(*started)
        again = await two.apply(hosts)
        assert again.changed_objects == 1, "where it was lacking"
        assert {c.shard: c.change for c in again.shard_changes} == dict.fromkeys(range(SHARDS), 1)

    play(scenario)


@pytest.mark.parametrize("goes", NAMES)
def test_one_that_goes_leaves_its_shards_to_the_others_and_nothing_is_lost(goes: str) -> None:
    async def main() -> None:
        region = Region()
        leaving = AsyncExitStack()
        staying = [name for name in NAMES if name != goes]
        async with publishers(region, *staying) as stay:
            going = await leaving.enter_async_context(served(region, shards=SHARDS, writer=goes))
            async with agents(region, stay[0].facts["listen"]):
                for number in VPCS:
                    await (*stay, going)[number % 3].apply(vpc(number))
                await leaving.aclose()
                await settled(*stay)
                assert all(list(one) == list(range(1, len(one) + 1)) for one in writers(region)), (
                    "each epoch has one writer"
                )
                for number in VPCS:
                    reply = await stay[number % 2].apply(vpc(number))
                    assert reply.changed_objects == 0, "it is there already"
                    await stay[number % 2].apply(
                        Intent(ports=(port(number, 3, "host-000000", f"v{number}-db"),))
                    )
                await converged(stay[1])
                whole, _ = await intent(stay[0])
                assert len(whole.ports) == HOSTS * len(VPCS)

    asyncio.run(main())


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_a_region_is_divided_once_and_for_all(shards: int) -> None:
    async def main() -> None:
        region = Region()
        async with publishers(region, "one"):
            pass
        with pytest.raises(LogUnreadable, match=f"divided into 6 shards, not into {shards},"):
            async with served(region, shards=shards, writer="two"):
                pass

    asyncio.run(main())


@pytest.mark.parametrize("registers", [True, False])
def test_an_agent_that_was_told_another_number_of_shards_does_not_start(registers: bool) -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        more: dict[str, Any] = {"shards": 1} if registers else {"shards": 2, "register_with": None}
        with pytest.raises(
            StartError, match=r"6 shards, and this agent was told \d: give --shards 6"
        ):
            async with agents(region, started[0].facts["listen"], **more):
                pass
        assert not (await started[0].status(brief=True)).objects["host"], "none is made known"

    play(scenario, ["one"])


def test_a_call_of_a_shard_that_is_none_is_refused() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        for name in ("6", "-1", "x", ""):
            asked = {"metadata": [("goalstate-shard", name)], "timeout": BOUND}
            call = started[0].stub.GetStatus(api.StatusRequest(), **asked)
            assert (await error_of(call)).code() is grpc.StatusCode.INVALID_ARGUMENT

    play(scenario, ["one"])


def test_one_that_comes_later_is_given_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LOOK_S", 0.05)

    async def main() -> None:
        region = Region()
        async with publishers(region, "one") as (one,):
            for number in VPCS:
                await one.apply(network(number))
            async with publishers(region, "two", "three") as (two, three):
                async with asyncio.timeout(BOUND):
                    while True:
                        shards = await settled(one, two, three)
                        counts = Counter(s.active_writer for s in shards)
                        if sorted(counts.values()) == [2, 2, 2]:
                            break
                for number in VPCS:
                    assert (await two.apply(network(number))).changed_objects == 0
                whole, _ = await intent(three)
                assert len(whole.vpcs) == len(VPCS)

    asyncio.run(main())


def test_shards_that_are_handed_over_under_load_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "LOOK_S", 0.05)

    async def change(of: list[Served], number: int, over: asyncio.Event) -> dict[str, str]:
        """Rename the ports of a VPC in turn, by whoever takes it; gives the names acknowledged."""
        names: dict[str, str] = {}
        for tries, n in enumerate(itertools.cycle(range(HOSTS))):
            if over.is_set() and len(names) == HOSTS:
                return names
            renamed = port(number, n, f"host-{n:06d}", f"v{number}-web")._replace(
                name=f"name-{tries}"
            )
            if await answer_of(of[tries % len(of)].apply(Intent(ports=(renamed,)))) is None:
                names.pop(renamed.id, None)  # it may be either
                await asyncio.sleep(0.01)
            else:
                names[renamed.id] = renamed.name
        raise AssertionError("never ends")

    async def main() -> None:
        region, over = Region(), asyncio.Event()
        async with (
            publishers(region, "one") as (one,),
            agents(region, one.facts["listen"]),
            publishers(region, "two", "three") as (two, three),
        ):
            asked = [one, two, three]
            for number in VPCS:
                async with asyncio.timeout(BOUND):
                    while (await answer_of(one.apply(vpc(number)))) is None:
                        pass
            loads = [asyncio.ensure_future(change(asked, number, over)) for number in VPCS]
            async with asyncio.timeout(BOUND):
                shares: list[int] = []
                while shares != [2, 2, 2]:
                    shards = await settled(*asked)
                    shares = sorted(Counter(s.active_writer for s in shards).values())
            over.set()
            wanted = {id_: name for load in loads for id_, name in (await load).items()}
            assert len(wanted) == HOSTS * len(VPCS)
            for each in asked:
                assert (
                    wanted.items() <= {p.id: p.name for p in (await intent(each))[0].ports}.items()
                )
            await converged(two)
        assert any(len(epochs) > 1 for epochs in writers(region)), "shards changed hands"

    asyncio.run(main())


async def answer_of(call: Any) -> api.ApplyReply | None:
    """None where nobody serves the shard just now."""
    try:
        reply: api.ApplyReply = await call
    except grpc.aio.AioRpcError as error:
        assert error.code() is CODES.UNAVAILABLE, error
        return None
    return reply


def test_of_two_that_are_told_differently_one_serves_whatever_they_do_first() -> None:
    async def one_of_them(region: Region, shards: int, over: asyncio.Event) -> None:
        async with served(region, shards=shards, writer=f"of {shards}") as one:
            status = await one.status(brief=True)
            while not status.serving:
                status = await one.status(brief=True)
            assert len(status.shards) == shards
            await over.wait()

    async def main() -> None:
        region, over = Region(), asyncio.Event()
        both = [asyncio.ensure_future(one_of_them(region, n, over)) for n in (6, 7)]
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        with pytest.raises(LogUnreadable, match="divided into"):
            await refused
        over.set()
        (other,) = set(both) - done
        await other

    asyncio.run(main())


def test_small_vpcs_travel_over_sessions_with_whoever_serves_their_shard() -> None:
    async def main() -> None:
        region = Region()
        leaving = AsyncExitStack()
        async with publishers(region, "one", "two", channel="auto") as stay:
            three = served(region, shards=SHARDS, writer="three", channel="auto")
            going = await leaving.enter_async_context(three)
            async with agents(region, stay[0].facts["listen"]):
                for number in VPCS:
                    await (*stay, going)[number % 3].apply(vpc(number))
                await converged(stay[0])
                status = await stay[1].status()
                channels = {s.channel for s in status.streams if s.stream.startswith("vpc/")}
                assert channels == {"session"}
                await leaving.aclose()
                await settled(*stay)
                for number in VPCS:
                    more = port(number, 9, f"host-{number % HOSTS:06d}")
                    await stay[number % 2].apply(Intent(ports=(more,)))
                await converged(stay[1])

    asyncio.run(main())


#: Intents at once: many more than may be under way in all shards.
MANY = 300


def test_what_is_too_much_is_shed_whichever_shard_it_is_of() -> None:
    def small(number: int) -> Intent:
        return Intent(vpcs=(Vpc(f"v{number}", cidr="10.0.0.0/16", tunnel_id=number + 1),))

    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        await settled(*started)
        region.cut(Wire.LATE, *(t.intent_log for t in Topics(shards=SHARDS).all_shards()))
        ways = (one, two)
        asked = [asyncio.ensure_future(ways[n % 2].apply(small(n))) for n in range(MANY)]
        await until(lambda: any(call.done() for call in asked), "something is shed")
        region.mend()
        region.release()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        shed = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        assert {error.code() for error in shed} == {CODES.RESOURCE_EXHAUSTED}
        assert all(RETRY_AFTER in dict(error.trailing_metadata()) for error in shed)
        whole, _ = await intent(one)
        assert len(whole.vpcs) == len(answers) - len(shed)

        async def all_of_them() -> AsyncIterator[api.ApplyRequest]:
            for number in range(MANY):
                yield api.ApplyRequest(intent=intent_codec.to_proto(small(number)))

        replies = [reply async for reply in two.stub.ApplyStream(all_of_them(), timeout=BOUND)]
        assert sum(reply.changed_objects for reply in replies) == len(shed)

    play(scenario, longest_wait_s=0.01)


def test_hosts_in_a_stream_wait_where_there_is_too_much_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shed: list[int] = []
    check = Admission.check

    def checked(admission: Admission, size: int, unconfirmed: int, now: float) -> None:
        try:
            check(admission, size, unconfirmed, now)
        except Overloaded:
            shed.append(size)
            raise

    monkeypatch.setattr(Admission, "check", checked)

    async def hosts() -> AsyncIterator[api.ApplyRequest]:
        host = Host("host-000000", "100.64.9.9", "02:00:00:00:09:09", "r")
        yield api.ApplyRequest(intent=intent_codec.to_proto(Intent(hosts=(host,))))

    async def answers(of: Served) -> list[api.ApplyReply]:
        return [reply async for reply in of.stub.ApplyStream(hosts(), timeout=BOUND)]

    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        await settled(*started)
        region.cut(Wire.LATE, *(t.intent_log for t in Topics(shards=SHARDS).all_shards()))
        asked = [asyncio.ensure_future(one.apply(network(n))) for n in range(MANY)]
        await until(lambda: shed, "something is shed")
        asked_of_hosts = asyncio.ensure_future(answers(two))
        await until(lambda: 0 in shed, "who is asked what it knows has too much to do")
        region.mend()
        region.release()
        (reply,) = await asked_of_hosts
        assert reply.changed_objects == 1
        await asyncio.gather(*asked, return_exceptions=True)

    play(scenario, longest_wait_s=0.01)


def test_refusals_of_several_shards_are_told_together_and_published_again() -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, three = started
        await settled(*started)
        model = {"refuse_ids": ("v?-p0",), "refuse_times": 1}
        retries: dict[str, Any] = {"retry_attempts": 1, "data_plane": "modelled", "model": model}
        async with agents(region, one.facts["listen"], **retries):
            numbers = (1, 2, 3, 4)
            assert len({shard(n) for n in numbers}) > 1
            for number in numbers:
                await two.apply(vpc(number))
            # A neighbor of the same id is refused by all hosts of the VPC.
            wanted = {f"v{n}": 1 + HOSTS for n in numbers}
            for each in started:
                async with asyncio.timeout(BOUND):
                    status = await each.status(exceptions=True)
                    while dict(status.exceptions_by_vpc) != wanted:
                        status = await each.status(exceptions=True)
                assert dict(status.exceptions) == {"refused": sum(wanted.values())}
                assert {e.vpc for e in status.exception_list} == set(wanted)
                few = await each.status(exceptions=True, max_exceptions=3)
                assert len(few.exception_list) == 3
            request = api.WaitRequest(all=True, timeout_s=0)
            assert not (await three.stub.Wait(request, timeout=BOUND)).converged

            names = {(e.type, e.id) for e in status.exception_list}
            again = api.RepublishRequest()
            for type_, id_ in sorted(names):
                again.resources.add(type=type_, id=id_)
            reply = await three.stub.Republish(again, timeout=BOUND)
            assert [c.shard for c in reply.shard_changes] == sorted({shard(n) for n in numbers})
            async with asyncio.timeout(BOUND):  # the next revision is refused as well
                while {e.revision for e in status.exception_list} != {2}:
                    status = await one.status(exceptions=True)
            for change in reply.shard_changes:
                request = api.WaitRequest(change=change.change, shard=change.shard, timeout_s=0)
                waited = await one.stub.Wait(request, timeout=BOUND)
                assert {s.why for s in waited.stragglers} == {api.Straggler.REFUSED}

            unknown = api.RepublishRequest()
            unknown.resources.add(type=again.resources[0].type, id=again.resources[0].id)
            unknown.resources.add(type=int(Kind.PORT), id="none")
            error = await error_of(one.stub.Republish(unknown, timeout=BOUND))
            assert [(v.field, v.reason) for v in violations(error)] == [
                ("resources[1]", "UNKNOWN_RESOURCE")
            ]
            assert (await error_of(one.stub.Republish(api.RepublishRequest()))).code() is (
                CODES.INVALID_ARGUMENT
            )

    play(scenario)


def test_agents_go_on_from_what_they_stored_and_audits_find_nothing(tmp_path: Path) -> None:
    async def scenario(region: Region, started: list[Served]) -> None:
        one, two, _ = started
        more: dict[str, Any] = {"state_dir": tmp_path, "audit_interval_s": 0.4}
        async with agents(region, one.facts["listen"], **more):
            for number in VPCS:
                await one.apply(vpc(number))
            await converged(two)
        async with agents(region, two.facts["listen"], **more) as facts:
            await converged(one)
            rounds = 3 * HOSTS * SHARDS
            found: dict[str, float] = {}
            async with asyncio.timeout(BOUND):
                while found.get("goalstate_agent_audits_total", 0) <= rounds:
                    found = await asyncio.to_thread(metrics_at, facts["metrics"])
            assert not sum(number for name, number in found.items() if "drifts_total" in name)
            assert not found["goalstate_agent_gaps_total"]
            assert not found["goalstate_agent_resyncs_total"]
            for number in VPCS:
                await two.apply(Intent(ports=(port(number, 9, "host-000001"),)))
            await converged(one)

    play(scenario)


def test_a_region_that_is_not_divided_says_nothing_of_shards() -> None:
    async def main() -> None:
        region = Region()
        async with served(region, writer="one") as one:
            await one.apply(*build())
            assert not (await one.status()).shards
            with_shards = [r.incarnation.shards for r in region.log() if r.HasField("incarnation")]
            assert with_shards == [0]
            assert not [name for name in region.broker.topics if "shard-" in name]

    asyncio.run(main())


def test_the_logs_and_snapshots_of_all_shards_are_kept_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asked(Exception):
        pass

    async def ensure(url: str, tenant: str, region: str, **kept: Any) -> None:
        topics = Topics("persistent://goalstate/region", shards=3).all_shards()
        assert set(kept["for_good"]) == {
            name for each in topics for name in (each.intent_log, each.intent_snapshots)
        }
        assert len(kept["for_good"]) == 6
        raise Asked

    monkeypatch.setattr(publisher, "ensure_namespace", ensure)
    with pytest.raises(Asked):
        asyncio.run(publisher.run(config(admin_url="http://127.0.0.1:1", shards=3)))
