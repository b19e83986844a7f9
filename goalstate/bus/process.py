"""A command as a child process: started, watched, stopped, killed. Blocks; POSIX only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from goalstate.bus import tether
from goalstate.bus.errors import BrokerFailed

Progress = Callable[[str], None]

#: Seconds between two looks at a process or its health.
_POLL = 0.1
_TAIL_LINES = 15
#: Seconds that a command may take to get ready.
_READY_BOUND = 180.0


def free_ports(count: int) -> list[int]:
    """TCP ports on 127.0.0.1 that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def tail(path: Path, lines: int = _TAIL_LINES) -> str:
    """The last lines of a log file, "" if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


class Child:
    """A running command, its output in `log`. `what` it is called in errors: "the broker".

    Ends with this process, however that ends (see `tether`), unless it is to be kept: then it
    goes on until somebody stops it by its `pid`. `doomed` is a directory that is removed when the
    command is stopped or this process is gone, but not when the command ends by itself.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        what: str,
        log: Path,
        env: Mapping[str, str],
        keep: bool = False,
        doomed: Path | None = None,
    ) -> None:
        self.log = log
        self._what = what
        self._keep = keep
        pid_file = log.with_suffix(".pid")
        pid_file.unlink(missing_ok=True)
        holder = [sys.executable, tether.__file__, str(pid_file), str(doomed or "")]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command if keep else [*holder, *command],
                stdin=subprocess.DEVNULL if keep else subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
        #: The command's own process id.
        self.pid = self._process.pid
        if not keep:
            self.pid = self._read_pid(pid_file)

    def _read_pid(self, pid_file: Path) -> int:
        end = time.monotonic() + 30
        while not pid_file.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise BrokerFailed(f"{self._what} could not be started:\n{tail(self.log)}")
            time.sleep(0.01)
        return int(pid_file.read_text(encoding="ascii"))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def await_ready(self, ready: Callable[[], bool], progress: Progress) -> None:
        """Wait up to 180 s for `ready()`. Raises BrokerFailed with the end of the log."""
        try:
            self._await_ready(ready, progress)
        except BaseException:
            self.stop()
            raise

    def _await_ready(self, ready: Callable[[], bool], progress: Progress) -> None:
        begin = time.monotonic()
        told = 0
        while not ready():
            waited = time.monotonic() - begin
            if not self.alive or waited > _READY_BOUND:
                why = "ended at its start" if not self.alive else "did not get ready in time"
                raise BrokerFailed(f"{self._what} {why}; the end of {self.log}:\n{tail(self.log)}")
            if int(waited) > told:
                told = int(waited)
                progress(f"waiting for {self._what} ({told} s)")
            time.sleep(_POLL)

    def stop(self) -> None:
        """End it in an orderly way, by force if that takes too long. Twice is harmless."""
        if self._keep:
            self._signal(signal.SIGTERM)
        elif self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(tether.GRACE + 5)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def terminate(self) -> None:
        """End the command in an orderly way, as if it had ended by itself: what is doomed stays."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(tether.GRACE)
        self.kill()

    def kill(self) -> None:
        """End the command as a power cut would."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def _signal(self, signum: int) -> None:
        """To the whole session that was started: the command and what holds it."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signum)
