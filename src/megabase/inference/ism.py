"""In-silico mutagenesis (ISM): every substitution of a region, scored as a variant.

Scores are those of :mod:`megabase.inference.variants.scorer`: each base has a window of its own,
with the base at the middle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.label_files import read_parquet
from megabase.data.sources import genome_store
from megabase.errors import InputError
from megabase.genome.alphabet import BASE_BITS, BASES, decode
from megabase.genome.files import atomic_file
from megabase.genome.interval import Interval, Strand
from megabase.genome.signal import bigwigs
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import Work, check_run, map_file, split_options
from megabase.inference.parts import (
    TABLE_SUFFIXES,
    Provenance,
    Run,
    merge_tables,
    refuse_existing,
    require_suffix,
    write_bigwig,
)
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.scorer import VariantOptions, VariantScorer
from megabase.models.loading import ModelSpec
from megabase.options import PassOptions, VariantScoring
from megabase.untrusted import parsing

_CHUNK = 128  # bases, of three variants each: as long as a chunk of a file of variants
_OWN = ("ref", "contig", "start", "megabase")  # arrays of a file that are not those of a method


@dataclass(frozen=True, repr=False)
class Mutagenesis:
    """Scores of every substitution of a region."""

    interval: Interval
    ref: str
    """The bases of the region, upper case."""
    scores: dict[str, NDArray[np.float32]]
    """For each method float32 (length, 4), in the order A, C, G, T: 0 at the base of the genome,
    NaN where there is no score."""
    provenance: Provenance | None = None
    """Model, genome and options; None when read from a file."""

    def __repr__(self) -> str:
        return f"Mutagenesis({self.interval}, {', '.join(self.scores)})"

    @classmethod
    def read(cls, path: str | Path) -> "Mutagenesis":
        """Read a ``.parquet`` or ``.npz`` of ``megabase ism``; InputError for another file."""
        path = Path(path)
        with parsing(path, InputError, "expected a file that megabase ism wrote"):
            if path.suffix.lower() == ".parquet":
                return _from_table(read_parquet(path, InputError))
            with np.load(path) as file:
                found = dict(file)
            ref, contig, start, _ = (found.pop(name) for name in _OWN)
            interval = Interval(str(contig), int(start), int(start) + len(str(ref)))
            return cls(interval, str(ref), found)

    def importance(self, method: str) -> NDArray[np.float32]:
        """Give each base the mean score of its substitutions, turned so that high is damage.

        NaN where a substitution has no score.
        """
        names = (name for name in METHODS if f"{method}_".startswith(f"{name}_"))  # of a track too
        sign = METHODS[max(names, key=len)].damaging
        return sign * self.scores[method].sum(1) / np.float32(3)


def ism(
    model: ModelSpec, region: str | Interval, genome: Genome | str | Path,
    **options: Unpack[VariantScoring],
) -> Mutagenesis:  # fmt: skip
    """Score every substitution of a region, ``chr1:1,001-2,000`` (1-based) or an interval.

    GenomeError when the region is not in the genome; InputError when model, window and methods do
    not fit.
    """
    own, run = split_options(options, VariantScoring)
    run = {name: run[name] for name in PassOptions.__optional_keys__ & run.keys()}
    with genome_store(genome) as store:
        scorer = VariantScorer.load(model, store, VariantOptions(**own), **run)
        interval = _region(store, region)
        tables = [_rows(scorer, part) for part in _chunks(interval)]
    return _from_table(pl.concat(tables), scorer.provenance("ism", region=str(interval)))


def ism_file(
    model: ModelSpec, region: str | Interval, genome: str | Path, output: str | Path, *,
    bigwig: str | None = None, **options: Unpack[VariantScoring],
) -> list[Path]:  # fmt: skip
    """Score every substitution of a region as :func:`ism` into a file; give all, `output` first.

    ``.parquet`` or ``.tsv``: a row for each substitution. ``.npz``: a matrix for each method.
    `bigwig` is the prefix of a track for each method, PREFIX.METHOD.bw:
    :meth:`Mutagenesis.importance`; the output is then ``.parquet`` or ``.npz``. A shard is a
    folder instead.
    """
    own, running = split_options(options, VariantScoring)
    output, settings = Path(output), VariantOptions(**own)
    require_suffix(output, (".parquet", ".npz") if bigwig else (*TABLE_SUFFIXES, ".npz"))
    if bigwig:
        bigwigs("writing bigWig")
    check_run(output, **running)
    written: list[Path] = []
    tracks: dict[str, Path] = {}
    with genome_store(genome) as store:
        interval = _region(store, region)

        def describe(ready: VariantScorer) -> Provenance:
            for name in ready.names if bigwig else ():
                tracks[name] = Path(f"{bigwig}.{name}.bw")
                refuse_existing(tracks[name], running.get("overwrite", False))
            written.extend((output, *tracks.values()))
            return ready.provenance("ism", region=str(interval))

        make = partial(VariantScorer.load, model, store.path, settings)
        work = Work(_rows, make, partial(_chunks, interval), attrgetter("length"))
        made = map_file(work, output, describe, _merge, **running)
        if made != output:
            return [made]
        found = Mutagenesis.read(output) if tracks else None
        contigs = {contig.name: contig.length for contig in store.contigs}
        for method, path in tracks.items():
            assert found is not None
            run = Run(interval.contig, interval.start, found.importance(method))
            with atomic_file(path, overwrite=True, seeks=True) as file:
                write_bigwig(Path(file.name), contigs, [run])
    return written


def _records(store: Genome, interval: Interval) -> list[VcfRecord]:
    """Give a record with the three substitutions for each base of an interval."""
    records: list[VcfRecord] = []
    bases = decode(store.fetch(interval) & np.uint8(BASE_BITS))
    for position, ref in enumerate(bases, start=interval.start):
        alts = [base for base in BASES if base != ref] if ref in BASES else ()
        records.append(VcfRecord.of(position, interval.contig, position, ref, *alts))
    return records


def _region(store: Genome, region: str | Interval) -> Interval:
    """Find a region, without its strand."""
    found = store.region(region)
    return Interval(found.contig, found.start, found.end, Strand.UNSTRANDED)


def _chunks(interval: Interval) -> Iterator[Interval]:
    """Cut a region into the parts that chunks answer for."""
    for start in range(interval.start, interval.end, _CHUNK):
        yield Interval(interval.contig, start, min(start + _CHUNK, interval.end))


def _rows(scorer: VariantScorer, part: Interval) -> pl.DataFrame:
    return scorer.table(_records(scorer.store, part)).drop("id", "record", "allele")


def _merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
    if target.suffix.lower() != ".npz":
        merge_tables(parts, target, provenance)
        return
    found = _from_table(pl.concat([pl.read_parquet(part) for part in parts]))
    with target.open("wb") as file:
        place = found.interval.contig, found.interval.start
        own = (np.array(one) for one in (found.ref, *place, provenance.to_json()))
        arrays: Any = {**dict(zip(_OWN, own, strict=True)), **found.scores}
        np.savez_compressed(file, **arrays)


def _from_table(table: pl.DataFrame, provenance: Provenance | None = None) -> Mutagenesis:
    first = table.row(0, named=True)
    bases = table.group_by("start", maintain_order=True).agg(pl.col("ref").first())
    interval = Interval(first["contig"], first["start"], first["start"] + bases.height)
    rows = table.filter(pl.col("alt").is_not_null())
    index = rows["start"].to_numpy() - interval.start
    column = np.array([BASES.index(base) for base in rows["alt"]], dtype=np.int64)
    ref = "".join(bases["ref"])
    own = np.nonzero(np.array(list(ref))[:, None] == np.array(list(BASES)))
    about = ("contig", "start", "end", "pos", "ref", "alt", "reason")
    scores: dict[str, NDArray[np.float32]] = {}
    for name in (name for name in table.columns if name not in about):
        scores[name] = np.full((len(ref), 4), np.nan, dtype=np.float32)
        scores[name][index, column] = rows[name].fill_null(np.nan).to_numpy()
        scores[name][own] = 0
    return Mutagenesis(interval, ref, scores, provenance)
