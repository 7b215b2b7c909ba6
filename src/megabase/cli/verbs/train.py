"""Verbs that train: one skeleton, from settings to a plan, runs and metrics; also by suites."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megabase.benchmarking.config import BenchmarkConfig
from megabase.cli.parser import Namespace, Verb, VerbParser, settings_of
from megabase.cli.streams import note, print_table
from megabase.errors import ConfigError, InputError, MissingDependencyError
from megabase.report.style import require_matplotlib
from megabase.settings import RunConfig, Settings
from megabase.tasks.config import FinetuneConfig, InContextConfig, PretrainConfig, PromptConfig
from megabase.training.process import keep_freed_memory

if TYPE_CHECKING:
    from megabase.benchmarking.table import Tables
    from megabase.tasks.run import RunResult
    from megabase.tasks.sweep import Sweep

_MODEL = "model folder, run folder, Hub name or `default`"
"""Help of the model that all verbs here take."""
_MOST_METRICS = 6
"""Columns of metrics that are printed of a sweep: they fit on a line; its tables have all."""
_Config = TypeVar("_Config", bound=Settings)


def _add_run(parser: VerbParser, config: type[Settings], skip: Iterable[str] = ()) -> None:
    """Add the settings of a run, ``--dry-run``, and what makes a sweep of it."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="show the plan and stop before the first step")
    add("--sweep", type=dict, default={}, help="several runs, one for every combination of values "
        "of fields, such as '{optim.lr: [1e-3, 6e-4], seed: [1, 2]}': a folder each in OUTPUT, one "
        "table in OUTPUT/results.tsv, means over seeds in OUTPUT/summary.tsv")  # fmt: skip
    add("--draws", type=int, help="of --sweep: this many combinations, drawn at random; a field "
        "may be a range, {low: 1e-4, high: 1e-2, log: true}")  # fmt: skip
    add("--draw-seed", type=int, default=0, help="seed of --draws")
    parser.add_settings(config, skip)


def _add_picture(parser: VerbParser) -> None:
    parser.add_argument(
        "--picture", metavar="REGION", help="draw the predictions of this region (a contig or "
        "chr1:1,001-2,000) over the truth to picture.png of the run; needs --predictions",
    )  # fmt: skip


def _settings(config: type[_Config], args: Namespace, **changes: Any) -> _Config:
    """Give the settings of a run, checked, and prepare the process for training."""
    swept = args.get("sweep") or {}
    for name in swept:
        config.check_field(name, "sweep: ")
    # One of the values stands for all until each run has its own: they may give the end of a run.
    stands = {name: _one_of(tried) for name, tried in swept.items() if "." not in name}
    settings = settings_of(config, args, **{**changes, **stands})
    if args.get("picture"):  # fails here where the picture would fail after the training
        from megabase.genome.interval import Interval

        if not args.predictions:
            raise ConfigError("--picture needs --predictions")
        require_matplotlib()
        if ":" in args.picture:
            Interval.parse(args.picture)
    keep_freed_memory()
    return settings


def _one_of(tried: Any) -> Any:
    """Give a value of a list or a range; what is neither is refused when the sweep begins."""
    if isinstance(tried, Mapping):
        return tried.get("low", tried)
    return tried[0] if isinstance(tried, list) and tried else tried


def _runs(
    args: Namespace, config: RunConfig, run: Any, show: Callable[[RunResult], None]
) -> tuple[int, list[RunResult]]:
    """Run once, or a sweep, and show what came of it; give the exit status and the results."""
    from rich.console import Console

    quiet = args.quiet and not args.dry_run  # the plan of a dry run is its output
    console = Console(stderr=not sys.stdout.isatty(), quiet=quiet)
    swept = None
    if args.sweep:
        from megabase.tasks.sweep import sweep

        options = (args.sweep, args.draws, args.draw_seed)
        swept = sweep(config, *options, dry_run=args.dry_run, console=console)
        results = swept.results
    else:
        if args.draws is not None:
            raise ConfigError("--draws is for --sweep, which names the fields and their values")
        result = run(config, dry_run=args.dry_run, console=console)
        results = [] if result is None else [result]
    if results and results[-1].signal is not None:
        return 128 + results[-1].signal, results
    if swept is not None and results:
        _show_sweep(swept, config.output)
    elif results:
        show(results[0])
    for result in results if args.get("picture") else ():
        from megabase.report.plots import save_nucleotide_plot

        folder = Path(result.run)
        target = folder / "picture.png"
        save_nucleotide_plot(folder / "predictions.parquet", args.picture, target, overwrite=True)
        note(f"wrote {target}")
    return 0, results


