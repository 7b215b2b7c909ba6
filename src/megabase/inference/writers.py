"""Outputs merged from parts on disk: tables, matrices of vectors, and numbers along a genome.

A part is Parquet. Merging never holds more than one part, whatever the size of the whole.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from megabase.errors import MissingDependencyError, OutputError
from megabase.genome.files import writing
from megabase.inference.parts import Provenance

TABLE_SUFFIXES = (".parquet", ".tsv")
"""Endings of tables."""
MATRIX_SUFFIXES = (".parquet", ".npy", ".npz", ".zarr", ".h5ad")
"""Endings of rows with vectors."""
VECTOR = "embedding"  # the column or array of the vectors, under the name of what they are
_ROW_GROUP = 1 << 16  # rows that a reader of Parquet has to hold at once
_DIGITS = 7  # in text: as many as a model that computes in 32 bits gives
_ZARR_CHUNK = 1 << 22  # bytes: few files, each small enough to be read for a handful of rows
_HDF5_SLACK = 1 << 14  # what HDF5 adds for one more array: headers and alignment


def require_suffix(target: str | Path, suffixes: Sequence[str] = TABLE_SUFFIXES) -> str:
    """Give the ending of an output, which says its format; OutputError if not in `suffixes`."""
    for suffix in suffixes:
        if Path(target).name.lower().endswith(suffix):
            return suffix
    raise OutputError(
        f"{target}: the ending says the format; expected one of {', '.join(suffixes)}"
    )


def require_matrix(target: str | Path) -> str:
    """Give the ending of an output of vectors, once its format can be written here."""
    suffix = require_suffix(target, MATRIX_SUFFIXES)
    package = {".zarr": "zarr", ".h5ad": "anndata"}.get(suffix)
    if package is not None:
        try:
            __import__(package)
        except ImportError:
            raise MissingDependencyError(package, "anndata", f"writing {suffix}") from None
    return suffix


def merge_tables(parts: Sequence[Path], target: Path, provenance: Provenance) -> None:
    """Merge parts, in order, into Parquet or TSV by the ending of `target`.

    Provenance as JSON is metadata ``megabase`` of Parquet, and the first line of TSV, ``#megabase:
    {...}``. TSV has lists as numbers with commas between, and seven significant digits.
    """
    suffix = require_suffix(target)
    frame = pl.scan_parquet(list(parts), glob=False)
    if suffix == ".parquet":
        frame.sink_parquet(
            target, row_group_size=_ROW_GROUP, metadata={"megabase": provenance.to_json()}
        )
        return
    with target.open("wb") as file:
        file.write(f"#megabase: {provenance.to_json()}\n".encode())
        for number, part in enumerate(parts):
            rows = pl.read_parquet(part, glob=False)
            rows = rows.with_columns(_as_text(name, dtype) for name, dtype in rows.schema.items())
            rows.write_csv(file, separator="\t", include_header=number == 0)


def _as_text(name: str, dtype: pl.DataType) -> pl.Expr:
    """Give a column as it stands in TSV."""
    if isinstance(dtype, pl.List):
        each = pl.element()
        if dtype.inner.is_float():
            each = each.round_sig_figs(_DIGITS)
        return pl.col(name).list.eval(each.cast(pl.String).fill_null("nan")).list.join(",")
    return pl.col(name).round_sig_figs(_DIGITS) if dtype.is_float() else pl.col(name)


def matrix_frame(columns: dict[str, Any], vectors: NDArray[np.float32]) -> pl.DataFrame:
    """Put what rows are and their vectors, float32 (rows, width), into one frame."""
    array = pl.Series(VECTOR, vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    return pl.DataFrame(columns).with_columns(array)


def merge_matrix(parts: Sequence[Path], target: Path, provenance: Provenance) -> None:
    """Merge parts, in order, in the format of the ending of `target`.

    ``.npz``: arrays ``embedding`` and one for each column, and ``megabase`` (JSON). ``.zarr``: the
    same in a group, the JSON as an attribute. ``.h5ad``: AnnData with the matrix as X, the columns
    as obs (texts as categories), unique names as obs_names, and the JSON as ``uns["megabase"]``.
    """
    suffix = require_suffix(target, MATRIX_SUFFIXES)
    if suffix == ".parquet":
        merge_tables(parts, target, provenance)
        return
    frame = pl.scan_parquet(list(parts), glob=False)
    dtype: Any = frame.collect_schema()[VECTOR]
    shape = (int(frame.select(pl.len()).collect().item()), int(dtype.size))
    if suffix == ".npy":
        with target.open("wb") as file:
            _write_matrix(file, shape, parts)
        return
    columns = frame.drop(VECTOR).collect()
    write = {".npz": _write_npz, ".zarr": _write_zarr, ".h5ad": _write_h5ad}[suffix]
    write(target, shape, parts, columns, provenance.to_json())


def write_npz(target: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as npz, the same bytes whenever it is done."""
    with zipfile.ZipFile(target, "w") as archive:
        _add_arrays(archive, arrays)


