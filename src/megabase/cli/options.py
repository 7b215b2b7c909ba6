"""What the verbs that run a model over an input have in common: options and the progress bar."""

from __future__ import annotations

import contextlib
import io
import tempfile
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal

from megabase.cli.streams import show_progress
from megabase.errors import InputError
from megabase.options import PassOptions, RunOptions

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from megabase.data.sources import SequenceInput
    from megabase.models.loading import Loaded

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
    parser.add_argument("--kind", choices=kinds, help="what the input is (default: "
        "by its ending; .csv, .tsv and .parquet are tables)")  # fmt: skip
    parser.add_argument("--sequence", type=str, metavar="COLUMN", help="column of a table's "
        "sequences (default: sequence or seq)")  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="refuse the input for its first row "
        "that cannot be used, instead of leaving it out")  # fmt: skip


def add_regions_option(parser: ArgumentParser, text: str) -> None:
    """Add ``--regions``; `text` says in the help what is done with them."""
    parser.add_argument("--regions", nargs="+", default=[], metavar="REGION",
        help=f"{text}: contigs, regions (chr1:1,001-2,000) or BED files")  # fmt: skip


def add_keywords(parser: Any, kind: Any, skip: str = "") -> None:
    """Add a flag for each keyword of a class of :mod:`megabase.options`, and its text as help."""
    from docstring_parser import parse_from_object

    hints = typing.get_type_hints(kind)
    for keyword in parse_from_object(kind).params:
        hint = hints[keyword.arg_name]
        union = typing.get_origin(hint) in (UnionType, typing.Union)
        parts = typing.get_args(hint) if union else (hint,)
        first, how = parts[0], {}
        if first is bool:
            how = {"action": "store_true"}
        elif typing.get_origin(first) is typing.Literal:
            how = {"choices": list(typing.get_args(first))}
        elif typing.get_origin(first) is Sequence:
            how = {"nargs": "+", "type": typing.get_args(first)[0]}
        elif first in (int, float, str):
            how = {"type": first}
        if how and keyword.arg_name != skip:  # the callback of the progress has no flag
            flag = f"--{keyword.arg_name.replace('_', '-')}"
            text = " ".join((keyword.description or "").removesuffix(".").split())
            if not text[1:2].isupper():  # a name such as GFF3
                text = text[:1].lower() + text[1:]
            parser.add_argument(flag, **how, help=text)


def add_run_options(parser: ArgumentParser, skip: str = "") -> None:
    """Add what decides how the work is done, not what comes out."""
    group = parser.add_argument_group("execution options (they do not change results)")
    add_keywords(group, RunOptions)
    add_keywords(group, PassOptions, skip)


def given(args: Namespace, kind: Any) -> dict[str, Any]:
    """Give the keywords of a class of options that were given; the others have their defaults."""
    names, shared = set(typing.get_type_hints(kind)), RunOptions.__optional_keys__
    if shared < names:  # of a verb: how the work is done is given by running()
        names -= shared
    return {name: args[name] for name in names if _is_given(args.get(name))}


def _is_given(value: object) -> bool:
    """Tell the value of an option from that of one that was left out."""
    return value is not None and value is not False and value != []


def source_of(args: Namespace, *, variants: bool = True) -> SequenceInput:
    """Give the input of a verb that reads sequences; ``--window`` is refused without variants."""
    from megabase.data.sources import SequenceInput

    window = args.window if variants and args.window is not None else SequenceInput.window
    kind, regions = args.kind or "auto", tuple(args.regions)
    source = SequenceInput(
        args.input, args.genome, kind, window, args.sequence, args.strict, regions
    )
    if variants and source.found_kind != "vcf":
        why = f"for variants (VCF), and {args.input} holds none"
        refuse_unused(args, "window", why)
    return source


def add_context_parallel(parser: Any, shared: str) -> None:
    """Add ``--context-parallel``; `shared` is what its processes share."""
    text = f"under torchrun: all its processes share every {shared}, for those too long for one"
    parser.add_argument("--context-parallel", action="store_true", help=text)


def load_shared(args: Namespace, head: Literal["own", "language"]) -> tuple[Loaded, bool]:
    """Load the model, shared under ``--context-parallel``; say if this is the first process."""
    from megabase.models.loading import choose_device, load

    device = choose_device(args.device)
    if not args.context_parallel:
        return load(args.model, head=head, device=device), True
    from megabase.parallel import context_parallel, join_processes

    group = join_processes(device)
    loaded = load(args.model, head=head, device=device)
    return loaded, context_parallel(loaded.model, group, whole=True).rank == 0


@contextlib.contextmanager
def running(
    args: Namespace, unit: str, head: Literal["own", "language"] = "own"
) -> Iterator[dict[str, Any]]:
    """Give the options of :func:`add_run_options`, with a progress bar that counts in `unit`.

    Under ``--context-parallel`` the model of `args`, with `head`, is replaced by one that all
    processes share; those beside the first are silent and write to a folder that is then removed.
    """
    with contextlib.ExitStack() as stack:
        how = given(args, RunOptions)
        if args.get("context_parallel"):
            refuse_unused(args, "workers shard resume prompt", "not for --context-parallel")
            args.model, first = load_shared(args, head)
            how["workers"] = 1
            if not first:
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                for name in ("output", "calls"):
                    if args.get(name) is not None:
                        args[name] = str(Path(folder, Path(args[name]).name))
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield {**how, "progress": stack.enter_context(show_progress(unit))}


def refuse_unused(args: Namespace, names: str, why: str) -> None:
    """Refuse those of the options that were given; `why` says what they are for."""
    flags = [f"--{name.replace('_', '-')}" for name in names.split() if _is_given(args.get(name))]
    if flags:
        raise InputError(f"{', '.join(flags)} {'is' if len(flags) == 1 else 'are'} {why}")
