"""What a command says beside its output: notes and progress."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megabase.options import Progress

_LINE_SECONDS = 30.0
"""Between two lines in a log: often enough to see that work goes on, too seldom to fill it."""

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
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(unit) as update:
            yield update
    else:
        yield _Lines(unit)


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Progress]:
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
