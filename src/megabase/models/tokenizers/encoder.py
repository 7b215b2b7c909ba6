"""From base codes to the tokens of a model, whatever its tokenizer."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.models.tokenizers.character import DNATokenizer
from megabase.models.tokenizers.table import LetterTokenizer

_PROBE = "ACGTACGTTGCATGCA"
"""Tokens of this text show which special tokens stand around a sequence; every k fits into it."""
_MOST_BASES = 16
"""More bases than any k-mer has: where the search for the longest sequence that fits begins."""


@dataclass(frozen=True)
class _TokenBatch:
    """Some sequences as tokens, padded on the right."""

    ids: Tensor  # int64 (rows, tokens)
    real: Tensor  # bool (rows, tokens): not padding
    bases: Tensor  # bool (rows, tokens): neither padding nor special tokens
    padded: bool  # whether there is padding: looking at `real` might wait for a GPU

    def inputs(self) -> dict[str, Tensor]:
        """Give the arguments of a forward pass; a mask only when something is padded."""
        mask = {"attention_mask": self.real.long()} if self.padded else {}
        return {"input_ids": self.ids, **mask}


class TokenEncoder:
    """Turns base codes into tokens, with special tokens around each sequence if wanted.

    Attributes: ``per_base``, whether every base is one token; ``before``, special tokens in front
    of a sequence, and ``extra``, all of them; ``pad_id``, which fills shorter rows; ``size`` of the
    vocabulary.
    """

    def __init__(self, tokenizer: Any, special_tokens: bool = False) -> None:
        self.tokenizer: Any = tokenizer
        self.per_base = isinstance(tokenizer, (DNATokenizer, LetterTokenizer))
        self._table = alphabet.TOKEN_ID_OF_CODE if isinstance(tokenizer, DNATokenizer) else None
        bare = self._ids(_PROBE, False)
        full = self._ids(_PROBE, True) if special_tokens else bare
        start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        self._before, self._after = full[:start], full[start + len(bare) :]
        self.before = len(self._before)
        self.extra = len(full) - len(bare)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.size = len(tokenizer.get_vocab())

    def _ids(self, text: str, specials: bool) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=specials)
        return [int(i) for i in found["input_ids"]]

    def encode(self, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Give the tokens of base codes (length,), special tokens included."""
        return self._surrounded(self._look_up(codes))

    def row(self, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Encode one sequence as :meth:`encode` does; :class:`InputError` if it gives no token."""
        found = self._look_up(codes)
        if not len(found):
            raise InputError(
                f"a sequence of {len(codes):,} bases gives no token of this model; leave it out"
            )
        return self._surrounded(found)

    def _surrounded(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        return np.concatenate([self._before, ids, self._after]).astype(np.int64)

    def _look_up(self, codes: NDArray[np.uint8]) -> NDArray[Any]:
        """Take the quickest way from codes to ids that the tokenizer has."""
        if self._table is not None:
            return self._table[codes]
        if hasattr(self.tokenizer, "ids_from_codes"):
            overlapping = self.tokenizer.stride == 1
            if len(codes) < (self.tokenizer.k if overlapping else 1):
                return np.zeros(0, dtype=np.int64)
            return self.tokenizer.ids_from_codes(torch.tensor(codes)[None])[0].numpy()
        return np.array(self._ids(alphabet.decode(codes), False), dtype=np.int64)

    def batch(self, codes: NDArray[np.uint8], device: torch.device) -> _TokenBatch:
        """Encode rows of codes, uint8 (rows, length), padded on the right with padding codes."""
        if self._table is not None and not self.extra:
            ids = torch.from_numpy(self._table[codes].astype(np.int64)).to(device)
            known = (codes & alphabet.BASE_BITS) != alphabet.PAD
            real = torch.from_numpy(known).to(device)
            return _TokenBatch(ids, real, real, not known.all())
        lengths = ((codes & alphabet.BASE_BITS) != alphabet.PAD).sum(axis=1)
        rows = [self.row(row[:length]) for row, length in zip(codes, lengths, strict=True)]
        width = max(map(len, rows))
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        real, bases = np.zeros((2, *ids.shape), dtype=bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            real[number, : len(row)] = True
            bases[number, self.before : len(row) - len(self._after)] = True
        arrays = (torch.from_numpy(array).to(device) for array in (ids, real, bases))
        return _TokenBatch(*arrays, padded=not real.all())

    def fits(self, codes: NDArray[np.uint8], longest: int | None) -> bool:
        """Tell whether a sequence fits a model of this many positions; None means no limit."""
        if longest is None:
            return True
        return len(codes if self.per_base else self._look_up(codes)) + self.extra <= longest

    def room(self, tokens: int) -> int | None:
        """Give the longest sequence in bases that fits; None when that depends on the sequence."""
        room = tokens - self.extra
        if self.per_base:
            return max(1, room)
        if not hasattr(self.tokenizer, "token_count"):
            return None
        low, high = 1, _MOST_BASES * room
        while low < high:  # the count never falls by more than the tail of single bases
            middle = (low + high + 1) // 2
            fits = self.tokenizer.token_count(middle, add_special_tokens=False) <= room
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def bases_for(self, tokens: int) -> int:
        """Give the length in bases of a sequence that fits for certain."""
        return self.room(tokens) or max(1, tokens - self.extra)  # a token is one base or more
