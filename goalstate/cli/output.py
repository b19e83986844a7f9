"""What a command prints, and where.

Laws: results go to stdout; progress and messages go to stderr. With `--json` every result is one
JSON document on one line of stdout, and nothing else is there. Text of users (ids, names, reasons)
is never read as markup. Where stdout is no terminal, nothing is cut to a width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_UNBOUNDED = 4096
#: Of a list of what is wrong, people are shown so many; JSON has all.
SHOWN = 20


def _console(*, stderr: bool) -> Console:
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNBOUNDED
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


class Output:
    """The two streams of one command; `as_json` chooses what results look like."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    @property
    def interactive(self) -> bool:
        """Does somebody see progress?"""
        return sys.stderr.isatty()

    def result(self, value: dict[str, Any]) -> None:
        """Print one result as JSON; only where `as_json` is set."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def text(self, line: str = "", style: str = "") -> None:
        """Print a line of the readable result; nothing where `as_json` is set."""
        if not self.as_json:
            _console(stderr=False).print(line, style=style or None, soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows in aligned columns; a column named `…#` is of numbers, right-aligned."""
        if self.as_json:
            return
        from rich.table import Table  # noqa: PLC0415 - rich is slow to import

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            right = column.endswith("#")
            table.add_column(
                column.removesuffix("#"), justify="right" if right else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        console = _console(stderr=False)
        with console.capture() as captured:
            console.print(table)
        # Without the blanks that fill the last column up.
        lines = captured.get().splitlines()
        sys.stdout.write("".join(line.rstrip() + "\n" for line in lines))

    def note(self, line: str, style: str = "") -> None:
        """A message to whoever sits there: stderr."""
        _console(stderr=True).print(line, style=style or None, soft_wrap=True)

    def live(self) -> Live:
        """Something on stderr that is replaced, while notes go by above it."""
        from rich.live import Live  # noqa: PLC0415 - rich is slow to import

        return Live(console=_console(stderr=True), auto_refresh=False, transient=True)

    @contextmanager
    def progress(self, title: str, total: float | None = None) -> Iterator[Progress]:
        """A progress bar on stderr while the block runs; nothing where stderr is no terminal."""
        if not self.interactive:
            yield Progress(None, None)
            return
        from rich.progress import (  # noqa: PLC0415 - rich is slow to import
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bar  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Bar(*columns, console=_console(stderr=True), transient=True) as bar:
            yield Progress(bar, bar.add_task(title, total=total))


class Progress:
    """A running bar; without one, every call is a no-op."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def advance(self, by: float = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, by)

    def update(
        self,
        *,
        completed: float | None = None,
        total: float | None = None,
        title: str | None = None,
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, total=total, description=title)
