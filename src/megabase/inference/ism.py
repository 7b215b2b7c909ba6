"""In-silico mutagenesis (ISM): every substitution of a region, scored as a variant.

Scores are those of :mod:`megabase.inference.variants.scorer`: each base has a window of its own,
with the base at the middle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Unpack

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.label_files import read_parquet
from megabase.data.sources import genome_store
from megabase.errors import InputError
from megabase.genome.alphabet import BASE_BITS, BASES, decode
from megabase.genome.files import atomic_file
from megabase.genome.interval import Interval, Strand, one_based
from megabase.genome.signal import require_bigwig
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.jobs import BATCH_TOKENS, Work, check_run, map_file, split_options
from megabase.inference.parts import Provenance, refuse_existing
from megabase.inference.variants.methods import METHODS
from megabase.inference.variants.scorer import VariantOptions, VariantScorer, load_scored
from megabase.inference.writers import (
    TABLE_SUFFIXES,
    Run,
    merge_tables,
    require_suffix,
    write_bigwig,
)
from megabase.models.loading import ModelSpec
from megabase.options import RunOptions, VariantScoring
from megabase.untrusted import parsing

_CHUNK = 128  # bases, of three variants each: as long as a chunk of a file of variants


@dataclass(frozen=True, repr=False)
class Mutagenesis:
    """Scores of every substitution of a region.

    Parameters
    ----------
    interval
        The region.
    ref
        Its bases, upper case.
    scores
        For each method float32 (length, 4), in the order A, C, G, T: 0 at the base of the genome,
        NaN where there is no score.
    provenance
        Model, genome and options; None when read from a file.
    """

    interval: Interval
    ref: str
    scores: dict[str, NDArray[np.float32]]
    provenance: Provenance | None = None

    def __repr__(self) -> str:
        return f"Mutagenesis({self.interval}, {', '.join(self.scores)})"

    def importance(self, method: str) -> NDArray[np.float32]:
        """Give each base the mean score of its substitutions, turned so that high is damage.

        NaN where a substitution has no score.
        """
        names = (name for name in METHODS if f"{method}_".startswith(f"{name}_"))  # of a track too
        sign = METHODS[max(names, key=len)].damaging
        return sign * self.scores[method].sum(1) / np.float32(3)


def ism(
    model: ModelSpec,
    region: str | Interval,
    genome: Genome | str | Path,
    **options: Unpack[VariantScoring],
) -> Mutagenesis:
    """Score every substitution of a region, ``chr1:1,001-2,000`` (1-based) or an interval.

    GenomeError when the region is not in the genome; InputError when model, window and methods do
    not fit.
    """
    own, run = split_options(options, VariantScoring)
    settings = VariantOptions(**own)
    loaded = load_scored(model, run.get("device"))
    with genome_store(genome) as store:
        scorer = VariantScorer(loaded, store, settings, run.get("batch_tokens", BATCH_TOKENS))
        interval = _region(store, region)
        tables = [_rows(scorer, part) for part in _chunks(interval)]
    return _from_table(pl.concat(tables), scorer.provenance("ism", region=str(interval)))


def ism_file(
    model: ModelSpec,
    region: str | Interval,
    genome: str | Path,
    output: str | Path,
    options: VariantOptions | None = None,
    *,
    bigwig: str | None = None,
    **running: Unpack[RunOptions],
) -> list[Path]:
    """Score every substitution of a region as :func:`ism` into a file; give all, `output` first.

    ``.parquet`` or ``.tsv``: a row for each substitution. ``.npz``: a matrix for each method.
    `bigwig` is the prefix of a track for each method, PREFIX.METHOD.bw:
    :meth:`Mutagenesis.importance`; the output is then ``.parquet`` or ``.npz``. A shard is a
    folder instead.
    """
    output, options = Path(output), options or VariantOptions()
    require_suffix(output, (".parquet", ".npz") if bigwig else (*TABLE_SUFFIXES, ".npz"))
    if bigwig:
        require_bigwig()
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

        make = partial(VariantScorer.load, model, store.path, options)
        work = Work(_rows, make, partial(_chunks, interval), attrgetter("length"))
        made = map_file(work, output, describe, _merge, **running)
        if made != output:
            return [made]
        if tracks:
            _write_tracks(read_ism(output), store, tracks)
    return written


def read_ism(path: str | Path) -> Mutagenesis:
    """Read what ``megabase ism`` wrote as ``.parquet`` or ``.npz``; InputError for another file."""
    path = Path(path)
    with parsing(path, InputError, "expected a file that megabase ism wrote"):
        if path.suffix.lower() == ".parquet":
            return _from_table(read_parquet(path, InputError))
        with np.load(path) as file:
            own = ("ref", "contig", "start", "megabase")
            scores = {name: file[name] for name in file.files if name not in own}
            ref, start = str(file["ref"]), int(file["start"])
            interval = Interval(str(file["contig"]), start, start + len(ref))
        return Mutagenesis(interval, ref, scores)


def _records(store: Genome, interval: Interval) -> list[VcfRecord]:
    """Give a record with the three substitutions for each base of an interval."""
    records: list[VcfRecord] = []
    bases = decode(store.fetch(interval) & np.uint8(BASE_BITS))
    for position, ref in enumerate(bases, start=interval.start):
        alts = tuple(base for base in BASES if base != ref) if ref in BASES else ()
        fields = (
            interval.contig, str(one_based(position)), ".", ref, ",".join(alts) or ".", *"...",
        )  # fmt: skip
        records.append(VcfRecord(position, fields, interval.contig, position, ref, alts))
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
    """Give a row for each substitution."""
    return scorer.table(_records(scorer.store, part)).drop("id", "record", "allele")


def _merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
    """Write a table, or the matrices as ``.npz``."""
    if target.suffix.lower() != ".npz":
        merge_tables(parts, target, provenance)
        return
    found = _from_table(pl.concat([pl.read_parquet(part) for part in parts]))
    with target.open("wb") as file:
        np.savez_compressed(
            file, ref=np.array(found.ref), contig=np.array(found.interval.contig),
            start=np.array(found.interval.start), megabase=np.array(provenance.to_json()),
            **found.scores,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip


def _from_table(table: pl.DataFrame, provenance: Provenance | None = None) -> Mutagenesis:
    """Make matrices of a table of scores."""
    first = table.row(0, named=True)
    bases = table.group_by("start", maintain_order=True).agg(pl.col("ref").first())
    interval = Interval(first["contig"], first["start"], first["start"] + bases.height)
    rows = table.filter(pl.col("alt").is_not_null())
    index = rows["start"].to_numpy() - interval.start
    column = np.array([BASES.index(base) for base in rows["alt"]], dtype=np.int64)
    ref = "".join(bases["ref"])
    known = [(i, BASES.index(base)) for i, base in enumerate(ref) if base in BASES]
    own = tuple(np.array(known, dtype=np.int64).reshape(-1, 2).T)
    about = ("contig", "start", "end", "pos", "ref", "alt", "reason")
    scores: dict[str, NDArray[np.float32]] = {}
    for name in (name for name in table.columns if name not in about):
        scores[name] = np.full((len(ref), 4), np.nan, dtype=np.float32)
        scores[name][index, column] = rows[name].fill_null(np.nan).to_numpy()
        scores[name][own] = 0
    return Mutagenesis(interval, ref, scores, provenance)


def _write_tracks(found: Mutagenesis, store: Genome, paths: dict[str, Path]) -> None:
    """Write the importance of each base by each method as bigWig."""
    contigs = {contig.name: contig.length for contig in store.contigs}
    for method, path in paths.items():
        run = Run(found.interval.contig, found.interval.start, found.importance(method))
        with atomic_file(path, overwrite=True, seeks=True) as file:
            write_bigwig(Path(file.name), contigs, [run])
