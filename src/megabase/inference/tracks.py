"""Numbers along a genome as bigWig, and regions above a threshold as BED."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megabase.errors import MissingDependencyError, OutputError
from megabase.genome.files import writing


class Run(NamedTuple):
    """Numbers of neighboring bases from 0-based `start`: float32 (n,), NaN where there is none."""

    contig: str
    start: int
    values: NDArray[np.float32]


class Call(NamedTuple):
    """A region whose bases all reach a threshold: 0-based half-open, with the mean of them."""

    contig: str
    start: int
    end: int
    mean: float


def require_bigwig(purpose: str = "writing bigWig") -> None:
    """Refuse `purpose`, which needs the package for bigWig files, when that is missing."""
    try:
        import pybigtools  # noqa: F401
    except ImportError:
        raise MissingDependencyError("pybigtools", "tracks", purpose) from None


def write_bigwig(path: Path, contigs: Mapping[str, int], runs: Iterable[Run]) -> None:
    """Write numbers along a genome; `contigs` has the length of every contig.

    OutputError when runs overlap, are not in the order of the genome or lie outside their contig,
    or when there is no number.
    """
    require_bigwig()
    import pybigtools

    name = path.name.rpartition(".tmp.")[2]  # what it will be called
    entries = _entries(name, contigs, runs)
    first = next(entries, None)
    if first is None:
        raise OutputError(f"{name}: there is no number to write")
    # The writer swallows what its input raises, so the error is kept and raised again.
    failure: list[BaseException] = []

    def guarded() -> Iterator[tuple[str, int, int, float]]:
        try:
            yield first
            yield from entries
        except BaseException as error:  # noqa: BLE001
            failure.append(error)

    try:
        pybigtools.open(str(path), "w").write(dict(contigs), guarded())
    except (OSError, ValueError, RuntimeError) as error:
        if failure:
            raise failure[0] from error
        with writing(path):
            raise
    if failure:
        raise failure[0]


def _entries(
    name: str, contigs: Mapping[str, int], runs: Iterable[Run]
) -> Iterator[tuple[str, int, int, float]]:
    """Give the segments of one value of all runs, which are checked for their order."""
    contig, reached, finished = "", 0, set[str]()
    for run in runs:
        if run.contig != contig:
            finished.add(contig)
            contig, reached = run.contig, 0
        length = contigs.get(run.contig, 0)
        if run.contig in finished or run.start < reached:
            raise OutputError(
                f"{name}: {run.contig}:{run.start + 1:,} comes after a later position; "
                "tracks are written in the order of the genome, without overlap"
            )
        reached = run.start + len(run.values)
        if reached > length:
            raise OutputError(
                f"{name}: {run.contig}:{run.start + 1:,}-{reached:,} reaches past the end "
                f"of the contig ({length:,})"
            )
        if not len(run.values):
            continue
        changes = np.flatnonzero(run.values[1:] != run.values[:-1]) + 1  # NaN differs from itself
        bounds = np.concatenate(([0], changes, [len(run.values)]))
        for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            value = float(run.values[first])
            if not np.isnan(value):
                yield run.contig, run.start + first, run.start + last, value


def call_regions(
    runs: Iterable[Run], threshold: float, *, shortest: int = 1, join: int = 0
) -> Iterator[Call]:
    """Call regions of at least `shortest` bases that all reach a threshold.

    Runs come in the order of the genome without overlap; a region goes on over their borders.
    Regions with at most `join` bases between them become one, whose mean is over the bases that
    reach it.
    """
    contig, start, end, total, count = "", 0, 0, 0.0, 0

    def finished() -> Iterator[Call]:
        if count and end - start >= shortest:
            yield Call(contig, start, end, total / count)

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
