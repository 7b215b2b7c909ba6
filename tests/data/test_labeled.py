from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from megabase.data.batches import Draw, LabeledBatches, Padding, tokenize
from megabase.data.label_files import find_splits, read_text
from megabase.data.labeled import (
    IGNORED,
    LabeledSequences,
    Ragged,
    label_splits,
    published_split,
    split_rows,
)
from megabase.errors import InputError, TruncationWarning
from megabase.genome import alphabet


def table(tmp_path: Path, text: str, name: str = "train.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def sequences(tmp_path: Path, text: str, **options: object) -> LabeledSequences:
    rows = read_text(table(tmp_path, text))
    return label_splits({"train": rows}, **options)["train"]  # type: ignore[arg-type]


def char(codes: np.ndarray) -> np.ndarray:
    return alphabet.TOKEN_ID_OF_CODE[codes]


@pytest.mark.filterwarnings(
    "ignore:.* 1 letter read as N. R 1:megabase.errors.AmbiguousLettersWarning"
)
class TestFiles:
    ROWS = (("ACGT", "b"), ("aacc", "a"), ("TTNR", "b"))

    def check(self, path: Path, **options: object) -> None:
        rows = label_splits({"train": read_text(path, **options)})["train"]  # type: ignore[arg-type]
        assert rows.classes == ("a", "b")
        assert rows.labels.tolist() == [1, 0, 1]
        texts = [alphabet.decode(rows.sequence(i)) for i in range(3)]
        assert texts == ["ACGT", "AACC", "TTNN"]

    def test_csv(self, tmp_path: Path) -> None:
        text = "seq,label\n" + "".join(f"{s},{c}\n" for s, c in self.ROWS)
        self.check(table(tmp_path, text))

    def test_tsv_gz(self, tmp_path: Path) -> None:
        path = tmp_path / "x.tsv.gz"
        rows = "".join(f"{c}\t{s}\n" for s, c in self.ROWS)
        path.write_bytes(gzip.compress(f"label\tsequence\n{rows}".encode()))
        self.check(path)

    def test_parquet_with_named_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pl.DataFrame(self.ROWS, schema=["dna", "what"], orient="row").write_parquet(path)
        self.check(path, sequence="dna", label="what")

    def test_fasta(self, tmp_path: Path) -> None:
        text = ">r1 b\nAC\nGT\n>r2|a\naacc\n>r3 label=b\nTTNR\n"
        self.check(table(tmp_path, text, "x.fa"))

    def test_fasta_last_character(self, tmp_path: Path) -> None:
        path = table(tmp_path, ">chr1_7_1\nAC\n>chr1_9_0\nGG\n", "x.fna")
        rows = label_splits({"train": read_text(path, fasta_label="last_character")})["train"]
        assert rows.labels.tolist() == [1, 0]

    def test_folder(self, tmp_path: Path) -> None:
        for name, letters in (("b/1", "ACGT\n"), ("a/1", "AA"), ("b/0", "TT")):
            path = tmp_path / "train" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(letters)
        rows = label_splits({"train": read_text(tmp_path / "train")})["train"]
        assert rows.labels.tolist() == [0, 1, 1]
        assert rows.lengths.tolist() == [2, 2, 4]
        assert rows.where(1).endswith("b/0.txt")

    def test_integer_columns_and_ten_classes(self, tmp_path: Path) -> None:
        path = tmp_path / "x.parquet"
        pl.DataFrame({"seq": ["A"] * 3, "label": [10, 2, 10]}).write_parquet(path)
        rows = label_splits({"train": read_text(path)})["train"]
        assert rows.classes == ("2", "10")
        assert rows.labels.tolist() == [1, 0, 1]

    def test_finds_splits_under_their_usual_names(self, tmp_path: Path) -> None:
        for name in ("train.csv.gz", "dev.csv.gz", "test.csv.gz", "notes.md"):
            (tmp_path / name).write_text("")
        found = find_splits(tmp_path)
        assert {k: v.name for k, v in found.items()} == {
            "train": "train.csv.gz",
            "valid": "dev.csv.gz",
            "test": "test.csv.gz",
        }
        (tmp_path / "val.csv").write_text("")
        with pytest.raises(InputError, match="two valid splits"):
            find_splits(tmp_path)


class TestErrors:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            ("seq,label\n", "holds no sequence"),
            ("dna,label\nAC,1\n", "no column 'sequence' or 'seq' for the sequence; it has dna"),
            ("seq,class\nAC,1\n", "no column 'label' for the label; it has seq, class"),
            ("seq,label\nAC,1\n,0\n", "row 2: the sequence is empty"),
            ("seq,label\nAC,1\nAC,\n", r"row 2: the label \(label\) is empty"),
        ],
    )
    def test_reading(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            read_text(table(tmp_path, text))

    def test_letters_that_are_no_dna(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"train\.csv, row 2: character 'E' at position 1"):
            sequences(tmp_path, "seq,label\nAC,0\nAEC,1\n")

    def test_label_unseen_in_train(self, tmp_path: Path) -> None:
        train = read_text(table(tmp_path, "seq,label\nAC,a\nAC,b\n"))
        test = read_text(table(tmp_path, "seq,label\nAC,a\nAC,c\n", "test.csv"))
        with pytest.raises(InputError, match=r"test\.csv, row 2: the label 'c' occurs in no"):
            label_splits({"train": train, "test": test})

    def test_one_class(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="only the class 'a'"):
            sequences(tmp_path, "seq,label\nAC,a\nAC,a\n")

    def test_empty_class_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with pytest.raises(InputError, match=r"class folder .*a holds no"):
            read_text(tmp_path)

    def test_missing_file_and_unknown_kind(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no file"):
            read_text(tmp_path / "no.csv")
        with pytest.raises(InputError, match="no known kind"):
            read_text(table(tmp_path, "x", "x.doc"))

    def test_unequal_label_lengths(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="row 2: 2 labels, where the first"):
            sequences(tmp_path, "seq,label\nAC,0 1 1\nAC,0 1\n")

    def test_wrong_number(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="row 2: the label label is 'x'"):
            sequences(tmp_path, "seq,label\nAC,0.5\nAC,x\n", kind="regression")


def test_labels_never_swap_between_splits(tmp_path: Path) -> None:
    train = read_text(table(tmp_path, "seq,label\nAC,pos\nAG,neg\n"))
    test = read_text(table(tmp_path, "seq,label\nAG,neg\nAC,pos\n", "test.csv"))
    splits = label_splits({"test": test, "train": train})
    assert splits["train"].classes == splits["test"].classes == ("neg", "pos")
    assert splits["train"].labels.tolist() == [1, 0]
    assert splits["test"].labels.tolist() == [0, 1]


def test_kinds_are_told_from_the_cells(tmp_path: Path) -> None:
    joined = sequences(tmp_path, "seq,label\nAC,0;1\nAG,1;1\n")
    assert joined.kind == "multi_label"
    assert joined.labels.tolist() == [[0, 1], [1, 1]]
    assert joined.class_counts() == {"label_0": 1, "label_1": 2}
    numbers = sequences(tmp_path, "seq,label\nAC,0.5\nAG,2\n")
    assert (numbers.kind, numbers.labels.tolist()) == ("regression", [[0.5], [2.0]])
    columns = read_text(table(tmp_path, "seq,x,y\nAC,1,nan\nAG,0,1\n"), label=["x", "y"])
    several = label_splits({"train": columns}, "multi_label")["train"]
    assert several.classes == ("x", "y")
    assert np.isnan(several.labels[0, 1])


class TestSplits:
    def test_by_class(self) -> None:
        labels = np.array([0] * 40 + [1] * 60)
        kept, cut = split_rows(labels, 0.1, seed=3)
        assert sorted([*kept, *cut]) == list(range(100))
        assert np.bincount(labels[cut]).tolist() == [4, 6]
        assert np.array_equal(cut, split_rows(labels, 0.1, seed=3)[1])
        assert not np.array_equal(cut, split_rows(labels, 0.1, seed=4)[1])

    def test_small_sets_keep_a_row_on_both_sides(self) -> None:
        kept, cut = split_rows(np.array([0, 1, 1]), 0.1, seed=0)
        assert (len(kept), len(cut)) == (2, 1)
        with pytest.raises(InputError, match="expected one in"):
            split_rows(np.zeros(3), 1.0, seed=0)

    def test_published_is_that_of_torch(self) -> None:
        import torch
        from torch.utils.data import random_split

        for rows in (10, 11, 25, 27_097):
            parts = random_split(
                range(rows),  # type: ignore[arg-type]
                [0.1, 0.9],
                generator=torch.Generator().manual_seed(2),
            )
            valid, train = published_split(rows, 2)
            assert valid.tolist() == list(parts[0].indices)
            assert train.tolist() == list(parts[1].indices)


class TestTokens:
    def test_both_strands(self, tmp_path: Path) -> None:
        rows = sequences(tmp_path, "seq,label\nACG,0\nTT,1\n")
        forward = tokenize(rows, char)
        assert forward.values.dtype == np.uint8
        assert (forward.values.tolist(), forward.offsets.tolist()) == ([7, 8, 9, 10, 10], [0, 3, 5])
        assert tokenize(rows, char, reverse=True).values.tolist() == [8, 9, 10, 7, 7]

    def test_too_long(self, tmp_path: Path) -> None:
        rows = sequences(tmp_path, "seq,label\nAC,0\nACGTA,1\nACGT,1\n")
        message = r"row 2: the sequence has 5 bases, above max_length, 3 \(2 rows are longer"
        with pytest.raises(InputError, match=message):
            tokenize(rows, char, max_bases=3)
        with pytest.raises(InputError, match="above the longest input of the model, 4"):
            tokenize(rows, char, max_tokens=4)

    def test_cuts_are_counted_and_both_strands_are_of_one_stretch(self, tmp_path: Path) -> None:
        rows = sequences(tmp_path, "seq,label\nAC,0\nACGTA,1\nCCCC,1\n")
        with pytest.warns(TruncationWarning, match=r"2 of 3 sequences .* are cut to 3 bases"):
            forward = tokenize(rows, char, max_bases=3, truncate=True)
        assert forward.lengths.tolist() == [2, 3, 3]
        reverse = tokenize(rows, char, max_bases=3, truncate=True, reverse=True)
        assert reverse.values[2:5].tolist() == [8, 9, 10]  # ACG turned round is CGT


def batches(lengths: list[int], padding: Padding | None = None, **draw: Any) -> LabeledBatches:
    ids = np.concatenate([np.full(n, i) for i, n in enumerate(lengths)]).astype(np.uint8)
    rows = Ragged(ids, np.concatenate([[0], np.cumsum(lengths)]))
    labels = np.arange(len(lengths))
    return LabeledBatches(rows, labels, padding=padding or Padding(99), draw=Draw(**draw))


class TestBatches:
    def test_every_epoch_is_a_permutation(self) -> None:
        data = batches([3] * 20, seed=1)
        order = data.rows_of(0, np.arange(60)).reshape(3, 20)
        for epoch in order:
            assert sorted(epoch) == list(range(20))
        assert not np.array_equal(order[0], order[1])
        other = batches([3] * 20, seed=1)
        assert np.array_equal(order[1, 5:9], other.rows_of(0, np.arange(25, 29)))
        assert not np.array_equal(order[0], other.rows_of(1, np.arange(20)))

    def test_bucketed_by_length_and_still_a_permutation(self) -> None:
        lengths = list(np.random.default_rng(0).integers(1, 100, size=203))
        data = batches(lengths, block=8)
        order = data.rows_of(0, np.arange(203))
        assert sorted(order) == list(range(203))
        spans = [np.ptp(np.array(lengths)[order[i : i + 8]]) for i in range(0, 200, 8)]
        assert max(spans) < 20

    def test_padding(self) -> None:
        right = batches([2, 4], shuffle=False).batch(0, np.arange(2), 10)
        assert right["input_ids"].tolist() == [[0, 0, 99, 99], [1, 1, 1, 1]]
        assert right["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
        assert right["labels"].tolist() == [0, 1]
        left = batches([2, 4], shuffle=False, padding=Padding(99, left=True, full=True))
        batch = left.batch(0, np.arange(2), 5)
        assert batch["input_ids"].tolist() == [[99, 99, 99, 0, 0], [99, 1, 1, 1, 1]]
        assert batch["attention_mask"].tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
        assert "attention_mask" not in batches([3, 3], shuffle=False).batch(0, np.arange(2), 3)

    def test_stage_length_cuts(self) -> None:
        batch = batches([2, 4], shuffle=False).batch(0, np.arange(2), 3)
        assert batch["input_ids"].tolist() == [[0, 0, 99], [1, 1, 1]]

    def test_strands(self) -> None:
        ids, offsets = np.array([1, 2, 3, 4], dtype=np.uint8), np.array([0, 2, 4])
        turned = Ragged(ids + 10, offsets)
        both = LabeledBatches(
            Ragged(ids, offsets),
            np.array([0, 1]),
            padding=Padding(0),
            draw=Draw(shuffle=False),
            reverse=turned,
            both_strands=True,
        ).batch(0, np.arange(2), 2)
        assert both["input_ids"].tolist() == [[1, 2], [3, 4], [11, 12], [13, 14]]
        assert both["labels"].tolist() == [0, 1]
        coin = LabeledBatches(
            Ragged(ids, offsets),
            np.array([0, 1]),
            padding=Padding(0),
            draw=Draw(shuffle=False, reverse_probability=0.5),
            reverse=turned,
        )
        turned_rows = sum(
            int(coin.batch(s, np.array([0]), 2)["input_ids"][0, 0] > 10) for s in range(200)
        )
        assert 70 < turned_rows < 130
        with pytest.raises(InputError, match="without their tokens"):
            LabeledBatches(turned, np.array([0, 1]), padding=Padding(0), both_strands=True)

    def test_token_count(self) -> None:
        data = batches([1, 2, 3, 4], seed=5)
        assert data.token_count(0, 0, 8, 10) == 20
        assert data.token_count(0, 0, 4, 2) == 7
        lengths = np.array([1, 2, 3, 4])[data.rows_of(0, np.arange(3, 6))]
        assert data.token_count(0, 3, 6, 10) == lengths.sum()


def test_groups_of_rows_stay_on_one_side_and_shares_hold_by_class() -> None:
    rng = np.random.default_rng(3)
    sizes = [60, *rng.integers(1, 9, 120)]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.repeat(rng.integers(0, 2, len(sizes)), sizes)
    groups, labels = groups[(order := rng.permutation(len(groups)))], labels[order]
    for seed in (0, 1):
        kept, cut = split_rows(labels, 0.25, seed, groups)
        assert sorted([*kept, *cut]) == list(range(len(labels)))
        assert not set(groups[kept]) & set(groups[cut])
        for value in (0, 1):
            assert (labels[cut] == value).mean() == pytest.approx(
                (labels == value).mean(), abs=0.03
            )
        assert len(cut) == pytest.approx(0.25 * len(labels), abs=4)
    again = split_rows(labels, 0.25, 1, groups)[1]
    assert np.array_equal(cut, again)
    assert not np.array_equal(cut, split_rows(labels, 0.25, 0, groups)[1])
    # Several labels: no classes to hold the share of.
    kept, cut = split_rows(np.zeros((len(labels), 3)), 0.25, 0, groups)
    assert not set(groups[kept]) & set(groups[cut])
    with pytest.raises(InputError, match=r"largest of 1 groups has 8 rows"):
        split_rows(np.zeros(8, dtype=np.int64), 0.25, 0, np.zeros(8, dtype=np.int64))


def test_crops_are_stretches_of_the_row_at_places_of_their_own() -> None:
    lengths = np.array([10, 7, 10, 3])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    forward = Ragged(np.arange(30, dtype=np.uint8), offsets)
    turned = Ragged(
        np.concatenate([np.arange(a, b)[::-1] + 100 for a, b in itertools.pairwise(offsets)]),
        offsets,
    )
    classes = Ragged(np.arange(30, dtype=np.int16), offsets)
    batches = LabeledBatches(
        forward,
        classes,
        padding=Padding(255),
        reverse=turned,
        draw=Draw(seed=3, reverse_probability=0.5, crop=0.6),
    )
    seen: set[tuple[int, ...]] = set()
    for epoch in range(40):
        indices = np.arange(4 * epoch, 4 * epoch + 4)
        rows = batches.rows_of(0, indices)
        batch = batches.batch(0, indices, 10)
        for ids, labels, row in zip(batch["input_ids"], batch["labels"], rows, strict=True):
            kept = ids[ids != 255].tolist()
            whole = (turned if kept[0] >= 100 else forward).values[offsets[row] : offsets[row + 1]]
            assert len(kept) == -(-lengths[row] * 6 // 10)
            first = whole.tolist().index(kept[0])
            assert kept == whole[first : first + len(kept)].tolist()
            assert labels[labels != IGNORED].tolist() == [value % 100 for value in kept]
            seen.add(tuple(kept))
        again = batches.batch(0, indices, 10)
        assert torch.equal(batch["input_ids"], again["input_ids"])
        assert batches.token_count(0, 4 * epoch, 4 * epoch + 4, 10) == int(
            (batch["input_ids"] != 255).sum()
        )
    # Every place on both strands: 5 of 10 (twice), 3 of 7, 2 of 3.
    assert len(seen) == 2 * (5 + 5 + 3 + 2)
    with pytest.raises(InputError, match="expected"):
        LabeledBatches(forward, classes, padding=Padding(0), draw=Draw(crop=0.0))
