"""Predicting a file of sequences, or along a genome: chunks, parts on disk, one output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.data.sources import Sequence as Given
from megabase.data.sources import genome_store
from megabase.errors import InputError, OutputError
from megabase.evaluate.provenance import Provenance
from megabase.evaluate.sequences import Stitch
from megabase.genome.alphabet import BASE_BITS, T
from megabase.genome.files import atomic_file, check_output
from megabase.genome.interval import Interval, one_based
from megabase.genome.store import GenomeStore
from megabase.inference.input_stream import SequenceInput, region_columns
from megabase.inference.prediction import Predictor, labels_of
from megabase.inference.sharding import run_job
from megabase.inference.tables import merge_tables, require_table_suffix
from megabase.inference.tracks import Run, call_stretches, require_bigwig, write_bigwig
from megabase.models.loading import find_class

__all__ = ["TRACK_SUFFIXES", "PredictJob", "TrackJob", "TrackOptions", "predict_file",
           "predict_track"]  # fmt: skip

TRACK_SUFFIXES = (".bw", ".bigwig", ".bed")
_CHUNK_BASES = 1 << 20
_CHUNK_SEQUENCES = 4096
_LISTED = 20
"""Most regions that a provenance lists."""
_BLOCK = 1 << 17
"""Bases of a genome that one chunk answers for."""


@dataclass
class PredictJob:
    """Labels of sequences: ``megabase predict`` with a table as output.

    Parameters
    ----------
    source
        What is read.
    model, prompt
        As for :class:`megabase.inference.prediction.Predictor`.
    both_strands
        Average over both strands; as in training when None.
    batch_tokens
        About how many positions a forward pass takes.
    """

    source: SequenceInput
    model: str
    both_strands: bool | None = None
    batch_tokens: int = 1 << 16
    prompt: str | None = None
    suffix: str = ".parquet"

    def predictor(self, device: str | None = None) -> Predictor:
        """Load the model."""
        return Predictor(
            self.model, prompt=self.prompt, both_strands=self.both_strands,
            batch_tokens=self.batch_tokens, device=device,
        )  # fmt: skip

    def provenance(self) -> Provenance:
        """Give what is computed."""
        return self._provenance

    @cached_property
    def _provenance(self) -> Provenance:
        ready = self.predictor()
        return self.source.provenance(
            "predict", ready.name, ready.digest, both_strands=ready.both_strands
        )

    def chunks(self) -> Iterator[list[Given]]:
        """Read the input in chunks."""
        yield from self.source.chunks(_CHUNK_BASES, _CHUNK_SEQUENCES)

    def items(self, chunk: list[Given]) -> int:
        """Count sequences."""
        return len(chunk)

    def open(self, device: str | None) -> Callable[[list[Given]], pl.DataFrame]:
        """Load the model and give the function from sequences to a frame."""
        ready = self.predictor(device)

        def compute(chunk: list[Given]) -> pl.DataFrame:
            try:
                values = ready.sequences([i.codes for i in chunk], [i.name for i in chunk])
            except InputError as error:
                raise InputError(f"{Path(self.source.path).name}: {error}") from error
            columns = region_columns(chunk)
            if ready.problem != "regression":
                columns["label"] = list(labels_of(values, ready.classes, ready.problem))
            prefix = "" if ready.problem == "regression" else "p_"
            for number, name in enumerate(ready.classes):
                columns[f"{prefix}{name}"] = values[:, number]
            return pl.DataFrame(columns)

        return compute

    def write_part(self, result: pl.DataFrame, path: Path) -> None:
        """Write the predictions of a chunk."""
        result.write_parquet(path)

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the output."""
        if not parts:
            raise InputError(f"{self.source.path}: holds no sequence")
        merge_tables(parts, target, self.provenance())


def predict_file(
    source: SequenceInput,
    target: str | Path,
    model: str,
    *,
    prompt: str | None = None,
    both_strands: bool | None = None,
    batch_tokens: int = 1 << 16,
    **running: Any,
) -> Path:
    """Predict the labels of the sequences of a file, into Parquet or TSV.

    Parameters
    ----------
    source
        What is read.
    target
        Output: one row for each sequence, with its label and a probability for each class.
    model, prompt, both_strands, batch_tokens
        As for :class:`megabase.inference.prediction.Predictor`.
    **running
        See :func:`megabase.inference.sharding.run_job`.

    Raises
    ------
    MegabaseError
        For input, a model or an output that cannot be used.
    """
    require_table_suffix(Path(target))
    job = PredictJob(source, model, both_strands, batch_tokens, prompt)
    return run_job(job, target, **running)


