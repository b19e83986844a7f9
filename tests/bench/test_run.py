"""Each measurement still measures: the smallest runs that there can be, without a look at time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench import derive, fanout, hold, machine
from bench.__main__ import main
from bench.alone import Stages, alone
from bench.system import Brokers, MeasurementFailed
from goalstate.bus.brokers import Broker


def silent(_: str) -> None:
    """Progress that nobody wants to see."""


def test_work_of_its_own_process_gives_its_result_and_its_error() -> None:
    assert alone(os.getpid) != os.getpid()
    with pytest.raises(FileNotFoundError):
        alone(os.listdir, "/no/such/directory")


def test_stages_add_up_over_their_turns() -> None:
    stages = Stages()
    stages.begin()
    for stage in ("a", "b", "a"):
        stages.end(stage)
    assert list(stages.cpu) == list(stages.wall) == ["a", "b"]
    assert all(seconds >= 0 for seconds in (*stages.cpu.values(), *stages.wall.values()))


def test_the_machine_is_described_and_processes_are_measured() -> None:
    facts = machine.facts()
    assert "cores" in facts["machine"]
    assert "pulsar-client" in facts["libraries"]
    assert machine.cpu_s(os.getpid()) > 0
    assert machine.resident_bytes() > 1 << 20


def test_derivation_is_measured_in_all_its_stages() -> None:
    run = alone(derive._rounds, "1x40", 20, 1)
    assert (run["ports"], run["intents"], len(run["cpu"])) == (40, 2, 1)
    assert set(run["cpu"][0]) == set(derive.STAGES)
    assert run["bytes"] > 40 * 100


def test_an_agent_is_measured_with_all_that_it_is_sent(tmp_path: Path) -> None:
    file = str(tmp_path / "messages")
    alone(hold._derive, 300, file)
    run = alone(hold._apply, 300, file, 1)
    assert set(run["cpu"][0]) == set(hold.STAGES)
    assert run["messages"] == 1


def test_an_agent_that_lacks_neighbors_is_no_measurement(tmp_path: Path) -> None:
    file = str(tmp_path / "messages")
    alone(hold._derive, 300, file)
    with pytest.raises(MeasurementFailed, match="300 of 301"):
        alone(hold._apply, 301, file, 1)


def test_fan_out_is_measured_beside_the_plain_client(apache_broker: Broker) -> None:
    brokers = Brokers(apache_broker.url, apache_broker.admin_url, silent)
    cells, raw = fanout.additions(brokers, silent, 4, fanout.COUNT, (2, 3), 1)
    assert [cell.beyond for cell in cells] == [2, 3]
    for cell in (*cells, raw):
        assert 0 < cell.first[0] <= cell.middle[0] <= cell.last[0]
    assert raw.message_bytes > 300


def test_an_unknown_measurement_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "nothing"]) == 2
    assert "there is no measurement 'nothing': derive, hold" in capsys.readouterr().err


def test_a_broker_that_does_not_answer_leaves_no_result(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--only", "wire", "--broker", "pulsar://127.0.0.1:1"]) == 1
    assert "NOT MEASURED: wire: nobody answers at pulsar://127.0.0.1:1" in capsys.readouterr().out
