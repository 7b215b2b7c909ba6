from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from megabase.benchmarking.config import BenchmarkConfig, ChromatinConfig
from megabase.benchmarking.run import run_benchmark
from megabase.benchmarking.suites import chromatin
from megabase.benchmarking.table import Tables
from megabase.data.regions import Regions
from megabase.errors import InputError, LeftOutWarning
from megabase.evaluate.metrics import median_by_group
from megabase.genome import alphabet
from megabase.genome.store import Genome

RNG = np.random.default_rng(3)
GENOME = "".join(RNG.choice(list("ACGT"), 20_000))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    fasta = tmp_path / "g.fa"
    fasta.write_text(f">chr1\n{GENOME}\n>chr2\n{GENOME[::-1]}\n")
    return Genome.build([fasta], tmp_path / "g.mb").path


def test_more_than_half_of_the_bin() -> None:
    peaks = Regions.of([0, 0, 0, 1], [90, 190, 350, 0], [150, 210, 420, 1000])
    start = np.array([0, 100, 200, 300, 400])
    found = chromatin._bin_labels(peaks, 0, start, start + 100)
    # Covered: 10, 50 + 10, 10, 50 (not more than half), 20.
    assert found.tolist() == [0, 1, 0, 0, 0]
    assert chromatin._bin_labels(peaks, 1, start, start + 100).tolist() == [1] * 5
    assert chromatin._bin_labels(peaks, 2, start, start + 100).tolist() == [0] * 5


