"""Tokenizers that look tokens up in a list; the letter vocabulary of GenomicBenchmarks.

GenomicBenchmarks wraps each sequence in ``<bos>`` and ``<eos>``. Id 0 is ``<unk>``, then come the
tokens in the order the training set first shows them, and ``<pad>`` last when sequences differ in
length. The published CNN reads these ids; a new model may as well read those of the character
tokenizer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Self

from transformers import BatchEncoding, PreTrainedTokenizer

from megabase.data.vocabulary import SPECIAL_TOKEN_HABITS
from megabase.errors import ModelError
from megabase.genome.alphabet import count_ambiguous, warn_ambiguous

# The published names.
_BOS, _EOS, _UNK, _PAD = "<bos>", "<eos>", "<unk>", "<pad>"
# A special token written in a text: its letters are not bases.
_SPECIAL = re.compile(r"\[[A-Za-z_0-9]+\]")


def warn_letters(*texts: Any) -> None:
    """Warn once for a call, with the number of letters of its texts that are read as N.

    Texts come in any nesting of lists; special tokens such as ``[MASK]`` in them are not letters.
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


class TableTokenizer(PreTrainedTokenizer):
    """Tokens by id in a list, which subclasses make before they call ``super().__init__``."""

    model_input_names: list[str] = ["input_ids", "attention_mask"]  # noqa: RUF012
    vocab_files_names: dict[str, str] = {}  # noqa: RUF012
    padding_side: str = "right"
    _unknown = "[UNK]"
    _warns = False  # of letters that are read as N
    _tokens: list[str]
    _ids: dict[str, int]

    @staticmethod
    def _pattern(habit: str) -> str:
        """Give the name that transformers has for a habit of adding special tokens."""
        if habit not in SPECIAL_TOKEN_HABITS:
            known = ", ".join(SPECIAL_TOKEN_HABITS)
            raise ModelError(f"special_tokens is one of {known}, not {habit!r}")
        return SPECIAL_TOKEN_HABITS[habit]

    def _set_tokens(self, tokens: Iterable[str]) -> None:
        self._tokens = list(tokens)
        self._ids = {token: index for index, token in enumerate(self._tokens)}

    @property
    def vocab_size(self) -> int:
        """Number of named tokens."""
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        """Give token -> id, tokens added by the user included."""
        return {**self._ids, **self._added_tokens_encoder}

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._warns:
            warn_letters(text, text_pair)
        if kwargs.get("return_offsets_mapping"):
            raise NotImplementedError(
                f"{type(self).__name__} gives no offsets; leave out return_offsets_mapping"
            )
        return super()._encode_plus(text=text, text_pair=text_pair, **kwargs)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, self._ids[self._unknown])

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self._tokens):
            raise ModelError(f"token id {index} is outside 0-{len(self._tokens) - 1}")
        return self._tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens without spaces."""
        return "".join(tokens)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Save nothing: the tokenizer's configuration holds the tokens."""
        return ()


def _letter_tokens(text: str) -> list[str]:
    """Cut a text into letters between ``<bos>`` and ``<eos>``; line ends are left out."""
    return [_BOS, *text.replace("\n", ""), _EOS]


class LetterTokenizer(TableTokenizer):
    """One token per letter, with the ids of a training set.

    Parameters
    ----------
    tokens
        Tokens by id: distinct, with ``<unk>``, ``<bos>`` and ``<eos>``.
    upper_case
        Upper-case the input first; the published tokenizer did not.
    **kwargs
        Passed on to transformers.

    Examples
    --------
    >>> tokenizer = LetterTokenizer(["<unk>", "<bos>", "G", "A", "<eos>"])
    >>> tokenizer("AGT")["input_ids"]
    [1, 3, 2, 0, 4]
    """

    _unknown = _UNK

    def __init__(self, tokens: Sequence[str], upper_case: bool = True, **kwargs: Any) -> None:
        self._set_tokens(tokens)
        missing = {_UNK, _BOS, _EOS} - set(self._ids)
        if missing or len(self._ids) != len(self._tokens):
            raise ModelError(
                f"expected distinct tokens with {_UNK}, {_BOS} and {_EOS} (see "
                f"LetterTokenizer.from_sequences), found {self._tokens}"
            )
        self.upper_case = upper_case
        kwargs.pop("special_tokens_pattern", None)
        for name, token in {"unk": _UNK, "bos": _BOS, "eos": _EOS, "pad": _PAD}.items():
            if token in self._ids:
                kwargs.setdefault(f"{name}_token", token)
        super().__init__(
            tokens=self._tokens, upper_case=upper_case, special_tokens_pattern="bos_eos", **kwargs
        )

    @classmethod
    def from_sequences(cls, sequences: Iterable[str], padding: bool) -> Self:
        """Make the tokenizer of a training set, `padding` when its sequences differ in length."""
        seen = dict.fromkeys(token for text in sequences for token in _letter_tokens(text))
        return cls([_UNK, *seen, *([_PAD] if padding else [])])

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return _letter_tokens(text.upper() if self.upper_case else text)[1:-1]
