"""Sampling the next token: temperature, top-k, top-p, min-p, allowed letters, and seeds.

Works on NumPy rows: at a few letters, a tensor operation costs more than the arithmetic. Shape
suffixes: B sequences, V columns of the scores, A allowed letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megabase.data.vocabulary import VOCABULARY
from megabase.errors import ConfigError
from megabase.genome.alphabet import encode

_LETTERS = "ACGTN"
"""Letters with a token of their own; other tokens are not DNA."""
_BLOCK = 1024
"""Random numbers drawn at a time for a sequence: one call for each would take most of a step."""


@dataclass(frozen=True)
class SamplingOptions:
    """How the next letter is drawn."""

    temperature: float = 1.0
    """Scores are divided by it; 0 takes the most probable letter."""
    top_k: int | None = None
    """Sample from the k most probable letters only."""
    top_p: float | None = None
    """Sample from the fewest letters that together have this probability."""
    min_p: float | None = None
    """Sample from letters of at least this share of the probability of the most probable one."""
    letters: str = "ACGT"
    """Letters that may be drawn, out of A, C, G, T, N; special tokens never are."""
    seed: int = 0
    """With the number of a sequence, it decides all its draws."""

    def __post_init__(self) -> None:
        problems = []
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature must be 0 or more, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            problems.append(f"top_k must be 1 or more, found {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                problems.append(f"{name} must lie in (0, 1], found {value}")
        if (
            not self.letters
            or set(self.letters) - set(_LETTERS)
            or len(set(self.letters)) < len(self.letters)
        ):
            problems.append(f"letters must be different ones of {_LETTERS}, found {self.letters!r}")
        if self.seed < 0:
            problems.append(f"seed must be 0 or more, found {self.seed}")
        if problems:
            raise ConfigError("the sampling options cannot be used: " + "; ".join(problems))


def probabilities(scores_BA: NDArray[np.floating], options: SamplingOptions) -> NDArray[np.float64]:
    """Give the probabilities of allowed letters from their logits, both (sequences, letters).

    Temperature comes first, then top-k, top-p and min-p, each on what the one before left.
    """
    scores = scores_BA.astype(np.float64)
    if options.temperature == 0:
        chosen = np.zeros_like(scores)
        np.put_along_axis(chosen, scores.argmax(axis=1)[:, None], 1.0, axis=1)
        return chosen
    if options.temperature != 1:
        scores /= options.temperature
    scores -= scores.max(axis=1, keepdims=True)
    found = np.exp(scores)
    found /= found.sum(axis=1, keepdims=True)
    if options.top_k is None and options.top_p is None and options.min_p is None:
        return found
    order = np.argsort(-found, axis=1, kind="stable")
    ranked = np.take_along_axis(found, order, axis=1)
    if options.top_k is not None:
        ranked[:, options.top_k :] = 0.0
        ranked /= ranked.sum(axis=1, keepdims=True)
    if options.top_p is not None:
        # A letter stays while those before it have not reached the share.
        before = np.cumsum(ranked, axis=1) - ranked
        ranked[before >= options.top_p] = 0.0
        ranked /= ranked.sum(axis=1, keepdims=True)
    if options.min_p is not None:
        ranked[ranked < options.min_p * ranked[:, :1]] = 0.0
        ranked /= ranked.sum(axis=1, keepdims=True)
    np.put_along_axis(found, order, ranked, axis=1)
    return found


class Sampler:
    """Draws letters for sequences side by side, each with random numbers of its own.

    The running numbers of the sequences decide these with the seed, in any batch and order.
    """

    def __init__(self, options: SamplingOptions, numbers: Sequence[int]) -> None:
        self.options = options
        self.ids = np.array([VOCABULARY[letter] for letter in options.letters])
        self.codes = encode(options.letters)
        self._streams = [np.random.default_rng([options.seed, number]) for number in numbers]
        self._uniform = np.empty((_BLOCK, len(numbers), 1))
        self._drawn = _BLOCK
        first = int(self.ids[0])
        in_order = bool((np.diff(self.ids) == 1).all())
        # A slice is a view; picking columns by number copies.
        self._columns = slice(first, first + len(self.ids)) if in_order else self.ids

    def draw(self, scores_BV: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Draw one letter for every sequence, given the scores of all tokens.

        Gives the index of each in ``options.letters``, and its natural log-probability among these
        under the model itself: at temperature 1 and without cuts.
        """
        if self._drawn == _BLOCK:
            for column, stream in enumerate(self._streams):
                self._uniform[:, column, 0] = stream.random(_BLOCK)
            self._drawn = 0
        uniform = self._uniform[self._drawn]
        self._drawn += 1
        scores = scores_BV[:, self._columns]
        cumulated = probabilities(scores, self.options).cumsum(axis=1)
        # The total is 1 but for rounding. A letter of probability 0 is never drawn: u < 1.
        drawn = (cumulated <= uniform * cumulated[:, -1:]).sum(axis=1)
        wide = scores.astype(np.float64)
        own = wide[np.arange(len(drawn)), drawn]
        top = wide.max(axis=1)
        return drawn, own - top - np.log(np.exp(wide - top[:, None]).sum(axis=1))
