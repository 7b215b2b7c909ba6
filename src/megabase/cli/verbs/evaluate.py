"""Verbs that measure a language model on held-out DNA and compare several."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.parser import MODEL, Namespace, Verb, VerbParser, given, load_shared
from megabase.cli.streams import note, output, print_table, show_progress
from megabase.errors import MegabaseError, MissingDependencyError
from megabase.genome.files import check_output
from megabase.options import EvaluateOptions

if TYPE_CHECKING:
    from megabase.evaluate.results import EvaluationResult, Measure
    from megabase.training.run_folder import RunData


_SHOWN_CONTIGS = 10
"""Contigs in the terminal: an assembly may have thousands, and the JSON has them all."""


def _add_evaluate(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", type=str, help=MODEL)
    add("--genome", type=str, help="genome store")
    parser.add_regions("what to score")
    add("--train-regions", nargs="+", default=[], metavar="REGION", help="where the Markov "
        "baselines are trained (default: those of the run)")  # fmt: skip
    add("--no-baselines", action="store_true", help="score the model alone")
    add("--no-context", action="store_true", help="leave the context curve out")
    parser.add_keywords(EvaluateOptions, skip="baselines")
    add("--device", type=str, help="cpu, cuda, cuda:1 or mps")
    parser.add_context_parallel("window")
    add("--json", action="store_true", help="print everything as JSON")
    add("-o", "--output", type=str, help="folder to write evaluation.json and the plots to "
        "(default for a run: its folder), or a .json file for the result alone")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an earlier evaluation")


def _evaluate(args: Namespace) -> None:
    """Measure the perplexity of a language model on held-out DNA, against its baselines.

    Regions are contigs (chr20), parts of them (chr20:50,000,001-55,000,000: 1-based, both ends
    included) or BED files. For a model inside a run folder, genome and training regions are those
    of the run, and the regions evaluated are its test regions unless others are named.
    """
    from megabase.genome.store import Genome
    from megabase.training.run_folder import RunData

    model_run = None if args.model is None else RunData.find(args.model)
    files = _files(args, model_run)
    genome = None if args.genome is None else Genome(args.genome)
    store, regions, train = RunData.evaluated(model_run, genome, args.regions, args.train_regions)

    from megabase.evaluate.perplexity import evaluate

    loaded, first = load_shared(args, "language")
    asked = given(args, EvaluateOptions)
    if args.no_context:
        asked["context_lengths"] = []
    if loaded.longest is None and model_run and model_run.longest:
        asked.setdefault("window", model_run.longest)  # the model reads any length
    options = EvaluateOptions(**asked, baselines=not args.no_baselines)
    with show_progress("windows") if first else contextlib.nullcontext() as progress:
        result = evaluate(
            loaded.model, store, regions, options, name=args.model or loaded.name,
            train_regions=train, progress=progress,
        )  # fmt: skip
    if not first:
        return  # every process has the same result
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)
    _write(result, *files)


def _files(args: Namespace, model_run: RunData | None) -> tuple[Path | None, Path | None]:
    """Give the JSON file and the folder of the plots, checked before any work is done."""
    place = args.output if args.output is not None else model_run and model_run.path
    if place is None:
        return None, None
    target = Path(place)
    if target.suffix.lower() == ".json":
        check_output(target, args.overwrite)
        return target, None
    file = target / "evaluation.json"
    if target.is_dir():
        check_output(file, args.overwrite)
    return file, target


def _write(result: EvaluationResult, file: Path | None, folder: Path | None) -> None:
    from megabase.report.plots import save_plots

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if file is not None:
        result.save(file)
        note(f"wrote {file}")
    try:
        for path in () if folder is None else save_plots(result.to_dict(), folder):
            note(f"wrote {path}")
    except MissingDependencyError as error:  # the numbers are written; only the plots are missing
        note(f"no plots: {error}")


def _print(result: EvaluationResult) -> None:
    console, more = output(), result.region_count - 3
    shown = ", ".join(result.regions[:3]) + (f" and {more:,} more" if more > 0 else "")
    console.print(
        f"model    {result.model} ({result.parameters or 0:,} parameters)\n"
        f"genome   {result.genome} (sha256 {result.genome_checksum[:12]})\n"
        f"regions  {shown}: {result.region_bases:,} bases\n"
        f"scored   {result.overall.targets:,} bases in {result.windows:,} windows, each base with "
        f"{result.window - result.stride + 1:,} to {result.window:,} bases of context; "
        f"{result.skipped:,} others (not A, C, G, T) skipped\n"
        f"time     {result.seconds:,.1f} s"
    )
    if result.objective == "masked":
        console.print("pseudo-perplexity: each base from both sides, itself hidden")
    if result.train_overlap:
        console.print(
            f"NOT HELD OUT: {result.train_overlap:,} of {result.region_bases:,} bases lie in the "
            "training regions",
            style="bold",
        )
    _print_baselines(result)
    parts = list(result.by_soft_mask.items()) if len(result.by_soft_mask) > 1 else []
    contigs = list(result.by_contig.items()) if len(result.by_contig) > 1 else []
    rows = [(name, *_cells(part)) for name, part in parts + contigs[:_SHOWN_CONTIGS]]
    _table(("part", "bases", "perplexity A,C,G,T", "all tokens"), rows)
    if len(contigs) > _SHOWN_CONTIGS:
        console.print(f"... and {len(contigs) - _SHOWN_CONTIGS:,} more contigs (in the JSON)")
    _print_context(result)


def _print_baselines(result: EvaluationResult) -> None:
    """Show the model under its baselines, and how far it is from the best of them."""
    console = output()
    model, baselines = result.overall, result.baselines
    fitted = {one.order: _acgt(one.measure) for one in baselines if one.fitted}
    rows = [
        (one.name, _acgt(one.measure), fitted.get(one.order, ""), "")
        for one in baselines
        if not one.fitted
    ]
    rows.append(("model", _acgt(model), "", _with_error(model.perplexity, model.perplexity_se)))
    _table(("", "perplexity A,C,G,T", "rates fitted", "all tokens"), rows, strong=True)
    if len(baselines) == 1:
        console.print("no Markov baselines (they need --train-regions)", style="dim")
        return
    best = min(baselines, key=lambda one: one.measure.nats_acgt)
    console.print(
        f"best baseline: {best.name}; against it the model "
        f"{'saves' if best.margin_nats > 0 else 'costs'} "
        f"{_bits(abs(best.margin_nats), best.margin_nats_se)} bits a base (paired)"
    )
    console.print(
        f"the Markov models counted {result.baseline_bases:,} bases of the training regions; the "
        f"next shorter context weighs {baselines[1].rates[0]:g} counts, or as fitted by order",
        style="dim",
    )


def _print_context(result: EvaluationResult) -> None:
    rows: list[tuple[str, ...]] = []
    for number, point in enumerate(result.context):
        least = f"{point.context_min:,}-" if point.context_min < point.context else ""
        saved = _bits(point.saved_nats, point.saved_nats_se) if number else ""
        rows.append((f"{least}{point.context:,}", *_cells(point.measure), saved))
    _table(("bases of context", "bases", "perplexity A,C,G,T", "all tokens", "bits saved"), rows)
    pairs = [(one.context_measure, one.name) for one in result.baselines if one.context_measure]
    if pairs:
        measure, name = min(pairs, key=lambda pair: pair[0].nats_acgt)
        text = f"best baseline on these bases: {name}, {measure.perplexity_acgt:.3f}"
        output().print(text, style="dim")


def _table(head: Sequence[str], rows: list[tuple[str, ...]], strong: bool = False) -> None:
    """Print a table of numbers below an empty line, nothing without rows."""
    if rows:
        print()
        print_table((head[0], *(f">{name}" for name in head[1:])), rows, strong=strong)


def _cells(measure: Measure) -> tuple[str, str, str]:
    every = _with_error(measure.perplexity, measure.perplexity_se)
    return f"{measure.targets:,}", _acgt(measure), every


def _acgt(measure: Measure) -> str:
    return _with_error(measure.perplexity_acgt, measure.perplexity_acgt_se)


def _bits(nats: float, error: float | None) -> str:
    return _with_error(nats / math.log(2), error and error / math.log(2), 4)


def _with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """Write a number and its standard error, as far as there are any."""
    if value is None:
        return ""
    return f"{value:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _add_compare(parser: VerbParser) -> None:
    add = parser.add_argument
    add("evaluations", nargs="+", type=str, metavar="EVALUATION", help="run folders with an "
        "evaluation.json, or such files")  # fmt: skip
    add("-o", "--output", type=str, metavar="FILE", help="write the table (Markdown)")
    add("--overwrite", action="store_true", help="replace a file that exists")


def _compare(args: Namespace) -> None:
    """Put evaluations of several models on the same bases into one table.

    Reads what `megabase evaluate` wrote. Causal models have a perplexity, masked ones a
    pseudo-perplexity; the table says which number is which and what each model saw of a base's
    neighbors.
    """
    from megabase.evaluate.results import EvaluationResult, compare
    from megabase.genome.files import write_whole

    files = []
    for name in args.evaluations:
        files.append(Path(name, "evaluation.json") if Path(name).is_dir() else Path(name))
        if not files[-1].is_file():
            raise MegabaseError(
                f"{files[-1]} does not exist; make it with: megabase evaluate {name}"
            )
    text = compare([EvaluationResult.load(file) for file in files])
    print(text, end="")
    if args.output is not None:
        write_whole(Path(args.output), text, args.overwrite)
        note(f"wrote {args.output}")


# fmt: off
VERBS = {
    "evaluate": Verb(_add_evaluate, _evaluate, (
        "megabase evaluate runs/mine",
        "megabase evaluate --genome hg38.mb --regions chr20:50,000,001-51,000,000 --no-baselines",
    )),
    "compare": Verb(_add_compare, _compare, (
        "megabase compare runs/causal runs/masked -o table.md",
    )),
}
