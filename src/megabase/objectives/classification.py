"""Losses of labeled sequences: classes, several labels, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.base import Batch, Output, at_least_float32, average_strands, run_model


class SequenceLabels:
    """Compare a model's output for whole sequences with their labels.

    The loss is cross entropy for ``"classes"``, binary cross entropy of every label for
    ``"multi_label"`` (`class_weights` then weigh the positive answers), and squared error for
    ``"regression"``. `label_smoothing` is the share of the target spread over all classes, or over
    both answers of a label. `double_sigmoid` is the published two-class loss of the
    GenomicBenchmarks CNN: binary cross entropy for logits, applied to the output of a sigmoid.

    Called with a model and a batch of ``input_ids``, ``labels`` and maybe ``attention_mask``. When
    there are twice as many sequences as labels, the second half are the reverse complements of the
    first, and the two logits are averaged. Labels that are NaN count nowhere. With class weights
    the mean loss is that of :func:`torch.nn.functional.cross_entropy` over the whole global batch.
    """

    unit = "sequences"

    def __init__(
        self,
        kind: Literal["classes", "multi_label", "regression"],
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        double_sigmoid: bool = False,
    ) -> None:
        if kind not in ("classes", "multi_label", "regression"):
            raise InputError(f"kind is {kind!r}; expected classes, multi_label or regression")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; expected 0 to below 1")
        plain = class_weights is None and not label_smoothing
        if not plain and (kind == "regression" or double_sigmoid):
            raise InputError(
                "class weights and label smoothing are for classes and several labels, not for "
                "regression or the double sigmoid"
            )
        if double_sigmoid and kind != "classes":
            raise InputError("the double sigmoid is a loss of two classes")
        self.kind = kind
        self.class_weights = None if class_weights is None else torch.tensor(list(class_weights))
        self.label_smoothing = label_smoothing
        self.double_sigmoid = double_sigmoid

    def __call__(self, model: nn.Module, batch: Batch) -> Output:
        """Compare the model's output with the labels of a batch."""
        logits = at_least_float32(run_model(model, batch).logits)
        return self.compare(average_strands(logits, batch["labels"]), batch["labels"])

    def compare(self, logits: Tensor, labels: Tensor) -> Output:
        """Take the loss of logits (n, K) against labels (n,) or (n, K) that fit them."""
        fits = labels.shape == (logits.shape if labels.ndim == 2 else logits.shape[:1])
        if logits.ndim != 2 or not fits:
            raise InputError(
                f"the model gave outputs of shape {tuple(logits.shape)} for labels of shape "
                f"{tuple(labels.shape)}"
            )
        weights = self.class_weights
        if weights is not None:
            if len(weights) != logits.shape[1]:
                raise InputError(
                    f"{len(weights)} class weights for a model with {logits.shape[1]} outputs"
                )
            weights = self.class_weights = weights.to(logits)
        losses, counts, correct = (
            self._classes(logits, labels, weights)
            if self.kind == "classes"
            else self._numbers(logits, labels, weights)
        )
        known = torch.isfinite(labels) if labels.is_floating_point() else torch.ones_like(labels)
        metrics = {"targets": known.float().sum()}
        if correct is not None:
            metrics["correct"] = correct.float().sum()
        return Output(losses.sum(), counts.sum(), metrics, logits.detach())

    def _classes(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        correct = logits.detach().argmax(dim=1) == labels
        ones = torch.ones_like(logits[:, 0])
        if self.double_sigmoid:
            if logits.shape[1] != 2:
                raise InputError(
                    f"the double sigmoid is a loss of two classes, not of {logits.shape[1]}"
                )
            answer = torch.sigmoid(logits[:, 1] - logits[:, 0])
            target = labels.to(answer.dtype)
            losses = F.binary_cross_entropy_with_logits(answer, target, reduction="none")
            return losses, ones, correct
        losses = F.cross_entropy(
            logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
        )
        return losses, ones if weights is None else weights[labels], correct

    def _numbers(
        self, outputs: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        targets = labels.to(outputs.dtype)
        known = torch.isfinite(targets)
        targets = torch.where(known, targets, 0.0)
        if self.kind == "regression":
            losses, correct = (outputs - targets).square(), None
        else:
            soft = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            losses = F.binary_cross_entropy_with_logits(
                outputs, soft, pos_weight=weights, reduction="none"
            )
            correct = ((outputs.detach() > 0) == (targets > 0.5)) & known
        return torch.where(known, losses, 0.0), known.to(outputs.dtype), correct
