"""Work in a process of its own: what ran before it in this one changes neither its time nor its
memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter, thread_time
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work` in a new process, which ends with it; gives what it returns, or raises that."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, *args, **kwargs).result()


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
