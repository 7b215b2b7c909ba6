"""Write a self-contained HTML page, in one file that asks no other host.

`megabase report RUN` is about a training run: learning curve, perplexity against context, floors,
data, settings; the numbers on held-out DNA come from `megabase evaluate RUN`. With --region or
--vcf it is a genome browser: the sequence, genes, what a model expects at every base, tracks, and
a table of variants.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.inference_options import refuse_unused
from megabase.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

__all__ = ["EXAMPLES", "add_arguments", "run"]

EXAMPLES = (
    "megabase report runs/mine",
    "megabase report --genome hg38.mb --region chr20:50,000,001-50,020,000 --genes genes.gff.gz",
    "megabase report runs/mine --genome hg38.mb --vcf scored.vcf.gz -o variants.html",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase report``."""
    parser.add_argument(
        "run", nargs="?", type=str, default=None,
        help="run folder of `megabase pretrain`; for a genome page any language model (default: "
             "the model in the package)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=str, default=None, metavar="FILE",
        help="the page (default: report.html in the run folder, or genome.html)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", type=str, default=None, metavar="JSON",
        help="result of `megabase evaluate` (default: evaluation.json in the run folder, if there)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a page that exists")
    group = parser.add_argument_group("genome page")
    group.add_argument("--region", type=str, default=None, metavar="PLACE",
                       help="what to show: a contig, or chr1:1,001-2,000")  # fmt: skip
    group.add_argument("--vcf", type=str, default=None, metavar="FILE",
                       help="variants to show (without --region: what is around them)")  # fmt: skip
    group.add_argument("--genome", type=str, default=None, help="genome store or FASTA")
    group.add_argument("--genes", type=str, default=None, metavar="GFF", help="GFF3 or GTF")
    group.add_argument(
        "--track", nargs="+", default=[], metavar="NAME=FILE",
        help="more tracks: bigWig or bedGraph (numbers), BED, narrowPeak or GFF (intervals)",
    )  # fmt: skip
    group.add_argument(
        "--info", nargs="+", default=[], metavar="KEY",
        help="INFO fields of the VCF for the table (default: all with one number an allele)",
    )  # fmt: skip
    group.add_argument("--ism", type=str, default=None, metavar="PLACE",
                       help="score every substitution of this stretch")  # fmt: skip
    group.add_argument("--flank", type=int, default=250, help="bases shown beside each variant")
    group.add_argument("--window", type=int, default=None,
                       help="bases the model reads at once (default: up to 1,024)")  # fmt: skip
    group.add_argument("--no-model", action="store_true", help="show no model")
    group.add_argument(
        "--strict", action="store_true",
        help="refuse the first row of a file that cannot be used, instead of leaving it out",
    )  # fmt: skip
    group.add_argument("--device", type=str, default=None, help="cpu, cuda, cuda:1 or mps")
    group.add_argument("--batch-tokens", type=int, default=65_536,
                       help="positions of a batch: time and memory")  # fmt: skip


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    output = None if args.output is None else Path(args.output)
    if output is not None and output.suffix.lower() not in (".html", ".htm", ""):
        raise ConfigError(f"{output}: the page is HTML; give a name that ends in .html")
    for_genome_page = {
        "--genome": args.genome is not None,
        "--genes": args.genes is not None,
        "--track": bool(args.track),
        "--ism": args.ism is not None,
        "--window": args.window is not None,
        "--no-model": args.no_model,
        "--strict": args.strict,
    }
    if args.region is not None or args.vcf is not None:
        refuse_unused({"--evaluation": args.evaluation is not None}, "for the page of a run")
        if args.vcf is None:
            refuse_unused({"--info": bool(args.info)}, "for variants, and --vcf is missing")
        from megabase.cli.genome_report import write_genome_page

        page = write_genome_page(args)
    elif args.run is None:
        raise ConfigError("name a run folder, or for a genome page --genome with --region or --vcf")
    else:
        why = "for a genome page, and neither --region nor --vcf is given"
        refuse_unused({**for_genome_page, "--info": bool(args.info)}, why)
        from megabase.report.run_page import write_run_page

        page = write_run_page(args.run, args.output, args.evaluation, overwrite=args.overwrite)
    print(f"wrote {page}")
    return 0
