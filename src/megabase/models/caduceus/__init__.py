"""Caduceus as transformers models: the bare one, and with each head.

State-dict names are those of the published ``kuleshov-group/caduceus-*`` folders:
``caduceus.backbone.layers.0.mixer.mamba_fwd.A_log`` and, in equivariant models,
``caduceus.backbone.layers.0.mixer.submodule.mamba_fwd.A_log``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS
from megabase.errors import ConfigError
from megabase.layers.mamba import BidirectionalBlock, BidirectionalMamba, add_norm, make_norm
from megabase.layers.rcps import (
    RCPSAddNorm,
    RCPSBlock,
    RCPSEmbedding,
    RCPSHead,
    put_together,
    split_strands,
    strand_add_norm,
    take_apart,
)
from megabase.models.base import Problems, refuse_rest
from megabase.models.heads import (
    MaskedLM,
    SequenceClassifier,
    Strand,
    TokenClassifier,
)
from megabase.models.state_space import StateSpaceConfig, StateSpacePreTrainedModel


def _complement_list(given: Any, rows: int) -> list[Any]:
    """List the complement of every token id, by id; None gives that of the published vocabulary.

    A dictionary has ids as keys, integers or (after JSON) strings, in any order, whose gaps become
    None, for the check of the configuration. Ids past the given ones, up to `rows`, are their own
    complements.
    """
    if given is None:
        given = COMPLEMENT_TOKEN_IDS
    if isinstance(given, Mapping):
        by_id = {int(key): value for key, value in given.items()}
        given = [by_id.get(i) for i in range(max(by_id, default=-1) + 1)]
    return [*given, *range(len(given), rows)]


class CaduceusConfig(StateSpaceConfig):
    """Settings of a Caduceus model (arXiv 2403.03234).

    Names are those of the published ``kuleshov-group/caduceus-*`` folders, so that such a folder
    loads as it is. Defaults are Caduceus-Ph of 470,702 parameters. The other settings are those of
    :class:`~megabase.models.mamba.MambaConfig`.

    Attributes
    ----------
    d_model : int
        Width of one strand.
    fused_add_norm : bool
        In an RC-equivariant model, whether every block exchanges the two strands, as the kernel of
        all published ones does; it also decides the names of the norms' weights. Without effect in
        other models.
    bidirectional : bool
        Whether each mixer also reads the sequence backwards.
    bidirectional_strategy : str
        Whether the two directions are added (``add``) or multiplied (``ew_multiply``).
    bidirectional_weight_tie : bool
        Whether the two directions share their input and output projections.
    rcps : bool
        Whether the model is equivariant under reverse complement (Caduceus-PS).
    complement_map : list of int or dict or None
        Complement of every token id; a dictionary, as published, becomes a list.
    conjoin_train, conjoin_eval : bool
        Whether a classifier that is not equivariant expects both strands, ids of shape (batch,
        length, 2), and averages its scores of them: always, or in evaluation only. An
        equivariant one always joins its strands, and needs one of them.
    head_bias : bool
        Whether a classifier's head has a bias; the published ones have none.
    """

    model_type = "caduceus"

    d_model: int = 118
    bidirectional: bool = True
    bidirectional_strategy: str | None = "add"
    bidirectional_weight_tie: bool = True
    rcps: bool = False
    complement_map: list[Any] | dict[Any, Any] | None = None
    conjoin_train: bool = False
    conjoin_eval: bool = False
    head_bias: bool = False
    mask_token_id: int | None = 3

    def __post_init__(self, **kwargs: Any) -> None:
        # Written by the published training code, never read by it.
        kwargs.pop("gradient_checkpointing_stride", None)
        if self.bidirectional_strategy is None:
            self.bidirectional_strategy = "add"
        if self.vocab_size > 0 and self.pad_vocab_size_multiple > 0:
            self.complement_map = _complement_list(self.complement_map, self.vocab_rows)
        super().__post_init__(**kwargs)

    def _check(self, problems: Problems) -> None:
        super()._check(problems)
        problems.one_of("bidirectional_strategy", ("add", "ew_multiply"))
        given = self.complement_map
        table = list(given) if isinstance(given, Sequence) else []
        ids = range(len(table))
        paired = all(
            isinstance(other, int) and other in ids and table[other] == own
            for own, other in enumerate(table)
        )
        problems.demand(
            paired,
            f"complement_map must give every token id a partner that gives it back, found {given}",
        )
        problems.demand(
            len(table) == self.vocab_rows,
            f"complement_map must have {self.vocab_rows} entries, one for each row of the "
            f"vocabulary, found {len(table)}",
        )

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden vector: the width, or twice the width with both strands."""
        return 2 * self.d_model if self.rcps else self.d_model


_REVERSE = re.compile(r"^(.*\.mamba_)rev(\.(?:in|out)_proj\.(?:weight|bias))$")
"""Projections of the reverse direction, which may be those of the forward one."""


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
        # Strands are told apart once, and not again in every block.
        apart = self.rcps and all(
            isinstance(one, RCPSBlock) and one.fused and one.mixer.sharded is None
            for one in self.layers
        )
        beside: Any = put_together if apart else lambda states: states
        if apart:
            hidden = take_apart(hidden)
            mask = None if mask is None else torch.cat([mask, mask.flip((0, 1))])
        for layer in self.layers:
            if collect:
                seen.append(beside(hidden if residual is None else hidden + residual))
            hidden, residual = layer(hidden, residual, mask, *([True] if apart else []))
        # The final norm leaves the strands in their places, in fused models too.
        last = strand_add_norm if self.rcps and not apart else add_norm
        hidden, _ = last(cast("Any", self.norm_f), hidden, residual, self.residual_in_fp32)
        hidden = beside(hidden)
        return hidden, (*seen, hidden) if collect else None


