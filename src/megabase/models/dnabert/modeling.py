"""DNABERT (Ji et al. 2021): the BERT of transformers, with what k-mers need around it.

The classes are transformers' own, under a configuration that knows its k-mers, so the published
weights and key names load unchanged. Added: an honest limit on the input length, long inputs in
pieces, and parameter groups.
"""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput

from megabase.models.dnabert.configuration import DNABERTConfig
from megabase.models.forward import (
    LossOptions,
    add_loss,
    finish,
    library_arguments,
    refuse_rest,
    sequence_loss,
    token_loss,
)
from megabase.models.supervised import check_length, grouped_parameters

__all__ = ["DNABERTForMaskedLM", "DNABERTForSequenceClassification", "DNABERTModel"]


class _Limits(nn.Module):
    """Length check and parameter groups, for every class below."""

    config: DNABERTConfig
    library_class: type[nn.Module]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the BERT of transformers.

        Parameters
        ----------
        input_ids
            int64 (batch, tokens); or give ``inputs_embeds``.
        attention_mask
            (batch, tokens), 1 for real tokens.
        token_type_ids
            (batch, tokens), all 0 for single sequences.
        **kwargs
            What else transformers' class takes.

        Returns
        -------
        ModelOutput
            As the class of transformers gives it.

        Raises
        ------
        InputError
            For more tokens than ``config.max_position_embeddings``.
        ConfigError
            For an argument that transformers' class cannot honor.
        """
        given = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
        if given is not None:
            config = self.config
            check_length(
                given.shape[1],
                config.max_position_embeddings,
                f"this {config.k}-mer DNABERT",
                f"shorten the sequences to {config.max_bases} bases (truncation=True does), or "
                "classify with long_inputs='pieces' in configuration and tokenizer",
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            **library_arguments(self, self.library_class, kwargs),
        )

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Give parameters for the optimizer; biases and layer norms do not decay, as published."""
        return grouped_parameters(self, lr, weight_decay)


class DNABERTModel(_Limits, BertModel):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Encoder and pooler."""

    library_class = BertModel
    config_class = DNABERTConfig
    config: DNABERTConfig  # pyright: ignore[reportIncompatibleVariableOverride]


class DNABERTForMaskedLM(_Limits, BertForMaskedLM):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Encoder with a head that predicts hidden k-mers."""

    library_class = BertForMaskedLM
    config_class = DNABERTConfig
    config: DNABERTConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predict hidden k-mers; see :class:`DNABERTModel` for the inputs.

        Parameters
        ----------
        input_ids, attention_mask, token_type_ids, **kwargs
            As for the model.
        labels
            Token ids (batch, tokens); -100 takes no part.

        Returns
        -------
        MaskedLMOutput
        """
        options = LossOptions(kwargs.pop("num_items_in_batch", None))
        result = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is None:
            return result
        return add_loss(result, partial(token_loss, labels=labels, options=options))


class DNABERTForSequenceClassification(_Limits, BertForSequenceClassification):
    """Encoder with a linear head on the pooled ``[CLS]``."""

    library_class = BertForSequenceClassification
    config_class = DNABERTConfig
    config: DNABERTConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Score sequences.

        Parameters
        ----------
        input_ids
            int64 (batch, tokens). With ``config.long_inputs == "pieces"`` any number of tokens:
            every ``config.max_position_embeddings`` of them are one piece.
        attention_mask
            (batch, tokens), 1 for real tokens.
        token_type_ids
            (batch, tokens), all 0 for single sequences.
        labels
            Class numbers (batch,), or numbers (batch, labels); see ``config.problem_type``.
        **kwargs
            What transformers' class takes.

        Returns
        -------
        SequenceClassifierOutput

        Raises
        ------
        InputError
            For more tokens than ``config.max_position_embeddings``, unless they may be in pieces.
        """
        room = self.config.max_position_embeddings
        options = LossOptions(kwargs.pop("num_items_in_batch", None))
        if (
            self.config.long_inputs == "pieces"
            and input_ids is not None
            and input_ids.shape[1] > room
        ):
            return_dict = kwargs.pop("return_dict", None)
            refuse_rest(self, kwargs)
            logits = self._score_pieces(input_ids, attention_mask, room)
            output = SequenceClassifierOutput(logits=cast("torch.FloatTensor", logits))
            result = finish(self, output, return_dict)
        else:
            result = super().forward(input_ids, attention_mask, token_type_ids, **kwargs)
        if labels is None:
            return result
        loss = partial(sequence_loss, labels=labels, config=self.config, options=options)
        return add_loss(result, loss)

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
