from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.data.label_files import read_text
from megabase.data.labeled import ONE_STRAND, LabeledSequences, label_splits
from megabase.genome.alphabet import decode, encode, reverse_complement
from megabase.settings import DeviceConfig, HeadConfig
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.finetune import LabeledRun, finetune

MOTIF = "TATAAAAGGC"


def write(path: Path, rows: int, *, turned: bool, seed: int = 0, motif: str = MOTIF) -> Path:
    """Random sequences, every second with a motif; with `turned` half of all rows are turned."""
    rng = np.random.default_rng(seed)
    lines = ["seq,label"]
    for row in range(rows):
        letters = "".join(rng.choice(list("ACGT"), size=60))
        if row % 2:
            letters = letters[:20] + motif + letters[20 + len(motif) :]
        if turned and rng.random() < 0.5:
            letters = decode(reverse_complement(encode(letters)))
        lines.append(f"{letters},{row % 2}")
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path, kind: Any = "auto") -> LabeledSequences:
    return label_splits({"train": read_text(path)}, kind)["train"]


@pytest.mark.parametrize("seed", range(5))
def test_a_motif_on_one_strand_is_a_direction_and_on_both_strands_is_none(
    tmp_path: Path, seed: int
) -> None:
    one = read(write(tmp_path / "one.csv", 600, turned=False, seed=seed))
    both = read(write(tmp_path / "both.csv", 600, turned=True, seed=seed))
    assert one.oriented() > ONE_STRAND
    assert both.oriented() < ONE_STRAND


def test_the_share_is_the_difference_of_the_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"  # AAAA alone, so all of the counts differ: the norm of (1, -1) / 1
    rows = ["ACGTTGCAAAAAAA" if i % 2 else "AAAAAAAAAAAAAA" for i in range(200)]
    path.write_text("seq,label\n" + "".join(f"{s},{i % 2}\n" for i, s in enumerate(rows)))
    assert read(path).oriented() == 0  # within a class no row varies: there is no chance to tell
    path = write(tmp_path / "y.csv", 2000, turned=False, motif="A" * 40)
    assert 0.9 < read(path).oriented() < 1.1


def test_a_few_rows_say_nothing(tmp_path: Path) -> None:
    assert read(write(tmp_path / "x.csv", 30, turned=False)).oriented() == 0


def test_numbers_are_looked_at_as_one_group(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", 600, turned=False)
    path.write_text(path.read_text().replace(",0\n", ",0.5\n").replace(",1\n", ",1.5\n"))
    assert read(path).oriented() > ONE_STRAND


def chosen(tmp_path: Path, turned: bool, **head: Any) -> HeadConfig:
    path = write(tmp_path / "train.csv", 600, turned=turned)
    config = FinetuneConfig(
        train=str(path), family="cnn", output=str(tmp_path / "run"), head=HeadConfig(**head)
    )
    return LabeledRun(config, config).head


def test_rows_without_a_direction_are_read_on_both_strands(tmp_path: Path) -> None:
    head = chosen(tmp_path, turned=True)
    assert (head.reverse_complement, head.strand_average) == (0.5, True)


def test_rows_with_a_direction_are_read_as_they_are(tmp_path: Path) -> None:
    head = chosen(tmp_path, turned=False)
    assert (head.reverse_complement, head.strand_average) == (0, False)


def test_what_is_given_is_kept(tmp_path: Path) -> None:
    head = chosen(tmp_path, turned=True, reverse_complement=0.0)
    assert (head.reverse_complement, head.strand_average) == (0, False)
    head = chosen(tmp_path, turned=False, reverse_complement=0.3, strand_average=False)
    assert (head.reverse_complement, head.strand_average) == (0.3, False)


def test_the_saved_model_answers_as_it_was_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", 600, turned=True)
    run = tmp_path / "run"
    config = FinetuneConfig(
        train=str(path), family="cnn", output=str(run), steps=1,
        devices=DeviceConfig(accelerator="cpu", devices=1),
    )  # fmt: skip
    finetune(config)
    assert json.loads((run / "best" / "config.json").read_text())["strand_average"] is True
