"""megabase score: FASTA and BED in, tables out; workers, kills and bad input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

from megabase.cli.main import main
from megabase.inference.scoring import score


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "toy.fa"
    rng = np.random.default_rng(1)
    path.write_text(
        f">chr1\n{''.join(rng.choice(list('ACGTacgt'), 3_000))}\n"
        f">chr2\nNNNN{''.join(rng.choice(list('ACGT'), 500))}\n"
    )
    return path


def test_fasta_becomes_a_table_that_others_read(genome: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    assert main(["score", "default", str(genome), "-o", str(out), "--strands", "both"]) == 0
    table = pl.read_parquet(out)
    assert table["name"].to_list() == ["chr1", "chr2"]
    assert table["length"].to_list() == [3_000, 504]
    texts = genome.read_text().split("\n")[1::2]
    expected = score(None, texts, strands="both").table
    np.testing.assert_allclose(table["log_likelihood"], expected["log_likelihood"], atol=1e-4)
    assert pd.read_parquet(out)["scored"].tolist() == table["scored"].to_list()
    assert "megabase default" in pl.read_parquet_metadata(out)["megabase"]


@pytest.mark.filterwarnings("default")
def test_workers_and_order_do_not_change_the_table(genome: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    starts = rng.integers(0, 2_000, 5_000)
    rows = [f"1\t{s}\t{s + int(n)}\tr{i}\t0\t{'+-'[i % 2]}" for i, (s, n) in
            enumerate(zip(starts, rng.integers(5, 40, 5_000), strict=True))]  # fmt: skip
    (tmp_path / "a.bed").write_text("\n".join(rows) + "\n")
    outs = [tmp_path / "one.tsv", tmp_path / "two.tsv"]
    for number, out in enumerate(outs, start=1):
        command = ["score", "default", str(tmp_path / "a.bed"), "--genome", str(genome),
                   "-o", str(out), "--context", "20", "--workers", str(number),
                   "--device", "cpu"]  # fmt: skip
        code = f"import sys; from megabase.cli.main import main; sys.exit(main({command!r}))"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "contig '1' is taken to be 'chr1'" in ran.stderr
    assert outs[0].read_bytes() == outs[1].read_bytes()
    table = pl.read_csv(outs[0], separator="\t", comment_prefix="#")
    assert table.height == 5_000
    (tmp_path / "b.bed").write_text("\n".join(rows[:700][::-1]) + "\n")
    command = ["score", "default", str(tmp_path / "b.bed"), "--genome", str(genome),
               "--context", "20", "-o", str(tmp_path / "b.parquet"),
               "--batch-tokens", "512"]  # fmt: skip
    assert main(command) == 0
    turned = pl.read_parquet(tmp_path / "b.parquet")["log_likelihood"].reverse()
    np.testing.assert_allclose(turned, table["log_likelihood"][:700], atol=1e-4)


@pytest.mark.parametrize(
    ("bed", "options", "message"),
    [
        ("chr1\t10\t5\n", [], "line 1: expected start < end"),
        ("chr9\t1\t5\n", [], "no contig 'chr9'"),
        ("chr1\t2990\t3005\n", [], "past the end of contig"),
        ("", [], "holds no sequence"),
        ("chr1\t1\t50\n", ["--window", "5000"], "longest input is"),
        ("chr1\t1\t50\n", ["--context", "-1"], "--context must be"),
        ("chr1\t1\t50\n", ["--workers", "0"], "must be 1 or more"),
        ("chr1\t1\t50\n", ["--device", "moon"], "moon"),
    ],
)
def test_bad_input_is_one_line(
    genome: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bed: str,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "x.bed").write_text(bed)
    command = ["score", "default", str(tmp_path / "x.bed"), "--genome", str(genome)]
    assert main([*command, "-o", str(tmp_path / "x.tsv"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.bed"]


def test_intervals_without_a_genome_are_told_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.BED").write_text("chr1\t1\t50\n")
    for call in (["score", "default", str(tmp_path / "x.BED"), "-o", str(tmp_path / "x.tsv")],
                 ["generate", "--prompts", str(tmp_path / "x.BED"), "--length", "3",
                  "-o", str(tmp_path / "x.fa")]):  # fmt: skip
        assert main(call) == 2
        error = capsys.readouterr().err
        assert "x.BED is a BED file" in error
        assert "--genome" in error
        assert [path.name for path in tmp_path.iterdir()] == ["x.BED"]


def test_a_file_in_the_place_of_the_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.fa").write_text(">a\nACGT\n")
    assert main(["predict", str(tmp_path / "x.fa"), "-o", str(tmp_path / "x.tsv")]) == 2
    assert "the model comes first" in capsys.readouterr().err
