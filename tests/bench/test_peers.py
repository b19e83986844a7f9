"""The comparison with other systems: what it counts, what it says, and that each adapter works."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest

from bench import machine
from bench.peers import ovsdb, runner, servers
from bench.peers.arrivals import Arrivals, Reached
from bench.peers.base import Place, entries, make_work
from bench.peers.dealing import dealt
from bench.peers.processes import Span
from bench.peers.runner import Result, Sizes, Task, run
from bench.peers.section import goals, section
from bench.peers.systems import ALCOR, GRPC, OTHERS, PLAIN, READY, SYSTEMS, System
from bench.report import section as rendered
from bench.system import MeasurementFailed
from goalstate.bus.brokers import Broker
from goalstate.gs.pb.alcor.schema.goalstate_pb2 import GoalStateV2

TINY = Sizes(
    hosts=3,
    ports=20,
    rounds=2,
    warm_up=1,
    changes=2,
    rate=50.0,
    churn=5,
    joiners=1,
    enough_s=20.0,
)


class _Clock:
    """Says 1, 2, 3, …"""

    now = 0

    def __call__(self) -> int:
        self.now += 1
        return self.now


def test_a_step_is_reached_when_the_first_and_when_the_last_host_has_all_units_of_it() -> None:
    arrivals = Arrivals(hosts=2, steps=1, units=3, clock=_Clock(), first=10)
    for host, units in ((10, 2), (11, 3), (10, 0)):
        arrivals.arrived(host, units)
        assert not arrivals.complete.is_set()
    with pytest.raises(ValueError, match=r"1 of 2 hosts lack something.* 2 of 3 units"):
        arrivals.reached()
    arrivals.arrived(10, 1)
    assert arrivals.complete.is_set()
    assert arrivals.reached() == [Reached(2, 4)]


def test_units_that_come_together_belong_to_the_steps_that_they_are_of() -> None:
    arrivals = Arrivals(hosts=2, steps=3, units=1, clock=_Clock())
    for host, units in ((0, 1), (1, 3), (0, 2)):
        arrivals.arrived(host, units)
    assert arrivals.reached() == [Reached(1, 2), Reached(2, 3), Reached(2, 3)]


def test_the_work_is_all_ports_and_then_one_by_one() -> None:
    work = make_work(ports=300, hosts=10, changes=4)
    payloads = [sent.payload for sent in work.state]
    assert len(GoalStateV2.FromString(b"".join(payloads)).neighbor_states) == 300
    assert len(work.changes) == 4
    every = [*work.entries(), *map(work.changed, range(4))]
    assert len({entry.id for entry in every}) == len(every) == 304
    assert [len(entries(entry.payload)) for entry in every] == [1] * 304
    assert len(ovsdb.rows(payloads)) == 300


def test_connections_share_the_hosts_and_none_is_idle() -> None:
    assert sorted(host for hosts in dealt(range(5, 30)) for host in hosts) == list(range(5, 30))
    assert [list(hosts) for hosts in dealt(range(7, 9))] == [[7], [8]]


def test_rows_are_counted_wherever_what_is_read_was_cut() -> None:
    text = b'{"x":{"insert":{"neighbor":"a"}},"y":{"insert":{"neighbor":"b"}}}'
    for first in range(len(text)):
        for second in range(first, len(text)):
            arrivals = Arrivals(hosts=1, steps=1, units=2, clock=_Clock())
            monitor = ovsdb._Monitor(0)
            monitor._arrived = arrivals.arrived
            for piece in (text[:first], text[first:second], text[second:]):
                monitor.data_received(piece)
            assert arrivals.complete.is_set()


def test_answers_are_told_apart_wherever_what_is_read_was_cut() -> None:
    messages: list[dict[str, object]] = [
        {"id": "echo", "method": "echo"},
        {"id": 1, "result": ["}{", {"count": 1}]},
        {"id": 2, "result": []},
    ]
    text = " ".join(map(json.dumps, messages)).encode()
    for first in range(len(text)):
        for second in range(first, len(text)):
            read = ovsdb.reading()
            pieces = (text[:first], text[first:second], text[second:])
            assert [message for piece in pieces for message in read(piece)] == messages


class _Source:
    """Sends everything but changes."""

    pid = os.getpid()

    def __init__(self, *_: object) -> None: ...
    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None: ...
    def begin(self, vpc: str) -> None: ...
    def admit(self, vpc: str, first: int, hosts: int) -> None: ...
    def state(self, vpc: str) -> Span:
        return Span(1, 2)

    def changes(self, *_: object) -> NoReturn:
        raise MeasurementFailed("it is busy")


class _Hosts(_Source):
    def connect(self, vpc: str, first: int, number: int, *, late: bool = False) -> None: ...
    def expect(self, first: int, steps: int, units: int) -> None: ...
    def leave(self, first: int) -> None: ...
    def follow(self, first: int) -> Span:
        return Span(1, 2)

    def reached(self, first: int) -> list[Reached]:
        return [Reached(3, 4)]


def test_what_was_measured_before_a_failure_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SourceProcess", _Source)
    monkeypatch.setattr(runner, "HostsProcess", _Hosts)
    peer = ovsdb.Ovsdb(0, "1.0", ())
    result = run(peer, make_work(20, 3, 1), TINY, lambda text: None)
    missing = {name: task.missing for name, task in result.tasks.items()}
    assert missing == dict.fromkeys(missing, "") | dict.fromkeys(("change", "churn"), "it is busy")
    assert result.state.last and result.storm.last
    assert not result.missing


def test_what_apt_would_install_is_fetched() -> None:
    said = "NOTE: simulated\nInst libxdp1 (1.3.1-1 Debian:12)\nConf libxdp1\nInst one [1] (2 x)\n"
    assert servers.needed(said) == ["libxdp1", "one"]


def test_processes_are_found_with_what_they_started() -> None:
    assert os.getpid() in machine.descendants(os.getppid())
    assert machine.descendants(2**31 - 1) == []
    assert machine.loopback_bytes() >= 0


def _result(name: str, last: float, cpu: float = 1.0, sent: float = 1.0) -> Result:
    result = Result(name, "1.0", "somehow")
    for task in result.tasks.values():
        task.add(0, int(last * 5e5), int(last * 1e6))
        task.cost.server.append(1.0)
        task.cost.source.append(cpu)
        task.cost.hosts.append(1.0)
        task.cost.bytes.append(sent)
    return result


def test_goals_compare_with_the_fastest_that_was_measured() -> None:
    found = [
        _result(READY, 100, 0.01, 10),
        _result(ALCOR, 700, 0.2, 80),
        _result(GRPC, 99, 0.09, 30),
        _result(OTHERS[0], 90, sent=50),
        Result(OTHERS[1], missing="no server"),
    ]
    judged = {goal.what: goal for goal in goals({one.name: one for one in found}, at_size=True)}
    missed = {what for what, goal in judged.items() if not goal.met}
    assert len(judged) == 9
    assert missed == {
        "time to the last host, goalstate's messages, over gRPC streams",
        "publisher's CPU of gRPC streams over goalstate's messages",
    }
    (fastest,) = (goal for what, goal in judged.items() if what.endswith("fastest of the five"))
    assert fastest.measured.median == pytest.approx(100 / 90)


def test_what_was_not_measured_has_a_row_and_a_reason() -> None:
    silent = _result("NATS core", 5)
    silent.storm = Task(missing="it keeps nothing")
    text = rendered(section([Result(ALCOR, missing="no broker"), silent], TINY, at_size=True))
    assert f"Not measured: {ALCOR}: no broker; NATS core: it keeps nothing." in text
    assert text.count("not measured") >= 6
    assert "no broker" in text.rpartition("What was measured")[2]


def test_pictures_have_every_system_also_those_that_were_not_measured() -> None:
    found = [_result(READY, 100), _result(ALCOR, 700), Result(OTHERS[1], missing="no server")]
    one = section(found, TINY, at_size=True)
    assert {plot.name for plot in one.plots} == {
        "peers-last",
        "peers-cpu",
        "peers-bytes",
        "peers-port",
    }
    for plot in one.plots:
        assert [name for name, _ in plot.rows] == [result.name for result in found]
        assert set(plot.rows[2][1]) == {None}
    (last,) = (plot for plot in one.plots if plot.name == "peers-last")
    assert [values for _, values in last.rows[:2]] == [[100], [700]]


def _tried(system: System, place: Place) -> Result:
    module = import_module(f"bench.peers.{system.module}")
    given = {"sizes": TINY} if system.name == PLAIN else system.given
    work = make_work(TINY.ports, TINY.hosts, TINY.changed)
    return run(module.start(place, **given), work, TINY, lambda text: None)


def _complete(result: Result, without: set[str]) -> None:
    for name, task in result.tasks.items():
        assert bool(task.missing) == (name in without), name
        if not task.missing:
            assert min(task.last) > 0
            assert all(first <= last for first, last in zip(task.first, task.last, strict=True))
    assert len(result.state.last) == TINY.rounds
    assert len(result.change.last) == len(result.change.cost.bytes) == TINY.changes
    if "churn" not in without:
        assert len(result.churn.last) == TINY.churn
    assert result.version


@pytest.mark.parametrize("name", [GRPC, *OTHERS])
def test_each_system_does_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: object) -> NoReturn:
        raise MeasurementFailed("tests fetch nothing")

    monkeypatch.setattr(servers, "_fetch", not_here)
    (system,) = (one for one in SYSTEMS if one.name == name)
    with ExitStack() as stack:
        place = Place(stack, tmp_path, lambda text: None, not_here)
        try:
            result = _tried(system, place)
        except (ImportError, MeasurementFailed) as error:
            if isinstance(error, MeasurementFailed) and "tests fetch nothing" not in str(error):
                raise
            pytest.skip(f"{name}: {error}")
    forgetful = name in ("RabbitMQ fan-out", "NATS core")
    _complete(result, {"join", "storm"} if forgetful else set())


@pytest.mark.parametrize("name", [SYSTEMS[1].name, ALCOR, READY, PLAIN])
def test_each_way_with_pulsar_does_the_work(
    name: str, tmp_path: Path, apache_broker: Broker
) -> None:
    (system,) = (one for one in SYSTEMS if one.name == name)
    with ExitStack() as stack:
        place = Place(stack, tmp_path, lambda text: None, lambda: apache_broker)
        result = _tried(system, place)
    without = {"join", "storm"} if name == PLAIN else set()
    # One change takes it longer than there is time, on a machine that is not fast.
    _complete(result, without | {"churn"} if result.churn.missing and name == ALCOR else without)


def test_agents_do_the_work(tmp_path: Path, apache_broker: Broker) -> None:
    ours = import_module("bench.peers.ours")
    with ExitStack() as stack:
        place = Place(stack, tmp_path, lambda text: None, lambda: apache_broker)
        result = ours.run_agents(place, TINY)
    _complete(result, {"churn"})
