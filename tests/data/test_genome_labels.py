from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megabase.data.genome_labels import (
    label_windows,
    read_features,
)
from megabase.data.regions import Regions
from megabase.errors import InputError, LeftOutWarning
from megabase.genome.store import Genome

GFF = """##gff-version 3
one\tx\tgene\t1\t20\t.\t+\t.\tID=a
one\tx\tCDS\t3\t6\t.\t+\t0\tID=a
one\tx\tCDS\t9\t10\t.\t-\t0\tID=b
one\tx\ttRNA\t6\t8\t.\t-\t.\tID=c
two\tx\tCDS\t1\t4\t.\t.\t0\tID=d
"""


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    fasta = tmp_path / "g.fa"
    fasta.write_text(">one\nACGTACGTACNNACGTACGT\n>two\nacgtacgtac\n")
    return Genome.build(fasta, tmp_path / "g.mb")


@pytest.fixture
def gff(tmp_path: Path) -> Path:
    path = tmp_path / "g.gff"
    path.write_text(GFF)
    return path


def painted(store: Genome, gff: Path, *types: str, **options: str) -> str:
    features = read_features(store, [gff], types, **options)  # type: ignore[arg-type]
    return "".join(map(str, features.paint(0, 20)))


def test_bases_get_the_class_of_their_feature(store: Genome, gff: Path) -> None:
    # 1-based 3 to 6, 9 to 10; both strands count.
    assert painted(store, gff, "CDS") == "00111100110000000000"
    assert painted(store, gff, "CDS", strand="forward") == "00111100000000000000"
    assert painted(store, gff, "CDS", strand="reverse") == "00000000110000000000"
    two = read_features(store, [gff], ["CDS"], strand="reverse")
    assert two.paint(1, 10).tolist() == [1] * 4 + [0] * 6  # without strand: counts for each


def test_classes_are_sorted_and_the_first_type_wins(store: Genome, gff: Path) -> None:
    names = read_features(store, [gff], ["tRNA", "CDS=coding"], background="rest").classes
    assert names == ("rest", "coding", "tRNA")
    assert painted(store, gff, "tRNA", "CDS") == "00111222110000000000"
    assert painted(store, gff, "CDS", "tRNA") == "00111122110000000000"
    assert painted(store, gff, "CDS=x", "tRNA=x") == "00111111110000000000"


def test_bed_rows(store: Genome, tmp_path: Path) -> None:
    bed = tmp_path / "peaks.bed"
    bed.write_text("one\t2\t6\tp1\none\t5\t8\tp2\n")
    assert painted(store, bed) == "00111111000000000000"
    assert read_features(store, [bed]).classes == ("background", "feature")
    assert painted(store, bed, "p2") == "00000111000000000000"


def test_windows(store: Genome, gff: Path) -> None:
    features = read_features(store, [gff], ["CDS"])
    found = label_windows(store, Regions.whole([20, 10]), features, length=8)
    assert found.lengths.tolist() == [8, 8, 4, 8, 2]
    assert found.labels[8:16].tolist() == [1, 1, -100, -100, 0, 0, 0, 0]  # N has no label
    assert found.class_counts() == {"background": 18, "CDS": 10}
    assert found.where(1).endswith("g.mb, one:9-16")
    wide = label_windows(store, Regions.of([0], [4], [12]), features, length=4, flank=3)
    assert [str(i) for i in wide.text.intervals or ()] == ["one:2-11", "one:6-15"]
    labels = wide.labels.reshape(2, 10)
    assert labels[0].tolist() == [-100] * 3 + [1, 1, 0, 0] + [-100] * 3
    taken = wide.take(np.array([1]))
    assert taken.labels.tolist() == labels[1].tolist()
    assert taken.where(0).endswith("one:6-15")
    with pytest.raises(InputError, match="no base with a label"):
        label_windows(store, Regions.of([0], [10], [12]), features, length=4)


def test_tail_of_every_region() -> None:
    kept, cut = Regions.of([0, 1, 1], [0, 10, 50], [100, 20, 54]).cut_tails(0.2, 5)
    assert cut == Regions.of([0, 1], [80, 15], [100, 20])
    assert kept == Regions.of([0, 1, 1], [0, 10, 50], [80, 15, 54])
    with pytest.raises(InputError, match="no training region is long enough"):
        Regions.of([0], [0], [9]).cut_tails(0.2, 5)


def test_other_contigs_are_counted(store: Genome, gff: Path) -> None:
    gff.write_text(GFF + "three\tx\tCDS\t1\t4\t.\t+\t0\tID=e\n")
    with pytest.warns(LeftOutWarning, match=r"1 UNKNOWN_CONTIG \("):
        read_features(store, [gff], ["CDS"])
    gff.write_text("three\tx\tCDS\t1\t4\t.\t+\t0\tID=e\n")
    with pytest.raises(InputError, match=r"none of its 1 rows can be used \(1 UNKNOWN_CONTIG\)"):
        read_features(store, [gff], ["CDS"])


def test_what_cannot_be_used(store: Genome, gff: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no row of .* is of the type 'exon'"):
        read_features(store, [gff], ["CDS", "exon"])
    with pytest.raises(InputError, match="name the types that count"):
        read_features(store, [gff])
    with pytest.raises(InputError, match="no file of features is named"):
        read_features(store, [])
    with pytest.raises(InputError, match="other than that of the background"):
        read_features(store, [gff], ["CDS=background"])
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(InputError, match="is not a file of features"):
        read_features(store, [tmp_path / "x.txt"], ["CDS"])
    gff.write_text("one\tx\tCDS\t1\t40\t.\t+\t0\tID=e\n")
    with pytest.raises(InputError, match=r"line 1: the row ends at 40, past the end of contig"):
        read_features(store, [gff], ["CDS"], strict=True)
