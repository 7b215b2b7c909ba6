"""The verb that measures models on benchmark suites."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.benchmarking.config import BenchmarkConfig
from megabase.cli.parser import Namespace, Verb, VerbParser, settings_of
from megabase.cli.streams import note
from megabase.errors import InputError

if TYPE_CHECKING:
    from megabase.benchmarking.table import Tables


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
    from megabase.training.process import keep_freed_memory

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
    from megabase.errors import MissingDependencyError

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
    "benchmark": Verb(_add_benchmark, _benchmark, (
        "megabase benchmark gue --data GUE --models kmer,default --output runs/gue",
        "megabase benchmark variants --data test.parquet --variants.layout traitgym "
        "--variants.genome hg38.mb --models default --output runs/mendelian",
    )),
}
