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
from typing import TYPE_CHECKING, Any

from megabase.cli.config_errors import explain_errors
from megabase.tasks.finetune_config import FinetuneConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.tasks.finetune import FinetuneResult

__all__ = ["add_arguments", "run"]

_SWITCHES = {
    "resume": "continue from the last checkpoint of the output folder, exactly",
    "overwrite": "delete an earlier run in the output folder and start anew",
    "force": "start although the estimated memory does not fit",
}
_SHOWN_SWITCHES = ("resume", "overwrite")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, the recipe, every field of :class:`FinetuneConfig` and the switches."""
    parser.add_argument(
        "model", nargs="?", help="model folder, run folder, Hub name or `default`; none: see "
        "--family and --preset",
    )  # fmt: skip
    parser.add_argument("--config", action="config", help="recipe: a YAML file of the fields below")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and stop before the first step"
    )
    parser.add_argument(
        "--seeds", type=list[int], default=[], help="several runs, one for each seed, in "
        "OUTPUT/seed-N; mean and spread in OUTPUT/result.json",
    )  # fmt: skip
    for name in _SHOWN_SWITCHES:
        parser.add_argument(f"--{name}", action="store_true", help=_SWITCHES[name])
    parser.add_class_arguments(FinetuneConfig, skip={"model", *_SWITCHES})
    explain_errors(parser, FinetuneConfig)


def config_of(args: Namespace) -> FinetuneConfig:
    """Build the configuration from parsed arguments.

    Raises
    ------
    ConfigError
        Naming every field that cannot be used.
    """
    from jsonargparse import ArgumentParser

    skipped = {"model", *_SWITCHES}
    names = {field.name for field in dataclasses.fields(FinetuneConfig)} - skipped
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FinetuneConfig, skip=skipped)
    values = args.clone()
    for name in list(vars(values)):
        if name not in names:
            values.pop(name)
    built: dict[str, Any] = vars(parser.instantiate(values))
    switches = {name: bool(args[name]) for name in _SHOWN_SWITCHES}
    return FinetuneConfig(**built, model=args.model, **switches)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = config_of(args)
    from megabase.training.allocator import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from megabase.tasks.finetune import finetune
    from megabase.tasks.seeds import finetune_seeds

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
    return 0


def _show(results: list[FinetuneResult], console: Console) -> None:
    """Print one row for each run, and mean and standard deviation of several."""
    from rich.table import Table

    from megabase.tasks.seeds import spread

    first = results[0]
    table = Table(title=f"{first.family}, {first.parameters:,} parameters")
    table.add_column("run")
    columns = [("valid", name) for name in first.valid] + [("test", name) for name in first.test]
    for split, name in columns:
        table.add_column(f"{split} {name}", justify="right")
    table.add_column("tokens/s", justify="right")
    table.add_column("seconds", justify="right")
    for result in results:
        figures = [f"{getattr(result, split)[name]:.4f}" for split, name in columns]
        table.add_row(
            result.run, *figures, f"{result.tokens_per_second:,.0f}", f"{result.seconds:,.0f}"
        )
    if len(results) > 1:
        both = [spread([getattr(r, split)[name] for r in results]) for split, name in columns]
        table.add_row("mean (sd)", *(f"{mean:.4f} ({sd:.4f})" for mean, sd in both), "", "")
    console.print(table)
    for note in first.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
