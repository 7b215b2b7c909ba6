"""Loss and counts of a class for every nucleotide.

Metrics over a whole data set need neither its outputs nor its labels: what they depend on is
counted in a table of fixed size, which adds up over batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.base import IGNORED, Batch, Output, at_least_float32, run_model

SCORE_BINS = 1 << 16
"""Bins of the log odds of a class: 0.001 wide, so metrics over ranks differ in the fifth digit."""
_SCORE_LIMIT = 32.0
"""Log odds beyond this, on either side, are counted as this: probabilities of 1e-14 are extreme."""


class NucleotideLabels:
    """Compare a model's output for every base with its class: cross entropy.

    `label_smoothing` is the share of the target spread over all classes; `tabulate` fills
    ``table``, for evaluation. Called with a model and a batch of ``input_ids``, ``labels`` (n,
    length) and maybe ``attention_mask``. When there are twice as many sequences as rows of labels,
    the second half are the reverse complements of the first; their logits are reversed and averaged
    with those of the first. A causal model sees only what lies before a base; the other strand
    brings what lies after it.
    """

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

    def __call__(self, model: nn.Module, batch: Batch) -> Output:
        """Compare the model's output for every base with the labels of a batch."""
        logits, labels = at_least_float32(run_model(model, batch).logits), batch["labels"]
        if logits.shape[0] == 2 * labels.shape[0]:
            logits = _align_strands(logits, batch.get("attention_mask"))
        return self.compare(logits, labels)

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of logits (n, length, K) against labels (n, length) that fit them."""
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
        return Output(loss, count, metrics, logits.detach(), table)


def _align_strands(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Average both strands, forward rows first: logits (2 n, length, K) to (n, length, K)."""
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


def count_table(logits: Tensor, labels: Tensor) -> Tensor:
    """Count everything that metrics depend on: int64 (K * K + 2 * K * SCORE_BINS,).

    First the pairs (true, predicted) in K x K cells, then for each class the log odds of that class
    against all others, in :data:`SCORE_BINS` equal bins from -32 to 32: first over bases of the
    other classes, then over its own. Scores in one bin count as equal.
    """
    classes = logits.shape[1]
    pairs = labels * classes + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=classes * classes)
    number = torch.arange(classes, device=logits.device)
    odds = _log_odds(logits).clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
    bins = ((odds + _SCORE_LIMIT) * ((SCORE_BINS - 1) / (2 * _SCORE_LIMIT))).round().long()
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
