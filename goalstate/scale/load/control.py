"""How coordinator and workers of a run speak: two topics of the broker, named after the run.

    coordinator ──ping, assignment, start, stop──▶ ….<run>.control ──▶ workers
    workers ──hello, pong, ready, progress, end──▶ ….<run>.workers ──▶ coordinator

Whoever is to take part needs the run's id and the broker's URL, nothing else. Topics are read from
their beginning, so it does not matter who is there first.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from goalstate.bus.base import EARLIEST, Bus, Message, Producer, Reader
from goalstate.scale.load.errors import LoadError
from goalstate.scale.load.stamps import Stamp
from goalstate.scale.load.witness import Seen
from goalstate.scale.load.workload import ChangeKind, Workload

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
#: A namespace that every Pulsar has from the start: nobody needs to be asked for one.
_PREFIX = "persistent://public/default/goalstate-load"


def new_run() -> str:
    return f"run-{secrets.token_hex(4)}"


class Place(NamedTuple):
    """The topics of a run."""

    control: str
    workers: str

    @classmethod
    def of(cls, run: str) -> Self:
        """Raises LoadError."""
        if not _RUN.fullmatch(run):
            raise LoadError(f"{run!r} is no id of a run: letters, digits, and . _ - within")
        prefix = f"{_PREFIX}.{run}"
        return cls(f"{prefix}.control", f"{prefix}.workers")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


# --- of workers ---


class Hello(_Model):
    type: Literal["hello"] = "hello"
    worker: str
    clock_id: str
    machine: str
    pid: int


class Pong(_Model):
    type: Literal["pong"] = "pong"
    worker: str
    number: int
    there_ns: int


class Ready(_Model):
    """What was assigned can begin: a generator is connected, the hosts of a fleet follow."""

    type: Literal["ready"] = "ready"
    worker: str


class Usage(NamedTuple):
    """What a process has used so far."""

    cpu_s: float
    rss_bytes: int


class Progress(_Model):
    """Of about a second; what is in it has not been said before."""

    type: Literal["progress"] = "progress"
    worker: str
    #: Of generators, or of fleets, which it is.
    part: int
    #: Since the first phase began.
    second: int
    #: By `recording.Key`.
    histograms: dict[str, str] = {}
    #: Of generators, by phase, kind of change and outcome; each a whole since the beginning.
    outcomes: list[tuple[int, ChangeKind | None, str, int]] = []
    #: Of generators: accepted changes of measured phases, as (number, phase, intended start in ns,
    #: number in the intent log).
    accepted: list[tuple[int, int, int, int]] = []
    #: Of fleets: settled changes, see `Seen`.
    seen: list[tuple[int, int, int, int, int, int, int, int]] = []
    #: Changes that wait for a caller, or are not settled.
    waiting: int = 0
    usage: Usage
    #: Of fleets, since the beginning.
    messages: int = 0
    bytes: int = 0
    gaps: int = 0
    resyncs: int = 0
    refused: int = 0


class Lost(_Model):
    """A change that hosts of a fleet did not get, though they follow its stream."""

    seen: tuple[int, int, int, int, int, int, int, int]
    stream: str


class Ended(_Model):
    """All is answered, or settled; nothing more comes."""

    type: Literal["ended"] = "ended"
    worker: str
    lost: list[Lost] = []
    #: Hosts that were to join, and have not got everything.
    not_joined: int = 0
    refusals: list[str] = []
    #: By host, the mean latency from intended start to applied in ms, and of how many changes.
    slowest: list[tuple[str, float, int]] = []


class Failed(_Model):
    type: Literal["failed"] = "failed"
    worker: str
    error: str


FromWorker = Annotated[
    Hello | Pong | Ready | Progress | Ended | Failed, Field(discriminator="type")
]


# --- of the coordinator ---


class Ping(_Model):
    type: Literal["ping"] = "ping"
    worker: str
    number: int


class Assignment(_Model):
    type: Literal["assignment"] = "assignment"
    worker: str
    role: Literal["generator", "fleet"]
    part: int
    parts: int
    workload: Workload
    #: Name of the region on the broker, and its DPMs.
    region: str
    dpms: list[str]
    #: The worker's clock minus the coordinator's.
    ahead_ns: int


class Start(_Model):
    type: Literal["start"] = "start"
    #: When the first phase begins, by the coordinator's clock.
    start_ns: int


class Stop(_Model):
    """To fleets: all generators have ended; what is not settled within `settle_s` is lost. With
    `failed`, to all: the run is over."""

    type: Literal["stop"] = "stop"
    settle_s: float = 0.0
    failed: str = ""


class Over(_Model):
    """Everything is known; workers may go."""

    type: Literal["over"] = "over"


FromCoordinator = Annotated[Ping | Assignment | Start | Stop | Over, Field(discriminator="type")]

_WORKERS: TypeAdapter[FromWorker] = TypeAdapter(FromWorker)
_COORDINATOR: TypeAdapter[FromCoordinator] = TypeAdapter(FromCoordinator)


def to_seen(row: tuple[int, int, int, int, int, int, int, int]) -> Seen:
    generator, number, intended_ns, *rest = row
    return Seen(Stamp(generator, number, intended_ns), *rest)


def from_seen(seen: Seen) -> tuple[int, int, int, int, int, int, int, int]:
    return (*seen.stamp, *seen[1:])


class Line:
    """One end of it. `open`, then `close`."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._reader: Reader | None = None
        self._failed: BaseException | None = None

    @classmethod
    async def of_worker(cls, bus: Bus, run: str, heard: Callable[[FromCoordinator], None]) -> Line:
        """`heard` is called with each message of the coordinator. Raises LoadError, BusError."""
        place = Place.of(run)
        line = cls(await bus.open_producer(place.workers))
        await line._listen(bus, place.control, _COORDINATOR, heard)
        return line

    @classmethod
    async def of_coordinator(cls, bus: Bus, run: str, heard: Callable[[FromWorker], None]) -> Line:
        """`heard` is called with each message of a worker. Raises LoadError, BusError."""
        place = Place.of(run)
        if await bus.last(place.control) is not None:
            raise LoadError(f"there was a run {run!r} on this broker already: take another id")
        line = cls(await bus.open_producer(place.control))
        await line._listen(bus, place.workers, _WORKERS, heard)
        return line

    async def _listen(self, bus: Bus, topic: str, adapter, heard) -> None:  # type: ignore[no-untyped-def]
        def sink(message: Message) -> None:
            try:
                parsed = adapter.validate_json(message.payload)
            except ValidationError:
                return  # of another version, or somebody else's
            heard(parsed)

        self._reader = await bus.open_reader(topic, EARLIEST, sink)

    def say(self, message: BaseModel) -> asyncio.Future[bytes]:
        """Messages keep their order."""
        return self._producer.send(message.model_dump_json().encode())

    async def close(self) -> None:
        if self._reader is not None:
            await self._reader.close()
        await self._producer.close()
