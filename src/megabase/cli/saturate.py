"""In-silico mutagenesis: score every substitution of a region of a genome.

Writes the scores as a table or as matrices, and on request tracks (bigWig) and a picture.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from megabase.cli.inference_options import (
    add_model_option,
    add_run_options,
    check_output,
    running,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase saturate chr20:1,000,001-1,000,200 --genome hg38.mb -o r.parquet --plot r.svg",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase saturate``."""
    parser.add_argument(
        "region", metavar="REGION", type=str,
        help="CONTIG:START-END, 1-based with both ends included, such as chr1:1,001-1,200",
    )  # fmt: skip
    parser.add_argument("--genome", required=True, type=str, help="genome store, or FASTA file")
    parser.add_argument("-o", "--output", required=True, type=str, help="OUT.parquet, .tsv or .npz")
    add_model_option(parser)
    parser.add_argument(
        "--window", type=int, default=None, help="bases of a window (default: 1024)"
    )
    parser.add_argument(
        "--methods", nargs="+", default=None, metavar="NAME",
        help="as for megabase variants; the first one is drawn",
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
    from pathlib import Path

    from megabase.data.sources import genome_store
    from megabase.inference.parts import refuse_existing
    from megabase.inference.saturation import SaturationJob, read_saturation, save_tracks
    from megabase.inference.sharding import run_job
    from megabase.inference.tables import TABLE_SUFFIXES, require_table_suffix
    from megabase.inference.tracks import require_bigwig
    from megabase.inference.variants.scorer import VariantOptions

    target = Path(args.output)
    suffixes = (".parquet", ".npz") if args.bigwig or args.plot else (*TABLE_SUFFIXES, ".npz")
    require_table_suffix(target, suffixes)
    methods = None if args.methods is None else tuple(args.methods)
    options = VariantOptions(args.window, methods, args.strands, args.placement)
    check_output(target, args)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(genome_store(args.genome))
        if args.bigwig:
            require_bigwig()
        if args.plot:
            from megabase.report.logos import check_heat_map

            check_heat_map(Path(args.plot), store.region(args.region).length, args.overwrite)
        job = SaturationJob(
            args.region,
            store.path,
            args.model,
            options,
            args.batch_tokens,
        )
        job.provenance()  # fills in the methods, which name the tracks
        names: tuple[str, ...] = tuple(job.options.methods or ())
        tracks = {name: Path(f"{args.bigwig}.{name}.bw") for name in names if args.bigwig}
        for path in tracks.values():
            refuse_existing(path, args.overwrite)
        running_options = stack.enter_context(running(args, "bases"))
        run_job(job, target, **running_options)
        if not target.exists():
            return 0  # another rank writes the output
        print(f"wrote {target}", file=sys.stderr)
        if not tracks and not args.plot:
            return 0
        found = read_saturation(target)
        save_tracks(found, store, tracks)
        for path in tracks.values():
            print(f"wrote {path}", file=sys.stderr)
        if args.plot:
            from megabase.report.logos import save_heat_map

            save_heat_map(
                Path(args.plot), found.ref, found.scores[names[0]], title=str(found.interval),
                label=names[0], first=found.interval.start + 1, overwrite=args.overwrite,
            )  # fmt: skip
            print(f"wrote {args.plot}", file=sys.stderr)
    return 0
