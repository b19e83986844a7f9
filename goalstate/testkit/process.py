"""Processes that a test starts, and waiting for what they are to do.

A process has one log for all of its runs, and keeps its command, so that it can be killed and
started again. It ends with the test process, however that ends (see `goalstate.bus.process`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from goalstate.bus.errors import BrokerFailed
from goalstate.bus.process import Child, tail
from goalstate.testkit.errors import ConditionNotMet, KitError, ProcessFailed, hide

__tracebackhide__ = hide

#: Seconds within which a condition must come, unless a test says otherwise: a bound, not a wait.
BOUND = 60.0
#: Lines of a log in a failure.
LINES = 10
_LOOK_S = 0.02

T = TypeVar("T")


def until(
    condition: Callable[[], T],
    what: str,
    *,
    within: float = BOUND,
    told: Callable[[], str] = lambda: "",
) -> T:
    """Wait until `condition()` is true (not empty, not zero), and give what it was.

    `what` names it. Raises ConditionNotMet after `within` seconds, with what `told()` then says.
    """
    end = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > end:
            raise ConditionNotMet(with_logs(f"not within {within:g} s: {what}", told()))
        time.sleep(_LOOK_S)
    return found


def with_logs(message: str, logs: str) -> str:
    return f"{message}\n{logs}" if logs else message


def environment(**more: str) -> dict[str, str]:
    """Ours, without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GOALSTATE")}
    return {**kept, **more}


def settings_environment(prefix: str, model: Any, settings: Mapping[str, object]) -> dict[str, str]:
    """Variables that set fields of a pydantic model, parts of a field as field__part.

    Raises KitError where there is no such field: in the environment nobody would miss it.
    """
    unknown = [name for name in settings if name.partition("__")[0] not in model.model_fields]
    if unknown:
        known = ", ".join(sorted(model.model_fields))
        raise KitError(f"{model.__name__} has no field {', '.join(unknown)}; it has {known}")
    return {f"{prefix}_{name.upper()}": str(value) for name, value in settings.items()}


def command(*arguments: object) -> list[str]:
    """The `goalstate` command, by the Python that runs the tests."""
    return [sys.executable, "-m", "goalstate.cli", *map(str, arguments)]


class Process:
    """A command that runs until it is stopped. It is started, and ready, once it is made."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        directory: Path,
        *,
        env: Mapping[str, str],
        ready: Callable[[], bool] | Path | None = None,
    ) -> None:
        """`ready`: what is true, or the file that is there, once it serves; None: at once.

        Raises ProcessFailed with the end of its log.
        """
        self.name = name
        self.arguments = list(arguments)
        self.log = directory / f"{name}.log"
        self._env = dict(env)
        self._ready = ready
        self._child: Child
        self.start()

    @property
    def pid(self) -> int:
        """The command's process id."""
        return self._child.pid

    @property
    def child(self) -> Child:
        """The run that was started last."""
        return self._child

    @property
    def alive(self) -> bool:
        return self._child.alive

    @property
    def facts(self) -> dict[str, Any]:
        """What it wrote into its ready file, where that is JSON; else nothing."""
        if not isinstance(self._ready, Path):
            return {}
        try:
            facts = json.loads(self._ready.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    def start(self) -> None:
        """Start the command (again), and wait until it is ready. Raises ProcessFailed."""
        ready = self._ready
        if isinstance(ready, Path):
            ready.unlink(missing_ok=True)
            ready = ready.exists
        program = self.arguments[0]
        if shutil.which(program, path=self._env.get("PATH")) is None:
            raise ProcessFailed(f"{self.name} cannot be started: there is no command {program}")
        try:
            self._child = Child(self.arguments, what=self.name, log=self.log, env=self._env)
            if ready is not None:
                self._child.await_ready(ready, lambda text: None)
        except BrokerFailed as error:
            raise ProcessFailed(str(error)) from None

    def stop(self) -> None:
        """End it in an orderly way. Twice is harmless."""
        self.resume()
        self._child.stop()

    def kill(self) -> None:
        """End it as `kill -9` does. Twice is harmless."""
        self._child.kill()

    def restart(self) -> None:
        """Kill it if it still runs, and start it again with the same command."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): it does nothing, and keeps its connections."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if not self.alive:
            raise KitError(f"{self.name} does not run\n{self.told()}")
        os.kill(self.pid, number)

    def told(self, lines: int = LINES) -> str:
        """Whether it runs, and the end of its log: for failures."""
        state = f"runs, pid {self.pid}" if self.alive else f"has ended, pid was {self.pid}"
        end = tail(self.log, lines) or "(empty)"
        indented = "\n".join(f"    {line}" for line in end.splitlines())
        return f"{self.name} ({state}); the end of {self.log}:\n{indented}"
