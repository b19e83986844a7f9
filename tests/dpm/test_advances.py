"""Entries that hosts share say to the publisher what the report of each of them would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goalstate.dpm.convergence import Convergence, Wait
from goalstate.gs import digest as digests
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.reports import host_reports
from goalstate.gs.streams import Mark, StreamId, inbox_stream, vpc_stream

VPC, INBOX = vpc_stream("v"), inbox_stream("rack")
HOSTS = ("a", "b", "c")
SECOND = 1_000_000_000
HEAD = Mark(1, 5)

DIGESTS = (b"", *map(digests.to_bytes, (7, 8, 9)))

#: Per host: incarnation and number.
hosts = st.dictionaries(
    st.sampled_from(HOSTS), st.tuples(st.integers(1, 2), st.integers(1, 4)), max_size=3
)
streams = st.lists(st.sampled_from((VPC, INBOX)), min_size=1, max_size=2, unique=True)


@st.composite
def messages(draw: st.DrawFn) -> agent_pb2.Report:
    """A report of single hosts, or an entry that they share."""
    told, at = draw(hosts), draw(streams)
    report = agent_pb2.Report(clock_id=draw(st.sampled_from(("here", "elsewhere"))))
    advance = report.advances.add(
        lease_s=draw(st.sampled_from((5, 10))),
        inspection_address=draw(st.sampled_from(("", "h:1"))),
        hosts=list(told),
        incarnations=[row[0] for row in told.values()],
        numbers=[row[1] for row in told.values()],
        applied_unix_ns=[draw(st.integers(0, 50)) for _ in range(len(told) * len(at))],
        digests=[draw(st.sampled_from(DIGESTS)) for _ in range(len(told) * len(at))],
    )
    for stream in at:
        advance.places.add(stream=str(stream), epoch=1, sequence=draw(st.integers(3, 6)))
    if draw(st.booleans()):
        alone = agent_pb2.Report(hosts=host_reports(report), clock_id=report.clock_id)
        for host in alone.hosts:
            host.full = draw(st.booleans())
            if draw(st.booleans()):
                host.exceptions.add(
                    stream=str(VPC), epoch=1, sequence=4, id="p", type=1, reason="table full"
                )
        return alone
    return report


def digest_at(host: str, stream: StreamId, mark: Mark) -> int | None:
    """Of an inbox each host holds something else."""
    if mark != HEAD:
        return None
    return 7 if stream == VPC else {"a": 7, "b": 8, "c": 9}[host]


def publisher() -> tuple[Convergence, list[Wait]]:
    convergence = Convergence(
        lambda host, stream: (host, stream) != ("c", INBOX),
        digest_at,
        lambda stream: HEAD,
    )
    waits = [
        convergence.begin([(VPC, Mark(1, sequence), frozenset(HOSTS))], 10, quorum)
        for sequence, quorum in ((4, 1.0), (5, 0.5))
    ]
    waits.append(convergence.begin([(INBOX, Mark(1, 5), frozenset("ac"))], 10))
    return convergence, waits


def believed(convergence: Convergence, waits: list[Wait], now: int) -> Any:
    """All that a publisher makes of what it was told."""
    views = {
        host: {name: getattr(view, name) for name in view.__slots__}
        for host, view in convergence.hosts.items()
    }
    return views, [convergence.progress(wait, now) for wait in waits]


def taken(
    convergence: Convergence, waits: list[Wait], report: agent_pb2.Report, now: int
) -> set[int]:
    moved: set[Wait] = set()
    same_clock = report.clock_id == "here"
    for host in report.hosts:
        moved |= convergence.report(host, now, same_clock)
    for advance in report.advances:
        moved |= convergence.advance(advance, now, same_clock)
    return {place for place, wait in enumerate(waits) if wait in moved}


@pytest.mark.no_cover
@given(st.lists(st.tuples(messages(), st.integers(0, 8)), max_size=12))
def test_an_entry_that_hosts_share_is_taken_as_the_report_of_each(
    told: list[tuple[agent_pb2.Report, int]],
) -> None:
    shared, alone = publisher(), publisher()
    now = 100
    for report, pause_s in told:
        now += pause_s * SECOND
        one_by_one = agent_pb2.Report(hosts=host_reports(report), clock_id=report.clock_id)
        assert taken(*shared, report, now) == taken(*alone, one_by_one, now)
        assert believed(*shared, now) == believed(*alone, now)
        assert shared[0].reminders.take(now) == alone[0].reminders.take(now)


def unequal(advance: agent_pb2.Advance) -> None:
    advance.numbers.append(2)


def too_few(advance: agent_pb2.Advance) -> None:
    advance.places.add(stream=str(INBOX), epoch=1, sequence=1)


def nowhere(advance: agent_pb2.Advance) -> None:
    for column in (advance.places, advance.applied_unix_ns, advance.digests):
        del column[:]


def endless(advance: agent_pb2.Advance) -> None:
    advance.lease_s = 1e9


def nameless(advance: agent_pb2.Advance) -> None:
    advance.places[0].stream = "v"


@pytest.mark.parametrize("spoil", [unequal, too_few, nowhere, endless, nameless])
def test_of_an_entry_that_makes_no_sense_nothing_is_taken(
    spoil: Callable[[agent_pb2.Advance], None],
) -> None:
    convergence, _ = publisher()
    advance = agent_pb2.Advance(
        hosts=["a"],
        incarnations=[1],
        numbers=[1],
        applied_unix_ns=[20],
        digests=[b""],
        lease_s=9,
        places=[agent_pb2.Advance.Place(stream=str(VPC), epoch=1, sequence=1)],
    )
    spoil(advance)
    with pytest.raises(ValueError, match=r"columns|lease|names no stream"):
        convergence.advance(advance, 100)
    assert not convergence.hosts
