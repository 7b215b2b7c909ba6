"""BED, GFF and VCF files as polars frames with validated, 0-based half-open coordinates.

Every frame has the columns ``contig`` (String), ``start`` and ``end`` (Int64), in the order of the
file; given a store, contigs have the names that the store uses.
"""

import re
import urllib.parse
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pysam

from megabase.errors import InputError, UnknownContigError
from megabase.genome.files import atomic_file, numbered_lines
from megabase.genome.interval import Strand, zero_based
from megabase.genome.left_out import LeftOut
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord, row_unit

_NULL = "."  # how BED, GFF and VCF write that there is no value
_INTEGERS = ("start", "end", "thick_start", "thick_end", "block_count", "phase", "summit")
"""Columns of whole numbers in any of the formats."""
_FLOATS = ("score", "signal_value", "p_value", "q_value", "qual")
"""Columns of numbers in any of the formats."""
# Columns of the UCSC description of BED and of the ENCODE peak formats.
_BED6 = ("contig", "start", "end", "name", "score", "strand")
_PEAK = ("signal_value", "p_value", "q_value")  # shared by narrow and broad peaks
_BED_NAMES = {
    "bed": _BED6,
    "bed12": (*_BED6, "thick_start", "thick_end", "item_rgb", "block_count", "block_sizes",
              "block_starts"),
    ".narrowpeak": (*_BED6, *_PEAK, "summit"),
    ".broadpeak": (*_BED6, *_PEAK),
}  # fmt: skip
"""Names of the columns, as far as a file has them."""
_BED_DIRECTIVES = ("track", "browser")  # for the UCSC browser, not for us
_BED_HEADERS = ("start", "chromstart", "chrom_start", "begin")  # second cell of a header row
_GFF = ("contig", "source", "type", "start", "end", "score", "strand", "phase", "attributes")
"""The nine columns of GFF3 and GTF."""
_VCF = {
    "line": pl.Int64, "contig": pl.String, "start": pl.Int64, "end": pl.Int64, "ref": pl.String,
    "alt": pl.String, "id": pl.String, "qual": pl.String, "filter": pl.String, "info": pl.String,
    "record": pl.Int64, "allele": pl.Int64, "reason": pl.String,
}  # fmt: skip
"""Types are given because rows may all lack a value."""


