"""Caduceus as transformers models: the bare one, and with each head."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_outputs import MaskedLMOutput

from megabase.layers.rcps import RCPSHead
from megabase.models.caduceus.base import CaduceusModel, CaduceusPreTrainedModel
from megabase.models.caduceus.configuration import CaduceusConfig
from megabase.models.caduceus.heads import (
    CaduceusForSequenceClassification,
    CaduceusForTokenClassification,
)
from megabase.models.forward import finish, loss_options, token_loss

__all__ = [
    "CaduceusForMaskedLM",
    "CaduceusForSequenceClassification",
    "CaduceusForTokenClassification",
    "CaduceusModel",
]


class CaduceusForMaskedLM(CaduceusPreTrainedModel):
    """Caduceus with the head it is pretrained with, for masked tokens.

    Parameters
    ----------
    config
        The model's settings.
    """

    def __init__(self, config: CaduceusConfig, **_: Any) -> None:
        super().__init__(config)
        self.caduceus = CaduceusModel(config)
        rows = config.vocab_rows
        self.lm_head = (
            RCPSHead(config.d_model, rows, cast("list[int]", config.complement_map))
            if config.rcps
            else nn.Linear(config.d_model, rows, bias=False)
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Give the head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head, or the matrix of an equivariant one."""
        if isinstance(self.lm_head, RCPSHead) and not isinstance(new_embeddings, RCPSHead):
            self.lm_head.lm_head = cast("nn.Linear", new_embeddings)
        else:
            self.lm_head = cast("nn.Linear", new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Predict the token at every position from both sides.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds, output_hidden_states, return_dict
            As for the base model.
        labels
            Token ids to predict, shape (batch, length), each at its own position. The value -100
            (the library's habit) and ``config.pad_token_id`` (the published habit) take no part.
        loss_weights
            Weights of the labels in the mean, shape (batch, length); left as they are.

        Returns
        -------
        MaskedLMOutput
            ``logits`` of shape (batch, length, config.vocab_rows), rows past the vocabulary
            included; ``loss``, the mean cross entropy, when `labels` are given.
        """
        options = loss_options(self, rest)
        encoded = self.caduceus(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(encoded.last_hidden_state)
        loss = None
        if labels is not None:
            pad_id = self.config.pad_token_id
            loss = token_loss(logits, labels, options, loss_weights, pad_id)
        output = MaskedLMOutput(
            loss=cast("Any", loss), logits=logits, hidden_states=encoded.hidden_states
        )
        return finish(self, output, return_dict)
