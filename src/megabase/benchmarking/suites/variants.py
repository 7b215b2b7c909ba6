"""Labeled variants: which scores find the damaging ones, without training on the labels.

``DATA`` is a table (CSV, TSV, Parquet, for ClinVar VCF) in a published layout, or a folder of them,
each a task. Beside every model and method stand rows that need no network: the kind of the change,
CpG, a Markov model, k-mer counts, with an annotation the distance to the nearest exon and a rule of
consequences, and columns of the table.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.benchmarking.config import BenchmarkConfig, ModelEntry, VariantsConfig
from megabase.benchmarking.suites import RECORD_FORMAT, Suite, choose_tasks
from megabase.data.label_files import read_frame, read_parquet
from megabase.data.regions import Regions
from megabase.data.sources import genome_store
from megabase.errors import InputError, InputWarning, warn
from megabase.evaluate.markov import train_markov
from megabase.evaluate.metrics import VARIANT_METRICS, measure_variants
from megabase.genome.alphabet import decode, encode, pack_kmers
from megabase.genome.consequences import SEVERITY, Annotation
from megabase.genome.files import file_digest, without_nan, write_json, write_whole
from megabase.genome.interval import one_based
from megabase.genome.left_out import LeftOut, Reason
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.variants.calibration import columns, context_of
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.vcf_file import score_variants_file
from megabase.models.loading import load
from megabase.untrusted import parsing

_Values = NDArray[np.float64]
_INSTRUCTIONS = "name a table of labeled variants, or a folder of them (docs/variants.md)"
"""Said where there are no data."""
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq", ".vcf", ".bcf")
"""Endings of tables, compression left out."""
_TRANSITIONS = ("AG", "GA", "CT", "TC")
"""Changes of a purine to a purine, or of a pyrimidine to a pyrimidine."""
_TURNED = 0.45  # AUROC below which, with its interval below a half, a sign looks turned
_ORDER, _WORD = 10, 8
"""Highest order of the Markov model and longest k-mer: what a genome of gigabases can fill."""


class _Layout(NamedTuple):
    """Where a layout has what."""

    columns: Mapping[str, str] = {}
    """Roles (`_ROLES`; pos is 1-based) whose column is named otherwise."""
    positive: tuple[str, ...] = ("1", "true", "yes")
    negative: tuple[str, ...] = ()
    """Rows with neither label are left out; empty: all others are negative."""
    used: str | None = None  # column that is true for the rows that count


_OPTIONAL = ("match_group", "subset")  # columns that a table need not have
_ROLES = ("chrom", "pos", "ref", "alt", "label", *_OPTIONAL)  # columns of a table
_OF_VAR = {"ref": "var.allele1", "alt": "var.allele2"}  # alleles in the tables of QTL
_LAYOUTS = {
    "table": _Layout(),
    "traitgym": _Layout({"subset": "consequence"}),
    "clinvar": _Layout(
        {}, ("pathogenic", "likely_pathogenic", "pathogenic/likely_pathogenic"),
        ("benign", "likely_benign", "benign/likely_benign"),
    ),
    "brca1": _Layout(
        {"chrom": "chromosome", "pos": "position (hg19)", "ref": "reference", "label": "func.class",
         "subset": "consequence"}, ("lof",), ("func", "int"),
    ),
    "brca2": _Layout(
        {"label": "class"}, ("lof", "p strong", "p moderate", "p supporting"),
        ("func/int", "b strong", "b moderate", "b supporting"),
    ),
    "caqtl": _Layout(
        {**_OF_VAR, "chrom": "var.chr", "pos": "var.pos_hg38", "label": "obs.label"},
        ("1",), ("0", "-1"), "var.isused",
    ),
    "dsqtl": _Layout(
        {**_OF_VAR, "chrom": "var.chrom", "pos": "var.pos", "label": "var.label"},
        ("1",), ("0", "-1"),
    ),
}  # fmt: skip
"""Layouts by name (docs/variants.md says of which release)."""
_STARS = (
    ("practice_guideline", 4), ("expert_panel", 3), ("multiple_submitters", 2), ("single", 1),
    ("conflicting", 1),
)  # fmt: skip
"""Words of CLNREVSTAT and the review stars that ClinVar gives them, the most first."""
_FOREIGN = 0.2
"""Share of rows with another REF above which a table is of another assembly, as for VCF files."""


class _Table(NamedTuple):
    records: list[VcfRecord]
    frame: pl.DataFrame
    """A row for each record: label (Boolean), match_group and subset where there are such (text),
    and all columns of the file."""
    notes: list[str]


def _read_table(path: Path, store: Genome, chosen: VariantsConfig) -> _Table:
    """Read a table of labeled variants, and turn alleles that are exchanged."""
    layout, notes = _LAYOUTS[chosen.layout], list[str]()
    frame = _clinvar(path, chosen.min_stars) if chosen.layout == "clinvar" else read_frame(path)
    names = {role: role for role in _ROLES} | dict(layout.columns) | chosen.columns
    lacking = [
        column for role, column in names.items()
        if column not in frame.columns and (role not in _OPTIONAL or role in chosen.columns)
    ]  # fmt: skip
    if strange := [role for role in chosen.columns if role not in _ROLES]:
        names = ", ".join(strange)
        raise InputError(f"variants.columns names {names}; it is for {', '.join(_ROLES)}")
    if lacking:
        raise InputError(
            f"{path} has no column {', '.join(lacking)}; it has {', '.join(frame.columns)[:200]}. "
            f"Name others by variants.columns ({', '.join(_ROLES)} -> column)"
        )
    own = {role: column for role, column in names.items() if column in frame.columns}

    def text(column: str) -> pl.Expr:
        return pl.col(column).cast(pl.String).str.to_lowercase().str.strip_suffix(".0")

    if layout.used is not None and layout.used in frame.columns:
        frame = frame.filter(text(layout.used).is_in(["true", "1"]))
    positive = [word.lower() for word in chosen.positive] or layout.positive
    frame = frame.with_columns(text(own["label"]).alias("_label"))
    known = frame.drop_nulls("_label")
    if layout.negative:
        known = known.filter(pl.col("_label").is_in([*positive, *layout.negative]))
    if known.height < frame.height:
        notes.append(f"{frame.height - known.height:,} rows with other labels are left out")
    label = known["_label"].is_in(positive)
    if label.all() or not label.any():
        raise InputError(
            f"{path}: expected rows of both labels, found {int(label.sum()):,} positive ones "
            f"({', '.join(positive)}) among {known.height:,}; name them by variants.positive"
        )
    with parsing(path, InputError, "expected whole numbers as positions"):
        position = known[own["pos"]].cast(pl.Int64) - (0 if chosen.zero_based else 1)
    roles = {role: known[own[role]].cast(pl.String) for role in _OPTIONAL if role in own}
    known = known.drop("_label").with_columns(label=label, **roles)
    alleles = (known[own[role]].cast(pl.String).fill_null("") for role in ("chrom", "ref", "alt"))
    chrom, ref, alt = (series.to_list() for series in alleles)
    rows = list(zip(chrom, position.fill_null(-1).to_list(), ref, alt, strict=True))
    return _placed(path, store, rows, _Table([], known, notes), chosen.swapped)


def _placed(
    path: Path, store: Genome, rows: list[tuple[str, int, str, str]], table: _Table, swapped: str
) -> _Table:
    """Keep the rows whose REF the genome has, of those with exchanged alleles turned."""
    left, kept, turned, moved = LeftOut(path, "row"), list[int](), 0, 0
    for number, (chrom, position, ref, alt) in enumerate(rows):
        contig = store.find_contig(chrom)
        record = VcfRecord.of(number + 1, chrom, position, ref, alt)
        reason: Reason | None = record.check(store, contig) or record.check_allele(alt)
        if reason == "REF_MISMATCH" and contig is not None and len(ref) == len(alt):
            other = VcfRecord.of(number + 1, chrom, position, alt, ref)
            if other.check(store, contig) is None:
                if swapped == "refuse":
                    raise InputError(
                        f"{path}, row {number + 1:,}: the genome has ALT {alt!r} and not REF "
                        f"{ref!r}; the alleles are exchanged (variants.swapped=turn exchanges them)"
                    )
                record, turned = other, turned + 1
                reason = other.check_allele(ref)
        if reason is None and contig is not None:
            site = store.contigs[contig].name, position, record.ref, *record.alts
            table.records.append(VcfRecord.of(number + 1, *site))
            kept.append(number)
        elif reason is not None:
            if reason == "REF_MISMATCH" and contig is not None:
                around = decode(store.view(contig)[max(0, position - 1) : position + 2])
                moved += ref.upper() in (around[:1], around[2:])
            left.add(reason, number + 1, lambda r=record, why=reason: r.why_unusable(store, why))
    mismatches = left.counts.get("REF_MISMATCH", 0)
    if mismatches > max(1, _FOREIGN * len(rows)):
        near = f"; one base beside, {moved:,} of them agree (variants.zero_based?)" * (moved > 0)
        raise InputError(
            f"{path}: REF differs from genome {store.name!r} in {mismatches:,} of {len(rows):,} "
            f"rows{near}; is the table made for another assembly?"
        )
    left.report(len(kept))
    notes = [f"{count:,} rows left out: {why}" for why, count in left.counts.items()]
    if turned:
        said = f"{turned:,} of {len(kept):,} rows have REF and ALT exchanged, and were turned"
        warn(f"{path}: {said}; a model's score is of ALT against what the genome has", InputWarning)
        notes.append(said)
    return _Table(table.records, table.frame[kept], [*table.notes, *notes])


def _clinvar(path: Path, min_stars: int) -> pl.DataFrame:
    """Read a VCF of ClinVar: the label is CLNSIG, the subset the most severe consequence of MC."""
    rows: list[tuple[str, int, str, str, str, str]] = []
    for record in VcfRecord.read(path, sites=True):
        info = dict(re.findall(r"(\w+)=([^;]*)", record.fields[7]))
        review = info.get("CLNREVSTAT", "").lower()
        stars = next((stars for word, stars in _STARS if word in review), 0)
        if stars < min_stars or "no_assertion" in review:
            continue
        terms = [one.partition("|")[2] for one in info.get("MC", "").split(",")]
        terms = ["stop_gained" if term == "nonsense" else term for term in terms]
        known = sorted((SEVERITY.index(term), term) for term in terms if term in SEVERITY)
        subset = known[0][1] if known else terms[0] or "other"
        for alt in record.alts:
            rows.append((record.contig, one_based(record.position), record.ref, alt,
                         info.get("CLNSIG", ""), subset))  # fmt: skip
    schema = ["chrom", "pos", "ref", "alt", "label", "subset"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _tables(config: BenchmarkConfig) -> dict[str, Path]:
    """Find the tables by the names of their tasks."""
    root = config.folder(_INSTRUCTIONS)
    files = [root] if root.is_file() else sorted(p for p in root.iterdir() if p.is_file())
    ours = [p for p in files if p.name.lower().removesuffix(".gz").endswith(_SUFFIXES)]
    if not ours:
        raise InputError(f"{root} holds no table; {_INSTRUCTIONS}")
    return {
        p.absolute().parent.name if p.name.startswith("test.") else p.name.split(".")[0]: p
        for p in ours
    }


def _names(config: BenchmarkConfig) -> list[str]:
    if config.variants.genome is None:
        raise InputError("variants needs variants.genome=...: a genome store or FASTA file")
    if config.metric is not None and config.metric not in VARIANT_METRICS:
        raise InputError(f"{config.metric} is not one of {', '.join(VARIANT_METRICS)}")
    return choose_tasks(list(_tables(config)), config.task_names, str(config.data))


def _run(
    config: BenchmarkConfig, name: str, output: Path, show: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure all baselines, models and methods on a table."""
    chosen, path, records = config.variants, _tables(config)[name], list[dict[str, Any]]()
    metric = config.metric or next(iter(VARIANT_METRICS))
    with genome_store(chosen.genome or "") as store:
        table = _read_table(path, store, chosen)
        frame, folder = table.frame, output / "runs" / f"variants.{name}"
        label = frame["label"].to_numpy()
        contigs = [record.contig for record in table.records]
        group = [str(number) for number in range(frame.height)]
        if "match_group" in frame.columns:
            group = frame["match_group"].fill_null("").to_list()
        subsets = frame["subset"].fill_null("") if "subset" in frame.columns else None
        about = {
            "format": RECORD_FORMAT, "suite": "variants", "task": name, "compare": None,
            "overrides": {}, "key": file_digest(path)[:8], "protocol": "zero-shot", "recipe": None,
            "seed": 0, "fold": None, "metric": metric, "metrics": list(VARIANT_METRICS),
            "kind": "classes", "classes": ["negative", "positive"], "groups": {}, "official": False,
            "length": None, "published": [], "settings": {}, "valid": {}, "tuning_seconds": 0.0,
            "rows": {"test": len(label)},
            "test_rows": file_digest(path), "chosen": {}, "trained_parameters": 0,
        }  # fmt: skip
        rows = chain(
            _baselines(table, store, chosen.genes, chosen.scores),
            *(_model_rows(config, entry, table, store, folder) for entry in config.entries
              if not entry.is_baseline),
        )  # fmt: skip
        for number, (title, start, values, facts) in enumerate(rows):
            slug = re.sub(r"[^\w.-]", "-", title)
            file = folder / slug / "record.json"
            if file.is_file():
                records.append(json.loads(file.read_text()))
                continue
            found = measure_variants(values, label, contigs, subsets, group, config.bootstrap)
            notes = [f"{label.sum():,} of the rows are positive", *table.notes]
            if lacking := int((~np.isfinite(values)).sum()):
                notes.append(f"{title} has no score for {lacking:,} rows")
            area = found["auroc"]
            if area.high < 0.5 and area.value < _TURNED:
                notes.append(
                    f"{title}: AUROC {area.value:.3f} ({area.low:.3f} to {area.high:.3f}) lies "
                    "below 0.5: the sign of the labels or of this score looks turned"
                )
            record = without_nan({
                **about, "model": title, "start": start, "folder": slug, "number": number, **facts,
                "test": {key: one.value for key, one in found.items()},
                "intervals": {key: [one.low, one.high] for key, one in found.items()
                              if not math.isnan(one.value)}, "notes": notes,
            })  # fmt: skip
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, record)
            records.append(record)
            show(f"{name}  {title}: AUROC {area.value:.4f}")
    return records


