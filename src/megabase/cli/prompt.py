"""Learn a soft prompt on labelled sequences, for a model that stays as it is, and measure it.

MODEL is a model folder, a run folder, a Hub name or `default`. Only the vectors of the prompt (and
a head, with --prompt.answer head) are trained; OUTPUT/prompt holds them, a few kilobytes, with the
name and the hash of the model. With --lengths one prompt of each length is learnt and one table is
written. Every option can stand in a recipe (--config). Exit status: 0 at the end of the run, 2 for
an input to mend, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint was saved.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.cli.config_errors import add_recipe, explain_errors
from megabase.cli.picture_option import add_picture, check_place, draw_place
from megabase.errors import ConfigError
from megabase.tasks.config import PromptConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.tasks.prompt import PromptResult

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase prompt default --train train.csv --test test.csv --prompt.length 32 --output runs/p",
)

_SWITCHES = {
    "resume": "continue from the last checkpoint of the output folder, exactly; finished lengths "
    "are kept",
    "overwrite": "delete an earlier run in the output folder and start anew",
}
_SKIPPED: set[str | int] = {"model", "force", *_SWITCHES}


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model, the recipe, every field of :class:`PromptConfig` and the switches."""
    parser.add_argument("model", help="model folder, run folder, Hub name or `default`")
    add_recipe(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="show the plan and stop before the first step"
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[], help="several prompts, one of each number of "
        "vectors, in OUTPUT/length-N; all figures in OUTPUT/table.md and OUTPUT/result.json",
    )  # fmt: skip
    add_picture(parser, "picture.png in the folder of each run")
    for name, text in _SWITCHES.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(PromptConfig, skip=_SKIPPED)
    explain_errors(parser, PromptConfig)


def config_of(args: Namespace) -> PromptConfig:
    """Build the configuration from parsed arguments.

    Raises
    ------
    ConfigError
        Naming every field that cannot be used.
    """
    from jsonargparse import ArgumentParser

    names = {field.name for field in dataclasses.fields(PromptConfig)} - _SKIPPED
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PromptConfig, skip=_SKIPPED)
    values = args.clone()
    for name in list(vars(values)):
        if name not in names:
            values.pop(name)
    built: dict[str, Any] = vars(parser.instantiate(values))
    built["model"] = args.model
    built.update({name: bool(args[name]) for name in _SWITCHES})
    return PromptConfig(**built)


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = config_of(args)
    if args.picture and not config.predictions:
        raise ConfigError("--picture needs --predictions true")
    if args.picture:
        check_place(args.picture)
    from megabase.training.process import keep_freed_memory

    keep_freed_memory()
    from rich.console import Console

    from megabase.tasks.prompt import learn_prompt, prompt_lengths

    console = Console(stderr=not sys.stdout.isatty())
    picture = bool(args.lengths) and _can_draw(console)
    if args.lengths:
        results = prompt_lengths(config, args.lengths, dry_run=args.dry_run, console=console)
    else:
        single = learn_prompt(config, dry_run=args.dry_run, console=console)
        results = [] if single is None else [single]
    stopped = [result.signal for result in results if result.signal is not None]
    if stopped:
        return 128 + stopped[0]
    if results:
        _show(results, Console())
    if args.picture:
        for result in results:
            draw_place(Path(result.run), args.picture)
    if picture and results:
        _draw(results, Path(config.output) / "lengths.svg", console)
    return 0


def _can_draw(console: Console) -> bool:
    """Tell whether the picture beside the table can be drawn; say before the training if not."""
    from megabase.errors import MissingDependencyError
    from megabase.report.style import require_matplotlib

    try:
        require_matplotlib()
    except MissingDependencyError as error:
        console.print(f"no picture: {error}", markup=False, soft_wrap=True)
        return False
    return True


def _draw(results: list[PromptResult], path: Path, console: Console) -> None:
    """Draw the chosen figure against the length."""
    from megabase.report.plots import save_prompt_lengths

    figures = [result.test or result.valid for result in results]
    chosen = next((r.monitor for r in results if r.monitor not in ("none", "loss")), None)
    metric = chosen or next((name for name in figures[0] if name != "loss"), "loss")
    points = [
        (result.length, found[metric])
        for result, found in zip(results, figures, strict=True)
        if metric in found
    ]
    if len(points) < 2:
        return
    save_prompt_lengths(path, {f"answer by {results[0].answer}": points}, metric)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _show(results: list[PromptResult], console: Console) -> None:
    """Print the figures, one column for each prompt."""
    from rich.table import Table

    first = results[0]
    split = next((name for name in ("test", "valid") if getattr(first, name)), None)
    figures = list(getattr(first, split)) if split is not None else []
    of = f", {split} ({first.rows[split]:,} sequences)" if split is not None else ""
    table = Table(title=f"prompts for {first.model}, answer by {first.answer}{of}")
    table.add_column("vectors")
    for result in results:
        table.add_column(str(result.length), justify="right")
    table.add_row("parameters trained", *(f"{result.trained_parameters:,}" for result in results))
    table.add_row("bytes saved", *(f"{result.prompt_bytes:,}" for result in results))
    for name in figures:
        table.add_row(name, *(f"{getattr(result, str(split))[name]:.4f}" for result in results))
    console.print(table)
    seconds = sum(result.seconds for result in results)
    folders = f"{first.run}/prompt" if len(results) == 1 else "the folder prompt of each run"
    text = f"{seconds:,.0f} s in all; the model is as it was; {folders} holds what was learnt"
    for line in (text, *(f"note: {note}" for note in first.notes)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
