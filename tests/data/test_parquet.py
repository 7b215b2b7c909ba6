"""Parquet files that claim more than they hold."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest

from megabase.data.label_files import read_parquet, read_sequence_table, read_text
from megabase.errors import InputError


def table(rows: int) -> pl.DataFrame:
    draws = random.Random(1)
    letters = ["".join(draws.choices("ACGT", k=40)) for _ in range(rows)]
    return pl.DataFrame({"sequence": letters, "label": [str(i % 3) for i in range(rows)]})


@pytest.mark.parametrize("packing", ["zstd", "snappy", "gzip", "lz4", "uncompressed"])
def test_good_files_are_read(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "a.parquet"
    for rows in (0, 1, 5_000):
        frame = table(rows).with_columns(
            pl.lit(None, pl.Int64).alias("none"), pl.lit([[1, 2], []]).first().alias("list")
        )
        frame.write_parquet(path, compression=packing, row_group_size=2_000)
        assert read_parquet(path, InputError).equals(frame)
    pl.DataFrame({"sequence": ["ACGT"] * 300_000}).write_parquet(path, compression=packing)
    assert read_parquet(path, InputError).height == 300_000


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def test_a_claimed_number_of_rows_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table(37).write_parquet(path)
    raw = path.read_bytes()
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    claimed = raw[footer:-8].replace(varint(74), varint(2 << 40))  # zigzag of 37
    assert claimed != raw[footer:-8]
    path.write_bytes(raw[:footer] + claimed + len(claimed).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InputError, match=r"a\.parquet cannot be read .*claims"):
        read_text(path)


def test_damage_is_one_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.parquet"
    draws = random.Random(3)
    bases = []
    for packing in ("zstd", "snappy", "uncompressed"):
        table(40).write_parquet(path, compression=packing)
        bases.append(path.read_bytes())
    messages: list[str] = []
    for _ in range(700):
        raw = bytearray(draws.choice(bases))
        for _ in range(draws.choice((1, 1, 2, 3))):
            raw[len(raw) - 1 - draws.randrange(draws.choice((600, len(raw))))] = draws.randrange(
                256
            )
        path.write_bytes(raw)
        for read in (read_text, read_sequence_table):
            try:
                read(path)
            except InputError as error:
                messages.append(str(error))
    assert len(messages) > 500
    assert all(str(path) in message for message in messages)
    capfd.readouterr()  # polars reports its panics on standard error
