"""Verbs that train: one skeleton, from settings to a plan, runs and a table of metrics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megabase.cli.parser import Verb
from megabase.cli.settings_options import add_settings, settings_of
from megabase.cli.streams import note
from megabase.cli.tables import print_table
from megabase.errors import ConfigError, MissingDependencyError
from megabase.settings import Settings
from megabase.tasks.config import FinetuneConfig, InContextConfig, PretrainConfig, PromptConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from megabase.tasks.run import RunResult

_MODEL = "model folder, run folder, Hub name or `default`"
"""Help of the model that all verbs here take."""
_Config = TypeVar("_Config", bound=Settings)


def _add_run(parser: ArgumentParser, config: type[Settings], skip: Iterable[str] = ()) -> None:
    """Add the settings of a run, and ``--dry-run``."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="show the plan and stop before the first step")
    add_settings(parser, config, skip)


def _add_picture(parser: ArgumentParser, where: str) -> None:
    """Add ``--picture``; `where` says in the help where the picture goes."""
    parser.add_argument(
        "--picture", metavar="REGION", help="draw the predictions of this region (a contig or "
        f"chr1:1,001-2,000) over the truth to {where}; needs --predictions")  # fmt: skip


def _settings(config: type[_Config], args: Namespace, **changes: Any) -> _Config:
    """Give the settings of a run, checked, and prepare the process for training."""
    from megabase.training.process import keep_freed_memory

    settings = settings_of(config, args, **changes)
    if args.get("picture"):  # fails here where the picture would fail after the training
        from megabase.genome.interval import Interval
        from megabase.report.style import require_matplotlib

        if not args.predictions or args.get("seeds"):
            one = ", and one run (no --seeds)" if "seeds" in args else ""
            raise ConfigError(f"--picture needs --predictions{one}")
        require_matplotlib()
        if ":" in args.picture:
            Interval.parse(args.picture)
    keep_freed_memory()
    return settings


def _runs(
    args: Namespace, config: Settings, run: Any, several: Any = None, *lists: Sequence[int]
) -> list[Any]:
    """Run once, or `several` times for the numbers of `lists`; give the results, none if dry."""
    from rich.console import Console

    quiet = args.quiet and not args.dry_run  # the plan of a dry run is its output
    console = Console(stderr=not sys.stdout.isatty(), quiet=quiet)
    if any(lists):
        return several(config, *lists, dry_run=args.dry_run, console=console)
    result = run(config, dry_run=args.dry_run, console=console)
    return [] if result is None else [result]


def _finish(
    results: list[Any],
    show: Callable[[list[Any]], None] = lambda results: None,
    picture: str | None = None,
) -> int:
    """Show the results and draw their pictures; give the exit status."""
    for result in results:
        if result.signal is not None:
            return 128 + result.signal
    if results:
        show(results)
    for result in results if picture is not None else ():
        from megabase.report.nucleotide_plot import save_nucleotide_plot

        run = Path(result.run)
        target = run / "picture.png"
        save_nucleotide_plot(run / "predictions.parquet", str(picture), target, overwrite=True)
        note(f"wrote {target}")
    return 0


def _show_table(
    title: str, unit: str, heads: Mapping[str, Sequence[str]], results: Sequence[Any]
) -> None:
    """Print the metrics, one column for each run; `heads` are rows above them, the first on top."""
    first = results[0]
    split = next((name for name in ("test", "valid") if getattr(first, name)), None)
    of = f", {split} ({first.rows[split]:,} {unit})" if split is not None else ""
    (name, columns), *rows = heads.items()
    cells = [(name, *texts) for name, texts in rows]
    for metric in getattr(first, split) if split is not None else ():
        cells.append((metric, *(f"{getattr(r, str(split))[metric]:.4f}" for r in results)))
    print_table((name, *(f">{column}" for column in columns)), cells, title=f"{title}{of}")


def _show_lines(lines: Iterable[str], results: Sequence[Any]) -> None:
    """Print lines, and the notes of the runs, each once."""
    notes = dict.fromkeys(f"note: {text}" for result in results for text in result.notes)
    for line in (*lines, *notes):
        print(line)


