"""What an objective is, and the arithmetic that all of them share.

Objectives give sums, never means: the engine adds the sums of all micro-batches and processes and
divides once by the global count, so the way a batch is split never changes the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megabase.data.augment import is_base, is_soft_masked, reverse_complement_codes
from megabase.errors import InputError
from megabase.genome import alphabet

__all__ = [
    "Model",
    "Objective",
    "ObjectiveOutput",
    "code_weights",
    "oriented_codes",
    "score_targets",
]

_IGNORED = -100
_FIRST_BASE, _LAST_BASE = alphabet.BASE_TOKEN_IDS[0], alphabet.BASE_TOKEN_IDS[-1]


class Model(Protocol):
    """A language model in the manner of transformers."""

    def __call__(self, *, input_ids: Tensor) -> Any:
        """Give an object whose ``logits`` are (batch, length, vocabulary)."""
        ...


class ObjectiveOutput(NamedTuple):
    """Sums over a batch.

    Parameters
    ----------
    loss_sum
        0-d float32: weighted sum of the losses of all targets, in nats; carries the gradient.
    count
        0-d float32: sum of the weights of the targets.
    metrics
        0-d float32 sums without gradient, to be added over batches. Token objectives give
        ``targets`` (targets with a weight above 0), ``nll`` (their unweighted negative log
        likelihood over all logit columns), ``correct`` (every other logit is below the
        target's), and ``acgt_targets``, ``acgt_nll``: the same over targets A, C, G, T with the
        probabilities renormalised over these four.
    """

    loss_sum: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    metrics: dict[str, Tensor]


class Objective(Protocol):
    """From a model and a batch to sums."""

    extra_bases: int
    """Bases beyond the model's input positions that a window must bring."""

    def __call__(self, model: Model, batch: dict[str, Tensor]) -> ObjectiveOutput:
        """Run the model on the batch."""
        ...


def oriented_codes(batch: dict[str, Tensor]) -> Tensor:
    """Give the codes of a batch with the marked rows turned to their reverse complement.

    Parameters
    ----------
    batch
        ``codes`` uint8 (n, length) and ``reverse`` bool (n,), on one device.

    Returns
    -------
    torch.Tensor
        uint8 (n, length).
    """
    return reverse_complement_codes(batch["codes"], batch["reverse"])


def code_weights(
    codes: Tensor, *, soft_mask_weight: float, n_weight: float, padding_weight: float
) -> Tensor:
    """Give the loss weight of each target base.

    Parameters
    ----------
    codes
        uint8 (n, length).
    soft_mask_weight
        Weight of A, C, G, T in lower case; upper case has 1.
    n_weight, padding_weight
        Weights of N and of padding.

    Returns
    -------
    torch.Tensor
        float32 (n, length).
    """
    weights = torch.where(is_soft_masked(codes), soft_mask_weight, 1.0)
    others = torch.where((codes & alphabet.BASE_BITS) == alphabet.N, n_weight, padding_weight)
    return torch.where(is_base(codes), weights, others).float()


def score_targets(logits: Tensor, targets: Tensor, weights: Tensor) -> ObjectiveOutput:
    """Compare logits with targets; softmax and sums are float32 even when the model is in less.

    Parameters
    ----------
    logits
        (n, length, vocabulary).
    targets
        int64 (n, length) token ids.
    weights
        float32 (n, length); a target of weight 0 counts nowhere and passes no gradient.

    Returns
    -------
    ObjectiveOutput

    Raises
    ------
    InputError
        When the model gives another number of positions than there are targets.
    """
    if logits.shape[:-1] != targets.shape:
        raise InputError(
            f"the model gave logits of shape {tuple(logits.shape)} for targets of shape "
            f"{tuple(targets.shape)}; they must agree in all but the last axis"
        )
    scores = logits if logits.dtype == torch.float64 else logits.float()
    counted = weights > 0
    nll = F.cross_entropy(
        scores.flatten(0, -2),
        torch.where(counted, targets, _IGNORED).flatten(),
        ignore_index=_IGNORED,
        reduction="none",
    ).view(targets.shape)
    with torch.no_grad():
        metrics = _metrics(scores.detach(), targets, counted, nll.detach())
    return ObjectiveOutput((nll * weights).sum(), weights.sum(), metrics)


def _metrics(scores: Tensor, targets: Tensor, counted: Tensor, nll: Tensor) -> dict[str, Tensor]:
    acgt = counted & (targets >= _FIRST_BASE) & (targets <= _LAST_BASE)
    own = scores.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    # -log p(t | ACGT) = log sum exp over A, C, G, T - the target's own logit. A sum over all
    # columns and the position of the largest would cost many times more.
    acgt_nll = scores[..., _FIRST_BASE : _LAST_BASE + 1].logsumexp(-1) - own
    correct = ((scores >= own[..., None]).sum(-1) == 1) & counted
    return {
        "targets": counted.float().sum(),
        "nll": nll.sum(),
        "correct": correct.float().sum(),
        "acgt_targets": acgt.float().sum(),
        "acgt_nll": torch.where(acgt, acgt_nll, 0.0).sum(),
    }
