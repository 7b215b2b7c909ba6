"""Predictions along a genome, into bigWig or BED."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import polars as pl

from megabase.data.regions import Regions
from megabase.data.sources import genome_store
from megabase.errors import InputError, OutputError
from megabase.evaluate.sequences import Stitch
from megabase.genome.alphabet import BASE_BITS, T
from megabase.genome.files import atomic_file, check_output
from megabase.genome.interval import Interval, one_based
from megabase.genome.signal import require_bigwig
from megabase.genome.store import Genome
from megabase.inference.embedding import Averaged
from megabase.inference.jobs import Work, check_run, map_file
from megabase.inference.parts import Provenance
from megabase.inference.prediction import Predictor
from megabase.inference.writers import Run, require_suffix, write_bigwig
from megabase.models.loading import ModelSpec, find_class, track_names
from megabase.options import PassOptions, RunOptions

TRACK_SUFFIXES = (".bw", ".bigwig", ".bed")
"""Endings of a track, or of the regions called in it."""
_LISTED = 20  # regions that a provenance lists: it is one line of the header of an output
_BLOCK = 1 << 17  # bases that one chunk answers for: seconds of work, and several a contig


@dataclass(frozen=True)
class TrackOptions:
    """What decides the numbers along a genome."""

    output: str | None = None
    """Class whose probability is wanted, or track, by name or number; the second of two classes,
    and all tracks, when None."""
    window: int | None = None
    """Bases that the model reads at once; as many as it can when None."""
    overlap: int | None = None
    """Bases that neighboring windows share; half of the window when None."""
    stitch: Stitch = "center"
    """Which window answers for a base: center, before or average."""
    strands: Averaged | None = None
    """forward, or both for the mean; as in training when None."""
    threshold: float = 0.5
    """Smallest probability of a called base."""
    shortest: int = 1
    """Shortest called region in bases."""
    join: int = 0
    """Called regions with at most this many bases between them become one."""


_Call = tuple[str, int, int, float]
"""A region whose bases all reach a threshold: contig, start, end, and the mean of its bases."""


class _Tracker(NamedTuple):
    """A model, the genome, and the outputs of the model that are followed along it."""

    predictor: Predictor
    store: Genome
    options: TrackOptions
    columns: list[int]


def predict_track(
    model: ModelSpec, genome: str | Path, output: str | Path, *,
    regions: Sequence[str] | None = None, options: TrackOptions | None = None,
    prompt: str | Path | None = None, calls: str | Path | None = None, strict: bool = False,
    **running: Unpack[RunOptions],
) -> list[Path]:  # fmt: skip
    """Predict along a genome (a store or FASTA), or regions of it, with a model as for `predict`.

    ``.bw`` or ``.bigwig``: the probability of one class at every base that is A, C, G or T, or the
    number of a track, in its unit; of several tracks one file each, ``OUTPUT.NAME.bw``.
    ``.bed``: the regions where it reaches the threshold, with 1000 times its mean as score; `calls`
    is such a file beside a bigWig. Regions are contigs, ``chr1:1,001-2,000`` or BED files; `strict`
    refuses their rows that are not on the genome.
    """
    output, options = Path(output), options or TrackOptions()
    overwrite = running.get("overwrite", False)
    as_bed = require_suffix(output, TRACK_SUFFIXES) == ".bed"
    if not as_bed:
        require_bigwig()
    if calls is not None:
        if as_bed:
            raise OutputError("calls are a BED file beside a bigWig; the output is BED already")
        if not str(calls).lower().endswith(".bed"):
            raise OutputError(f"{calls}: called regions are written as BED; name a file ending so")
        check_output(Path(calls), overwrite)
    names = track_names(model) if options.output is None and prompt is None and not as_bed else ()
    targets = [output]
    if len(names) > 1:
        if calls is not None or running.get("shard"):
            raise OutputError(f"calls and shards are of one track; name it: {', '.join(names)}")
        targets = [output.with_name(f"{output.stem}.{name}{output.suffix}") for name in names]
        for path in targets[1:]:
            check_output(path, overwrite)
    check_run(targets[0], **running)
    with genome_store(genome) as store:
        kept = Regions.whole(store.lengths)
        if regions:
            kept = Regions.read(store, regions, strict=strict)
        columns = (one.tolist() for one in (kept.contig, kept.start, kept.end))
        chosen = [(store.contigs[i].name, *span) for i, *span in zip(*columns, strict=True)]

        def describe(ready: _Tracker) -> Provenance:
            predictor, asked = ready.predictor, asdict(options)
            asked["output"] = ", ".join(predictor.classes[column] for column in ready.columns)
            asked["regions"] = _region_texts(chosen)
            asked["both_strands"] = predictor.both_strands
            del asked["strands"]
            places = store.name, store.checksum, {}
            return Provenance("predict", predictor.name, predictor.digest, *places, asked)

        def merge(parts: list[Path], target: Path, provenance: Provenance) -> None:
            if as_bed:
                with target.open("wb") as file:
                    _write_calls(parts, file, options, provenance)
                return
            contigs = {contig.name: contig.length for contig in store.contigs}
            write_bigwig(target, contigs, Run.read(parts))
            for number, path in enumerate(targets[1:], start=1):
                with atomic_file(path, overwrite, seeks=True) as file:
                    write_bigwig(Path(file.name), contigs, Run.read(parts, f"values_{number}"))
            if calls is not None:
                with atomic_file(Path(calls), overwrite) as file:
                    _write_calls(parts, file, options, provenance)

        work = Work(
            _block, partial(_tracker, model, prompt, store.path, options),
            partial(_blocks, chosen), attrgetter("length"),
        )  # fmt: skip
        map_file(work, targets[0], describe, merge, **running)
    return targets


def _tracker(
    model: ModelSpec, prompt: str | Path | None, genome: Path, options: TrackOptions,
    **passes: Unpack[PassOptions],
) -> _Tracker:  # fmt: skip
    ready = Predictor(model, prompt=prompt, strands=options.strands, **passes)
    names = ready.classes
    if options.output is not None:
        columns = [find_class(names, options.output, ready.name)]
    elif ready.by_base and ready.units is not None:
        columns = list(range(len(names)))
    elif len(names) in (1, 2):
        columns = [len(names) - 1]
    else:
        raise InputError(
            f"{ready.name} has {len(names)} outputs; name the one whose track is wanted: "
            f"{', '.join(names[:20])}"
        )
    return _Tracker(ready, Genome(genome), options, columns)


def _blocks(regions: Iterable[tuple[str, int, int]]) -> Iterator[Interval]:
    for contig, start, end in regions:
        for low in range(start, end, _BLOCK):
            yield Interval(contig, low, min(low + _BLOCK, end))


def _block(ready: _Tracker, block: Interval) -> pl.DataFrame:
    """Answer for the bases of a block; NaN where the genome has no A, C, G or T.

    The grid of windows is that of the whole contig, so a region has the numbers that it has in a
    track of the whole genome, and blocks only share out the windows.
    """
    contig, low, high = block.contig, block.start, block.end
    options, codes = ready.options, ready.store.view(contig)
    values = ready.predictor.along(
        codes, window=options.window, overlap=options.overlap, stitch=options.stitch,
        part=(low, high), name=contig,
    )[:, ready.columns]  # fmt: skip
    values[(codes[low:high] & BASE_BITS) > T] = np.nan
    names = ["values", *(f"values_{number}" for number in range(1, len(ready.columns)))]
    kind = pl.List(pl.Float32)
    columns = [pl.Series(n, [v], dtype=kind) for n, v in zip(names, values.T, strict=True)]
    return pl.DataFrame({"contig": contig, "start": low, "strand": "+"}).with_columns(columns)


def _write_calls(parts: list[Path], file: Any, options: TrackOptions, made: Provenance) -> None:
    name = made.options["output"].replace("\t", " ")
    file.write(f"#megabase: {made.to_json()}\n".encode())
    wanted = {"shortest": options.shortest, "join": options.join}
    for call in _call_regions(Run.read(parts), options.threshold, **wanted):
        score = round(1000 * min(max(call[-1], 0.0), 1.0))
        place = "\t".join(map(str, call[:3]))
        file.write(f"{place}\t{name}\t{score}\t.\n".encode())


def _region_texts(regions: Sequence[tuple[str, int, int]]) -> list[str] | dict[str, Any]:
    """Give regions as text, 1-based with both ends, or their number and sha256 if they are many."""
    texts = [f"{contig}:{one_based(start)}-{end}" for contig, start, end in regions]
    if len(texts) <= _LISTED:
        return texts
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return {"count": len(texts), "sha256": digest}


def _call_regions(
    runs: Iterable[Run], threshold: float, *, shortest: int = 1, join: int = 0
) -> Iterator[_Call]:
    """Call regions of at least `shortest` bases that all reach a threshold.

    Runs come in the order of the genome without overlap; a region goes on over their borders.
    Regions with at most `join` bases between them become one, whose mean is over the bases that
    reach it.
    """
    contig, start, end, total, count = "", 0, 0, 0.0, 0

    def finished() -> Iterator[_Call]:
        if count and end - start >= shortest:
            yield contig, start, end, total / count

    for run in runs:
        above = np.concatenate(([False], run.values >= threshold, [False]))
        edges = np.flatnonzero(above[1:] != above[:-1])
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            amount = float(run.values[first:last].astype(np.float64).sum())
            begin, stop = run.start + first, run.start + last
            if not (count and run.contig == contig and begin - end <= join):
                yield from finished()
                contig, start, total, count = run.contig, begin, 0.0, 0
            end, total, count = stop, total + amount, count + (stop - begin)
    yield from finished()
