"""Train a model on labelled sequences and measure it.

MODEL is a model folder, a run folder, a Hub name or `default`; without it, --family or --preset
starts from fresh weights. Every option can stand in a recipe (--config). Validation chooses the
best checkpoint, and the test sequences are scored once, at the end. Exit status: 0 at the end of
the run, 2 for an input to mend, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint was
saved.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.cli.config_errors import add_recipe, explain_errors
from megabase.cli.picture_option import add_picture, check_place, draw_place
from megabase.errors import ConfigError
from megabase.tasks.config import FinetuneConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.tasks.finetune import FinetuneResult

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase finetune default --train train.csv --test test.csv --output runs/tuned",
    "megabase finetune --family cnn --train train.csv --test test.csv --output runs/cnn",
)

_SWITCHES = {
    "resume": "continue from the last checkpoint of the output folder, exactly",
    "overwrite": "delete an earlier run in the output folder and start anew",
    "force": "start although the estimated memory does not fit",
}
_SHOWN_SWITCHES = ("resume", "overwrite")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, the recipe, every field of :class:`FinetuneConfig` and the switches."""
    parser.add_argument(
        "start", nargs="?", metavar="MODEL", help="model folder, run folder, Hub name or "
        "`default` (the same as --model); none: see --family and --preset",
    )  # fmt: skip
    add_recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and stop before the first step"
    )
    parser.add_argument(
        "--seeds", type=list[int], default=[], help="several runs, one for each seed, in "
        "OUTPUT/seed-N; mean and spread in OUTPUT/result.json",
    )  # fmt: skip
    add_picture(parser)
    for name in _SHOWN_SWITCHES:
        parser.add_argument(f"--{name}", action="store_true", help=_SWITCHES[name])
    parser.add_class_arguments(FinetuneConfig, skip=set(_SWITCHES))
    explain_errors(parser, FinetuneConfig)


def config_of(args: Namespace) -> FinetuneConfig:
    """Build the configuration from parsed arguments.

    Raises
    ------
    ConfigError
        Naming every field that cannot be used.
    """
    from jsonargparse import ArgumentParser

    skipped: set[str | int] = set(_SWITCHES)
    names = {field.name for field in dataclasses.fields(FinetuneConfig)} - skipped
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FinetuneConfig, skip=skipped)
    values = args.clone()
    for name in list(vars(values)):
        if name not in names:
            values.pop(name)
    built: dict[str, Any] = vars(parser.instantiate(values))
    built["model"] = args.start or args.model
    built.update({name: bool(args[name]) for name in _SHOWN_SWITCHES})
    return FinetuneConfig(**built)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = config_of(args)
    if args.picture and (not config.predictions or args.seeds):
        raise ConfigError("--picture needs --predictions true, and one run (no --seeds)")
    if args.picture:
        check_place(args.picture)
    from megabase.training.process import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from megabase.tasks.finetune import finetune, finetune_seeds

    console = Console(stderr=not sys.stdout.isatty())
    if args.seeds:
        results = finetune_seeds(config, args.seeds, dry_run=args.dry_run, console=console)
    else:
        single = finetune(config, dry_run=args.dry_run, console=console)
        results = [] if single is None else [single]
    stopped = [result.signal for result in results if result.signal is not None]
    if stopped:
        return 128 + stopped[0]
    if results:
        _show(results, Console())
    if results and args.picture:
        draw_place(Path(config.output), args.picture)
    return 0


def _show(results: list[FinetuneResult], console: Console) -> None:
    """Print the figures of one run, or mean and standard deviation of several."""
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
        table.add_row(
            name, *(_cell(spread([getattr(r, split)[name] for r in results])) for split in splits)
        )
    if splits:
        console.print(table)
    speed = sum(result.tokens_per_second for result in results) / len(results)
    seconds = sum(result.seconds for result in results)
    text = f"{speed:,.0f} training tokens/s, {seconds:,.0f} s in all; result.json beside each run"
    for line in (text, *(f"note: {note}" for note in first.notes)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(figures: tuple[float, float | None]) -> str:
    mean, deviation = figures
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} (sd {deviation:.4f})"
