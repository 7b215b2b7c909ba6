"""Learn a soft prompt on labeled sequences for a frozen model, and measure it.

MODEL is a model folder, a run folder, a Hub name or `default`. Only the soft-prompt tokens (and
a head, with --prompt.answer head) are trained; OUTPUT/prompt holds them, a few kilobytes, with the
name and the hash of the model. With --lengths one prompt of each length is learned and one table is
written. Every option can stand in a recipe (--config). Exit status: 0 at the end of the run, 2 for
invalid input, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint was saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.picture_option import add_picture, check_place, draw_place
from megabase.cli.settings_options import settings_of
from megabase.cli.training import MODEL, add_run, plan_console, show_lines, show_results, stopped
from megabase.errors import ConfigError
from megabase.tasks.config import PromptConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console

    from megabase.tasks.prompt import PromptResult

SETTINGS = PromptConfig
"""What the arguments are made into."""
EXAMPLES = (
    "megabase prompt default --train train.csv --test test.csv --prompt.length 32 --output runs/p",
)
"""The shortest calls that do something useful, for the help."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the model and every field of :class:`PromptConfig`."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[], help="several prompts, one of each number of "
        "tokens, in OUTPUT/length-N; all metrics in OUTPUT/table.md and OUTPUT/result.json",
    )  # fmt: skip
    add_picture(parser, "picture.png in the folder of each run")
    add_run(parser, PromptConfig, skip={"model"})


def run(args: Namespace) -> int:
    """Run the verb; give the exit status."""
    config = settings_of(PromptConfig, args)
    if args.picture and not config.predictions:
        raise ConfigError("--picture needs --predictions")
    if args.picture:
        check_place(args.picture)
    console = plan_console()
    from megabase.tasks.prompt import learn_prompt, prompt_lengths

    plot = bool(args.lengths) and _can_draw(console)
    if args.lengths:
        results = prompt_lengths(config, args.lengths, dry_run=args.dry_run, console=console)
    else:
        single = learn_prompt(config, dry_run=args.dry_run, console=console)
        results = [] if single is None else [single]
    if status := stopped(results):
        return status
    if results:
        _show(results)
    if args.picture:
        for result in results:
            draw_place(Path(result.run), args.picture)
    if plot and results:
        _draw(results, Path(config.output) / "lengths.svg", console)
    return 0


def _can_draw(console: Console) -> bool:
    """Tell whether the plot next to the table can be drawn; warn before the training if not."""
    from megabase.errors import MissingDependencyError
    from megabase.report.style import require_matplotlib

    try:
        require_matplotlib()
    except MissingDependencyError as error:
        console.print(f"no picture: {error}", markup=False, soft_wrap=True)
        return False
    return True


def _draw(results: list[PromptResult], path: Path, console: Console) -> None:
    """Draw the chosen metric against the length."""
    from megabase.report.plots import save_prompt_lengths

    found = [result.test or result.valid for result in results]
    chosen = next((r.monitor for r in results if r.monitor not in ("none", "loss")), None)
    metric = chosen or next((name for name in found[0] if name != "loss"), "loss")
    points = [
        (result.length, values[metric])
        for result, values in zip(results, found, strict=True)
        if metric in values
    ]
    if len(points) < 2:
        return
    save_prompt_lengths(path, {f"answer by {results[0].answer}": points}, metric)
    console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _show(results: list[PromptResult]) -> None:
    """Print the metrics, one column for each prompt."""
    first = results[0]
    heads = {
        "soft-prompt tokens": [str(result.length) for result in results],
        "parameters trained": [f"{result.trained_parameters:,}" for result in results],
        "bytes saved": [f"{result.prompt_bytes:,}" for result in results],
    }
    title = f"prompts for {first.model}, answer by {first.answer}"
    show_results(title, "sequences", heads, results)
    seconds = sum(result.seconds for result in results)
    folders = f"{first.run}/prompt" if len(results) == 1 else "the folder prompt of each run"
    text = f"{seconds:,.0f} s in all; the model is unchanged; {folders} holds what was learned"
    show_lines([text], results)