def test_windows_from_peaks(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a.bed").write_text("chr1\t1000\t1150\nchr1\t15000\t15400\nchr9\t1\t50\n")
    (tmp_path / "b.bed").write_text("chr1\t15100\t15200\n")
    peaks = {"DHS:a": str(tmp_path / "a.bed"), "TF:b": str(tmp_path / "b.bed")}
    config = BenchmarkConfig(
        suite="chromatin",
        output="out",
        chromatin=ChromatinConfig(
            genome=str(store), peaks=peaks, length=400, validation=["chr2"],
            test=["chr1:14,001-17,000"], regions=["chr1"],
        ),
    )  # fmt: skip
    with pytest.warns(LeftOutWarning):  # a peak on another contig
        task = chromatin.SUITE.load(config, chromatin.SUITE.names(config)[0])
    assert task.groups == {"DHS": (0, 1), "TF": (1, 2)}
    test = task.splits["test"]
    # Bins at 200 bases whose windows (100 on each side) lie inside 14,000-17,000.
    places = [test.text.names[i] for i in range(len(test))] if test.text.names else []
    assert places[0] == "test window chr1:14,101-14,500"
    assert len(test) == 13
    by_place = {name: test.labels[i].tolist() for i, name in enumerate(places)}
    assert by_place["test window chr1:14,901-15,300"] == [1.0, 0.0]  # b covers just half
    assert by_place["test window chr1:15,101-15,500"] == [1.0, 0.0]
    assert test.labels[:, 0].sum() == 2
    assert alphabet.decode(test.sequence(0)) == GENOME[14_100:14_500]
    assert task.notes[0] == "DHS:a: 2 peaks of a.bed"


def table(path: Path, rows: int, columns: list[str], starts: np.ndarray) -> np.ndarray:
    labels = RNG.random((rows, len(columns))) < 0.3
    head = ",".join(["Chr_No", "Start", "End", *columns])
    body = [
        f"{i % 2},{starts[i]},{starts[i] + 1000}," + ",".join(str(bool(v)) for v in labels[i])
        for i in range(rows)
    ]
    path.write_text("\n".join([head, *body]) + "\n")
    return labels


def test_919_columns_and_their_groups(store: Path, tmp_path: Path) -> None:
    names = (
        [f"y_8988T_DNase_{i}" for i in range(125)]
        + [f"y_A549_TF_{i}" for i in range(689)]
        + ["y_NA_NA_NA"]
        + [f"y_H3K4me1_{i}" for i in range(104)]
    )
    folder = tmp_path / "deepsea"
    folder.mkdir()
    for part, rows in (("train", 24), ("val", 12), ("test", 16)):
        table(folder / f"{part}_hg19_coords_targets.csv", rows, names,
              RNG.integers(0, 18_000, rows))  # fmt: skip
    config = BenchmarkConfig(
        suite="chromatin",
        data=str(folder),
        output=str(tmp_path / "out"),
        models="kmer:2",
        seeds=[1],
        bootstrap=0,
        chromatin=ChromatinConfig(genome=str(store), length=1100),
    )
    task = chromatin.SUITE.load(config, "chromatin-profile")
    assert task.groups == {"DHS": (0, 125), "TF": (125, 815), "HM": (815, 919)}
    assert task.splits["train"].classes == tuple(names)
    assert set(task.splits["train"].lengths.tolist()) == {1100}
    # A perfect answer has a median of 1 in every group; TF columns turned round have 0.
    labels = task.splits["test"].labels
    outputs = labels.copy()
    outputs[:, 125:815] *= -1
    found = median_by_group("auroc", outputs, labels, task.groups)
    assert found == {"DHS": 1.0, "TF": 0.0, "HM": 1.0}
    assert {p["metric"] for p in task.published} == {
        "median_auroc_TF", "median_auroc_DHS", "median_auroc_HM",
    }  # fmt: skip


def test_medians_stand_in_the_table(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for part, rows in (("train", 40), ("val", 20), ("test", 20)):
        table(folder / f"{part}.csv", rows, ["y_DHS:a", "y_DHS:b", "y_TF:c"],
              RNG.integers(0, 18_000, rows))  # fmt: skip
    config = BenchmarkConfig(
        suite="chromatin", data=str(folder), output=str(tmp_path / "out"), models="kmer:2",
        seeds=[1], bootstrap=0, chromatin=ChromatinConfig(genome=str(store)),
    )  # fmt: skip
    run_benchmark(config)
    tables = Tables(tmp_path / "out", resamples=0)
    records = tables.records
    assert set(records[0]["groups"]) == {"y_DHS", "y_TF"}
    text = tables.markdown()
    assert "median AUROC y_DHS" in text


def test_lift_over_drops_what_does_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("pyliftover")
    chain = tmp_path / "a.chain"
    # chr1[0, 5000) -> chr1[100, 5100), a gap of 10 in the target, then the rest.
    chain.write_text("chain 1000 chr1 9000 + 0 9000 chr1 9110 + 100 9110 1\n5000 0 10\n4000\n\n")
    places = {
        "#contig": ["chr1", "chr1", "chr1", "chr3"],
        "#start": [200, 4500, 7000, 10],
        "#end": [1200, 5500, 8000, 1010],
    }
    windows = pl.DataFrame({**places, "y_a": [0, 0, 0, 0], "y_b": [1, 1, 1, 1]})
    found = chromatin._lift(windows, chain)
    assert found.rows() == [("chr1", 300, 1300, 0, 1), ("chr1", 7110, 8110, 0, 1)]


def test_what_is_missing_is_said(store: Path, tmp_path: Path) -> None:
    def load(**options: Any) -> Any:
        config = BenchmarkConfig(suite="chromatin", output="out", **options)
        return chromatin.SUITE.load(config, chromatin.SUITE.names(config)[0])

    with pytest.raises(InputError, match="deepsea_train_bundle"):
        load()
    with pytest.raises(InputError, match="must be even"):
        load(data=str(tmp_path), chromatin=ChromatinConfig(genome=str(store), length=301))
    (tmp_path / "train.csv").write_text("Chr_No,Start,y_a\n0,1,1\n")
    (tmp_path / "test.csv").write_text("Chr_No,Start,y_a\n0,1,1\n")
    with pytest.raises(InputError, match="no column End"):
        load(data=str(tmp_path), chromatin=ChromatinConfig(genome=str(store)))
