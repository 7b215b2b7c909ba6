"""Score the variants of a VCF or BCF file: what the model says about ALT against REF.

Every record is written again with its scores as INFO fields (or as a row of a table); one that
cannot be scored keeps its line and says why.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from megabase.cli.inference_options import (
    add_model_option,
    add_run_options,
    add_strict_option,
    check_output,
    progress_bar,
    run_options,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase variants in.vcf.gz --genome hg38.mb -o out.vcf.gz",
    "megabase variants in.bcf --genome hg38.fa -o out.tsv --window 4096 --methods llr_window l2",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase variants``."""
    parser.add_argument("input", metavar="FILE", type=str, help="VCF (plain, bgzip) or BCF file")
    parser.add_argument("--genome", required=True, type=str, help="genome store, or FASTA file")
    parser.add_argument(
        "-o", "--output", required=True, type=str,
        help="OUT.vcf, .vcf.gz, .bcf (with scores in INFO), .parquet or .tsv",
    )  # fmt: skip
    add_model_option(parser)
    parser.add_argument(
        "--window", type=int, default=None, help="bases of a window (default: 1024)"
    )
    parser.add_argument(
        "--methods", nargs="+", default=None, metavar="NAME",
        help="llr_window, llr_after, llr_site, masked, cosine, l2 (default: the first three; "
        "masked for a masked model)",
    )  # fmt: skip
    parser.add_argument(
        "--strands", choices=["forward", "reverse", "both"], default="both",
        help="strand that is read; the mean of both by default",
    )  # fmt: skip
    parser.add_argument(
        "--placement", choices=["centred", "grid"], default="centred",
        help="centred: a window of its own around each variant; grid: windows at multiples of half "
        "their length, shared by neighbours (faster)",
    )  # fmt: skip
    parser.add_argument("--prefix", type=str, default="MB", help="beginning of the INFO keys")
    add_strict_option(parser)
    parser.add_argument(
        "--allow-mismatches", action="store_true",
        help="go on although many REF differ from the genome",
    )  # fmt: skip
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from pathlib import Path

    from megabase.data.sources import genome_store
    from megabase.inference.sharding import run_job
    from megabase.inference.tables import TABLE_SUFFIXES, require_table_suffix
    from megabase.inference.variants.scorer import VariantOptions
    from megabase.inference.variants.variants_job import VariantsJob
    from megabase.inference.variants.vcf_output import VCF_SUFFIXES, index_vcf, require_prefix

    target = Path(args.output)
    suffix = require_table_suffix(target, (*VCF_SUFFIXES, *TABLE_SUFFIXES))
    methods = None if args.methods is None else tuple(args.methods)
    options = VariantOptions(args.window, methods, args.strands, args.placement)
    require_prefix(args.prefix)
    check_output(target, args)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(genome_store(args.genome))
        job = VariantsJob(
            Path(args.input),
            target,
            store.path,
            args.model,
            options,
            args.prefix,
            args.allow_mismatches,
            args.strict,
            args.batch_tokens,
        )
        progress = stack.enter_context(progress_bar("records"))
        run_job(job, target, progress=progress, **run_options(args))
    if job.found is None or not target.exists():
        return 0  # another rank writes the output
    print(f"wrote {target}: {job.found.records:,} records", file=sys.stderr)
    if suffix in (".vcf.gz", ".vcf.bgz", ".bcf") and target.is_file():  # a pipe has no index
        for old in (".tbi", ".csi"):
            target.with_name(target.name + old).unlink(missing_ok=True)
        if job.found.in_order:
            lengths = [length or 0 for length in job.found.contigs.values()]
            print(f"wrote {index_vcf(target, max(lengths, default=0))}", file=sys.stderr)
        else:
            print("no index: the records are not in order (bcftools sort)", file=sys.stderr)
    return 0
