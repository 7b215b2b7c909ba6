"""k-mer tokenizers: HyenaDNA's variant (GPT reads it too) and DNABERT's.

Lower case is upper-cased, a k-mer with N or another IUPAC letter is ``[UNK]``, and any other
character is an error. Training reads ids straight from base codes (``ids_from_codes``): the number
of a k-mer b_0 .. b_{k-1} is ``sum(digit(b_j) * 4 ** (k - 1 - j))``, with the digits of the bases in
the order of the vocabulary (A, C, G, T; A, T, C, G for DNABERT).

No code or vocabulary of HyenaDNA's 6-mer ablation was published; :class:`KmerTokenizer` is our
choice. k-mers lie **side by side** (stride k): overlapping ones repeat k - 1 bases of the current
one, so most of a causal model's loss would be copying, and nothing be gained in length. Bases left
at the end become single-base tokens, so every base is read.

Shape suffixes: B sequences, L bases, T k-mers.
"""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from megabase.data.vocabulary import VOCABULARY
from megabase.errors import ModelError
from megabase.genome import alphabet
from megabase.genome.files import write_whole
from megabase.models.tokenizers.character import SPECIAL_TOKEN_NAMES
from megabase.models.tokenizers.table import TableTokenizer
from megabase.untrusted import read_text, shown

_LARGEST_K = 8
"""4**8 = 65,536 k-mers; a larger vocabulary makes an embedding that no sequence fills."""
# The order, and the first five lines, of the published vocab.txt.
_DNABERT_ORDER, _DNABERT_SPECIAL = "ATCG", ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LONG_INPUTS = ("error", "pieces", "published-pieces")
"""What :class:`DNABERTTokenizer` can do with too long a sequence; the first is the default."""
_SPECIAL_POSITIONS = 2
"""Positions beyond those of the bases that the published HyenaDNA filters have room for."""


def _all_kmers(k: int, order: str = alphabet.BASES) -> list[str]:
    """List every k-mer of 1 to 8 bases, the last base running fastest."""
    if not 1 <= k <= _LARGEST_K:
        raise ModelError(f"expected a k-mer length between 1 and {_LARGEST_K}, found k={k}")
    return ["".join(letters) for letters in product(order, repeat=k)]


