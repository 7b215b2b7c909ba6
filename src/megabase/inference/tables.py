"""Result tables in files: Parquet or TSV, merged from parts without holding them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from megabase.errors import OutputError
from megabase.evaluate.provenance import Provenance

__all__ = ["TABLE_SUFFIXES", "merge_tables", "require_table_suffix", "write_table_part"]

TABLE_SUFFIXES = (".parquet", ".tsv")
_ROW_GROUP = 1 << 16
_DIGITS = 7


def require_table_suffix(target: Path, suffixes: Sequence[str] = TABLE_SUFFIXES) -> str:
    """Give the suffix of an output, which says its format.

    Raises
    ------
    OutputError
        When it is none of `suffixes`.
    """
    for suffix in suffixes:
        if target.name.lower().endswith(suffix):
            return suffix
    raise OutputError(
        f"{target}: the ending says the format; expected one of {', '.join(suffixes)}"
    )


def write_table_part(frame: pl.DataFrame, path: Path) -> None:
    """Write a part, always Parquet."""
    frame.write_parquet(path)


def merge_tables(parts: Sequence[Path], target: Path, provenance: Provenance) -> None:
    """Merge parts, in order, into Parquet or TSV by the ending of `target`.

    Parquet has the provenance as JSON in its metadata under ``megabase``; TSV in its first line,
    ``#megabase: {...}``, before the line of column names. A column of lists is written to TSV as
    numbers with commas between, and numbers with a fraction have seven significant digits there:
    as many as a model that computes in 32 bits gives.

    Raises
    ------
    OutputError
        When the ending is another.
    """
    suffix = require_table_suffix(target)
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
