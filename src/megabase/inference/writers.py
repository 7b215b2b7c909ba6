"""Outputs merged from parts on disk: tables, and numbers along a genome.

A part is Parquet. Merging never holds more than one part, whatever the size of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.errors import OutputError
from megabase.genome.files import writing
from megabase.genome.signal import require_bigwig
from megabase.inference.parts import Provenance

TABLE_SUFFIXES = (".parquet", ".tsv")
"""Endings of tables."""
_ROW_GROUP = 1 << 16  # rows that a reader of Parquet has to hold at once
_DIGITS = 7  # in text: as many as a model that computes in 32 bits gives


def require_suffix(target: str | Path, suffixes: Sequence[str] = TABLE_SUFFIXES) -> str:
    """Give the ending of an output, which says its format; OutputError if not in `suffixes`."""
    for suffix in suffixes:
        if Path(target).name.lower().endswith(suffix):
            return suffix
    known = ", ".join(suffixes)
    raise OutputError(f"{target}: the ending says the format; expected one of {known}")


def merge_tables(parts: Sequence[Path], target: Path, provenance: Provenance) -> None:
    """Merge parts, in order, into Parquet or TSV by the ending of `target`.

    Provenance as JSON is metadata ``megabase`` of Parquet, and the first line of TSV, ``#megabase:
    {...}``. TSV has lists as numbers with commas between, and seven significant digits.
    """
    suffix = require_suffix(target)
    frame = pl.scan_parquet(list(parts), glob=False)
    if suffix == ".parquet":
        about = {"megabase": provenance.to_json()}
        frame.sink_parquet(target, row_group_size=_ROW_GROUP, metadata=about)
        return
    with target.open("wb") as file:
        file.write(f"#megabase: {provenance.to_json()}\n".encode())
        for number, part in enumerate(parts):
            rows = pl.read_parquet(part, glob=False)
            rows = rows.with_columns(_as_text(name, dtype) for name, dtype in rows.schema.items())
            rows.write_csv(file, separator="\t", include_header=number == 0)


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.List):
        each = pl.element()
        if dtype.inner.is_float():
            each = each.round_sig_figs(_DIGITS)
        return pl.col(name).list.eval(each.cast(pl.String).fill_null("nan")).list.join(",")
    return pl.col(name).round_sig_figs(_DIGITS) if dtype.is_float() else pl.col(name)


class Run(NamedTuple):
    """Numbers of neighboring bases from 0-based `start`: float32 (n,), NaN where there is none."""

    contig: str
    start: int
    values: NDArray[np.float32]

    @classmethod
    def read(cls, parts: Sequence[Path], column: str = "values") -> Iterator[Run]:
        """Read intervals of parts: contig, start, strand and a list, the column."""
        columns = ["contig", "start", "strand", column]
        for part in parts:
            frame = pl.read_parquet(part, columns=columns, glob=False)
            for contig, start, strand, values in frame.iter_rows():
                along = np.array(values, dtype=np.float32)
                yield cls(contig, start, along[::-1] if strand == "-" else along)


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
