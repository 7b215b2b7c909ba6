"""Numbers of tracks as labels of bins, against a loop over bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.data.batches import Draw, LabeledBatches, Padding, tokenize
from megabase.data.genome_labels import label_windows, read_tracks
from megabase.data.regions import Regions
from megabase.errors import InputError, IntervalWarning
from megabase.genome import alphabet
from megabase.genome.store import Genome

LETTERS = {"chr1": "ACGTACGTNNNNACGTACGTACG", "chr2": "GATTACAGATTACA"}
ROWS = [("chr1", 2, 7, 1.5), ("chr1", 7, 9, 4.0), ("chr1", 13, 14, 2.0), ("chr1", 20, 23, 3.0)]


@pytest.fixture
def store(tmp_path: Path) -> Genome:
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{x}\n" for name, x in LETTERS.items()))
    rows = [*ROWS, ("chr2", 0, 14, 7.0)]
    text = "".join(f"{c}\t{s}\t{e}\t{v}\n" for c, s, e, v in rows)
    (tmp_path / "a.bg").write_text(text)
    (tmp_path / "b.bg").write_text("chr1\t0\t23\t1\n")
    return Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")


@pytest.mark.parametrize("statistic", ["mean", "sum"])
@pytest.mark.parametrize("missing", ["zero", "masked"])
@pytest.mark.parametrize("size", [1, 4])
def test_bins_are_what_a_loop_over_bases_says(
    store: Genome, tmp_path: Path, statistic: Any, missing: Any, size: int
) -> None:
    tracks = read_tracks(
        store, [f"a={tmp_path / 'a.bg'}"], bin=size, statistic=statistic, missing=missing
    )
    regions = Regions.of([0], [1], [23])
    found = label_windows(store, regions, tracks, length=8, flank=4)
    value = {base: v for c, s, e, v in ROWS for base in range(s, e)}
    first = -(-1 // size) * size
    seen = set()
    for row in range(len(found)):
        assert found.text.intervals is not None
        place = found.text.intervals[row]
        assert place.start % size == 0
        assert alphabet.decode(found.sequence(row)) == LETTERS["chr1"][place.start : place.end]
        for number, label in enumerate(found.along.row(row)[:, 0]):
            start = place.start + number * size
            bases = range(start, start + size)
            given = [value[base] for base in bases if base in value]
            lost = all(LETTERS["chr1"][base] == "N" for base in bases)
            if np.isnan(label):
                continue
            seen.add(start)
            assert not lost
            below = 1 if statistic == "sum" else len(given) if missing == "masked" else size
            assert label == pytest.approx(sum(given) / max(below, 1))
    wanted = set()
    for start in range(first, 23 // size * size, size):
        bases = range(start, start + size)
        lost = all(LETTERS["chr1"][base] == "N" for base in bases)
        if not lost and (missing == "zero" or any(base in value for base in bases)):
            wanted.add(start)
    assert seen == wanted  # each bin that lies in the region whole, once


def test_batches_turn_bins_around(store: Genome, tmp_path: Path) -> None:
    tracks = read_tracks(store, [f"x={tmp_path / 'a.bg'}", f"y={tmp_path / 'a.bg'}"], bin=2)
    rows = label_windows(store, Regions.of([1, 1], [0, 10], [8, 14]), tracks, length=8)
    rows = rows.take(np.array([1, 0]))  # keeps bins beside their bases

    def encode(codes: np.ndarray) -> np.ndarray:
        return alphabet.TOKEN_ID_OF_CODE[codes]

    rows.labels[:] = np.arange(rows.labels.size).reshape(-1, 2)
    data = LabeledBatches(
        tokenize(rows, encode), rows.along, padding=Padding(4),
        draw=Draw(shuffle=False, reverse_probability=1.0),
        reverse=tokenize(rows, encode, reverse=True), bin=2,
    )  # fmt: skip
    batch = data.batch(0, np.arange(2), 8)
    assert batch["labels"][:, :, 0].nan_to_num(-1).tolist() == [[2, 0, -1, -1], [10, 8, 6, 4]]
    assert batch["labels"].shape == (2, 4, 2)
    short = data.batch(0, np.arange(2), 5)  # a stage that cuts a bin in two loses it
    assert short["labels"][:, :, 1].tolist() == [[3, 1], [11, 9]]
    assert short["input_ids"].shape == (2, 5)


def test_what_is_not_a_track(store: Genome, tmp_path: Path) -> None:
    good = str(tmp_path / "a.bg")
    for files in ([good], [f"a b={good}"], [f"a={good}", f"A={good}"], [f"={good}"]):
        with pytest.raises(InputError, match="expected NAME=FILE"):
            read_tracks(store, files)
    with pytest.warns(IntervalWarning, match=r"nothing on 1 contigs .* chr2: their bases count as"):
        read_tracks(store, [f"b={tmp_path / 'b.bg'}"])
    tracks = read_tracks(store, [f"a={good}"], bin=40)
    with pytest.raises(InputError, match="hold no base with a label"):
        label_windows(store, Regions.whole(store.lengths), tracks, length=40)
