"""Train a model on labeled sequences and measure it.

MODEL is a model folder, a run folder, a Hub name or `default`; without it, --family or --preset
starts from fresh weights. Every option can stand in a recipe (--config). Validation chooses the
best checkpoint, and the test sequences are scored once, at the end. Exit status: 0 at the end of
the run, 2 for invalid input, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint was
saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.picture_option import add_picture, check_place, draw_place
from megabase.cli.settings_options import settings_of
from megabase.cli.training import MODEL, add_run, plan_console, show_lines, stopped
from megabase.errors import ConfigError
from megabase.tasks.config import FinetuneConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from megabase.tasks.finetune import FinetuneResult

SETTINGS = FinetuneConfig
"""What the arguments are made into."""
EXAMPLES = (
    "megabase finetune default --train train.csv --test test.csv --output runs/tuned",
    "megabase finetune --family cnn --train train.csv --test test.csv --output runs/cnn",
)
"""The shortest calls that do something useful, for the help."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model and every field of :class:`FinetuneConfig`."""
    parser.add_argument(
        "start", nargs="?", metavar="MODEL",
        help=f"{MODEL} (the same as --model); none: see --family and --preset",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=list[int], default=[], help="several runs, one for each seed, in "
        "OUTPUT/seed-N; mean and spread in OUTPUT/result.json",
    )  # fmt: skip
    add_picture(parser)
    add_run(parser, FinetuneConfig)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = settings_of(FinetuneConfig, args, model=args.start or args.model)
    if args.picture and (not config.predictions or args.seeds):
        raise ConfigError("--picture needs --predictions, and one run (no --seeds)")
    if args.picture:
        check_place(args.picture)
    console = plan_console()
    from megabase.tasks.finetune import finetune, finetune_seeds

    if args.seeds:
        results = finetune_seeds(config, args.seeds, dry_run=args.dry_run, console=console)
    else:
        single = finetune(config, dry_run=args.dry_run, console=console)
        results = [] if single is None else [single]
    if status := stopped(results):
        return status
    if results:
        _show(results)
    if results and args.picture:
        draw_place(Path(config.output), args.picture)
    return 0


def _show(results: list[FinetuneResult]) -> None:
    """Print the metrics of one run, or mean and standard deviation of several."""
    from rich.console import Console
    from rich.table import Table

    from megabase.tasks.run import spread

    first = results[0]
    splits = [split for split in ("valid", "test") if getattr(first, split)]
    runs = f", mean of {len(results)} runs" if len(results) > 1 else ""
    table = Table(title=f"{first.family}, {first.parameters:,} parameters{runs}")
    table.add_column("metric")
    for split in splits:
        table.add_column(f"{split} ({first.rows[split]:,})", justify="right")
    for name in getattr(first, splits[0]) if splits else ():
        cells: list[str] = []
        for split in splits:
            mean, sd = spread([getattr(result, split)[name] for result in results])
            cells.append(f"{mean:.4f}" if sd is None else f"{mean:.4f} (sd {sd:.4f})")
        table.add_row(name, *cells)
    if splits:
        Console().print(table)
    speed = sum(result.tokens_per_second for result in results) / len(results)
    seconds = sum(result.seconds for result in results)
    text = f"{speed:,.0f} training tokens/s, {seconds:,.0f} s in all; result.json beside each run"
    show_lines([text], results[:1])
