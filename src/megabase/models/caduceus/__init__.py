"""Caduceus as transformers models: the bare one, and with each head.

State-dict names are those of the published ``kuleshov-group/caduceus-*`` folders:
``caduceus.backbone.layers.0.mixer.mamba_fwd.A_log`` and, in equivariant models,
``caduceus.backbone.layers.0.mixer.submodule.mamba_fwd.A_log``.

In an equivariant model (Caduceus-PS, arXiv 2403.03234, section 4) a hidden vector has twice the
width: its first half belongs to the strand as given, its second half to the other strand, at the
same position and with channels in reverse order. So the reverse complement of the input turns the
output around in length and channels, exactly.

Shape suffixes: B batch, L positions, D channels of one strand, W = 2 D channels of both, V rows of
the vocabulary.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from megabase.data.vocabulary import COMPLEMENT_TOKEN_IDS
from megabase.errors import ConfigError
from megabase.layers.mamba import BidirectionalMamba, Norm, add_norm
from megabase.models.base import Problems, refuse_rest
from megabase.models.checkpoints import reader
from megabase.models.heads import MaskedLM, SequenceClassifier, Strand, TokenClassifier
from megabase.models.state_space import (
    StateSpaceConfig,
    StateSpacePreTrainedModel,
    build_found,
    read_shapes,
)


def _complement_list(given: Any, rows: int) -> list[Any]:
    """List the complement of every token id, by id; None gives that of the published vocabulary.

    A dictionary has ids as keys, integers or (after JSON) strings, in any order, whose gaps become
    None, for the check of the configuration. Ids past the given ones, up to `rows`, are their own
    complements.
    """
    given = COMPLEMENT_TOKEN_IDS if given is None else given
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
    bidirectional, bidirectional_strategy, bidirectional_weight_tie : bool, str, bool
        Whether each mixer also reads the sequence backwards; whether the two directions are added
        (``add``) or multiplied (``ew_multiply``), and share input and output projections.
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
        given, rows = self.complement_map, self.vocab_rows
        table = list(given) if isinstance(given, Sequence) else []
        partners = {own: other for own, other in enumerate(table) if isinstance(other, int)}
        problems.demand(
            all(partners.get(partners.get(own, -1)) == own for own in range(len(table))),
            f"complement_map must give every token id a partner that gives it back, found {given}",
        )
        problems.demand(
            len(table) == rows,
            f"complement_map must have {rows} entries, one for each row of the vocabulary, found "
            f"{len(table)}",
        )

    @property
    def hidden_size(self) -> int:
        """Channels of a hidden vector: the width, or twice the width with both strands."""
        return 2 * self.d_model if self.rcps else self.d_model


_REVERSE = re.compile(r"^(.*\.mamba_)rev(\.(?:in|out)_proj\.(?:weight|bias))$")
"""Projections of the reverse direction, which may be those of the forward one."""


class _Complements:
    """A module with a table of complements, whose matrix belongs to a module inside.

    That has the name that checkpoints have.
    """

    complement: tuple[int, ...]
    complement_map: Tensor
    inner: str

    def _hold(self, inner: nn.Module, complement: Sequence[int]) -> None:
        self.complement = tuple(complement)
        setattr(self, self.inner, inner)
        cast("Any", self).register_buffer("complement_map", self.table())

    @property
    def weight(self) -> Tensor:
        """The matrix, shape (rows, D)."""
        return getattr(self, self.inner).weight

    def table(self) -> Tensor:
        """Give the values of the buffer ``complement_map``."""
        return torch.tensor(self.complement, dtype=torch.long)

    def set_complement(self, complement: Sequence[int]) -> None:
        """Take another table, of as many rows as the weight has."""
        self.complement = tuple(complement)
        self.complement_map = self.table().to(self.complement_map.device)


class _RCPSEmbedding(  # pyright: ignore[reportIncompatibleVariableOverride]
    _Complements, nn.Embedding
):
    """Embed tokens and, beside them, their complements, given for every token id.

    To callers this is an embedding, so that they can read it and change its number of rows.
    """

    inner = "embedding"
    embedding: nn.Embedding

    def __init__(self, rows: int, d_model: int, complement: Sequence[int]) -> None:
        nn.Module.__init__(self)  # without a matrix of its own
        self.num_embeddings, self.embedding_dim = rows, d_model
        self.padding_idx = self.max_norm = None
        self.norm_type, self.scale_grad_by_freq, self.sparse = 2.0, False, False
        self._hold(nn.Embedding(rows, d_model), complement)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor
    ) -> Tensor:
        """Embed ids of shape (batch, length) as (batch, length, 2 D)."""
        given_BLD = self.embedding(input_ids)
        # Turning the sequence around and back again cancels.
        other_BLD = self.embedding(self.complement_map[input_ids])
        return torch.cat([given_BLD, other_BLD.flip(-1)], dim=-1)


class _RCPSHead(  # pyright: ignore[reportIncompatibleVariableOverride]
    _Complements, nn.Linear
):
    """Token scores that turn around with the strand: ``W a + W[complement] flip(b)``."""

    inner = "lm_head"
    lm_head: nn.Linear

    def __init__(self, d_model: int, rows: int, complement: Sequence[int]) -> None:
        nn.Module.__init__(self)  # without a matrix of its own
        self.in_features, self.out_features = d_model, rows
        self.bias = None
        self._hold(nn.Linear(d_model, rows, bias=False), complement)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_BLW: Tensor
    ) -> Tensor:
        """Score (batch, length, 2 D) as (batch, length, rows)."""
        given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
        other_BLV = self.lm_head(other_BLD.flip(-1))
        return self.lm_head(given_BLD) + other_BLV[..., self.complement_map]


def _split_strands(hidden_BLW: Tensor) -> tuple[Tensor, Tensor]:
    """Give both strands, each (batch, length, D), each read in its own direction."""
    given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
    return given_BLD, other_BLD.flip((1, 2))


def _take_apart(hidden_BLW: Tensor) -> Tensor:
    """Give both strands as sequences of their own, (2 batch, length, D).

    Those of the other strand are in reverse order too: turning everything around swaps strands.
    """
    given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
    return torch.cat([given_BLD, other_BLD.flip((0, 1, 2))])


def _put_together(apart_BLD: Tensor) -> Tensor:
    """Undo :func:`_take_apart`."""
    given_BLD, other_BLD = apart_BLD.chunk(2)
    return torch.cat([given_BLD, other_BLD.flip((0, 1, 2))], dim=-1)


class _RCPSWrapper(nn.Module):
    """Apply ``submodule(hidden, mask)`` to both strands, each read in its own direction."""

    sharded: Any = None
    """Set when a sequence lies on several processes: positions cannot be turned around here."""

    def __init__(self, submodule: nn.Module) -> None:
        super().__init__()
        self.submodule = submodule

    def forward(
        self, hidden_BLW: Tensor, mask_BL: Tensor | None = None, apart: bool = False
    ) -> Tensor:
        """Map (batch, length, 2 D) to the same shape, or strands that are `apart`."""
        if apart:
            return self.submodule(hidden_BLW, mask_BL)
        if self.sharded is not None:
            given_BLD, other_BLD = hidden_BLW.chunk(2, dim=-1)
            given_BLD = self.submodule(given_BLD, mask_BL)
            other_BLD = self.submodule(other_BLD.flip(-1), mask_BL, reverse=True)
            return torch.cat([given_BLD, other_BLD.flip(-1)], dim=-1)
        both = torch.cat(_split_strands(hidden_BLW))
        if mask_BL is not None:
            mask_BL = torch.cat([mask_BL, mask_BL.flip(1)])
        given_BLD, other_BLD = self.submodule(both, mask_BL).chunk(2)
        return torch.cat([given_BLD, other_BLD.flip((1, 2))], dim=-1)


def _norm(config: CaduceusConfig) -> nn.Module:
    """Make a norm, which unfused equivariant models have under another name."""
    norm = Norm(config.d_model, config.norm_epsilon, config.rms_norm)
    inside = config.rcps and not config.fused_add_norm
    return nn.ModuleDict({"submodule": norm}) if inside else norm


class _Block(GradientCheckpointingLayer):
    """Add to the running sum, normalize and mix, each strand alike where there are two.

    An equivariant one that is `fused` lets the two halves change places first, in hidden vectors
    and running sum, as in the fused kernel of the public code, with which all published models were
    trained. Either way it is equivariant.
    """

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        mixer = BidirectionalMamba(
            config.d_model,
            bidirectional=config.bidirectional,
            strategy=cast("Any", config.bidirectional_strategy),
            **config.mixer.layer_options(),
        )
        self.strands = 2 if config.rcps else 1
        self.fused = config.rcps and config.fused_add_norm
        self.norm = _norm(config)
        self.mixer = _RCPSWrapper(mixer) if config.rcps else mixer
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, mask: Tensor | None = None,
        apart: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Give (output of the mixer, running sum before it), each of the shape of `hidden`.

        A fused one also takes and gives strands that are `apart`, see :func:`_take_apart`.
        """
        strands = 1 if apart else self.strands
        hidden, residual = _add(
            self.norm, hidden, residual, self.residual_in_fp32, strands, self.fused
        )
        return self.mixer(hidden, mask, *([True] if apart else [])), residual


