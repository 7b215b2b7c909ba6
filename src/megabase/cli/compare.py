"""Put evaluations of several models on the same bases into one table.

Reads what `megabase evaluate` wrote. Causal models have a perplexity, masked ones a
pseudo-perplexity; the table says which number is which and what each model saw of a base's
neighbors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.errors import MegabaseError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLES = ("megabase compare runs/causal runs/masked -o table.md",)
"""Shown by ``--help``."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase compare``."""
    parser.add_argument(
        "evaluations", nargs="+", type=str, metavar="EVALUATION",
        help="run folders with an evaluation.json, or such files",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=str, default=None, metavar="FILE", help="write the table (Markdown)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from megabase.evaluate.results import EvaluationResult, compare
    from megabase.genome.files import write_whole

    output = None if args.output is None else Path(args.output)
    text = compare([EvaluationResult.load(_file(name)) for name in args.evaluations]).markdown()
    print(text, end="")
    if output is not None:
        write_whole(output, text, args.overwrite)
        print(f"wrote {output}")
    return 0


def _file(name: str) -> Path:
    """Give the evaluation of a run folder, or the file itself."""
    path = Path(name)
    if path.is_dir():
        path = path / "evaluation.json"
    if not path.is_file():
        raise MegabaseError(f"{path} is not there; make it with: megabase evaluate {name}")
    return path
