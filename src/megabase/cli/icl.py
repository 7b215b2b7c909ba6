"""Few-shot in-context classification with a language model.

MODEL is a model folder, a run folder, a Hub name or `default`. Each query is a sequence behind
--shots demonstrations of each class with their labels, drawn from the training rows; the model's
next token is the answer. --tune prompt first learns a soft prompt (the model is frozen), --tune all
trains every weight on such queries (instruction tuning). With several --shots-list or
--samples-list numbers every combination is run and one table is written. Exit status: 0 at the end
of the run, 2 for invalid input, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint was
saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megabase.cli.settings_options import settings_of
from megabase.cli.training import MODEL, add_run, plan_console, show_lines, show_results, stopped
from megabase.tasks.config import InContextConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SETTINGS = InContextConfig
"""What the arguments are made into."""
EXAMPLES = ("megabase icl default --train train.csv --test test.csv --output runs/icl",)
"""The shortest calls that do something useful, for the help."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model and every field of :class:`InContextConfig`."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument(
        "--shots-list", type=int, nargs="+", default=[], help="several numbers of shots, in "
        "OUTPUT/shots-K; all metrics in OUTPUT/table.md and OUTPUT/result.json",
    )  # fmt: skip
    parser.add_argument(
        "--samples-list", type=int, nargs="+", default=[],
        help="several numbers of training queries, for --tune prompt or all",
    )  # fmt: skip
    add_run(parser, InContextConfig, skip={"model"})


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = settings_of(InContextConfig, args)
    console = plan_console()
    from megabase.tasks.in_context import in_context, in_context_grid

    if args.shots_list or args.samples_list:
        results = in_context_grid(
            config, args.shots_list, args.samples_list, dry_run=args.dry_run, console=console
        )
    else:
        single = in_context(config, dry_run=args.dry_run, console=console)
        results = [] if single is None else [single]
    if status := stopped(results):
        return status
    if results:
        heads = {
            "shots": [str(result.shots) for result in results],
            "training queries": [f"{result.samples:,}" for result in results],
            "tokens": [f"{result.tokens:,}" for result in results],
        }
        title = f"{results[0].model}, tuned: {results[0].tune}"
        show_results(title, "queries", heads, results)
        show_lines((), results)
    return 0
