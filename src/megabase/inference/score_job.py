"""Scoring a FASTA or BED file into a table, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from megabase.genome.store import GenomeStore
from megabase.inference.errors import InputFileError
from megabase.inference.loading import load
from megabase.inference.model import choose_device
from megabase.inference.provenance import Provenance, file_digest
from megabase.inference.score import ScoreOptions, score_table
from megabase.inference.sources import (
    Sequence,
    no_file,
    read_intervals,
    read_sequences,
    require_intervals,
    require_no_bed,
)
from megabase.inference.tables import merge_tables, write_table_part

__all__ = ["ScoreJob"]

_CHUNK_BASES = 1 << 19
_CHUNK_SEQUENCES = 1 << 12


@dataclass
class ScoreJob:
    """Score the sequences of a FASTA file, or the intervals of a BED file.

    Parameters
    ----------
    source
        FASTA or BED file.
    model
        Name of the model.
    genome
        Genome store of the intervals; None for FASTA.
    options
        What changes a score.
    context
        Bases read before (on the reverse strand: behind) an interval.
    batch_tokens
        Most positions of a batch.
    """

    source: Path
    model: str | None = None
    genome: Path | None = None
    options: ScoreOptions = field(default_factory=ScoreOptions)
    context: int = 0
    batch_tokens: int = 1 << 16
    suffix: str = ".parquet"
    _provenance: Provenance | None = None

    def provenance(self) -> Provenance:
        """Give what is computed; the model is loaded for its hash."""
        if self._provenance is None:
            if not self.source.is_file():
                raise InputFileError(no_file(self.source))
            store = None if self.genome is None else GenomeStore.open(self.genome)
            model = load(self.model, head="language")
            self._provenance = Provenance(
                "score",
                model.name,
                model.digest,
                genome=store and store.name,
                genome_sha256=store and store.checksum,
                inputs={self.source.name: file_digest(self.source)},
                options={**asdict(self.options), "context": self.context},
            )
        return self._provenance

    def _sequences(self) -> Iterator[Sequence]:
        if self.genome is None:
            require_no_bed(self.source)
            return read_sequences(self.source)
        require_intervals(self.source)
        store = GenomeStore.open(self.genome)
        # Which side is context depends on the strand that is read, so both sides are.
        return read_intervals(self.source, store, context=self.context, after=self.context)

    def chunks(self) -> Iterator[list[Sequence]]:
        """Read the input: about half a million bases at a time."""
        chunk: list[Sequence] = []
        bases = 0
        for one in self._sequences():
            chunk.append(one)
            bases += len(one.codes)
            if bases >= _CHUNK_BASES or len(chunk) >= _CHUNK_SEQUENCES:
                yield chunk
                chunk, bases = [], 0
        if chunk:
            yield chunk

    def items(self, chunk: list[Sequence]) -> int:
        """Count sequences."""
        return len(chunk)

    def open(self, device: str | None) -> Callable[[list[Sequence]], pl.DataFrame]:
        """Load the model."""
        model = load(self.model, head="language", device=choose_device(device))
        return lambda chunk: score_table(model, chunk, self.options, self.batch_tokens)

    def write_part(self, result: pl.DataFrame, path: Path) -> None:
        """Write the rows of a chunk."""
        write_table_part(result, path)

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the table."""
        if not parts:
            raise InputFileError(f"{self.source} holds nothing to score")
        merge_tables(parts, target, self.provenance())
