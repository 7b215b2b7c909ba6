"""Next-token prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megabase.data.augment import codes_to_ids
from megabase.data.vocabulary import N_ID, PAD_ID, SEP_ID
from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.objectives.base import (
    Model,
    ObjectiveOutput,
    code_weights,
    oriented_codes,
    score_targets,
)

__all__ = ["CausalLM"]


class CausalLM:
    """Cross entropy of each base given the bases before it.

    A window of ``length + 1`` bases gives ``length`` positions: all but the last base go in, all
    but the first are targets. By default there are no special tokens, and N and padding are read
    but are no targets. :meth:`published` gives the way of the HyenaDNA repository.

    Parameters
    ----------
    soft_mask_weight
        Loss weight of targets in lower case (repeats); 1 treats them as any other, 0 leaves them
        out.
    include_n
        Count N as a target like a base.
    include_padding
        Count padding as a target like a base.
    n_as_padding
        Read N as the padding token, and treat it as padding among the targets.
    special_tokens
        "none", or "published": the separator takes the place of the last base, so the last target
        is the separator, as if a separator ended every window. In a row with padding on the left
        no base is lost: the padding gets one shorter.

    Raises
    ------
    InputError
        For an unknown option or a negative weight.
    """

    extra_bases = 1

    def __init__(
        self,
        *,
        soft_mask_weight: float = 1.0,
        include_n: bool = False,
        include_padding: bool = False,
        n_as_padding: bool = False,
        special_tokens: Literal["none", "published"] = "none",
    ) -> None:
        if special_tokens not in ("none", "published"):
            raise InputError(
                f'special_tokens must be "none" or "published", found {special_tokens!r}'
            )
        if soft_mask_weight < 0:
            raise InputError(f"soft_mask_weight must not be negative, found {soft_mask_weight}")
        self.soft_mask_weight = soft_mask_weight
        self.include_n = include_n
        self.include_padding = include_padding
        self.n_as_padding = n_as_padding
        self.special_tokens = special_tokens

    @classmethod
    def published(cls) -> CausalLM:
        """Give the published objective: a separator at the end, every target counted alike."""
        return cls(include_n=True, include_padding=True, special_tokens="published")

    def _weights(self, codes: Tensor) -> Tensor:
        padding = float(self.include_padding)
        return code_weights(
            codes,
            soft_mask_weight=self.soft_mask_weight,
            n_weight=padding if self.n_as_padding else float(self.include_n),
            padding_weight=padding,
        )

    def _ids(self, codes: Tensor) -> Tensor:
        ids = codes_to_ids(codes)
        return torch.where(ids == N_ID, PAD_ID, ids) if self.n_as_padding else ids

    def prepare(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Turn a batch into inputs, targets and weights.

        Parameters
        ----------
        batch
            ``codes`` uint8 (n, length + 1) and ``reverse`` bool (n,).

        Returns
        -------
        input_ids : torch.Tensor
            int64 (n, length).
        targets : torch.Tensor
            int64 (n, length).
        weights : torch.Tensor
            float32 (n, length).
        """
        codes = oriented_codes(batch)
        if self.special_tokens == "none":
            ids = self._ids(codes)
            return ids[:, :-1], ids[:, 1:], self._weights(codes[:, 1:])
        padded = (codes[:, :1] & alphabet.BASE_BITS) == alphabet.PAD
        codes = torch.where(padded, codes[:, 1:], codes[:, :-1])
        ids, weights = self._ids(codes), self._weights(codes[:, 1:])
        separator = torch.full_like(ids[:, :1], SEP_ID)
        one = torch.ones(ids.shape[0], 1, dtype=weights.dtype, device=weights.device)
        return ids, torch.cat((ids[:, 1:], separator), 1), torch.cat((weights, one), 1)

    def __call__(self, model: Model, batch: dict[str, Tensor]) -> ObjectiveOutput:
        """Run the model and compare its logits with the next tokens.

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
