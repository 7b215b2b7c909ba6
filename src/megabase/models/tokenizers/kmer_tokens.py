"""The tokenizer of HyenaDNA's k-mer variant, and what k-mer tokenizers share.

They take plain DNA strings. Lower case is upper-cased, a k-mer with N or another IUPAC letter is
``[UNK]``, and a character that is no DNA letter is an error. They also number k-mers straight from
base codes on the device of the codes (``ids_from_codes``), which is what training reads. DNABERT's
is in :mod:`megabase.models.dnabert.tokenization`.

No code or vocabulary of HyenaDNA's 6-mer ablation was published; this is our choice. k-mers lie
**side by side** (stride k). In a causal model with overlapping k-mers the next token repeats k - 1
bases of the current one, so most of the loss is copying and nothing is gained in length; side by
side a token is k new bases, the likelihood of a sequence is a plain product over its tokens, and
the input is k times as short: the trade of resolution for length that the ablation is about.
Overlapping k-mers remain an option (``stride=1``). The vocabulary continues the character
vocabulary: ids 0-11 mean what they mean everywhere else, k-mers in the order A, C, G, T start at
12. Up to k - 1 bases left at the end of a sequence become single-base tokens, so every base is
read and the number of tokens depends on the length alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizer

from megabase.data.vocabulary import SPECIAL_TOKEN_HABITS, VOCABULARY
from megabase.errors import ModelError
from megabase.genome import alphabet
from megabase.models.tokenizers.encoding import no_offsets, warn_letters
from megabase.models.tokenizers.kmer import (
    all_kmers,
    check_k,
    kmer_count,
    kmer_numbers,
    split_kmers,
)

__all__ = ["BaseKmerTokenizer", "KmerTokenizer", "shown"]

_SHOWN = 20
"""Characters of a sequence that an error message shows."""


def shown(text: str) -> str:
    """Quote the beginning of a text for an error message."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


class BaseKmerTokenizer(PreTrainedTokenizer):
    """What k-mer tokenizers share: checking and looking up."""

    k: int
    strict: bool
    upper_case: bool
    _ids: dict[str, int]
    _tokens: list[str]

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """Give token -> id, tokens added by the user included."""
        return {**self._ids, **self._added_tokens_encoder}

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # pyright: ignore[reportIncompatibleMethodOverride]
        warn_letters(text, text_pair)
        no_offsets(kwargs, self)
        return super()._encode_plus(text=text, text_pair=text_pair, **kwargs)

    def _convert_token_to_id(self, token: str) -> int:
        unknown = self._ids["[UNK]"]
        return self._ids.get(token, unknown)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self._tokens):
            raise ModelError(f"token id {index} is outside 0-{len(self._tokens) - 1}")
        return self._tokens[index]

    def _clean(self, text: str) -> str:
        text = text.strip()
        if not self.strict:
            return text.upper() if self.upper_case else text
        for word in text.split():
            alphabet.encode(word)
        return text.upper()

    def _check_word(self, word: str) -> str:
        if self.strict and len(word) != self.k:
            raise ModelError(
                f"expected one DNA string without spaces, or {self.k}-mers separated by spaces; "
                f"found the word {shown(word)} of {len(word)} letters"
            )
        return word