_Row = tuple[str, str, _Values, dict[str, Any]]
"""Title, model, scores that are higher for damaging variants, and further fields of a record."""


def _model_rows(
    config: BenchmarkConfig, entry: ModelEntry, table: _Table, store: Genome, folder: Path
) -> Iterator[_Row]:
    """Score the variants with a model by every method."""
    chosen, start = config.variants, entry.model_fields()
    spec: Any = start.get("model")
    if spec is None or start.get("from_scratch"):
        spec = entry.open(("causal-lm", "masked-lm"))
    model = load(spec, head="language")
    wrong = {"log_probs" if model.masked else "masked", "tracks"}
    cheap = [name for name, method in METHODS.items() if not wrong & method.needs]
    names = chosen.method_names or cheap  # those of one pass for each allele
    vcf, scores = folder / "variants.vcf", folder / f"{Path(entry.name).name}.parquet"
    begun = time.perf_counter()
    wanted = columns(names, chosen.calibration is not None)
    # An older version may have scored by fewer methods.
    if not scores.is_file() or not {*wanted} <= {*pl.read_parquet_schema(scores)}:
        folder.mkdir(parents=True, exist_ok=True)
        head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        write_whole(vcf, head + "".join("\t".join(r.fields) + "\n" for r in table.records))
        score_variants_file(
            model, vcf, store.path, scores, methods=names, window=chosen.window,
            calibration=chosen.calibration, workers=chosen.workers, overwrite=True,
        )  # fmt: skip
    frame = read_parquet(scores, InputError)
    facts = {
        "family": str(model.model.config.model_type),
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "seconds": time.perf_counter() - begun, "training_seconds": 0.0,
    }  # fmt: skip
    for column in wanted:
        if not column.endswith("_percentile"):  # ranks as the score within a class
            method = METHODS[column.removesuffix("_z")]
            values = frame[column].fill_null(math.nan).to_numpy() * method.damaging
            yield f"{entry.name} {column}", entry.start, values, facts


