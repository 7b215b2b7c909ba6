"""Parquet files: what they say of sizes is compared with the file before it is allocated.

The footer and the header of every page are Thrift structures in the compact protocol. They are
read here as far as sizes go (Apache Parquet format 2.11, ``parquet.thrift``).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megabase.errors import MegabaseError
from megabase.untrusted import parsing

if TYPE_CHECKING:
    import polars as pl

__all__ = ["read_parquet"]

_MAGIC = b"PAR1"
_DEPTH = 16
# Snappy and LZ4 shrink at most 21 and 255 times, gzip 1,032 times; runs and dictionaries more.
_SHRINK = 2_000
_SPARE = 1 << 20


class _Thrift:
    """Structures of the compact protocol, as dictionaries by field number."""

    def __init__(self, raw: Any, at: int, end: int) -> None:
        self.raw, self.at, self.end = raw, at, end

    def byte(self) -> int:
        if self.at >= self.end:
            raise ValueError("a structure is cut short")
        self.at += 1
        return self.raw[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number is longer than 64 bits")

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, length: int) -> None:
        if length > self.end - self.at:
            raise ValueError("a text is longer than the file")
        self.at += length

    def value(self, kind: int, depth: int, inside: bool = False) -> Any:
        if depth > _DEPTH:
            raise ValueError("structures are nested too deep")
        if kind in (1, 2):
            return self.byte() if inside else kind == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.integer()
        if kind in (7, 8):
            self.skip(8 if kind == 7 else self.varint())
            return None
        if kind in (9, 10):
            head = self.byte()
            count = self.varint() if head >> 4 == 15 else head >> 4
            if count > self.end - self.at:
                raise ValueError("a list is longer than the file")
            return [self.value(head & 15, depth + 1, True) for _ in range(count)]
        if kind == 11:
            count = self.varint()
            kinds = self.byte() if count else 0
            if count > self.end - self.at:
                raise ValueError("a table is longer than the file")
            for _ in range(count):
                self.value(kinds >> 4, depth + 1, True)
                self.value(kinds & 15, depth + 1, True)
            return None
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"{kind} is not the kind of a field")

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = self.value(head & 15, depth)
        return fields


def read_parquet(path: Path, error: type[MegabaseError]) -> pl.DataFrame:
    """Read a Parquet file.

    Parameters
    ----------
    path
        The file.
    error
        Class of the error.

    Raises
    ------
    MegabaseError
        Of class `error`: no Parquet file, damaged, or one that claims more than it can hold.
    """
    import polars as pl

    with parsing(path, error, "it is damaged or not a Parquet file"):
        _check(path)
        return pl.read_parquet(path, glob=False)


def _check(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        size = len(raw)
        if size < 12 or raw[:4] != _MAGIC or raw[-4:] != _MAGIC:
            raise ValueError("not a Parquet file, or cut short")
        footer = size - 8 - int.from_bytes(raw[-8:-4], "little")
        if footer < 4:
            raise ValueError("its footer is longer than the file")
        record = _Thrift(raw, footer, size - 8).struct()
        rows = 0
        for group in record.get(4) or []:
            rows += group[3]
            for column in group[1]:
                _check_column(raw, footer, column[3], group[3])
        if rows != record[3]:
            raise ValueError(f"its parts have {rows:,} rows, its footer says {record[3]:,}")


def _check_column(raw: Any, footer: int, column: dict[int, Any], rows: int) -> None:
    values, length = column[5], column[7]
    start = min(offset for offset in (column[9], column.get(11) or column[9]))
    if not 4 <= start <= start + length <= footer:
        raise ValueError("a column lies outside the file")
    if not 0 <= rows <= values <= _SHRINK * length + _SPARE:
        raise ValueError(f"a column of {length:,} bytes claims {values:,} values")
    at, end, found = start, start + length, 0
    while at < end:
        reader = _Thrift(raw, at, end)
        page = reader.struct()
        packed = page[3]
        if not 0 <= packed <= end - reader.at or not 0 <= page[2] <= _SHRINK * packed + _SPARE:
            raise ValueError(f"a page of {packed:,} bytes claims {page[2]:,} bytes")
        data = page.get(5) or page.get(8)
        count = (data or page.get(7) or {}).get(1, 0)
        if not 0 <= count <= (values if data else page[2]):
            raise ValueError(f"a page claims {count:,} values")
        found += count if data else 0
        at = reader.at + packed
    if found != values:
        raise ValueError(f"the pages of a column have {found:,} values, its footer says {values:,}")