class KmerTokenizer(BaseKmerTokenizer):
    """k-mers side by side on top of the character vocabulary: HyenaDNA's k-mer variant.

    Ids 0-11 are those of :class:`.character.DNATokenizer` (special tokens,
    A 7, C 8, G 9, T 10, N 11); the k-mer with number n in the order A, C, G, T is ``12 + n``. The
    vocabulary has 12 + 4**k tokens, 4,108 for k = 6; models pad it to 4,112.

    Parameters
    ----------
    k
        Bases in a k-mer, 2 to 8.
    stride
        `k` (default): side by side, with single-base tokens for the bases left at the end.
        1: overlapping, sequences shorter than `k` refused. See the module's text for the choice.
    special_tokens
        As in :class:`.character.DNATokenizer`: ``"hyenadna"`` appends SEP.
    strict
        True (default): a character that is no DNA letter is an error. False: it makes its k-mer
        ``[UNK]``.
    **kwargs
        Passed on to transformers.

    Raises
    ------
    ModelError
        For an unknown option, and (when called and strict) text with spaces.

    Examples
    --------
    >>> tokenizer = KmerTokenizer(k=2)
    >>> tokenizer("AAACG")["input_ids"]
    [12, 13, 9, 1]
    >>> tokenizer.decode([12, 13, 9])
    'AAACG'
    """

    vocab_files_names = {}  # noqa: RUF012 (the library\'s own form)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (the library\'s own form)
    padding_side: str = "right"

    def __init__(
        self,
        k: int = 6,
        stride: int | None = None,
        special_tokens: str = "hyenadna",
        *,
        strict: bool = True,
        **kwargs: Any,
    ) -> None:
        check_k(k)
        if k == 1:
            raise ModelError("k=1 is the character tokenizer, DNATokenizer; k-mers start at k=2")
        if stride not in (None, 1, k):
            raise ModelError(f"stride is 1 (overlapping) or k={k} (side by side), not {stride}")
        if special_tokens not in SPECIAL_TOKEN_HABITS:
            habits = ", ".join(SPECIAL_TOKEN_HABITS)
            raise ModelError(f"special_tokens is one of {habits}, not {special_tokens!r}")
        kwargs.pop("special_tokens_pattern", None)
        self.k, self.stride, self.strict, self.upper_case = k, stride or k, strict, True
        self.special_tokens = special_tokens
        self._tokens = [*VOCABULARY, *all_kmers(k)]
        self._ids = {token: index for index, token in enumerate(self._tokens)}
        names = {"bos": "[BOS]", "eos": "[SEP]", "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]",
                 "cls": "[CLS]", "mask": "[MASK]"}  # fmt: skip
        for name, token in names.items():
            kwargs.setdefault(f"{name}_token", token)
        super().__init__(
            k=k,
            stride=self.stride,
            special_tokens=special_tokens,
            strict=strict,
            special_tokens_pattern=SPECIAL_TOKEN_HABITS[special_tokens],
            **kwargs,
        )

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = self._clean(text)
        if self.strict and len(text.split()) > 1:
            raise ModelError(f"expected one DNA string without spaces, found {shown(text)}")
        if self.stride == 1 and self.strict and 0 < len(text) < self.k:
            raise ModelError(
                f"the sequence {shown(text)} has {len(text)} bases and no {self.k}-mer; "
                f"give {self.k} bases or more"
            )
        kmers = split_kmers(text, self.k, self.stride)
        rest = text[len(kmers) * self.k :] if self.stride == self.k else ""
        return [
            *kmers,
            *("N" if letter in alphabet.AMBIGUITY_LETTERS else letter for letter in rest),
        ]

    def token_count(self, bases: int, add_special_tokens: bool = True) -> int:
        """Count the tokens of a sequence of so many bases."""
        count = kmer_count(bases, self.k, self.stride)
        count += bases % self.k if self.stride == self.k else 0
        return count + (self.num_special_tokens_to_add() if add_special_tokens else 0)

    def ids_from_codes(self, codes: Tensor) -> Tensor:
        """Look up the k-mers of base codes; no special tokens are added.

        Parameters
        ----------
        codes
            uint8 (batch, bases), see :mod:`megabase.genome.alphabet`.

        Returns
        -------
        Tensor
            int64 (batch, ``token_count(bases, add_special_tokens=False)``): token ids, ``[UNK]``
            where a k-mer holds N or touches padding, ``[PAD]`` where it is padding throughout.
        """
        numbers, padding = kmer_numbers(codes, self.k, self.stride)
        ids = torch.where(numbers < 0, VOCABULARY["[UNK]"], numbers + len(VOCABULARY))
        ids = torch.where(padding, VOCABULARY["[PAD]"], ids)
        left = codes.shape[-1] % self.k if self.stride == self.k else 0
        if not left:
            return ids
        table = torch.from_numpy(alphabet.TOKEN_ID_OF_CODE.astype("int64")).to(codes.device)
        return torch.cat([ids, table[codes[..., codes.shape[-1] - left :].long()]], dim=-1)

    def bases_of_ids(self, ids: Tensor) -> Tensor:
        """Count the bases each token stands for: `k`, 1 or, for special tokens, 0.

        With k-mers side by side the sum over a sequence is its length, so a likelihood a token
        becomes one a base. ``[UNK]`` counts `k`.

        Parameters
        ----------
        ids
            Token ids of any shape.

        Returns
        -------
        Tensor
            int64, same shape.
        """
        first_base, first_kmer = VOCABULARY["A"], len(VOCABULARY)
        whole = (ids >= first_kmer) | (ids == VOCABULARY["[UNK]"])
        single = (ids >= first_base) & (ids < first_kmer)
        return whole.long() * self.k + single.long()

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join k-mers side by side; overlapping ones by their last bases."""
        if self.stride == self.k:
            return "".join(tokens)
        pieces: list[str] = []
        previous = ""
        for token in tokens:
            if token in VOCABULARY:
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
        """Save nothing: `k` says it all, and is in the tokenizer's configuration."""
        return ()
