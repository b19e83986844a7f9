"""Convergence: a wait is never early, always says who is missing, and leaves out who is gone."""

from __future__ import annotations

import pytest

from goalstate.dpm.convergence import Concern, Convergence, Lease, Why
from goalstate.gs.pb.alcor.schema import resources_pb2
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.streams import Mark, StreamId, inbox_stream, vpc_stream

VPC = vpc_stream("v")
INBOX = inbox_stream("rack")
SECOND = 1_000_000_000
NOW = 100 * SECOND


class Followers:
    """Who follows what, as the publisher's core would say."""

    def __init__(self) -> None:
        self.left: set[tuple[str, StreamId]] = set()

    def __call__(self, host: str, stream: StreamId) -> bool:
        return (host, stream) not in self.left


@pytest.fixture
def followers() -> Followers:
    return Followers()


@pytest.fixture
def convergence(followers: Followers) -> Convergence:
    return Convergence(followers)


def report(
    host: str,
    number: int,
    marks: dict[StreamId, Mark],
    *,
    incarnation: int = 1,
    full: bool = False,
    applied_ns: int = NOW,
    exceptions: tuple[agent_pb2.ResourceException, ...] = (),
    dropped: tuple[StreamId, ...] = (),
) -> agent_pb2.HostReport:
    return agent_pb2.HostReport(
        host=host,
        incarnation=incarnation,
        number=number,
        full=full,
        lease_s=10,
        streams=[
            agent_pb2.StreamReport(
                stream=str(stream),
                epoch=mark.epoch,
                sequence=mark.sequence,
                applied_unix_ns=applied_ns,
            )
            for stream, mark in marks.items()
        ],
        exceptions=exceptions,
        dropped=[str(stream) for stream in dropped],
    )


def refused(mark: Mark) -> agent_pb2.ResourceException:
    return agent_pb2.ResourceException(
        stream=str(VPC),
        epoch=mark.epoch,
        sequence=mark.sequence,
        type=resources_pb2.NEIGHBOR,
        id="p1",
        status=agent_pb2.ResourceException.REFUSED,
        reason="table full",
    )


def needs(*hosts: str, mark: Mark = Mark(1, 5), stream: StreamId = VPC) -> Concern:
    return stream, mark, frozenset(hosts)


def test_nobody_concerned_is_converged(convergence: Convergence) -> None:
    wait = convergence.begin([needs()], NOW)
    assert convergence.progress(wait, NOW).converged


def test_a_host_that_never_reported_is_a_straggler(convergence: Convergence) -> None:
    progress = convergence.progress(convergence.begin([needs("a")], NOW), NOW)
    assert not progress.converged
    assert [(s.host, s.why) for s in progress.stragglers] == [("a", Why.NEVER_REPORTED)]