@dataclass(frozen=True)
class TrackOptions:
    """What decides the numbers along a genome."""

    output: str | None = None
    """Class whose probability is wanted, by name or number; the second of two when None."""
    window: int | None = None
    """Bases that the model reads at once; as many as it can when None."""
    overlap: int | None = None
    """Bases that neighbouring windows share; half of the window when None."""
    stitch: Stitch = "centre"
    """Which window answers for a base: centre, before or average."""
    both_strands: bool | None = None
    """Average over both strands; as in training when None."""
    threshold: float = 0.5
    """Smallest probability of a called base."""
    shortest: int = 1
    """Shortest called stretch in bases."""
    join: int = 0
    """Called stretches with at most so many bases between them become one."""


class _Block(NamedTuple):
    """The bases that a chunk answers for."""

    contig: str
    low: int
    high: int


@dataclass
class TrackJob:
    """Predictions along regions of a genome: ``megabase predict`` with a track as output.

    Parameters
    ----------
    genome
        Genome store or FASTA.
    regions
        (contig, start, end), 0-based half-open, in the order of the genome, without overlap.
    model, prompt
        As for :class:`megabase.inference.prediction.Predictor`.
    options
        What decides the numbers.
    calls
        BED file of called stretches to write beside a bigWig.
    """

    genome: str
    regions: tuple[tuple[str, int, int], ...]
    model: str
    options: TrackOptions = field(default_factory=TrackOptions)
    calls: str | None = None
    overwrite: bool = False
    batch_tokens: int = 1 << 16
    prompt: str | None = None
    suffix: str = ".npz"

    def predictor(self, device: str | None = None) -> Predictor:
        """Load the model."""
        return Predictor(
            self.model, prompt=self.prompt, batch_tokens=self.batch_tokens, device=device,
            both_strands=self.options.both_strands,
        )  # fmt: skip

    @cached_property
    def _column(self) -> tuple[int, str]:
        ready = self.predictor()
        names = ready.classes
        if self.options.output is not None:
            number = find_class(names, self.options.output, ready.name)
        elif len(names) in (1, 2):
            number = len(names) - 1
        else:
            raise InputError(
                f"{ready.name} has {len(names)} outputs; name the one whose track is wanted: "
                f"{', '.join(names[:20])}"
            )
        return number, names[number]

    def provenance(self) -> Provenance:
        """Give what is computed."""
        return self._provenance

    @cached_property
    def _provenance(self) -> Provenance:
        ready = self.predictor()
        with genome_store(self.genome) as store:
            name, checksum = store.name, store.checksum
        options = {**asdict(self.options), "output": self._column[1]}
        options["both_strands"] = ready.both_strands
        options["regions"] = _region_texts(self.regions)
        return Provenance("predict", ready.name, ready.digest, name, checksum, {}, options)

    def chunks(self) -> Iterator[_Block]:
        """Cut the regions into blocks."""
        for contig, start, end in self.regions:
            for low in range(start, end, _BLOCK):
                yield _Block(contig, low, min(low + _BLOCK, end))

    def items(self, chunk: _Block) -> int:
        """Count bases."""
        return chunk.high - chunk.low

    def open(self, device: str | None) -> Callable[[_Block], dict[str, NDArray[Any]]]:
        """Load the model and give the function from a block to its numbers."""
        ready = self.predictor(device)
        options, column = self.options, self._column[0]
        kept = genome_store(self.genome)
        store = kept.__enter__()

        def compute(block: _Block) -> dict[str, NDArray[Any]]:
            values = _along_block(ready, store, block, options)[:, column]
            codes = store.fetch(Interval(block.contig, block.low, block.high))
            values[(codes & BASE_BITS) > T] = np.nan
            _ = kept  # a genome from FASTA lives as long as this function
            return {"contig": np.array(block.contig), "start": np.array(block.low),
                    "values": values}  # fmt: skip

        return compute

    def write_part(self, result: dict[str, NDArray[Any]], path: Path) -> None:
        """Write the numbers of a block."""
        with path.open("wb") as file:
            np.savez(file, **result)  # pyright: ignore[reportArgumentType]

    def merge(self, parts: list[Path], target: Path) -> None:
        """Write the bigWig or the BED, and the BED beside a bigWig."""
        if target.suffix.lower() == ".bed":
            with target.open("wb") as file:
                self._write_calls(parts, file)
            return
        with genome_store(self.genome) as store:
            contigs = {contig.name: contig.length for contig in store.contigs}
        write_bigwig(target, contigs, _runs(parts))
        if self.calls is not None:
            with atomic_file(Path(self.calls), self.overwrite) as file:
                self._write_calls(parts, file)

    def _write_calls(self, parts: list[Path], file: Any) -> None:
        options, name = self.options, self._column[1].replace("\t", " ")
        file.write(f"#megabase: {self.provenance().to_json()}\n".encode())
        for call in call_stretches(
            _runs(parts), options.threshold, shortest=options.shortest, join=options.join
        ):
            score = round(1000 * min(max(call.mean, 0.0), 1.0))
            file.write(f"{call.contig}\t{call.start}\t{call.end}\t{name}\t{score}\t.\n".encode())