@dataclass(frozen=True, slots=True)
class _RowSource:
    """The file of a frame, whose Int64 column ``line`` counts lines, or records of a BCF."""

    path: Path
    unit: str = "line"

    def refuse(
        self, frame: pl.DataFrame, wrong: pl.Expr, describe: Callable[[dict[str, Any]], str]
    ) -> None:
        """Raise an InputError about the first row where ``wrong`` holds."""
        row = frame.filter(wrong).head(1)
        if row.height:
            found = row.row(0, named=True)
            raise InputError(f"{self.path}, {self.unit} {found['line']:,}: {describe(found)}")

    def split(self, numbers: list[int], texts: list[str], names: Sequence[str]) -> pl.DataFrame:
        rows = {"line": numbers, "text": texts}
        frame = pl.DataFrame(rows, {"line": pl.Int64, "text": pl.String})
        self.refuse(
            frame,
            pl.col("text").str.count_matches("\t", literal=True) + 1 != len(names),
            lambda row: (
                f"expected {len(names)} columns separated by tabs, found "
                f"{row['text'].count(chr(9)) + 1}: {row['text'][:60]!r}"
            ),
        )
        fields = pl.col("text").str.split_exact("\t", len(names) - 1).alias("fields")
        frame = frame.with_columns(fields).select(
            "line", *(pl.col("fields").struct[i].alias(name) for i, name in enumerate(names))
        )
        no_contig = pl.col("contig").str.strip_chars() == ""
        self.refuse(frame, no_contig, lambda _: "the first column, the contig, is empty")
        return frame

    def cast_numbers(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Cast the columns that hold numbers; a dot is a missing value, except for coordinates."""
        for name in frame.columns:
            if name not in (*_INTEGERS, *_FLOATS):
                continue
            whole, place = name in _INTEGERS, name in ("start", "end")
            value = pl.col(name).cast(pl.Int64 if whole else pl.Float64, strict=False)
            empty = pl.lit(False) if place else pl.col(name).is_in([_NULL, ""])
            label = f"the {name} position" if place else f"column {name!r}"
            rule = f"{label} must be a {'whole ' * whole}number"
            self.refuse(
                frame,
                value.is_null() & ~empty,
                lambda row, name=name, rule=rule: f"{rule}, found {row[name]!r}",
            )
            frame = frame.with_columns(value)
        return frame

    def check(self, frame: pl.DataFrame, closed: bool = False) -> None:
        """Refuse a strand other than ``+``, ``-`` and ``.``, and coordinates that hold no base."""
        if "strand" in frame.columns:
            self.refuse(
                frame,
                ~pl.col("strand").is_in([str(strand) for strand in Strand]),
                lambda row: f"a strand is '+', '-' or '.', found {row['strand']!r}",
            )
        rule = "start < end (0-based, half-open)"
        rule = "start <= end (1-based, both included)" if closed else rule
        self.refuse(
            frame,
            pl.col("start") >= pl.col("end") + int(closed),
            lambda row: f"expected {rule}, found start {row['start']:,} and end {row['end']:,}",
        )

    def on_genome(
        self, frame: pl.DataFrame, store: Genome | None, left_out: LeftOut,
        circular: Collection[str] = (),
    ) -> pl.DataFrame:  # fmt: skip
        """Keep the rows that lie on the genome (any at 0 or later), under the store's names."""
        limit: pl.Expr = pl.lit(None, dtype=pl.Int64)
        known: dict[str, str] = {}
        if store is not None:
            known, frame = self._known(frame, store, left_out)
            lengths = {given: store.contig(name).length for given, name in known.items()}
            limit = pl.col("contig").replace_strict(lengths, default=None, return_dtype=pl.Int64)
        frame = frame.with_columns(limit=limit)
        over = (
            pl.col("contig").is_in(list(circular))
            & (pl.col("start") < pl.col("limit"))
            & (pl.col("end") > pl.col("limit"))
        ).fill_null(False)
        clipped = frame.filter(over).height
        if clipped:
            left_out.note = (
                f"{clipped:,} over the origin of a circular contig "
                f"{'end' if clipped > 1 else 'ends'} there"
            )
            frame = frame.with_columns(end=pl.when(over).then("limit").otherwise("end"))
        outside = (pl.col("start") < 0) | (pl.col("end") > pl.col("limit")).fill_null(False)
        wrong = frame.filter(outside)
        if wrong.height:
            row = wrong.row(0, named=True)
            if row["start"] < 0 or store is None:
                detail = f"the row begins before the first base of contig {row['contig']!r}"
            else:
                detail = (
                    f"the row ends at {row['end']:,}, past the end of contig "
                    f"{known[row['contig']]!r}, which has {row['limit']:,} bases in genome "
                    f"{store.name!r}; is it made for this genome build?"
                )
            left_out.add("OUTSIDE_CONTIG", row["line"], lambda: detail, count=wrong.height)
            frame = frame.filter(~outside)
        left_out.report(frame.height)
        return frame.with_columns(pl.col("contig").replace(known)).drop("limit")

    def _known(
        self, frame: pl.DataFrame, store: Genome, left_out: LeftOut
    ) -> tuple[dict[str, str], pl.DataFrame]:
        names: dict[str, str] = {}
        groups = frame.group_by("contig", maintain_order=True)
        for name, line, count in groups.agg(pl.col("line").first(), rows=pl.len()).iter_rows():
            try:
                names[name] = store.contig(name).name
            except UnknownContigError as error:
                why = partial(str, error)
                left_out.add("UNKNOWN_CONTIG", line, why, count=count, error=UnknownContigError)
        return names, frame.filter(pl.col("contig").is_in(list(names)))


def read_bed(
    path: str | Path, store: Genome | None = None, *, columns: int | None = None,
    strict: bool = False,
) -> pl.DataFrame:  # fmt: skip
    """Read a BED file: BED3 to BED12 with any further columns, narrowPeak or broadPeak.

    Comments (``#``), ``track`` and ``browser`` lines, a header row and blank lines are skipped; the
    file may be gzip or bgzip; without tabs it is split at blanks. The ending of the name says what
    the columns after the sixth mean; only the first `columns` are read, of files whose later ones
    are not BED's. Rows that do not lie on the `store` are left out, and a
    LeftOutWarning counts them by reason, or refused when `strict`.

    Columns are contig, start, end (0-based half-open) and, as far as the file has them, name
    (String), score (Float64, null for ``.``), strand (``+``, ``-`` or ``.``) and those after; peak
    files have signal_value, p_value, q_value and summit (offset from start, -1 when unknown), and
    what follows is called column_7, column_8, ... and holds text. An InputError (or an
    UnknownContigError) names file and line of the first row that is broken, or says that none can
    be used.
    """
    if columns is not None and columns < 3:
        raise InputError(f"a BED file has 3 columns or more, asked for {columns}")
    source = _RowSource(Path(path))
    numbers, texts = [], []
    tabs = None
    for number, text in numbered_lines(source.path):
        if not text.strip() or text.startswith("#") or text.split(None, 1)[0] in _BED_DIRECTIVES:
            continue
        tabs = "\t" in text if tabs is None else tabs
        fields = text.split("\t") if tabs else text.split()
        if not numbers and len(fields) > 1 and fields[1].lower() in _BED_HEADERS:
            continue
        numbers.append(number)
        texts.append("\t".join(fields[:columns]))
    width = texts[0].count("\t") + 1 if texts else 3
    if width < 3:
        where, found = f"{path}, line {numbers[0]:,}", f"{width}: {texts[0][:60]!r}"
        raise InputError(f"{where}: expected 3 columns or more (contig, start, end), found {found}")
    # Between 7 and 11 columns a BED is "BED6 and something": BED12 names would be a guess.
    kind = "bed12" if width == 12 else "bed"
    kind = next((s for s in map(str.lower, source.path.suffixes) if s in _BED_NAMES), kind)
    known = _BED_NAMES[kind]
    names = [*known, *(f"column_{i + 1}" for i in range(len(known), width))][:width]
    frame = source.cast_numbers(source.split(numbers, texts, names))
    source.check(frame)
    return source.on_genome(frame, store, LeftOut(source.path, strict=strict)).drop("line")


def read_gff(
    path: str | Path, store: Genome | None = None, *, attributes: Sequence[str] = (),
    types: Sequence[str] | None = None, strict: bool = False,
) -> pl.DataFrame:  # fmt: skip
    """Read a GFF3 or GTF file (plain or gzip); the two differ in their ninth column only.

    Rows are checked against the `store` as by :func:`read_bed`; those of other than the `types` are
    passed over. A feature over the origin of a circular contig (``Is_circular=true`` in any row of
    the contig) ends at the last base of the contig. A sequence section (``##FASTA``) is skipped.

    Columns are contig, start, end (0-based half-open), source, type, score (Float64), strand, phase
    (Int64), attributes (the ninth column as it is), and a String column for each of the
    `attributes` asked for, such as ``("ID", "Name")``, null where a row lacks it.
    """
    source = _RowSource(Path(path))
    numbers, texts, circular = [], [], set[str]()
    for number, text in numbered_lines(source.path):
        if text.startswith(("##FASTA", ">")):
            break
        if text.strip() and not text.startswith("#"):
            numbers.append(number)
            texts.append(text)
            if "Is_circular=true" in text:
                circular.add(text.split("\t", 1)[0])
    frame = source.cast_numbers(source.split(numbers, texts, _GFF))
    if types is not None:
        frame = frame.filter(pl.col("type").is_in(list(types)))
    frame = frame.with_columns(pl.col("strand").replace("?", _NULL))
    source.check(frame, closed=True)
    frame = frame.with_columns(zero_based(pl.col("start")))
    frame = source.on_genome(frame, store, LeftOut(source.path, strict=strict), circular)
    return frame.with_columns(_attribute(frame, key) for key in attributes).select(
        "contig", "start", "end", pl.exclude("line", "contig", "start", "end")
    )


def _attribute(frame: pl.DataFrame, key: str) -> pl.Series:
    # key=value in GFF3, key "value" in GTF.
    pattern = rf'(?:^|;)\s*{re.escape(key)}(?:\s*=\s*|\s+)(?:"([^"]*)"|([^;"]*))'
    text = frame["attributes"].str
    value = text.extract(pattern, 1)
    value = value.zip_with(value.is_not_null(), text.extract(pattern, 2)).str.strip_chars()
    if value.str.contains("%", literal=True).any():  # GFF3 writes reserved characters that way
        decoded = [None if one is None else urllib.parse.unquote(one) for one in value]
        value = pl.Series(decoded, dtype=pl.String)
    return value.alias(key)


def read_vcf(
    path: str | Path, store: Genome | None = None, *, info: Sequence[str] = (),
    bases_only: bool = False, strict: bool = False,
) -> pl.DataFrame:  # fmt: skip
    """Read the sites of a VCF or BCF file, one row for each alternative allele, in file order.

    Records whose position is not on the `store` (and, with `bases_only`, alleles that cannot
    replace REF) are left out, and a LeftOutWarning counts alleles by reason, or refused when
    `strict`; where REF or the genome has N, they are not compared.

    Columns are contig, start, end (of the reference allele, 0-based half-open), ref and alt (upper
    case; alt null for a record without one; symbolic alleles such as ``<DEL>`` as they are), id,
    qual (Float64), filter, record (0-based number of the record in the file), allele (0-based
    number of the alternative within its record), reason (why the allele cannot replace REF:
    :data:`megabase.genome.left_out.REASONS`; else null), and a String column for each key of
    `info`: null where a record lacks it, empty for a flag. An InputError (or an UnknownContigError)
    names file and line (of a BCF: record) of the first one that is broken, or says that none can be
    used, or that REF looks like that of another assembly.
    """
    source = _RowSource(Path(path), unit=row_unit(Path(path)))
    left_out = LeftOut(source.path, source.unit, strict)
    rows: list[tuple[Any, ...]] = []
    for number, (record, index, problem) in enumerate(VcfRecord.checked(source.path, store)):
        if wrong := record.why_unplaced(problem):
            error = UnknownContigError if wrong == "UNKNOWN_CONTIG" else InputError
            why, count = partial(record.why_unusable, store, wrong), max(1, len(record.alts))
            left_out.add(wrong, record.line, why, count=count, error=error)
            continue
        contig = record.contig if store is None or index is None else store.contigs[index].name
        start, end = record.position, record.position + len(record.ref)
        site = (record.line, contig, start, end, record.ref.upper())
        _, _, name, _, _, qual, filters, values = record.fields[:8]
        for allele, alt in enumerate(record.alts or (None,)):
            reason = problem if alt is None or problem else record.check_allele(alt)
            if reason is not None and bases_only:
                left_out.add(reason, record.line, partial(record.why_unusable, store, reason))
                continue
            rows.append((*site, alt, name, qual, filters, values, number, allele, reason))
    left_out.report(len(rows), "alleles")
    frame = source.cast_numbers(pl.DataFrame(rows, _VCF, orient="row", infer_schema_length=None))
    bases = pl.col("alt").str.contains("^[A-Za-z]+$")
    frame = frame.with_columns(
        pl.when(bases).then(pl.col("alt").str.to_uppercase()).otherwise("alt"),
        *(pl.when(pl.col(name) != _NULL).then(name).alias(name) for name in ("id", "filter")),
        *(_info(key) for key in info),
    )
    return frame.drop("line", *({"info"} - set(info)))


def _info(key: str) -> pl.Expr:
    pattern = rf"(?:^|;){re.escape(key)}(?:=([^;]*))?(?:;|$)"
    found = pl.col("info").str.contains(pattern)
    value = pl.col("info").str.extract(pattern, 1).fill_null("")
    return pl.when(found).then(value).alias(key)


def write_bed(frame: pl.DataFrame, path: str | Path, overwrite: bool = False) -> None:
    """Write a frame as BED3 to BED6; bgzip when the name ends in ``.gz``.

    The frame has contig, start, end (0-based half-open; else an InputError) and maybe name, score
    and strand; a column that a later one needs before it is filled (name ``.``, score 0).
    """
    missing = [name for name in _BED6[:3] if name not in frame.columns]
    if missing:
        raise InputError(f"a frame needs the columns contig, start, end; found {frame.columns}")
    width = max(i for i, name in enumerate(_BED6, start=1) if name in frame.columns)
    fill = {"name": _NULL, "score": 0, "strand": _NULL}
    rows = frame.with_columns(pl.lit(fill[k]).alias(k) for k in fill if k not in frame.columns)
    rows = rows.select(pl.col(k).fill_null(fill[k]) if k in fill else k for k in _BED6[:width])
    text = rows.write_csv(include_header=False, separator="\t", quote_style="never").encode()
    packed_text = Path(path).suffix == ".gz"
    with atomic_file(Path(path), overwrite, seeks=packed_text) as file:
        if not packed_text:
            file.write(text)
            return
        with pysam.BGZFile(file.name, "wb", None) as packed:  # writes the same, still unnamed, file
            packed.write(text)
