"""In-silico mutagenesis (ISM): score every substitution of a region of a genome.

Writes the scores as a table or as matrices, and on request tracks (bigWig) and a picture.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.inference_options import MODEL, add_run_options, add_variant_options, running

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLES = ("megabase ism default chr20:1,000,001-1,000,200 hg38.mb -o r.parquet --plot r.svg",)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase ism``."""
    parser.add_argument("model", metavar="MODEL", type=str, help=MODEL)
    parser.add_argument(
        "region", metavar="REGION", type=str,
        help="CONTIG:START-END, 1-based with both ends included, such as chr1:1,001-1,200",
    )  # fmt: skip
    parser.add_argument("genome", metavar="GENOME", type=str, help="genome store, or FASTA file")
    parser.add_argument("-o", "--output", required=True, type=str, help="OUT.parquet, .tsv or .npz")
    add_variant_options(parser, "as for megabase variants; the first one is drawn")
    parser.add_argument(
        "--bigwig", type=str, default=None, metavar="PREFIX",
        help="write PREFIX.METHOD.bw: at each base the mean loss of its three substitutions",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=str, default=None, metavar="FILE",
        help="draw a heat map under a sequence logo (.svg, .png or .pdf)",
    )  # fmt: skip
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from megabase.data.sources import genome_store
    from megabase.inference.ism import ism_file, read_ism
    from megabase.inference.variants.scorer import VariantOptions
    from megabase.inference.writers import require_suffix

    methods = None if args.methods is None else tuple(args.methods)
    options = VariantOptions(args.window, methods, args.strands, args.placement)
    with contextlib.ExitStack() as stack:
        genome = args.genome
        if args.plot:
            from megabase.report.logos import check_heat_map

            require_suffix(args.output, (".parquet", ".npz"))
            store = stack.enter_context(genome_store(genome))
            check_heat_map(Path(args.plot), store.region(args.region).length, args.overwrite)
            genome = store.path
        how = stack.enter_context(running(args, "bases"))
        found = ism_file(
            args.model, args.region, genome, args.output, options, bigwig=args.bigwig, **how
        )
    for path in found:  # nothing for a rank of torchrun that does not write
        print(f"wrote {path}", file=sys.stderr)
    if args.plot and found:
        from megabase.report.logos import save_heat_map

        read = read_ism(found[0])
        method = next(iter(read.scores))
        save_heat_map(
            Path(args.plot), read.ref, read.scores[method], title=str(read.interval),
            label=method, first=read.interval.start + 1, overwrite=args.overwrite,
        )  # fmt: skip
        print(f"wrote {args.plot}", file=sys.stderr)
    return 0