def _blocks(parts: Sequence[Path]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Give the vectors of each part, with the rows that they are in the whole."""
    first = 0
    for part in parts:
        vectors = pl.read_parquet(part, columns=[VECTOR], glob=False)[VECTOR]
        block = np.ascontiguousarray(vectors.to_numpy(), dtype=np.float32)
        yield slice(first, first + len(block)), block
        first += len(block)


def _plain(column: pl.Series) -> NDArray[Any]:
    """Give a column as an array without Python objects."""
    if column.dtype == pl.String:
        return np.array(column.fill_null("").to_list(), dtype=np.str_)
    return column.to_numpy()


def _write_matrix(file: Any, shape: tuple[int, int], parts: Sequence[Path]) -> None:
    """Write the matrix in the format of npy."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for _, block in _blocks(parts):
        file.write(block.tobytes())


def _write_npz(
    target: Path, shape: tuple[int, int], parts: Sequence[Path], columns: pl.DataFrame, about: str
) -> None:
    """Write matrix, columns and JSON as npz."""
    with zipfile.ZipFile(target, "w") as archive:
        with archive.open(_entry(VECTOR), "w", force_zip64=True) as file:
            _write_matrix(file, shape, parts)
        small = {name: _plain(columns[name]) for name in columns.columns}
        _add_arrays(archive, {**small, "megabase": np.array(about)})


def _entry(name: str) -> zipfile.ZipInfo:
    """Name an array; with a fixed date, so that the same numbers give the same file."""
    return zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))


def _add_arrays(archive: zipfile.ZipFile, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays into an open archive."""
    for name, values in arrays.items():
        with archive.open(_entry(name), "w", force_zip64=True) as file:
            np.lib.format.write_array(file, values, allow_pickle=False)


def _write_zarr(
    target: Path, shape: tuple[int, int], parts: Sequence[Path], columns: pl.DataFrame, about: str
) -> None:
    """Write matrix, columns and JSON as a zarr group."""
    import zarr

    group: Any = zarr.open_group(str(target), mode="w", zarr_format=2)
    rows = max(1, min(shape[0], _ZARR_CHUNK // (4 * shape[1])))
    matrix = group.create_array(VECTOR, shape=shape, dtype="f4", chunks=(rows, shape[1]))
    for where, block in _blocks(parts):
        matrix[where] = block
    for name in columns.columns:
        values = _plain(columns[name])
        group.create_array(name, shape=values.shape, dtype=values.dtype)[:] = values
    group.attrs["megabase"] = json.loads(about)


def _write_h5ad(
    target: Path, shape: tuple[int, int], parts: Sequence[Path], columns: pl.DataFrame, about: str
) -> None:
    """Write matrix, columns and JSON as AnnData."""
    import anndata
    import h5py
    import pandas as pd

    # Plain objects: anndata cannot write the strings that pandas would choose by itself, nor those
    # of the categories that anndata makes of a text column and puts into natural order.
    def index(names: list[str]) -> Any:
        return pd.Index(names, dtype=object)

    with warnings.catch_warnings():  # a name that ends like the added numbers is not a mistake
        warnings.simplefilter("ignore")
        unique = anndata.utils.make_index_unique(index(columns["name"].to_list()))
    obs = pd.DataFrame(index=index(unique.tolist()))
    for name in columns.columns:
        column = columns[name]
        if column.dtype == pl.String:
            known = index(column.drop_nulls().unique().sort().to_list())
            obs[name] = pd.Categorical(column.to_list(), categories=known)
        else:
            obs[name] = _plain(column)
    var = pd.DataFrame(index=index([f"h{i}" for i in range(shape[1])]))
    data = anndata.AnnData(obs=obs, var=var, uns={"megabase": about})
    # HDF5 does not survive a full disk. So all but the matrix is made in memory and written as
    # bytes, and room for the matrix is taken from the disk before HDF5 writes into it.
    with h5py.File("x.h5ad", "w", driver="core", backing_store=False) as small:
        anndata.io.write_elem(small, "/", data)
        if "X" in small:
            del small["X"]
        small.flush()
        image = small.id.get_file_image()
    with target.open("wb") as file:
        file.write(image)
        file.flush()
        _take_room(file.fileno(), len(image) + 4 * shape[0] * shape[1] + _HDF5_SLACK)
    with h5py.File(target, "r+") as whole:
        matrix = whole.create_dataset("X", shape=shape, dtype="f4")
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for where, block in _blocks(parts):
            matrix[where] = block


def _take_room(file: int, size: int) -> None:
    """Make a file so long that `size` bytes of it are its own on the disk; fail when it is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    at, zeros = os.fstat(file).st_size, bytes(1 << 20)
    while at < size:  # macOS has no such call
        at += os.pwrite(file, zeros[: size - at], at)


def read_runs(parts: Sequence[Path]) -> Iterator[Run]:
    """Read the numbers of the intervals of parts: contig, start, strand and a list ``values``."""
    columns = ["contig", "start", "strand", "values"]
    for part in parts:
        frame = pl.read_parquet(part, columns=columns, glob=False)
        for contig, start, strand, values in frame.iter_rows():
            along = np.array(values, dtype=np.float32)
            yield Run(contig, start, along[::-1] if strand == "-" else along)


class Run(NamedTuple):
    """Numbers of neighboring bases from 0-based `start`: float32 (n,), NaN where there is none."""

    contig: str
    start: int
    values: NDArray[np.float32]


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
