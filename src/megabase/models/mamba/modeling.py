"""Mamba as transformers models.

State-dict names are those of the public state-spaces/mamba code: ``backbone.embedding.weight``,
``backbone.layers.0.mixer.A_log``, ``backbone.norm_f.weight``, ``lm_head.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from megabase.layers.mamba import MambaBlock, MambaMixer, MambaState
from megabase.layers.norms import add_norm, make_norm
from megabase.layers.pooling import pool
from megabase.models.forward import (
    collects,
    finish,
    given_once,
    loss_options,
    next_token_loss,
    refuse_rest,
    sequence_loss,
    token_loss,
)
from megabase.models.generating import LetterGenerationMixin
from megabase.models.mamba.configuration import MambaConfig
from megabase.models.state_space import StateSpacePreTrainedModel, real_tokens

__all__ = [
    "MambaCausalLMOutput",
    "MambaForCausalLM",
    "MambaForSequenceClassification",
    "MambaForTokenClassification",
    "MambaModel",
    "MambaOutput",
]

MambaCache = tuple[MambaState, ...]
"""What the model remembers of the positions before: one state for each block."""


@dataclass
class MambaOutput(ModelOutput):
    """Hidden vectors of a Mamba model."""

    last_hidden_state: Tensor | None = None
    """Shape (batch, length, width)."""
    cache: MambaCache | None = None
    """What the next position needs, when it was asked for."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Input of every block and the final output, when they were asked for."""


@dataclass
class MambaCausalLMOutput(ModelOutput):
    """Predictions of a Mamba language model."""

    loss: Tensor | None = None
    """Mean cross entropy, when labels were given."""
    logits: Tensor | None = None
    """Shape (batch, length, rows of the vocabulary)."""
    cache: MambaCache | None = None
    """What the next position needs, when it was asked for."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Input of every block and the final output, when they were asked for."""


class _MambaPreTrainedModel(StateSpacePreTrainedModel):
    config_class = MambaConfig
    base_model_prefix = "backbone"
    _no_split_modules = ["_Block"]  # noqa: RUF012 (the library's own form)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name the copies of shared tensors."""
        tied = {"lm_head.weight": "backbone.embedding.weight"}
        return tied if self.config.tie_word_embeddings else {}


class _Block(GradientCheckpointingLayer, MambaBlock):
    """A block that transformers can have computed again in the backward pass."""


