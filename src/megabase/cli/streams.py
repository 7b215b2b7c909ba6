"""What a command says: tables on standard output, notes and progress beside it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from megabase.options import Progress

_LINE_SECONDS = 30.0
"""Between two lines in a log: often enough to see that work goes on, too seldom to fill it."""
_WIDTH = 200  # letters of a line away from a terminal: rich would wrap at 80 and cut names

quiet = False
"""Whether ``--quiet`` was given: no progress and no notes. Set by the command line, once a call."""


def say(text: str) -> None:
    """Print a line on standard error, if that can be written to."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def note(text: object) -> None:
    """Print what a command did ("wrote FILE") on standard error, unless ``--quiet`` was given."""
    if not quiet:
        say(str(text))


@contextlib.contextmanager
def show_progress(unit: str) -> Iterator[Progress | None]:
    """Show progress on standard error while the block runs, counted in `unit` (in the plural).

    Yields a callable to be called now and then, from any thread; None with ``--quiet``.
    """
    if quiet or not sys.stderr.isatty():
        yield None if quiet else _Lines(unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, count="")

        def update(what: str, done: int, total: int | None) -> None:
            count = f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"
            bar.update(task, description=what, completed=done, total=total, count=count)

        yield update


class _Lines:
    """Writes a line every 30 seconds: what, how many, how fast, how long it will still take."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._what: str | None = None
        self._lock = threading.Lock()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Take note of the progress, and write a line if the last one is long ago."""
        now = time.monotonic()
        with self._lock:
            if what != self._what:  # another stage of the work has a rate of its own
                self._what, self._first, self._start, self._last = what, done, now, now
            if now - self._last < _LINE_SECONDS:
                return
            self._last = now
            rate = (done - self._first) / (now - self._start)
        from megabase.report.style import duration

        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        left = f", {duration((total - done) / rate)} left" if total and rate > 0 else ""
        say(f"megabase: {what}: {count} {self._unit}, {rate:,.3g} a second{left}")


def output() -> Console:
    """Give standard output as rich writes to it: text as it is, tables as wide as they need."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=True)


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None,
    strong: bool = False,
) -> None:  # fmt: skip
    """Print a table; columns whose name begins with ``>`` are numbers, set to the right.

    One with a `title` is framed. `strong`: the last row in bold. The last column may be folded.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title) if title else Table(box=None, pad_edge=False)
    table.show_header = any(head)
    for number, name in enumerate(head, start=1):
        table.add_column(
            Text(name.removeprefix(">")), justify="right" if name.startswith(">") else "left",
            no_wrap=number < len(head), overflow="fold",
        )  # fmt: skip
    cells = [[Text(cell) for cell in row] for row in rows]
    for number, row in enumerate(cells, start=1):
        table.add_row(*row, style="bold" if strong and number == len(cells) else None)
    output().print(table, soft_wrap=False)
