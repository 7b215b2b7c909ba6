from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megabase.data.regions import Intervals, Regions
from megabase.errors import InputError, MegabaseError
from megabase.genome.store import Genome


def test_places_are_contigs_stretches_and_bed_files(store: Genome, tmp_path: Path) -> None:
    bed = tmp_path / "gaps.bed"
    bed.write_text("chr1\t10\t20\nchr1\t15\t30\nchr2\t0\t5\n")
    got = Regions.read(store, ["chr3", "chr1:1,001-2,000", str(bed), bed])
    want = Regions.of([0, 0, 1, 2], [10, 1000, 0, 0], [30, 2000, 5, 40])
    assert got == want
    assert len(Regions.read(store, [])) == 0


def test_training_gets_what_is_not_held_out(store: Genome) -> None:
    split = Regions.split(
        store,
        include=["chr1", "chr2"],
        exclude=["chr1:1-100"],
        validation=["chr1:4,001-4,500"],
        test=["chr1:4,501-5,000", "chr3"],
    )
    assert split["train"] == Regions.of([0, 1], [100, 0], [4000, 3000])
    assert split["validation"] == Regions.of([0], [4000], [4500])
    assert split["test"] == Regions.of([0, 2], [4500, 0], [5000, 40])
    assert Regions.split(store)["train"].total == 8040


def test_bad_splits_say_what_is_wrong(store: Genome, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="overlap, first at chr1:101-200"):
        Regions.split(store, validation=["chr1:1-200"], test=["chr1:101-300"])
    with pytest.raises(InputError, match="no position is left"):
        Regions.split(store, include=["chr3"], exclude=["chr3"])
    with pytest.raises(MegabaseError, match="chr1"):
        Regions.read(store, ["chrl"])
    with pytest.raises(MegabaseError, match="past the end"):
        Regions.read(store, ["chr3:1-41"])
    with pytest.raises(MegabaseError, match=r"none\.bed"):
        Regions.read(store, [str(tmp_path / "none.bed")])


def test_intervals_are_read_by_split(store: Genome, tmp_path: Path) -> None:
    bed = tmp_path / "sequences.bed"
    bed.write_text("chr2\t5\t25\ttrain\nchr1\t0\t20\tvalid\nchr1\t30\t50\ttrain\n")
    got = Intervals.read(store, bed, "train")
    assert [column.tolist() for column in got] == [[1, 0], [5, 30], [25, 50]]
    assert got.contig.dtype == np.int32
    with pytest.raises(InputError, match="its splits are train, valid"):
        Intervals.read(store, bed, "test")
    bed.write_text("chr2\t5\t25\n")
    with pytest.raises(InputError, match="no fourth column"):
        Intervals.read(store, bed, "train")
