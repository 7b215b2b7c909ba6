from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megabase.data.batches import InContextBatches
from megabase.data.labeled import LabeledSequences, LabelTable, label_splits
from megabase.errors import InputError

SEP, PAD, A, C, G, T, N = 1, 4, 7, 8, 9, 10, 11


def rows(sequences: list[str], labels: str, source: str = "x.csv") -> LabeledSequences:
    text = LabelTable(source, sequences, [(label,) for label in labels], ("label",))
    return label_splits({"train": text}, "classes")["train"]


def test_places_by_hand() -> None:
    # Sequences of 3 tokens, one example for each of two classes: the labels stand at 4, 10 and 16
    # and are read one position before, at the separators.
    assert InContextBatches.tokens_of(3, 2) == 16
    examples, question = rows(["AAA", "CCC"], "ab"), rows(["GT", "TT"], "ab", "y.csv")
    batches = InContextBatches(question, examples, letters="AN", length=3, shots=1, seed=0)
    batch = batches.batch(0, np.array([0]), 0)
    first = [A, A, A, SEP, A, SEP]
    second = [C, C, C, SEP, N, SEP]
    ids = batch["input_ids"][0].tolist()
    assert ids in ([*first, *second, PAD, G, T, SEP], [*second, *first, PAD, G, T, SEP])
    assert batch["places"][0].tolist() == [3, 9, 15]
    assert [ids[place] for place in (3, 9, 15)] == [SEP] * 3
    letters = [A, N]
    answers = batch["answers"][0].tolist()
    assert [ids[4], ids[10]] == [letters[answers[0]], letters[answers[1]]]
    assert answers[2] == batch["labels"][0] == 0


def test_no_examples() -> None:
    batches = InContextBatches(rows(["GTA", "C"], "ab"), rows(["A", "C"], "ab", "y"),
                               letters="AN", length=3, shots=0)  # fmt: skip
    batch = batches.batch(0, np.array([1]), 0)
    assert batch["input_ids"].tolist() == [[PAD, PAD, C, SEP]]
    assert batch["places"].tolist() == [[3]]
    assert batch["answers"].tolist() == [[1]]


def many(source: str = "x.csv") -> LabeledSequences:
    rng = np.random.default_rng(len(source))
    texts = ["".join(rng.choice(list("ACGT"), size=8)) for _ in range(12)]
    return rows(texts, "aaaaaabbbbbb", source)


def test_a_question_is_never_its_own_example() -> None:
    sequences = many()
    part = sequences.take(np.array([1, 4, 7, 11]))
    for questions in (sequences, part):
        batches = InContextBatches(questions, sequences, letters="AN", length=8, shots=5)
        for index in range(2 * len(questions)):
            row = index % len(questions)
            chosen = batches.demonstrations_of(index, row)
            assert int(questions.rows[row]) not in chosen.tolist()
            assert np.bincount(sequences.labels[chosen]).tolist() == [5, 5]
            assert len(set(chosen.tolist())) == 10


def test_examples_come_from_the_training_rows() -> None:
    train, test = many(), many("the test file")
    known = {train.sequence(i).tobytes() for i in range(len(train))}
    batches = InContextBatches(test, train, letters="AN", length=8, shots=2)
    base = {A: 0, C: 1, G: 2, T: 3}
    for index in range(len(test)):
        ids = batches.batch(0, np.array([index]), 0)["input_ids"][0].tolist()
        for k in range(4):
            codes = bytes(base[i] for i in ids[11 * k : 11 * k + 8])
            assert codes in known


def test_a_batch_depends_on_the_numbers_only() -> None:
    options: dict[str, Any] = {
        "letters": "AN", "length": 8, "shots": 1, "seed": 3, "shuffle": True,
        "reverse_probability": 0.5,
    }  # fmt: skip
    batches = InContextBatches(many(), many(), **options)
    whole = batches.batch(0, np.arange(6), 0)
    single = InContextBatches(many(), many(), **options).batch(0, np.array([4]), 0)
    for name in whole:
        assert whole[name][4].tolist() == single[name][0].tolist()
    assert sorted(batches.rows_of(0, np.arange(12, 24)).tolist()) == list(range(12))


def test_a_class_with_too_few_examples() -> None:
    sequences = many()
    with pytest.raises(InputError, match=r"class 'a' has 6 rows; 6 examples .* need 7"):
        InContextBatches(sequences, sequences, letters="AN", length=8, shots=6)
