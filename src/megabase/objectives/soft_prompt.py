"""Answers by label tokens: the next token after a separator is the letter of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.classification import LabelledOutput

__all__ = ["LabelTokens", "strict_accuracy"]


class LabelTokens:
    """Cross entropy of the token that stands for the class.

    Parameters
    ----------
    label_ids
        Token id of each class.
    restricted
        Compare the tokens of the classes only. False, the published way: the softmax runs over all
        logits, so the model also learns that one of these letters is due.

    Notes
    -----
    Called with a :class:`megabase.models.adapt.prompting.PromptedModel` (anything whose output has
    ``token_logits``, one row for each sequence) and a batch of ``input_ids``, ``labels`` and maybe
    ``attention_mask``. With twice as many sequences as labels, the second half are the reverse
    complements, and the logits are averaged. ``outputs`` are the logits of all tokens.

    Source: ``evals/soft_prompting_genomics.py`` of HazyResearch/hyena-dna. Its training without
    solved examples reads the logits one position too early (at the last base, and not at the
    separator, where its evaluation reads them); here both read them at the separator.
    """

    extra_bases = 0
    unit = "sequences"

    def __init__(self, label_ids: Sequence[int], *, restricted: bool = False) -> None:
        if len(label_ids) < 2 or len(set(label_ids)) != len(label_ids):
            raise InputError(f"expected two or more different label tokens, found {label_ids}")
        self.label_ids = tuple(label_ids)
        self.restricted = restricted

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> LabelledOutput:
        """Run the model on the batch."""
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"]}
        if "attention_mask" in batch:
            inputs["attention_mask"] = batch["attention_mask"]
        labels = batch["labels"]
        logits: Tensor = model(**inputs).token_logits
        if logits.shape[0] == 2 * labels.shape[0]:
            logits = logits.unflatten(0, (2, -1)).mean(dim=0)
        return self.compare(logits, labels)

    def compare(self, logits: Tensor, labels: Tensor) -> LabelledOutput:
        """Take the loss of token logits (n, vocabulary) against class numbers (n,)."""
        if logits.ndim != 2 or logits.shape[0] != labels.shape[0]:
            raise InputError(
                f"the model gave token logits of shape {tuple(logits.shape)} for "
                f"{labels.shape[0]} labels"
            )
        ids = torch.tensor(self.label_ids, device=logits.device)
        letters = logits[:, ids]
        if self.restricted:
            losses = F.cross_entropy(letters, labels, reduction="none")
        else:
            losses = F.cross_entropy(logits, ids[labels], reduction="none")
        said = logits.detach()
        metrics = {
            "targets": torch.ones_like(losses).sum(),
            "correct": (said[:, ids].argmax(dim=1) == labels).float().sum(),
            "strict": (said.argmax(dim=1) == ids[labels]).float().sum(),
        }
        count = torch.ones_like(losses.detach()).sum()
        return LabelledOutput(losses.sum(), count, metrics, said)


def strict_accuracy(
    outputs: npt.NDArray[Any], labels: npt.NDArray[Any], label_ids: Sequence[int]
) -> float:
    """Give the share of answers whose largest logit of all tokens is the right letter.

    Parameters
    ----------
    outputs
        Logits of all tokens, (n, vocabulary).
    labels
        Class numbers (n,).
    label_ids
        Token id of each class.
    """
    return float((outputs.argmax(axis=1) == np.asarray(label_ids)[labels]).mean())
