"""What verbs make of odd files from the command line, and what other programs read in the outputs.

The readers themselves are tried in ``test_readers.py``; here each verb is asked once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pysam
import pytest
import torch

import megabase as mb
from megabase.cli.main import main
from megabase.data.regions import Regions
from megabase.data.sources import genome_store
from megabase.errors import AmbiguousLettersWarning, InputWarning, UnknownContigError
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.inference.ism import ism
from megabase.inference.prediction import _region_texts
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
)

pytestmark = [
    pytest.mark.filterwarnings("default::megabase.errors.InputWarning"),
    pytest.mark.usefixtures("folder"),
]
BASES = "ACGTTGCAAC" * 10
HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr20,length=100>\n"
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
RECORDS = (
    "20\t1\tfirst\tA\tC\t.\t.\t.", "20\t12\t.\tC\tG,*,.C,<DEL>,CTT\t.\t.\t.",
    "20\t13\t.\tG\t.\t.\t.\t.", "20\t100\tlast\tC\tG\t.\t.\t.",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=8, n_layer=1, max_seq_len=64, filter_order=8, num_labels=2)
    HyenaDNAForCausalLM(config).save_pretrained(folder / "lm")
    HyenaDNAForSequenceClassification(config).save_pretrained(folder / "labels")
    (folder / "g.fa").write_text(f">chr20\n{BASES}\n")
    Genome.build(folder / "g.fa", folder / "g.mb")
    (folder / "v.vcf").write_text(HEADER + COLUMNS + "".join(f"{r}\n" for r in RECORDS))
    (folder / "odd.bed").write_text("chr20\t0\t40\tone\nchrX\t0\t40\ttwo\nchr20\t90\t101\tthree\n")
    (folder / "odd.gff3").write_text(
        "chr20\tx\tgene\t1\t40\t.\t+\t.\tID=a\nX\tx\tgene\t1\t9\t.\t+\t.\tID=b\n"
    )
    (folder / "rna.csv").write_text("name,sequence\none,ACGUUGCAACACGUUGCAAC\n")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


VERBS = {
    "score": "score lm odd.bed --genome g.mb --workers 1 -o o.tsv",
    "embed": "embed lm v.vcf --genome g.mb --window 20 --workers 1 -o o.parquet",
    "predict": "predict labels odd.bed --genome g.mb --workers 1 -o o.tsv",
    "regions": "predict labels --regions odd.bed --genome g.mb --window 32 --workers 1 -o o.bed",
    "attribute": "attribute labels odd.bed --genome g.mb --target 1 --workers 1 -o o.npz",
    "generate": "generate lm --prompts odd.bed --genome g.mb --length 5 --workers 1 -o o.fa",
    "variants": "variants lm v.vcf g.mb --window 32 --workers 1 -o o.vcf",
    "report": "report --genome g.mb --region chr20:1-100 --no-model --vcf v.vcf --genes odd.gff3 "
    "--track odd.bed -o o.html",
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_rows_that_cannot_be_used_are_said_in_one_line_and_refused_when_strict(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(VERBS[verb].split()) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    about = [line for line in said if "left out" in line or "have no score" in line]
    assert len(about) == (2 if verb == "report" else 1), said
    reason = "SYMBOLIC_ALT" if " v.vcf " in VERBS[verb] and verb != "report" else "UNKNOWN_CONTIG"
    assert all(f" {reason} (" in line for line in about)
    for made in Path().glob("o.*"):
        made.unlink()
    assert main([*VERBS[verb].split(), "--strict"]) == 2
    error = capsys.readouterr().err
    assert f"line {5 if 'v.vcf, ' in error else 2}: " in error
    assert not list(Path().glob("o.*"))


@pytest.mark.parametrize(
    "command",
    [
        "score lm rna.csv --workers 1 -o o.tsv",
        "embed lm rna.csv --workers 1 -o o.parquet",
        "predict labels rna.csv --workers 1 -o o.tsv",
        "attribute labels rna.csv --target 1 --workers 1 -o o.parquet",
        "generate lm --prompts rna.csv --length 5 --workers 1 -o o.fa",
        "generate lm --prompt ACGUUGCAACACGUUGCAAC --length 5",
    ],
)
def test_every_verb_reads_tables_and_counts_rna(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 0
    where = "the prompt" if "--prompt " in command else "rna.csv"
    said = f"{where}: 4 letters read as N: U 4; U is RNA: write T for U to keep those bases\n"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize(
    "command",
    [
        "score lm bare.FILE -o o.tsv", "embed lm bare.FILE -o o.parquet",
        "embed lm bare.FILE --pooling none -o o.parquet", "predict labels bare.FILE -o o.tsv",
        "attribute labels bare.FILE --target 1 -o o.parquet",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["fa", "csv", "bed"])
def test_sequences_of_n_alone_are_counted(
    command: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their row has numbers as any other, which say nothing."""
    Path("bare.fa").write_text(f">a\n{'ACGTTGCA' * 3}\n>b\n{'N' * 20}\n>c\nnnN\nRYnn\n")
    Path("bare.csv").write_text(f"name,sequence\na,ACGTNNAC\nb,{'N' * 20}\nc,nnNRYnn\n")
    Path("bare.bed").write_text("a\t2\t9\ta\nb\t3\t9\tb\nc\t0\t4\tc\n")
    place = " --genome bare.fa" if kind == "bed" else ""
    assert main([*command.replace("FILE", kind).split(), *place.split(), "--workers", "1"]) == 0
    said = f"bare.{kind}: no A, C, G, T in 2 of the sequences (the first: b)"
    assert capsys.readouterr().err.count(said) == 1