def test_converged_exactly_when_the_last_host_reaches_the_mark(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a", "b")], NOW)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    convergence.report(report("b", 1, {VPC: Mark(1, 4)}), NOW)
    progress = convergence.progress(wait, NOW)
    assert not progress.converged
    [straggler] = progress.stragglers
    assert (straggler.host, straggler.why, straggler.applied) == ("b", Why.BEHIND, Mark(1, 4))
    assert convergence.report(report("b", 2, {VPC: Mark(1, 5)}), NOW) == {wait}
    assert convergence.progress(wait, NOW).converged


def test_a_later_epoch_is_further_whatever_its_sequence(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a")], NOW)
    convergence.report(report("a", 1, {VPC: Mark(2, 1)}), NOW)
    assert convergence.progress(wait, NOW).converged


def test_all_streams_of_a_change_count(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a"), needs("a", stream=INBOX, mark=Mark(1, 1))], NOW)
    convergence.report(report("a", 1, {VPC: Mark(1, 9)}), NOW)
    assert not convergence.progress(wait, NOW).converged
    convergence.report(report("a", 2, {INBOX: Mark(1, 1)}), NOW)
    assert convergence.progress(wait, NOW).converged


def test_an_exception_up_to_the_mark_keeps_the_host_back(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a")], NOW)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}, exceptions=(refused(Mark(1, 3)),)), NOW)
    progress = convergence.progress(wait, NOW)
    assert not progress.converged
    [straggler] = progress.stragglers
    assert straggler.why is Why.REFUSED
    assert (straggler.resource, straggler.reason) == ("neighbor/p1", "table full")
    convergence.report(report("a", 2, {}), NOW)
    assert convergence.progress(wait, NOW).converged


def test_an_exception_beyond_the_mark_does_not(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a")], NOW)
    convergence.report(report("a", 1, {VPC: Mark(1, 6)}, exceptions=(refused(Mark(1, 6)),)), NOW)
    assert convergence.progress(wait, NOW).converged


def test_quorum_is_met_by_whole_hosts(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a", "b", "c")], NOW, quorum=0.5)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    progress = convergence.progress(wait, NOW)
    assert (progress.converged, progress.needed, wait.may_have_converged) == (False, 2, False)
    convergence.report(report("b", 1, {VPC: Mark(1, 5)}), NOW)
    assert convergence.progress(wait, NOW).converged
    assert wait.may_have_converged


@pytest.mark.parametrize("quorum", [0, -1, 1.01])
def test_a_quorum_that_is_no_share_is_refused(convergence: Convergence, quorum: float) -> None:
    with pytest.raises(ValueError, match="quorum"):
        convergence.begin([needs("a")], NOW, quorum=quorum)


def test_an_expired_host_is_left_out_and_listed(convergence: Convergence) -> None:
    convergence.report(report("gone", 1, {}), NOW)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW + 20 * SECOND)
    later = NOW + 21 * SECOND
    assert convergence.lease("gone", later) is Lease.EXPIRED
    progress = convergence.progress(convergence.begin([needs("a", "gone")], NOW), later)
    assert progress.converged
    assert (progress.hosts, progress.expired) == (1, ["gone"])


def test_nothing_converges_when_every_host_has_expired(convergence: Convergence) -> None:
    convergence.report(report("gone", 1, {}), NOW)
    wait = convergence.begin([needs("gone")], NOW)
    assert not convergence.progress(wait, NOW + 60 * SECOND).converged


def test_a_host_that_left_the_stream_is_not_waited_for(
    convergence: Convergence, followers: Followers
) -> None:
    wait = convergence.begin([needs("a"), needs("a", stream=INBOX, mark=Mark(1, 7))], NOW)
    followers.left.add(("a", VPC))
    assert not convergence.progress(wait, NOW).converged
    convergence.report(report("a", 1, {INBOX: Mark(1, 7)}, dropped=(VPC,)), NOW)
    assert convergence.progress(wait, NOW).converged


def test_a_restarted_agent_must_apply_again(convergence: Convergence) -> None:
    convergence.report(report("a", 7, {VPC: Mark(1, 5)}), NOW)
    convergence.report(report("a", 1, {}, incarnation=2), NOW)
    assert not convergence.progress(convergence.begin([needs("a")], NOW), NOW).converged


@pytest.mark.parametrize(("incarnation", "number"), [(1, 3), (1, 2), (0, 9)])
def test_old_and_repeated_reports_are_dropped(
    convergence: Convergence, incarnation: int, number: int
) -> None:
    convergence.report(report("a", 3, {VPC: Mark(1, 5)}), NOW)
    late = report("a", number, {VPC: Mark(1, 9)}, incarnation=incarnation)
    assert convergence.report(late, NOW) == set()
    assert convergence.hosts["a"].applied[VPC][0] == Mark(1, 5)


def test_a_full_report_replaces_what_was_known(convergence: Convergence) -> None:
    convergence.report(report("a", 1, {VPC: Mark(1, 5), INBOX: Mark(1, 1)}), NOW)
    convergence.report(report("a", 2, {INBOX: Mark(1, 1)}, full=True), NOW)
    assert set(convergence.hosts["a"].applied) == {INBOX}


def test_a_report_that_makes_no_sense_changes_nothing(convergence: Convergence) -> None:
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    nonsense = report("a", 2, {VPC: Mark(1, 6)})
    nonsense.streams[0].stream = "nothing"
    with pytest.raises(ValueError, match="names no stream"):
        convergence.report(nonsense, NOW)
    assert convergence.hosts["a"].applied[VPC][0] == Mark(1, 5)


def test_latency_is_from_acceptance_to_application_by_one_clock(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a", "b")], NOW)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}, applied_ns=NOW + 7), NOW + 9)
    assert wait.same_clock
    convergence.report(
        report("b", 1, {VPC: Mark(1, 5)}, applied_ns=NOW - 5), NOW + 30, same_clock=False
    )
    progress = convergence.progress(wait, NOW + 30)
    assert (progress.latencies_ns, progress.same_clock) == ([7, 30], False)


def test_a_host_that_had_it_before_acceptance_has_no_latency(convergence: Convergence) -> None:
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}, applied_ns=NOW - 1), NOW)
    wait = convergence.begin([needs("a")], NOW)
    assert convergence.progress(wait, NOW).latencies_ns == []


def test_an_ended_wait_is_not_moved_any_more(convergence: Convergence) -> None:
    wait = convergence.begin([needs("a")], NOW)
    convergence.end(wait)
    assert convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW) == set()


@pytest.mark.parametrize("quorum", [1e-12, 1e-3])
def test_the_smallest_quorum_is_one_host(convergence: Convergence, quorum: float) -> None:
    wait = convergence.begin([needs("a", "b")], NOW, quorum)
    assert not wait.may_have_converged
    assert not convergence.progress(wait, NOW).converged
    convergence.report(report("b", 1, {VPC: Mark(1, 5)}), NOW)
    assert convergence.progress(wait, NOW).converged


def test_a_host_that_never_reported_and_follows_nothing_any_more_is_not_waited_for(
    convergence: Convergence, followers: Followers
) -> None:
    followers.left.add(("gone", VPC))
    wait = convergence.begin([needs("gone"), needs("a")], NOW)
    progress = convergence.progress(wait, NOW)
    assert [s.host for s in progress.stragglers] == ["a"]
    assert progress.latencies_ns == []


@pytest.mark.parametrize("lease_s", [-1, float("inf"), float("nan"), 1e300])
def test_a_report_with_a_lease_that_is_none_changes_nothing(
    convergence: Convergence, lease_s: float
) -> None:
    nonsense = report("a", 1, {VPC: Mark(1, 5)})
    nonsense.lease_s = lease_s
    with pytest.raises(ValueError, match="lease"):
        convergence.report(nonsense, NOW)
    assert not convergence.hosts
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    assert convergence.hosts["a"].applied.keys() == {VPC}


def test_a_host_whose_report_made_no_sense_has_reported_nothing(convergence: Convergence) -> None:
    nonsense = report("a", 1, {VPC: Mark(1, 5)})
    nonsense.streams[0].stream = "nothing"
    with pytest.raises(ValueError, match="names no stream"):
        convergence.report(nonsense, NOW)
    assert convergence.lease("a", NOW) is Lease.NEVER_REPORTED


def test_who_leaves_while_it_is_waited_for_is_not_concerned_any_more(
    convergence: Convergence, followers: Followers
) -> None:
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    wait = convergence.begin([needs("a", "b", "c", "d")], NOW, quorum=0.5)
    followers.left |= {("c", VPC), ("d", VPC)}
    progress = convergence.progress(wait, NOW)
    assert (progress.hosts, progress.applied, progress.needed) == (2, 1, 1)
    followers.left.add(("b", VPC))
    assert convergence.progress(wait, NOW).hosts == 1


def test_leaving_is_no_applying(convergence: Convergence, followers: Followers) -> None:
    wait = convergence.begin([needs(*"abcd")], NOW, quorum=0.5)
    followers.left |= {("a", VPC), ("b", VPC)}
    progress = convergence.progress(wait, NOW)
    assert (progress.converged, progress.applied, progress.hosts) == (False, 0, 2)


def test_a_forgotten_host_never_reported(convergence: Convergence) -> None:
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    convergence.forget("a")
    assert convergence.lease("a", NOW) is Lease.NEVER_REPORTED
    convergence.forget("a")


def test_an_older_agent_is_heard_again_when_the_newer_one_is_gone(
    convergence: Convergence,
) -> None:
    convergence.report(report("a", 9, {VPC: Mark(1, 5)}), NOW)
    convergence.report(report("a", 1, {}, incarnation=2), NOW)
    convergence.report(report("a", 10, {VPC: Mark(1, 6)}), NOW + SECOND)
    assert not convergence.hosts["a"].applied
    convergence.report(report("a", 11, {VPC: Mark(1, 7)}, full=True), NOW + 11 * SECOND)
    assert convergence.hosts["a"].applied[VPC][0] == Mark(1, 7)
    assert convergence.lease("a", NOW + 11 * SECOND) is Lease.LIVE


def test_after_a_lost_report_only_what_is_told_anew_counts() -> None:
    # The lost one may have said that the host dropped the stream; since then it came back to it.
    convergence = Convergence(lambda host, stream: True)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW)
    convergence.report(report("a", 3, {INBOX: Mark(1, 2)}), NOW)
    wait = convergence.begin([needs("a")], NOW)
    assert not convergence.progress(wait, NOW).converged
    convergence.report(report("a", 4, {VPC: Mark(1, 5), INBOX: Mark(1, 2)}, full=True), NOW)
    assert convergence.progress(wait, NOW).converged


def test_a_host_that_is_ahead_of_what_was_published_has_not_applied_it() -> None:
    convergence = Convergence(lambda host, stream: True, head=lambda stream: Mark(1, 6))
    wait = convergence.begin([needs("a")], NOW)
    convergence.report(report("a", 1, {VPC: Mark(4, 2)}), NOW)
    (straggler,) = convergence.progress(wait, NOW).stragglers
    assert (straggler.why, straggler.applied) == (Why.DRIFT, Mark(4, 2))
    assert "4/2, and what was published ends at 1/6" in straggler.reason
    convergence.report(report("a", 2, {VPC: Mark(1, 6)}), NOW)
    assert convergence.progress(wait, NOW).converged


def test_a_clock_that_is_set_ends_no_lease() -> None:
    convergence = Convergence(lambda host, stream: True)
    convergence.report(report("a", 1, {VPC: Mark(1, 5)}), NOW, steady_ns=SECOND)
    convergence.report(report("b", 1, {}), NOW, steady_ns=SECOND)
    convergence.report(report("a", 2, {}), NOW + 600 * SECOND, steady_ns=2 * SECOND)
    progress = convergence.progress(convergence.begin([needs("a", "b")], NOW), 2 * SECOND)
    assert (progress.converged, progress.expired) == (False, [])
