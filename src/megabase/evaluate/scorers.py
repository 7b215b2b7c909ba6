"""How a model gives a probability to a base: from the bases before it, or from both sides."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from megabase.data.augment import codes_to_ids, is_base
from megabase.data.vocabulary import MASK_ID
from megabase.errors import InputError
from megabase.genome.alphabet import BASE_BITS, BASE_TOKEN_IDS

__all__ = ["CausalScorer", "MaskedScorer", "Scorer", "Scores"]

_FIRST, _LAST = BASE_TOKEN_IDS[0], BASE_TOKEN_IDS[-1]


class Scores(NamedTuple):
    """Negative log-probabilities in nats; both float32 (rows, targets), 0 where no base stands."""

    nll: Tensor
    """Over all columns of the logits."""
    nll_acgt: Tensor
    """Renormalised over A, C, G, T."""


class Scorer(Protocol):
    """Scores target bases of rows of DNA with a model."""

    objective: str
    """Name for results."""

    first: int
    """Positions at the start of a contig that cannot be targets."""

    def margins(self, window: int, targets: int) -> tuple[int, int]:
        """Give the bases to read before and after `targets` for windows of `window` positions."""
        ...

    def score(self, model: nn.Module, codes: Tensor, lead: int, targets: int) -> Scores:
        """Score columns ``lead .. lead + targets`` of codes, uint8 (rows, length)."""
        ...


class CausalScorer:
    """Every base from the bases before it in its window: one forward pass."""

    objective = "causal"
    first = 1

    def margins(self, window: int, targets: int) -> tuple[int, int]:
        """Give the bases before and after: the last target sees `window` bases."""
        return window - targets + 1, 0

    def score(self, model: nn.Module, codes: Tensor, lead: int, targets: int) -> Scores:
        """Score columns ``lead .. lead + targets`` of codes, uint8 (rows, length), lead >= 1."""
        logits = _logits(model, codes_to_ids(codes[:, :-1]))
        part = slice(lead, lead + targets)
        return _scores(logits[:, lead - 1 : lead - 1 + targets], codes[:, part])


class MaskedScorer:
    """Every base from both sides of its window, with the base itself hidden.

    A block is scored in several passes; each hides every `passes`-th target, so that a target
    never sees itself and sees all but a share of the others. The exponential of the mean is a
    pseudo-perplexity: the conditional probabilities of neighbours do not multiply to that of the
    sequence, and the number is comparable only with others of its kind.

    Parameters
    ----------
    fraction
        Share of the targets that a pass hides, about that of the training.
    mask_id
        Token that hides a base.

    Raises
    ------
    InputError
        For a share outside (0, 1].
    """

    objective = "masked"
    first = 0

    def __init__(self, fraction: float = 0.15, mask_id: int = MASK_ID) -> None:
        if not 0 < fraction <= 1:
            raise InputError(f"fraction must lie in (0, 1], found {fraction}")
        self.passes = math.ceil(1 / fraction)
        self.mask_id = mask_id

    def margins(self, window: int, targets: int) -> tuple[int, int]:
        """Give the bases before and after: the targets lie in the middle."""
        before = (window - targets) // 2
        return before, window - targets - before

    def score(self, model: nn.Module, codes: Tensor, lead: int, targets: int) -> Scores:
        """Score columns ``lead .. lead + targets`` of codes, uint8 (rows, length)."""
        ids = codes_to_ids(codes)
        part = slice(lead, lead + targets)
        column = torch.arange(ids.shape[1], device=ids.device) - lead
        inside = (column >= 0) & (column < targets)
        nll = torch.zeros(codes[:, part].shape, device=codes.device)
        nll_acgt = torch.zeros_like(nll)
        for turn in range(min(self.passes, targets)):
            hidden = inside & (column % self.passes == turn)
            logits = _logits(model, torch.where(hidden, self.mask_id, ids))[:, part]
            scores = _scores(logits, codes[:, part])
            nll = torch.where(hidden[part], scores.nll, nll)
            nll_acgt = torch.where(hidden[part], scores.nll_acgt, nll_acgt)
        return Scores(nll, nll_acgt)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    output: Any = model(input_ids=ids)
    logits: Tensor = output.logits
    if logits.shape[:2] != ids.shape or logits.shape[-1] <= _LAST:
        raise InputError(
            f"the model gave logits of shape {tuple(logits.shape)} for inputs of shape "
            f"{tuple(ids.shape)}; expected one row of more than {_LAST} columns for each position "
            "(one token for each base)"
        )
    return logits


def _scores(logits: Tensor, codes: Tensor) -> Scores:
    """Look the targets' probabilities up, in float32 whatever the model computes in."""
    scores = logits.float()
    known = is_base(codes)
    base = torch.where(known, codes & BASE_BITS, 0).long()[..., None]
    own = scores[..., _FIRST : _LAST + 1]
    target = own.gather(-1, base)[..., 0]
    nll = scores.logsumexp(-1) - target
    nll_acgt = own.logsumexp(-1) - target
    return Scores(torch.where(known, nll, 0.0), torch.where(known, nll_acgt, 0.0))
