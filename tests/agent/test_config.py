from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from goalstate.agent.config import AgentConfig

BROKER = "pulsar://127.0.0.1:6650"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOALSTATE_AGENT_HOSTS", raising=False)


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        f"broker: {BROKER}\nhosts: 3\nfirst: 7\nlease_s: 9\nmodel:\n  program_ms: 1.5\n"
    )
    monkeypatch.setenv("GOALSTATE_AGENT_HOSTS", "4")
    monkeypatch.setenv("GOALSTATE_AGENT_FIRST", "8")
    monkeypatch.setenv("GOALSTATE_AGENT_MODEL__SIGMA", "0.1")
    config = AgentConfig.load(file, hosts=5, first=None, register="dpm:1")
    assert (config.hosts, config.first, config.lease_s) == (5, 8, 9)
    assert (config.model.program_ms, config.model.sigma) == (1.5, 0.1)
    assert config.register_with == "dpm:1"
    assert config.broker == BROKER


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"hosts": 0}, "hosts"),
        ({"counting_share": 1.1}, "counting_share"),
        ({"data_plane": "iron"}, "data_plane"),
        ({"hots": 3}, "hots"),
        ({"region": "a/b"}, "region"),
        ({"model": {"sigma": -1}}, "model"),
        ({"metrics_port": 70000}, "metrics_port"),
    ],
)
def test_a_wrong_setting_is_named(flags: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as error:
        AgentConfig.load(broker=BROKER, **flags)
    assert error.value.errors()[0]["loc"][0] == field


def test_hosts_that_have_no_address_are_refused() -> None:
    with pytest.raises(ValidationError, match="there is no simulated host number 4194302"):
        AgentConfig.load(broker=BROKER, first=4194000, hosts=303)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*nothing\.yaml"):
        AgentConfig.load(tmp_path / "nothing.yaml", broker=BROKER)


def test_audits_get_time_or_are_off() -> None:
    assert AgentConfig.load(broker=BROKER, audit_interval_s=0).audit_interval_s == 0
    with pytest.raises(ValidationError, match="0 for no audits, or at least 10"):
        AgentConfig.load(broker=BROKER, audit_interval_s=9.9)


@pytest.mark.parametrize("flags", [{"source": "alcor"}, {"remotes": Path("remotes.yaml")}])
def test_hosts_of_alcors_services_cannot_be_of_a_region_that_is_divided(
    flags: dict[str, Any],
) -> None:
    AgentConfig.load(broker=BROKER, **flags)
    with pytest.raises(ValidationError, match="cannot be of a region that is divided"):
        AgentConfig.load(broker=BROKER, shards=2, **flags)
