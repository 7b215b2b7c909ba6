"""What an objective is, and the arithmetic that all of them share.

Objectives give sums, never means: the engine adds the sums of all micro-batches and processes and
divides once by the global count, so the way a batch is split never changes the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megabase.data.labeled import IGNORED
from megabase.errors import InputError
from megabase.genome import alphabet
from megabase.registry import Registry

_FIRST_BASE, _LAST_BASE = alphabet.BASE_TOKEN_IDS[0], alphabet.BASE_TOKEN_IDS[-1]  # adjacent ids

Batch = dict[str, Tensor]


class Output(NamedTuple):
    """Sums over a batch."""

    loss_sum: Tensor
    """0-d float32: weighted sum of the losses of all targets, in nats; carries the gradient."""
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    """0-d float32: sum of the weights of the targets."""
    metrics: dict[str, Tensor]
    """0-d float32 sums without gradient, to be added over batches: ``targets`` (known targets) and,
    except for regression, ``correct``. Language models also give ``nll`` (unweighted negative
    log-likelihood over all logit columns), ``acgt_targets`` and ``acgt_nll``: the same over targets
    A, C, G, T with the probabilities renormalized over these four."""
    outputs: Tensor | None = None
    """Of labels: float32 (n, K) or (n, length, K) logits or numbers, averaged over the strands,
    without gradient."""
    table: Tensor | None = None
    """Of nucleotide labels, when requested: int64 (size,) counts, for
    :func:`megabase.evaluate.metrics.measure_table`."""


Objective = Callable[[Any, Batch], Output]
"""``(model, batch) -> sums``. Its attribute ``unit`` names what it counts (tokens if it has none),
and that of a language model ``extra_bases`` the bases beyond the input that a window must bring."""


OBJECTIVES: Registry[Callable[..., Objective]] = Registry("objective", "megabase.objectives")
"""What makes each pretraining objective from its settings, by name."""


def register_objective(name: str, make: Callable[..., Objective]) -> None:
    """Make a pretraining objective known by name, for ``objective.name`` in the settings of a run.

    Parameters
    ----------
    name
        A name that is not taken; else a ConfigError.
    make
        Usually a class. It is called with ``objective.options``, and with those of
        ``soft_mask_weight``, ``special_tokens``, ``include_n`` and ``include_padding`` that it has
        parameters for; gives an objective with ``extra_bases``. Its attribute ``both_sides`` says
        whether the model must read both sides of a base (True), only earlier bases (False), or
        either (None, or missing).
    """
    OBJECTIVES.register(name, make)


def score_targets(logits: Tensor, targets: Tensor, weights: Tensor) -> Output:
    """Compare logits (n, length, vocabulary) with int64 token ids (n, length).

    A target of weight 0 counts nowhere and passes no gradient. Softmax and sums are float32 even
    when the model is in less. An InputError when the model gives another number of positions.
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
        torch.where(counted, targets, IGNORED).flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view(targets.shape)
    with torch.no_grad():
        metrics = _metrics(scores.detach(), targets, counted, nll.detach())
    return Output((nll * weights).sum(), weights.sum(), metrics)


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
