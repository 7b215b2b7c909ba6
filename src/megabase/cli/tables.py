"""Tables and lines on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH = 200
"""Letters of a line away from a terminal: rich would wrap at 80 and cut names."""


def output() -> Console:
    """Give standard output as rich writes to it: text as it is, tables as wide as they need."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=True)


def print_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    strong: bool = False,
) -> None:
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


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, without those that are empty."""
    known = [(name, str(value)) for name, value in facts if value not in (None, "", ())]
    print_table(("", ""), known)
