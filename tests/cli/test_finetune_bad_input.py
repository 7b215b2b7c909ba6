"""Every wrong input of `megabase finetune`: one line, file and row, status 2, nothing left."""

from __future__ import annotations

from pathlib import Path

import pytest

from megabase.cli.main import main
from megabase.genome.store import Genome

SHAPE = '{"d_model": 8, "n_layer": 1, "filter_order": 4, "max_seq_len": 12}'
GOOD = "seq,label\nACGTACGT,a\nGGGTACGT,b\nACGTACGA,a\nGGGTACGG,b\n"


def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: Path | str, *more: str
) -> str:
    run = tmp_path / "run"
    command = [
        "finetune", "--train", str(train), "--family", "hyenadna", "--overrides", SHAPE,
        "--steps", "1", "--devices.accelerator", "cpu", "--output", str(run), *more,
    ]  # fmt: skip
    assert main(command) == 2
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1
    assert not run.exists()
    return shown.err


def table(tmp_path: Path, text: str, name: str = "train.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_label_unseen_in_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = table(tmp_path, GOOD)
    test = table(tmp_path, "seq,label\nACGT,a\nACGA,c\n", "test.csv")
    error = refused(tmp_path, capsys, train, "--test", str(test))
    assert f"{test}, row 2: the label 'c' occurs in no training row (there are a, b)" in error


def test_empty_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    (tmp_path / "folder" / "a" / "1.txt").write_text("ACGT")
    error = refused(tmp_path, capsys, tmp_path / "folder")
    assert f"the class folder {tmp_path / 'folder' / 'b'} holds no NAME.txt" in error
    one = table(tmp_path, "seq,label\nACGT,a\nACGA,a\n")
    assert f"{one} has only the class 'a'" in refused(tmp_path, capsys, one)
    blank = table(tmp_path, "seq,label\nACGT,a\nACGA,\n")
    assert f"{blank}, row 2: the label (label) is empty" in refused(tmp_path, capsys, blank)


def test_empty_class_of_nucleotides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.fa").write_text(">one\nACGTACGTAC\n>two\nACGTACGTAC\n")
    Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    features = table(tmp_path, "two\t2\t5\n", "x.bed")
    error = refused(
        tmp_path, capsys, tmp_path / "g.mb", "--genome.features", f"[{features}]",
        "--genome.test", "[two]", "--table.validation-fraction", "0",
    )  # fmt: skip
    assert "no training base of" in error
    assert "is of the class 'feature'" in error


def test_letters_that_are_no_dna(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = table(tmp_path, GOOD + "ACXT,a\n")
    error = refused(tmp_path, capsys, train)
    assert f"{train}, row 5: " in error
    assert "'X'" in error


def test_missing_label_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = table(tmp_path, GOOD.replace("label", "klass"))
    error = refused(tmp_path, capsys, train)
    assert f"{train} has no column 'label' for the label; it has seq, klass" in error


def test_unequal_label_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = table(tmp_path, "seq,label\nACGT,0110\nACGTA,0110\n")
    error = refused(tmp_path, capsys, train, "--table.kind", "nucleotides")
    assert f"{train}, row 2: 4 labels for a sequence of 5 bases" in error
    several = table(tmp_path, "seq,label\nACGT,0 1 1\nACGTA,0 1\n")
    error = refused(tmp_path, capsys, several)
    assert f"{several}, row 2: 2 labels, where the first training row has 3" in error


def test_sequence_beyond_the_longest_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = table(tmp_path, GOOD + "ACGTACGTACGTA,a\n" * 2)
    error = refused(tmp_path, capsys, train)
    assert f"{train}, row 5: the sequence has 13 tokens, above the longest input" in error
    assert "2 rows are longer" in error or "1 rows are longer" in error


def test_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.fa").write_text(">one\nACGTACGTAC\n")
    Genome.build(tmp_path / "g.fa", tmp_path / "g.mb")
    rows = table(tmp_path, "one\t0\t4\ta\none\t8\t14\tb\n", "x.bed")
    store = ("--genome.store", str(tmp_path / "g.mb"), "--genome.strict")
    error = refused(tmp_path, capsys, rows, *store)
    assert f"{rows}, line 2: the row ends at 14, past the end of contig 'one'" in error
    assert "intervals need genome.store" in refused(tmp_path, capsys, rows)
