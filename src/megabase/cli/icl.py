"""Ask a language model questions behind solved examples (in-context learning), and measure it.

MODEL is a model folder, a run folder, a Hub name or `default`. Each question is a sequence behind
--shots examples of each class with their labels, drawn from the training rows; the model's next
token is the answer. --tune prompt first learns a soft prompt (the model is frozen), --tune all
trains every weight on such questions (instruction tuning). With several --shots-list or
--samples-list numbers every combination is run and one table is written. Exit status: 0 at the end
of the run, 2 for an input to mend, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint
was saved.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from megabase.cli.config_errors import add_recipe, explain_errors
from megabase.tasks.config import InContextConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.tasks.in_context import InContextResult

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = ("megabase icl default --train train.csv --test test.csv --output runs/icl",)

_SWITCHES = {
    "resume": "continue from the last checkpoint of the output folder; finished runs are kept",
    "overwrite": "delete an earlier run in the output folder and start anew",
}
_LISTS = {
    "shots_list": "several numbers of shots, in OUTPUT/shots-K; all figures in OUTPUT/table.md and "
    "OUTPUT/result.json",
    "samples_list": "several numbers of training questions, for --tune prompt or all",
}
_SKIPPED: set[str | int] = {"model", "force", *_SWITCHES}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, the recipe, every field of :class:`InContextConfig` and the switches."""
    parser.add_argument("model", help="model folder, run folder, Hub name or `default`")
    add_recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and stop before the first step"
    )
    for name, text in _LISTS.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[], help=text)
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(InContextConfig, skip=_SKIPPED)
    explain_errors(parser, InContextConfig)


def config_of(args: Namespace) -> InContextConfig:
    """Build the configuration from parsed arguments.

    Raises
    ------
    ConfigError
        Naming every field that cannot be used.
    """
    from jsonargparse import ArgumentParser

    names = {field.name for field in dataclasses.fields(InContextConfig)} - _SKIPPED
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(InContextConfig, skip=_SKIPPED)
    values = args.clone()
    for name in list(vars(values)):
        if name not in names:
            values.pop(name)
    built: dict[str, Any] = vars(parser.instantiate(values))
    built["model"] = args.model
    built.update({name: bool(args[name]) for name in _SWITCHES})
    return InContextConfig(**built)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = config_of(args)
    from megabase.training.process import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from megabase.tasks.in_context import in_context, in_context_grid

    console = Console(stderr=not sys.stdout.isatty())
    if args.shots_list or args.samples_list:
        results = in_context_grid(
            config, args.shots_list, args.samples_list, dry_run=args.dry_run, console=console
        )
    else:
        single = in_context(config, dry_run=args.dry_run, console=console)
        results = [] if single is None else [single]
    stopped = [result.signal for result in results if result.signal is not None]
    if stopped:
        return 128 + stopped[0]
    if results:
        _show(results, Console())
    return 0


def _show(results: list[InContextResult], console: Console) -> None:
    """Print the figures, one column for each run."""
    from rich.table import Table

    first = results[0]
    split = next((name for name in ("test", "valid") if getattr(first, name)), None)
    of = f", {split} ({first.rows[split]:,} questions)" if split is not None else ""
    table = Table(title=f"{first.model}, tuned: {first.tune}{of}")
    table.add_column("shots")
    for result in results:
        table.add_column(str(result.shots), justify="right")
    table.add_row("training questions", *(f"{result.samples:,}" for result in results))
    table.add_row("tokens", *(f"{result.tokens:,}" for result in results))
    for name in getattr(first, split) if split is not None else ():
        table.add_row(name, *(f"{getattr(r, str(split))[name]:.4f}" for r in results))
    console.print(table)
    for note in dict.fromkeys(note for result in results for note in result.notes):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
