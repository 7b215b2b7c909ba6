"""Labels mean the same in every split, whatever the order in which a disk lists files."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megabase.genome import alphabet
from megabase.tasks.config import FinetuneConfig
from megabase.tasks.labeled_data import read_splits

BASES = {"apple": "A", "cherry": "C", "grape": "G", "tomato": "T"}


def write(folder: Path, order: Callable[[list[str]], list[str]]) -> Path:
    """Write both splits; every class holds sequences of one base only."""
    for split in order(["train", "test"]):
        for name in order(sorted(BASES)):
            (folder / split / name).mkdir(parents=True)
            for i in order(["3", "1", "2"]):
                (folder / split / name / f"{i}.txt").write_text(BASES[name] * (4 + int(i)))
    return folder


def splits_of(folder: Path) -> dict[str, Any]:
    return read_splits(FinetuneConfig(train=str(folder), output="x", family="hyenadna"))


def check(folder: Path) -> list[Any]:
    found = splits_of(folder)
    for split in found.values():
        assert split.classes == tuple(sorted(BASES))
        for i in range(len(split)):
            base = alphabet.decode(split.sequence(i))[0]
            assert BASES[split.classes[split.labels[i]]] == base
    return [(s.labels.tolist(), alphabet.decode(s.codes), s.rows.tolist()) for s in found.values()]


def test_made_in_different_orders(tmp_path: Path) -> None:
    def shuffled(values: list[str]) -> list[str]:
        return random.Random(str(values)).sample(values, len(values))

    first = check(write(tmp_path / "a", lambda values: values))
    assert first == check(write(tmp_path / "b", lambda values: values[::-1]))
    assert first == check(write(tmp_path / "c", shuffled))


@pytest.mark.parametrize("seed", range(3))
def test_listed_in_different_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    folder = write(tmp_path / "a", lambda values: values)
    want = check(folder)
    draw = random.Random(seed)
    listing, globbing = Path.iterdir, Path.glob
    called = []

    def any_order(paths: Iterator[Path]) -> Iterator[Path]:
        called.append(1)
        found = sorted(paths)
        draw.shuffle(found)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", lambda self: any_order(listing(self)))
    monkeypatch.setattr(Path, "glob", lambda self, *a, **k: any_order(globbing(self, *a, **k)))
    assert check(folder) == want
    assert called


def test_rows_of_tables_in_different_orders(tmp_path: Path) -> None:
    rows = [f"{base * 5},{name}" for name, base in BASES.items()] * 2
    for split, order in (("train", rows), ("valid", rows[::-1]), ("test", rows[3:] + rows[:3])):
        (tmp_path / f"{split}.csv").write_text("\n".join(["seq,label", *order]) + "\n")
    for split in splits_of(tmp_path).values():
        letters = [alphabet.decode(split.sequence(i))[0] for i in range(len(split))]
        assert [BASES[split.classes[label]] for label in split.labels] == letters
        assert np.unique(split.labels).tolist() == [0, 1, 2, 3]
