"""Caduceus with heads for labels, which see both strands where they are asked to."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from megabase.errors import ConfigError
from megabase.layers.pooling import pool
from megabase.layers.rcps import split_strands
from megabase.models.caduceus.base import CaduceusModel, CaduceusPreTrainedModel
from megabase.models.caduceus.configuration import CaduceusConfig
from megabase.models.forward import finish, given_once, loss_options, sequence_loss, token_loss
from megabase.models.state_space import real_tokens

__all__ = ["CaduceusForSequenceClassification", "CaduceusForTokenClassification"]


class _Strand(NamedTuple):
    """Hidden vectors of one strand, in its own direction."""

    hidden: Tensor
    mask: Tensor | None


class _CaduceusClassifier(CaduceusPreTrainedModel):
    """The base model, and a linear map over the vectors of one strand."""

    def __init__(self, config: CaduceusConfig, **_: Any) -> None:
        super().__init__(config)
        self.caduceus = CaduceusModel(config)
        self.score = nn.Linear(config.d_model, config.num_labels or 2, bias=config.head_bias)
        self.post_init()

    def _conjoins(self) -> bool:
        config = self.config
        wanted = config.conjoin_train or (config.conjoin_eval and not self.training)
        return wanted and not config.rcps

    def _strands(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        output_hidden_states: bool | None,
    ) -> tuple[list[_Strand], tuple[Tensor, ...] | None]:
        """Give the strands that are scored, and the hidden states of the strand as given."""
        given = given_once(input_ids, inputs_embeds)
        batch = len(given)
        conjoins = self._conjoins()
        if conjoins:
            input_ids, attention_mask, inputs_embeds = self._both(
                input_ids, attention_mask, inputs_embeds
            )
        elif given.dim() != (2 if input_ids is not None else 3):
            raise ConfigError(
                "expected ids (batch, length) or embeddings (batch, length, width), found "
                f"{tuple(given.shape)}; both strands are read with conjoin_train, or in evaluation "
                "with conjoin_eval, by a model that is not equivariant"
            )
        encoded = self.caduceus(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = encoded.last_hidden_state
        mask = real_tokens(input_ids, attention_mask, self.config.pad_token_id)
        states = encoded.hidden_states
        if conjoins:
            masks = (None, None) if mask is None else mask.split(batch)
            pair = zip(hidden.split(batch), masks, strict=True)
            strands = [_Strand(*strand) for strand in pair]
            states = None if states is None else tuple(state[:batch] for state in states)
        elif self.config.rcps:
            one, other = split_strands(hidden)
            strands = [_Strand(one, mask), _Strand(other, None if mask is None else mask.flip(1))]
        else:
            strands = [_Strand(hidden, mask)]
        return strands, states

    def _both(
        self, input_ids: Tensor | None, mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Lay both strands side by side in the batch."""
        if inputs_embeds is not None:
            if inputs_embeds.dim() != 4 or inputs_embeds.shape[-1] != 2:
                raise ConfigError(
                    "conjoining needs embeddings of both strands, (batch, length, width, 2), found "
                    f"{tuple(inputs_embeds.shape)}"
                )
            inputs_embeds = torch.cat(inputs_embeds.unbind(-1))
        paired = input_ids is None or input_ids.dim() == 3
        if input_ids is not None:
            if input_ids.dim() == 2:
                table = torch.tensor(self.config.complement_map, device=input_ids.device)
                input_ids = torch.stack([input_ids, table[input_ids.flip(1)]], dim=-1)
            if input_ids.dim() != 3 or input_ids.shape[-1] != 2:
                raise ConfigError(
                    "conjoining needs ids (batch, length, 2), the strand as given and the reverse "
                    f"complement, or (batch, length), found {tuple(input_ids.shape)}"
                )
            input_ids = torch.cat(input_ids.unbind(-1))
        if mask is not None:
            if mask.dim() == 2:
                mask = torch.stack([mask, mask if paired else mask.flip(1)], dim=-1)
            mask = torch.cat(mask.unbind(-1))
        return input_ids, mask, inputs_embeds


class CaduceusForSequenceClassification(_CaduceusClassifier):
    """Caduceus, pooled over positions, with a linear head.

    An equivariant model (``config.rcps``) scores both of its strands and averages: its predictions
    do not depend on the strand. Others do so where ``config.conjoin_train`` or
    ``config.conjoin_eval`` ask for it (the post-hoc conjoining of Caduceus-Ph).

    Parameters
    ----------
    config
        The model's settings; ``pooling``, ``head_bias`` and ``num_labels`` shape the head.
    """

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
        input_ids
            Shape (batch, length). When strands are conjoined, (batch, length, 2): ids as given, and
            of the reverse complement; or (batch, length), and the model reverses and complements
            the tokens itself (special tokens included).
        attention_mask
            1 at real tokens, shape of one strand or of `input_ids`. Where a conjoined input has ids
            of both strands and a mask of one, it holds for both. When it is missing, pooling takes
            tokens other than ``config.pad_token_id`` for real.
        labels
            Class numbers (batch,), numbers, or 0/1 vectors (batch, num_labels), by
            ``config.problem_type`` or else by their number and type.
        inputs_embeds
            Embeddings instead of ids, (batch, length, ``config.hidden_size``); when strands are
            conjoined, (batch, length, width, 2).
        output_hidden_states, return_dict
            As for the base model; the hidden states are those of the strand as given.

        Returns
        -------
        SequenceClassifierOutput
            ``logits`` of shape (batch, num_labels); ``loss`` when `labels` are given.

        Raises
        ------
        ConfigError
            When the shape of the input does not fit the conjoining.
        """
        options = loss_options(self, rest)
        strands, states = self._strands(
            input_ids, attention_mask, inputs_embeds, output_hidden_states
        )
        pooling = cast("Any", self.config.pooling)
        scores = [self.score(pool(hidden, pooling, mask)) for hidden, mask in strands]
        logits = torch.stack(scores).mean(dim=0)
        loss = None if labels is None else sequence_loss(logits, labels, self.config, options)
        output = SequenceClassifierOutput(
            loss=cast("Any", loss), logits=logits, hidden_states=cast("Any", states)
        )
        return finish(self, output, return_dict)


class CaduceusForTokenClassification(_CaduceusClassifier):
    """Caduceus with a linear head at every position, averaged over strands as for sequences.

    Parameters
    ----------
    config
        The model's settings; ``head_bias`` and ``num_labels`` shape the head.
    """

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
            As for :class:`CaduceusForSequenceClassification`.
        labels
            Class numbers, shape (batch, length), in the direction of the strand as given; -100
            takes no part.

        Returns
        -------
        TokenClassifierOutput
            ``logits`` of shape (batch, length, num_labels). Where both strands are scored, the
            reverse complement of the input turns them around in length. ``loss`` when `labels` are
            given.
        """
        options = loss_options(self, rest)
        strands, states = self._strands(
            input_ids, attention_mask, inputs_embeds, output_hidden_states
        )
        scores = [self.score(hidden) for hidden, _ in strands]
        logits = scores[0] if len(scores) == 1 else (scores[0] + scores[1].flip(1)) / 2
        loss = None if labels is None else token_loss(logits, labels, options)
        output = TokenClassifierOutput(
            loss=cast("Any", loss), logits=logits, hidden_states=cast("Any", states)
        )
        return finish(self, output, return_dict)
