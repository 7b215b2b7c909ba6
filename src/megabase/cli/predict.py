"""Labels and probabilities from a fine-tuned model, or a model with a soft prompt.

With a file of sequences (FASTA, or BED or VCF with a genome) the output is a table, .parquet or
.tsv: a row for each sequence. With a genome alone the output is a track along it or along
--regions: .bw, or .bed with the regions above --threshold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.inference_options import (
    add_kind_options,
    add_run_options,
    refuse_unused,
    running,
    source_of,
)
from megabase.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

EXAMPLES = (
    "megabase predict runs/tuned candidates.fa -o labels.tsv",
    "megabase predict default candidates.fa --prompt runs/p/prompt -o labels.tsv",
    "megabase predict runs/coding --genome hg38.mb --regions chr20 -o coding.bw --calls coding.bed",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase predict``."""
    parser.add_argument(
        "model", type=str,
        help="folder of `megabase finetune`, or with --prompt a language model (or `default`)",
    )  # fmt: skip
    parser.add_argument("--prompt", type=str, default=None, metavar="FOLDER",
                        help="soft prompt of `megabase prompt`, made for this model")  # fmt: skip
    parser.add_argument("input", nargs="?", type=str, default=None, metavar="FILE",
                        help="FASTA, a table, BED or VCF; none for a track")  # fmt: skip
    parser.add_argument("-o", "--output", type=str, required=True, metavar="FILE",
                        help=".parquet or .tsv; .bw or .bed for a track")  # fmt: skip
    parser.add_argument("--genome", type=str, default=None,
                        help="store or FASTA, for BED, VCF and tracks")  # fmt: skip
    add_kind_options(parser)
    parser.add_argument(
        "--strands", choices=["forward", "both"], default=None,
        help="read as given, or average both (default: as in training, head.strand_average)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=int, default=None,
        help="bases that the model reads at once along a genome (default: as many as it can), or "
             "around a variant (default: 1024)",
    )  # fmt: skip
    group = parser.add_argument_group("tracks")
    group.add_argument("--regions", nargs="+", default=[], metavar="REGION",
                       help="contigs, regions or BED files (default: the genome)")  # fmt: skip
    group.add_argument("--class", dest="output_class", type=str, default=None, metavar="NAME",
                       help="whose probability (default: the second of two)")  # fmt: skip
    group.add_argument("--overlap", type=int, default=None,
                       help="bases that windows share (default: half of them)")  # fmt: skip
    group.add_argument(
        "--stitch", default="centre", choices=["centre", "before", "average"],
        help="which window answers for a base: the one that has it nearest to its centre, the one "
             "with most DNA before it, or the average of all",
    )  # fmt: skip
    group.add_argument("--calls", type=str, default=None, metavar="BED",
                       help="also write the regions above the threshold")  # fmt: skip
    group.add_argument("--threshold", type=float, default=0.5, help="smallest probability called")
    group.add_argument("--min-length", type=int, default=1, help="shortest region called")
    group.add_argument("--join", type=int, default=0,
                       help="join regions with at most this many bases between")  # fmt: skip
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from megabase.inference.prediction import predict_file
    from megabase.inference.prediction_track import TRACK_SUFFIXES, TrackOptions, predict_track

    track = str(args.output).lower().endswith(TRACK_SUFFIXES)
    if track and args.input is not None:
        raise InputError(
            f"{args.output} is a track along a genome: name regions with --regions instead of the "
            f"input {args.input}, or write .parquet or .tsv"
        )
    calls = {
        "--threshold": args.threshold != 0.5,
        "--min-length": args.min_length != 1,
        "--join": args.join != 0,
    }
    if track:
        refuse_unused({"--sequence": args.sequence is not None}, "for a table of sequences")
        if args.genome is None:
            raise InputError("a track needs --genome: a genome store or a FASTA file")
        if args.calls is None and not str(args.output).lower().endswith(".bed"):
            refuse_unused(calls, "for called regions: name a file for them with --calls")
        options = TrackOptions(
            output=args.output_class, window=args.window, overlap=args.overlap, stitch=args.stitch,
            strands=args.strands, threshold=args.threshold, shortest=args.min_length,
            join=args.join,
        )  # fmt: skip
        with running(args, "bases") as how:
            target = predict_track(
                args.model, args.genome, args.output, regions=args.regions, options=options,
                calls=args.calls, strict=args.strict, prompt=args.prompt, **how,
            )  # fmt: skip
        print(f"wrote {target}" + (f" and {args.calls}" if args.calls else ""))
        return 0
    if args.input is None:
        if Path(args.model).is_file():
            raise InputError(
                f"{args.model} is a file and stands where the model is named; the model comes "
                "first: megabase predict MODEL FILE -o OUTPUT"
            )
        raise InputError(
            "name a file of sequences (FASTA, a table, BED or VCF), or a track as output (.bw or "
            ".bed)"
        )
    refuse_unused(
        {
            "--regions": bool(args.regions),
            "--class": args.output_class is not None,
            "--overlap": args.overlap is not None,
            "--stitch": args.stitch != "centre",
            "--calls": args.calls is not None,
            **calls,
        },
        "for a track along a genome (an output that ends in .bw or .bed, and no input)",
    )
    source = source_of(args)
    with running(args, "sequences") as how:
        target = predict_file(
            args.model, source, args.output, strands=args.strands,
            prompt=args.prompt, **how,
        )  # fmt: skip
    print(f"wrote {target}")
    return 0
