"""Workload files: what is done to which region, at what rate, and when that is good enough.

A file is YAML, or JSON, checked as a whole: every mistake is named with its place, and a field that
does not exist is one. `goalstate load schema` prints the JSON schema.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from goalstate.gs.intent import ChannelChoice
from goalstate.gs.naming import GROUP_SIZE
from goalstate.scale.generate import Region, parse_mix
from goalstate.scale.load.stages import PERCENTILES, Stage

#: Where the workloads are that come with the package.
_SHIPPED = resources.files("goalstate.scale.load") / "workloads"


class WorkloadError(ValueError):
    """A workload file is none; the text says what is wrong, and where."""


class ChangeKind(StrEnum):
    CREATE_PORTS = "create-ports"
    DELETE_PORTS = "delete-ports"
    #: Ports go to other hosts, as virtual machines do.
    MOVE_PORTS = "move-ports"
    #: Ports become members of one more security group, or of one less.
    JOIN_GROUP = "join-group"
    LEAVE_GROUP = "leave-group"
    #: A security group loses a rule, or gets it back.
    REVOKE_RULE = "revoke-rule"
    RESTORE_RULE = "restore-rule"
    #: A whole VPC of `new_vpcs`, with all its ports; and away with one.
    CREATE_VPC = "create-vpc"
    DELETE_VPC = "delete-vpc"
    #: A host that was not there begins to follow (`joining_hosts`).
    JOIN_HOST = "join-host"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(_Model):
    """So many changes a second, evenly spaced."""

    shape: Literal["constant"]
    rate: float = Field(gt=0, le=1e6, description="changes a second")


class Poisson(_Model):
    """So many changes a second on average, each at a time that no other one knows of."""

    shape: Literal["poisson"]
    rate: float = Field(gt=0, le=1e6, description="changes a second, on average")


class Ramp(_Model):
    """From one rate to another, evenly over the phase."""

    shape: Literal["ramp"]
    start: float = Field(ge=0, le=1e6, description="changes a second at the beginning")
    end: float = Field(ge=0, le=1e6, description="and at the end")

    @model_validator(mode="after")
    def _something(self) -> Ramp:
        if not self.start and not self.end:
            raise ValueError("a ramp from 0 to 0 has no changes")
        return self


Arrival = Annotated[Constant | Poisson | Ramp, Field(discriminator="shape")]


class RegionSpec(_Model):
    hosts: int = Field(ge=1, le=1_000_000)
    vpcs: str = Field(description="VPCs that are there before: VPCs x ports, as 5x1000,45x100")
    new_vpcs: str = Field(default="", description="VPCs that create-vpc makes, in the same way")
    seed: int = 1
    uuids: bool = Field(default=False, description="ids that look like UUIDs")

    @field_validator("vpcs", "new_vpcs")
    @classmethod
    def _mix(cls, value: str) -> str:
        if value:
            parse_mix(value)
        return value

    def region(self, layout: Layout) -> Region:
        """Raises ValueError."""
        new = parse_mix(self.new_vpcs) if self.new_vpcs else ()
        return Region(
            hosts=self.hosts,
            vpcs=(*parse_mix(self.vpcs), *new),
            seed=self.seed,
            group_size=layout.group_size,
            uuids=self.uuids,
            channel=layout.vpc_channel,
        )

    @property
    def vpc_count(self) -> int:
        """Of VPCs that are there before."""
        return len(parse_mix(self.vpcs))


class Layout(_Model):
    """How what is published is laid out: topics, channels, bytes."""

    channel: Literal["pulsar", "session", "auto"] = Field(
        default="pulsar", description="what VPCs travel on; auto: small ones on gRPC sessions"
    )
    security_groups: Literal["vpc-stream", "own-stream"] = "vpc-stream"
    compression: Literal["none", "lz4", "zstd"] = "lz4"
    group_size: int = Field(default=GROUP_SIZE, ge=1, description="hosts that share an inbox")
    report_shards: int = Field(default=4, ge=1, le=1024, description="topics of reports")
    shards: int = Field(default=1, ge=1, le=256, description="the region is divided into")
    group_interval_s: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="seconds between two groups of changes that share a message on each stream",
    )

    @property
    def vpc_channel(self) -> ChannelChoice:
        return ChannelChoice[self.channel.upper()]


class FleetSpec(_Model):
    """How hosts are played. They are divided evenly among the processes."""

    processes: int = Field(default=1, ge=1, le=1000)
    counting_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the hosts that count and do not decode"
    )
    decoding: Literal["shared", "own"] = "shared"
    data_plane: Literal["memory", "modelled"] = "memory"
    joining_hosts: int = Field(
        default=0, ge=0, description="of the region's hosts, so many are there only once they join"
    )


class Phase(_Model):
    name: str = Field(min_length=1, max_length=60)
    seconds: float = Field(gt=0, le=86400)
    measured: bool = Field(default=True, description="false: a warm-up")
    arrival: Arrival
    changes: dict[ChangeKind, float] = Field(
        min_length=1, description="kinds of changes, and how often each is made beside the others"
    )
    ports: int = Field(default=1, ge=1, le=10_000, description="that a change of ports touches")
    vpcs: str = Field(default="", description="only these VPCs, by number: 1-5,9; empty: all")

    @field_validator("changes")
    @classmethod
    def _weights(cls, value: dict[ChangeKind, float]) -> dict[ChangeKind, float]:
        if any(weight <= 0 for weight in value.values()):
            raise ValueError("how often a kind is made must be above 0")
        return value

    @field_validator("vpcs")
    @classmethod
    def _numbers(cls, value: str) -> str:
        parse_numbers(value)
        return value


class Threshold(_Model):
    """What must hold at the end, over all measured phases or in one of them."""

    stage: Stage
    percentile: float
    at_most_ms: float = Field(gt=0)
    phase: str = Field(default="", description="empty: all that is measured")

    @field_validator("percentile")
    @classmethod
    def _kept(cls, value: float) -> float:
        if value not in PERCENTILES:
            raise ValueError(f"must be one of {', '.join(f'{one:g}' for one in PERCENTILES)}")
        return value


class Thresholds(_Model):
    """A run that does not hold them ends with exit code 1."""

    latency: tuple[Threshold, ...] = ()
    lost: int = Field(default=0, ge=0, description="changes that a host did not get")
    failed: int = Field(default=0, ge=0, description="changes that were refused, or not answered")
    least_share: float = Field(
        default=0.99, ge=0, le=1, description="of the offered changes that must be accepted"
    )
    dpm_growth: float | None = Field(
        default=None,
        gt=0,
        description="the DPM's memory at the end against that when measuring began, at most",
    )


class Workload(_Model):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    about: str = Field(default="", max_length=2000)
    region: RegionSpec
    layout: Layout = Layout()
    fleet: FleetSpec = FleetSpec()
    broker: str = Field(
        default="auto", description="auto, apache, docker, embedded, or the URL of one that runs"
    )
    generators: int = Field(default=1, ge=1, le=1000, description="processes that send changes")
    callers: int = Field(
        default=64, ge=1, le=10_000, description="of each of them: changes under way at once"
    )
    phases: tuple[Phase, ...] = Field(min_length=1)
    settle_s: float = Field(
        default=60.0, ge=0, description="after the last phase, for what is still on its way"
    )
    thresholds: Thresholds = Thresholds()

    @model_validator(mode="after")
    def _consistent(self) -> Workload:
        names = [phase.name for phase in self.phases]
        if len(set(names)) != len(names):
            raise ValueError("two phases have the same name")
        if not any(phase.measured for phase in self.phases):
            raise ValueError("no phase is measured")
        self.region.region(self.layout)
        measured = {phase.name for phase in self.phases if phase.measured}
        for threshold in self.thresholds.latency:
            if threshold.phase and threshold.phase not in measured:
                raise ValueError(f"a threshold is of {threshold.phase!r}, which is not measured")
        for phase in self.phases:
            if max(parse_numbers(phase.vpcs), default=0) > self.region.vpc_count:
                raise ValueError(
                    f"phase {phase.name!r} is of VPCs {phase.vpcs}, and there are "
                    f"{self.region.vpc_count}"
                )
            if ChangeKind.CREATE_VPC in phase.changes and not self.region.new_vpcs:
                raise ValueError(
                    f"phase {phase.name!r} makes VPCs, and region.new_vpcs does not say which"
                )
            if ChangeKind.JOIN_HOST in phase.changes and not self.fleet.joining_hosts:
                raise ValueError(
                    f"phase {phase.name!r} has hosts join, and fleet.joining_hosts is 0"
                )
        if self.fleet.joining_hosts and self.layout.shards > 1:
            raise ValueError("hosts cannot join later in a region that is divided into shards")
        if self.fleet.joining_hosts >= self.region.hosts:
            raise ValueError("fleet.joining_hosts must be fewer than the region's hosts")
        if self.fleet.processes > self.region.hosts - self.fleet.joining_hosts:
            raise ValueError("there are more processes in the fleet than hosts")
        return self

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(phase.seconds for phase in self.phases)

    def spans(self) -> Iterator[tuple[Phase, float]]:
        """Each phase, and how many seconds after the start of the first it begins."""
        begin = 0.0
        for phase in self.phases:
            yield phase, begin
            begin += phase.seconds


def parse_numbers(text: str) -> frozenset[int]:
    """Numbers and ranges of them, from 1: "1-5,9". Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{part!r} is no number and no range (expected as 1-5)")
        numbers = range(int(first), int(last or first) + 1)
        if not numbers or numbers[0] < 1:
            raise ValueError(f"{part!r} is an empty range, or begins below 1")
        found.update(numbers)
    return frozenset(found)


