"""Attributing a file of sequences or places: chunks, parts on disk, one output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from megabase.data.sources import Sequence, genome_store
from megabase.errors import InputError, OutputError
from megabase.evaluate.provenance import Provenance
from megabase.inference.attribution import Attributor
from megabase.inference.input_stream import SequenceInput, region_columns
from megabase.inference.matrix_files import write_npz
from megabase.inference.sharding import run_job
from megabase.inference.tables import merge_tables, require_table_suffix
from megabase.inference.tracks import Run, require_bigwig, write_bigwig

__all__ = ["ATTRIBUTE_SUFFIXES", "AttributeJob", "AttributeOptions", "attribute_file"]

ATTRIBUTE_SUFFIXES = (".parquet", ".npz", ".bw", ".bigwig")
_CHUNK_BASES = 1 << 16
_CHUNK_SEQUENCES = 256


@dataclass(frozen=True)
class AttributeOptions:
    """What decides the numbers; see :class:`megabase.inference.attribution.Attributor`."""

    target: str | None = None
    """Class, by name or number."""
    method: str = "integrated_gradients"
    """gradient, gradient_input or integrated_gradients."""
    baseline: str = "uniform"
    """uniform or n."""
    steps: int = 64
    """Points on the way from the baseline."""


@dataclass
class AttributeJob:
    """The work of ``megabase attribute``.

    Parameters
    ----------
    source
        What is read.
    model
        As for :class:`megabase.inference.attribution.Attributor`.
    options
        What decides the numbers.
    batch_tokens
        About how many positions a pass takes.
    """

    source: SequenceInput
    model: str | None = None
    options: AttributeOptions = field(default_factory=AttributeOptions)
    batch_tokens: int = 1 << 15
    suffix: str = ".parquet"

    def attributor(self, device: str | None = None) -> Attributor:
        """Load the model."""
        options: dict[str, Any] = asdict(self.options)
        return Attributor(self.model, batch_tokens=self.batch_tokens, device=device, **options)

    def provenance(self) -> Provenance:
        """Give what is computed."""
        return self._provenance

    @cached_property
    def _provenance(self) -> Provenance:
        ready = self.attributor()
        options = {**asdict(self.options), "target": ready.target_name}
        return self.source.provenance("attribute", ready.name, ready.digest, **options)

    def chunks(self) -> Iterator[list[Sequence]]:
        """Read the input in chunks."""
        yield from self.source.chunks(_CHUNK_BASES, _CHUNK_SEQUENCES)

    def items(self, chunk: list[Sequence]) -> int:
        """Count sequences."""
        return len(chunk)

    def open(self, device: str | None) -> Callable[[list[Sequence]], pl.DataFrame]:
        """Load the model and give the function from sequences to a frame."""
        ready = self.attributor(device)

        def compute(chunk: list[Sequence]) -> pl.DataFrame:
            found = []
            for item in chunk:
                try:
                    found.append(ready(item.codes, item.name))
                except InputError as error:
                    raise InputError(f"{Path(self.source.path).name}: {error}") from error
            floats = pl.List(pl.Float32)
            return pl.DataFrame(region_columns(chunk)).with_columns(
                pl.Series("output", [one.output for one in found]),
                pl.Series("baseline_output", [one.baseline_output for one in found]),
                pl.Series("gap", [one.gap for one in found]),
                pl.Series("values", [one.values.tolist() for one in found], dtype=floats),
                pl.Series("letters", [one.letters.ravel().tolist() for one in found], dtype=floats),
            )

        return compute

    def write_part(self, result: pl.DataFrame, path: Path) -> None:
        """Write the attributions of a chunk."""
        result.write_parquet(path)

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the output."""
        if not parts:
            raise InputError(f"{self.source.path}: holds no sequence")
        suffix = require_table_suffix(target, ATTRIBUTE_SUFFIXES)
        if suffix == ".parquet":
            merge_tables(parts, target, self.provenance())
        elif suffix == ".npz":
            _write_npz(parts, target, self.provenance())
        else:
            with genome_store(str(self.source.genome)) as store:
                contigs = {contig.name: contig.length for contig in store.contigs}
            write_bigwig(target, contigs, _runs(parts))


def _write_npz(parts: list[Path], target: Path, provenance: Provenance) -> None:
    frame = pl.concat([pl.read_parquet(part, glob=False) for part in parts])
    lengths = frame["length"].to_numpy()
    write_npz(
        target,
        {
            "names": np.array(frame["name"].to_list(), dtype=np.str_),
            "offsets": np.concatenate(([0], np.cumsum(lengths))),
            "values": frame["values"].explode().to_numpy(),
            "letters": frame["letters"].explode().to_numpy().reshape(-1, 4),
            "output": frame["output"].to_numpy(),
            "baseline_output": frame["baseline_output"].to_numpy(),
            "gap": frame["gap"].to_numpy(),
            "megabase": np.array(provenance.to_json()),
        },
    )


def _runs(parts: list[Path]) -> Iterator[Run]:
    columns = ["contig", "start", "strand", "values"]
    for part in parts:
        for contig, start, strand, values in pl.read_parquet(part, columns=columns).iter_rows():
            along = np.array(values, dtype=np.float32)
            yield Run(contig, start, along[::-1] if strand == "-" else along)


def attribute_file(
    source: SequenceInput,
    target: str | Path,
    model: str | None = None,
    options: AttributeOptions | None = None,
    *,
    batch_tokens: int = 1 << 15,
    **running: Any,
) -> Path:
    """Attribute an output of a model to the bases of a file of sequences.

    Parameters
    ----------
    source
        What is read.
    target
        ``.parquet``: a row for each sequence with lists ``values`` (a number for each base) and
        ``letters`` (four for each base, A, C, G, T). ``.npz``: the same end to end, with offsets.
        ``.bw``: the values along the genome, for BED input in its order without overlap.
    model
        Model folder, run folder, preset or Hub name; None for the packaged model.
    options
        What decides the numbers.
    batch_tokens
        About how many positions a pass takes.
    **running
        See :func:`megabase.inference.sharding.run_job`.

    Raises
    ------
    MegabaseError
        For input, a model or an output that cannot be used.
    """
    suffix = require_table_suffix(Path(target), ATTRIBUTE_SUFFIXES)
    if suffix in (".bw", ".bigwig"):
        require_bigwig()
        if source.found_kind != "bed":
            raise OutputError(
                f"{target}: a track needs places in a genome; give a BED file, or write Parquet "
                "or npz"
            )
    job = AttributeJob(source, model, options or AttributeOptions(), batch_tokens)
    return run_job(job, target, **running)