def _baselines(
    table: _Table, store: Genome, genes: str | None, scores: list[str]
) -> Iterator[_Row]:
    """Score the variants without a network."""

    def row(title: str, values: Any) -> _Row:
        facts = {"family": title, "parameters": 0, "seconds": 0.0, "training_seconds": 0.0}
        return title, title, np.asarray(values, dtype=np.float64), facts

    records = table.records
    views = [store.view(record.contig) for record in records]
    pairs = list(zip(records, views, strict=True))
    yield row("kind of change", [_kind(record, view) for record, view in pairs])
    yield row("CpG transition", [_at_cpg(record, view) for record, view in pairs])
    indices = sorted({store.contig_index(record.contig) for record in records})
    lengths = [int(store.lengths[index]) for index in indices]
    # A context is seen some dozen times on average, and a k-mer more often.
    order = min(_ORDER, max(1, int(math.log(sum(lengths), 4)) - 2))
    markov = train_markov(store, Regions.of(indices, [0] * len(indices), lengths), order)
    rates = markov.fitted_rates or 8.0
    word = min(_WORD, order + 1)
    counts = np.log(markov.counts(word - 1).ravel() + 1.0)
    ratios: list[tuple[float, float]] = []
    for record, view in pairs:
        at, end = record.position, record.position + len(record.ref)
        sums = []
        for allele in (record.ref, record.alts[0]):
            first = max(0, at - order)
            codes = np.concatenate((view[first:at], encode(allele), view[end : end + order]))
            log_p = markov.log_probabilities(codes, at - first, rates)[order]
            own = codes[max(0, at - first - word + 1) :][: 2 * word - 2 + len(allele)]
            kmers, known = pack_kmers(own, word)
            seen = counts[kmers[known]]
            sums.append((float(np.nansum(log_p)), float(seen.mean()) if len(seen) else math.nan))
        ratios.append((sums[0][0] - sums[1][0], sums[0][1] - sums[1][1]))
    yield row(f"Markov model, order {order}", [one for one, _ in ratios])
    yield row(f"k-mer counts, k {word}", [two for _, two in ratios])
    if genes is not None:
        annotation = Annotation.read(genes, store)
        exons = [(store.contig_index(t.contig), *span) for t in annotation.transcripts
                 for span in t.exons]  # fmt: skip
        merged = Regions.of(*(list(column) for column in zip(*exons, strict=True)))
        yield row("near an exon", [-_distance(merged, store, record) for record in records])
        yield row("consequence rule", [
            -SEVERITY.index(
                annotation.consequences(r.contig, r.position, r.ref, r.alts[0])[0].terms[0]
            )
            for r in records
        ])  # fmt: skip
    for name in scores:
        column = name.removeprefix("-")
        if column not in table.frame.columns:
            raise InputError(f"there is no column {column} of scores in the table")
        values = table.frame[column].cast(pl.Float64, strict=False).fill_null(math.nan).to_numpy()
        yield row(column, -values if name.startswith("-") else values)


