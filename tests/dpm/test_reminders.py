"""Reminders: a host that lost the last message hears so, not too early, too often, or in vain."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise

import pytest

from goalstate.dpm import reminders as module
from goalstate.dpm.convergence import Convergence
from goalstate.dpm.engine import Engine
from goalstate.dpm.reminders import FIRST_NS, MOST_NS, PER_SECOND, Reminders
from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.intent import Intent
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.streams import ORIGIN, Mark, StreamId, vpc_stream
from tests.dpm.test_convergence import Followers, refused, report
from tests.dpm.test_engine import (
    EVERYBODY,
    Clock,
    all_of,
    apply,
    begin,
    host_report,
    out,
    run,
    send,
    serving,
)
from tests.dpm.test_path_independence import build, port
from tests.dpm.wires import Region, Wire, until

#: A change that puts a message on V1.
MOVED = Intent(ports=(port(1, 5, "h1", "v1-web", ip=99),))
V1 = vpc_stream("v1")
HEAD = Mark(1, 5)
SECOND = 1_000_000_000
NOW = 1000 * SECOND


def at(reminders: Reminders, now_ns: int, head: Mark = HEAD, stream: StreamId = V1) -> list[str]:
    """What is due when a host that lags is heard."""
    reminders.lags(stream, head, now_ns)
    return [str(one) for one in reminders.take(now_ns)]


# --- when ---


def test_a_stream_is_due_when_a_host_still_lags_after_it_was_quiet_for_a_while() -> None:
    reminders = Reminders()
    assert at(reminders, NOW) == []
    assert at(reminders, NOW + FIRST_NS - 1) == []
    assert at(reminders, NOW + FIRST_NS) == ["vpc/v1"]
    assert reminders.take(NOW + FIRST_NS) == [], "once, however many hosts say so"


def test_what_goes_on_is_never_due() -> None:
    reminders = Reminders()
    for n in range(100):
        assert at(reminders, NOW + n * FIRST_NS, Mark(1, n + 1)) == []


def test_a_stream_that_goes_on_is_not_due_any_more() -> None:
    reminders = Reminders()
    reminders.lags(V1, HEAD, NOW)
    reminders.lags(V1, HEAD, NOW + FIRST_NS)
    reminders.lags(V1, Mark(1, 6), NOW + FIRST_NS)
    assert reminders.take(NOW + FIRST_NS) == []


def test_however_many_hosts_lag_for_however_long_reminders_get_rare() -> None:
    reminders = Reminders()
    given = [n for n in range(3600) for _ in range(3) if at(reminders, NOW + n * SECOND)]
    gaps = [after - before for before, after in pairwise(given)]
    assert gaps[:5] == [10, 20, 40, 80, 160]
    assert set(gaps[6:]) == {MOST_NS // SECOND}
    # The next message of the stream may be lost as well.
    assert at(reminders, NOW + 3600 * SECOND, Mark(1, 6)) == []
    assert at(reminders, NOW + 3600 * SECOND + FIRST_NS, Mark(1, 6)) == ["vpc/v1"]


def test_of_many_streams_some_are_told_of_in_a_second_and_the_others_after_later_reports() -> None:
    reminders = Reminders()
    streams = [vpc_stream(f"v{n}") for n in range(2 * PER_SECOND + 10)]
    told: list[str] = []
    now = NOW
    for stream in streams:
        reminders.lags(stream, HEAD, now)
    now += FIRST_NS
    per_second = []
    for _ in range(4):
        for stream in streams:
            told += at(reminders, now, stream=stream)
        per_second.append(len(told))
        now += SECOND
    assert per_second == [PER_SECOND, 2 * PER_SECOND, len(streams), len(streams)]
    assert sorted(told) == sorted(map(str, streams))


def test_a_bounded_number_of_streams_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAMS", 3)
    reminders = Reminders()
    for n in range(4):
        reminders.lags(vpc_stream(f"v{n}"), HEAD, NOW)
    later = NOW + FIRST_NS
    assert at(reminders, later, stream=vpc_stream("v3")) == ["vpc/v3"]
    assert at(reminders, later, stream=vpc_stream("v0")) == [], "it was forgotten"


# --- who ---


@pytest.fixture
def followers() -> Followers:
    return Followers()


@pytest.fixture
def convergence(followers: Followers) -> Convergence:
    return Convergence(followers, head=lambda stream: HEAD)


def due(convergence: Convergence, mark: Mark, **more: object) -> bool:
    """Is a host that says twice that it is there a reason for a reminder?"""
    for number, now in ((1, NOW), (2, NOW + FIRST_NS)):
        convergence.report(report("h", number, {V1: mark}, full=True, **more), now)  # type: ignore[arg-type]
    return bool(convergence.reminders.take(NOW + FIRST_NS))


@pytest.mark.parametrize("mark", [ORIGIN, Mark(1, 4), Mark(0, 9)])
def test_a_host_behind_the_head_is_a_reason(convergence: Convergence, mark: Mark) -> None:
    assert due(convergence, mark)


@pytest.mark.parametrize("mark", [HEAD, Mark(2, 1)])
def test_a_host_that_is_there_is_none(convergence: Convergence, mark: Mark) -> None:
    assert not due(convergence, mark)


def test_a_host_that_is_there_with_exceptions_is_none(convergence: Convergence) -> None:
    assert not due(convergence, HEAD, exceptions=(refused(Mark(1, 4)),))


def test_a_host_that_follows_the_stream_no_longer_is_none(
    convergence: Convergence, followers: Followers
) -> None:
    followers.left.add(("h", V1))
    assert not due(convergence, Mark(1, 4))


def test_a_report_that_does_not_count_is_none(convergence: Convergence) -> None:
    convergence.report(report("h", 7, {V1: HEAD}), NOW)
    assert not due(convergence, Mark(1, 4))


# --- what is said ---


def told(region: Region, stream: StreamId) -> list[Envelope]:
    return [e for e, _ in region.stream(stream) if e.kind is MessageKind.IN_SYNC]


def is_heard(engine: Engine, sent: agent_pb2.HostReport) -> bool:
    view = engine.convergence.hosts.get(sent.host)
    return view is not None and view.number == sent.number


async def lag(region: Region, engine: Engine, clock: Clock, number: int) -> None:
    """All hosts say that they lack the newest message of V1, and again after a while."""
    head = engine.core.streams[V1].mark
    lagging = Mark(head.epoch, head.sequence - 1)
    for n in range(2):
        reports = [
            host_report(name, number + n, {V1: lagging})
            for name in EVERYBODY
            if V1 in all_of(engine, name)
        ]
        assert len(reports) > 1
        send(region, *reports)
        await until(partial(is_heard, engine, reports[-1]), "the reports are taken")
        clock.now += FIRST_NS


def test_the_stream_is_told_its_mark_once_more_and_goes_on_after_it() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build())
            await out(engine)
            head = engine.core.streams[V1].mark
            await lag(region, engine, clock, 1)
            await until(lambda: told(region, V1), "it is told")
            [envelope] = told(region, V1)
            assert (envelope.mark, envelope.until, envelope.after) == (head, None, None)
            await apply(engine, MOVED)
            await out(engine)
            newest, _ = region.stream(V1)[-1]
            assert newest.mark == Mark(head.epoch, head.sequence + 1), "it took no place"

    run(test)


def test_a_publisher_that_sent_nothing_yet_tells_it_too() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build())
            await out(engine)
        async with serving(region, clock=clock) as engine:
            head = engine.core.streams[V1].mark
            assert head.epoch < engine.core.epoch
            await lag(region, engine, clock, 1)
            await until(lambda: told(region, V1), "it is told")
            assert [one.mark for one in told(region, V1)] == [head]

    run(test)


def test_what_is_on_its_way_needs_no_reminder() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build())
            await out(engine)
            region.cut(Wire.LATE, region.topics.of_stream(V1))
            await apply(engine, MOVED)
            await lag(region, engine, clock, 1)
            region.mend()
            region.release()
            await out(engine)
            await lag(region, engine, clock, 3)
            assert engine.core.streams[V1].mark in [one.mark for one in told(region, V1)]
            assert len(told(region, V1)) == 1, "of the first time nothing was said"

    run(test)


def test_nothing_is_said_of_what_is_not_durable() -> None:
    async def test(region: Region) -> None:
        clock = Clock()
        async with serving(region, clock=clock) as engine:
            await apply(engine, *build())
            await out(engine)
            before = engine.core.streams[V1].mark
            region.cut(Wire.HELD, region.topics.intent_log)
            waiting = begin(engine, MOVED)
            await until(lambda: engine.core.streams[V1].mark > before, "it is accepted")
            await lag(region, engine, clock, 1)
            for _ in range(10):
                await asyncio.sleep(0)
            assert told(region, V1) == []
            region.mend()
            region.release()
            await waiting
            await out(engine)

    run(test)
