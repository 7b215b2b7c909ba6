"""What the verbs that run a model over an input have in common: options and the progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from megabase.cli.streams import show_progress
from megabase.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from megabase.data.sources import SequenceInput
    from megabase.inference.jobs import RunOptions

MODEL = "model folder, run folder, preset or Hub name; default: the model in the package"
"""Help of the argument MODEL."""


def add_source_options(parser: ArgumentParser, output: str, *, variants: bool = True) -> None:
    """Add model, input and output of a verb that reads sequences, and with `variants` VCF.

    `output` names the formats of the output in the help.
    """
    add = parser.add_argument
    kinds = "FASTA, a table, BED or VCF" if variants else "FASTA, a table or BED"
    add("model", metavar="MODEL", type=str, help=MODEL)
    add("input", metavar="FILE", type=str, help=f"{kinds}, plain or gzip")
    add("-o", "--output", type=str, required=True, metavar="FILE", help=output)
    genome = "BED and VCF" if variants else "BED"
    add("--genome", type=str, help=f"genome store or FASTA, for {genome}")
    add_kind_options(parser, variants=variants)
    add_regions_option(parser, f"restrict {genome} to what overlaps these")
    if variants:
        add("--window", type=int, help="bases around a variant (VCF), for each allele (default: "
            "1024)")  # fmt: skip


def add_kind_options(parser: ArgumentParser, *, variants: bool = True) -> None:
    """Add what says how a file of sequences is read."""
    kinds = ["auto", "fasta", "bed", *(["vcf"] if variants else []), "table"]
    parser.add_argument("--kind", default="auto", choices=kinds, help="what the input is (default: "
        "by its ending; .csv, .tsv and .parquet are tables)")  # fmt: skip
    parser.add_argument("--sequence", type=str, metavar="COLUMN", help="column of a table's "
        "sequences (default: sequence or seq)")  # fmt: skip
    add_strict_option(parser)


def add_regions_option(parser: ArgumentParser, text: str) -> None:
    """Add ``--regions``; `text` says in the help what is done with them."""
    parser.add_argument("--regions", nargs="+", default=[], metavar="REGION",
        help=f"{text}: contigs, regions (chr1:1,001-2,000) or BED files")  # fmt: skip


def add_strict_option(parser: ArgumentParser) -> None:
    """Add ``--strict``."""
    parser.add_argument("--strict", action="store_true", help="refuse the input for its first row "
        "that cannot be used, instead of leaving it out")  # fmt: skip


def source_of(args: Namespace, *, variants: bool = True) -> SequenceInput:
    """Give the input of a verb that reads sequences; ``--window`` is refused without variants."""
    from megabase.data.sources import SequenceInput

    window = SequenceInput.window if args.window is None or not variants else args.window
    source = SequenceInput(
        args.input, args.genome, args.kind, window, args.sequence, args.strict, tuple(args.regions)
    )
    if variants and source.found_kind != "vcf":
        why = f"for variants (VCF), and {args.input} holds none"
        refuse_unused({"--window": args.window is not None}, why)
    return source


def add_variant_options(parser: ArgumentParser, methods: str) -> None:
    """Add what changes the score of a variant; `methods` says which methods there are."""
    add = parser.add_argument
    add("--window", type=int, help="bases of a window (default: 1024)")
    add("--methods", nargs="+", metavar="NAME", help=methods)
    add("--strands", choices=["forward", "reverse", "both"], default="both", help="strand that is "
        "read; the mean of both by default")  # fmt: skip
    add("--placement", choices=["centered", "grid"], default="centered", help="centered: a window "
        "of its own around each variant; grid: windows at multiples of half their length, shared "
        "by neighbors (faster)")  # fmt: skip


def add_run_options(parser: ArgumentParser, *, batch_tokens: bool = True) -> None:
    """Add what decides how the work is done, not what comes out."""
    add = parser.add_argument_group("execution options (they do not change results)").add_argument
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--resume", action="store_true", help="resume an interrupted run (its parts are in "
        "OUTPUT.partial)")  # fmt: skip
    add("--workers", type=int, help="number of worker processes (default: one for each GPU, else "
        "for each core)")  # fmt: skip
    add("--device", type=str, help="cpu, cuda, cuda:1 or mps")
    add("--threads", type=int, default=1, help="threads of each process on the CPU")
    if batch_tokens:
        add("--batch-tokens", type=int, default=65_536, help="positions of a batch: time and "
            "memory")  # fmt: skip


@contextlib.contextmanager
def running(args: Namespace, unit: str) -> Iterator[RunOptions]:
    """Give the options of :func:`add_run_options`, with a progress bar that counts in `unit`."""
    with show_progress(unit) as progress:
        options: RunOptions = {
            "workers": args.workers, "device": args.device, "threads": args.threads,
            "resume": args.resume, "overwrite": args.overwrite, "progress": progress,
        }  # fmt: skip
        if "batch_tokens" in args:
            options["batch_tokens"] = args.batch_tokens
        yield options


def refuse_unused(given: Mapping[str, bool], why: str) -> None:
    """Refuse those of the options that were given; `why` says what they are for."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        verb = "is" if len(names) == 1 else "are"
        raise InputError(f"{', '.join(names)} {verb} {why}")
