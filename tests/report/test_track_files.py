"""Files given as tracks: numbers become a signal, and nothing is read as what it is not."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.cli.main import main
from megabase.errors import InputError, LeftOutWarning, ReportError
from megabase.genome.interval import Interval
from megabase.genome.store import Genome
from megabase.report.genome_page import _ENDINGS, _signal_track, _track_kind


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 6000))
    (tmp_path / "g.fa").write_text(f">chr1\n{letters}\n>chr2\n{letters[:500]}\n")
    return Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")


def page_tracks(folder: Path, *tracks: str) -> list[dict[str, Any]]:
    page = folder / "page.html"
    command = ["report", "--genome", str(folder / "g.mb"), "--region", "chr1:1-1000"]
    assert main([*command, "--no-model", "--track", *tracks, "-o", str(page)]) == 0
    found = re.search(r'id="page-data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found.group(1))["tracks"]


@pytest.mark.filterwarnings("default::megabase.errors.LeftOutWarning")
def test_a_bedgraph_is_a_signal(store: Genome, tmp_path: Path) -> None:
    text = (
        "track type=bedGraph name=x\n# a remark\nbrowser position chr1:1-10\n\n"
        "chr1\t0\t100\t1.5\nchr1 200 300 -2e0\nchr1\t900\t1200\t4\nchr7\t0\t9\t1\nchr2\t0\t9\t8\n"
    )
    (tmp_path / "x.BedGraph").write_text(text)
    (tmp_path / "y.bdg.gz").write_bytes(gzip.compress(text.encode()))
    for track in page_tracks(tmp_path, f"x={tmp_path / 'x.BedGraph'}", str(tmp_path / "y.bdg.gz")):
        assert (track["kind"], track["name"]) in (("signal", "x"), ("signal", "y"))
        (segment,) = track["segments"]
        assert (segment["values"]["low"], segment["values"]["high"]) == (-2.0, 4.0)
    places = [Interval("chr1", 50, 250), Interval("chr1", 1190, 1210), Interval("chr2", 0, 12)]
    with pytest.warns(LeftOutWarning, match="1 of 5 rows are left out: 1 UNKNOWN_CONTIG"):
        track = _signal_track(str(tmp_path / "x.BedGraph"), "x", store, places)
    first, second, third = track.segments
    expected = np.concatenate([np.full(50, 1.5), np.full(100, np.nan), np.full(50, -2.0)])
    np.testing.assert_array_equal(first.values, expected)
    np.testing.assert_array_equal(second.values, [4.0] * 10 + [np.nan] * 10)
    np.testing.assert_array_equal(third.values, [8.0] * 9 + [np.nan] * 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("chr1\t5\t9\tNA", "line 2: the value must be a finite number, found 'NA'"),
        ("chr9\t5\t9\tnan", "line 2: the value must be a finite number, found 'nan'"),
        ("chr1\t5\t9\tinf", "line 2: the value must be a finite number, found 'inf'"),
        ("chr1\t5\t9", "line 2: a bedGraph row has four columns"),
        ("chr1\t5\t9\tname\t7", "line 2: a bedGraph row has four columns"),
        ("chr1\t5.5\t9\t1", "line 2: start and end are whole numbers"),
        ("chr1\t9\t9\t1", "line 2: expected 0 <= start < end"),
        ("chr1\t0\t2\t3", "line 2: a base of this row has a value already"),
    ],
)
def test_what_is_no_number_is_refused_with_its_line(
    store: Genome, tmp_path: Path, row: str, message: str
) -> None:
    (tmp_path / "x.bg").write_text(f"chr1\t0\t1\t1\n{row}\n")
    with pytest.raises(InputError, match=re.escape(message)):
        _signal_track(str(tmp_path / "x.bg"), "x", store, [Interval("chr1", 0, 20)])


@pytest.mark.parametrize(
    ("contig", "message"),
    [("chrX", "none of its 1 rows can be used"), ("chr2", "no row on the contigs shown")],
)
def test_a_bedgraph_of_other_contigs_is_refused(
    store: Genome, tmp_path: Path, contig: str, message: str
) -> None:
    (tmp_path / "x.bg").write_text(f"{contig}\t0\t1\t1\n")
    with pytest.raises(InputError, match=message):
        _signal_track(str(tmp_path / "x.bg"), "x", store, [Interval("chr1", 0, 20)])


@pytest.mark.parametrize("name", ["x.txt", "x.wig", "x.vcf", "x", "x.gz", "bed", "x.bigBed"])
def test_unknown_endings_are_refused_by_name(name: str) -> None:
    with pytest.raises(ReportError, match=r"expected a name ending in \.bw, .*\.bedgraph, .*\.bed"):
        _track_kind(name)


def test_every_known_ending_is_taken_in_any_case() -> None:
    for ending, kind in _ENDINGS.items():
        assert _track_kind(f"a.b{ending.upper()}") == kind
        if kind != "bigwig":
            assert _track_kind(f"a{ending}.gz") == kind
    with pytest.raises(ReportError, match="compressed already"):
        _track_kind("a.bw.gz")
    with pytest.raises(ReportError, match=r"expected a name ending in \.gff, \.gff3, \.gtf"):
        _track_kind("genes.bed", ["genes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--genes", "x.txt"], "expected a name ending in .gff"),
        (["--track", "x.txt"], "expected a name ending in .bw"),
        (["-o", "page.png"], "page.png: the page is HTML"),
    ],
)
def test_the_page_falls_back_to_no_other_format(
    store: Genome, tmp_path: Path, options: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.txt").write_text("chr1\t0\t100\n")
    command = ["report", "--genome", "g.mb", "--region", "chr1:1-1000", "--no-model", *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))
    assert not list(tmp_path.glob("*.html"))
