"""Work in a process of its own: what ran before it in this one changes neither its time nor its
memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from time import perf_counter, thread_time
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work` in a new process, which ends with it; gives what it returns, or raises that."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, *args, **kwargs).result()


class Answering:
    """A process that is asked and answers, by a pipe. To be used in a `with`."""

    def __init__(
        self, serve: Callable[[Connection], None], *, open_s: float, close_s: float, too_late: str
    ) -> None:
        """`serve` works in it: it says that it is ready by an answer, within `open_s` seconds, and
        ends with the pipe, within `close_s`, or is killed. `too_late`: what it means when an answer
        does not come in time. Raises TimeoutError, and EOFError if the process failed."""
        self._close_s = close_s
        self._too_late = too_late
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        try:
            self.answer(open_s)
        except BaseException:
            self.stop()
            raise

    def ask(self, question: Any) -> None:
        self._pipe.send(question)

    def answer(self, timeout_s: float) -> Any:
        """Raises TimeoutError, and EOFError if the process failed."""
        if not self._pipe.poll(timeout_s):
            raise TimeoutError(self._too_late)
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.close()
        self._process.join(self._close_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class Stages:
    """Time that one thread spends in the stages of its work, in seconds.

    `cpu` is the thread's own time on a processor: for work of one thread, the time that it takes on
    a core that it has for itself. `wall` includes what the rest of the machine took from it.
    """

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self._cpu = self._wall = 0.0

    def begin(self) -> None:
        self._wall, self._cpu = perf_counter(), thread_time()

    def end(self, stage: str) -> None:
        """What went by since the last `begin` or `end` belongs to this stage."""
        cpu, wall = thread_time(), perf_counter()
        self.cpu[stage] = self.cpu.get(stage, 0.0) + cpu - self._cpu
        self.wall[stage] = self.wall.get(stage, 0.0) + wall - self._wall
        self._wall, self._cpu = wall, cpu