def _kmer_count(length: int, k: int, stride: int = 1) -> int:
    """Count the whole k-mers of a sequence."""
    return max((length - k) // stride + 1, 0) if length >= k else 0


def _split_kmers(sequence: str, k: int, stride: int = 1, drop_last: bool = False) -> list[str]:
    """Cut a string into whole k-mers; bases after the last whole k-mer are left out.

    `drop_last` leaves out a k-mer that ends with the sequence, as the script that prepared
    DNABERT's pretraining data did.
    """
    stop = len(sequence) - k + (0 if drop_last else 1)
    return [sequence[start : start + k] for start in range(0, max(stop, 0), stride)]


@cache
def _digit_table(order: str, device: torch.device) -> Tensor:
    table = torch.full((256,), -1, dtype=torch.long)
    for code, letter in enumerate(alphabet.BASES):
        table[code] = table[code | alphabet.SOFT_MASK] = order.index(letter)
    return table.to(device)


def _kmer_numbers(codes_BL: Tensor, k: int, stride: int, order: str) -> tuple[Tensor, Tensor]:
    """Give numbers (B, T) of k-mers, -1 where one holds another letter, and which are padding."""
    length = codes_BL.shape[-1]
    if length < k:
        raise ModelError(f"sequences of {length} bases hold no {k}-mer; give {k} bases or more")
    span = (_kmer_count(length, k, stride) - 1) * stride + 1
    table = _digit_table(order, codes_BL.device)
    digits_BL = table.index_select(0, codes_BL.reshape(-1).int()).view(codes_BL.shape)
    outside_BL = (codes_BL & alphabet.BASE_BITS) == alphabet.PAD
    first = digits_BL[..., 0:span:stride]
    numbers, known, padding = first.clone(), first >= 0, outside_BL[..., 0:span:stride]
    for position in range(1, k):
        window = slice(position, position + span, stride)
        numbers = numbers * 4 + digits_BL[..., window]
        known = known & (digits_BL[..., window] >= 0)
        padding = padding & outside_BL[..., window]
    return torch.where(known, numbers, -1), padding


class _KmerTokenizer(TableTokenizer):
    """Some named tokens, then every k-mer in the order of the bases."""

    k: int
    stride: int = 1
    strict: bool
    upper_case: bool = True
    drop_last: bool = False
    _order: str = alphabet.BASES
    _first: int  # id of the first k-mer
    _warns = True

    def _set_kmers(self, k: int, named: Any) -> None:
        self.k, self._first = k, len(named)
        self._set_tokens([*named, *_all_kmers(k, self._order)])

    def _clean(self, text: str) -> str:
        text = text.strip()
        if not self.strict:
            return text.upper() if self.upper_case else text
        for word in text.split():
            alphabet.encode(word)
        return text.upper()

    def _too_short(self, text: str) -> ModelError:
        return ModelError(
            f"the sequence {shown(text)} has {len(text)} bases and no {self.k}-mer; "
            f"give {self.k} bases or more"
        )

    def token_count(self, bases: int, add_special_tokens: bool = True) -> int:
        """Count the tokens of a sequence of this many bases."""
        count = max(_kmer_count(bases, self.k, self.stride) - int(self.drop_last), 0)
        count += bases % self.k if self.stride > 1 else 0
        return count + (self.num_special_tokens_to_add() if add_special_tokens else 0)

    def ids_from_codes(self, codes: Tensor) -> Tensor:
        """Look up the k-mers of base codes, uint8 (batch, bases) of at least `k` bases.

        Gives int64 ids (batch, ``token_count(bases, add_special_tokens=False)``) without special
        tokens: ``[UNK]`` where a k-mer holds N or touches padding, ``[PAD]`` where it is padding
        throughout.
        """
        numbers, padding = _kmer_numbers(codes, self.k, self.stride, self._order)
        ids = torch.where(numbers < 0, self._ids["[UNK]"], numbers + self._first)
        ids = torch.where(padding, self._ids["[PAD]"], ids)
        ids = ids[:, :-1] if self.drop_last else ids
        left = codes.shape[-1] % self.k if self.stride > 1 else 0
        if not left:
            return ids
        table = torch.from_numpy(alphabet.TOKEN_ID_OF_CODE.astype("int64")).to(codes.device)
        return torch.cat([ids, table[codes[..., codes.shape[-1] - left :].long()]], dim=-1)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join k-mers side by side; overlapping ones by their last bases."""
        if self.stride > 1:
            return "".join(tokens)
        text, previous = "", ""
        for token in tokens:
            is_kmer = self._ids.get(token, 0) >= self._first
            follows = is_kmer and previous != "" and previous[1:] == token[:-1]
            text += token[-1] if follows else token
            previous = token if is_kmer else ""
        return text


class KmerTokenizer(_KmerTokenizer):
    """k-mers side by side on top of the character vocabulary: HyenaDNA's k-mer variant.

    Ids 0-11 are those of :class:`.character.DNATokenizer` (special tokens, A 7, C 8, G 9, T 10, N
    11); the k-mer with number n in the order A, C, G, T is ``12 + n``. The vocabulary has 12 + 4**k
    tokens, 4,108 for k = 6; models pad it to 4,112.

    Parameters
    ----------
    k
        Bases in a k-mer, 2 to 8.
    stride
        `k` (default): side by side, with single-base tokens for the bases left at the end.
        1: overlapping, sequences shorter than `k` refused. The module's text gives the reasons.
    special_tokens
        As in :class:`.character.DNATokenizer`: ``"hyenadna"`` appends SEP.
    strict
        Refuse letters other than DNA and text with spaces; otherwise they give ``[UNK]``.
    **kwargs
        Passed on to transformers.

    Examples
    --------
    >>> tokenizer = KmerTokenizer(k=2)
    >>> tokenizer("AAACG")["input_ids"]
    [12, 13, 9, 1]
    >>> tokenizer.decode([12, 13, 9])
    'AAACG'
    """

    def __init__(
        self, k: int = 6, stride: int | None = None, special_tokens: str = "hyenadna", *,
        strict: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        if k == 1:
            raise ModelError("k=1 is the character tokenizer, DNATokenizer; k-mers start at k=2")
        self._set_kmers(k, VOCABULARY)
        if stride not in (None, 1, k):
            raise ModelError(f"stride is 1 (overlapping) or k={k} (side by side), not {stride}")
        self.stride, self.strict, self.special_tokens = stride or k, strict, special_tokens
        kwargs["special_tokens_pattern"] = self._pattern(special_tokens)
        super().__init__(
            k=k, stride=self.stride, special_tokens=special_tokens, strict=strict,
            **{**SPECIAL_TOKEN_NAMES, **kwargs},
        )  # fmt: skip

    @classmethod
    def for_bases(cls, bases: int, k: int = 6, stride: int | None = None) -> Self:
        """Make the tokenizer of a HyenaDNA that reads up to `bases` bases.

        Its ``vocab_size`` and ``model_max_length`` are the ``vocab_size`` and ``max_seq_len`` of
        the model's configuration.
        """
        made = cls(k, stride)
        made.model_max_length = made.token_count(bases, False) + _SPECIAL_POSITIONS
        return made

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = self._clean(text)
        if self.strict and len(text.split()) > 1:
            raise ModelError(f"expected one DNA string without spaces, found {shown(text)}")
        if self.stride == 1 and self.strict and 0 < len(text) < self.k:
            raise self._too_short(text)
        kmers = _split_kmers(text, self.k, self.stride)
        rest = text[len(kmers) * self.k :] if self.stride == self.k else ""
        return kmers + ["N" if base in alphabet.AMBIGUITY_LETTERS else base for base in rest]


class DNABERTTokenizer(_KmerTokenizer):
    """Overlapping k-mers with DNABERT's ids, ``[CLS]`` before and ``[SEP]`` after.

    ``[PAD]`` 0, ``[UNK]`` 1, ``[CLS]`` 2, ``[SEP]`` 3, ``[MASK]`` 4, then all k-mers in the base
    order A, T, C, G. A text that contains spaces is read as k-mers already cut, the form that
    DNABERT's own scripts write.

    Parameters
    ----------
    vocab_file, k
        A published ``vocab.txt``, which is checked and decides `k`; or bases in a k-mer, from which
        the same vocabulary is built.
    strict
        Refuse letters other than DNA, words other than k-mers and sequences shorter than `k`;
        otherwise they become ``[UNK]`` or nothing, as published.
    upper_case
        Upper-case the input. Without, and not strict, lower-case k-mers are unknown, as published.
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
    """

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012 (the library's own form)
    model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # noqa: RUF012
    _order = _DNABERT_ORDER

    def __init__(
        self, vocab_file: str | None = None, k: int = 6, *, strict: bool = True,
        upper_case: bool = True, drop_last: bool = False, long_inputs: str = "error",
        model_max_length: int = 512, **kwargs: Any,
    ) -> None:  # fmt: skip
        if long_inputs not in _LONG_INPUTS:
            raise ModelError(
                f"long_inputs is one of {', '.join(_LONG_INPUTS)}, not {long_inputs!r}"
            )
        for key in ("do_lower_case", "special_tokens_pattern", "tokenize_chinese_chars"):
            kwargs.pop(key, None)
        self._set_kmers(k if vocab_file is None else self.read_k(vocab_file),
                        _DNABERT_SPECIAL)  # fmt: skip
        self.strict, self.upper_case = strict, upper_case
        self.drop_last, self.long_inputs = drop_last, long_inputs
        for token in _DNABERT_SPECIAL:
            kwargs.setdefault(f"{token[1:-1].lower()}_token", token)
        super().__init__(
            k=self.k, strict=strict, upper_case=upper_case, drop_last=drop_last,
            long_inputs=long_inputs, special_tokens_pattern="cls_sep",
            # transformers writes a huge number for "no limit" into the files it saves.
            model_max_length=min(model_max_length, 2**31), **kwargs,
        )  # fmt: skip

    @staticmethod
    def read_k(path: str | Path) -> int:
        """Check a DNABERT ``vocab.txt`` and give its k, 3 to 6 for the published files."""
        tokens = read_text(path, ModelError).rstrip("\n").split("\n")
        sizes = {4**k + len(_DNABERT_SPECIAL): k for k in range(1, _LARGEST_K + 1)}
        k = sizes.get(len(tokens))
        if k is None:
            raise ModelError(
                f"{path} holds {len(tokens):,} tokens; a DNABERT vocabulary holds 4**k + 5 "
                "(69, 261, 1,029 or 4,101 for k = 3 to 6). This is the vocabulary of another model"
            )
        expected = [*_DNABERT_SPECIAL, *_all_kmers(k, _DNABERT_ORDER)]
        for line, (found, wanted) in enumerate(zip(tokens, expected, strict=True), start=1):
            if found.rstrip("\r") != wanted:
                raise ModelError(
                    f"{path}, line {line}: expected {wanted!r} (k-mers in the order A, T, C, G), "
                    f"found {found!r}. This is the vocabulary of another model"
                )
        return k

    @classmethod
    def for_config(cls, config: Any) -> Self:
        """Make the tokenizer of a model from its configuration (k, length, long inputs)."""
        longest, habit = config.max_position_embeddings, config.long_inputs
        return cls(k=config.k, model_max_length=longest, long_inputs=habit)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        text = self._clean(text)
        if not text:
            return []
        words = text.split()
        if len(words) > 1 or (not self.strict and len(text) < self.k):
            wrong = next((word for word in words if self.strict and len(word) != self.k), None)
            if wrong is not None:
                raise ModelError(
                    f"expected one DNA string without spaces, or {self.k}-mers separated by "
                    f"spaces; found the word {shown(wrong)} of {len(wrong)} letters"
                )
            return words
        if len(text) < self.k:
            raise self._too_short(text)
        return _split_kmers(text, self.k, drop_last=self.drop_last)

    def _piece_starts(self, count: int) -> list[int]:
        """Give where the pieces of a sequence of this many k-mers start."""
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

    def _pieces(self, values: list[int], before: int, after: int) -> list[int]:
        """Put a value before and after each piece of a sequence."""
        room = self.model_max_length - 2
        result: list[int] = []
        for start in self._piece_starts(len(values)):
            result += [before, *values[start : start + room], after]
        return result

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Put ``[CLS]`` and ``[SEP]`` around a sequence, or around each of its pieces."""
        if token_ids_1 is not None:
            return super().build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        return self._pieces(token_ids_0, self._ids["[CLS]"], self._ids["[SEP]"])

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:  # fmt: skip
        """Mask special tokens with 1, in ids with or (to be) without them."""
        has = already_has_special_tokens
        if has or token_ids_1 is not None:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, has)
        return self._pieces([0] * len(token_ids_0), 1, 1)

    def _eventual_warn_about_too_long_sequence(
        self, ids: list[int], max_length: int | None, verbose: bool
    ) -> None:
        if self.long_inputs == "error":
            super()._eventual_warn_about_too_long_sequence(ids, max_length, verbose)

    def token_count(self, bases: int, add_special_tokens: bool = True) -> int:
        """Count the tokens of a sequence of this many bases, pieces included."""
        count = super().token_count(bases, add_special_tokens=False)
        return count + (2 * len(self._piece_starts(count)) if add_special_tokens else 0)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write ``vocab.txt``."""
        name = (f"{filename_prefix}-" if filename_prefix else "") + "vocab.txt"
        path = Path(save_directory) / name
        write_whole(path, "\n".join(self._tokens) + "\n")
        return (str(path),)
