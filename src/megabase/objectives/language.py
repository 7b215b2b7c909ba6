"""Language-model objectives on windows of DNA: next-base prediction and masked bases."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from megabase.data import vocabulary
from megabase.data.hashing import FIRST, GOLDEN, SECOND
from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.objectives.base import Batch, Output, register_objective, score_targets


def _check_weight(weight: float) -> None:
    if weight < 0:
        raise InputError(f"soft_mask_weight must not be negative, found {weight}")


def _code_weights(
    codes: Tensor, *, soft_mask_weight: float, n_weight: float, padding_weight: float
) -> Tensor:
    """Give the loss weight of each target base of codes (n, length), as float32.

    Upper-case A, C, G, T weigh 1, lower-case ones `soft_mask_weight`.
    """
    bases = codes & alphabet.BASE_BITS
    weights = torch.where((codes & alphabet.SOFT_MASK) != 0, soft_mask_weight, 1.0)
    others = torch.where(bases == alphabet.N, n_weight, padding_weight)
    return torch.where(bases <= alphabet.T, weights, others).float()


class _OfTokens:
    """Compares logits with what :meth:`prepare` gives: inputs, targets and weights."""

    part: Callable[[int], slice] | None = None
    """Positions that this process reads of a window of some length, where several share it; the
    sums of all of them are those of the window. None: all."""

    n_as_padding: bool

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Turn a batch into input ids, targets and weights, each (n, length)."""
        raise NotImplementedError

    def _ids(self, codes: Tensor) -> Tensor:
        ids = vocabulary.codes_to_ids(codes)
        return ids.where(ids != vocabulary.N_ID, vocabulary.PAD_ID) if self.n_as_padding else ids

    def __call__(self, model: Any, batch: Batch) -> Output:
        """Compare the logits (n, length, vocabulary) of a model with the targets."""
        # Whole windows first: which base is a target, or hidden, depends on its place in them.
        input_ids, targets, weights = self.prepare(batch)
        at = slice(None) if self.part is None else self.part(input_ids.shape[1])
        logits = model(input_ids=input_ids[:, at]).logits
        return score_targets(logits, targets[:, at], weights[:, at])


