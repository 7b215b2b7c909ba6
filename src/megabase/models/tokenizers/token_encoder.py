"""From base codes to the tokens of a model, whatever its tokenizer, many sequences at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.untrusted import parse_yaml, read_text

__all__ = ["TokenBatch", "TokenEncoder", "uses_special_tokens"]

_PROBE = "ACGTACGTTGCATGCA"
_WITH_SPECIALS = ("dnabert", "bigbird")
"""Families that read a sequence between special tokens."""


@dataclass(frozen=True)
class TokenBatch:
    """Some sequences as tokens.

    Parameters
    ----------
    ids
        int64 (rows, tokens), padded on the right.
    real
        bool (rows, tokens): tokens that are no padding.
    bases
        bool (rows, tokens): tokens that stand for bases, not for padding or special tokens.
    """

    ids: Tensor
    real: Tensor
    bases: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """Give the arguments of a forward pass; a mask only when something is padded."""
        inputs = {"input_ids": self.ids}
        if not bool(self.real.all()):
            inputs["attention_mask"] = self.real.long()
        return inputs


class TokenEncoder:
    """Turns rows of base codes into tokens.

    Parameters
    ----------
    tokenizer
        A tokenizer of ours.
    special_tokens
        Put the special tokens of the tokenizer around each sequence.

    Attributes
    ----------
    per_base
        Whether every base is one token.
    before
        Special tokens in front of a sequence.
    extra
        Special tokens of a sequence.
    """

    def __init__(self, tokenizer: Any, special_tokens: bool = False) -> None:
        from megabase.models.tokenizers.character import DNATokenizer

        self.tokenizer = tokenizer
        self.per_base: bool = (
            isinstance(tokenizer, DNATokenizer) or type(tokenizer).__name__ == "LetterTokenizer"
        )
        self._table = alphabet.TOKEN_ID_OF_CODE if isinstance(tokenizer, DNATokenizer) else None
        bare = self._ids(_PROBE, False)
        full = self._ids(_PROBE, True) if special_tokens else bare
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        self._before, self._after = full[:start], full[start + len(bare) :]
        self.before = len(self._before)
        self.extra = len(full) - len(bare)
        pad: Any = tokenizer.pad_token_id
        self.pad_id = int(pad or 0)

    def _ids(self, text: str, specials: bool) -> list[int]:
        found: Any = self.tokenizer(text, add_special_tokens=specials)
        ids: list[int] = found["input_ids"]
        return [int(i) for i in ids]

    def row(self, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Give the tokens of one sequence without padding, special tokens included.

        Raises
        ------
        InputError
            When there is none: the sequence is empty, or shorter than one token.
        """
        found = self._look_up(codes)
        if not len(found):
            raise InputError(
                f"a sequence of {len(codes):,} bases gives no token of this model; leave it out"
            )
        return np.concatenate([self._before, found, self._after]).astype(np.int64)

    def _look_up(self, codes: NDArray[np.uint8]) -> NDArray[Any]:
        if self._table is not None:
            return self._table[codes]
        if hasattr(self.tokenizer, "ids_from_codes"):
            overlapping = getattr(self.tokenizer, "stride", 1) == 1
            if len(codes) < (int(getattr(self.tokenizer, "k", 1)) if overlapping else 1):
                return np.zeros(0, dtype=np.int64)
            return self.tokenizer.ids_from_codes(torch.tensor(codes)[None])[0].numpy()
        return np.array(self._ids(alphabet.decode(codes), False), dtype=np.int64)

    def batch(self, codes: NDArray[np.uint8], device: torch.device) -> TokenBatch:
        """Encode rows of codes.

        Parameters
        ----------
        codes
            uint8 (rows, length), padding codes on the right of shorter sequences.
        device
            Where the tensors go.
        """
        if self._table is not None and not self.extra:
            ids = torch.from_numpy(self._table[codes].astype(np.int64)).to(device)
            real = torch.from_numpy((codes & alphabet.BASE_BITS) != alphabet.PAD).to(device)
            return TokenBatch(ids, real, real)
        lengths = ((codes & alphabet.BASE_BITS) != alphabet.PAD).sum(axis=1)
        rows = [self.row(row[:length]) for row, length in zip(codes, lengths, strict=True)]
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        real = np.zeros(ids.shape, dtype=bool)
        bases = np.zeros(ids.shape, dtype=bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            real[number, : len(row)] = True
            bases[number, self.before : len(row) - len(self._after)] = True
        return TokenBatch(*(torch.from_numpy(array).to(device) for array in (ids, real, bases)))

    def room(self, longest: int | None) -> Callable[[NDArray[np.uint8]], bool]:
        """Give a function that tells whether a sequence fits a model of so many positions."""
        if longest is None:
            return lambda codes: True
        if self.per_base:
            return lambda codes: len(codes) + self.extra <= longest
        return lambda codes: len(self._look_up(codes)) + self.extra <= longest

    def bases_for(self, longest: int) -> int:
        """Give the length in bases of a stretch that fits for certain."""
        room = longest - self.extra
        if self.per_base or not hasattr(self.tokenizer, "token_count"):
            return max(1, room)  # a token is one base or more
        low, high = 1, 16 * room
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.tokenizer.token_count(middle, add_special_tokens=False) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def uses_special_tokens(folder: Path | None, model_type: str) -> bool:
    """Tell whether a model reads special tokens around a sequence.

    A fine-tuning run says so in its ``config.yaml``; otherwise it is a habit of the family.

    Parameters
    ----------
    folder
        Folder of the model; None for a model in memory.
    model_type
        That of its configuration.
    """
    from megabase.models.families import family_of

    family = family_of(model_type)
    habit = family is not None and family.name in _WITH_SPECIALS
    if folder is None:
        return habit
    for place in (folder, *folder.resolve().parents[:2]):
        file = place / "config.yaml"
        if file.is_file():
            settings = parse_yaml(read_text(file, InputError), file, InputError)
            head = settings.get("head") if isinstance(settings, dict) else None
            wanted = head.get("special_tokens", "auto") if isinstance(head, dict) else "auto"
            return habit if wanted == "auto" else wanted == "yes"
    return habit