def _region_texts(regions: Sequence[tuple[str, int, int]]) -> list[str] | dict[str, Any]:
    """Give regions as people write them (1-based, both ends included), or their number and sha256.

    A genome has 10^5 peaks, and this goes into one line of every header.
    """
    texts = [f"{contig}:{one_based(start)}-{end}" for contig, start, end in regions]
    if len(texts) <= _LISTED:
        return texts
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"count": len(texts), "sha256": digest}


def _runs(parts: list[Path]) -> Iterator[Run]:
    for part in parts:
        with np.load(part) as found:
            yield Run(str(found["contig"]), int(found["start"]), found["values"])


def _along_block(
    ready: Predictor, store: GenomeStore, block: _Block, options: TrackOptions
) -> NDArray[np.float32]:
    """Answer for the bases of a block.

    The grid of windows is that of the whole contig, so a region has the numbers that it has in a
    track of the whole genome, and blocks only share out the windows.
    """
    part = (block.low, block.high)
    length = store.contig(block.contig).length
    spans = ready.plan(length, options.window, options.overlap, options.stitch, part)
    codes = store.fetch(Interval(block.contig, spans[0].start, spans[-1].end))
    return ready.spans(codes, spans[0].start, spans, part, block.contig)


def predict_track(
    genome: str | Path,
    target: str | Path,
    model: str,
    *,
    regions: list[str] | None = None,
    prompt: str | None = None,
    options: TrackOptions | None = None,
    calls: str | Path | None = None,
    batch_tokens: int = 1 << 16,
    strict: bool = False,
    **running: Any,
) -> Path:
    """Predict along a genome, into bigWig or BED.

    Parameters
    ----------
    genome
        Genome store or FASTA.
    target
        ``.bw`` or ``.bigwig``: the probability of one class at every base that is A, C, G or T.
        ``.bed``: the stretches where it reaches the threshold, with 1000 times its mean as score.
    model, prompt
        As for :class:`megabase.inference.prediction.Predictor`.
    regions
        Contigs, stretches (``chr1:1,001-2,000``) or BED files; the whole genome when None.
    options
        What decides the numbers.
    calls
        BED file to write beside a bigWig.
    batch_tokens
        About how many positions a forward pass takes.
    strict
        Refuse rows of BED files that are not on the genome, which are left out otherwise.
    **running
        See :func:`megabase.inference.sharding.run_job`.

    Raises
    ------
    MegabaseError
        For input, a model or an output that cannot be used.
    """
    target = Path(target)
    suffix = require_table_suffix(target, TRACK_SUFFIXES)
    options = options or TrackOptions()
    if suffix != ".bed":
        require_bigwig()
    elif calls is not None:
        raise OutputError("calls are a BED file beside a bigWig; the output is BED already")
    if calls is not None and not str(calls).lower().endswith(".bed"):
        raise OutputError(f"{calls}: called stretches are written as BED; name a file that ends so")
    overwrite = bool(running.get("overwrite", False))
    if calls is not None:
        check_output(Path(calls), overwrite)
    with genome_store(genome) as store:
        chosen = _regions(store, regions, strict)
    job = TrackJob(
        str(genome), chosen, model, options, None if calls is None else str(calls),
        overwrite, batch_tokens, prompt,
    )  # fmt: skip
    if suffix == ".bed":
        job = replace(job, calls=None)
    return run_job(job, target, **running)


def _regions(
    store: GenomeStore, places: list[str] | None, strict: bool
) -> tuple[tuple[str, int, int], ...]:
    if not places:
        return tuple((contig.name, 0, contig.length) for contig in store.contigs)
    from megabase.data.regions import regions_of

    found = regions_of(store, places, strict=strict)
    rows = zip(found.contig.tolist(), found.start.tolist(), found.end.tolist(), strict=True)
    return tuple((store.contigs[i].name, start, end) for i, start, end in rows)