def _add(norm: nn.Module, *given: Any) -> tuple[Tensor, Tensor]:
    return add_norm(norm["submodule"] if isinstance(norm, nn.ModuleDict) else norm, *given)


class _Backbone(nn.Module):
    """Embeddings, blocks and final norm."""

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        self.rcps = config.rcps
        self.residual_in_fp32 = config.residual_in_fp32
        size = (config.vocab_rows, config.d_model)
        complement = cast("list[int]", config.complement_map)
        table = _RCPSEmbedding(*size, complement) if config.rcps else nn.Embedding(*size)
        self.embeddings = nn.ModuleDict({"word_embeddings": table})
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.norm_f = _norm(config)

    def forward(
        self, hidden: Tensor, mask: Tensor | None, collect: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        residual: Tensor | None = None
        seen: list[Tensor] = []
        # Strands are told apart once, and not again in every block.
        layers = cast("list[Any]", self.layers)
        apart = self.rcps and all(one.fused and one.mixer.sharded is None for one in layers)
        beside: Any = _put_together if apart else lambda states: states
        if apart:
            hidden = _take_apart(hidden)
            mask = None if mask is None else torch.cat([mask, mask.flip((0, 1))])
        for layer in self.layers:
            if collect:
                seen.append(beside(hidden if residual is None else hidden + residual))
            hidden, residual = layer(hidden, residual, mask, *([True] if apart else []))
        # The final norm leaves the strands in their places, in fused models too.
        strands = 2 if self.rcps and not apart else 1
        hidden = beside(_add(self.norm_f, hidden, residual, self.residual_in_fp32, strands)[0])
        return hidden, (*seen, hidden) if collect else None


class _CaduceusPreTrainedModel(StateSpacePreTrainedModel):
    config_class = CaduceusConfig
    config: CaduceusConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    base_model_prefix = "caduceus"
    token_table = "backbone.embeddings.word_embeddings"
    _no_split_modules = ["_Block"]  # noqa: RUF012 (the library's own form)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _Complements):
            # Their weights are those of a module inside. The library builds models without memory
            # first, so computed tables are filled here.
            init.copy_(module.complement_map, module.table())
        else:
            super()._init_weights(module)

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
            if isinstance(module, _RCPSEmbedding | _RCPSHead):
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
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_hidden_states: bool | None = None, **rest: Any,
    ) -> Any:  # fmt: skip
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
            hidden = self.get_input_embeddings()(input_ids)
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
            self.lm_head = _RCPSHead(config.d_model, config.vocab_rows, complement)
        else:
            super()._add_head(config)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head, or the matrix of an equivariant one."""
        if isinstance(self.lm_head, _RCPSHead) and not isinstance(new_embeddings, _RCPSHead):
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
        if not conjoins and not self.config.rcps:
            return [(hidden, mask)], states
        masks = (None, None) if mask is None else (mask, mask.flip(1))
        if conjoins:
            masks = masks if mask is None else mask.split(batch)
            if "hidden_states" in states:
                states["hidden_states"] = tuple(s[:batch] for s in states["hidden_states"])
        pair = hidden.split(batch) if conjoins else _split_strands(hidden)
        return list(zip(pair, masks, strict=True)), states

    def _both(
        self, input_ids: Tensor | None, mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Lay both strands side by side in the batch."""
        paired = input_ids is None or input_ids.dim() == 3
        if input_ids is not None and input_ids.dim() == 2:
            table = torch.tensor(self.config.complement_map, device=input_ids.device)
            input_ids = torch.stack([input_ids, table[input_ids.flip(1)]], dim=-1)
        given, axes = (inputs_embeds, 4) if input_ids is None else (input_ids, 3)
        if given is not None and (given.dim() != axes or given.shape[-1] != 2):
            raise ConfigError(
                "conjoining needs ids (batch, length, 2), the strand as given and the reverse "
                "complement, ids (batch, length), or embeddings of both strands (batch, length, "
                f"width, 2); found {tuple(given.shape)}"
            )
        if mask is not None and mask.dim() == 2:
            mask = torch.stack([mask, mask if paired else mask.flip(1)], dim=-1)
        both = (
            t if t is None else torch.cat(t.unbind(-1)) for t in (input_ids, mask, inputs_embeds)
        )
        return cast("Any", tuple(both))