@pytest.mark.parametrize("verb", ["score", "embed", "predict", "attribute"])
def test_sequences_of_n_alone_are_counted_in_memory(verb: str) -> None:
    model = mb.load("lm" if verb in ("score", "embed") else "labels")
    options = {"target": 1} if verb == "attribute" else {}
    with pytest.warns(InputWarning, match=r"^the sequences: no A, C, G, T in 1 .*first: 1"):
        getattr(model, verb)(["ACGTNNAC", "NNNNNNNN"], **options)


def test_other_programs_read_the_scores_of_every_allele(folder: Path) -> None:
    assert main(VERBS["variants"].replace("o.vcf", "o.vcf.gz").split()) == 0
    with pysam.VariantFile("o.vcf.gz") as file:
        assert list(file.header.contigs) == ["20"]  # and not chr20 beside it
        assert file.header.info["MB_REASON"].number == "A"
        found = {record.id or record.pos: record for record in file}
    reasons = found[12].info["MB_REASON"]
    assert reasons == (".", "SYMBOLIC_ALT", "SYMBOLIC_ALT", "SYMBOLIC_ALT", ".")
    for name in ("first", "last"):  # nothing stands before the base on one strand
        assert found[name].info["MB_REASON"] == ("NO_BASE_BEFORE",)
        assert "MB_LLR_SITE" not in found[name].info
        assert found[name].info["MB_LLR_WINDOW"]
    if shutil.which("tabix"):
        ran = subprocess.run(["tabix", "o.vcf.gz", "20:12-12"], capture_output=True, text=True)
        assert ran.stdout.startswith("20\t12\t")
        assert ran.stderr == ""


@pytest.mark.skipif(not shutil.which("bcftools"), reason="bcftools is missing")
def test_bcftools_splits_the_reasons_with_the_alleles(folder: Path) -> None:
    assert main(VERBS["variants"].split()) == 0
    query = "bcftools norm -m- o.vcf | bcftools query -f '%POS %ALT %MB_REASON %MB_LLR_WINDOW\\n'"
    ran = subprocess.run(["bash", "-c", query], capture_output=True, text=True)
    assert "Error" not in ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines() if line.startswith("12 ")]
    assert [(alt, reason) for _, alt, reason, _ in rows] == [
        ("G", "."), ("*", "SYMBOLIC_ALT"), (".C", "SYMBOLIC_ALT"), ("<DEL>", "SYMBOLIC_ALT"),
        ("CTT", "."),
    ]  # fmt: skip
    assert [value != "." for *_, value in rows] == [True, False, False, False, True]
    assert subprocess.run(["bcftools", "view", "o.vcf"], capture_output=True).stderr == b""


def test_tables_of_variants_have_the_position_of_vcf_and_seven_digits(folder: Path) -> None:
    assert main(VERBS["variants"].replace("o.vcf", "o.tsv").split()) == 0
    table = pl.read_csv("o.tsv", separator="\t", comment_prefix="#")
    assert table["pos"].to_list() == [1, *[12] * 5, 13, 100]
    assert (table["pos"] - 1).to_list() == table["start"].to_list()
    text = pl.read_csv("o.tsv", separator="\t", comment_prefix="#", infer_schema=False)
    for cell in text["llr_window"].drop_nulls():
        assert len(cell.partition("e")[0].lstrip("-0.").replace(".", "")) <= 7


