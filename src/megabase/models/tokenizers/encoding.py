"""Rows of token ids: special tokens, truncation and padding in numpy.

The rules are those of transformers; the arrays are ours, so that a megabase never becomes a list.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy

from megabase.data.vocabulary import VOCABULARY
from megabase.genome.alphabet import count_ambiguous, warn_ambiguous

__all__ = [
    "Ids",
    "Part",
    "Row",
    "TokenMap",
    "join_parts",
    "no_offsets",
    "pad_row",
    "padded_width",
    "parts_of",
    "truncate",
    "warn_letters",
]

Ids = NDArray[np.int64]
_SPECIAL = re.compile(r"\[[A-Za-z_0-9]+\]")
_CLS, _SEP = VOCABULARY["[CLS]"], VOCABULARY["[SEP]"]


class Row(NamedTuple):
    """One encoded input; all three arrays have its length."""

    ids: Ids
    types: Ids
    """0 for the first text, 1 for the second."""
    special: Ids
    """1 for an added special token."""


class Part(NamedTuple):
    """The tokens of one text; all three arrays have their number."""

    ids: Ids
    spans: Ids
    """First letter and the one past the last, in the text or in the word, shape (tokens, 2);
    (0, 2) unless they are asked for."""
    words: Ids
    """Number of the word."""


class TokenMap:
    """What the tokens of an input stand for: the part of tokenizers' ``Encoding`` that is read.

    Parameters
    ----------
    ids
        Token ids, special tokens and padding included.
    parts
        The one or two texts, truncated.
    habit
        As for :func:`join_parts`.
    left
        Whether padding is on the left.
    """

    def __init__(self, ids: Ids, parts: list[Part], habit: str, left: bool) -> None:
        self.ids, self._parts, self._habit, self._left = ids, parts, habit, left
        self.n_sequences = len(parts)

    def _spread(self, name: str) -> list[Any]:
        """Give a value for each token, None for those that were added."""
        row = join_parts([part.ids for part in self._parts], self._habit)
        values = iter([value for part in self._parts for value in getattr(part, name).tolist()])
        given = [None if special else next(values) for special in row.special.tolist()]
        padding = [None] * (len(self.ids) - len(given))
        return padding + given if self._left else given + padding

    @property
    def word_ids(self) -> list[int | None]:
        """Number of the word of each token."""
        return self._spread("words")

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """First letter of each token and the one past its last; (0, 0) for added tokens."""
        return [(0, 0) if span is None else tuple(span) for span in self._spread("spans")]

    @property
    def sequence_ids(self) -> list[int | None]:
        """Number of the text of each token."""
        types = iter(np.repeat(range(self.n_sequences), [len(p.ids) for p in self._parts]).tolist())
        return [None if word is None else next(types) for word in self.word_ids]


def parts_of(text: Any, text_pair: Any, words: bool = False) -> list[tuple[Any, ...]] | None:
    """Give the list of one- or two-part inputs of a call, or None when a part is no text.

    With `words` a part is a list of words, and of a batch only tuples are pairs.
    """
    if words:
        return _parts_of_words(text, text_pair)
    if not isinstance(text, (list, tuple)):
        inputs = [(text,) if text_pair is None else (text, text_pair)]
    elif text_pair is None:
        inputs = [tuple(item) if isinstance(item, (list, tuple)) else (item,) for item in text]
    elif isinstance(text_pair, (list, tuple)) and len(text_pair) == len(text):
        inputs = list(zip(text, text_pair, strict=True))
    else:
        return None
    plain = all(
        len(parts) in (1, 2) and all(isinstance(part, (str, bytes)) for part in parts)
        for parts in inputs
    )
    return inputs if plain else None


def _parts_of_words(text: Any, text_pair: Any) -> list[tuple[Any, ...]] | None:
    def is_words(part: Any) -> bool:
        return isinstance(part, (list, tuple)) and all(isinstance(word, str) for word in part)

    if is_words(text) and text:
        inputs: list[tuple[Any, ...]] = [(text,) if text_pair is None else (text, text_pair)]
    elif text_pair is None:
        inputs = [
            tuple(item) if isinstance(item, tuple) and not is_words(item) else (item,)
            for item in text
        ]
    else:
        inputs = list(zip(text, text_pair, strict=True))
    fits = all(len(parts) in (1, 2) and all(map(is_words, parts)) for parts in inputs)
    return inputs if fits else None


def warn_letters(*texts: Any) -> None:
    """Say once for a call how many letters of its texts are read as N.

    Parameters
    ----------
    *texts
        Texts, in any nesting of lists; special tokens such as ``[MASK]`` in them are not letters.

    Warns
    -----
    AmbiguousLettersWarning
    """
    ambiguous: Counter[str] = Counter()
    waiting = list(texts)
    while waiting:
        text = waiting.pop()
        if isinstance(text, (list, tuple)):
            waiting += text
        elif isinstance(text, (str, bytes)):
            found = count_ambiguous(text)
            if found and isinstance(text, str) and "[" in text:
                found = count_ambiguous(_SPECIAL.sub("", text))
            ambiguous += found
    warn_ambiguous(ambiguous, "the tokenizer")


def no_offsets(options: dict[str, Any], tokenizer: object) -> None:
    """Refuse to leave out places of tokens that are asked for.

    Raises
    ------
    NotImplementedError
        As other tokenizers in Python do.
    """
    if options.get("return_offsets_mapping"):
        raise NotImplementedError(
            f"{type(tokenizer).__name__} gives no offsets; leave out return_offsets_mapping"
        )


def join_parts(parts: list[Ids], habit: str) -> Row:
    """Join one or two texts with special tokens.

    Parameters
    ----------
    parts
        Token ids of the texts.
    habit
        ``"none"``, ``"eos"`` (SEP after each text) or ``"cls_sep"`` (CLS before the first, too).

    Returns
    -------
    Row
        Ids, text numbers and special-token mask.
    """
    ids: list[Any] = []
    types: list[Any] = []
    special: list[Any] = []
    for number, part in enumerate(parts):
        before = [_CLS] if habit == "cls_sep" and number == 0 else []
        after = [] if habit == "none" else [_SEP]
        ids += [before, part, after]
        types.append(np.full(len(before) + len(part) + len(after), number))
        special += [[1] * len(before), np.zeros(len(part)), [1] * len(after)]
    return Row(*(np.concatenate(pieces).astype(np.int64) for pieces in (ids, types, special)))


def truncate(parts: list[Ids], excess: int, strategy: TruncationStrategy, side: str) -> list[Ids]:
    """Cut `excess` tokens off one or two texts.

    Parameters
    ----------
    parts
        Token ids of the texts.
    excess
        Number of tokens too many; nothing is cut when it is 0 or less.
    strategy
        Which text loses them; of two, the longer one first.
    side
        ``"right"`` or ``"left"``: the end that is cut.

    Returns
    -------
    list[Ids]
        The shortened texts.
    """
    if excess <= 0:
        return parts
    keep = [len(part) for part in parts]
    if len(parts) == 1 or strategy == TruncationStrategy.ONLY_FIRST:
        keep[0] -= excess
    elif strategy == TruncationStrategy.ONLY_SECOND:
        keep[1] -= excess
    else:
        total = sum(keep) - excess
        keep[0] = min(keep[0], max(-(-total // 2), total - keep[1]))
        keep[1] = total - keep[0]
    lengths = [max(0, length) for length in keep]
    if side == "right":
        return [part[:length] for part, length in zip(parts, lengths, strict=True)]
    return [part[len(part) - length :] for part, length in zip(parts, lengths, strict=True)]


def padded_width(
    lengths: list[int],
    strategy: PaddingStrategy,
    max_length: int | None,
    multiple: int | None,
    batched: bool,
) -> int | None:
    """Give the width every row is padded to, or None for rows as they are.

    A single empty text is left empty, as transformers does.
    """
    if strategy == PaddingStrategy.DO_NOT_PAD or not lengths or (not batched and not lengths[0]):
        return None
    width = max_length if strategy == PaddingStrategy.MAX_LENGTH else max(lengths)
    width = max(lengths) if width is None else width
    return -(-width // multiple) * multiple if multiple else width


def pad_row(values: Ids, width: int, fill: int, left: bool) -> Ids:
    """Pad a row to `width` on one side; a longer row stays as it is."""
    missing = max(0, width - len(values))
    return np.pad(values, (missing, 0) if left else (0, missing), constant_values=fill)
