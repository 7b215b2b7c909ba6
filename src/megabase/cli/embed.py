"""Turn sequences into vectors: hidden states of any layer, pooled or for each base.

The input is FASTA, or BED or VCF with a genome (each allele of a variant is a sequence). The ending
of the output says its format: .parquet, .npy, .npz, .zarr or .h5ad (AnnData).
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

EXAMPLES = (
    "megabase embed default genes.fa -o genes.h5ad",
    "megabase embed runs/mine peaks.bed --genome hg38.mb -o peaks.parquet --strands both",
    "megabase embed default genes.fa -o genes.parquet --plot map.png --labels biotypes.tsv",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``megabase embed``."""
    add_source_options(parser, ".parquet, .npy, .npz, .zarr or .h5ad")
    parser.add_argument(
        "--layer", type=int, default=-1,
        help="0 for the token embedding, k for block k, negative from the last (default: the last)",
    )  # fmt: skip
    parser.add_argument(
        "--pooling", type=str, default="mean", help="mean, max, sum, first, last; none: every base"
    )
    parser.add_argument(
        "--long", type=str, default="error",
        help="sequences longer than the model reads: error, chunks (pooled over all positions of "
             "all pieces) or published (plain mean of the pieces)",
    )  # fmt: skip
    parser.add_argument(
        "--strands", choices=["forward", "both"], default="forward",
        help="read as given, or average with the reverse complement",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=str, default=None, metavar="FILE",
        help="map of the sequences with their nearest neighbours (.svg, .png or .pdf)",
    )  # fmt: skip
    parser.add_argument(
        "--map", type=str, default="auto",
        help="umap, tsne or pca (default: the first of these that is installed)",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=str, default=None, metavar="TSV",
        help="name and label of the sequences, two columns, for the colors of the map",
    )  # fmt: skip
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Run the verb; errors are raised as MegabaseError."""
    from megabase.inference.embedding import embed_file

    if args.plot is not None:
        from megabase.report.embedding_plot import check_embedding_plot

        check_embedding_plot(Path(args.plot), args.map, args.overwrite)
        if args.pooling == "none":
            raise OutputError("a map is of sequences, not of bases; leave --plot or --pooling none")
        if Path(args.output).suffix.lower() not in (".parquet", ".npz"):
            raise OutputError("for a map write .parquet or .npz, which have the names")
        if args.labels is not None and not Path(args.labels).is_file():
            raise InputError(f"there is no file {args.labels}")
    else:
        refuse_unused(
            {"--labels": args.labels is not None, "--map": args.map != "auto"},
            "for the picture, and --plot FILE is missing",
        )
    source = source_of(args)
    with running(args, "sequences") as how:
        target = embed_file(
            args.model, source, args.output, layer=args.layer, pooling=args.pooling,
            long=args.long, strands=args.strands, **how,
        )  # fmt: skip
    print(f"wrote {target}")
    if args.plot is not None:
        _plot(args, target)
    return 0


def _plot(args: Namespace, target: Path) -> None:
    """Draw the map of what was written."""
    import numpy as np

    from megabase.report.embedding_plot import save_embedding_plot

    if target.suffix.lower() == ".parquet":
        import polars as pl

        frame = pl.read_parquet(target)
        names, vectors = frame["name"].to_list(), frame["embedding"].to_numpy()
    else:
        with np.load(target) as found:
            names, vectors = found["name"].tolist(), found["embedding"]
    labels = None if args.labels is None else _labels(Path(args.labels), names)
    path = Path(args.plot)
    kept = save_embedding_plot(
        path, vectors, labels, title=f"{len(names):,} sequences, {args.pooling} of layer "
        f"{args.layer}", how=args.map, overwrite=args.overwrite,
    )  # fmt: skip
    print(f"wrote {path}")
    if kept is not None:
        print(f"the nearest neighbour has the same label for {kept:.1%} of the sequences")


def _labels(path: Path, names: list[str]) -> list[str]:
    """Read the label of each sequence from two columns."""
    from megabase.genome.files import numbered_lines

    found: dict[str, str] = {}
    for number, line in numbered_lines(path):
        if not line.strip() or line.startswith("#"):
            continue
        cells = line.split("\t")
        if len(cells) < 2:
            raise InputError(
                f"{path}, line {number}: expected a name, a tab and a label; found {line[:60]!r}"
            )
        found[cells[0]] = cells[1]
    missing = [name for name in names if name not in found]
    if len(missing) == len(names):
        raise InputError(f"{path}: names none of the sequences (such as {names[0]!r})")
    return [found.get(name, "no label") for name in names]
