"""Configuration of the publisher: one model; a YAML file, the environment, and flags fill it.

Flags win over the environment (GOALSTATE_DPM_<FIELD>), which wins over the file.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from goalstate.dpm.admission import AdmissionPolicy
from goalstate.dpm.channels import NEVER, SESSION_MEMBERS, SESSION_PORTS, ChannelPolicy
from goalstate.dpm.snapshot import SnapshotPolicy
from goalstate.process import MAX_GRPC_BYTES


class DpmConfig(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="GOALSTATE_DPM_", extra="forbid", frozen=True)

    broker: str = Field(description="URL of the broker, pulsar://… or embedded://…")
    admin_url: str | None = Field(
        default=None, description="Pulsar's admin REST API; makes the region's namespace at start"
    )
    region: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    listen: str = "127.0.0.1:50151"
    advertise: str | None = Field(
        default=None, description="HOST:PORT that others are to call; None: as it listens"
    )
    failover_after_s: float = Field(
        default=3.0,
        ge=0.1,
        description="a standby takes over after so much silence; alike for all of a region",
    )
    metrics_port: int | None = Field(
        default=9151, ge=0, le=65535, description="0: any free one; None: no metrics are served"
    )
    metrics_address: str = "127.0.0.1"
    writer: str = Field(default_factory=socket.gethostname)
    report_shards: int = Field(default=4, ge=1, le=1024)
    shards: int = Field(
        default=1,
        ge=1,
        le=256,
        description="into how many the region is divided, for good; alike for all of a region",
    )
    security_groups: Literal["vpc-stream", "own-stream"] = "vpc-stream"
    channel: Literal["pulsar", "auto"] = Field(
        default="pulsar",
        description="auto: VPCs travel over gRPC sessions while they are small; all agents of the "
        "region must be given our address. It counts for a VPC from its next change on",
    )
    session_ports: int = Field(
        default=SESSION_PORTS,
        ge=1,
        description="auto: a VPC with more ports goes to Pulsar, and comes back below 0.8 of that",
    )
    session_members: int = Field(
        default=SESSION_MEMBERS,
        ge=1,
        description="the same by the members of its largest security group",
    )
    compression: Literal["none", "lz4", "zstd"] = Field(
        default="lz4",
        description="of what is on topics; with zstd bulk is half as large, and to receive a small "
        "message takes half as long again",
    )
    max_intent_bytes: int = Field(
        default=MAX_GRPC_BYTES, ge=1024, le=MAX_GRPC_BYTES, description="of one request"
    )
    longest_wait_s: float = Field(
        default=AdmissionPolicy().longest_s,
        gt=0,
        description="an intent that would wait for longer, beside group_interval_s, is shed "
        "(RESOURCE_EXHAUSTED)",
    )
    group_interval_s: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="changes share a record of the intent log, and a message on each stream, with "
        "those that come within so many seconds of the last; 0: while that is on its way",
    )
    snapshot_min_bytes: int = Field(
        default=SnapshotPolicy().at_least,
        ge=0,
        description="a snapshot is due when the intent log grew by more than this since the last",
    )
    snapshot_factor: float = Field(
        default=SnapshotPolicy().times,
        ge=0,
        description="and by more than so many times the last snapshot's bytes",
    )
    checkpoint_min_bytes: int = Field(
        default=1024 * 1024,
        ge=0,
        description="a stream's checkpoint is due when more than this was put on it since the last",
    )
    checkpoint_factor: float = Field(
        default=2.0, ge=0, description="and more than so many times the bytes of its state"
    )
    retention_s: float | None = Field(
        default=None,
        ge=60,
        description="streams and reports stay on their topics for so long, and as much longer as a "
        "ledger of the broker stays open; the intent log and its snapshots stay for good. None: "
        "all does",
    )
    checkpoint_max_age_s: float | None = Field(
        default=None,
        gt=0,
        validate_default=True,
        description="also when the last one is older than this; at most a third of the topics' "
        "retention, whoever sets that. None: a third of retention_s, or as old as it likes",
    )
    ready_file: Path | None = None
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("retention_s")
    @classmethod
    def _can_be_set(cls, value: float | None, info: ValidationInfo) -> float | None:
        broker = str(info.data.get("broker", ""))
        if value is not None and broker.startswith("embedded"):
            raise ValueError("the embedded broker keeps everything")
        if value is not None and not info.data.get("admin_url"):
            raise ValueError("it is set through the broker's admin REST API: give admin_url too")
        return value

    @field_validator("checkpoint_max_age_s")
    @classmethod
    def _within_the_retention(cls, value: float | None, info: ValidationInfo) -> float | None:
        """The newest checkpoint, the log after it, and the time to write the next one must fit."""
        retention_s = info.data.get("retention_s")
        if retention_s is None:
            return value
        if value is not None and value > retention_s / 3:
            raise ValueError(f"it is more than a third of retention_s, {retention_s:g}")
        return value if value is not None else float(retention_s) / 3

    @property
    def channels(self) -> ChannelPolicy:
        on = self.channel == "auto"
        return ChannelPolicy(self.session_ports, self.session_members) if on else NEVER

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = YamlConfigSettingsSource(settings_cls)  # nothing, unless `load` names a file
        return init_settings, env_settings, file

    @classmethod
    def load(cls, file: Path | None = None, **flags: Any) -> DpmConfig:
        """The configuration from a file, the environment, and flags that are not None.

        Raises pydantic.ValidationError, FileNotFoundError, yaml.YAMLError.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        if file is None:
            return cls(**given)
        if not file.is_file():
            raise FileNotFoundError(f"no configuration file {file}")

        class FromFile(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(yaml_file=file)

        loaded: DpmConfig = FromFile(**given)
        return loaded
