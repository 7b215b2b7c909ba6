"""megabase variants: every line comes back; other tools read the output; kills and bad input."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pysam
import pytest

from megabase.cli.main import main
from megabase.genome.consequences import Annotation
from megabase.genome.store import Genome
from megabase.inference.variants.scorer import score_variants

needs_bcftools = pytest.mark.skipif(not shutil.which("bcftools"), reason="bcftools is missing")
HEADER = """##fileformat=VCFv4.3
##FILTER=<ID=q10,Description="low">
##INFO=<ID=AF,Number=A,Type=Float,Description="frequency">
##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone\ttwo
"""

pytestmark = pytest.mark.filterwarnings("default::megabase.errors.LeftOutWarning")


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "toy.fa"
    bases = "".join(np.random.default_rng(1).choice(list("ACGTacgt"), 4_000))
    path.write_text(f">chr1\n{bases}\n>chr2\n{bases[::-1]}\n")
    return path


def lines_of(genome: Path, count: int = 40, step: int = 90) -> list[str]:
    """Records in order, with samples; the third is symbolic and the fourth of another build."""
    lines = []
    for name, bases in zip(
        ("chr1", "chr2"), genome.read_text().upper().split("\n")[1::2], strict=True
    ):
        for i in range(count):
            position = 60 + i * step % 3_800 + i * step // 3_800
            ref = bases[position : position + 1 + i % 2]
            alt = [b for b in "ACGT" if b != ref[0]][i % 3]
            alts = f"{alt},{ref}TT" if i % 5 == 0 else alt
            info, name_of = ("AF=0.25", f"rs{i}") if i % 5 and i != 2 else (".", ".")
            if i == 2:
                alts = "<DEL>"
            if i == 3:
                ref = alt
                alts = bases[position]
            place = f"{name}\t{position + 1}\t{name_of}\t{ref}\t{alts}"
            lines.append((name, position + 1, f"{place}\t3.50\tq10\t{info}\tGT\t0/1\t./."))
    return [line for *_, line in sorted(lines, key=lambda row: row[:2])]


@pytest.fixture(scope="module")
def vcf(genome: Path) -> Path:
    path = genome.with_name("in.vcf")
    path.write_text(HEADER + "\n".join(lines_of(genome)) + "\n")
    return path


def run(vcf: Path, genome: Path, out: Path, *options: str, model: str = "default") -> int:
    """Run the verb in this process; starting others costs seconds."""
    command = ["variants", model, str(vcf), str(genome), "-o", str(out), *options]
    return main(command if "--workers" in options else [*command, "--workers", "1"])


def without_scores(line: str) -> str:
    fields = line.split("\t")
    kept = [field for field in fields[7].split(";") if not field.startswith("MB_")]
    fields[7] = ";".join(kept) or "."
    return "\t".join(fields)


@needs_bcftools
@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz", "out.bcf"])
def test_every_record_comes_back_and_bcftools_reads_it(
    vcf: Path, genome: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    assert run(vcf, genome, out, "--window", "32") == 0
    said = capfd.readouterr().err
    assert "80 records\n" in said
    assert said.count("in.vcf: 4 of 96 alleles have no score: 2 SYMBOLIC_ALT (") == 1
    assert "2 REF_MISMATCH (REF differs from the genome; first in line 9)" in said
    ran = subprocess.run(["bcftools", "view", str(out)], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    records = [line for line in ran.stdout.split("\n") if line and not line.startswith("#")]
    if name != "out.bcf":  # BCF is written by htslib, which may spell numbers its own way
        raw = out.read_bytes()
        text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()
        own = [line for line in text.split("\n") if line and not line.startswith("#")]
        assert [without_scores(line) for line in own] == lines_of(genome)
        header = ran.stdout.split("#CHROM")[0]
        assert all(line in header for line in HEADER.split("\n")[:4])
        assert '"genome":"toy"' in header
    assert len(records) == 80
    assert sum("MB_REASON=SYMBOLIC_ALT" in line for line in records) == 2
    assert sum("MB_REASON=REF_MISMATCH" in line for line in records) == 2
    table = score_variants(None, vcf, genome, window=32).table
    found = [
        value
        for record in pysam.VariantFile(str(out))
        for value in record.info.get("MB_LLR_WINDOW", (None,))
    ]
    np.testing.assert_allclose(
        [np.nan if value is None else value for value in found],
        [np.nan if value is None else value for value in table["llr_window"]],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    if name != "out.vcf":
        region = subprocess.run(["bcftools", "view", "-H", str(out), "chr2:100-500"],
                                capture_output=True, text=True)  # fmt: skip
        assert region.stdout.count("\n") == 4
        assert region.stderr == ""


def test_tables_are_read_by_polars_and_pandas(vcf: Path, genome: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert run(vcf, genome, out, "--window", "64", "--methods", "l2", "llr_site",
               "--placement", "grid") == 0  # fmt: skip
    table = pl.read_parquet(out)
    assert table.columns[-3:] == ["l2", "llr_site", "reason"]
    assert table.height == 96
    assert pd.read_parquet(out)["reason"].notna().sum() == 4
    provenance = pl.read_parquet_metadata(out)["megabase"]
    assert '"window":64' in provenance
    assert '"placement":"grid"' in provenance
    wanted = score_variants(
        None, vcf, genome, window=64, methods=["l2", "llr_site"], placement="grid"
    )
    found, there = (frame["llr_site"].fill_null(0) for frame in (table, wanted.table))
    np.testing.assert_allclose(found, there, atol=1e-5)


def test_kill_and_resume_gives_the_same_bytes(genome: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.vcf"
    many.write_text(HEADER + "\n".join(lines_of(genome, 300, 12)) + "\n")
    whole, out = tmp_path / "whole.vcf.gz", tmp_path / "out.vcf.gz"
    options = ["--window", "16", "--device", "cpu", "--strands", "forward"]
    assert run(many, genome, whole, *options, "--workers", "1") == 0
    command = ["variants", "default", str(many), str(genome), "-o", str(out), *options,
               "--workers", "2"]  # fmt: skip
    code = f"import sys; from megabase.cli.main import main; sys.exit(main({command!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True,
                             stderr=subprocess.DEVNULL)  # fmt: skip
    parts = tmp_path / "out.vcf.gz.partial"
    while not list(parts.glob("part-*")) and child.poll() is None:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if not out.exists():
        assert run(many, genome, out, *options) == 2
        assert run(many, genome, out, *options, "--window", "64", "--resume") == 2
        assert run(many, genome, out, *options, "--placement", "grid", "--resume") == 2
        assert run(many, genome, out, *options, "--workers", "1", "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_unsorted_input_is_scored_and_not_indexed(
    vcf: Path, genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = tmp_path / "turned.vcf"
    turned.write_text(HEADER + "\n".join(lines_of(genome)[::-1]) + "\n")
    out = tmp_path / "out.vcf.gz"
    assert run(turned, genome, out, "--window", "16") == 0
    assert "not in order" in capsys.readouterr().err
    assert not out.with_name("out.vcf.gz.tbi").exists()


@pytest.mark.filterwarnings("default")
def test_names_with_and_without_chr_are_one_contig(
    vcf: Path, genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.vcf"
    other.write_text(vcf.read_text().replace("\nchr", "\n"))
    assert run(other, genome, tmp_path / "out.vcf.gz", "--window", "16") == 0
    said = capsys.readouterr().err
    assert said.count("contig '1' is taken to be 'chr1'") == 1
    assert pysam.VariantFile(str(tmp_path / "out.vcf.gz")).header.contigs["1"].length == 4_000


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda text: text.replace("\tA\t", "\tc\t").replace("\tG\t", "\tT\t"), [],
         "is the file made for another assembly?"),
        (lambda text: text.split("\n", 5)[5], [], "is not VCF: expected a header"),
        (lambda text: text.replace("\nchr", "\nscaffold"), [],
         "none of its 96 alleles can be used (96 UNKNOWN_CONTIG); the first, line 6: genome "),
        (lambda text: text.replace("\t61\t", "\tx\t", 1), [], "POS must be a whole number"),
        (lambda text: text + "chr2\t3999\t.\tA\n", [], "expected 8 columns"),
        (lambda text: text.replace("ID=AF", "ID=MB_LLR_SITE"), [], "has INFO field MB_LLR_SITE"),
        (lambda text: text, ["--window", "5000"], "longest input is"),
        (lambda text: text, ["--methods", "magic"], "no method 'magic'"),
        (lambda text: text, ["--prefix", "A B"], "cannot begin an INFO key"),
        (lambda text: text, ["MODEL"], "no such folder"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(
    vcf: Path, genome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: object, options: list[str], message: str,
) -> None:  # fmt: skip
    bad = tmp_path / "bad.vcf"
    bad.write_text(change(vcf.read_text()))  # pyright: ignore[reportCallIssue]
    model = "no/where/at/all" if options == ["MODEL"] else "default"
    more = [] if options == ["MODEL"] else options
    assert run(bad, genome, tmp_path / "out.vcf.gz", *more, model=model) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1 + error.count("megabase: warning: ")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.vcf"]


def test_output_needs_a_known_ending(vcf: Path, genome: Path, tmp_path: Path) -> None:
    assert run(vcf, genome, tmp_path / "out.txt") == 2


def test_a_header_of_names_alone_becomes_one_that_other_tools_read(
    genome: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "names.vcf", tmp_path / "scored.vcf"
    names = HEADER.splitlines()[-1].split("\tFORMAT")[0]
    record = lines_of(genome, 1)[0].split("\tGT")[0]
    source.write_text(f"{names}\n{record}\n")
    call = ["variants", "default", str(source), str(genome), "-o", str(target), "--window", "64"]
    assert main([*call, "--workers", "1"]) == 0
    assert target.read_text().startswith("##fileformat=VCFv4.2\n")
    with pysam.VariantFile(str(target)) as file:
        assert [record.chrom for record in file] == ["chr1"]


def test_bcf_is_read_without_words_about_an_index(
    vcf: Path, genome: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(vcf, genome, tmp_path / "a.bcf", "--window", "64") == 0
    (tmp_path / "a.bcf.csi").unlink()
    capfd.readouterr()
    again = ["--prefix", "TWO", "--window", "64"]
    assert run(tmp_path / "a.bcf", genome, tmp_path / "b.tsv", *again) == 0
    assert "index" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:contig .* is taken to be")
def test_consequences_stand_in_info_and_tables(genome: Path, vcf: Path, tmp_path: Path) -> None:
    gff = tmp_path / "genes.gff"
    parts = [("1", 101, 700, "+", "t1"), ("1", 400, 2_000, "-", "t2"), ("chr2", 50, 900, "+", "t3")]
    rows = [f"{c}\tx\tmRNA\t{s}\t{e}\t.\t{d}\t.\tID={t};Name=a%2Cb|{t}" for c, s, e, d, t in parts]
    for kind in ("exon", "CDS"):
        rows += [f"{c}\tx\t{kind}\t{s}\t{e}\t.\t{d}\t0\tParent={t}" for c, s, e, d, t in parts]
    gff.write_text("\n".join(rows) + "\n")
    shared = ["default", str(vcf), str(genome), "--window", "32", "--methods", "llr_site"]
    shared += ["--genes", str(gff), "--workers", "1"]
    assert main(["variants", *shared, "-o", str(tmp_path / "o.vcf")]) == 0
    assert main(["variants", *shared, "-o", str(tmp_path / "o.parquet")]) == 0
    table = pl.read_parquet(tmp_path / "o.parquet")
    memory = score_variants("default", vcf, genome, genes=gff, window=32, methods="llr_site")
    assert memory.table.drop("llr_site").equals(table.drop("llr_site"))
    assert memory.provenance.inputs.keys() == {"genes.gff"}
    store = Genome(genome)
    annotation = Annotation.read(gff, store)
    with pysam.VariantFile(str(tmp_path / "o.vcf")) as file:
        assert file.header.info["MB_GENE"].number == "A"
        rows_of = iter(table.iter_rows(named=True))
        for record in file:
            every: list[str] = []
            for number, alt in enumerate(record.alts or ()):
                row = next(rows_of)
                usable = row["reason"] not in ("SYMBOLIC_ALT", "REF_MISMATCH")
                found = (
                    annotation.consequences(record.contig, record.start, record.ref or "", alt)
                    if usable
                    else []
                )
                assert row["consequence"] == (found[0].terms[0] if found else None)
                assert row["gene"] == (found[0].gene or None if found else None)
                every += [f"{alt}|{one}" for one in found]
                if found:
                    assert record.info["MB_CONSEQUENCE"][number] == row["consequence"]
                    gene = urllib.parse.quote(row["gene"] or ".", safe="")
                    assert record.info["MB_GENE"][number] == gene
            assert list(record.info.get("MB_CSQ", ())) == every
    assert {"missense_variant", "intergenic_variant", None} < set(table["consequence"])
    assert {"a,b|t1", None} < set(table["gene"])
    read = subprocess.run(
        ["bcftools", "+split-vep", "-a", "MB_CSQ", "-s", "worst", "-f", "%Gene %Transcript\n",
         str(tmp_path / "o.vcf")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    if read.returncode == 0:  # a plugin, which not every bcftools has
        assert "a%2Cb%7Ct1 t1" in read.stdout.splitlines()