def _show_sweep(swept: Sweep, output: str) -> None:
    """Print the summary, of many metrics the first, and the run that is the best on validation."""
    known = [name for name in swept.summary.columns if not name.endswith("_sd")]
    metrics = [name for name in known if name.startswith(("valid_", "test_"))]
    metrics.sort(key=lambda name: name.partition("_")[2] != swept.monitor)
    names = [name for name in known if name not in metrics[_MOST_METRICS:]]
    rows: list[list[str]] = []
    for row in swept.summary.iter_rows(named=True):
        rows.append([f"{row[x]:.4g}" if isinstance(row[x], float) else str(row[x]) for x in names])
        for number, name in enumerate(names):
            if row.get(f"{name}_sd") is not None:
                rows[-1][number] += f" (sd {row[f'{name}_sd']:.2g})"
    print_table(names, rows, title=f"{len(swept.results)} runs of {output}")
    best = "" if swept.best is None else f"best on validation: {swept.best.run}; "
    _show_lines([f"{best}results.tsv in {output} has every run"], *swept.results)


def _show_table(title: str, unit: str, heads: Mapping[str, str], result: RunResult) -> None:
    """Print the metrics; `heads` are rows above them, the first on top."""
    split = next((name for name in ("test", "valid") if getattr(result, name)), None)
    of = f", {split} ({result.rows[split]:,} {unit})" if split is not None else ""
    (name, column), *rows = heads.items()
    measured = getattr(result, split).items() if split is not None else ()
    cells = [*rows, *((metric, f"{value:.4f}") for metric, value in measured)]
    print_table((name, f">{column}"), cells, title=f"{title}{of}")


def _show_lines(lines: Iterable[str], *results: RunResult) -> None:
    """Print lines, and the notes of the runs, each once."""
    for line in (*lines, *dict.fromkeys(f"note: {text}" for one in results for text in one.notes)):
        print(line)


def _pretrain(args: Namespace) -> int:
    """Pretrain a language model on a genome.

    A run is described by a recipe (--config) and flags that win over it; every field of the recipe
    is a flag of the same name. The resolved recipe is saved in the output folder and re-creates the
    run. SIGINT and SIGTERM stop it after a checkpoint, with exit status 130 and 143.
    """
    config = _settings(PretrainConfig, args)
    from megabase.tasks.pretrain import pretrain

    return _runs(args, config, pretrain, lambda result: None)[0]


def _add_finetune(parser: VerbParser) -> None:
    add = parser.add_argument
    add("start", nargs="?", metavar="MODEL",
        help=f"{_MODEL} (the same as --model); none: see --family and --preset")  # fmt: skip
    _add_picture(parser)
    _add_run(parser, FinetuneConfig)


def _finetune(args: Namespace) -> int:
    """Train a model on labeled sequences and measure it.

    MODEL is a model folder, a run folder, a Hub name or `default`; without it, --family or --preset
    starts from fresh weights. Every option can stand in a recipe (--config). Validation chooses the
    best checkpoint, and the test sequences are scored once, at the end.
    """
    config = _settings(FinetuneConfig, args, model=args.start or args.model)
    from megabase.tasks.finetune import finetune

    return _runs(args, config, finetune, _show_finetuned)[0]


def _show_finetuned(result: RunResult) -> None:
    splits = [split for split in ("valid", "test") if getattr(result, split)]
    rows = [
        (name, *(f"{getattr(result, split)[name]:.4f}" for split in splits))
        for name in (getattr(result, splits[0]) if splits else ())
    ]
    if splits:
        head = ("metric", *(f">{split} ({result.rows[split]:,})" for split in splits))
        print_table(head, rows, title=f"{result.family}, {result.parameters:,} parameters")
    speed = f"{result.tokens_per_second:,.0f} training tokens/s, {result.seconds:,.0f} s in all"
    _show_lines([f"{speed}; {result.run}/result.json has all numbers"], result)


def _add_prompt(parser: VerbParser) -> None:
    parser.add_argument("model", help=_MODEL)
    _add_picture(parser)
    _add_run(parser, PromptConfig, skip={"model"})


def _prompt(args: Namespace) -> int:
    """Learn a soft prompt on labeled sequences for a frozen model, and measure it.

    MODEL is a model folder, a run folder, a Hub name or `default`. Only the soft-prompt tokens (and
    a head, with --prompt.answer head) are trained; OUTPUT/prompt holds them, a few kilobytes, with
    the name and the hash of the model. Every option can stand in a recipe (--config).
    """
    config = _settings(PromptConfig, args)
    from megabase.tasks.prompt import learn_prompt

    return _runs(args, config, learn_prompt, _show_prompt)[0]


