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


def add_source_options(
    parser: ArgumentParser, output: str, *, variants: bool = True, model: str = MODEL
) -> None:
    """Add model, input and output of a verb that reads sequences.

    Parameters
    ----------
    parser
        The verb.
    output
        Formats of the output, for the help.
    variants
        Whether it reads VCF.
    model
        What models it takes, for the help.
    """
    kinds = "FASTA, a table, BED or VCF" if variants else "FASTA, a table or BED"
    parser.add_argument("model", metavar="MODEL", type=str, help=model)
    parser.add_argument("input", metavar="FILE", type=str, help=f"{kinds}, plain or gzip")
    parser.add_argument("-o", "--output", type=str, required=True, metavar="FILE", help=output)
    genome = "BED and VCF" if variants else "BED"
    parser.add_argument("--genome", type=str, help=f"genome store or FASTA, for {genome}")
    add_kind_options(parser, variants=variants)
    if variants:
        parser.add_argument("--window", type=int, help="bases around a variant (VCF), for each "
            "allele (default: 1024)")  # fmt: skip


def add_kind_options(parser: ArgumentParser, *, variants: bool = True) -> None:
    """Add what says how a file of sequences is read."""
    kinds = ["auto", "fasta", "bed", *(["vcf"] if variants else []), "table"]
    parser.add_argument("--kind", default="auto", choices=kinds, help="what the input is (default: "
        "by its ending; .csv, .tsv and .parquet are tables)")  # fmt: skip
    parser.add_argument("--sequence", type=str, metavar="COLUMN", help="column of a table's "
        "sequences (default: sequence or seq)")  # fmt: skip
    add_strict_option(parser)


def add_strict_option(parser: ArgumentParser) -> None:
    """Add ``--strict``."""
    parser.add_argument("--strict", action="store_true", help="refuse the input for its first row "
        "that cannot be used, instead of leaving it out")  # fmt: skip


def source_of(args: Namespace) -> SequenceInput:
    """Give the input of a verb that reads sequences.

    Raises
    ------
    InputError
        For an input that is not there or not clear, or ``--window`` without variants.
    """
    from megabase.data.sources import SequenceInput

    window = SequenceInput.window if args.window is None else args.window
    source = SequenceInput(args.input, args.genome, args.kind, window, args.sequence, args.strict)
    if source.found_kind != "vcf":
        why = f"for variants (VCF), and {args.input} holds none"
        refuse_unused({"--window": args.window is not None}, why)
    return source


def add_variant_options(parser: ArgumentParser, methods: str) -> None:
    """Add what changes the score of a variant; `methods` says which methods there are."""
    parser.add_argument("--window", type=int, help="bases of a window (default: 1024)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help=methods)
    parser.add_argument("--strands", choices=["forward", "reverse", "both"], default="both",
        help="strand that is read; the mean of both by default")  # fmt: skip
    parser.add_argument("--placement", choices=["centred", "grid"], default="centred",
        help="centred: a window of its own around each variant; grid: windows at multiples of half "
        "their length, shared by neighbors (faster)")  # fmt: skip


def add_run_options(parser: ArgumentParser, *, batch_tokens: bool = True) -> None:
    """Add what decides how the work is done, not what comes out."""
    group = parser.add_argument_group("execution options (they do not change results)")
    group.add_argument("--overwrite", action="store_true", help="replace an existing output")
    group.add_argument("--resume", action="store_true", help="resume an interrupted run (its parts "
        "are in OUTPUT.partial)")  # fmt: skip
    group.add_argument("--workers", type=int, help="number of worker processes (default: one for "
        "each GPU, else for each core)")  # fmt: skip
    group.add_argument("--device", type=str, help="cpu, cuda, cuda:1 or mps")
    group.add_argument("--threads", type=int, default=1, help="threads of each process on the CPU")
    if batch_tokens:
        group.add_argument("--batch-tokens", type=int, default=65_536, help="positions of a batch: "
            "time and memory")  # fmt: skip


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
    """Refuse options that would do nothing.

    Parameters
    ----------
    given
        Whether each option was given, by its name.
    why
        What they are for.

    Raises
    ------
    InputError
        Naming those that were given.
    """
    names = [name for name, is_given in given.items() if is_given]
    if names:
        verb = "is" if len(names) == 1 else "are"
        raise InputError(f"{', '.join(names)} {verb} {why}")
