"""In-silico mutagenesis: every substitution of a region, scored as a variant.

The numbers are those :func:`megabase.inference.score_variants` gives to the same SNVs: each base
has a window of its own, with the base at the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.label_files import read_parquet
from megabase.data.sources import genome_store
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance
from megabase.evaluate.score import Strands
from megabase.genome.alphabet import BASE_BITS, BASES, decode
from megabase.genome.files import atomic_file
from megabase.genome.interval import Interval, Strand, one_based
from megabase.genome.store import GenomeStore
from megabase.genome.vcf import VcfRecord
from megabase.inference.tables import merge_tables, write_table_part
from megabase.inference.tracks import Run, write_bigwig
from megabase.inference.variants.alleles import Placement
from megabase.inference.variants.scorer import (
    VariantOptions,
    VariantScorer,
    method_tuple,
    variant_table,
)
from megabase.models.loading import Loaded, ModelSpec, choose_device, load
from megabase.untrusted import parsing

__all__ = ["Saturation", "SaturationJob", "read_saturation", "saturate", "save_tracks"]

_CHUNK = 128


@dataclass(frozen=True, repr=False)
class Saturation:
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
        Model, genome and options; empty when read from a file without them.
    """

    interval: Interval
    ref: str
    scores: dict[str, NDArray[np.float32]]
    provenance: Provenance | None = None

    def __repr__(self) -> str:
        return f"Saturation({self.interval}, {', '.join(self.scores)})"

    def importance(self, method: str) -> NDArray[np.float32]:
        """Give each base the mean of its three substitutions' scores with the sign turned.

        High where the model objects to every change; NaN where a substitution has no score.
        """
        return -self.scores[method].sum(1) / np.float32(3)


def _records(store: GenomeStore, interval: Interval) -> Iterator[VcfRecord]:
    bases = decode(store.fetch(interval) & np.uint8(BASE_BITS))
    for position, ref in enumerate(bases, start=interval.start):
        alts = tuple(base for base in BASES if base != ref) if ref in BASES else ()
        fields = (
            interval.contig,
            str(one_based(position)),
            ".",
            ref,
            ",".join(alts) or ".",
            *"...",
        )
        yield VcfRecord(position, fields, interval.contig, position, ref, alts)


def _region(store: GenomeStore, region: str | Interval) -> Interval:
    found = store.region(region)
    return Interval(found.contig, found.start, found.end, Strand.UNSTRANDED)


