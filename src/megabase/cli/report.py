"""Write a self-contained HTML page about a training run.

Learning curve, perplexity against context, floors, data, settings, in one file without any request
to another host. The numbers on held-out DNA come from `megabase evaluate RUN`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["add_arguments", "run"]


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase report``."""
    parser.add_argument("run", type=str, help="run folder of `megabase pretrain`")
    parser.add_argument(
        "-o", "--output", type=str, default=None, metavar="FILE",
        help="the page (default: report.html in the run folder)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", type=str, default=None, metavar="JSON",
        help="result of `megabase evaluate` (default: evaluation.json in the run folder, if there)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from megabase.report.training_report import write_training_report

    page = write_training_report(args.run, args.output, args.evaluation, overwrite=args.overwrite)
    print(f"wrote {page}")
    return 0
