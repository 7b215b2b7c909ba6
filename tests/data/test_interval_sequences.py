from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from megabase.data.genome_labels import divide_rows, read_interval_text
from megabase.data.labeled import LabelTable, label_splits
from megabase.data.regions import Regions
from megabase.errors import InputError, IntervalWarning, MegabaseError
from megabase.genome.store import Genome

ONE = "AAAACCCCGGGGTTTTACGT"


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    fasta = tmp_path / "g.fa"
    fasta.write_text(f">one\n{ONE}\n>two\nACGTACGTAC\n")
    return Genome.build(fasta, tmp_path / "g.mb")


def bed(tmp_path: Path, *rows: str, name: str = "x.bed") -> Path:
    path = tmp_path / name
    path.write_text("\n".join(row.replace(" ", "\t") for row in rows) + "\n")
    return path


def test_bed(tmp_path: Path, store: Genome) -> None:
    path = bed(tmp_path, "# a comment", "one 2 6 on 0 +", "one 12 17 off 0 -", "two 0 4 on 0 .")
    text = read_interval_text(path, store)
    assert text.sequences == ["AACC", "TTTTA", "ACGT"]
    assert text.labels == [("on",), ("off",), ("on",)]
    assert text.where(1) == f"{path}, row 2 (one:13-17(+))"
    turned = read_interval_text(path, store, orient=True)
    assert turned.sequences == ["AACC", "TAAAA", "ACGT"]


def test_width(tmp_path: Path, store: Genome) -> None:
    path = bed(tmp_path, "one 8 12 a 0 + 1 2 3 0", "one 8 13 b 0 + 1 2 3 -1", name="x.narrowPeak")
    # Middle of [8, 12) and of [8, 13): 10; the summit of the first is 8.
    assert read_interval_text(path, store, length=4).sequences == [ONE[8:12], ONE[8:12]]
    summit = read_interval_text(path, store, length=4, center="summit")
    assert summit.sequences == [ONE[6:10], ONE[8:12]]
    assert read_interval_text(path, store, flank=2).sequences == [ONE[6:14], ONE[6:15]]
    odd = read_interval_text(path, store, length=3, flank=1)
    assert odd.sequences == [ONE[8:13], ONE[8:13]]
    assert len(odd.sequences[0]) == 5
    plain = bed(tmp_path, "one 8 12 a")
    with pytest.raises(InputError, match="has no summits"):
        read_interval_text(plain, store, length=4, center="summit")


def test_bases_past_the_end_are_n_and_counted(tmp_path: Path, store: Genome) -> None:
    path = bed(tmp_path, "one 0 4 a 0 -", "two 8 10 b 0 +")
    with pytest.warns(IntervalWarning, match=r"2 of 2 intervals .* reach past the end"):
        text = read_interval_text(path, store, flank=2, orient=True)
    assert text.sequences == ["GGTTTTNN", "GTACNN"]
    assert [(i.start, i.end) for i in text.intervals or ()] == [(0, 6), (6, 10)]


def test_gff_and_vcf_count_from_one(tmp_path: Path, store: Genome) -> None:
    gff = bed(tmp_path, "one . gene 5 8 . + . biotype=protein", name="x.gff3")
    text = read_interval_text(gff, store, label="biotype")
    assert (text.sequences, text.labels) == (["CCCC"], [("protein",)])
    assert read_interval_text(gff, store).labels == [("gene",)]
    vcf = tmp_path / "x.vcf.gz"
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    with gzip.open(vcf, "wt") as file:
        file.write(header + "one\t5\trs1\tC\tT\t.\t.\tCLASS=benign\n")
    found = read_interval_text(vcf, store, label="CLASS", length=3)
    assert (found.sequences, found.labels) == (["ACC"], [("benign",)])
    with pytest.raises(InputError, match="is a VCF: name the label"):
        read_interval_text(vcf, store)


