"""The table of variants in the genome page: alleles, their records, and why one has no score."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from megabase.cli.main import main

HEAD = """##fileformat=VCFv4.2
##contig=<ID=chr1,length=2000>
##FILTER=<ID=Low,Description="low">
##INFO=<ID=MB_LLR_SITE,Number=A,Type=Float,Description="score">
##INFO=<ID=MB_CONSEQUENCE,Number=A,Type=String,Description="what">
##INFO=<ID=MB_GENE,Number=A,Type=String,Description="where">
##INFO=<ID=MB_LLR_SITE_PERCENTILE,Number=A,Type=Float,Description="percentile">
##INFO=<ID=MB_REASON,Number={},Type=String,Description="why">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
"""


def table_of(folder: Path, number: str, rows: list[str]) -> tuple[str, list[dict[str, Any]]]:
    letters = "A" * 500 + "".join(np.random.default_rng(0).choice(list("ACGT"), 1500))
    (folder / "g.fa").write_text(f">chr1\n{letters}\n")
    (folder / "v.vcf").write_text(HEAD.format(number) + "".join(f"{row}\n" for row in rows))
    page = folder / "page.html"
    command = ["report", "--genome", str(folder / "g.fa"), "--vcf", str(folder / "v.vcf")]
    assert main([*command, "--no-model", "-o", str(page)]) == 0
    text = page.read_text()
    found = re.search(r'id="page-data">(.*?)</script>', text)
    assert found
    table = json.loads(found.group(1))["table"]
    names = [column["name"] for column in table["columns"]]
    return text, [dict(zip(names, row["cells"], strict=True)) for row in table["rows"]]


def test_alleles_without_a_score_have_a_reason(tmp_path: Path) -> None:
    for number in ("A", "."):
        page, rows = table_of(tmp_path, number, [
            "chr1\t100\tone\tA\tC,<DEL>\t31.5\tPASS\tMB_LLR_SITE=-1.5,.;MB_REASON=.,SYMBOLIC_ALT",
            "chr1\t200\ttwo\tA\tG\t.\tLow\tMB_LLR_SITE=0.25",
            "chr1\t300\t.\tA\tT\t7\t.\tMB_REASON=TOO_NEAR_END",
        ])  # fmt: skip
        why = [row["no score because"] for row in rows]
        assert why == ["", "SYMBOLIC_ALT", "", "TOO_NEAR_END"]
        assert [row["MB_LLR_SITE"] for row in rows] == [-1.5, None, 0.25, None]
        assert [row["qual"] for row in rows] == [31.5, 31.5, None, 7.0]
        assert [row["filter"] for row in rows] == ["PASS", "PASS", "Low", None]
        assert [row["position"] for row in rows] == [100, 100, 200, 300]
        # Four alleles in three records, each called what it is.
        assert "<dt>alternative alleles</dt><dd>4 <small>in 3 VCF records</small></dd>" in page
        assert "3 VCF records of " in page
        (tmp_path / "page.html").unlink()


def test_columns_that_no_record_fills_are_left_out(tmp_path: Path) -> None:
    page, rows = table_of(tmp_path, "A", ["chr1\t100\tx\tA\tC\t.\t.\tMB_LLR_SITE=1"])
    names = ["contig", "position", "ref", "alt", "id", "MB_LLR_SITE", "MB_LLR_SITE_PERCENTILE"]
    assert list(rows[0]) == names
    assert "in 1 VCF record<" in page


def test_a_record_without_an_alternative_has_a_row_but_no_allele(tmp_path: Path) -> None:
    page, rows = table_of(tmp_path, "A", [
        "chr1\t100\t.\tA\tC\t.\t.\tMB_LLR_SITE=1",
        "chr1\t200\t.\tA\t.\t.\t.\tMB_REASON=NO_ALT",
    ])  # fmt: skip
    assert [row["alt"] for row in rows] == ["C", ""]
    assert '"A>."' in page
    assert "A>None" not in page
    assert "<dt>alternative alleles</dt><dd>1 <small>in 2 VCF records</small></dd>" in page


def test_consequence_gene_and_percentile_have_columns(tmp_path: Path) -> None:
    page, rows = table_of(tmp_path, "A", [
        "chr1\t100\t.\tA\tC,G\t.\t.\tMB_CONSEQUENCE=missense_variant,intron_variant;MB_GENE=a%2Cb,"
        "c;MB_LLR_SITE_PERCENTILE=2.5,97.04",
        "chr1\t200\t.\tA\tT\t.\t.\tMB_CONSEQUENCE=intergenic_variant;MB_GENE=.",
    ])  # fmt: skip
    assert [(row["consequence"], row["gene"]) for row in rows] == [
        ("missense_variant", "a,b"), ("intron_variant", "c"), ("intergenic_variant", ""),
    ]  # fmt: skip
    assert [row["MB_LLR_SITE_PERCENTILE"] for row in rows] == [2.5, 97.04, None]
    assert re.findall(r'<option value="(\w*_variant)">', page) == [
        "missense_variant", "intron_variant", "intergenic_variant",
    ]  # fmt: skip
