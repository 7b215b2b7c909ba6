"""Options that would do nothing, and inputs of another kind, are said before any work."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import polars as pl
import pytest

from megabase.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("g.fa").write_text(">chr1\n" + "ACGTTGCA" * 100 + "\n")
    Path("s.fa").write_text(">one\nACGTACGTAC\n")
    Path("b.bed").write_text("chr1\t10\t40\n")
    Path("v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    )
    Path("run").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "embed default s.fa -o o.npz --labels l.tsv --map pca",
            "--labels, --map are for the picture",
        ),
        (
            "embed default s.fa -o o.npz --window 64",
            "--window is for variants (VCF), and s.fa holds none",
        ),
        ("embed default s.fa -o o.npz --genome g.fa", "s.fa is FASTA, which holds its sequences"),
        ("embed default s.fa -o o.npz --plot m.gif", "m.gif: the map is drawn as .svg, .png, .pdf"),
        (
            "embed default s.fa -o o.npz --plot m.svg --map som",
            "a map is one of auto, umap, tsne, pca",
        ),
        ("embed default s.fa -o o.npz --plot m.svg --labels l.tsv", "there is no file l.tsv"),
        ("embed default - --kind fasta -o o.npz", "- is a stream, not a file"),
        ("attribute default s.fa -o o.parquet --logo-of one", "--logo-of is for the picture"),
        (
            "attribute default s.fa -o o.parquet --method gradient --steps 9",
            "--steps is for integrated",
        ),
        (
            "attribute default s.fa -o o.parquet --logo l.gif",
            "l.gif: a logo is drawn as .svg, .png, .pdf",
        ),
        (
            "attribute default s.fa -o o.parquet --logo l.svg --logo-bases 900",
            "shows 1 to 400 positions",
        ),
        (
            "attribute default s.fa -o o.parquet --logo l.svg --logo-of two",
            "has no sequence named 'two'",
        ),
        (
            "attribute default s.fa -o o.parquet --logo l.svg --logo-from 11",
            "past the end of one, which",
        ),
        ("predict run s.fa -o o.tsv --overlap 9 --calls c.bed", "--overlap, --calls are for a"),
        ("predict run s.fa -o o.tsv --regions chr1", "s.fa is not placed on a genome"),
        ("predict run --genome g.fa -o o.bw --threshold 0.8", "name a file for them with --calls"),
        ("report run --genome g.fa --ism chr1", "--genome, --ism are for a genome page"),
        ("report --genome g.fa --region chr1 --info AF", "--info is for variants, and --vcf"),
        ("report --genome g.fa --region chr1 --track no.bw", "there is no track no.bw"),
        ("score default s.fa -o o.tsv --genome g.fa", "s.fa is FASTA, which holds its sequences"),
        ("score default v.vcf -o o.tsv", "v.vcf is VCF, whose variants lie on a genome"),
        (
            "score default v.vcf -o o.tsv --genome g.fa",
            "v.vcf is VCF, and here the input is FASTA, a",
        ),
        ("score default run -o o.tsv", "run is a folder; expected a file"),
        ("variants default no.vcf g.fa -o o.vcf", "there is no file no.vcf"),
        ("generate --prompts no.fa", "there is no file no.fa"),
        (
            "generate --prompts s.fa --genome g.fa",
            "s.fa is FASTA, which holds its sequences",
        ),
    ],
)
def test_what_would_be_passed_over_is_refused(
    folder: Path, command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(os.listdir())
    assert main(command.split()) == 2
    assert words in capsys.readouterr().err
    assert set(os.listdir()) == before


@pytest.mark.parametrize("verb", ["score", "embed"])
def test_a_pipe_is_told_so(folder: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe.fa")
    assert main([verb, "default", "pipe.fa", "-o", "o.parquet"]) == 2
    assert "pipe.fa is a stream, not a file" in capsys.readouterr().err


def test_a_dash_is_standard_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "-o", "-", "--length", "12"]) == 0
    assert capsys.readouterr().out.startswith(">generated_0 ")
    assert not Path("-").exists()


def test_a_missing_extra_is_named_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "logomaker", None)
    assert main(["attribute", "default", "s.fa", "-o", "o.parquet", "--logo", "l.svg"]) == 2
    assert "pip install 'megabase[plots]'" in capsys.readouterr().err
    monkeypatch.setattr("megabase.report.plots.find_spec", lambda name: None)
    assert (
        main(["embed", "default", "s.fa", "-o", "o.npz", "--plot", "m.svg", "--map", "tsne"]) == 2
    )
    assert "pip install 'megabase[suites]'" in capsys.readouterr().err
    assert not list(folder.glob("o.*"))


@pytest.mark.parametrize("name", ["o.tsv", "o.parquet", "o.vcf"])
def test_a_file_without_variants_gives_an_output_without_rows(folder: Path, name: str) -> None:
    call = ["variants", "default", "v.vcf", "g.fa", "--window", "64", "-o", name]
    assert main([*call, "--methods", "llr_site", "l2"]) == 0
    if name.endswith(".tsv"):
        about, columns = Path(name).read_text().splitlines()
        assert about.startswith("#megabase: {")
        assert columns.split("\t")[-3:] == ["llr_site", "l2", "reason"]
    elif name.endswith(".parquet"):
        table = pl.read_parquet(name)
        assert (table.height, table.columns[-1]) == (0, "reason")
        assert "megabase" in pl.read_parquet_metadata(name)
    else:
        assert Path(name).read_text().splitlines()[-1].startswith("#CHROM")
    assert not list(folder.glob(".o*"))


def test_a_zarr_folder_is_replaced_only_when_asked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("zarr")
    call = ["embed", "default", "s.fa", "-o", "o.zarr", "--workers", "1"]
    assert main(call) == 0
    assert main(call) == 2
    assert "o.zarr exists already" in capsys.readouterr().err
    assert main([*call, "--overwrite", "--layer", "0"]) == 0
    Path("p.zarr").write_text("a file")
    assert main(["embed", "default", "s.fa", "-o", "p.zarr", "--workers", "1", "--overwrite"]) == 0
    assert Path("p.zarr").is_dir()
    Path("q.zarr").mkdir()
    assert main(["embed", "default", "s.fa", "-o", "q.zarr", "--overwrite"]) == 2
    assert "it is a folder" in capsys.readouterr().err
    assert not list(folder.glob("*.partial"))