@dataclass(kw_only=True, eq=False)
class CausalLM(_OfTokens):
    """Cross entropy of each base given the bases before it.

    A window of ``length + 1`` bases gives ``length`` positions: all but the last base go in, all
    but the first are targets. By default there are no special tokens, and N and padding are read
    but are not targets. The HyenaDNA repository counts both, with special tokens.
    """

    soft_mask_weight: float = 1.0
    """Loss weight of targets in lower case (repeats); 0 leaves them out."""
    include_n: bool = False
    """Count N as a target like a base."""
    include_padding: bool = False
    """Count padding as a target like a base."""
    n_as_padding: bool = False
    """Read N as the padding token, and treat it as padding among the targets."""
    special_tokens: Literal["none", "published"] = "none"
    """published: the separator replaces the last base, so the last target is the separator, as if
    one ended every window. In a row with padding on the left no base is lost: the padding becomes
    one shorter."""

    extra_bases = 1
    both_sides = False

    def __post_init__(self) -> None:
        if self.special_tokens not in ("none", "published"):
            raise InputError(
                f'special_tokens must be "none" or "published", found {self.special_tokens!r}'
            )
        _check_weight(self.soft_mask_weight)

    def _weights(self, codes: Tensor) -> Tensor:
        padding = float(self.include_padding)
        return _code_weights(
            codes,
            soft_mask_weight=self.soft_mask_weight,
            n_weight=padding if self.n_as_padding else float(self.include_n),
            padding_weight=padding,
        )

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Turn ``codes`` uint8 (n, length + 1) and ``reverse`` (n,) into a comparison.

        Inputs, targets and weights are int64, int64 and float32, each (n, length).
        """
        codes = vocabulary.reverse_complement_codes(batch["codes"], batch["reverse"])
        if self.special_tokens == "none":
            ids = self._ids(codes)
            return ids[:, :-1], ids[:, 1:], self._weights(codes[:, 1:])
        padded = (codes[:, :1] & alphabet.BASE_BITS) == alphabet.PAD
        codes = torch.where(padded, codes[:, 1:], codes[:, :-1])
        ids, weights = self._ids(codes), self._weights(codes[:, 1:])
        separator = torch.full_like(ids[:, :1], vocabulary.SEP_ID)
        one = torch.ones(ids.shape[0], 1, dtype=weights.dtype, device=weights.device)
        return ids, torch.cat((ids[:, 1:], separator), 1), torch.cat((weights, one), 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


# The mixer of megabase.data.hashing, on tensors: torch has no unsigned 64-bit arithmetic, but
# signed products wrap to the same bits, and a shift becomes a logical one under a mask.
_GOLDEN, _FIRST, _SECOND = map(_signed, (GOLDEN, FIRST, SECOND))


def _shift_right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _position_bits(seeds: Tensor, length: int) -> Tensor:
    """Give 64 random bits to each position of each row, as int64 (n, length)."""
    counter = torch.arange(1, length + 1, device=seeds.device, dtype=torch.int64)
    z = seeds[:, None] + counter * _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


@dataclass(kw_only=True, eq=False)
class MaskedLM(_OfTokens):
    """Cross entropy of hidden bases, given everything around them.

    Which positions are hidden is a hash of the sequence's own ``mask_seed`` and the position:
    the same for any number of processes and after a resume, different for each sequence number.
    """

    probability: float = 0.15
    """Share of positions to pick as targets."""
    masked: float = 0.8
    """Share of the picked positions that become the mask token."""
    replaced: float = 0.1
    """Share of them that become a random token; the rest is unchanged."""
    soft_mask_weight: float = 1.0
    """Loss weight of targets in lower case."""
    replacements: Literal["bases", "published"] = "bases"
    """bases: random tokens are A, C, G or T, and only bases are picked. published: random tokens
    are any id of the vocabulary, special ones included, and N and padding are picked (and hidden)
    too, but are not targets (Caduceus repository)."""
    n_as_padding: bool = False
    """Read N as the padding token, as the Caduceus repository always does."""

    extra_bases = 0
    both_sides = True

    def __post_init__(self) -> None:
        masked, replaced = self.masked, self.replaced
        if not 0 < self.probability <= 1:
            raise InputError(f"probability must lie in (0, 1], found {self.probability}")
        if masked < 0 or replaced < 0 or masked + replaced > 1 + 1e-9:
            raise InputError(
                "masked and replaced are shares of the picked positions: neither may be negative, "
                f"nor their sum above 1; found {masked} and {replaced}"
            )
        _check_weight(self.soft_mask_weight)
        if self.replacements not in ("bases", "published"):
            raise InputError(
                f'replacements must be "bases" or "published", found {self.replacements!r}'
            )

    def _mask(self, ids: Tensor, eligible: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Hide some positions; give the ids, and which were picked as targets."""
        bits = _position_bits(seeds, ids.shape[1])
        # Three numbers from one hash: 24 bits, 24 bits and 16 bits.
        chance = _shift_right(bits, 40).float() * 2.0**-24
        action = (_shift_right(bits, 16) & 0xFFFFFF).float() * 2.0**-24
        below = vocabulary.VOCABULARY_SIZE if self.replacements == "published" else 4
        random = ((bits & 0xFFFF) * below) >> 16
        if self.replacements == "bases":
            random = random + alphabet.BASE_TOKEN_IDS[0]
        masked, replaced = action < self.masked, action < self.masked + self.replaced
        picked = eligible & (chance < self.probability)
        hidden = torch.where(picked & masked, vocabulary.MASK_ID, ids)
        return torch.where(picked & ~masked & replaced, random, hidden), picked

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Turn ``codes`` uint8 (n, length), ``reverse`` and ``mask_seed`` (n,) into a comparison.

        Inputs, targets and weights are int64, int64 and float32, (n, length): hidden positions are
        masked or replaced, targets are the tokens that were there, and weights are 0 where no base
        was hidden.
        """
        codes = vocabulary.reverse_complement_codes(batch["codes"], batch["reverse"])
        ids, bases = self._ids(codes), (codes & alphabet.BASE_BITS) <= alphabet.T
        eligible = torch.ones_like(bases) if self.replacements == "published" else bases
        hidden, picked = self._mask(ids, eligible, batch["mask_seed"])
        weights = _code_weights(
            codes, soft_mask_weight=self.soft_mask_weight, n_weight=0.0, padding_weight=0.0
        )
        return hidden, ids, torch.where(picked, weights, 0.0)


register_objective("causal_lm", CausalLM)
register_objective("masked_lm", MaskedLM)
