"""What an agent fetches that missed a hundred changes, and what one fetches that is new."""

from __future__ import annotations

from time import monotonic, sleep

from bench.large import LargeVpc
from bench.machine import kib
from bench.report import Goal, Section, Table
from bench.samples import Samples, written
from bench.system import Brokers, Fleet, Progress, System
from goalstate.gs.streams import Mark

MISSED = 100

METHOD = """\
An agent process of one host stores what the host holds (`--state-dir`), a VPC of {ports:,}
ports, and is killed (kill -9). {missed} ports come to the VPC on another host, an intent each,
and the agent is started anew with what it stored; beside it a host that is new joins the same
VPC. Messages and bytes of payload are what the agent's own metrics count of all streams of the
host, from its start until it has applied everything; "s" is the time that took, the start of the
interpreter included."""
#: Seconds after which what a host holds is surely stored.
_STORED_S = 2.0


def measure(brokers: Brokers, progress: Progress, *, quick: bool) -> Section:
    ports = 5000 if quick else 100_000
    vpc = LargeVpc(ports, guests=3)
    away, new, busy = range(vpc.first_guest, vpc.first_guest + 3)
    progress(f"resume: a VPC of {ports:,} ports")
    with System(brokers.get(), "resume", progress, **vpc.settings) as system:
        vpc.build(system)
        vpc.await_checkpoint(system)
        fleet = system.fleet(1, first=away, state="away")
        _await(fleet, vpc, _mark(system, vpc, away))
        sleep(_STORED_S)
        fleet.child.kill()
        mark = _mark(system, vpc, new)  # the new host's own port: it is to join
        for _ in range(MISSED - 1):
            mark = _mark(system, vpc, busy)
        resumed = _Fetched(system, vpc, away, mark, "away")
        joined = _Fetched(system, vpc, new, mark, "")
    messages = Samples.of([resumed.messages])
    goals = [Goal(f"messages of the VPC after {MISSED} missed changes", MISSED, "", messages)]
    rows = [one.row(name) for name, one in (("was away", resumed), ("is new", joined))]
    columns = ("the host", "messages of the VPC#", "KiB of payload#", "s#", "read again#")
    return Section(
        "resume",
        "Resuming after changes that were missed",
        METHOD.format(ports=ports, missed=MISSED),
        goals,
        [Table(columns, rows)],
        {"ports": ports, "resumed": vars(resumed), "joined": vars(joined)},
    )


def _mark(system: System, vpc: LargeVpc, host: int) -> Mark:
    """Add a port on a host; gives where that is on the VPC's stream."""
    reply = system.apply(vpc.more(host))
    return max(Mark(s.epoch, s.sequence) for s in reply.streams if s.stream == str(vpc.stream))


def _await(fleet: Fleet, vpc: LargeVpc, mark: Mark) -> None:
    fleet.applied_ns(vpc.stream, mark, 1)


class _Fetched:
    """What a host fetched from the start of its process until it was at a mark."""

    def __init__(self, system: System, vpc: LargeVpc, host: int, mark: Mark, state: str) -> None:
        begun = monotonic()
        fleet = system.fleet(1, first=host, state=state)
        _await(fleet, vpc, mark)
        self.seconds = monotonic() - begun
        self.messages = fleet.counted("messages", stream_kind="vpc")
        self.bytes = fleet.counted("message_bytes")
        self.resyncs = fleet.counted("resyncs")
        fleet.child.stop()

    def row(self, name: str) -> tuple[object, ...]:
        return (
            name,
            f"{self.messages:,.0f}",
            kib(self.bytes),
            written(self.seconds),
            f"{self.resyncs:.0f}",
        )
