"""Progress of a run of load in the terminal: a table that is replaced, or a line now and then."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from goalstate.cli.output import Output
from goalstate.scale.load.collecting import Collected
from goalstate.scale.load.progress import Progress, progress
from goalstate.scale.load.workload import Workload

if TYPE_CHECKING:
    from rich.table import Table

#: Seconds between two lines, where nobody sees a table replaced.
EVERY_S = 5


class Live:
    """To be used in a `with`; is called each second."""

    def __init__(self, wanted: Workload, out: Output) -> None:
        self._wanted = wanted
        self._out = out
        self._screen = out.live() if out.interactive else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._screen is not None:
            self._screen.stop()

    def __call__(self, second: int, collected: Collected) -> None:
        if self._screen is None and (second + 1) % EVERY_S:
            return
        now = progress(self._wanted, second, collected)
        if self._screen is None:
            self._out.note("; ".join(f"{name} {value}" for name, value in facts(now)))
        else:
            self._screen.start()
            self._screen.update(table(now), refresh=True)


def facts(now: Progress) -> list[tuple[str, str]]:
    """Names and values, in their order."""
    if now.phase:
        mark = "" if now.measured else " (not measured)"
        phase = f"{now.phase}{mark}, {now.phase_gone_s:g} of {now.phase_of_s:g} s"
    else:
        phase = "over, what is under way is waited for"
    found = [
        ("time", f"{now.gone_s} of {now.of_s:g} s"),
        ("phase", phase),
        ("offered", f"{now.offered:,}"),
        ("accepted", f"{now.accepted:,}"),
    ]
    if now.other:
        found.append(("not accepted", f"{now.other:,}"))
    found.append(("waiting", f"{now.waiting:,}"))
    found += [
        (f"{one.stage} p50/p99 ms", f"{one.p50:,.1f}/{one.p99:,.1f}") for one in now.latencies
    ]
    if now.processors:
        used = (f"{role} {busy:.2f}" for role, busy in now.processors.items())
        found.append(("processors", " ".join(used)))
    return found


def table(now: Progress) -> Table:
    from rich.table import Table  # noqa: PLC0415 - rich is slow to import
    from rich.text import Text  # noqa: PLC0415

    found = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts(now):
        found.add_row(Text(name, style="dim"), Text(value))
    return found
