"""Log-likelihood and perplexity of sequences (FASTA, tables) or intervals of a genome (BED).

Writes one row for each sequence, to Parquet or TSV by the ending of the output.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from megabase.cli.inference_options import (
    add_kind_options,
    add_model_option,
    add_run_options,
    check_output,
    running,
)
from megabase.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase score genes.fa -o genes.tsv",
    "megabase score peaks.bed --genome hg38.mb --context 512 --strands both -o peaks.parquet",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase score``."""
    parser.add_argument(
        "input", metavar="FILE", type=str, help="FASTA file or table; with --genome a BED file"
    )
    parser.add_argument(
        "-o", "--output", required=True, type=str, help="the table: FILE.parquet or FILE.tsv"
    )
    add_model_option(parser)
    add_kind_options(parser, variants=False)
    parser.add_argument(
        "--genome", type=str, default=None,
        help="genome store (or FASTA file) that the intervals of a BED file lie on",
    )  # fmt: skip
    parser.add_argument(
        "--strands", choices=["forward", "reverse", "both"], default="forward",
        help="read as given, as reverse complement, or both and take the mean",
    )  # fmt: skip
    parser.add_argument(
        "--context", type=int, default=0,
        help="bases before an interval that are read but not scored (BED only)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=int, default=None,
        help="positions of a forward pass, for longer sequences (default: longest of the model)",
    )  # fmt: skip
    parser.add_argument(
        "--stride", type=int, default=None,
        help="by how much windows move (default: half a window)",
    )  # fmt: skip
    parser.add_argument(
        "--per-base", action="store_true", help="keep the log-probability of every base"
    )
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from pathlib import Path

    from megabase.data.sources import genome_store
    from megabase.evaluate.score import ScoreOptions
    from megabase.inference.input_stream import SequenceInput
    from megabase.inference.score_job import ScoreJob
    from megabase.inference.sharding import run_job
    from megabase.inference.tables import require_table_suffix

    target = Path(args.output)
    require_table_suffix(target)
    if args.context < 0:
        raise InputError(f"--context must be 0 or more, found {args.context}")
    if args.context and args.genome is None:
        raise InputError("--context needs --genome: a FASTA sequence has no DNA before it")
    options = ScoreOptions(args.strands, args.window, args.stride, args.per_base)
    check_output(target, args)
    with contextlib.ExitStack() as stack:
        genome = args.genome and str(stack.enter_context(genome_store(args.genome)).path)
        job = ScoreJob(
            SequenceInput(args.input, genome, args.kind, column=args.sequence, strict=args.strict),
            args.model,
            options,
            args.context,
            args.batch_tokens,
        )
        running_options = stack.enter_context(running(args, "sequences"))
        run_job(job, target, **running_options)
    print(f"wrote {target}", file=sys.stderr)
    return 0
