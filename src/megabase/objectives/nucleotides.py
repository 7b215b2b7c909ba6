"""Loss and counts of a class for every nucleotide.

Figures over a whole data set need neither its outputs nor its labels: what they depend on is
counted in a table of fixed size, which adds up over batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.data.base_labels import IGNORED
from megabase.errors import InputError

__all__ = [
    "SCORE_BINS",
    "SCORE_LIMIT",
    "NucleotideLabels",
    "NucleotideOutput",
    "align_strands",
    "count_table",
    "table_size",
]

SCORE_BINS = 1 << 16
"""Bins of the log odds of a class."""
SCORE_LIMIT = 32.0
"""Log odds beyond this, on either side, are counted as this."""


class NucleotideOutput(NamedTuple):
    """Sums over a batch, and what the model said."""

    loss_sum: Tensor
    """0-d float32: weighted sum of the losses; carries the gradient."""
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    """0-d float32: sum of the weights of the targets."""
    metrics: dict[str, Tensor]
    """0-d sums: ``targets`` (labelled bases) and ``correct``."""
    outputs: Tensor
    """float32 (n, length, K) logits, averaged over the strands, without gradient."""
    table: Tensor | None = None
    """int64 (size,): result of :func:`count_table`, when it was asked for."""


class NucleotideLabels:
    """Compare a model's output for every base with its class: cross entropy.

    Parameters
    ----------
    class_weights
        Weight of each class.
    label_smoothing
        Share of the target spread over all classes.
    tabulate
        Fill ``table``, for evaluation.

    Notes
    -----
    Called with a model and a batch of ``input_ids``, ``labels`` (n, length) and maybe
    ``attention_mask``. When there are twice as many sequences as rows of labels, the second half
    are the reverse complements of the first; their logits are turned around and averaged with
    those of the first. A causal model sees only what lies before a base; the other strand brings
    what lies after it.
    """

    extra_bases = 0
    unit = "bases"

    def __init__(
        self,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        tabulate: bool = False,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; expected 0 to below 1")
        self.class_weights = None if class_weights is None else torch.tensor(list(class_weights))
        self.label_smoothing = label_smoothing
        self.tabulate = tabulate

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> NucleotideOutput:
        """Run the model on the batch.

        Raises
        ------
        InputError
            When the model gives another number of positions or classes than there are labels or
            weights.
        """
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
        mask = batch.get("attention_mask")
        if mask is not None:
            inputs["attention_mask"] = mask
        labels = batch["labels"]
        logits: Tensor = model(**inputs).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if logits.shape[0] == 2 * labels.shape[0]:
            logits = align_strands(logits, mask)
        return self.compare(logits, labels)

    def compare(self, logits: Tensor, labels: Tensor) -> NucleotideOutput:
        """Take the loss of logits (n, length, K) against labels (n, length)."""
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise InputError(
                f"the model gave outputs of shape {tuple(logits.shape)} for labels of shape "
                f"{tuple(labels.shape)}; every base needs one answer"
            )
        weights = self.class_weights
        if weights is not None:
            if len(weights) != logits.shape[2]:
                raise InputError(
                    f"{len(weights)} class weights for a model with {logits.shape[2]} classes"
                )
            weights = self.class_weights = weights.to(logits)
        known = labels != IGNORED
        scores, targets = logits[known], labels[known]
        loss = F.cross_entropy(
            scores, targets, weight=weights, label_smoothing=self.label_smoothing, reduction="sum"
        )
        count = known.sum().to(logits) if weights is None else weights[targets].sum()
        plain = scores.detach()
        metrics = {
            "targets": known.float().sum(),
            "correct": (plain.argmax(dim=1) == targets).float().sum(),
        }
        table = count_table(plain, targets) if self.tabulate else None
        return NucleotideOutput(loss, count, metrics, logits.detach(), table)


def align_strands(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Average both strands base by base.

    Parameters
    ----------
    logits
        (2 n, length, K): rows as given, then their reverse complements.
    mask
        (2 n, length), 1 at real tokens; None when all are.

    Returns
    -------
    Tensor
        (n, length, K) in the direction of the rows as given.
    """
    rows, length = logits.shape[0] // 2, logits.shape[1]
    forward, other = logits[:rows], logits[rows:]
    place = torch.arange(length, device=logits.device).expand(rows, length)
    if mask is None:
        turned = length - 1 - place
    else:
        real = mask[:rows].bool()
        # Base p of a row whose tokens are first .. last is base first + last - p of the other.
        first = torch.where(real, place, length).amin(dim=1, keepdim=True)
        last = torch.where(real, place, -1).amax(dim=1, keepdim=True)
        turned = (first + last - place).clamp(0, length - 1)
    index = turned[..., None].expand_as(other)
    return (forward + other.gather(1, index)) / 2


def table_size(classes: int) -> int:
    """Give the length of a table: confusion matrix, then two histograms for each class."""
    return classes * classes + 2 * classes * SCORE_BINS


def count_table(logits: Tensor, labels: Tensor) -> Tensor:
    """Count everything that the figures of a data set depend on.

    Parameters
    ----------
    logits
        (n, K) of labelled bases.
    labels
        int64 (n,) class numbers.

    Returns
    -------
    Tensor
        int64 (size,): pairs (true, said) in K x K cells, then for each class the log odds of that
        class against all others, in :data:`SCORE_BINS` equal bins from -32 to 32: first over bases
        of the other classes, then over its own. A bin is 0.001 wide; scores in one count as equal.
    """
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=classes * classes)
    number = torch.arange(classes, device=logits.device)
    odds = _log_odds(logits).clamp(-SCORE_LIMIT, SCORE_LIMIT)
    bins = ((odds + SCORE_LIMIT) * ((SCORE_BINS - 1) / (2 * SCORE_LIMIT))).round().long()
    own = (labels[:, None] == number).long()
    place = (2 * number + own) * SCORE_BINS + bins
    histograms = torch.bincount(place.flatten(), minlength=2 * classes * SCORE_BINS)
    return torch.cat([confusion, histograms])


def _log_odds(logits: Tensor) -> Tensor:
    """Give log p / (1 - p) of every class, (n, K)."""
    if logits.shape[1] == 2:
        return logits - logits.flip(1)
    columns = range(logits.shape[1])
    others = [logits[:, [j for j in columns if j != i]].logsumexp(dim=1) for i in columns]
    return logits - torch.stack(others, dim=1)
