"""Embedding a file: chunks of sequences, parts on disk, one output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from megabase.data.sources import Sequence
from megabase.errors import InputError
from megabase.evaluate.provenance import Provenance
from megabase.inference.embedding import Embedder
from megabase.inference.input_stream import SequenceInput
from megabase.inference.matrix_files import check_matrix_target, matrix_frame, merge_matrix
from megabase.inference.sharding import run_job

__all__ = ["EmbedJob", "EmbedOptions", "embed_file"]

_CHUNK_BASES = 1 << 20
_CHUNK_SEQUENCES = 4096


@dataclass(frozen=True)
class EmbedOptions:
    """What decides the vectors; see :class:`megabase.inference.embedding.Embedder`."""

    layer: int = -1
    """0 for the token embedding, k for block k, negative from the last."""
    pooling: str = "mean"
    """mean, max, sum, first, last; or none for one vector for each base."""
    long: str = "error"
    """error, chunks or published."""
    both_strands: bool = False
    """Average with the reverse complement."""


@dataclass
class EmbedJob:
    """The work of ``megabase embed``.

    Parameters
    ----------
    source
        What is read.
    model
        As for :class:`megabase.inference.embedding.Embedder`.
    options
        What decides the vectors.
    batch_tokens
        About how many positions a forward pass takes.
    """

    source: SequenceInput
    model: str | None = None
    options: EmbedOptions = field(default_factory=EmbedOptions)
    batch_tokens: int = 1 << 16
    suffix: str = ".parquet"

    def embedder(self, device: str | None = None) -> Embedder:
        """Load the model."""
        options: dict[str, Any] = asdict(self.options)
        if options["pooling"] == "none":
            options["pooling"] = "mean"
        return Embedder(self.model, batch_tokens=self.batch_tokens, device=device, **options)

    def provenance(self) -> Provenance:
        """Give what is computed."""
        return self._provenance

    @cached_property
    def _provenance(self) -> Provenance:
        ready = self.embedder()
        options = {**asdict(self.options), "layer": ready.layer}
        return self.source.provenance("embed", ready.name, ready.digest, **options)

    def chunks(self) -> Iterator[list[Sequence]]:
        """Read the input in chunks."""
        yield from self.source.chunks(_CHUNK_BASES, _CHUNK_SEQUENCES)

    def items(self, chunk: list[Sequence]) -> int:
        """Count sequences."""
        return len(chunk)

    def open(self, device: str | None) -> Callable[[list[Sequence]], pl.DataFrame]:
        """Load the model and give the function from sequences to a frame."""
        ready = self.embedder(device)
        per_base = self.options.pooling == "none"

        def compute(chunk: list[Sequence]) -> pl.DataFrame:
            try:
                return _per_base(ready, chunk) if per_base else _pooled(ready, chunk)
            except InputError as error:
                raise InputError(f"{Path(self.source.path).name}: {error}") from error

        return compute

    def write_part(self, result: pl.DataFrame, path: Path) -> None:
        """Write the vectors of a chunk."""
        result.write_parquet(path)

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the output."""
        if not parts:
            raise InputError(f"{self.source.path}: holds no sequence")
        merge_matrix(parts, target, self.provenance())


def place_columns(chunk: list[Sequence]) -> dict[str, Any]:
    """Give the columns that say where sequences come from: 0-based half-open, as in BED."""
    columns: dict[str, Any] = {"name": [item.name for item in chunk]}
    if any(item.interval is not None for item in chunk):
        places = [item.interval for item in chunk]
        columns["contig"] = [p.contig if p else None for p in places]
        columns["start"] = [p.start if p else None for p in places]
        columns["end"] = [p.end if p else None for p in places]
        columns["strand"] = [str(p.strand) if p else None for p in places]
    columns["length"] = np.array([item.length for item in chunk], dtype=np.int64)
    return columns


def _pooled(ready: Embedder, chunk: list[Sequence]) -> pl.DataFrame:
    vectors, pieces = ready.pooled([item.codes for item in chunk], [item.name for item in chunk])
    return matrix_frame({**place_columns(chunk), "chunks": pieces}, vectors)


def _per_base(ready: Embedder, chunk: list[Sequence]) -> pl.DataFrame:
    names = [item.name for item in chunk]
    found = list(ready.per_base([item.codes for item in chunk], names))
    lengths = [len(rows) for rows in found]
    columns = {
        "name": np.repeat(np.array(names, dtype=object), lengths).tolist(),
        "position": np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]),
    }
    return matrix_frame(columns, np.concatenate(found))


def embed_file(
    source: SequenceInput,
    target: str | Path,
    model: str | None = None,
    options: EmbedOptions | None = None,
    *,
    batch_tokens: int = 1 << 16,
    **running: Any,
) -> Path:
    """Embed a file of sequences.

    Parameters
    ----------
    source
        What is read.
    target
        Output; its ending says the format (:data:`megabase.inference.matrix_files`).
    model
        Model folder, run folder, preset or Hub name; None for the packaged model.
    options
        What decides the vectors.
    batch_tokens
        About how many positions a forward pass takes.
    **running
        ``workers``, ``device``, ``threads``, ``resume``, ``overwrite``, ``progress``: see
        :func:`megabase.inference.sharding.run_job`.

    Returns
    -------
    pathlib.Path
        The output.

    Raises
    ------
    MegabaseError
        For input, a model or an output that cannot be used.
    """
    check_matrix_target(Path(target))
    job = EmbedJob(source, model, options or EmbedOptions(), batch_tokens)
    return run_job(job, target, **running)
