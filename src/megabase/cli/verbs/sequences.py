"""Verbs that turn sequences into numbers: embeddings, labels, attributions."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from megabase.cli.parser import (
    Namespace,
    Verb,
    VerbParser,
    given,
    refuse_unused,
    running,
    source_of,
)
from megabase.cli.streams import note
from megabase.errors import InputError, OutputError
from megabase.genome.files import numbered_lines
from megabase.options import AttributeOptions, EmbedOptions, PredictOptions

if TYPE_CHECKING:
    import polars as pl

    from megabase.data.sources import SequenceInput


def _add_embed(parser: VerbParser) -> None:
    add = parser.add_argument
    parser.add_source(".parquet, .npy, .npz, .zarr or .h5ad")
    parser.add_keywords(EmbedOptions)
    add("--plot", type=str, metavar="FILE", help="map of the sequences with their nearest "
        "neighbors (.svg, .png or .pdf)")  # fmt: skip
    add("--map", type=str, help="umap, tsne or pca (default: the first of these "
        "that is installed)")  # fmt: skip
    add("--labels", type=str, metavar="TSV", help="name and label of the sequences, two columns, "
        "for the colors of the map")  # fmt: skip
    parser.add_running()


def _embed(args: Namespace) -> None:
    """Turn sequences into vectors: hidden states of any layer, pooled or for each base.

    The input is FASTA, or BED or VCF with a genome (each allele of a variant is a sequence). The
    ending of the output says its format: .parquet, .npy, .npz, .zarr or .h5ad (AnnData).
    """
    from megabase.inference.embedding import embed_file

    if args.plot is not None:
        from megabase.report.plots import check_embedding_plot

        check_embedding_plot(Path(args.plot), args.map or "auto", args.overwrite)
        if args.pooling == "none":
            raise OutputError("a map is of sequences, not of bases; leave --plot or --pooling none")
        if Path(args.output).suffix.lower() not in (".parquet", ".npz"):
            raise OutputError("for a map write .parquet or .npz, which have the names")
        if args.labels is not None and not Path(args.labels).is_file():
            raise InputError(f"there is no file {args.labels}")
    else:
        refuse_unused(args, "labels map", "for the picture, and --plot FILE is missing")
    source = source_of(args)
    with running(args, "sequences") as how:
        target = embed_file(args.model, source, args.output, **given(args, EmbedOptions), **how)
    note(f"wrote {target}")
    if args.plot is not None and not args.shard:
        _plot(args, target)


def _plot(args: Namespace, target: Path) -> None:
    import numpy as np

    from megabase.report.plots import save_embedding_plot

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
        path, vectors, labels, how=args.map or "auto", overwrite=args.overwrite,
        title=f"{len(names):,} sequences, {args.pooling or 'mean'} of "
        + ("the last layer" if args.layer is None else f"layer {args.layer}"),
    )  # fmt: skip
    note(f"wrote {path}")
    if kept is not None:
        print(f"the nearest neighbor has the same label for {kept:.1%} of the sequences")


def _labels(path: Path, names: list[str]) -> list[str]:
    """Read the label of each sequence from two columns."""
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


def _add_predict(parser: VerbParser) -> None:
    add = parser.add_argument
    add("model", type=str, help="folder of `megabase finetune`, or with --prompt a language model "
        "(or `default`)")  # fmt: skip
    add("input", nargs="?", type=str, metavar="FILE", help="FASTA, a table, BED or VCF; none for a "
        "track")  # fmt: skip
    add("-o", "--output", type=str, required=True, metavar="FILE", help=".parquet or .tsv; .bw or "
        ".bed for a track")  # fmt: skip
    add("--genome", type=str, help="store or FASTA, for BED, VCF and tracks")
    parser.add_kinds()
    parser.add_keywords(PredictOptions)
    add("--window", type=int, help="bases that the model reads at once along a genome (default: as "
        "many as it can), or around a variant (default: 1024)")  # fmt: skip
    parser.add_regions("restrict a track, BED or VCF to these")
    add = parser.add_argument_group("tracks").add_argument
    add("--class", type=str, metavar="NAME", help="whose probability (default: "
        "the second of two), or which track (default: all, OUTPUT.NAME.bw each)")  # fmt: skip
    add("--overlap", type=int, help="bases that windows share (default: half of them)")
    add("--stitch", choices=["center", "before", "average"], help="which window is used for a "
        "base: the one that has it nearest to its center, the one with most DNA before it, or the "
        "average of all (default: center)")  # fmt: skip
    add("--calls", type=str, metavar="BED", help="also write the regions above the threshold")
    add("--threshold", type=float, help="smallest probability called (default: 0.5)")
    add("--min-length", type=int, help="shortest region called (default: 1)")
    add("--join", type=int, help="join regions with at most this many bases between (default: 0)")
    parser.add_context_parallel("sequence")
    parser.add_running()


def _predict(args: Namespace) -> None:
    """Predict labels and probabilities with a fine-tuned model, or a model with a soft prompt.

    With a file of sequences (FASTA, or BED or VCF with a genome) the output is a table, .parquet or
    .tsv: a row for each sequence. With a genome alone the output is a track along it or along
    --regions: .bw, or .bed with the regions above --threshold.
    """
    from megabase.inference.prediction import (
        TRACK_SUFFIXES,
        TrackOptions,
        predict_file,
        predict_track,
    )

    track = str(args.output).lower().endswith(TRACK_SUFFIXES)
    if track and args.input is not None:
        raise InputError(
            f"{args.output} is a track along a genome: name regions with --regions instead of the "
            f"input {args.input}, or write .parquet or .tsv"
        )
    calls = "threshold min_length join"
    if track:
        refuse_unused(args, "sequence", "for a table of sequences")
        if args.genome is None:
            raise InputError("a track needs --genome: a genome store or a FASTA file")
        if args.calls is None and not str(args.output).lower().endswith(".bed"):
            refuse_unused(args, calls, "for called regions: name a file for them with --calls")
        names = {"output": "class", "shortest": "min_length"}
        asked = {one.name: args[names.get(one.name, one.name)] for one in fields(TrackOptions)}
        options = TrackOptions(**{k: value for k, value in asked.items() if value is not None})
        with running(args, "bases") as how:
            targets = predict_track(
                args.model, args.genome, args.output, regions=args.regions, options=options,
                calls=args.calls, strict=args.strict, prompt=args.prompt, **how,
            )  # fmt: skip
            note(f"wrote {' and '.join(map(str, [*targets, *filter(None, [args.calls])]))}")
        return
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
    why = "for a track along a genome (an output that ends in .bw or .bed, and no input)"
    refuse_unused(args, f"class overlap stitch calls {calls}", why)
    source = source_of(args)
    with running(args, "sequences") as how:
        target = predict_file(args.model, source, args.output, **given(args, PredictOptions), **how)
        note(f"wrote {target}")


_LOGO_BASES = 120  # bases that can be read across a page


def _add_attribute(parser: VerbParser) -> None:
    add = parser.add_argument
    parser.add_source(".parquet, .npz, or .bw for the intervals of a BED file")
    parser.add_keywords(AttributeOptions)
    add("--seqlets", type=str, metavar="FILE", help="table of the runs of bases that stand out "
        "(.tsv, .parquet, or .bed for intervals)")  # fmt: skip
    add("--motifs", type=str, metavar="MEME", help="name them by the motifs of a MEME file, in the "
        "table and in the logo")  # fmt: skip
    add("--modisco", type=str, metavar="PREFIX", help="arrays for modisco motifs -s "
        "PREFIX.ohe.npz -a PREFIX.attr.npz")  # fmt: skip
    add("--logo", type=str, metavar="FILE", help="draw one sequence as a logo (.svg, .png or .pdf)")
    add("--logo-of", type=str, metavar="NAME", help="which sequence (default: the first)")
    add("--logo-from", type=int, help="first base of the logo, 1-based (default: 1)")
    add("--logo-bases", type=int, help=f"bases of the logo (default: {_LOGO_BASES})")
    add("--logo-stack", action="store_true", help="draw all four letters at each base, in place of "
        "the base that stands there at the height of their sum")  # fmt: skip
    parser.add_running()


def _attribute(args: Namespace) -> None:
    """Attribute an output of a model to the input bases: gradients or integrated gradients.

    The output is a class of a fine-tuned model (--target), or the log-likelihood of the sequence
    for a causal language model. .parquet and .npz hold a number for each base and four by letter;
    .bw is a track along the intervals of a BED file.
    """
    from megabase.inference.attribution import attribute_file
    from megabase.inference.motifs import SeqletFiles

    if args.logo is not None:
        if not str(args.output).lower().endswith(".parquet"):
            raise OutputError("for a logo write .parquet, which has the numbers by letter")
        from megabase.report.logos import check_logo

        if args.logo_from is not None and args.logo_from < 1:
            raise InputError(f"--logo-from counts from 1, found {args.logo_from}")
        bases = _LOGO_BASES if args.logo_bases is None else args.logo_bases
        check_logo(Path(args.logo), bases, args.overwrite)
    else:
        why = "for the picture, and --logo FILE is missing"
        refuse_unused(args, "logo_of logo_from logo_bases logo_stack", why)
    if args.method not in (None, "integrated_gradients"):
        why = f"for integrated gradients, and --method is {args.method}"
        refuse_unused(args, "baseline steps", why)
    source = source_of(args)
    if args.logo is not None:
        _check_logo(args, source)
    if args.seqlets is None and args.logo is None:
        why = "for names in a table (--seqlets FILE) or a logo (--logo FILE)"
        refuse_unused(args, "motifs", why)
    if args.shard:
        refuse_unused(args, "seqlets motifs modisco", "made of all sequences: leave --shard out")
    options = given(args, AttributeOptions)
    more = SeqletFiles(source, args.seqlets, args.motifs, args.modisco, args.overwrite)
    more.check(args.output, options)
    with running(args, "sequences") as how:
        target = attribute_file(args.model, source, args.output, **options, **how)
    note(f"wrote {target}")
    if args.shard:
        return
    seqlets = more.write(target)
    for path in more.paths:
        note(f"wrote {path}")
    if args.logo is not None:
        _draw_logo(args, source, target, seqlets)


def _check_logo(args: Namespace, source: SequenceInput) -> None:
    """Refuse a logo of a sequence or a base that the input does not have, before any work."""
    one = next((s for s in source.read() if args.logo_of in (None, s.name)), None)
    if one is None and args.logo_of is not None:
        raise InputError(f"{args.input}: has no sequence named {args.logo_of!r} (--logo-of)")
    if one is not None and (args.logo_from or 1) > len(one.codes):
        raise InputError(
            f"--logo-from {args.logo_from:,} is past the end of {one.name}, which has "
            f"{len(one.codes):,} bases"
        )


def _draw_logo(
    args: Namespace, source: SequenceInput, table: Path, seqlets: pl.DataFrame | None
) -> None:
    import numpy as np
    import polars as pl

    from megabase.genome.alphabet import decode
    from megabase.report.logos import save_logo

    frame = pl.scan_parquet(table).with_row_index("number")
    if args.logo_of is not None:
        frame = frame.filter(pl.col("name") == args.logo_of)
    found = frame.head(1).collect()
    if not found.height:
        raise InputError(f"{table}: has no sequence named {args.logo_of!r}")
    row = found.row(0, named=True)
    first = args.logo_from or 1
    part = slice(first - 1, first - 1 + (args.logo_bases or _LOGO_BASES))
    if args.logo_stack:
        bases, values = None, np.array(row["letters"], dtype=np.float32).reshape(-1, 4)
    else:
        bases = next(decode(one.codes) for one in source.read() if one.name == row["name"])[part]
        values = np.array(row["values"], dtype=np.float32)
    path = Path(args.logo)
    method = (args.method or "integrated_gradients").replace("_", " ")
    spans: list[tuple[int, int, str]] = []
    if seqlets is not None:
        named = seqlets.filter(pl.col("number") == row["number"], pl.col("motif").is_not_null())
        spans = named.select("start", "end", "motif").rows()
    save_logo(
        path, values[part], bases, title=str(row["name"]), ylabel=method, first=first,
        overwrite=args.overwrite, spans=spans,
    )  # fmt: skip
    note(f"wrote {path}")


# fmt: off
VERBS = {
    "embed": Verb(_add_embed, _embed, (
        "megabase embed default genes.fa -o genes.h5ad",
        "megabase embed runs/mine peaks.bed --genome hg38.mb -o peaks.parquet --strands both",
        "megabase embed default genes.fa -o genes.parquet --plot map.png --labels biotypes.tsv",
    )),
    "predict": Verb(_add_predict, _predict, (
        "megabase predict runs/tuned candidates.fa -o labels.tsv",
        "megabase predict default candidates.fa --prompt runs/p/prompt -o labels.tsv",
        "megabase predict runs/coding --genome hg38.mb --regions chr20 -o coding.bw --calls "
        "coding.bed",
    )),
    "attribute": Verb(_add_attribute, _attribute, (
        "megabase attribute default seqs.fa -o why.parquet --logo why.png",
        "megabase attribute runs/tuned seqs.fa --target promoter -o why.parquet --seqlets why.tsv "
        "--motifs jaspar.meme",
    )),
}