def _pretrain(args: Namespace) -> int:
    """Pretrain a language model on a genome.

    A run is described by a recipe (--config) and flags that win over it; every field of the recipe
    is a flag of the same name. The resolved recipe is saved in the output folder and re-creates the
    run. Exit status: 0 at the end of the run, 2 for invalid input, 143 or 130 when SIGTERM or
    SIGINT stopped it after a checkpoint was saved.
    """
    config = _settings(PretrainConfig, args)
    from megabase.tasks.pretrain import pretrain

    return _finish(_runs(args, config, pretrain))


def _add_finetune(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("start", nargs="?", metavar="MODEL",
        help=f"{_MODEL} (the same as --model); none: see --family and --preset")  # fmt: skip
    add("--seeds", type=list[int], default=[], help="several runs, one for each seed, in "
        "OUTPUT/seed-N; mean and spread in OUTPUT/result.json")  # fmt: skip
    _add_picture(parser, "OUTPUT/picture.png")
    _add_run(parser, FinetuneConfig)


def _finetune(args: Namespace) -> int:
    """Train a model on labeled sequences and measure it.

    MODEL is a model folder, a run folder, a Hub name or `default`; without it, --family or --preset
    starts from fresh weights. Every option can stand in a recipe (--config). Validation chooses the
    best checkpoint, and the test sequences are scored once, at the end. Exit status: 0 at the end
    of the run, 2 for invalid input, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint
    was saved.
    """
    config = _settings(FinetuneConfig, args, model=args.start or args.model)
    from megabase.tasks.finetune import finetune, finetune_seeds

    results = _runs(args, config, finetune, finetune_seeds, args.seeds)
    return _finish(results, _show_finetuned, args.picture)


def _show_finetuned(results: list[RunResult]) -> None:
    """Print the metrics of one run, or mean and standard deviation of several."""
    from megabase.tasks.run import spread

    first = results[0]
    splits = [split for split in ("valid", "test") if getattr(first, split)]
    runs = f", mean of {len(results)} runs" if len(results) > 1 else ""
    rows: list[list[str]] = []
    for name in getattr(first, splits[0]) if splits else ():
        rows.append([name])
        for split in splits:
            mean, sd = spread([getattr(result, split)[name] for result in results])
            rows[-1].append(f"{mean:.4f}" if sd is None else f"{mean:.4f} (sd {sd:.4f})")
    if splits:
        head = ("metric", *(f">{split} ({first.rows[split]:,})" for split in splits))
        title = f"{first.family}, {first.parameters:,} parameters{runs}"
        print_table(head, rows, title=title)
    speed = sum(result.tokens_per_second for result in results) / len(results)
    seconds = sum(result.seconds for result in results)
    text = f"{speed:,.0f} training tokens/s, {seconds:,.0f} s in all; result.json beside each run"
    _show_lines([text], results[:1])


def _add_prompt(parser: ArgumentParser) -> None:
    parser.add_argument("model", help=_MODEL)
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[], help="several prompts, one of each number of "
        "tokens, in OUTPUT/length-N; all metrics in OUTPUT/table.md and OUTPUT/result.json",
    )  # fmt: skip
    _add_picture(parser, "picture.png in the folder of each run")
    _add_run(parser, PromptConfig, skip={"model"})


def _prompt(args: Namespace) -> int:
    """Learn a soft prompt on labeled sequences for a frozen model, and measure it.

    MODEL is a model folder, a run folder, a Hub name or `default`. Only the soft-prompt tokens (and
    a head, with --prompt.answer head) are trained; OUTPUT/prompt holds them, a few kilobytes, with
    the name and the hash of the model. With --lengths one prompt of each length is learned and one
    table is written. Every option can stand in a recipe (--config). Exit status: 0 at the end of
    the run, 2 for invalid input, 143 or 130 when SIGTERM or SIGINT stopped it after a checkpoint
    was saved.
    """
    config = _settings(PromptConfig, args)
    plot = bool(args.lengths)
    if plot:
        from megabase.report.style import require_matplotlib

        try:
            require_matplotlib()
        except MissingDependencyError as error:  # said before the training
            note(f"no picture: {error}")
            plot = False
    from megabase.tasks.prompt import learn_prompt, prompt_lengths

    results = _runs(args, config, learn_prompt, prompt_lengths, args.lengths)
    status = _finish(results, _show_prompts, args.picture)
    if plot and results and not status:
        _draw_lengths(results, Path(config.output) / "lengths.svg")
    return status


