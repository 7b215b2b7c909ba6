"""Caduceus without a head, as a transformers model.

State-dict names are those of the published ``kuleshov-group/caduceus-*`` folders:
``caduceus.backbone.layers.0.mixer.mamba_fwd.A_log`` and, in equivariant models,
``caduceus.backbone.layers.0.mixer.submodule.mamba_fwd.A_log``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from megabase.errors import ConfigError
from megabase.layers.mamba import BidirectionalBlock, BidirectionalMamba
from megabase.layers.norms import add_norm, make_norm
from megabase.layers.rcps import (
    RCPSAddNorm,
    RCPSBlock,
    RCPSEmbedding,
    RCPSHead,
    strand_add_norm,
)
from megabase.models.caduceus.configuration import CaduceusConfig, complement_list
from megabase.models.forward import collects, finish, given_once, refuse_rest
from megabase.models.state_space import StateSpacePreTrainedModel

__all__ = ["CaduceusModel", "CaduceusPreTrainedModel"]

_REVERSE = re.compile(r"^(.*\.mamba_)rev(\.(?:in|out)_proj\.(?:weight|bias))$")


class _Embeddings(nn.Module):
    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        rows, width = config.vocab_rows, config.d_model
        complement = cast("list[int]", config.complement_map)
        self.word_embeddings = (
            RCPSEmbedding(rows, width, complement) if config.rcps else nn.Embedding(rows, width)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.word_embeddings(input_ids)


def _block(config: CaduceusConfig) -> nn.Module:
    mixer = BidirectionalMamba(
        config.d_model,
        bidirectional=config.bidirectional,
        strategy=cast("Any", config.bidirectional_strategy),
        **config.mixer.layer_options(),
    )
    norm = make_norm(config.d_model, config.rms_norm, config.norm_epsilon)
    if config.rcps:
        return _StrandBlock(norm, mixer, config.fused_add_norm, config.residual_in_fp32)
    return _Block(norm, mixer, config.residual_in_fp32)


class _StrandBlock(GradientCheckpointingLayer, RCPSBlock):
    """A block that transformers can have computed again in the backward pass."""


class _Block(GradientCheckpointingLayer, BidirectionalBlock):
    """A block that transformers can have computed again in the backward pass."""


class _Backbone(nn.Module):
    """Embeddings, blocks and final norm."""

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.rcps = config.rcps
        self.residual_in_fp32 = config.residual_in_fp32
        self.embeddings = _Embeddings(config)
        self.layers = nn.ModuleList(_block(config) for _ in range(config.n_layer))
        norm = make_norm(config.d_model, config.rms_norm, config.norm_epsilon)
        self.norm_f = RCPSAddNorm(norm) if config.rcps and not config.fused_add_norm else norm

    def forward(
        self, hidden: Tensor, mask: Tensor | None, collect: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        residual: Tensor | None = None
        seen: list[Tensor] = []
        for layer in self.layers:
            if collect:
                seen.append(hidden if residual is None else hidden + residual)
            hidden, residual = layer(hidden, residual, mask)
        # The final norm leaves the strands in their places, in fused models too.
        last = strand_add_norm if self.rcps else add_norm
        hidden, _ = last(cast("Any", self.norm_f), hidden, residual, self.residual_in_fp32)
        return hidden, (*seen, hidden) if collect else None


class CaduceusPreTrainedModel(StateSpacePreTrainedModel):
    """What the Caduceus models have in common."""

    config_class = CaduceusConfig
    config: CaduceusConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    base_model_prefix = "caduceus"
    _no_split_modules = ["_Block", "_StrandBlock"]  # noqa: RUF012 (the library's own form)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name the copies of shared tensors.

        The two directions of a mixer share their projections when
        ``config.bidirectional_weight_tie``; the head is the embedding when
        ``config.tie_word_embeddings``.
        """
        tied: dict[str, str] = {}
        if self.config.bidirectional_weight_tie:
            for name in names:
                if found := _REVERSE.match(name):
                    tied[name] = f"{found.group(1)}fwd{found.group(2)}"
        if self.config.tie_word_embeddings:
            inner = ("lm_head.", "embedding.") if self.config.rcps else ("", "")
            first = f"caduceus.backbone.embeddings.word_embeddings.{inner[1]}weight"
            tied[f"lm_head.{inner[0]}weight"] = first
        return tied

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return cast("CaduceusModel", self.base_model).backbone.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding; an equivariant model gives both strands of a token."""
        embeddings = cast("CaduceusModel", self.base_model).backbone.embeddings
        embeddings.word_embeddings = cast("nn.Embedding", value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the number of tokens; new ones are their own complements, see transformers."""
        table = super().resize_token_embeddings(*args, **kwargs)
        rows = table.weight.shape[0]
        given = cast("list[int]", self.config.complement_map)[:rows]
        kept = [own if other >= rows else other for own, other in enumerate(given)]
        self.config.complement_map = complement_list(kept, rows)
        for module in self.modules():
            if isinstance(module, RCPSEmbedding | RCPSHead):
                module.set_complement(self.config.complement_map)
        return table


class CaduceusModel(CaduceusPreTrainedModel):
    """Caduceus without a head: one vector per position, of both strands with ``config.rcps``.

    Parameters
    ----------
    config
        The model's settings.
    """

    def __init__(self, config: CaduceusConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = _Backbone(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
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
            Embeddings instead of ids, shape (batch, length, ``config.hidden_size``).
        output_hidden_states
            Whether to return the input of every block and the final output as well.
        return_dict
            Whether to return an object instead of a tuple.

        Returns
        -------
        BaseModelOutput
            ``last_hidden_state`` has shape (batch, length, ``config.hidden_size``). In an
            equivariant model the first half belongs to the strand as given, the second half to the
            other one, with channels in reverse order: the reverse complement of the input turns
            the output around in length and channels.

        Raises
        ------
        ConfigError
            When not exactly one of `input_ids` and `inputs_embeds` is given, or the latter has
            another width.
        """
        refuse_rest(self, rest)
        given_once(input_ids, inputs_embeds)
        if inputs_embeds is None:
            hidden = self.backbone.embeddings(cast("Tensor", input_ids))
        elif inputs_embeds.shape[-1] != self.config.hidden_size:
            raise ConfigError(
                f"inputs_embeds must have {self.config.hidden_size} channels"
                + (" (both strands)" if self.config.rcps else "")
                + f", found {inputs_embeds.shape[-1]}"
            )
        else:
            hidden = inputs_embeds
        collect = collects(self.config, output_hidden_states)
        hidden, states = self.backbone(hidden, self.mixer_mask(attention_mask), collect)
        output = BaseModelOutput(last_hidden_state=hidden, hidden_states=cast("Any", states))
        return finish(self, output, return_dict)
