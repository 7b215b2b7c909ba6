"""DNABERT's tokenizer: overlapping k-mers, k = 3 to 6.

``[PAD]`` 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4, then all k-mers in the base order
A, T, C, G, the last base running fastest; published as ``vocab.txt``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megabase.errors import ModelError
from megabase.genome.files import write_whole
from megabase.models.tokenizers.kmer import (
    all_kmers,
    check_k,
    kmer_count,
    kmer_numbers,
    split_kmers,
)
from megabase.models.tokenizers.kmer_tokens import BaseKmerTokenizer, shown
from megabase.untrusted import read_text

__all__ = ["DNABERT_ORDER", "DNABERTTokenizer", "read_dnabert_vocabulary"]

DNABERT_ORDER = "ATCG"
"""Bases in the order of DNABERT's vocabulary."""
_DNABERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONG_INPUTS = ("error", "pieces", "published-pieces")


def read_dnabert_vocabulary(path: str | Path) -> int:
    """Check a DNABERT ``vocab.txt`` and tell its k.

    Parameters
    ----------
    path
        One token a line: five special tokens, then all k-mers in the order A, T, C, G.

    Returns
    -------
    int
        k, 3 to 6 for the published files.

    Raises
    ------
    ModelError
        When the file is another vocabulary, with the first line that differs.
    """
    tokens = read_text(path, ModelError).split("\n")
    while tokens and not tokens[-1]:
        tokens.pop()
    k = next((k for k in range(1, 9) if len(tokens) == 4**k + len(_DNABERT_SPECIAL)), None)
    if k is None:
        raise ModelError(
            f"{path} holds {len(tokens):,} tokens; a DNABERT vocabulary holds 4**k + 5 "
            "(69, 261, 1,029 or 4,101 for k = 3 to 6). This is the vocabulary of another model"
        )
    for line, (found, expected) in enumerate(
        zip(tokens, [*_DNABERT_SPECIAL, *all_kmers(k, DNABERT_ORDER)], strict=True), start=1
    ):
        if found.rstrip("\r") != expected:
            raise ModelError(
                f"{path}, line {line}: expected {expected!r} (k-mers in the order A, T, C, G), "
                f"found {found!r}. This is the vocabulary of another model"
            )
    return k