class _CaduceusPreTrainedModel(StateSpacePreTrainedModel):
    config_class = CaduceusConfig
    config: CaduceusConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    base_model_prefix = "caduceus"
    token_table = "backbone.embeddings.word_embeddings"
    _no_split_modules = ["_Block", "_StrandBlock"]  # noqa: RUF012 (the library's own form)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Map the copies of shared tensors to their first names.

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
            first = f"caduceus.{self.token_table}.{inner[1]}weight"
            tied[f"lm_head.{inner[0]}weight"] = first
        return tied

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Change the number of tokens; new ones are their own complements, see transformers."""
        table = super().resize_token_embeddings(*args, **kwargs)
        rows = table.weight.shape[0]
        given = cast("list[int]", self.config.complement_map)[:rows]
        kept = [own if other >= rows else other for own, other in enumerate(given)]
        self.config.complement_map = _complement_list(kept, rows)
        for module in self.modules():
            if isinstance(module, RCPSEmbedding | RCPSHead):
                module.set_complement(self.config.complement_map)
        return table


class CaduceusModel(_CaduceusPreTrainedModel):
    """Caduceus without a head: one vector per position, of both strands with ``config.rcps``."""

    def __init__(self, config: CaduceusConfig, **_: Any) -> None:
        super().__init__(config)
        self.backbone = _Backbone(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **rest: Any,
    ) -> Any:
        """Encode token ids to ``last_hidden_state`` (batch, length, ``config.hidden_size``).

        In an equivariant model the first half of the channels belongs to the strand as given, the
        second half to the other one, in reverse order: the reverse complement of the input turns
        the output around in length and channels. Arguments are those of
        :meth:`megabase.models.mamba.MambaModel.forward`, with `inputs_embeds` of
        ``config.hidden_size`` channels (ConfigError for another width).
        """
        refuse_rest(self, rest)
        self._given(input_ids, inputs_embeds)
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
        collect = self._collects(output_hidden_states)
        hidden, states = self.backbone(hidden, self.mixer_mask(attention_mask), collect)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=cast("Any", states))


_CaduceusPreTrainedModel.base_class = CaduceusModel


class CaduceusForMaskedLM(_CaduceusPreTrainedModel, MaskedLM):
    """Caduceus with the head it is pretrained with, for masked tokens.

    Its loss also leaves out labels of ``config.pad_token_id``, the published habit.
    """

    def _add_head(self, config: CaduceusConfig) -> None:
        if config.rcps:
            complement = cast("list[int]", config.complement_map)
            self.lm_head = RCPSHead(config.d_model, config.vocab_rows, complement)
        else:
            super()._add_head(config)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head, or the matrix of an equivariant one."""
        if isinstance(self.lm_head, RCPSHead) and not isinstance(new_embeddings, RCPSHead):
            self.lm_head.lm_head = cast("nn.Linear", new_embeddings)
        else:
            self.lm_head = new_embeddings


class _Classifier(_CaduceusPreTrainedModel):
    """The strands that a classifier averages over.

    Both of an equivariant model (``config.rcps``), whose predictions then do not depend on the
    strand; of others where ``config.conjoin_train`` or ``config.conjoin_eval`` say so (the
    post-hoc conjoining of Caduceus-Ph).
    """

    def _conjoins(self) -> bool:
        config = self.config
        wanted = config.conjoin_train or (config.conjoin_eval and not self.training)
        return wanted and not config.rcps

    def _strands(
        self, rest: Mapping[str, Any], input_ids: Tensor | None, **inputs: Any
    ) -> tuple[list[Strand], dict[str, Any]]:
        mask, inputs_embeds = inputs.pop("attention_mask"), inputs.pop("inputs_embeds")
        given = self._given(input_ids, inputs_embeds)
        batch, conjoins = len(given), self._conjoins()
        if conjoins:
            input_ids, mask, inputs_embeds = self._both(input_ids, mask, inputs_embeds)
        elif given.dim() != (2 if input_ids is not None else 3):
            raise ConfigError(
                "expected ids (batch, length) or embeddings (batch, length, width), found "
                f"{tuple(given.shape)}; both strands are read with conjoin_train, or in evaluation "
                "with conjoin_eval, by a model that is not equivariant"
            )
        ((hidden, mask),), states = super()._strands(  # pyright: ignore
            rest, input_ids, attention_mask=mask, inputs_embeds=inputs_embeds, **inputs
        )
        if conjoins:
            masks = (None, None) if mask is None else mask.split(batch)
            strands: list[Strand] = list(zip(hidden.split(batch), masks, strict=True))
            if "hidden_states" in states:
                states["hidden_states"] = tuple(s[:batch] for s in states["hidden_states"])
            return strands, states
        if self.config.rcps:
            one, other = split_strands(hidden)
            flipped = None if mask is None else mask.flip(1)
            return [(one, mask), (other, flipped)], states
        return [(hidden, mask)], states

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


class CaduceusForSequenceClassification(_Classifier, SequenceClassifier):
    """Caduceus, pooled over positions, with a linear head."""


class CaduceusForTokenClassification(_Classifier, TokenClassifier):
    """Caduceus with a linear head at every position."""
