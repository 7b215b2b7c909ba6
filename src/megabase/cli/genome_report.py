"""The genome page of ``megabase report``: what a model makes of a region, or of variants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.errors import ConfigError
from megabase.genome.files import check_output

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from megabase.genome.interval import Interval
    from megabase.genome.store import GenomeStore
    from megabase.models.loading import Loaded
    from megabase.report.genome_page import FeatureTrack, Logo, SignalTrack, VariantTable

__all__ = ["write_genome_page"]

_MOST_BASES = 500_000  # of model tracks; a page of more is slow to draw
_MOST_SATURATED = 2_000
_REASON = "MB_REASON"  # INFO field of megabase variants: why an allele has no score
_AROUND = 24  # bases on either side of a variant that its own logo shows


@dataclass
class _Shown:
    """What a page is made of, before it is put together."""

    store: GenomeStore
    places: list[Interval]
    tracks: list[FeatureTrack | SignalTrack]
    logos: list[Logo]
    numbers: list[tuple[str, str, str]]
    facts: list[tuple[str, str]]


def write_genome_page(args: Namespace) -> Path:
    """Make the page that the arguments of ``megabase report`` ask for.

    Raises
    ------
    MegabaseError
        For input, a model or an output that cannot be used.
    """
    from megabase.data.sources import genome_store
    from megabase.genome.files import write_whole
    from megabase.models.loading import load

    if args.genome is None:
        raise ConfigError("--genome is missing: a page of a region or of variants needs a genome")
    target = Path(args.output or "genome.html")
    check_output(target, args.overwrite)
    with genome_store(args.genome) as store:
        variants = None if args.vcf is None else _read_variants(args, store)
        places = _places(args, store, variants)
        shown = _Shown(store, places, [], [], [], [])
        model = None if args.no_model else load(args.run, head="language", device=args.device)
        write_whole(target, _compose(args, shown, variants, model), args.overwrite)
    return target


def _places(args: Namespace, store: GenomeStore, variants: Any) -> list[Interval]:
    """Give the stretches that the page carries."""
    from megabase.genome.interval import Interval

    if args.region is not None:
        places = [store.region(args.region)]
    else:
        ends: list[Interval] = []
        for contig, start, end in sorted(variants.select("contig", "start", "end").rows()):
            low = max(0, start - args.flank)
            high = min(store.contig(contig).length, end + args.flank)
            if ends and ends[-1].contig == contig and low <= ends[-1].end:
                ends[-1] = Interval(contig, ends[-1].start, max(high, ends[-1].end))
            else:
                ends.append(Interval(contig, low, high))
        places = ends
    total = sum(place.length for place in places)
    if total > _MOST_BASES:
        raise ConfigError(
            f"the page would carry {total:,} bases, more than {_MOST_BASES:,}; take a smaller "
            "--region, fewer variants, or a smaller --flank"
        )
    return places


def _read_variants(args: Namespace, store: GenomeStore) -> Any:
    """Read the variants with their numeric INFO fields, those inside the region if there is one."""
    import polars as pl

    from megabase.genome.tables import read_vcf
    from megabase.genome.vcf import float_info_keys, read_vcf_header

    keys: list[str] = list(args.info) or float_info_keys(read_vcf_header(args.vcf))
    frame = read_vcf(args.vcf, store, info=[*keys, _REASON], strict=args.strict)
    for key in keys:
        values = pl.col(key).str.split(",")
        one = pl.when(values.list.len() > 1).then(
            values.list.get(pl.col("allele"), null_on_oob=True)
        )
        frame = frame.with_columns(
            one.otherwise(values.list.first()).cast(pl.Float64, strict=False).alias(key)
        )
    if args.region is not None:
        place = store.region(args.region)
        frame = frame.filter(
            (pl.col("contig") == place.contig)
            & (pl.col("start") >= place.start)
            & (pl.col("end") <= place.end)
        )
    if not frame.height:
        raise ConfigError(f"{args.vcf}: has no variant" + (" in the region" * bool(args.region)))
    # Files written before the field had one value for each allele hold all of them in each row.
    reasons = pl.col(_REASON).str.split(",")
    reason = pl.when(reasons.list.len() > 1).then(
        reasons.list.get(pl.col("allele"), null_on_oob=True)
    )
    reason = reason.otherwise(reasons.list.first()).replace(".", None).alias("reason")
    return frame.select(
        "contig", "start", "end", "ref", "alt", "id", "record", "qual", "filter", reason, *keys
    )


def _compose(args: Namespace, shown: _Shown, variants: Any, model: Loaded | None) -> str:
    from megabase.evaluate.provenance import file_digest
    from megabase.genome.alphabet import decode
    from megabase.genome.interval import Interval
    from megabase.report.genome_page import GenomePage, Region, build_genome_page
    from megabase.report.genome_tracks import genes_track, track_kind

    store, places = shown.store, shown.places
    total = sum(place.length for place in places)
    shown.numbers.append((f"{total:,}", "", "bases shown"))
    shown.facts += [("genome", store.name), ("genome sha256", store.checksum)]
    genes = None
    if args.genes is not None:
        track_kind(args.genes, ["genes"])
        genes = genes_track(args.genes, store, places, strict=args.strict)
    if genes is not None:
        shown.tracks.append(genes)
        shown.facts.append(("genes", Path(str(args.genes)).name))
    table = None
    if variants is not None:
        table = _variant_parts(shown, variants, genes)
        shown.facts.append(
            ("variants", f"{Path(str(args.vcf)).name}, sha256 {file_digest(str(args.vcf))}")
        )
    if args.saturate is not None and model is None:
        raise ConfigError("--saturate asks the model about changes; leave --no-model out")
    more, facts = _more_tracks(args, store, places)  # a bad file is said before the model works
    if model is not None:
        _model_parts(args, shown, variants, model)
    if args.saturate is not None and model is not None:
        _saturation_parts(args, shown, model)
    shown.tracks += more
    shown.facts += facts
    stretches = [
        Region(
            place.contig,
            place.start,
            decode(store.fetch(Interval(place.contig, place.start, place.end))),
            store.contig(place.contig).length,
        )
        for place in places
    ]
    first = places[0]
    where = str(first)
    if args.region is None and variants is not None:
        where = _records(variants)
    return build_genome_page(
        GenomePage(
            title=f"{where} of {store.name}",
            lead=_lead(model, variants),
            genome=store.name,
            regions=stretches,
            locus=str(Interval(first.contig, first.start, first.end)),
            tracks=shown.tracks,
            logos=shown.logos,
            table=table,
            numbers=shown.numbers,
            facts=shown.facts,
        )
    )


def _more_tracks(
    args: Namespace, store: GenomeStore, places: list[Interval]
) -> tuple[list[FeatureTrack | SignalTrack], list[tuple[str, str]]]:
    """Read the files of ``--track``; give the tracks, and what the page says of the files."""
    from megabase.evaluate.provenance import file_digest
    from megabase.report.genome_tracks import (
        bed_track,
        bedgraph_track,
        genes_track,
        track_kind,
    )

    tracks: list[FeatureTrack | SignalTrack] = []
    facts: list[tuple[str, str]] = []
    for text in args.track:
        name, _, path = text.rpartition("=")
        path = path or text
        label = name or Path(path).name.removesuffix(".gz").rpartition(".")[0] or path
        if not Path(path).is_file():
            raise ConfigError(f"there is no track {path}")
        kind = track_kind(path)
        if kind == "bigwig":
            tracks.append(_bigwig_track(path, label, places))
        elif kind == "bedgraph":
            tracks.append(bedgraph_track(path, store, places, label))
        elif kind == "genes":
            tracks.append(genes_track(path, store, places, label, strict=args.strict))
        else:
            tracks.append(bed_track(path, store, places, label, strict=args.strict))
        facts.append((f"track {label}", f"{Path(path).name}, sha256 {file_digest(path)}"))
    return tracks, facts


def _lead(model: Loaded | None, variants: Any) -> str:
    parts: list[str] = []
    if model is not None:
        view = "both sides of" if model.masked else "what stands before"
        parts.append(
            f"What the model {model.name} expects at every base, from {view} it. Zoom in for "
            "letters: they follow the view."
        )
    if variants is not None:
        parts.append("A click on a row of the table shows the variant.")
    return " ".join(parts) or "The genome, and tracks along it."


def _variant_parts(shown: _Shown, variants: Any, genes: FeatureTrack | None) -> VariantTable:
    """Add the track of variants and give their table."""
    from megabase.genome.interval import one_based
    from megabase.report.genome_page import Column, Feature, FeatureTrack, TableRow, VariantTable
    from megabase.report.genome_tracks import genes_at

    # Columns after the first ten are scores; of what every VCF may hold, what this one does.
    keys = variants.columns[10:]
    given = [name for name in ("qual", "filter", "reason") if variants[name].is_not_null().any()]
    columns = [
        Column("contig"),
        Column("position", "place"),
        Column("ref"),
        Column("alt"),
        Column("id", minor=True),
        *([Column("gene", minor=True)] if genes is not None else []),
        *(Column(name, "number", 1, minor=True) for name in given if name == "qual"),
        *(Column(name, minor=True) for name in given if name == "filter"),
        *(Column(key, "number") for key in keys),
        *(Column("no score because") for name in given if name == "reason"),
    ]
    rows: list[TableRow] = []
    features: list[Feature] = []
    for row in variants.iter_rows(named=True):
        place = contig, start, end = row["contig"], row["start"], row["end"]
        gene = [genes_at(genes, *place)] if genes is not None else []
        facts = [row[name] for name in given if name != "reason"]
        cells = [contig, one_based(start), row["ref"], row["alt"] or "", row["id"] or "", *gene]
        cells += [*facts, *(row[key] for key in keys)]
        cells += [row["reason"] or ""] if "reason" in given else []
        rows.append(TableRow(contig, start, end, tuple(cells)))
        features.append(Feature(contig, start, end, f"{row['ref']}>{row['alt'] or '.'}"))
    shown.tracks.append(FeatureTrack("variants", tuple(features), color="#b4530a", height=50))
    alleles = variants["alt"].count()  # a record without an alternative has a row too
    shown.numbers.append((f"{alleles:,}", f"in {_records(variants)}", "alternative alleles"))
    return VariantTable(tuple(columns), tuple(rows))


def _records(variants: Any) -> str:
    number = variants["record"].n_unique()
    return f"{number:,} VCF record{'s' if number != 1 else ''}"


def _model_parts(args: Namespace, shown: _Shown, variants: Any, model: Loaded) -> None:
    """Add what the model expects, and how a variant changes that."""
    import numpy as np

    from megabase.evaluate.base_probabilities import base_probabilities, log_likelihood
    from megabase.report.genome_page import Logo, Segment, SignalTrack

    seen: list[Segment] = []
    for place in shown.places:
        found = base_probabilities(
            model, shown.store, place, window=args.window, batch_tokens=args.batch_tokens
        )
        own = log_likelihood(found, shown.store.fetch(place))
        seen.append(Segment(place.contig, place.start, own))
        shown.logos.append(
            Logo(
                "What the model expects",
                "Letters as high as their information in bits.",
                place.contig,
                place.start,
                found,
                "probability",
            )
        )
    # Against knowing nothing (1/4 for every base), so that the line at zero means something.
    above = tuple(Segment(s.contig, s.start, s.values + np.log(4)) for s in seen)
    shown.tracks.append(
        SignalTrack("log-likelihood above uniform (nats)", above, below="#b4530a", height=80)
    )
    every = np.concatenate([segment.values for segment in seen])
    perplexity = float(np.exp(-np.nanmean(every))) if np.isfinite(every).any() else float("nan")
    shown.numbers.append((f"{perplexity:.3f}", "of 4", "perplexity of the model here"))
    shown.facts += [("model", model.name), ("model sha256", model.digest)]
    if variants is not None:
        shown.logos += _alternatives(args, shown.store, variants, model)


def _saturation_parts(args: Namespace, shown: _Shown, model: Loaded) -> None:
    """Add what every substitution of a stretch would change."""
    import numpy as np

    from megabase.genome.alphabet import BASES
    from megabase.inference.saturation import saturate
    from megabase.report.genome_page import Logo, Segment, SignalTrack

    place = shown.store.region(args.saturate)
    if not any(shown_place.contains(place) for shown_place in shown.places):
        raise ConfigError(f"--saturate {place} does not lie in what the page shows")
    if place.length > _MOST_SATURATED:
        raise ConfigError(
            f"--saturate {place} has {place.length:,} bases, more than {_MOST_SATURATED:,} (three "
            "changes each); take a shorter stretch, or add the bigWig of megabase saturate as a "
            "track"
        )
    found = saturate(
        place, shown.store, model.model, window=args.window, batch_tokens=args.batch_tokens
    )
    method = next(iter(found.scores))
    effects = found.scores[method].copy()
    for number, base in enumerate(found.ref):
        if base in BASES:
            effects[number, BASES.index(base)] = np.nan
    mean = Segment(place.contig, place.start, -found.importance(method))
    name = f"mean effect of a substitution ({method})"
    shown.tracks.append(SignalTrack(name, (mean,), below="#b4530a", height=80))
    shown.logos.append(
        Logo(
            "What a substitution would change",
            f"Letters as high as the mean loss of the three changes ({method}); below, each "
            "change: red for less likely, blue for more.",
            place.contig,
            place.start,
            effects,
            "effects",
        )
    )
    shown.facts.append(("substitutions", f"{place}, {method}, both strands"))


def _alternatives(args: Namespace, store: GenomeStore, variants: Any, model: Loaded) -> list[Logo]:
    """Give what the model expects around each variant when the alternative stands there."""
    import numpy as np

    from megabase.evaluate.base_probabilities import sequence_probabilities
    from megabase.genome.alphabet import encode
    from megabase.genome.interval import Interval, one_based
    from megabase.report.genome_page import Logo

    window = args.window or min(1024, model.longest or 1024)
    rows: list[Any] = []
    kept: list[tuple[int, str, int, int, str, str]] = []
    for number, (contig, start, end, ref, alt) in enumerate(
        variants.select("contig", "start", "end", "ref", "alt").rows()
    ):
        if alt is None or not set(alt) <= set("ACGTN") or len(alt) > window // 4:
            continue
        length = store.contig(contig).length
        after = min(length, end + _AROUND)
        lead = window - len(alt) - (after - end)
        begin = max(0, start - (window // 2 if model.masked else lead))
        parts = [encode(alt)]
        if begin < start:
            parts.insert(0, store.fetch(Interval(contig, begin, start)))
        if end < after:
            parts.append(store.fetch(Interval(contig, end, after)))
        rows.append(np.concatenate(parts))
        kept.append((number, contig, start, start - begin, ref, alt))

    def record(row: int) -> str:
        _, contig, start, _, ref, alt = kept[row]
        return f"{contig}:{one_based(start):,}:{ref}>{alt}"

    found = sequence_probabilities(model, rows, batch_tokens=args.batch_tokens, record=record)
    logos: list[Logo] = []
    for (number, contig, start, lead, ref, alt), values in zip(kept, found, strict=True):
        low = max(0, lead - _AROUND)
        shift = "" if len(ref) == len(alt) else " Places after it are those of the alternative."
        note = f"The same with {alt[:20]} in place of {ref[:20]}.{shift}"
        logos.append(
            Logo(
                "With the variant",
                note,
                contig,
                start - (lead - low),
                values[low:],
                "probability",
                number,
            )
        )
    return logos


def _bigwig_track(path: str, name: str, places: list[Interval]) -> SignalTrack:
    import numpy as np

    from megabase.inference.bigwig import check_bigwig
    from megabase.inference.tracks import require_bigwig
    from megabase.report.genome_page import Segment, SignalTrack
    from megabase.untrusted import parsing

    require_bigwig("reading bigWig")
    import pybigtools

    segments: list[Segment] = []
    with parsing(Path(path), ConfigError, "it is damaged or not a bigWig file"):
        check_bigwig(Path(path))
        opened: Any = pybigtools.open(path)
        lengths = dict(opened.chroms())
        for place in places:
            if place.contig in lengths:
                found = opened.values(place.contig, place.start, place.end, fillna=None)
                values = np.asarray(found, dtype=np.float32)
                segments.append(Segment(place.contig, place.start, values))
    if not segments:
        raise ConfigError(f"{path}: has none of the contigs shown ({places[0].contig})")
    return SignalTrack(name, tuple(segments), color="#2f7d4f", below="#b4530a")