def test_a_contig_that_no_header_can_hold_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.fa").write_text(f">c,omma\n{BASES}\n")
    Path("c.vcf").write_text(HEADER + COLUMNS + "c,omma\t12\t.\tC\tG\t.\t.\t.\n")
    command = "variants lm c.vcf c.fa --window 32 --workers 1 -o"
    assert main([*command.split(), "o.vcf"]) == 2
    assert "cannot hold the contig name 'c,omma'" in capsys.readouterr().err
    assert main([*command.split(), "o.tsv"]) == 0


def test_more_than_a_fifth_of_other_references_is_another_assembly(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [f"20\t{i}\t.\t{BASES[i]}\tN\t.\t.\t." for i in (1, 2, 3)]
    right = [f"20\t{i + 1}\t.\t{BASES[i]}\t{BASES[i + 1]}\t.\t.\t." for i in range(20, 27)]
    records = (*wrong, *right)
    Path("v.vcf").write_text(HEADER + COLUMNS + "".join(f"{r}\n" for r in records))
    for verb in ("embed", "variants", "report"):
        assert main(VERBS[verb].split()) == 2
        assert "in 3 of 10 records; is the file made for another ass" in capsys.readouterr().err
    assert main([*VERBS["variants"].split(), "--allow-mismatches"]) == 0


def test_report_reads_a_vcf_without_the_line_of_its_format(folder: Path) -> None:
    Path("v.vcf").write_text(COLUMNS + RECORDS[0] + "\n")
    assert main(VERBS["report"].split()) == 0


def test_the_name_of_a_contig_that_reads_as_a_place_is_ambiguous(folder: Path) -> None:
    Path("a.fa").write_text(f">chr1\n{BASES}{BASES}\n>chr1:100-150\n{BASES}\n>HLA:1\n{BASES}\n")
    store = Genome.build("a.fa", "a.mb")
    for ask in (store.region, store.fetch, lambda text: Regions.read(store, [text])):
        with pytest.raises(UnknownContigError, match=r"write \{chr1:100-150\} for the contig, or"):
            ask("chr1:100-150")
    with pytest.raises(UnknownContigError, match="could be the contig of this name or a region"):
        ism("lm", "chr1:100-150", store, window=16)
    assert store.region("{chr1:100-150}") == Interval("chr1:100-150", 0, 100)
    assert store.region("{chr1}:100-150") == Interval("chr1", 99, 150)
    assert store.region("HLA:1") == Interval("HLA:1", 0, 100)  # there is no contig HLA
    assert store.region(Interval("chr1", 99, 150)) == Interval("chr1", 99, 150)


def test_recorded_regions_read_back_and_stay_short(folder: Path) -> None:
    Path("r.bed").write_text("chr20\t10\t40\n")
    command = "predict labels --regions chr20:11-40 --genome g.mb --window 32 --workers 1 -o o.bed"
    assert main(command.split()) == 0
    record = json.loads(Path("o.bed").read_text().splitlines()[0].removeprefix("#megabase: "))
    (text,) = record["options"]["regions"]
    assert Interval.parse(text) == Interval("chr20", 10, 40)
    many = _region_texts([("chr20", i, i + 1) for i in range(100_000)])
    assert isinstance(many, dict)
    assert many["count"] == 100_000
    assert len(json.dumps(many)) < 120


def test_a_genome_is_built_from_standard_input(folder: Path) -> None:
    command = [sys.executable, "-m", "megabase", "genome", "build", "-", "-o", "piped.mb"]
    ran = subprocess.run(command, input=Path("g.fa").read_bytes(), capture_output=True)
    assert ran.returncode == 0, ran.stderr
    piped, built = Genome("piped.mb"), Genome("g.mb")
    assert (piped.name, piped.checksum) == ("piped", built.checksum)


def test_a_genome_of_rna_is_said_once(folder: Path) -> None:
    Path("rna.fa").write_text(">r\nACGU\n")
    said = pytest.warns(AmbiguousLettersWarning, match=r"rna\.fa: 1 letter read as N: U 1; U is")
    with said, genome_store("rna.fa") as store:
        assert store.total_length == 4
