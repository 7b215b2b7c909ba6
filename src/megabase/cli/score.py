"""Log-likelihood and perplexity of sequences (FASTA, tables) or intervals of a genome (BED).

Writes one row for each sequence, to Parquet or TSV by the ending of the output.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from megabase.cli.inference_options import add_run_options, add_source_options, running

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLES = (
    "megabase score default genes.fa -o genes.tsv",
    "megabase score runs/mine peaks.bed --genome hg38.mb --context 512 --strands both -o p.parquet",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase score``."""
    add_source_options(parser, ".parquet or .tsv", variants=False)
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
    from megabase.data.sources import SequenceInput
    from megabase.inference.scoring import score_file

    source = SequenceInput(
        args.input, args.genome, args.kind, column=args.sequence, strict=args.strict
    )
    with running(args, "sequences") as how:
        target = score_file(
            args.model, source, args.output, strands=args.strands, window=args.window,
            stride=args.stride, per_base=args.per_base, context=args.context, **how,
        )  # fmt: skip
    print(f"wrote {target}", file=sys.stderr)
    return 0
