from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megabase.data.batches import Draw, LabeledBatches, Padding, tokenize
from megabase.data.label_files import read_text
from megabase.data.labeled import LabeledSequences, Ragged, label_splits
from megabase.errors import InputError
from megabase.genome import alphabet


def read(tmp_path: Path, *splits: str) -> dict[str, LabeledSequences]:
    texts = {}
    for name, rows in zip(("train", "test"), splits, strict=False):
        path = tmp_path / f"{name}.tsv"
        path.write_text("seq\tlabel\n" + rows.replace(" | ", "\t").replace("; ", "\n") + "\n")
        texts[name] = read_text(path)
    return label_splits(texts, "nucleotides")


def test_one_character_for_each_base(tmp_path: Path) -> None:
    found = read(tmp_path, "ACGT | 0110; AC | .2")["train"]
    assert found.classes == ("0", "1", "2")
    assert found.labels.tolist() == [0, 1, 1, 0, -100, 2]
    assert found.class_counts() == {"0": 2, "1": 2, "2": 1}


def test_names_divided_by_blanks(tmp_path: Path) -> None:
    found = read(tmp_path, "ACG | intron exon .; AA | exon exon", "AC | [exon, intron]")
    assert found["train"].classes == ("exon", "intron") == found["test"].classes
    assert found["train"].labels.tolist() == [1, 0, -100, 0, 0]
    assert found["test"].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("ACGT | 011; AC | 01", "A | 0", r"train\.tsv, row 1: 3 labels for a sequence of 4 bases"),
        ("ACGT | 0110", "AC | 01; AC | 02", r"test\.tsv, row 2: the label '2' occurs in no train"),
        ("ACGT | 0000", "A | 0", "only the class '0'"),
        ("ACGT | ....", "A | 0", "no class"),
        ("AC!T | 0110", "A | 0", r"train\.tsv, row 1: .*'!'"),
    ],
)
def test_refusals(tmp_path: Path, train: str, test: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, train, test)


class TestBatches:
    def made(
        self,
        tmp_path: Path,
        left: bool = False,
        reverse_probability: float = 0.0,
        both_strands: bool = False,
    ) -> LabeledBatches:
        rows = read(tmp_path, "AACG | 0012; ACGTA | 01201; CC | 11")["train"]

        def encode(codes: np.ndarray) -> np.ndarray:
            return alphabet.TOKEN_ID_OF_CODE[codes]

        return LabeledBatches(
            tokenize(rows, encode),
            Ragged(rows.labels, rows.offsets),
            padding=Padding(4, left=left),
            draw=Draw(shuffle=False, reverse_probability=reverse_probability),
            reverse=tokenize(rows, encode, reverse=True),
            both_strands=both_strands,
        )

    def test_labels_lie_beside_their_bases(self, tmp_path: Path) -> None:
        data = self.made(tmp_path)
        assert len(data) == 3
        batch = data.batch(0, np.arange(3), 9)
        assert batch["input_ids"].tolist()[0] == [7, 7, 8, 9, 4]
        assert batch["labels"].tolist() == [
            [0, 0, 1, 2, -100],
            [0, 1, 2, 0, 1],
            [1, 1, -100, -100, -100],
        ]
        left = self.made(tmp_path, left=True).batch(0, np.arange(3), 9)
        assert left["labels"].tolist()[0] == [-100, 0, 0, 1, 2]

    def test_the_reverse_complement_turns_labels_around(self, tmp_path: Path) -> None:
        data = self.made(tmp_path, reverse_probability=1.0)
        batch = data.batch(0, np.arange(3), 9)
        assert batch["input_ids"].tolist()[0] == [8, 9, 10, 10, 4]  # CGTT
        assert batch["labels"].tolist()[0] == [2, 1, 0, 0, -100]
        short = data.batch(0, np.arange(3), 2)  # length warm-up: the first two of that strand
        assert short["input_ids"].tolist()[0] == [8, 9]
        assert short["labels"].tolist()[0] == [2, 1]

    def test_both_strands_have_the_labels_once(self, tmp_path: Path) -> None:
        batch = self.made(tmp_path, both_strands=True).batch(0, np.arange(3), 9)
        assert batch["input_ids"].shape == (6, 5)
        assert batch["labels"].tolist()[0] == [0, 0, 1, 2, -100]
