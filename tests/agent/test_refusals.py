"""What a data plane refuses: for now and for good, attempts, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from goalstate.agent import posting
from goalstate.agent.actions import Refusal
from goalstate.agent.dataplanes import DataPlane, Done, MemoryDataPlane, ModelledDataPlane
from goalstate.agent.dataplanes import ProgrammingModel as Model
from goalstate.agent.fleet import Member
from goalstate.agent.reports import exceptions
from goalstate.agent.retry import RetryPolicy
from goalstate.bus.errors import BrokerUnreachable
from goalstate.gs.packing import unpack
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.resources import Kind, Resource
from goalstate.gs.streams import Mark
from tests.agent.fleet_rig import FleetRig, wait_until
from tests.agent.rig import (
    HOST,
    INBOX,
    STREAM,
    TOPICS,
    Publisher,
    Rig,
    gone,
    group,
    neighbor,
    port,
    subnet,
    subscription,
    vpc,
)


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.join(vpc(), subnet())
    rig.programs.clear()
    return rig


# --- for now ---


def test_what_is_refused_for_now_is_tried_again_until_it_is_taken(rig: Rig) -> None:
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    assert rig.exceptions() == {"neighbor/port-1": "RETRYING DATA_PLANE"}
    rig.pass_time(1)
    assert rig.programmed == ["neighbor/port-1"] * 2
    rig.busy = set()
    rig.pass_time(2)
    assert rig.programmed == ["neighbor/port-1"] * 3
    assert not rig.exceptions()
    assert "neighbor/port-1" in rig.in_plane()
    assert rig.core.counters.retries == 2
    assert not rig.letters()


def test_the_report_says_that_it_is_retrying_which_attempt_and_why(rig: Rig) -> None:
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.pass_time(1)
    (told,) = exceptions(rig.core)
    assert told.status == agent_pb2.ResourceException.RETRYING
    assert told.attempts == 2
    assert told.reason == "DATA_PLANE: no room; retrying, attempt 3"


def test_the_delay_doubles_up_to_its_bound_and_differs_between_hosts() -> None:
    policy = RetryPolicy(attempts=10, first_ns=1000, longest_ns=16_000)

    def delays(host: str) -> list[int | None]:
        return [policy.delay_ns(host, Kind.NEIGHBOR, "port-1", n) for n in range(1, 11)]

    *some, last = delays("host-1")
    assert last is None
    full = [1000, 2000, 4000, 8000, 16_000, 16_000, 16_000, 16_000, 16_000]
    for delay, longest in zip(some, full, strict=True):
        assert delay is not None
        assert longest // 2 <= delay <= longest
    assert delays("host-1") == [*some, last]
    assert delays("host-2") != [*some, last]


def test_after_the_last_attempt_it_is_refused_for_good() -> None:
    rig = Rig(attempts=3)
    rig.join(vpc(), subnet())
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.pass_time(600)
    assert rig.programmed.count("neighbor/port-1") == 3
    assert rig.exceptions() == {"neighbor/port-1": "REFUSED DATA_PLANE"}
    (told,) = exceptions(rig.core)
    assert told.reason == "DATA_PLANE: no room; gave up after 3 attempts"
    assert [letter.attempts for letter in rig.letters()] == [3]


def test_only_the_newest_revision_is_tried_again(rig: Rig) -> None:
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.busy = set()
    rig.on_vpc(neighbor(1, 2))
    assert not rig.exceptions()
    rig.pass_time(600)
    assert [one.revision for ops in rig.programs for one in ops] == [1, 2]


def test_what_is_tried_again_holds_nobody_else_up(rig: Rig) -> None:
    rig.on_vpc(neighbor(8))
    rig.busy = {"subnet-2"}
    rig.on_vpc(subnet("subnet-2"), neighbor(1, subnets=["subnet-2"]), neighbor(2))
    assert rig.exceptions() == {
        "subnet/subnet-2": "RETRYING DATA_PLANE",
        "neighbor/port-1": "PENDING MISSING_REFERENCE",
    }
    assert "neighbor/port-2" in rig.in_plane()
    rig.slow = True
    rig.pass_time(1)  # another attempt is under way
    rig.on_vpc(gone(neighbor(8)))
    rig.finish()
    rig.finish()
    assert "neighbor/port-8" not in rig.in_plane()
    rig.slow, rig.busy = False, set()
    rig.pass_time(600)
    assert not rig.exceptions()
    assert not rig.plane.missing_references()


def test_what_is_gone_before_the_next_attempt_is_not_tried(rig: Rig) -> None:
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.on_vpc(gone(neighbor(1)))
    rig.pass_time(600)
    assert rig.programmed == ["neighbor/port-1"]
    assert not rig.exceptions()


def test_a_deletion_is_tried_again_too(rig: Rig) -> None:
    rig.on_vpc(neighbor(1))
    rig.busy = {"port-1"}
    rig.on_vpc(gone(neighbor(1)))
    assert rig.exceptions() == {"neighbor/port-1": "RETRYING DATA_PLANE"}
    rig.busy = set()
    rig.pass_time(1)
    assert not rig.exceptions()
    assert "neighbor/port-1" not in rig.in_plane()


def test_one_attempt_more_is_no_news_by_itself(rig: Rig) -> None:
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.report()
    rig.pass_time(3)
    assert rig.programmed.count("neighbor/port-1") > 1
    assert not rig.core.news


def test_the_watermark_goes_on_and_the_exception_stands_where_the_resource_came(rig: Rig) -> None:
    rig.busy = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.on_vpc(neighbor(2))
    assert rig.watermark() == Mark(1, 3)
    assert rig.faults()["neighbor/port-1"].mark == Mark(1, 2)
    rig.pass_time(3)
    assert rig.faults()["neighbor/port-1"].mark == Mark(1, 2)


# --- for good ---


def test_a_refusal_for_good_is_one_dead_letter_with_the_resource_in_it(rig: Rig) -> None:
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1))
    (letter,) = rig.letters()
    assert (letter.host, letter.stream, letter.id, letter.revision) == (
        HOST,
        str(STREAM),
        "port-1",
        1,
    )
    assert (letter.epoch, letter.sequence, letter.attempts) == (1, 2, 1)
    assert letter.reason == "DATA_PLANE: no room"
    assert letter.refused_unix_ns == rig.now
    ((resource, _),) = unpack(letter.resource)
    assert resource == neighbor(1)
    assert not rig.letters()


def test_a_port_is_in_its_letter_as_it_came_on_the_inbox(rig: Rig) -> None:
    rig.refuse = {"port-1"}
    rig.on_inbox(port(1))
    (letter,) = rig.letters()
    assert letter.stream == str(INBOX)
    assert [one.id for one in letter.resource.host_resources[HOST].resources] == ["port-1"]


def test_a_newer_revision_that_is_refused_is_a_letter_of_its_own(rig: Rig) -> None:
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1))
    assert [letter.revision for letter in rig.letters()] == [1]
    rig.on_vpc(neighbor(1, 2))
    assert [letter.revision for letter in rig.letters()] == [2]


def test_what_is_applied_before_its_letter_was_sent_is_not_told(rig: Rig) -> None:
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1))
    rig.refuse = set()
    rig.on_vpc(neighbor(1, 2))
    assert not rig.letters()


def test_letters_that_could_not_be_sent_are_told_again(rig: Rig) -> None:
    rig.refuse = {"port-1", "port-2"}
    rig.on_vpc(neighbor(1), neighbor(2))
    taken = rig.letters()
    rig.core.programming.exceptions.letters.lost(taken)
    assert rig.letters() == taken


def test_letters_are_taken_in_pieces_of_bounded_size(rig: Rig) -> None:
    ids = [f"port-{n}" for n in range(1000)]
    rig.refuse = set(ids)
    rig.on_vpc(*(neighbor(n) for n in range(1000)))
    pieces = []
    while rig.core.programming.exceptions.letters:
        pieces.append(rig.letters(10_000))
    assert len(pieces) > 10
    assert all(sum(one.ByteSize() for one in piece) < 11_000 for piece in pieces)
    assert sorted(letter.id for piece in pieces for letter in piece) == sorted(ids)


def test_a_refused_deletion_that_comes_once_more_is_tried_once_more(rig: Rig) -> None:
    rig.on_vpc(neighbor(1))
    rig.refuse = {"port-1"}
    rig.on_vpc(gone(neighbor(1)))
    (letter,) = rig.letters()
    assert not letter.resource.neighbor_states["port-1"].configuration.mac_address
    rig.refuse = set()
    rig.on_vpc(gone(neighbor(1, 2)))
    assert not rig.exceptions()
    assert "neighbor/port-1" not in rig.in_plane()


def test_a_host_that_begins_anew_writes_its_letters_again(rig: Rig) -> None:
    rig.refuse = {"port-1"}
    rig.on_vpc(neighbor(1))
    first = rig.letters()
    anew = Rig(beside=rig)
    anew.refuse = rig.refuse
    anew.run()
    assert anew.letters() == first


def test_a_message_that_cannot_be_read_is_an_exception_and_no_letter(rig: Rig) -> None:
    spoiled = neighbor(1)._replace(payload=b"\xff\xff")
    rig.put(rig.vpc.publish(spoiled))
    rig.run()
    assert rig.exceptions()
    assert not rig.letters()


# --- of a fleet ---


class Stubborn(MemoryDataPlane):
    """Refuses all neighbors."""

    def program(self, operations: Sequence[Resource], done: Done) -> None:
        taken = [one for one in operations if one.kind is not Kind.NEIGHBOR]
        places = [n for n, one in enumerate(operations) if one.kind is Kind.NEIGHBOR]
        super().program(taken, lambda _: None)
        done(dict.fromkeys(places, Refusal("never")))


def letters_of(rig: FleetRig) -> list[agent_pb2.DeadLetters]:
    return [
        agent_pb2.DeadLetters.FromString(message.payload)
        for message in rig.broker.messages(TOPICS.dead_letters(0))
    ]


def test_ten_thousand_refusals_are_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(_ten_thousand(monkeypatch))


async def _ten_thousand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posting, "RETRY_S", 0.0)
    rig = FleetRig()
    inbox, stream = Publisher(INBOX), Publisher(STREAM)
    async with rig.fleet([Member(HOST, "rack-1")], data_plane=lambda host: Stubborn()) as fleet:
        rig.bus.producer_failures = [BrokerUnreachable("away")]
        rig.put(inbox.publish(subscription()))
        rig.put(stream.publish(vpc(), subnet()))
        rig.put(stream.publish(*(neighbor(n) for n in range(10_000))))
        await wait_until(lambda: fleet.counters.dead_letters == 10_000, "10,000 letters")
    messages = letters_of(rig)
    size = sum(one.ByteSize() for one in messages)
    assert len(messages) <= size // posting.MESSAGE_BYTES + 1
    assert all(one.ByteSize() < posting.MESSAGE_BYTES * 1.01 for one in messages)
    assert len({letter.id for one in messages for letter in one.letters}) == 10_000


def test_a_fleet_without_refusals_opens_no_topic_of_letters() -> None:
    asyncio.run(_none())


async def _none() -> None:
    rig = FleetRig()
    inbox, stream = Publisher(INBOX), Publisher(STREAM)
    async with rig.fleet([Member(HOST, "rack-1")]) as fleet:
        rig.put(inbox.publish(subscription()))
        rig.put(stream.publish(vpc()))
        await wait_until(lambda: rig.told(HOST, str(STREAM)) == (1, 1), "the VPC applied")
        assert fleet.posting is not None and not fleet.posting.open
    assert not letters_of(rig)


# --- the modelled data plane ---


def test_a_modelled_data_plane_refuses_so_often_and_then_takes() -> None:
    timers: list[Callable[[], None]] = []
    model = Model(refuse_ids=("port-2",), refuse_times=2)
    plane: DataPlane = ModelledDataPlane(model, lambda _, then: timers.append(then), name=HOST)
    answers: list[object] = []
    for _ in range(3):
        plane.program([neighbor(1), neighbor(2)], answers.append)
        timers.pop()()
    busy = {1: Refusal("injected failure: the id matches", transient=True)}
    assert answers == [busy, busy, {}]
    # Another revision is another matter.
    plane.program([neighbor(2, 2)], answers.append)
    timers.pop()()
    assert answers[-1] == {0: busy[1]}


# --- revocations ---


def test_the_delay_of_a_revocation_is_from_its_own_message_also_behind_a_backlog() -> None:
    rig = Rig(limit=10)
    rig.join(vpc(), subnet(), group(ports=(22, 80)))
    rig.slow = True
    rig.on_vpc(*(neighbor(n) for n in range(100)))
    rig.now += 10**9
    rig.on_vpc(group(revision=2, ports=(22,)))
    rig.now += 10**9
    rig.finish()
    assert not rig.core.counters.revocations.total
    rig.report()
    rig.finish()
    # All of the rig's messages are published at its start.
    assert rig.core.counters.revocations.total == pytest.approx(2.0)
    assert rig.watermark() == Mark(1, 1)  # most of the backlog is still to come
    report = rig.report()
    assert report is not None
    (told,) = (one for one in report.streams if one.stream == str(STREAM))
    assert (told.revoked_epoch, told.revoked_sequence) == (1, 3)
    assert told.revoked_unix_ns == rig.now


def test_what_grants_is_no_revocation(rig: Rig) -> None:
    rig.on_vpc(group(ports=(22,)))
    rig.on_vpc(group(revision=2, ports=(22, 80)))
    assert sum(rig.core.counters.revocations.counts) == 0
    assert rig.core.streams[STREAM].revoked == (Mark(0, 0), 0)


def test_a_revocation_that_a_newer_revision_overtakes_counts_from_the_first(rig: Rig) -> None:
    rig.on_vpc(group(ports=(22, 80)))
    rig.slow = True
    rig.on_vpc(neighbor(1))
    rig.on_vpc(group(revision=2, ports=(22,)))
    first = rig.core.streams[STREAM].unsettled[Kind.SECURITY_GROUP]["group-1"].since_ns
    rig.core.streams[STREAM].published_ns += 5
    rig.on_vpc(group(revision=3, ports=(22, 443)))
    assert rig.core.streams[STREAM].unsettled[Kind.SECURITY_GROUP]["group-1"].since_ns == first
