"""Answers of a language model to questions with solved examples in front of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megabase.errors import InputError
from megabase.objectives.classification import LabelledOutput

__all__ = ["InContext"]


class InContext:
    """Cross entropy of the letters of the classes, read at the separators before them.

    Parameters
    ----------
    label_ids
        Token id of each class.
    restricted
        Compare the tokens of the classes only, not all logits (the published way).
    every_answer
        Whether the answers of the examples count too, as in published training, or the question's
        alone.
    prompted
        Whether the model is a ``PromptedModel``, which is told the
        places, or a language model, whose logits are read there.

    Notes
    -----
    Batches are those of :class:`megabase.data.in_context.InContextBatches`. Every loss is read at
    the separator, also without examples: the published training code reads it one position too
    early there. ``outputs`` are the logits of all tokens for the question.
    """

    extra_bases = 0
    unit = "sequences"

    def __init__(
        self,
        label_ids: Sequence[int],
        *,
        restricted: bool = False,
        every_answer: bool = False,
        prompted: bool = False,
    ) -> None:
        if len(label_ids) < 2 or len(set(label_ids)) != len(label_ids):
            raise InputError(f"expected two or more different label tokens, found {label_ids}")
        self.label_ids = tuple(label_ids)
        self.restricted = restricted
        self.every_answer = every_answer
        self.prompted = prompted

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> LabelledOutput:
        """Run the model on the batch."""
        ids, places, answers = batch["input_ids"], batch["places"], batch["answers"]
        if not self.every_answer:
            places, answers = places[:, -1:], answers[:, -1:]
        if self.prompted:
            logits: Tensor = model(input_ids=ids, places=places).token_logits
        else:
            everywhere: Tensor = model(input_ids=ids).logits
            rows = torch.arange(len(ids), device=ids.device)[:, None]
            logits = everywhere[rows, places]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tokens = torch.tensor(self.label_ids, device=logits.device)
        letters = logits[..., tokens]
        scores, targets = (letters, answers) if self.restricted else (logits, tokens[answers])
        losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none")
        said, asked = logits.detach()[:, -1], answers[:, -1]
        metrics = {
            "targets": torch.ones_like(asked, dtype=torch.float32).sum(),
            "correct": (said[:, tokens].argmax(dim=1) == asked).float().sum(),
            "strict": (said.argmax(dim=1) == tokens[asked]).float().sum(),
        }
        count = torch.ones_like(losses.detach()).sum()
        return LabelledOutput(losses.sum(), count, metrics, said)