def test_several_labels_and_numbers(tmp_path: Path, store: Genome) -> None:
    path = bed(tmp_path, "one 0 4 a 1 + 0 1", "one 4 8 b 2.5 + 1 1")
    text = read_interval_text(path, store, label=["column_7", "column_8"])
    found = label_splits({"train": text})["train"]
    assert found.kind == "multi_label"
    assert found.labels.tolist() == [[0, 1], [1, 1]]
    numbers = label_splits({"train": read_interval_text(path, store, label="score")})["train"]
    assert numbers.kind == "regression"
    assert numbers.labels.tolist() == [[1.0], [2.5]]


class TestDivision:
    def text(self, tmp_path: Path, store: Genome) -> LabelTable:
        path = bed(tmp_path, "one 0 4 a", "one 4 8 b", "one 10 14 a", "two 0 4 b", "two 6 9 b")
        return read_interval_text(path, store)

    def parts(self, tmp_path: Path, store: Genome, *regions: Regions | None) -> dict[str, int]:
        train, valid, test = regions
        assert valid is not None
        assert test is not None
        found = divide_rows(self.text(tmp_path, store), store, train, valid, test)
        return {name: len(part.sequences) for name, part in found.items()}

    def test_places_hold_rows_out(self, tmp_path: Path, store: Genome) -> None:
        none = Regions.of([], [], [])
        assert self.parts(tmp_path, store, None, none, none) == {"train": 5}
        # A row that only touches a held-out place is not trained on.
        valid, test = Regions.of([0], [7], [10]), Regions.of([1], [0], [10])
        assert self.parts(tmp_path, store, None, valid, test) == {
            "train": 2, "valid": 1, "test": 2
        }  # fmt: skip
        with pytest.warns(IntervalWarning, match="1 of 5 intervals .* lie in no split"):
            only = self.parts(tmp_path, store, Regions.of([0], [0], [4]), valid, test)
        assert only["train"] == 1

    def test_refusals(self, tmp_path: Path, store: Genome) -> None:
        one, none = Regions.of([0], [0], [6]), Regions.of([], [], [])
        with pytest.raises(InputError, match=r"row 2 .* touches both valid and test"):
            self.parts(tmp_path, store, None, one, Regions.of([0], [6], [9]))
        with pytest.raises(InputError, match="is left for training"):
            self.parts(tmp_path, store, None, Regions.whole([20, 10]), none)


@pytest.mark.parametrize(
    ("rows", "label", "message"),
    [
        (["one 0 4"], None, "has no label 'name' in its columns"),
        (["one 0 4 a"], "klass", r"has no label 'klass' in its columns; it has contig"),
        (["one 0 4 a", "one 15 30 b"], None, r"x\.bed, line 2: .*past the end of contig 'one'"),
        (["nine 0 4 a"], None, r"x\.bed, line 1: .*no contig 'nine'"),
        (["one 0 4 a", "one 9 9 b"], None, r"x\.bed, line 2: expected start < end"),
        (["one 0 4 a 1 +", "one 4 8 b . +"], "score", r"x\.bed, row 2 .*: the label \(score\) is"),
    ],
)
def test_what_cannot_be_used(
    tmp_path: Path, store: Genome, rows: list[str], label: str | None, message: str
) -> None:
    with pytest.raises(MegabaseError, match=message):
        read_interval_text(bed(tmp_path, *rows), store, label=label, strict=True)


def test_a_summit_outside_its_peak_is_refused(tmp_path: Path, store: Genome) -> None:
    path = tmp_path / "x.narrowPeak"
    for summit in (5, -2):
        path.write_text(f"one\t1\t6\ta\t0\t.\t1\t1\t1\t-1\none\t1\t6\tb\t0\t.\t1\t1\t1\t{summit}\n")
        with pytest.raises(InputError, match=rf"one:2-6 is {summit}, outside its 5 bases"):
            read_interval_text(path, store, length=4, center="summit")


def test_other_files(tmp_path: Path, store: Genome) -> None:
    with pytest.raises(InputError, match="not a file of intervals"):
        read_interval_text(tmp_path / "x.csv", store)
    with pytest.raises(InputError, match="there is no file"):
        read_interval_text(tmp_path / "none.bed", store)
