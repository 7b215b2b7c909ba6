"""Scoring a file of sequences or intervals into a table, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from megabase.data.sources import Sequence
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance
from megabase.evaluate.score import ScoreOptions, score_table
from megabase.inference.input_stream import SequenceInput
from megabase.inference.tables import merge_tables, write_table_part
from megabase.models.loading import choose_device, load

__all__ = ["ScoreJob"]

_CHUNK_BASES = 1 << 19
_CHUNK_SEQUENCES = 1 << 12


@dataclass
class ScoreJob:
    """Score the sequences of a FASTA file or a table, or the intervals of a BED file.

    Parameters
    ----------
    source
        What is read.
    model
        Name of the model.
    options
        What changes a score.
    context
        Bases read before (on the reverse strand: behind) an interval.
    batch_tokens
        Most positions of a batch.
    """

    source: SequenceInput
    model: str | None = None
    options: ScoreOptions = field(default_factory=ScoreOptions)
    context: int = 0
    batch_tokens: int = 1 << 16
    suffix: str = ".parquet"
    _provenance: Provenance | None = None

    def __post_init__(self) -> None:
        self.source.refuse_variants()

    def provenance(self) -> Provenance:
        """Give what is computed; the model is loaded for its hash."""
        if self._provenance is None:
            model = load(self.model, head="language")
            options = {**asdict(self.options), "context": self.context}
            self._provenance = self.source.provenance("score", model.name, model.digest, **options)
        return self._provenance

    def chunks(self) -> Iterator[list[Sequence]]:
        """Read the input: about half a million bases at a time."""
        chunk: list[Sequence] = []
        bases = 0
        # Which side is context depends on the strand that is read, so both sides are.
        for one in self.source.read(context=self.context, after=self.context):
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
            raise InputError(f"{self.source.path} holds nothing to score")
        merge_tables(parts, target, self.provenance())
