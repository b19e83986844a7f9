"""The publishers of a run: the real engine, each start of it in a loop that can be stopped dead.

Laws:

1.  A process sees no clock but the region's: what the engine asks of the module `time` is answered
    by virtual time, in `at_virtual_time`.
2.  What is kept in sets is asked for in the same order each time: waits are hashed by a number.
3.  A crash stops a process between two turns of its loop. What it had sent is for the wire to
    decide on; all else is gone. A process that ends by itself is started again after a while.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import structlog

from goalstate.bus.errors import BusError
from goalstate.dpm import convergence as convergence_module
from goalstate.dpm import engine as engine_module
from goalstate.dpm import intake as intake_module
from goalstate.dpm import inventory as inventory_module
from goalstate.dpm import leadership as leadership_module
from goalstate.dpm import recovery as recovery_module
from goalstate.dpm import standby as standby_module
from goalstate.dpm import waits as waits_module
from goalstate.dpm.channels import ChannelPolicy
from goalstate.dpm.checkpoints import CheckpointPolicy
from goalstate.dpm.convergence import Convergence, HostView, Wait
from goalstate.dpm.core import Accepted, Core
from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import LogHeld
from goalstate.dpm.intent_log import PART_BYTES, IntentLog
from goalstate.dpm.metrics import Metrics
from goalstate.dpm.recovery import Changes, remember
from goalstate.dpm.snapshot import SnapshotPolicy
from goalstate.gs.pb.goalstate.agent.v1 import agent_pb2
from goalstate.gs.topics import Topics
from goalstate.scale.simulate.checks import WatchedStream
from goalstate.scale.simulate.timeline import SECOND_NS, Due, Timeline, VirtualLoop
from goalstate.scale.simulate.wire import ProcessBus, Wire

_START_AGAIN_NS = SECOND_NS // 2
#: What engines count is not looked at, and making it anew would take longer than a short run.
_METRICS = Metrics()


class _NumberedWait(Wait):
    """Hashed by its number: the address is another in each process."""

    def __init__(self, numbers: Iterator[int], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._number = next(numbers)

    def __hash__(self) -> int:
        return self._number


@contextmanager
def at_virtual_time(
    timeline: Timeline,
    say: Callable[[str], None] | None,
    log_part_bytes: int | None,
    durable: Callable[[Accepted], None],
) -> Iterator[None]:
    """Let engines live on the timeline, and tell what they log to `say`, and each change that one
    finds to be in the intent log to `durable`."""

    def remembered(changes: Changes, accepted: Accepted) -> None:
        durable(accepted)
        remember(changes, accepted)

    clock = SimpleNamespace(
        monotonic=lambda: timeline.now_ns / SECOND_NS, time_ns=lambda: timeline.now_ns
    )
    log_type = partial(IntentLog, part_bytes=log_part_bytes or PART_BYTES)
    modules: list[tuple[Any, str, Any]] = [
        (engine_module, "time", clock),
        (leadership_module, "time", clock),
        (standby_module, "time", clock),
        (waits_module, "time", clock),
        (standby_module, "IntentLog", log_type),
        (inventory_module, "StreamState", WatchedStream),
        (intake_module, "remember", remembered),
        (recovery_module, "remember", remembered),
        (convergence_module, "Wait", partial(_NumberedWait, itertools.count())),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in modules]
    configured, config = structlog.is_configured(), structlog.get_config()
    for module, name, value in modules:
        setattr(module, name, value)
    structlog.configure(
        processors=[partial(_tell, say)],
        wrapper_class=structlog.make_filtering_bound_logger(20 if say else 50),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        if configured:
            structlog.configure(**config)
        else:
            structlog.reset_defaults()


def _tell(say: Callable[[str], None] | None, logger: Any, method: str, event: Any) -> Any:
    text = str(event.pop("event"))
    more = ", ".join(f"{name}={value}" for name, value in event.items())
    if say is not None:
        say(f"  log: {text}" + (f" ({more})" if more else ""))
    raise structlog.DropEvent


class Around(Protocol):
    """What a process lives in."""

    timeline: Timeline
    wire: Wire
    topics: Topics
    own_stream: bool
    group_interval_ms: int
    engine_type: Callable[..., Engine]

    def say(self, text: str) -> None: ...

    def started(self, process: Process) -> None:
        """A process runs, and may serve or stand by."""
        ...

    def ended(self, process: Process) -> None:
        """A process crashed, or ended by itself."""
        ...

    def believed(self, process: Process, host: str, view: HostView) -> None:
        """What a process makes of a host's report."""
        ...


