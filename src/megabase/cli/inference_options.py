"""What the verbs that run a model over an input have in common: options and the progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from megabase.cli.progress import show_progress
from megabase.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from jsonargparse import ArgumentParser, Namespace

    from megabase.inference.input_stream import SequenceInput
    from megabase.inference.jobs import RunOptions

__all__ = [
    "add_kind_options",
    "add_model_option",
    "add_run_options",
    "add_strict_option",
    "check_output",
    "refuse_unused",
    "running",
    "source_of",
]


def add_model_option(parser: ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument(
        "--model", type=str, default=None,
        help="model folder, run folder, preset or Hub name (default: the model in the package)",
    )  # fmt: skip


def add_run_options(parser: ArgumentParser, *, batch_tokens: bool = True) -> None:
    """Add what decides how the work is done, not what comes out."""
    group = parser.add_argument_group("how the work is done (the result does not depend on it)")
    group.add_argument("--overwrite", action="store_true", help="replace an existing output")
    group.add_argument(
        "--resume", action="store_true",
        help="go on with an interrupted run (its parts are in OUTPUT.partial)",
    )  # fmt: skip
    group.add_argument(
        "--devices", type=int, default=None,
        help="processes that share the work (default: one for each GPU, else for each core)",
    )  # fmt: skip
    group.add_argument("--device", type=str, default=None, help="cpu, cuda, cuda:1 or mps")
    group.add_argument("--threads", type=int, default=1, help="threads of each process on the CPU")
    if batch_tokens:
        group.add_argument(
            "--batch-tokens", type=int, default=65_536, help="positions of a batch: time and memory"
        )


@contextlib.contextmanager
def running(args: Namespace, unit: str) -> Iterator[RunOptions]:
    """Give the options of :func:`add_run_options`, with a progress bar that counts in `unit`."""
    with show_progress(unit) as progress:
        options: RunOptions = {
            "workers": args.devices, "device": args.device, "threads": args.threads,
            "resume": args.resume, "overwrite": args.overwrite, "progress": progress,
        }  # fmt: skip
        if "batch_tokens" in args:
            options["batch_tokens"] = args.batch_tokens
        yield options


def check_output(target: Path, args: Namespace) -> None:
    """Refuse a device that is not there, then an output that cannot be written."""
    from megabase.inference.parts import refuse_existing
    from megabase.models.loading import choose_device

    choose_device(args.device)
    refuse_existing(target, args.overwrite)


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


def add_kind_options(parser: ArgumentParser, *, variants: bool = True) -> None:
    """Add what says how a file of sequences is read."""
    kinds = ["auto", "fasta", "bed", *(["vcf"] if variants else []), "table"]
    parser.add_argument(
        "--kind", default="auto", choices=kinds,
        help="what the input is (default: by its ending; .csv, .tsv and .parquet are tables)",
    )  # fmt: skip
    parser.add_argument(
        "--sequence", default=None, type=str, metavar="COLUMN",
        help="column of a table's sequences (default: sequence or seq)",
    )  # fmt: skip
    add_strict_option(parser)


def add_strict_option(parser: ArgumentParser) -> None:
    """Add ``--strict``."""
    parser.add_argument(
        "--strict", action="store_true",
        help="refuse the input for its first row that cannot be used, instead of leaving it out",
    )  # fmt: skip


def source_of(args: Namespace) -> SequenceInput:
    """Give the input of a verb that reads sequences.

    Raises
    ------
    InputError
        For an input that is not there or not clear, or ``--window`` without variants.
    """
    from megabase.inference.input_stream import SequenceInput

    window = SequenceInput.window if args.window is None else args.window
    source = SequenceInput(args.input, args.genome, args.kind, window, args.sequence, args.strict)
    if source.found_kind != "vcf":
        why = f"for variants (VCF), and {args.input} holds none"
        refuse_unused({"--window": args.window is not None}, why)
    return source
