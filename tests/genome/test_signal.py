"""Numbers of bigWig and bedGraph files, against another tool's reading and a plain loop."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from megabase.errors import InputError, LeftOutWarning
from megabase.genome.signal import Signal
from megabase.genome.store import Genome

pyBigWig = pytest.importorskip("pyBigWig")


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    (tmp_path / "g.fa").write_text(f">chr1\n{'ACGT' * 250}\n>chr2\n{'GATTACA' * 20}\n")
    return Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")


def write(path: Path, rows: list[tuple[str, int, int, float]], **sizes: int) -> Path:
    if path.suffix == ".bw":
        file = pyBigWig.open(str(path), "w")
        file.addHeader(list((sizes or {"chr1": 1000, "chr2": 140}).items()))
        contigs, starts, ends, values = (list(column) for column in zip(*rows, strict=True))
        file.addEntries(contigs, starts, ends=ends, values=values)
        file.close()
    else:
        text = "".join(f"{c}\t{s}\t{e}\t{v!r}\n" for c, s, e, v in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def made_rows() -> list[tuple[str, int, int, float]]:
    draws = np.random.default_rng(1)
    cuts = np.sort(draws.choice(1000, 120, replace=False)).tolist()
    rows = [("chr1", a, b, float(np.float32(draws.normal()))) for a, b in zip(cuts, cuts[1:])]  # noqa: B905, RUF007
    return rows[::2] + rows[1::8] + [("chr2", 3, 140, 2.5)]


@pytest.mark.parametrize("name", ["a.bw", "a.bedGraph", "a.bg.gz"])
def test_each_base_has_its_number(store: Genome, tmp_path: Path, name: str) -> None:
    rows = made_rows()
    ordered = sorted(rows) if name == "a.bw" else rows
    signal = Signal(write(tmp_path / name, ordered), store)
    expected = np.full(1000, np.nan, dtype=np.float32)
    for contig, start, end, value in rows:
        if contig == "chr1":
            expected[start:end] = value
    for start, end in ((0, 1000), (7, 8), (250, 600), (999, 1000)):
        np.testing.assert_array_equal(signal.values("chr1", start, end), expected[start:end])
    assert np.isnan(signal.values("chr2", 0, 3)).all()
    assert signal.contigs == {"chr1", "chr2"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(
    store: Genome, tmp_path: Path, value: float
) -> None:
    path = write(tmp_path / "a.bw", [("chr1", 0, 9, 1.0), ("chr1", 12, 13, value)])
    signal = Signal(path, store)
    assert signal.values("chr1", 0, 12)[8] == 1
    with pytest.raises(InputError, match=r"a\.bw: chr1:1-20 holds a number that is not finite"):
        signal.values("chr1", 0, 20)


def test_another_build_and_other_contigs(store: Genome, tmp_path: Path) -> None:
    row = [("chr1", 0, 9, 1.0)]
    with pytest.raises(InputError, match="'chr1' has 999 bases, and 1,000 in genome"):
        Signal(write(tmp_path / "a.bw", row, chr1=999), store)
    with pytest.warns(LeftOutWarning, match="1 of 2 contigs are left out: 1 UNKNOWN_CONTIG"):
        found = Signal(write(tmp_path / "b.bw", row, chr1=1000, chr9=5), store)
    assert np.isnan(found.values("chr2", 0, 5)).all()
    with pytest.warns(LeftOutWarning, match="1 OUTSIDE_CONTIG"):
        Signal(write(tmp_path / "c.bg", [*row, ("chr2", 100, 141, 1.0)]), store)
    with pytest.raises(InputError, match="expected a name ending in"):
        Signal(tmp_path / "g.fa", store)
    with pytest.raises(InputError, match="there is no file"):
        Signal(tmp_path / "none.bw", store)
