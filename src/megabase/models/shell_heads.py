"""The heads of the shell families: next token, sequence labels, nucleotide labels."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from megabase.layers.pooling import pool
from megabase.models.forward import (
    finish,
    loss_options,
    next_token_loss,
    sequence_loss,
    token_loss,
)
from megabase.models.generating import LetterGenerationMixin
from megabase.models.shell import ShellModel, ShellPreTrainedModel

__all__ = [
    "ShellForCausalLM",
    "ShellForSequenceClassification",
    "ShellForTokenClassification",
]


class _ShellHead(ShellPreTrainedModel):
    """A base model with something on top."""

    def _encode(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, arguments: dict[str, Any]
    ) -> BaseModelOutput:
        arguments = {**arguments, "return_dict": True}
        return self._base(input_ids=input_ids, attention_mask=attention_mask, **arguments)

    @property
    def _base(self) -> ShellModel:
        return cast("ShellModel", self.base_model)

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self._base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self._base.set_input_embeddings(value)


class ShellForCausalLM(LetterGenerationMixin, _ShellHead):
    """The base model with a next-token head."""

    lm_head: nn.Linear

    def get_output_embeddings(self) -> nn.Module:
        """Give the next-token head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the next-token head."""
        self.lm_head = cast("nn.Linear", new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        **rest: Any,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Predict the next token at every position.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds
            As for the base model.
        output_hidden_states, return_dict, output_attentions
            As for the base model.
        labels
            Token ids to predict, shape (batch, length), aligned with `input_ids`: they are shifted
            by one inside, the library's habit. The value -100 takes no part; pad tokens do unless
            they are set to it.

        Returns
        -------
        CausalLMOutput
            ``logits`` of shape (batch, length, config.vocab_rows), rows past the vocabulary
            included; ``loss``, the mean cross entropy, when `labels` are given.
        """
        options = loss_options(self, rest, next_token=True)
        encoded = self._encode(
            input_ids,
            attention_mask,
            {
                "inputs_embeds": inputs_embeds,
                "output_hidden_states": output_hidden_states,
                "output_attentions": output_attentions,
            },
        )
        logits = self.lm_head(encoded.last_hidden_state)
        loss = next_token_loss(logits, labels, options)
        output = CausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return finish(self, output, return_dict)


class ShellForSequenceClassification(_ShellHead):
    """The base model, pooled over positions, with a linear head."""

    score: nn.Linear

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        **rest: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify sequences.

        Parameters
        ----------
        input_ids, inputs_embeds, output_hidden_states, return_dict, output_attentions
            As for the base model.
        attention_mask
            1 at real tokens. When it is missing, tokens other than ``config.pad_token_id`` are
            real. Pooling ``hf`` looks at pad tokens only, never at the mask.
        labels
            Class numbers (batch,), floats (batch,) or (batch, 1) for regression, or 0/1 vectors
            (batch, num_labels), by ``config.problem_type`` or else by their number and type.

        Returns
        -------
        SequenceClassifierOutput
            ``logits`` of shape (batch, num_labels); ``loss`` when `labels` are given.
        """
        options = loss_options(self, rest)
        encoded = self._encode(
            input_ids,
            attention_mask,
            {
                "inputs_embeds": inputs_embeds,
                "output_hidden_states": output_hidden_states,
                "output_attentions": output_attentions,
            },
        )
        mask = attention_mask
        pad = self.config.pad_token_id
        by_tokens = mask is None or self.config.pooling == "hf"
        if by_tokens and input_ids is not None and pad is not None:
            mask = input_ids != pad
        pooled = pool(cast("Tensor", encoded.last_hidden_state), self.config.pooling, mask)
        logits = self.score(pooled)
        loss = None if labels is None else sequence_loss(logits, labels, self.config, options)
        output = SequenceClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return finish(self, output, return_dict)


class ShellForTokenClassification(_ShellHead):
    """The base model with a linear head at every position."""

    score: nn.Linear

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        **rest: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Classify every nucleotide.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds
            As for the base model.
        output_hidden_states, return_dict, output_attentions
            As for the base model.
        labels
            Class numbers, shape (batch, length); -100 takes no part.

        Returns
        -------
        TokenClassifierOutput
            ``logits`` of shape (batch, length, num_labels); ``loss`` when `labels` are given.
        """
        options = loss_options(self, rest)
        encoded = self._encode(
            input_ids,
            attention_mask,
            {
                "inputs_embeds": inputs_embeds,
                "output_hidden_states": output_hidden_states,
                "output_attentions": output_attentions,
            },
        )
        logits = self.score(encoded.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, options)
        output = TokenClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return finish(self, output, return_dict)
