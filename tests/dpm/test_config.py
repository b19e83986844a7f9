"""The publisher's configuration: which source wins, and what is wrong with one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from goalstate.dpm.config import DpmConfig
from goalstate.process import MAX_GRPC_BYTES

URL = "pulsar://127.0.0.1:6650"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DpmConfig.model_fields:
        monkeypatch.delenv(f"GOALSTATE_DPM_{name.upper()}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dpm.yaml"
    path.write_text(f"broker: {URL}\nregion: from-file\nreport_shards: 7\nlog_level: debug\n")
    return path


def wrong(error: pytest.ExceptionInfo[ValidationError]) -> set[str]:
    return {".".join(map(str, item["loc"])) for item in error.value.errors()}


def test_only_the_broker_has_no_default() -> None:
    config = DpmConfig.load(broker=URL)
    assert (config.region, config.listen, config.metrics_port) == (
        "default",
        "127.0.0.1:50151",
        9151,
    )
    assert config.security_groups == "vpc-stream"
    assert config.max_intent_bytes == MAX_GRPC_BYTES
    assert config.writer
    with pytest.raises(ValidationError) as error:
        DpmConfig.load()
    assert wrong(error) == {"broker"}


def test_flags_win_over_the_environment_which_wins_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOALSTATE_DPM_REGION", "from-env")
    monkeypatch.setenv("GOALSTATE_DPM_REPORT_SHARDS", "8")
    config = DpmConfig.load(file, region="from-flag")
    assert (config.region, config.report_shards, config.log_level) == ("from-flag", 8, "debug")
    assert config.broker == URL


def test_a_flag_that_is_not_given_says_nothing(file: Path) -> None:
    assert DpmConfig.load(file, region=None, listen=None).region == "from-file"


def test_metrics_may_be_switched_off_in_the_file(file: Path) -> None:
    file.write_text(file.read_text() + "metrics_port: null\n")
    assert DpmConfig.load(file).metrics_port is None


def test_no_file_is_read_that_was_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("config.yaml", "settings.yaml", ".env"):
        (tmp_path / name).write_text("region: strange\nGOALSTATE_DPM_REGION=strange\n")
    assert DpmConfig.load(broker=URL).region == "default"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*/none\.yaml"):
        DpmConfig.load(tmp_path / "none.yaml", broker=URL)


@pytest.mark.parametrize("text", ["broker: [", "a: b: c"])
def test_a_file_that_is_no_yaml_is_an_error(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(yaml.YAMLError):
        DpmConfig.load(file)


def test_an_unknown_key_is_named(file: Path) -> None:
    file.write_text(file.read_text() + "brokers: 3\n")
    with pytest.raises(ValidationError) as error:
        DpmConfig.load(file)
    assert wrong(error) == {"brokers"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("region", ""),
        ("region", "a/b"),
        ("region", "x" * 65),
        ("metrics_port", -1),
        ("metrics_port", 65536),
        ("report_shards", 0),
        ("report_shards", 1025),
        ("security_groups", "nowhere"),
        ("compression", "rar"),
        ("max_intent_bytes", 0),
        ("max_intent_bytes", MAX_GRPC_BYTES + 1),
        ("snapshot_min_bytes", -1),
        ("snapshot_factor", -0.1),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("unknown", 1),
    ],
)
def test_a_value_that_cannot_be_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        DpmConfig.load(broker=URL, **{name: value})
    assert wrong(error) == {name}


def test_every_value_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text(file.read_text() + "compression: rar\n")
    monkeypatch.setenv("GOALSTATE_DPM_REPORT_SHARDS", "many")
    with pytest.raises(ValidationError) as error:
        DpmConfig.load(file, metrics_port=-5)
    assert wrong(error) == {"compression", "report_shards", "metrics_port"}


def test_a_configuration_does_not_change() -> None:
    config = DpmConfig.load(broker=URL)
    with pytest.raises(ValidationError):
        config.region = "other"


ADMIN = "http://127.0.0.1:8080"


def test_checkpoints_are_renewed_within_a_third_of_the_retention() -> None:
    load = DpmConfig.load
    assert load(broker=URL).checkpoint_max_age_s is None
    assert load(broker=URL, checkpoint_max_age_s=50).checkpoint_max_age_s == 50
    kept = load(broker=URL, admin_url=ADMIN, retention_s=600)
    assert kept.checkpoint_max_age_s == 200
    younger = load(broker=URL, admin_url=ADMIN, retention_s=600, checkpoint_max_age_s=60)
    assert younger.checkpoint_max_age_s == 60
    with pytest.raises(ValidationError, match="more than a third of retention_s, 600") as error:
        load(broker=URL, admin_url=ADMIN, retention_s=600, checkpoint_max_age_s=201)
    assert wrong(error) == {"checkpoint_max_age_s"}


@pytest.mark.parametrize(
    ("broker", "reason"),
    [(URL, "give admin_url too"), ("embedded://127.0.0.1:6650", "keeps everything")],
)
def test_a_retention_that_nobody_would_keep_is_refused(broker: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as error:
        DpmConfig.load(broker=broker, retention_s=600)
    assert wrong(error) == {"retention_s"}


def test_a_retention_is_at_least_a_minute() -> None:
    with pytest.raises(ValidationError) as error:
        DpmConfig.load(broker=URL, admin_url=ADMIN, retention_s=59)
    assert wrong(error) == {"retention_s"}