def shipped() -> dict[str, str]:
    """The workloads that come with the package: texts by name."""
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(_SHIPPED.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    }


def load(where: str, overrides: Sequence[str] = ()) -> Workload:
    """Read a workload: a file, or the name of one that is shipped.

    `overrides` are `path=value` with a dotted path, e.g. `region.hosts=100` or
    `phases.0.seconds=5`, and values in YAML. Raises WorkloadError.
    """
    path = Path(where)
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else shipped()[where]
    except KeyError:
        raise WorkloadError(
            f"there is no file {where}, and no workload of that name is shipped "
            f"({', '.join(shipped())})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{where} cannot be read: {error}") from None
    return parse(text, where, overrides)


def parse(text: str, what: str, overrides: Sequence[str] = ()) -> Workload:
    """Raises WorkloadError."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WorkloadError(f"{what} is no YAML: {error}") from None
    if not isinstance(document, dict):
        raise WorkloadError(f"{what} is no workload: a mapping is expected")
    for override in overrides:
        _override(document, override)
    try:
        return Workload.model_validate(document)
    except ValidationError as error:
        wrong = [
            ": ".join(filter(None, (".".join(map(str, item["loc"])), item["msg"])))
            for item in error.errors()
        ]
        raise WorkloadError(f"{what}: " + "; ".join(wrong)) from None


def _override(document: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise WorkloadError(f"{override!r} is no path=value (as region.hosts=100)")
    place: Any = document
    try:
        parsed = yaml.safe_load(value)
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        if isinstance(place, list):
            place[int(keys[-1])] = parsed
        else:
            place[keys[-1]] = parsed
    except (yaml.YAMLError, LookupError, ValueError, TypeError, AttributeError):
        raise WorkloadError(f"{override!r}: there is no such place, or it is no value") from None


def schema() -> dict[str, Any]:
    """The JSON schema of workload files."""
    return Workload.model_json_schema()
