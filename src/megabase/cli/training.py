"""What the verbs that train have in common: options, console, exit status, table of results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megabase.cli.settings_options import add_settings
from megabase.settings import Settings

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console

MODEL = "model folder, run folder, Hub name or `default`"
"""Help of the argument MODEL."""


def add_run(parser: ArgumentParser, config: type[Settings], skip: Iterable[str | int] = ()) -> None:
    """Add the settings of a run, and ``--dry-run``."""
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and stop before the first step"
    )
    add_settings(parser, config, skip)


def plan_console() -> Console:
    """Prepare the process for training; give where plans and progress are shown."""
    from megabase.training.process import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    return Console(stderr=not sys.stdout.isatty())


def stopped(results: Sequence[Any]) -> int | None:
    """Give the exit status of runs that a signal ended; None when none did."""
    return next((128 + r.signal for r in results if r.signal is not None), None)


def show_results(
    title: str, unit: str, heads: Mapping[str, Sequence[str]], results: Sequence[Any]
) -> None:
    """Print the metrics, one column for each run; `heads` are rows above them, the first on top."""
    from rich.console import Console
    from rich.table import Table

    console, first = Console(), results[0]
    split = next((name for name in ("test", "valid") if getattr(first, name)), None)
    of = f", {split} ({first.rows[split]:,} {unit})" if split is not None else ""
    table = Table(title=f"{title}{of}")
    (name, columns), *rows = heads.items()
    table.add_column(name)
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in rows:
        table.add_row(name, *cells)
    for name in getattr(first, split) if split is not None else ():
        table.add_row(name, *(f"{getattr(r, str(split))[name]:.4f}" for r in results))
    console.print(table)


def show_lines(lines: Iterable[str], results: Sequence[Any]) -> None:
    """Print lines, and the notes of the runs, each once."""
    from rich.console import Console

    notes = dict.fromkeys(f"note: {note}" for result in results for note in result.notes)
    for line in (*lines, *notes):
        Console().print(line, markup=False, highlight=False, soft_wrap=True)