class CaduceusForSequenceClassification(_Classifier, SequenceClassifier):
    """Caduceus, pooled over positions, with a linear head."""


class CaduceusForTokenClassification(_Classifier, TokenClassifier):
    """Caduceus with a linear head at every position."""


_RULES = (reader.HEAD_RULE, (r"^backbone\.", "caduceus.backbone."))
"""The bare model is published without the prefix of one with a head."""
_EMBEDDINGS = "caduceus.backbone.embeddings.word_embeddings."
"""Names of the embedding begin with this, whether it is equivariant or not."""
_LAYERS = "caduceus.backbone.layers."  # names of the blocks begin with this


def convert(weights: reader.Weights, **overrides: Any) -> reader.ConvertedModel:
    """Build a masked language model, classifier or bare model, by the heads of the weights."""
    tensors, dropped = reader.renamed(weights.tensors, _RULES)
    settings = reader.recorded_settings(weights, CaduceusConfig, (None, CaduceusConfig.model_type))
    rcps = any(".mixer.submodule." in name for name in tensors)
    embedding = _EMBEDDINGS + ("embedding.weight" if rcps else "weight")
    mixer = "mixer.submodule." if rcps else "mixer."
    head = "lm_head.lm_head.weight" if rcps else "lm_head.weight"
    found = read_shapes(tensors, embedding, head, _LAYERS, f"{mixer}mamba_fwd.", weights.path)
    found["rcps"] = rcps
    found["bidirectional"] = any(".mamba_rev." in name for name in tensors)
    forward, reverse = (
        tensors.get(f"{_LAYERS}0.{mixer}mamba_{way}.in_proj.weight") for way in ("fwd", "rev")
    )
    if forward is not None and reverse is not None:
        found["bidirectional_weight_tie"] = torch.equal(forward, reverse)
    notes = []
    if rcps:
        found["fused_add_norm"] = f"{_LAYERS}0.norm.weight" in tensors
        table = tensors.get(f"{_EMBEDDINGS}complement_map")
        if table is not None:
            found["complement_map"] = table.tolist()
    if "bidirectional_strategy" not in settings and found["bidirectional"]:
        notes.append("bidirectional_strategy is not recorded; taken as add, as in all published")
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    config = CaduceusConfig(**{**settings, **found, **overrides})
    bare = head not in tensors and not config.tie_word_embeddings
    return build_found(config, tensors, weights.path, bare=bare, notes=notes, dropped=dropped)
