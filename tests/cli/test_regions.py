"""What verbs have in common: regions restrict intervals and variants, --quiet silences notes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from megabase.cli.main import main

REGIONS = ["--regions", "chr1:21-30", "chr2"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "g.fa").write_text(f">chr1\n{'ACGTTGCA' * 16}\n>chr2\n{'TTGCA' * 16}\n")
    (tmp_path / "x.bed").write_text("chr1\t0\t20\ta\nchr1\t10\t21\tb\nchr2\t4\t40\tc\n")
    (tmp_path / "x.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t20\t.\tT\tA\t.\t.\t.\nchr1\t20\t.\tTT\tA\t.\t.\t.\nchr1\t31\t.\tC\tA\t.\t.\t.\n"
        "chr2\t3\t.\tG\tA\t.\t.\t.\n"
    )
    return tmp_path


def test_regions_restrict_intervals(place: Path) -> None:
    call = [str(place / "x.bed"), "--genome", str(place / "g.fa"), *REGIONS]
    assert main(["score", "default", *call, "-o", str(place / "s.parquet")]) == 0
    assert pl.read_parquet(place / "s.parquet")["name"].to_list() == ["b", "c"]
    assert main(["embed", "default", *call, "-o", str(place / "e.parquet")]) == 0
    assert pl.read_parquet(place / "e.parquet")["name"].to_list() == ["b", "c"]


def test_regions_restrict_variants(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "r.bed").write_text("chr1\t20\t30\nchr2\t0\t80\n")
    command = ["variants", "default", str(place / "x.vcf"), str(place / "g.fa"), "--window", "32"]
    for regions in (REGIONS, ["--regions", str(place / "r.bed")]):
        call = [*command, *regions, "--overwrite"]
        assert main([*call, "-o", str(place / "v.tsv")]) == 0
        rows = pl.read_csv(place / "v.tsv", separator="\t", comment_prefix="#")
        assert rows["record"].to_list() == [1, 3]
    assert main([*call, "-o", str(place / "v.vcf"), "--quiet"]) == 0
    lines = [t for t in (place / "v.vcf").read_text().splitlines() if t[0] != "#"]
    assert [line.split("\t")[1] for line in lines] == ["20", "3"]
    assert "v.vcf" not in capsys.readouterr().err  # the note of what was written


def test_sequences_have_no_regions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "default", str(place / "g.fa"), *REGIONS, "-o", "x.tsv"]) == 2
    assert "is not placed on a genome" in (error := capsys.readouterr().err)
    assert "(--regions)" in error


def test_evaluate_prints_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["genome", "build", str(place / "g.fa"), "-o", str(place / "g.mb")]) == 0
    capsys.readouterr()
    call = ["--genome", str(place / "g.mb"), "--regions", "chr2", "--no-baselines", "--no-context"]
    assert main(["evaluate", "default", *call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["region_bases"] == 80
