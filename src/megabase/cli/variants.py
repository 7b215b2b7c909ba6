"""Score the variants of a VCF or BCF file: how a language model rates ALT against REF.

Every record is written again with its scores as INFO fields (or as a row of a table); one that
cannot be scored keeps its line, with the reason.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from megabase.cli.inference_options import (
    MODEL,
    add_run_options,
    add_strict_option,
    add_variant_options,
    running,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase variants default in.vcf.gz hg38.mb -o out.vcf.gz",
    "megabase variants runs/mine in.bcf hg38.fa -o out.tsv --window 4096 --methods llr_window l2",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase variants``."""
    add = parser.add_argument
    add("model", metavar="MODEL", type=str, help=MODEL)
    add("variants", metavar="VCF", type=str, help="VCF (plain, bgzip) or BCF file")
    add("genome", metavar="GENOME", type=str, help="genome store, or FASTA file")
    add(
        "-o", "--output", required=True, type=str,
        help="OUT.vcf, .vcf.gz, .bcf (with scores in INFO), .parquet or .tsv",
    )  # fmt: skip
    add_variant_options(
        parser,
        "llr_window, llr_after, llr_site, masked, cosine, l2 (default: the first three; masked for "
        "a masked model)",
    )
    add("--prefix", type=str, default="MB", help="beginning of the INFO keys")
    add_strict_option(parser)
    add("--allow-mismatches", action="store_true", help="continue when many REF differ from the "
        "genome")  # fmt: skip
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from pathlib import Path

    from megabase.inference.variants.vcf_file import score_variants_file

    with running(args, "records") as how:
        written = score_variants_file(
            args.model, args.variants, args.genome, args.output, window=args.window,
            methods=args.methods, strands=args.strands, placement=args.placement,
            prefix=args.prefix, allow_mismatches=args.allow_mismatches, strict=args.strict, **how,
        )  # fmt: skip
    if written is None:
        return 0  # another rank writes the output
    found, index = written
    print(f"wrote {args.output}: {found.records:,} records", file=sys.stderr)
    if index is not None:
        print(f"wrote {index}", file=sys.stderr)
    elif args.output.lower().endswith((".gz", ".bgz", ".bcf")) and Path(args.output).is_file():
        print("no index: the records are not in order (bcftools sort)", file=sys.stderr)
    return 0
