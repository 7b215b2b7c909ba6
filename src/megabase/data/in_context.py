"""Questions with solved examples in front, as batches for the training loop.

A prompt holds, for each solved example, the sequence, a separator, the letter of its class and a
separator, and then the question and a separator: the next token is the answer. Which examples a
question gets is a pure function of (seed, number of the question).

Source: ``src/dataloaders/datasets/icl_genomics_dataset.py`` of HazyResearch/hyena-dna. There the
examples come from the split that the question is in, the test split included; here they come from
the training rows unless the caller hands in others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from megabase.data.hashing import derive_key, draw_bits, unit_float
from megabase.data.labelled import LabelledSequences
from megabase.data.vocabulary import PAD_ID, SEP_ID, text_to_ids
from megabase.errors import InputError
from megabase.genome import alphabet

__all__ = ["InContextBatches", "answer_places", "in_context_item", "prompt_tokens"]

_ORDER, _STRAND = 1, 2


def prompt_tokens(length: int, examples: int) -> int:
    """Give the tokens of a question with so many examples, each sequence of `length` tokens."""
    return examples * (length + 3) + length + 1


def answer_places(length: int, examples: int) -> npt.NDArray[np.int64]:
    """Give the positions whose next token is an answer: those of the examples, then the question's.

    Parameters
    ----------
    length
        Tokens of each sequence.
    examples
        Number of solved examples.

    Examples
    --------
    >>> answer_places(3, 2).tolist()
    [3, 9, 15]
    """
    return np.arange(examples + 1, dtype=np.int64) * (length + 3) + length


def in_context_item(
    query: str, demonstrations: Sequence[tuple[str, str]], length: int
) -> npt.NDArray[np.int64]:
    """Build an in-context prompt: solved examples, then the question.

    Parameters
    ----------
    query
        Sequence to classify.
    demonstrations
        (sequence, label letter) pairs, in the order of the prompt. Published letters are A and N
        for two classes, A, G and N for three.
    length
        Tokens of each sequence: cut on the right, padded on the left.

    Returns
    -------
    numpy.ndarray
        int64: for each demonstration sequence, separator, label, separator; then the query and a
        separator. The model's next token is the answer.
    """

    def block(text: str) -> npt.NDArray[np.int64]:
        ids = text_to_ids(text[:length])
        return np.concatenate([np.full(length - ids.size, PAD_ID), ids, [SEP_ID]])

    parts = [
        part
        for text, letter in demonstrations
        for part in (block(text), np.append(text_to_ids(letter), SEP_ID))
    ]
    return np.concatenate([*parts, block(query)])


class InContextBatches:
    """Questions by number, each behind its own solved examples.

    Parameters
    ----------
    questions
        Sequences to classify.
    examples
        Sequences that examples are drawn from. When they are of the same file, a question is never
        its own example.
    letters
        Letter of each class.
    length
        Tokens of each sequence: longer ones lose their end, shorter ones are padded on the left.
    shots
        Examples of each class.
    seed
        Decides examples, order and strands.
    shuffle
        Whether the questions come in random order, epoch by epoch.
    reverse_probability
        Chance that a sequence, example or question, is read as its reverse complement.

    Raises
    ------
    InputError
        When a class has too few examples.
    """

    def __init__(
        self,
        questions: LabelledSequences,
        examples: LabelledSequences,
        *,
        letters: str,
        length: int,
        shots: int,
        seed: int = 0,
        shuffle: bool = False,
        reverse_probability: float = 0.0,
    ) -> None:
        self._questions, self._examples = questions, examples
        self._letters, self.length, self._shots = letters, length, shots
        self._seed, self._shuffle, self._probability = seed, shuffle, reverse_probability
        self._members = [
            np.flatnonzero(examples.labels == number) for number in range(len(letters))
        ]
        self._same = questions.text is examples.text
        spare = int(self._same)
        for name, members in zip(examples.classes, self._members, strict=True):
            if len(members) < shots + spare:
                raise InputError(
                    f"{examples.text.source}: the class {name!r} has {len(members)} rows; "
                    f"{shots} examples for each question need {shots + spare}"
                )
        self._tokens = text_to_ids(letters)

    def __len__(self) -> int:
        return len(self._questions)

    @property
    def longest(self) -> int:
        """Tokens of a question with its examples."""
        return prompt_tokens(self.length, self._shots * len(self._letters))

    def epoch_size(self, length: int) -> int:
        """Give the number of questions."""
        return len(self)

    def token_count(self, stream: int, first: int, last: int, length: int) -> int:
        """Count the tokens of the questions from `first` to before `last`."""
        return (last - first) * self.longest

    def rows_of(self, stream: int, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give the question of each index."""
        epochs, places = np.divmod(np.asarray(indices, dtype=np.int64), len(self))
        if not self._shuffle:
            return places
        rows = np.empty_like(places)
        number = np.arange(len(self), dtype=np.int64)
        for epoch in np.unique(epochs):
            key = derive_key(self._seed, stream, int(epoch), _ORDER)
            inside = epochs == epoch
            rows[inside] = np.argsort(draw_bits(key, number))[places[inside]]
        return rows

    def examples_of(self, index: int, row: int) -> npt.NDArray[np.int64]:
        """Give the rows of the examples of a question, in the order of the prompt.

        Parameters
        ----------
        index
            Running number, which the draw depends on.
        row
            Row of the question.
        """
        rng = np.random.default_rng([self._seed, index])
        chosen: list[int] = []
        for members in self._members:
            pool = members
            if self._same:
                own = self._questions.rows[row]
                pool = members[self._examples.rows[members] != own]
            chosen += rng.choice(pool, size=self._shots, replace=False).tolist()
        return rng.permutation(np.array(chosen, dtype=np.int64))

    def batch(self, stream: int, indices: npt.NDArray[np.int64], length: int) -> dict[str, Tensor]:
        """Give questions by number.

        Returns
        -------
        dict
            ``input_ids`` int64 (n, tokens); ``places`` int64 (n, m), the positions whose next token
            is an answer, that of the question last; ``answers`` int64 (n, m), the classes of
            examples and question; ``labels`` int64 (n,), the class of the question.
        """
        rows = self.rows_of(stream, indices)
        ids: list[npt.NDArray[np.int64]] = []
        answers: list[list[int]] = []
        for index, row in zip(indices.tolist(), rows.tolist(), strict=True):
            chosen = self.examples_of(index, row).tolist()
            turned = self._turned(stream, index, len(chosen) + 1)
            texts = [_text(self._examples, i, t) for i, t in zip(chosen, turned, strict=False)]
            classes = [int(self._examples.labels[i]) for i in chosen]
            solved = [(text, self._letters[c]) for text, c in zip(texts, classes, strict=True)]
            question = _text(self._questions, row, turned[-1])
            ids.append(in_context_item(question, solved, self.length))
            answers.append([*classes, int(self._questions.labels[row])])
        places = answer_places(self.length, len(answers[0]) - 1)
        found = np.array(answers, dtype=np.int64)
        return {
            "input_ids": torch.from_numpy(np.stack(ids)),
            "places": torch.from_numpy(np.tile(places, (len(ids), 1))),
            "answers": torch.from_numpy(found),
            "labels": torch.from_numpy(found[:, -1].copy()),
        }

    def _turned(self, stream: int, index: int, number: int) -> Sequence[bool]:
        if not self._probability:
            return [False] * number
        key = derive_key(self._seed, stream, index, _STRAND)
        drawn: Any = unit_float(draw_bits(key, np.arange(number, dtype=np.int64)))
        return (drawn < self._probability).tolist()


def _text(sequences: LabelledSequences, row: int, turned: bool) -> str:
    codes = sequences.sequence(row)
    return alphabet.decode(alphabet.reverse_complement(codes) if turned else codes)