class DNABERTTokenizer(BaseKmerTokenizer):
    """Overlapping k-mers with DNABERT's ids, ``[CLS]`` before and ``[SEP]`` after.

    Parameters
    ----------
    vocab_file
        A published ``vocab.txt``; checked, and decides `k`. None builds the same vocabulary.
    k
        Bases in a k-mer. Ignored when a file is given.
    strict
        True (default): a character that is no DNA letter, a word that is no k-mer and a sequence
        shorter than `k` are errors. False: they become ``[UNK]`` or nothing, as published.
    upper_case
        Upper-case the input. False, with ``strict=False``, makes lower-case k-mers unknown, as
        published.
    drop_last
        Leave out the last k-mer, as the script that prepared DNABERT's pretraining data did.
    long_inputs
        What to do when a sequence has more k-mers than the model reads. ``"error"``: refuse it.
        ``"pieces"``: cut it into pieces, each with its own ``[CLS]`` and ``[SEP]``.
        ``"published-pieces"``: the same as published, where 510 k-mers are already too many for one
        piece and a multiple of 510 adds an empty piece.
    model_max_length
        Tokens the model reads at once, special tokens included (512).
    **kwargs
        Passed on to transformers. ``do_lower_case``, which the published folders set although it
        would make every k-mer unknown, is ignored.

    Raises
    ------
    ModelError
        For a vocabulary file of another model, an unknown option, and (when called) sequences that
        do not fit.

    Notes
    -----
    A text that contains spaces is read as k-mers already cut, the form that DNABERT's own scripts
    write.

    Examples
    --------
    >>> tokenizer = DNABERTTokenizer(k=3)
    >>> tokenizer("AAAT")["input_ids"]
    [2, 5, 6, 3]
    >>> tokenizer.decode([2, 5, 6, 3], skip_special_tokens=True)
    'AAAT'
    """

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012 (the library\'s own form)
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012 (the library\'s own form)
    padding_side: str = "right"

    def __init__(
        self,
        vocab_file: str | None = None,
        k: int = 6,
        *,
        strict: bool = True,
        upper_case: bool = True,
        drop_last: bool = False,
        long_inputs: str = "error",
        model_max_length: int = 512,
        **kwargs: Any,
    ) -> None:
        if long_inputs not in _LONG_INPUTS:
            raise ModelError(
                f"long_inputs is one of {', '.join(_LONG_INPUTS)}, not {long_inputs!r}"
            )
        for key in ("do_lower_case", "special_tokens_pattern", "tokenize_chinese_chars"):
            kwargs.pop(key, None)
        self.k = read_dnabert_vocabulary(vocab_file) if vocab_file is not None else k
        check_k(self.k)
        self.strict, self.upper_case = strict, upper_case
        self.drop_last, self.long_inputs = drop_last, long_inputs
        self._tokens = [*_DNABERT_SPECIAL, *all_kmers(self.k, DNABERT_ORDER)]
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        for name in ("pad", "unk", "cls", "sep", "mask"):
            kwargs.setdefault(f"{name}_token", f"[{name.upper()}]")
        super().__init__(
            k=self.k,
            strict=strict,
            upper_case=upper_case,
            drop_last=drop_last,
            long_inputs=long_inputs,
            # transformers writes a huge number for "no limit" into the files it saves.
            model_max_length=min(model_max_length, 2**31),
            special_tokens_pattern="cls_sep",
            **kwargs,
        )

    @classmethod
    def for_config(cls, config: Any) -> DNABERTTokenizer:
        """Make the tokenizer of a model from its configuration (k, length, long inputs)."""
        return cls(
            k=config.k,
            model_max_length=config.max_position_embeddings,
            long_inputs=config.long_inputs,
        )

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = self._clean(text)
        if not text:
            return []
        words = text.split()
        if len(words) > 1 or (not self.strict and len(text) < self.k):
            return [self._check_word(word) for word in words]
        if len(text) < self.k:
            raise ModelError(
                f"the sequence {shown(text)} has {len(text)} bases and no {self.k}-mer; "
                f"give {self.k} bases or more"
            )
        return split_kmers(text, self.k, drop_last=self.drop_last)

    # -- pieces --------------------------------------------------------------------------------

    def _piece_starts(self, count: int) -> list[int]:
        room = self.model_max_length - 2
        if self.long_inputs == "published-pieces":
            return list(range(0, count // room * room + 1, room))
        if count <= room:
            return [0]
        if self.long_inputs == "pieces":
            return list(range(0, count, room))
        raise ModelError(
            f"a sequence of {count:,} {self.k}-mers ({count + self.k - 1:,} bases) is longer than "
            f"the {room:,} that the model reads; shorten it to {room + self.k - 1:,} bases, pass "
            "truncation=True with max_length, or load the tokenizer with long_inputs='pieces'"
        )

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put ``[CLS]`` and ``[SEP]`` around a sequence, or around each of its pieces."""
        if token_ids_1 is not None:
            return super().build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        room = self.model_max_length - 2
        cls, sep = self._ids["[CLS]"], self._ids["[SEP]"]
        result: list[int] = []
        for start in self._piece_starts(len(token_ids_0)):
            result += [cls, *token_ids_0[start : start + room], sep]
        return result

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Mark special tokens with 1, in ids with or (to be) without them."""
        if already_has_special_tokens or token_ids_1 is not None:
            return super().get_special_tokens_mask(
                token_ids_0, token_ids_1, already_has_special_tokens
            )
        room = self.model_max_length - 2
        result: list[int] = []
        for start in self._piece_starts(len(token_ids_0)):
            result += [1, *([0] * len(token_ids_0[start : start + room])), 1]
        return result

    def _eventual_warn_about_too_long_sequence(
        self, ids: list[int], max_length: int | None, verbose: bool
    ) -> None:
        if self.long_inputs == "error":
            super()._eventual_warn_about_too_long_sequence(ids, max_length, verbose)

    # -- codes and text ------------------------------------------------------------------------

    def token_count(self, bases: int, add_special_tokens: bool = True) -> int:
        """Count the tokens of a sequence of so many bases."""
        count = max(kmer_count(bases, self.k) - int(self.drop_last), 0)
        if not add_special_tokens:
            return count
        return count + 2 * len(self._piece_starts(count))

    def ids_from_codes(self, codes: Tensor) -> Tensor:
        """Look up the k-mers of base codes; no special tokens are added.

        Parameters
        ----------
        codes
            uint8 (batch, bases), see :mod:`megabase.genome.alphabet`.

        Returns
        -------
        Tensor
            int64 (batch, bases - k + 1): token ids, ``[UNK]`` where a k-mer holds N or ends in
            padding, ``[PAD]`` where it is padding throughout.
        """
        numbers, padding = kmer_numbers(codes, self.k, order=DNABERT_ORDER)
        ids = torch.where(numbers < 0, self._ids["[UNK]"], numbers + len(_DNABERT_SPECIAL))
        ids = torch.where(padding, self._ids["[PAD]"], ids)
        return ids[:, :-1] if self.drop_last else ids

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Write the sequence the k-mers come from; special and unknown tokens as they are."""
        pieces: list[str] = []
        previous = ""
        for token in tokens:
            if len(token) != self.k or token in _DNABERT_SPECIAL:
                pieces.append(token)
                previous = ""
            else:
                follows = bool(previous) and previous[1:] == token[:-1]
                pieces.append(token[-1] if follows else token)
                previous = token
        return "".join(pieces)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``vocab.txt``."""
        name = (f"{filename_prefix}-" if filename_prefix else "") + "vocab.txt"
        return (_write_lines(Path(save_directory) / name, self._tokens),)


def _write_lines(path: Path, lines: list[str]) -> str:
    write_whole(path, "\n".join(lines) + "\n")
    return str(path)
