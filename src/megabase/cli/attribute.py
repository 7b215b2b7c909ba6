"""What each base does to an output of a model: gradients, or integrated gradients.

The output is a class of a fine-tuned model (--target), or the log-likelihood of the sequence for a
causal language model. .parquet and .npz hold a number for each base and four by letter; .bw is a
track of the places of a BED file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.inference_options import (
    add_run_options,
    add_source_options,
    refuse_unused,
    running,
    source_of,
)
from megabase.errors import InputError, OutputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from megabase.data.sources import SequenceInput

EXAMPLES = (
    "megabase attribute default seqs.fa -o why.parquet --logo why.png",
    "megabase attribute runs/tuned seqs.fa --target promoter -o why.parquet",
)

_STEPS = 64  # as the default of attribute(): an option that was not given can then be told
_LOGO_BASES = 120  # bases that can be read across a page


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase attribute``."""
    add_source_options(parser, ".parquet, .npz, or .bw for the intervals of a BED file")
    parser.add_argument("--target", type=str, default=None, help="class, by name or number")
    parser.add_argument(
        "--method", type=str, default="integrated_gradients",
        help="integrated_gradients, gradient_input or gradient",
    )  # fmt: skip
    parser.add_argument("--baseline", type=str, default="uniform",
                        help="where integrated gradients begin: uniform or n")  # fmt: skip
    parser.add_argument("--steps", type=int, default=_STEPS, help="points of integrated gradients")
    parser.add_argument("--logo", type=str, default=None, metavar="FILE",
                        help="draw one sequence as a logo (.svg, .png or .pdf)")  # fmt: skip
    parser.add_argument("--logo-of", type=str, default=None, metavar="NAME",
                        help="which sequence (default: the first)")  # fmt: skip
    parser.add_argument("--logo-from", type=int, default=1, help="first base of the logo, 1-based")
    parser.add_argument("--logo-bases", type=int, default=_LOGO_BASES, help="bases of the logo")
    parser.add_argument(
        "--logo-stack", action="store_true", help="draw all four letters at each base, by letter, "
        "in place of the base that stands there at the height of their sum",
    )  # fmt: skip
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from megabase.inference.attribution import attribute_file

    if args.logo is not None:
        if not str(args.output).lower().endswith(".parquet"):
            raise OutputError("for a logo write .parquet, which has the numbers by letter")
        from megabase.report.logos import check_logo

        if args.logo_from < 1:
            raise InputError(f"--logo-from counts from 1, found {args.logo_from}")
        check_logo(Path(args.logo), args.logo_bases, args.overwrite)
    else:
        refuse_unused(
            {
                "--logo-of": args.logo_of is not None,
                "--logo-from": args.logo_from != 1,
                "--logo-bases": args.logo_bases != _LOGO_BASES,
                "--logo-stack": args.logo_stack,
            },
            "for the picture, and --logo FILE is missing",
        )
    if args.method != "integrated_gradients":
        refuse_unused(
            {"--baseline": args.baseline != "uniform", "--steps": args.steps != _STEPS},
            f"for integrated gradients, and --method is {args.method}",
        )
    source = source_of(args)
    if args.logo is not None:
        _check_logo(args, source)
    with running(args, "sequences") as how:
        target = attribute_file(
            args.model, source, args.output, target=args.target, method=args.method,
            baseline=args.baseline, steps=args.steps, **how,
        )  # fmt: skip
    print(f"wrote {target}")
    if args.logo is not None:
        _logo(args, source, target)
    return 0


def _check_logo(args: Namespace, source: SequenceInput) -> None:
    """Refuse a logo of a sequence or a base that the input does not have, before any work."""
    one = next((s for s in source.read() if args.logo_of in (None, s.name)), None)
    if one is None and args.logo_of is not None:
        raise InputError(f"{args.input}: has no sequence named {args.logo_of!r} (--logo-of)")
    if one is not None and args.logo_from > len(one.codes):
        raise InputError(
            f"--logo-from {args.logo_from:,} is past the end of {one.name}, which has "
            f"{len(one.codes):,} bases"
        )


def _logo(args: Namespace, source: SequenceInput, table: Path) -> None:
    """Draw the logo of one sequence."""
    import numpy as np
    import polars as pl

    from megabase.genome.alphabet import decode
    from megabase.report.logos import own_heights, save_logo

    frame = pl.scan_parquet(table)
    if args.logo_of is not None:
        frame = frame.filter(pl.col("name") == args.logo_of)
    found = frame.head(1).collect()
    if not found.height:
        raise InputError(f"{table}: has no sequence named {args.logo_of!r}")
    row = found.row(0, named=True)
    if args.logo_stack:
        letters = np.array(row["letters"], dtype=np.float32).reshape(-1, 4)
    else:
        bases = next(decode(one.codes) for one in source.read() if one.name == row["name"])
        letters = own_heights(bases, np.array(row["values"], dtype=np.float32))
    low = args.logo_from - 1
    path = Path(args.logo)
    save_logo(
        path, letters[low : low + args.logo_bases], title=str(row["name"]),
        ylabel=args.method.replace("_", " "), first=args.logo_from, overwrite=args.overwrite,
    )  # fmt: skip
    print(f"wrote {path}")
