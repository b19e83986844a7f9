"""Many runs, seed after seed, by as many processes as are wanted.

What is given does not depend on how many there are: results come in the order of their seeds.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor

from goalstate.process import relax_garbage_collection
from goalstate.scale.simulate.plan import plan
from goalstate.scale.simulate.run import Result, Run

#: Runs that a process is given at a time.
_PIECE = 20


def play(seed: int) -> Result:
    """The run of a seed."""
    return Run(plan(seed)).play()


def play_many(first: int, runs: int, jobs: int) -> Generator[Result, None, None]:
    """The results of so many seeds from `first` on. Ends its processes when it is closed."""
    seeds = range(first, first + runs)
    if jobs == 1:
        yield from map(play, seeds)
        return
    pool = ProcessPoolExecutor(
        min(jobs, -(-runs // _PIECE)), multiprocessing.get_context("spawn"), _begin
    )
    try:
        yield from pool.map(play, seeds, chunksize=_PIECE)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked for the runs ends them
    relax_garbage_collection()
