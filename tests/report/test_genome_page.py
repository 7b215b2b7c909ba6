"""The genome page: whole, offline, and what it shows is what it was given."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.report.genome_page import (
    GenomePage,
    Logo,
    Segment,
    Track,
    _bed_track,
    _Column,
    _Feature,
    _genes_at,
    _pack,
    _TableRow,
    genes_track,
)
from megabase.report.style import _asset


@pytest.fixture
def page(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    letters = "T" * 100 + "ACGTN" * 20 + "T" * 4800
    (tmp_path / "toy.fa").write_text(f">chr1\n{letters}\n")
    expected = rng.dirichlet([1] * 4, 100)
    return GenomePage(
        Genome.build(tmp_path / "toy.fa", tmp_path / "toy.mb"), [Interval("chr1", 100, 200)],
        title="chr1:101-200 </script><b>", lead="A & B",
        tracks=[
            Track("genes", (_Feature("chr1", 110, 150, "ABC1", "+", ((110, 120),)),)),
            Track("signal", segments=(Segment("chr1", 100, rng.normal(size=100)),)),
        ],
        logos=[Logo("expects", "bits", "chr1", 100, expected, "probability")],
        columns=[_Column("position", "place"), _Column("alt"), _Column("LLR", "number")],
        rows=[
            _TableRow("chr1", 120, 121, (121, "<script>", -1.5)),
            _TableRow("chr1", 130, 131, (131, "T", float("nan"))),
        ],
        numbers=[("100", "", "bases")], facts=[("model", "x")],
    ).html()  # fmt: skip


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page)
    assert found
    return json.loads(found.group(1))


def test_nothing_is_asked_of_another_host(page: str) -> None:
    # Elements that load something: none may name a host; the policy forbids the rest.
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href|action|data)\s*=\s*["\']?\s*(?:https?:)?//', markup)
    assert "http://" not in markup
    assert "https://" not in markup
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy.group(1).split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "img-src", "style-src", "script-src"}
    assert not re.search(r"https?:|\*", policy.group(1))
    own = _asset("browser.js")
    assert not re.search(r"fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", own)
    assert not re.search(r"^//# sourceMappingURL", page, re.MULTILINE)


def test_scripts_cannot_be_broken_out_of(page: str) -> None:
    assert "</script><b>" not in page
    assert page.count("</script>") == page.count("<script")
    assert _data(page)["table"]["rows"][0]["cells"] == [121, "<script>", -1.5]


def test_the_data_are_those_that_were_given(page: str) -> None:
    data = _data(page)
    packed = data["genome"]["fasta"].removeprefix("data:application/gzip;base64,")
    fasta = gzip.decompress(base64.b64decode(packed)).decode()
    assert fasta == ">chr1:101-200 @len=5000\n" + "ACGTN" * 20 + "\n"
    genes, signal = data["tracks"]
    assert genes["features"] == [["chr1", 110, 150, "ABC1", "+", [[110, 120]]]]
    assert (signal["segments"][0]["start"], genes["order"], signal["order"]) == (100, 1, 2)
    assert data["table"]["rows"][1]["cells"] == [131, "T", None]
    assert data["logos"][0]["length"] == 100


def test_packed_numbers_come_back() -> None:
    values = np.array([-3.25, 0.0, np.nan, 7.5, np.inf])
    record = _pack(values)
    steps = np.frombuffer(base64.b64decode(record["data"]), dtype="<u2")
    assert steps[[2, 4]].tolist() == [65535, 65535]
    known = record["low"] + steps[[0, 1, 3]] * (record["high"] - record["low"]) / 65534
    np.testing.assert_allclose(known, values[[0, 1, 3]], atol=(7.5 + 3.25) / 65534)
    assert _pack(np.full(3, 2.0))["low"] == 2.0
    assert _pack(np.full(3, np.nan))["low"] == 0.0


def test_genes_have_the_union_of_their_exons(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">chr1\n" + "ACGT" * 100 + "\n")
    store = Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    rows = [
        ("gene", 11, 100, "+", "ID=g1;Name=ABC1"),
        ("mRNA", 11, 100, "+", "ID=t1;Parent=g1"),
        ("exon", 11, 30, "+", "Parent=t1"), ("exon", 25, 40, "+", "Parent=t1"),
        ("exon", 61, 100, "+", "Parent=t1"), ("CDS", 20, 90, "+", "Parent=t1"),
        ("gene", 301, 320, "-", "ID=g2;Name=XYZ"),
    ]  # fmt: skip
    (tmp_path / "g.gff").write_text(
        "##gff-version 3\n"
        + "".join(f"chr1\tx\t{k}\t{s}\t{e}\t.\t{d}\t.\t{a}\n" for k, s, e, d, a in rows)
    )
    track = genes_track(str(tmp_path / "g.gff"), "genes", store, [Interval("chr1", 0, 200)])
    (gene,) = track.features
    assert (gene.name, gene.start, gene.end, gene.strand) == ("ABC1", 10, 100, "+")
    assert gene.exons == ((10, 40), (60, 100))
    assert _genes_at(track, "chr1", 99, 100) == "ABC1"
    assert _genes_at(track, "chr1", 100, 101) == ""
    (tmp_path / "b.bed").write_text("chr1\t5\t9\tpeak\nchr1\t350\t360\tfar\n")
    peaks = _bed_track(str(tmp_path / "b.bed"), "peaks", store, [Interval("chr1", 0, 200)])
    assert [f.name for f in peaks.features] == ["peak"]