class MambaModel(_MambaPreTrainedModel):
    """Mamba without a head: one vector per position.

    Parameters
    ----------
    config
        The model's settings.
    """

    def __init__(self, config: MambaConfig, **_: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_rows, config.d_model)
        self.layers = nn.ModuleList(
            _Block(
                config.d_model,
                MambaMixer(config.d_model, **config.mixer.layer_options()),
                rms_norm=config.rms_norm,
                norm_eps=config.norm_epsilon,
                residual_in_fp32=config.residual_in_fp32,
            )
            for _ in range(config.n_layer)
        )
        self.norm_f = make_norm(config.d_model, config.rms_norm, config.norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embedding = cast("nn.Embedding", value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: MambaCache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> MambaOutput | tuple[Any, ...]:
        """Encode token ids.

        Parameters
        ----------
        input_ids
            Shape (batch, length); or give `inputs_embeds`.
        attention_mask
            1 at real tokens, shape (batch, length). Padding neither enters convolutions nor states,
            so real positions do not depend on it, unless ``config.mask_padding`` is False (the
            published models ignore the mask).
        inputs_embeds
            Embeddings instead of ids, shape (batch, length, width).
        cache
            ``cache`` of an earlier output, to continue after its last position.
        use_cache
            Whether to return a cache.
        output_hidden_states
            Whether to return the input of every block and the final output as well.
        return_dict
            Whether to return an object instead of a tuple.

        Returns
        -------
        MambaOutput
            ``last_hidden_state`` has shape (batch, length, width).

        Raises
        ------
        ConfigError
            When not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        refuse_rest(self, rest)
        given_once(input_ids, inputs_embeds)
        hidden: Tensor = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        collect = collects(self.config, output_hidden_states)
        mask = self.mixer_mask(attention_mask)
        residual: Tensor | None = None
        seen: list[Tensor] = []
        states: list[MambaState] = []
        for i, layer in enumerate(self.layers):
            if collect:
                seen.append(hidden if residual is None else hidden + residual)
            before = None if cache is None else cache[i]
            hidden, residual, state = layer(hidden, residual, mask, before)
            if use_cache:
                states.append(state)
        hidden = add_norm(self.norm_f, hidden, residual, self.config.residual_in_fp32)[0]
        output = MambaOutput(
            last_hidden_state=hidden,
            cache=tuple(states) if use_cache else None,
            hidden_states=(*seen, hidden) if collect else None,
        )
        return finish(self, output, return_dict)


class _MambaHead(_MambaPreTrainedModel):
    """A base model with something on top."""

    backbone: MambaModel

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.backbone.set_input_embeddings(value)

    def _encode(self, **arguments: Any) -> MambaOutput:
        return self.backbone(**arguments, return_dict=True)


class MambaForCausalLM(LetterGenerationMixin, _MambaHead):
    """Mamba with the next-token head it is pretrained with.

    Parameters
    ----------
    config
        The model's settings.
    """

    def __init__(self, config: MambaConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = MambaModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_rows, bias=False)
        self.post_init()

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
        cache: MambaCache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> MambaCausalLMOutput | tuple[Any, ...]:
        """Predict the next token at every position.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds
            As for the base model.
        cache, use_cache, output_hidden_states, return_dict
            As for the base model.
        labels
            Token ids to predict, shape (batch, length), aligned with `input_ids`: they are shifted
            by one inside, the library's habit. The value -100 takes no part.

        Returns
        -------
        MambaCausalLMOutput
            ``logits`` of shape (batch, length, config.vocab_rows), rows past the vocabulary
            included; ``loss``, the mean cross entropy, when `labels` are given.
        """
        options = loss_options(self, rest, next_token=True)
        encoded = self._encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            cache=cache,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(encoded.last_hidden_state)
        loss = next_token_loss(logits, labels, options)
        output = MambaCausalLMOutput(
            loss=loss, logits=logits, cache=encoded.cache, hidden_states=encoded.hidden_states
        )
        return finish(self, output, return_dict)

    @torch.no_grad()
    def step(self, input_ids: Tensor, cache: MambaCache | None = None) -> tuple[Tensor, MambaCache]:
        """Read one more token of every sequence.

        Parameters
        ----------
        input_ids
            Shape (batch,) or (batch, 1).
        cache
            What the call before returned, or the ``cache`` of a forward pass with ``use_cache``;
            None at the first token.

        Returns
        -------
        logits : Tensor
            Scores of the next token, shape (batch, config.vocab_rows): those of the full pass at
            this position.
        cache : tuple of MambaState
            For the next call. Its size does not grow.
        """
        output = self(
            input_ids=input_ids.reshape(-1, 1), cache=cache, use_cache=True, return_dict=True
        )
        return output.logits[:, -1], output.cache


class MambaForSequenceClassification(_MambaHead):
    """Mamba, pooled over positions, with a linear head.

    Parameters
    ----------
    config
        The model's settings; ``pooling``, ``head_bias`` and ``num_labels`` shape the head.
    """

    def __init__(self, config: MambaConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = MambaModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify sequences.

        Parameters
        ----------
        input_ids, inputs_embeds, output_hidden_states, return_dict
            As for the base model.
        attention_mask
            1 at real tokens. When it is missing, pooling takes tokens other than
            ``config.pad_token_id`` for real.
        labels
            Class numbers (batch,), numbers, or 0/1 vectors (batch, num_labels), by
            ``config.problem_type`` or else by their number and type.

        Returns
        -------
        SequenceClassifierOutput
            ``logits`` of shape (batch, num_labels); ``loss`` when `labels` are given.
        """
        options = loss_options(self, rest)
        encoded = self._encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        mask = real_tokens(input_ids, attention_mask, self.config.pad_token_id)
        hidden = cast("Tensor", encoded.last_hidden_state)
        logits = self.score(pool(hidden, cast("Any", self.config.pooling), mask))
        loss = None if labels is None else sequence_loss(logits, labels, self.config, options)
        output = SequenceClassifierOutput(
            loss=cast("Any", loss), logits=logits, hidden_states=cast("Any", encoded.hidden_states)
        )
        return finish(self, output, return_dict)


class MambaForTokenClassification(_MambaHead):
    """Mamba with a linear head at every position.

    Parameters
    ----------
    config
        The model's settings; ``head_bias`` and ``num_labels`` shape the head.
    """

    def __init__(self, config: MambaConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = MambaModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Classify every nucleotide.

        Parameters
        ----------
        input_ids, attention_mask, inputs_embeds, output_hidden_states, return_dict
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
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
        )
        logits = self.score(encoded.last_hidden_state)
        loss = None if labels is None else token_loss(logits, labels, options)
        output = TokenClassifierOutput(
            loss=cast("Any", loss), logits=logits, hidden_states=cast("Any", encoded.hidden_states)
        )
        return finish(self, output, return_dict)
