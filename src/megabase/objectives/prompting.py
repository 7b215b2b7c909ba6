"""Answers by label tokens: the token after a separator stands for the class.

Source: ``evals/soft_prompting_genomics.py`` of HazyResearch/hyena-dna. Its training without
demonstrations reads the logits one position too early (at the last base, and not at the separator,
where its evaluation reads them); here both read them at the separator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.base import Batch, Output, at_least_float32, average_strands, run_model


class LabelTokens:
    """Cross entropy of the token that stands for the class, after a soft prompt.

    `restricted` compares the tokens of the classes only. By default, the published way, the softmax
    runs over all logits, so the model also learns that a label token is due.

    Called with a :class:`megabase.models.adapt.prompt.PromptedModel` (anything whose output has
    ``token_logits``, one row for each sequence) and a batch of ``input_ids``, ``labels`` and maybe
    ``attention_mask``. With twice as many sequences as labels, the second half are the reverse
    complements, and the logits are averaged. ``outputs`` are the logits of all tokens.
    """

    unit = "sequences"

    def __init__(self, label_ids: Sequence[int], *, restricted: bool = False) -> None:
        self.label_ids = _checked(label_ids)
        self.restricted = restricted

    def __call__(self, model: nn.Module, batch: Batch) -> Output:
        """Compare the model's label tokens with the labels of a batch."""
        labels = batch["labels"]
        logits = average_strands(run_model(model, batch).token_logits, labels)
        if logits.ndim != 2 or logits.shape[0] != labels.shape[0]:
            raise InputError(
                f"the model gave token logits of shape {tuple(logits.shape)} for "
                f"{labels.shape[0]} labels"
            )
        return _compare(logits[:, None], labels[:, None], self.label_ids, self.restricted)


class InContext:
    """Cross entropy of the label tokens, read at the separators before them.

    With `every_answer` the labels of the demonstrations count too, as in published training, not
    the query's alone. A `prompted` model is a ``PromptedModel``, which takes the positions; of a
    language model the logits are read there. Batches are those of
    :class:`megabase.data.batches.InContextBatches`. ``outputs`` are the logits of all tokens for
    the query.
    """

    unit = "sequences"

    def __init__(
        self,
        label_ids: Sequence[int],
        *,
        restricted: bool = False,
        every_answer: bool = False,
        prompted: bool = False,
    ) -> None:
        self.label_ids = _checked(label_ids)
        self.restricted = restricted
        self.every_answer = every_answer
        self.prompted = prompted

    def __call__(self, model: nn.Module, batch: Batch) -> Output:
        """Compare the model's label tokens with the labels of a batch."""
        ids, places, answers = batch["input_ids"], batch["places"], batch["answers"]
        if not self.every_answer:
            places, answers = places[:, -1:], answers[:, -1:]
        if self.prompted:
            logits: Tensor = model(input_ids=ids, positions=places).token_logits
        else:
            everywhere: Tensor = model(input_ids=ids).logits
            logits = everywhere[torch.arange(len(ids), device=ids.device)[:, None], places]
        return _compare(at_least_float32(logits), answers, self.label_ids, self.restricted)


def _checked(label_ids: Sequence[int]) -> tuple[int, ...]:
    if len(label_ids) < 2 or len(set(label_ids)) != len(label_ids):
        raise InputError(f"expected two or more different label tokens, found {label_ids}")
    return tuple(label_ids)


def _compare(logits: Tensor, labels: Tensor, label_ids: Sequence[int], restricted: bool) -> Output:
    """Take the loss of logits (n, m, vocabulary) at m answers against class numbers (n, m)."""
    ids = torch.tensor(label_ids, device=logits.device)
    scores, targets = (logits[..., ids], labels) if restricted else (logits, ids[labels])
    losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
    last, asked = logits.detach()[:, -1], labels[:, -1]
    metrics = {
        "targets": torch.ones_like(asked, dtype=torch.float32).sum(),
        "correct": (last[:, ids].argmax(dim=1) == asked).float().sum(),
        "strict": (last.argmax(dim=1) == ids[asked]).float().sum(),
    }
    count = torch.ones_like(losses.detach()).sum()
    return Output(losses.sum(), count, metrics, last)


def strict_accuracy(
    outputs: npt.NDArray[Any], labels: npt.NDArray[Any], label_ids: Sequence[int]
) -> float:
    """Give the share of outputs (n, vocabulary) whose largest logit is the right label token."""
    return float((outputs.argmax(axis=1) == np.asarray(label_ids)[labels]).mean())
