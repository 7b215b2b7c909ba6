"""DNABERT (Ji et al. 2021): the BERT of transformers, with what k-mers need around it.

The classes are transformers' own, under a configuration that knows its k-mers, so the published
weights and key names load unchanged. Added: an honest limit on the input length, long inputs in
pieces, and parameter groups.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput

from megabase.models.base import refuse_rest
from megabase.models.bert import BertLike
from megabase.models.dnabert.configuration import DNABERTConfig


class _DNABERT(BertLike):
    config_class = DNABERTConfig
    config: DNABERTConfig

    def _describe_limit(self) -> tuple[str, str]:
        config = self.config
        return (
            f"this {config.k}-mer DNABERT",
            f"shorten the sequences to {config.max_bases} bases (truncation=True does), or "
            "classify with long_inputs='pieces' in configuration and tokenizer",
        )


class DNABERTModel(_DNABERT, BertModel):  # pyright: ignore
    """Encoder and pooler."""

    library_class = BertModel


class DNABERTForMaskedLM(_DNABERT, BertForMaskedLM):  # pyright: ignore
    """Encoder with a head that predicts hidden k-mers."""

    library_class = BertForMaskedLM


class DNABERTForSequenceClassification(_DNABERT, BertForSequenceClassification):  # pyright: ignore
    """Encoder with a linear head on the pooled ``[CLS]``.

    With ``config.long_inputs == "pieces"`` an input may have any number of tokens: every
    ``config.max_position_embeddings`` of them are one piece.
    """

    library_class = BertForSequenceClassification

    def _run(
        self, ids: Tensor | None, mask: Tensor | None, types: Tensor | None, **kwargs: Any
    ) -> Any:
        room = self.config.max_position_embeddings
        if self.config.long_inputs != "pieces" or ids is None or ids.shape[1] <= room:
            return super()._run(ids, mask, types, **kwargs)
        refuse_rest(self, kwargs)
        logits = cast("torch.FloatTensor", self._score_pieces(ids, mask, room))
        return SequenceClassifierOutput(logits=logits)

    def _score_pieces(self, ids: Tensor, mask: Tensor | None, room: int) -> Tensor:
        """Average the pooled vectors of pieces of `room` tokens; empty pieces do not count."""
        batch, length = ids.shape
        missing = -length % room
        mask = torch.ones_like(ids) if mask is None else mask
        ids = F.pad(ids, (0, missing), value=self.config.pad_token_id or 0).reshape(-1, room)
        mask = F.pad(mask, (0, missing)).reshape(-1, room)
        real = mask.any(dim=1)
        # An empty piece attends to its first position, so that nothing is divided by zero.
        first = torch.arange(room, device=mask.device) == 0
        seen = torch.where(real[:, None], mask, first.to(mask.dtype))
        pooled = self.bert(ids, attention_mask=seen, return_dict=True).pooler_output
        weight = real.to(pooled.dtype).reshape(batch, -1, 1)
        mean = (pooled.reshape(batch, -1, pooled.shape[-1]) * weight).sum(1) / weight.sum(1)
        return self.classifier(self.dropout(mean))