class Process:
    """One publisher, start after start."""

    def __init__(self, around: Around, name: str, channels: ChannelPolicy) -> None:
        self.name = name
        self.skew_ns = 0
        self.starts = 0
        self.loop: VirtualLoop | None = None
        self.engine: Engine | None = None
        #: Of the start before: what a process that does not know that it is over goes on from.
        self.former: Core | None = None
        self._around = around
        self._channels = channels
        self._bus: ProcessBus | None = None
        self._paused: Due | None = None
        self._start: Due | None = None

    @property
    def serving(self) -> Engine | None:
        """The engine, if it runs and serves."""
        engine = self.engine
        return engine if engine is not None and not self._paused and engine.serving else None

    def start(self) -> None:
        self._start = None
        around = self._around
        self.starts += 1
        self.loop = VirtualLoop(around.timeline)
        self._bus = ProcessBus(around.wire, self.loop, self.name)
        self.engine = around.engine_type(
            self._bus,
            around.topics,
            writer=self.name,
            clock_id=self.name,
            metrics=_METRICS,
            security_groups_own_stream=around.own_stream,
            channels=self._channels,
            clock_ns=lambda: around.timeline.now_ns + self.skew_ns,
            steady_ns=lambda: around.timeline.now_ns,
            snapshots=SnapshotPolicy(),
            checkpoints=CheckpointPolicy(),
            group_interval_s=around.group_interval_ms / 1000,
        )
        self._watch(self.engine.convergence)
        around.say(f"{self.name} starts")
        self.loop.call_soon(lambda: self.loop and self.loop.create_task(self._live()))

    def _watch(self, convergence: Convergence) -> None:
        """Look at what it believes of a host after each report."""
        report = convergence.report

        def watched(told: agent_pb2.HostReport, *more: Any) -> set[Wait]:
            moved = report(told, *more)
            view = convergence.hosts.get(told.host)
            if view is not None:
                self._around.believed(self, told.host, view)
            return moved

        convergence.report = watched  # type: ignore[method-assign, assignment]

    async def _live(self) -> None:
        engine = self.engine
        assert engine is not None
        try:
            await engine.start()
        except (BusError, LogHeld) as error:
            self._around.say(f"{self.name} cannot start: {error}")
            self._around.timeline.after(0, lambda: self._end(engine))
            return
        self._around.started(self)
        await engine.failed.wait()
        raise AssertionError(f"the engine cannot go on: {engine.failure!r}")

    def _end(self, engine: Engine) -> None:
        if self.engine is engine:
            self.crash(_START_AGAIN_NS)

    def crash(self, again_ns: int) -> bool:
        """Stop dead; start again after a while. False if it does not run."""
        if self.loop is None or self._bus is None or self.engine is None:
            return False
        self.resume()
        self.former = self.engine.core
        self._bus.die()
        self.loop.kill()
        self.loop = self._bus = self.engine = None
        self._around.ended(self)
        self._start = self._around.timeline.after(again_ns, self.start)
        return True

    def pause(self, for_ns: int) -> bool:
        """Do nothing for a while, and know nothing of that. False if it does not run."""
        if self.loop is None or self._paused is not None:
            return False
        self._paused = self._around.timeline.after(for_ns, self.resume)
        return True

    def resume(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None

    def turn(self) -> None:
        """Run what is ready."""
        if self.loop is not None and self._paused is None:
            self.loop.run_ready()

    def heal(self) -> None:
        """Run, if it does not."""
        self.resume()
        if self._start is not None:
            self._start.cancel()
            self.start()