@dataclass
class SaturationJob:
    """Score every substitution of a region, chunk by chunk.

    Parameters
    ----------
    region
        Place in the genome: ``chr1:1,001-2,000`` (1-based, both ends included).
    genome
        Genome store.
    model
        Name of the model.
    options
        What changes a score.
    batch_tokens
        Most positions of a batch.
    """

    region: str
    genome: Path
    model: str | None = None
    options: VariantOptions = field(default_factory=VariantOptions)
    batch_tokens: int = 1 << 16
    suffix: str = ".parquet"
    _provenance: Provenance | None = None

    def provenance(self) -> Provenance:
        """Check the region, the model and the options, and give what is computed."""
        if self._provenance is None:
            store = GenomeStore.open(self.genome)
            interval = _region(store, self.region)
            model = load(self.model, head="language")
            self.options = self.options.resolved(model)
            self._provenance = _provenance(model, store, interval, self.options)
        return self._provenance

    def chunks(self) -> Iterator[list[VcfRecord]]:
        """Give the bases of the region."""
        store = GenomeStore.open(self.genome)
        interval = _region(store, self.region)
        for start in range(interval.start, interval.end, _CHUNK):
            end = min(start + _CHUNK, interval.end)
            yield list(_records(store, Interval(interval.contig, start, end)))

    def items(self, chunk: list[VcfRecord]) -> int:
        """Count bases."""
        return len(chunk)

    def open(self, device: str | None) -> Callable[[list[VcfRecord]], pl.DataFrame]:
        """Load the model."""
        model = load(self.model, head="language", device=choose_device(device))
        scorer = VariantScorer(
            model, GenomeStore.open(self.genome), self.options, self.batch_tokens
        )
        return lambda chunk: _table(scorer, chunk)

    def write_part(self, result: pl.DataFrame, path: Path) -> None:
        """Write the rows of a chunk."""
        write_table_part(result, path)

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write ``.parquet``, ``.tsv``, or the matrices as ``.npz``."""
        if target.suffix.lower() != ".npz":
            merge_tables(parts, target, self.provenance())
            return
        found = _from_table(pl.concat([pl.read_parquet(part) for part in parts]))
        with target.open("wb") as file:
            np.savez_compressed(
                file,
                ref=np.array(found.ref),
                contig=np.array(found.interval.contig),
                start=np.array(found.interval.start),
                megabase=np.array(self.provenance().to_json()),
                **found.scores,  # pyright: ignore[reportArgumentType]
            )


def _provenance(
    model: Loaded, store: GenomeStore, interval: Interval, options: VariantOptions
) -> Provenance:
    return Provenance(
        "saturate",
        model.name,
        model.digest,
        genome=store.name,
        genome_sha256=store.checksum,
        options={**asdict(options), "region": str(interval)},
    )


def _table(scorer: VariantScorer, records: Sequence[VcfRecord]) -> pl.DataFrame:
    frame = variant_table(records, scorer.score(records), scorer.options.methods or ())
    return frame.drop("id", "record", "allele")


def _from_table(table: pl.DataFrame, provenance: Provenance | None = None) -> Saturation:
    first = table.row(0, named=True)
    place = table.group_by("start", maintain_order=True).agg(pl.col("ref").first())
    interval = Interval(first["contig"], first["start"], first["start"] + place.height)
    rows = table.filter(pl.col("alt").is_not_null())
    index = rows["start"].to_numpy() - interval.start
    column = np.array([BASES.index(base) for base in rows["alt"]], dtype=np.int64)
    ref = "".join(place["ref"])
    known = np.array([base in BASES for base in ref])
    at = np.array([max(0, BASES.find(base)) for base in ref])
    place_columns = ("contig", "start", "end", "pos", "ref", "alt", "reason")
    names = [name for name in table.columns if name not in place_columns]
    scores: dict[str, NDArray[np.float32]] = {}
    for name in names:
        matrix = np.full((len(ref), 4), np.nan, dtype=np.float32)
        matrix[index, column] = rows[name].fill_null(np.nan).to_numpy()
        matrix[np.flatnonzero(known), at[known]] = 0
        scores[name] = matrix
    return Saturation(interval, ref, scores, provenance)


def read_saturation(path: str | Path) -> Saturation:
    """Read what ``megabase saturate`` wrote as ``.parquet`` or ``.npz``.

    Raises
    ------
    InputError
        When the file is something else.
    """
    path = Path(path)
    with parsing(path, InputError, "expected a file that megabase saturate wrote"):
        if path.suffix.lower() == ".parquet":
            return _from_table(read_parquet(path, InputError))
        with np.load(path) as file:
            scores = {
                name: file[name]
                for name in file.files
                if name not in ("ref", "contig", "start", "megabase")
            }
            ref, start = str(file["ref"]), int(file["start"])
            interval = Interval(str(file["contig"]), start, start + len(ref))
        return Saturation(interval, ref, scores)


def save_tracks(found: Saturation, store: GenomeStore, paths: dict[str, Path]) -> None:
    """Write :meth:`Saturation.importance` of each method as bigWig.

    Parameters
    ----------
    found
        The scores.
    store
        Their genome.
    paths
        Where the track of each method goes; written beside its place and renamed.
    """
    contigs = {contig.name: contig.length for contig in store.contigs}
    for method, path in paths.items():
        run = Run(found.interval.contig, found.interval.start, found.importance(method))
        with atomic_file(path, overwrite=True, seeks=True) as file:
            write_bigwig(Path(file.name), contigs, [run])


def saturate(
    region: str | Interval,
    genome: GenomeStore | str | Path,
    model: ModelSpec = None,
    *,
    window: int | None = None,
    methods: Sequence[str] | None = None,
    strands: Strands = "both",
    placement: Placement = "centred",
    batch_tokens: int = 1 << 16,
    device: str | None = None,
) -> Saturation:
    """Score every substitution of a region.

    Parameters
    ----------
    region
        ``chr1:1,001-2,000`` (1-based, both ends included) or an interval.
    genome
        The genome, or a store or FASTA file.
    model
        A model, or the name of one; the packaged model when None. The mode of a model is restored.
    window, methods, strands, placement
        As for :func:`megabase.inference.score_variants`.
    batch_tokens
        Most positions of a batch: time and memory, not the result.
    device
        Where a model that is named goes; the CPU when None.

    Returns
    -------
    Saturation

    Raises
    ------
    GenomeError, UnknownContigError
        When the region is not in the genome.
    InputError, InputError
        When model, window and methods do not fit.
    """
    options = VariantOptions(window, method_tuple(methods), strands, placement)
    loaded = load(model, head="language", device=device)
    if not isinstance(genome, GenomeStore):
        with genome_store(genome) as store:
            return _saturated(region, store, loaded, options, batch_tokens)
    return _saturated(region, genome, loaded, options, batch_tokens)


def _saturated(
    region: str | Interval,
    store: GenomeStore,
    model: Loaded,
    options: VariantOptions,
    batch_tokens: int,
) -> Saturation:
    scorer = VariantScorer(model, store, options, batch_tokens)
    interval = _region(store, region)
    records = list(_records(store, interval))
    tables = [_table(scorer, records[low : low + _CHUNK]) for low in range(0, len(records), _CHUNK)]
    provenance = _provenance(model, store, interval, scorer.options)
    return _from_table(pl.concat(tables), provenance)
