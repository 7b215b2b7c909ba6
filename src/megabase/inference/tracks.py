"""Numbers along a genome as bigWig, and stretches above a threshold as BED."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megabase.errors import MissingDependencyError, OutputError
from megabase.genome.files import writing

__all__ = ["Call", "Run", "call_stretches", "require_bigwig", "runs_of", "write_bigwig"]


@dataclass(frozen=True)
class Run:
    """Numbers of neighbouring bases.

    Parameters
    ----------
    contig
        Name of the contig.
    start
        0-based index of the first base.
    values
        float (n,); NaN where there is none.
    """

    contig: str
    start: int
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Call:
    """A stretch whose bases all reach a threshold: 0-based half-open, with the mean of them."""

    contig: str
    start: int
    end: int
    mean: float


def require_bigwig(purpose: str = "writing bigWig") -> None:
    """Raise a clear error when the package for bigWig files is missing.

    Parameters
    ----------
    purpose
        What needs it, for the message.

    Raises
    ------
    MissingDependencyError
        Naming the extra that brings the writer.
    """
    try:
        import pybigtools  # noqa: F401
    except ImportError:
        raise MissingDependencyError("pybigtools", "tracks", purpose) from None


def runs_of(values: NDArray[np.float32]) -> Iterator[tuple[int, int, float]]:
    """Give stretches of one value, as (first, after the last, value); NaN is left out.

    Examples
    --------
    >>> list(runs_of(np.array([1, 1, np.nan, 2], dtype=np.float32)))
    [(0, 2, 1.0), (3, 4, 2.0)]
    """
    if not len(values):
        return
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1  # NaN differs from itself: its own run
    bounds = np.concatenate(([0], changes, [len(values)]))
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        value = float(values[first])
        if not np.isnan(value):
            yield first, last, value


def write_bigwig(path: Path, contigs: Mapping[str, int], runs: Iterable[Run]) -> None:
    """Write numbers along a genome.

    Parameters
    ----------
    path
        File to write; written whole by the caller's care (beside its place, then renamed).
    contigs
        Length of every contig of the genome.
    runs
        In the order of the genome, without overlap; contigs one after the other.

    Raises
    ------
    OutputError
        When a run lies outside its contig or before one that was written, or the file cannot be
        written.
    MissingDependencyError
        When pybigtools is not installed.
    """
    require_bigwig()
    import pybigtools

    name = path.name.rpartition(".tmp.")[2]  # what it will be called

    def entries() -> Iterator[tuple[str, int, int, float]]:
        contig, reached, finished = "", 0, set[str]()
        for run in runs:
            if run.contig != contig:
                finished.add(contig)
                contig, reached = run.contig, 0
            length = contigs.get(run.contig, 0)
            if run.contig in finished or run.start < reached:
                raise OutputError(
                    f"{name}: {run.contig}:{run.start + 1:,} comes after a later place; "
                    "tracks are written in the order of the genome, without overlap"
                )
            reached = run.start + len(run.values)
            if reached > length:
                raise OutputError(
                    f"{name}: {run.contig}:{run.start + 1:,}-{reached:,} reaches past the end "
                    f"of the contig ({length:,})"
                )
            for first, last, value in runs_of(run.values):
                yield run.contig, run.start + first, run.start + last, value

    # The writer swallows what its input raises, so the error is kept and raised again.
    failure: list[BaseException] = []

    def guarded() -> Iterator[tuple[str, int, int, float]]:
        try:
            yield from entries()
        except BaseException as error:  # noqa: BLE001
            failure.append(error)

    used: list[tuple[str, int, int, float]] = []
    stream = guarded()
    for entry in stream:
        used.append(entry)
        break
    if failure:
        raise failure[0]
    if not used:
        raise OutputError(f"{name}: there is no number to write")

    def all_entries() -> Iterator[tuple[str, int, int, float]]:
        yield used[0]
        yield from stream

    try:
        pybigtools.open(str(path), "w").write(dict(contigs), all_entries())
    except (OSError, ValueError, RuntimeError) as error:
        if failure:
            raise failure[0] from error
        with writing(path):
            raise
    if failure:
        raise failure[0]


def call_stretches(
    runs: Iterable[Run], threshold: float, *, shortest: int = 1, join: int = 0
) -> Iterator[Call]:
    """Call stretches whose bases reach a threshold.

    Parameters
    ----------
    runs
        In the order of the genome, without overlap; neighbours may touch, and a stretch goes on
        over the border.
    threshold
        Smallest number of a base that counts.
    shortest
        Shortest stretch in bases, after joining.
    join
        Stretches with at most so many bases between them become one. The mean is over the bases
        that count.

    Yields
    ------
    Call
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
