"""Configuration of an agent process: one model; a YAML file, the environment, and flags fill it.

Flags win over the environment (GOALSTATE_AGENT_<FIELD>), which wins over the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from goalstate.gs.naming import GROUP_SIZE, simulated_host


class ModelConfig(BaseModel):
    """Of the modelled data plane; see `dataplanes.ProgrammingModel`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    program_ms: float = Field(default=2.0, ge=0, description="median of a program's own time")
    operation_us: float = Field(default=50.0, ge=0, description="median of one operation's time")
    sigma: float = Field(default=0.5, ge=0, le=3, description="shape of both lognormals")
    refuse_share: float = Field(default=0.0, ge=0, le=1)
    refuse_ids: tuple[str, ...] = ()
    refuse_times: int = Field(
        default=0, ge=0, description="so often a revision is refused, then taken; 0: for good"
    )


class AgentConfig(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="GOALSTATE_AGENT_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    source: Literal["streams", "alcor"] = Field(
        default="streams",
        description="alcor: the hosts are pushed to by a publisher of Alcor's schema",
    )
    remotes: Path | None = Field(
        default=None,
        description="YAML, host → HOST:PORT of its agent: push to these hosts, and report for them",
    )
    broker: str | None = Field(
        default=None,
        validate_default=True,
        description="URL of the broker, pulsar://… or embedded://…; alcor needs none",
    )
    region: str = Field(default="default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    report_shards: int = Field(default=4, ge=1, le=1024, description="as the publisher has it")

    shards: int = Field(default=1, ge=1, le=256, description="into how many the region is divided")
    hosts: int = Field(default=1, ge=1, description="how many hosts this process plays")
    first: int = Field(default=0, ge=0, description="number of the first one")
    host_prefix: str = Field(default="host", min_length=1, max_length=100)
    group_size: int = Field(default=GROUP_SIZE, ge=1)
    counting_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the hosts that count and do not decode"
    )

    decoding: Literal["shared", "own"] = Field(
        default="shared",
        description="shared: a message that several hosts get is read once; own: by each of them",
    )

    data_plane: Literal["memory", "modelled"] = "memory"
    model: ModelConfig = ModelConfig()
    program_limit: int = Field(default=4096, ge=1, description="operations in one program")
    pending_deadline_s: float = Field(default=30.0, gt=0, le=86400)
    audit_interval_s: float = Field(
        default=300.0,
        ge=0,
        le=86400,
        description="all that hosts and data planes hold is looked at once in it; 0: never",
    )
    retry_attempts: int = Field(
        default=8, ge=1, le=1000, description="at what the data plane refuses for now, in all"
    )
    retry_delay_s: float = Field(default=1.0, gt=0, le=3600, description="the first; then doubled")
    retry_max_delay_s: float = Field(default=60.0, gt=0, le=86400)

    lease_s: float = Field(default=30.0, ge=1, le=86400)
    report_delay_ms: float = Field(
        default=5.0, ge=0, le=1000, description="from the first news to the report of them"
    )
    open_readers_at_a_time: int = Field(default=256, ge=1)
    read_checkpoints_at_a_time: int = Field(
        default=64, ge=1, description="hosts that read a checkpoint at once; the others wait"
    )

    alcor_formats: tuple[Literal["v1", "v2"], ...] = Field(
        default=("v1", "v2"), min_length=1, description="that hosts which are pushed to take"
    )
    alcor_pending_s: float = Field(
        default=1.0, ge=0, le=3600, description="a push is answered, though a reference is missing"
    )
    alcor_answer_s: float = Field(
        default=30.0, gt=0, le=3600, description="a push is answered, though data planes did not"
    )
    remote_answer_s: float = Field(
        default=60.0, gt=0, le=3600, description="in which a remote agent must answer a push"
    )

    state_dir: Path | None = Field(
        default=None,
        description="where hosts store what they hold, to go on from there; None: nowhere",
    )

    inspect: str | None = Field(
        default="127.0.0.1:50152", description="of the inspection service; None: not served"
    )
    metrics_port: int | None = Field(
        default=9152, ge=0, le=65535, description="0: any free one; None: no metrics are served"
    )
    metrics_address: str = "127.0.0.1"
    dpm: tuple[str, ...] = Field(
        default=(),
        description="HOST:PORT of all DPMs of the region, tried in turn, for VPCs that are on "
        "sessions; none: the one of register_with",
    )
    register_with: str | None = Field(
        default=None, description="HOST:PORT of a DPM that the hosts are made known to"
    )
    register_timeout_s: float = Field(default=60.0, gt=0)
    ready_file: Path | None = None
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("broker")
    @classmethod
    def _broker_is_given(cls, broker: str | None, info: ValidationInfo) -> str | None:
        if broker is None and info.data.get("source") != "alcor":
            raise PydanticCustomError("missing", "Field required")
        return broker

    @model_validator(mode="after")
    def _fits_together(self) -> AgentConfig:
        pushing = self.remotes is not None
        if pushing and self.source == "alcor":
            raise ValueError("a process pushes (remotes) or is pushed to (source: alcor), not both")
        if (pushing or self.source == "alcor") and self.counting_share:
            raise ValueError("counting_share: hosts that push or are pushed to decode everything")
        if pushing and self.state_dir is not None:
            raise ValueError("state_dir: a process that pushes (remotes) stores nothing")
        if self.shards > 1 and (pushing or self.source == "alcor"):
            raise ValueError(
                "shards: hosts that push or are pushed to (remotes, source: alcor) have one order "
                "of their own, and cannot be of a region that is divided"
            )
        if self.source == "alcor" and self.inspect is None:
            raise ValueError("inspect: it is also where source: alcor is served")
        return self

    @model_validator(mode="after")
    def _audits_have_time(self) -> AgentConfig:
        if 0 < self.audit_interval_s < 10:
            raise ValueError("audit_interval_s: give 0 for no audits, or at least 10")
        return self

    @model_validator(mode="after")
    def _hosts_exist(self) -> AgentConfig:
        simulated_host(self.first + self.hosts - 1)  # raises ValueError, which says what is wrong
        return self

    @property
    def publishers(self) -> tuple[str, ...]:
        """Where sessions are opened; none: this process can have none."""
        return self.dpm or ((self.register_with,) if self.register_with else ())

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
    def load(cls, file: Path | None = None, **flags: Any) -> AgentConfig:
        """The configuration from a file, the environment, and flags that are not None.

        The flag `register` fills `register_with`: pydantic's models have a `register` of their own.
        Raises pydantic.ValidationError, FileNotFoundError, yaml.YAMLError.
        """
        flags["register_with"] = flags.pop("register", None) or flags.get("register_with")
        given = {name: value for name, value in flags.items() if value is not None}
        if file is None:
            return cls(**given)
        if not file.is_file():
            raise FileNotFoundError(f"no configuration file {file}")

        class FromFile(cls):  # type: ignore[valid-type, misc]
            model_config = SettingsConfigDict(yaml_file=file)

        loaded: AgentConfig = FromFile(**given)
        return loaded