def _draw_lengths(results: list[RunResult], path: Path) -> None:
    """Draw the chosen metric against the length."""
    from megabase.genome.files import write_whole
    from megabase.report.plots import draw_lengths
    from megabase.report.style import as_svg

    found = [result.test or result.valid for result in results]
    chosen = next((r.monitor for r in results if r.monitor not in ("none", "loss")), None)
    metric = chosen or next((name for name in found[0] if name != "loss"), "loss")
    points = [
        (result.length, values[metric], None)
        for result, values in zip(results, found, strict=True)
        if metric in values
    ]
    if len(points) < 2:
        return
    series = {f"answer by {results[0].answer}": points}
    write_whole(path, as_svg(partial(draw_lengths, series, ("learnable vectors", metric))))
    note(f"wrote {path}")


def _show_prompts(results: list[RunResult]) -> None:
    """Print the metrics, one column for each prompt."""
    first = results[0]
    heads = {
        "soft-prompt tokens": [str(result.length) for result in results],
        "parameters trained": [f"{result.trained_parameters:,}" for result in results],
        "bytes saved": [f"{result.prompt_bytes:,}" for result in results],
    }
    title = f"prompts for {first.model}, answer by {first.answer}"
    _show_table(title, "sequences", heads, results)
    seconds = sum(result.seconds for result in results)
    folders = f"{first.run}/prompt" if len(results) == 1 else "the folder prompt of each run"
    text = f"{seconds:,.0f} s in all; the model is unchanged; {folders} holds what was learned"
    _show_lines([text], results)


def _add_icl(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", help=_MODEL)
    add("--shots-list", type=int, nargs="+", default=[], help="several numbers of shots, in "
        "OUTPUT/shots-K; all metrics in OUTPUT/table.md and OUTPUT/result.json")  # fmt: skip
    add("--samples-list", type=int, nargs="+", default=[],
        help="several numbers of training queries, for --tune prompt or all")  # fmt: skip
    _add_run(parser, InContextConfig, skip={"model"})


def _icl(args: Namespace) -> int:
    """Few-shot in-context classification with a language model.

    MODEL is a model folder, a run folder, a Hub name or `default`. Each query is a sequence behind
    --shots demonstrations of each class with their labels, drawn from the training rows; the
    model's next token is the answer. --tune prompt first learns a soft prompt (the model is
    frozen), --tune all trains every weight on such queries (instruction tuning). With several
    --shots-list or --samples-list numbers every combination is run and one table is written. Exit
    status: 0 at the end of the run, 2 for invalid input, 143 or 130 when SIGTERM or SIGINT stopped
    it after a checkpoint was saved.
    """
    config = _settings(InContextConfig, args)
    from megabase.tasks.in_context import in_context, in_context_grid

    lists = (args.shots_list, args.samples_list)
    return _finish(_runs(args, config, in_context, in_context_grid, *lists), _show_in_context)


def _show_in_context(results: list[RunResult]) -> None:
    """Print the metrics, one column for each run."""
    heads = {
        "shots": [str(result.shots) for result in results],
        "training queries": [f"{result.samples:,}" for result in results],
        "tokens": [f"{result.tokens:,}" for result in results],
    }
    _show_table(f"{results[0].model}, tuned: {results[0].tune}", "queries", heads, results)
    _show_lines((), results)


# fmt: off
VERBS = {
    "pretrain": Verb(partial(_add_run, config=PretrainConfig), _pretrain, (
        "megabase pretrain --config recipe.yaml --dry-run",
        "megabase pretrain --config recipe.yaml --resume",
    )),
    "finetune": Verb(_add_finetune, _finetune, (
        "megabase finetune default --train train.csv --test test.csv --output runs/tuned",
        "megabase finetune --family cnn --train train.csv --test test.csv --output runs/cnn",
    )),
    "prompt": Verb(_add_prompt, _prompt, (
        "megabase prompt default --train train.csv --test test.csv --prompt.length 32 "
        "--output runs/p",
    )),
    "icl": Verb(_add_icl, _icl, (
        "megabase icl default --train train.csv --test test.csv --output runs/icl",
    )),
}