def _show_prompt(result: RunResult) -> None:
    heads = {
        "soft-prompt tokens": str(result.length),
        "parameters trained": f"{result.trained_parameters:,}",
        "bytes saved": f"{result.prompt_bytes:,}",
    }
    title = f"prompts for {result.model}, answer by {result.answer}"
    _show_table(title, "sequences", heads, result)
    kept = f"the model is unchanged; {result.run}/prompt holds what was learned"
    _show_lines([f"{result.seconds:,.0f} s in all; {kept}"], result)


def _add_icl(parser: VerbParser) -> None:
    parser.add_argument("model", help=_MODEL)
    _add_run(parser, InContextConfig, skip={"model"})


def _icl(args: Namespace) -> int:
    """Few-shot in-context classification with a language model.

    MODEL is a model folder, a run folder, a Hub name or `default`. Each query is a sequence behind
    --shots demonstrations of each class with their labels, drawn from the training rows; the
    model's next token is the answer. --tune prompt first learns a soft prompt (the model is
    frozen), --tune all trains every weight on such queries (instruction tuning).
    """
    config = _settings(InContextConfig, args)
    from megabase.tasks.in_context import in_context

    return _runs(args, config, in_context, _show_in_context)[0]


def _show_in_context(result: RunResult) -> None:
    heads = {
        "shots": str(result.shots), "training queries": f"{result.samples:,}",
        "tokens": f"{result.tokens:,}",
    }  # fmt: skip
    _show_table(f"{result.model}, tuned: {result.tune}", "queries", heads, result)
    _show_lines((), result)


def _add_benchmark(parser: VerbParser) -> None:
    parser.add_argument("suite", help="name of the suite")
    parser.add_argument("--no-page", action="store_true", help="write no results.html")
    parser.add_settings(BenchmarkConfig, skip={"suite"})


def _benchmark(args: Namespace) -> None:
    """Measure models on benchmark suites: several models, seeds and tasks, one protocol, one table.

    SUITE is genomic-benchmarks, nucleotide-transformer, gue, chromatin, species, biotype, variants
    or table (any labeled files). Before training, rows that occur in several splits are counted.
    The output folder gets results.md, results.parquet, summary.parquet, results.html and the run
    folders. --resume resumes an interrupted sweep, or adds models, tasks and seeds to a finished
    one. The word collect in place of a suite makes one table of several sweeps (--data A,B --output
    C).
    """
    if args.suite == "collect":
        return _collect(args)
    config = settings_of(BenchmarkConfig, args)
    keep_freed_memory()
    from rich.console import Console

    from megabase.benchmarking.run import run_benchmark
    from megabase.benchmarking.table import Tables

    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False, quiet=args.quiet)
    output = Path(config.output)
    order = [entry.name for entry in config.entries]

    def update() -> None:
        Tables(output, order=order, resamples=0).write(output)  # intervals wait for the end

    run_benchmark(config, console=console, done=update)
    _finish(Tables(output, order=order, resamples=config.bootstrap), output, not args.no_page)


def _collect(args: Namespace) -> None:
    from megabase.benchmarking.table import Tables

    folders = [Path(word.strip()).expanduser() for word in str(args.data or "").split(",")]
    for folder in folders:
        if not (folder / "benchmark.json").is_file():
            raise InputError(f"{folder} is not a benchmark output folder; name them as --data A,B")
    output = Path(args.output)
    if output.is_dir() and any(output.iterdir()) and not args.overwrite:
        raise InputError(f"output folder {output} is not empty; add --overwrite")
    output.mkdir(parents=True, exist_ok=True)
    _finish(Tables(*folders, resamples=int(args.bootstrap)), output, not args.no_page)


def _finish(tables: Tables, output: Path, page: bool) -> None:
    for path in tables.write(output):
        note(f"wrote {path}")
    if page:
        from megabase.report.benchmark_page import write_benchmark_page

        try:
            note(f"wrote {write_benchmark_page(output, tables.lines, tables.of)}")
        except MissingDependencyError as error:
            note(f"no page: {error}")
    print((output / "results.md").read_text())


# fmt: off
VERBS = {
    "pretrain": Verb(partial(_add_run, config=PretrainConfig), _pretrain, (
        "megabase pretrain --config recipe.yaml --dry-run",
        "megabase pretrain --config recipe.yaml --sweep '{optim.lr: [1e-3, 6e-4]}'",
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
    "benchmark": Verb(_add_benchmark, _benchmark, (
        "megabase benchmark gue --data GUE --models kmer,default --output runs/gue",
        "megabase benchmark variants --data test.parquet --variants.layout traitgym "
        "--variants.genome hg38.mb --models default --output runs/mendelian",
    )),
}
