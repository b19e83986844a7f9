"""What a fleet sees of changes."""

from __future__ import annotations

from hdrh.histogram import HdrHistogram

from goalstate.gs.envelope import Envelope, MessageKind
from goalstate.gs.streams import Mark, StreamId, inbox_stream, vpc_stream
from goalstate.scale.load.recording import Distributions, Recorder
from goalstate.scale.load.stages import Stage
from goalstate.scale.load.stamps import Stamp, Stamps
from goalstate.scale.load.witness import Seen, Witness, merged

MS = 1_000_000
BEGIN = 10**18
STAMPS = Stamps("run")
VPC, INBOX = vpc_stream("v"), inbox_stream("rack")


class Fleet:
    """Hosts a, b, c follow the VPC up to mark 1/5."""

    def __init__(self, ahead_ns: int = 0, measured: bool = True) -> None:
        self.recorder = Recorder()
        self.witness = Witness(STAMPS, self.recorder, ahead_ns=ahead_ns)
        self.witness.phases = [(BEGIN, BEGIN + 1000 * MS, measured)]
        for host in "abc":
            self.witness.applied(host, VPC, Mark(1, 5), BEGIN)

    def message(
        self, host: str, sequence: int, at_ms: float, *, number: int = 0, of: str = "1/1",
        stream: StreamId = VPC, intended_ms: int = 0, also: str = "",
    ) -> None:  # fmt: skip
        chunk, chunks = map(int, of.split("/"))
        stamp = STAMPS.write(Stamp(0, number, BEGIN + intended_ms * MS)) + also
        envelope = Envelope(
            102, stream, Mark(1, sequence), MessageKind.DELTA, chunk, chunks, 1, "", "",
            BEGIN + 1 * MS, None, stamp,
        )  # fmt: skip
        self.witness.received(host, stream, envelope, BEGIN + round(at_ms * MS))

    def applied(self, host: str, sequence: int, at_ms: float, stream: StreamId = VPC) -> None:
        self.witness.applied(host, stream, Mark(1, sequence), BEGIN + round(at_ms * MS))

    def counts(self) -> dict[Stage, int]:
        self.witness.record()
        taken = self.recorder.take()
        return {
            stage: recorded(taken, stage).get_total_count()
            for stage in (Stage.RECEIVED, Stage.APPLIED)
        }

    def recorded(self, stage: Stage) -> HdrHistogram:
        self.witness.record()
        return recorded(self.recorder.take(), stage)


def recorded(taken: dict[str, str], stage: Stage) -> HdrHistogram:
    found = Distributions()
    found.add(0, taken)
    return found.of(stage, [0])


def seen(first_ms: int, last_ms: int, hosts: int, number: int = 0, missing: int = 0) -> Seen:
    at = BEGIN // MS
    return Seen(
        Stamp(0, number, BEGIN),
        BEGIN + MS,
        (at + first_ms) * MS,
        (at + last_ms) * MS,
        hosts,
        missing,
    )


def test_a_change_is_settled_when_all_who_follow_have_it() -> None:
    fleet = Fleet()
    for place, host in enumerate("abc"):
        fleet.message(host, 6, 10 + place)
        assert fleet.witness.take() == []
        fleet.applied(host, 6, 20 + place)
    assert fleet.witness.take() == [seen(20, 22, 3)]
    assert fleet.witness.under_way == 0
    assert fleet.counts() == {Stage.RECEIVED: 3, Stage.APPLIED: 3}


def test_what_a_host_did_not_get_is_named() -> None:
    fleet = Fleet()
    for host in "ab":
        fleet.message(host, 6, 10)
        fleet.applied(host, 6, 20)
    assert fleet.witness.take() == []
    assert list(fleet.witness.unsettled()) == [(VPC, seen(20, 20, 2, missing=1))]


def test_a_host_that_leaves_is_not_waited_for() -> None:
    fleet = Fleet()
    for host in "ab":
        fleet.message(host, 6, 10)
        fleet.applied(host, 6, 20)
    fleet.witness.left("c", VPC)
    assert fleet.witness.take() == [seen(20, 20, 2)]
    fleet.message("a", 7, 30, number=1)
    fleet.applied("a", 7, 31)
    fleet.applied("b", 7, 31)
    assert [one.hosts for one in fleet.witness.take()] == [2]


