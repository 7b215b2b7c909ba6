"""Prediction of masked bases from both sides."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megabase.data.augment import codes_to_ids, is_base
from megabase.data.vocabulary import MASK_ID, N_ID, PAD_ID, VOCABULARY_SIZE
from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.objectives.base import (
    Model,
    ObjectiveOutput,
    code_weights,
    oriented_codes,
    score_targets,
)

__all__ = ["MaskedLM", "Masking"]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


# The mixer of megabase.data.hashing, on tensors: torch has no unsigned 64-bit arithmetic, but
# signed products wrap to the same bits, and a shift becomes a logical one under a mask.
_GOLDEN, _FIRST, _SECOND = map(
    _signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _shift_right(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)


def _position_bits(seeds: Tensor, length: int) -> Tensor:
    """Give 64 random bits to each position of each row, as int64 (n, length)."""
    counter = torch.arange(1, length + 1, device=seeds.device, dtype=torch.int64)
    z = seeds[:, None] + counter * _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


class Masking(NamedTuple):
    """Inputs with some positions hidden.

    Parameters
    ----------
    input_ids
        int64: ids with the picked positions masked, replaced or kept.
    picked
        bool, same shape: the positions whose original token is a target.
    """

    input_ids: Tensor
    picked: Tensor


def _hide(ids: Tensor, picked: Tensor, masked: Tensor, replaced: Tensor, random: Tensor) -> Masking:
    hidden = torch.where(picked & masked, MASK_ID, ids)
    return Masking(torch.where(picked & ~masked & replaced, random, hidden), picked)


class MaskedLM:
    """Cross entropy of hidden bases, given everything around them.

    Which positions are hidden is a hash of the sequence's own ``mask_seed`` and the position:
    the same for any number of processes and after a resume, different for each sequence number.

    Parameters
    ----------
    probability
        Share of positions to pick as targets.
    masked, replaced
        Shares of the picked positions that become the mask token, and a random token; the rest
        stays as it is.
    soft_mask_weight
        Loss weight of targets in lower case.
    replacements
        "bases": random tokens are A, C, G or T, and only bases are picked. "published": random
        tokens are any id of the vocabulary, special ones included, and N and padding are picked
        (and hidden) too, but are no targets (Caduceus repository).
    n_as_padding
        Read N as the padding token, as the Caduceus repository always does.

    Raises
    ------
    InputError
        For shares that are no shares.
    """

    extra_bases = 0

    def __init__(
        self,
        *,
        probability: float = 0.15,
        masked: float = 0.8,
        replaced: float = 0.1,
        soft_mask_weight: float = 1.0,
        replacements: Literal["bases", "published"] = "bases",
        n_as_padding: bool = False,
    ) -> None:
        if not 0 < probability <= 1:
            raise InputError(f"probability must lie in (0, 1], found {probability}")
        if masked < 0 or replaced < 0 or masked + replaced > 1 + 1e-9:
            raise InputError(
                "masked and replaced are shares of the picked positions: neither may be negative, "
                f"nor their sum above 1; found {masked} and {replaced}"
            )
        if soft_mask_weight < 0:
            raise InputError(f"soft_mask_weight must not be negative, found {soft_mask_weight}")
        if replacements not in ("bases", "published"):
            raise InputError(f'replacements must be "bases" or "published", found {replacements!r}')
        self.probability = probability
        self.masked = masked
        self.replaced = replaced
        self.soft_mask_weight = soft_mask_weight
        self.replacements = replacements
        self.n_as_padding = n_as_padding

    @classmethod
    def published(cls) -> MaskedLM:
        """Give the masking of the Caduceus repository."""
        return cls(replacements="published", n_as_padding=True)

    def _mask(self, ids: Tensor, eligible: Tensor, seeds: Tensor) -> Masking:
        bits = _position_bits(seeds, ids.shape[1])
        # Three numbers from one hash: 24 bits, 24 bits and 16 bits.
        chance = _shift_right(bits, 40).float() * 2.0**-24
        action = (_shift_right(bits, 16) & 0xFFFFFF).float() * 2.0**-24
        below = VOCABULARY_SIZE if self.replacements == "published" else 4
        random = ((bits & 0xFFFF) * below) >> 16
        if self.replacements == "bases":
            random = random + alphabet.BASE_TOKEN_IDS[0]
        masked, replaced = action < self.masked, action < self.masked + self.replaced
        return _hide(ids, eligible & (chance < self.probability), masked, replaced, random)

    def prepare(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Turn a batch into inputs, targets and weights.

        Parameters
        ----------
        batch
            ``codes`` uint8 (n, length), ``reverse`` bool (n,), ``mask_seed`` int64 (n,).

        Returns
        -------
        input_ids : torch.Tensor
            int64 (n, length), with positions hidden.
        targets : torch.Tensor
            int64 (n, length), the tokens that were there.
        weights : torch.Tensor
            float32 (n, length), 0 where nothing was hidden or no base was.
        """
        codes = oriented_codes(batch)
        ids, bases = codes_to_ids(codes), is_base(codes)
        if self.n_as_padding:
            ids = torch.where(ids == N_ID, PAD_ID, ids)
        eligible = torch.ones_like(bases) if self.replacements == "published" else bases
        masking = self._mask(ids, eligible, batch["mask_seed"])
        weights = code_weights(
            codes, soft_mask_weight=self.soft_mask_weight, n_weight=0.0, padding_weight=0.0
        )
        return masking.input_ids, ids, torch.where(masking.picked, weights, 0.0)

    def __call__(self, model: Model, batch: dict[str, Tensor]) -> ObjectiveOutput:
        """Run the model on the hidden sequence and compare its logits with what was hidden.

        Parameters
        ----------
        model
            Gives logits (n, length, vocabulary) for ``input_ids``.
        batch
            See :meth:`prepare`.

        Returns
        -------
        ObjectiveOutput
        """
        input_ids, targets, weights = self.prepare(batch)
        return score_targets(model(input_ids=input_ids).logits, targets, weights)
