"""Publishers that share a region which is divided into shards: one answers for all, whichever is
asked, and each VPC has one writer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from goalstate.agent import __main__ as agent
from goalstate.agent.config import AgentConfig
from goalstate.dpm import peers, spread
from goalstate.dpm.errors import LogUnreadable
from goalstate.gs.intent import Deletion, Host, Intent, ObjectKind
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.sharding import shard_of
from goalstate.gs.topics import Topics
from goalstate.process import StartError
from tests.dpm.test_path_independence import network, port
from tests.dpm.test_service import BOUND, CODES, Served, error_of, intent, served, violations
from tests.dpm.wires import Region

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
async def publishers(region: Region, *names: str) -> AsyncIterator[list[Served]]:
    """Started together."""
    async with AsyncExitStack() as stack:
        starts = [
            stack.enter_async_context(served(region, shards=SHARDS, writer=name)) for name in names
        ]
        yield list(await asyncio.gather(*starts))


@asynccontextmanager
async def agents(region: Region, address: str, **more: Any) -> AsyncIterator[None]:
    """The hosts, made known to the publisher at `address`."""
    given = {"hosts": HOSTS, "group_size": 2, "shards": SHARDS, "lease_s": 5.0, **more}
    config = AgentConfig(
        broker="memory://",
        region="region",
        report_shards=1,
        metrics_port=None,
        inspect=None,
        **{"register_with": address, **given},
    )
    ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    stop, bus = asyncio.Event(), region.bus()
    running = asyncio.ensure_future(agent.run(config, ready=ready.set_result, stop=stop, bus=bus))
    waits: list[asyncio.Future[Any]] = [running, ready]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        await running
    try:
        yield
    finally:
        stop.set()
        await running
        await bus.close()


def play(
    scenario: Callable[[Region, list[Served]], Coroutine[None, None, None]],
    names: Sequence[str] = NAMES,
) -> None:
    async def main() -> None:
        region = Region()
        async with publishers(region, *names) as started:
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
        more = {} if registers else {"register_with": None}
        with pytest.raises(
            StartError, match="6 shards, and this agent was told 2: give --shards 6"
        ):
            async with agents(region, started[0].facts["listen"], shards=2, **more):
                pass

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