def test_who_gets_beyond_it_by_a_checkpoint_has_it_from_then_on() -> None:
    fleet = Fleet()
    for host in "ab":
        fleet.message(host, 6, 10)
        fleet.applied(host, 6, 20)
    fleet.applied("c", 9, 500)
    assert fleet.witness.take() == [seen(20, 500, 3)]


def test_a_change_of_several_messages_is_there_with_the_last() -> None:
    fleet = Fleet()
    for host in "abc":
        fleet.message(host, 6, 10, of="1/2")
        fleet.applied(host, 6, 11)
    assert fleet.witness.under_way == 0
    for host in "abc":
        fleet.message(host, 7, 12, of="2/2")
        fleet.applied(host, 7, 13)
    assert fleet.witness.take() == [seen(13, 13, 3)]


def test_each_of_several_changes_in_a_message_has_its_own_latency() -> None:
    fleet = Fleet()
    other = STAMPS.write(Stamp(0, 1, BEGIN + 5 * MS))
    foreign = f"{'00-' + 'f' * 32}-{'1' * 16}-00"
    for place, host in enumerate("abc"):
        fleet.message(host, 6, 10 + place, also=f",{foreign},{other}")
        fleet.applied(host, 6, 20 + place)
    first, second = fleet.witness.take()
    assert (first.stamp.number, second.stamp.number) == (0, 1)
    assert first._replace(stamp=second.stamp) == second
    recorded = fleet.recorded(Stage.APPLIED)
    assert recorded.get_total_count() == 6
    assert [round(recorded.get_value_at_percentile(p) / 1000) for p in (1, 50, 100)] == [15, 17, 22]
    assert fleet.witness.hosts["a"] == [(20 + 15) * MS, 2]


def test_who_begins_to_follow_and_reads_old_messages_changes_nothing() -> None:
    fleet = Fleet()
    for host in "abc":
        fleet.message(host, 6, 10)
        fleet.applied(host, 6, 20)
    fleet.witness.take()
    fleet.message("d", 6, 400)
    fleet.applied("d", 6, 401)
    assert fleet.witness.take() == []
    assert fleet.witness.under_way == 0
    assert fleet.counts() == {Stage.RECEIVED: 3, Stage.APPLIED: 3}
    # From then on it is one of those who follow.
    for host in "abcd":
        fleet.message(host, 7, 500, number=1)
        fleet.applied(host, 7, 501)
    assert [one.hosts for one in fleet.witness.take()] == [4]


def test_streams_and_fleets_of_one_change_are_put_together() -> None:
    fleet = Fleet()
    fleet.witness.applied("a", INBOX, Mark(1, 1), BEGIN)
    for host in "abc":
        fleet.message(host, 6, 10)
        fleet.applied(host, 6, 20)
    fleet.message("a", 2, 5, stream=INBOX)
    fleet.applied("a", 2, 7, INBOX)
    first, second = fleet.witness.take()
    assert merged(first, second) == merged(second, first) == seen(7, 20, 4)


def test_times_are_by_the_coordinators_clock_and_never_negative() -> None:
    fleet = Fleet(ahead_ns=5 * MS)
    for host in "abc":
        fleet.message(host, 6, 3, intended_ms=1)
        fleet.applied(host, 6, 9, VPC)
    found = Distributions()
    found.add(0, fleet.recorder.take())
    # Received at 3 - 5 ms, before it was to start: less than can be told apart.
    assert found.of(Stage.RECEIVED, [0]).get_max_value() == 1
    assert abs(found.of(Stage.APPLIED, [0]).get_max_value() - 3000) <= 3


def test_warm_ups_and_other_traces_are_not_looked_at() -> None:
    fleet = Fleet(measured=False)
    fleet.message("a", 6, 10)
    fleet.applied("a", 6, 11)
    assert fleet.witness.take() == []
    assert fleet.witness.under_way == 0