def _kind(record: VcfRecord, view: NDArray[np.uint8]) -> int:
    """Rank the change: transition, transversion, longer substitution, insertion or deletion."""
    _, kind = context_of(view, record.position, record.ref, record.alts[0])
    if kind:
        return 2 if kind == 3 else 3
    changed = [a + b for a, b in zip(record.ref, record.alts[0], strict=True) if a != b]
    return int(changed[0].upper() not in _TRANSITIONS)


def _at_cpg(record: VcfRecord, view: NDArray[np.uint8]) -> bool:
    """Tell a transition of either base of a CpG."""
    pair = (record.ref + record.alts[0]).upper()
    shift = {"CT": 0, "GA": 1}.get(pair)
    if shift is None:
        return False
    first = record.position - shift
    return first >= 0 and (view[first : first + 2] & 7).tolist() == [1, 2]


def _distance(exons: Regions, store: Genome, record: VcfRecord) -> float:
    """Count the bases from a variant to the nearest exon; infinite on a contig without any."""
    own = exons.contig == store.contig_index(record.contig)
    before, after = record.position - exons.end[own] + 1, exons.start[own] - record.position
    return float(np.maximum(np.maximum(before, after), 0).min(initial=1 << 40))


SUITE = Suite(_names, None, run=_run)  # what the runner calls
