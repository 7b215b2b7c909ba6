"""Mamba as transformers models.

State-dict names are those of the public state-spaces/mamba code: ``backbone.embedding.weight``,
``backbone.layers.0.mixer.A_log``, ``backbone.norm_f.weight``, ``lm_head.weight``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput, can_return_tuple

from megabase.layers.mamba import MambaMixer, MambaState, Norm, add_norm
from megabase.models.base import refuse_rest
from megabase.models.checkpoints import reader
from megabase.models.heads import CausalLM, SequenceClassifier, TokenClassifier
from megabase.models.state_space import (
    StateSpaceConfig,
    StateSpacePreTrainedModel,
    build_found,
    read_shapes,
)


class MambaConfig(StateSpaceConfig):
    """Settings of a Mamba language model (arXiv 2312.00752).

    Names are those of the public state-spaces/mamba code. Defaults are the next-token baseline of
    the Caduceus paper (arXiv 2403.03234), of 468,608 parameters. The other settings are those of
    :class:`megabase.models.base.LanguageModelConfig`; the last was published as ``tie_embeddings``.

    Attributes
    ----------
    max_seq_len : int or None
        Longest input that evaluation and tokenizers assume. The model itself has no limit.
    ssm_cfg : dict or None
        Settings of the mixers: ``d_state`` (16), ``d_conv`` (4), ``expand`` (2), ``dt_rank``
        (``"auto"``: the width over 16), biases and initial step sizes.
    rms_norm, norm_epsilon : bool, float
        Whether norms are RMSNorm; LayerNorm otherwise.
    fused_add_norm : bool
        A published switch between kernels that give the same numbers; kept, without effect.
    residual_in_fp32 : bool
        Whether the running sum is kept in float32 at least.
    initializer_cfg : dict or None
        ``initializer_range`` (0.02), ``rescale_prenorm_residual`` (True) and
        ``n_residuals_per_layer`` (1).
    """

    model_type = "megabase_mamba"

    def __post_init__(self, **kwargs: Any) -> None:
        tied = kwargs.pop("tie_embeddings", None)
        if tied is not None:
            self.tie_word_embeddings = bool(tied)
        super().__post_init__(**kwargs)


MambaCache = tuple[MambaState, ...]
"""What the model remembers of the positions before: one state for each block."""


@dataclass
class _MambaOutput(ModelOutput):
    """Hidden vectors of a Mamba model; the last two when they were requested."""

    last_hidden_state: Tensor | None = None  # (batch, length, width)
    cache: MambaCache | None = None  # what the next position needs
    hidden_states: tuple[Tensor, ...] | None = None  # input of every block and the final output


class _MambaPreTrainedModel(StateSpacePreTrainedModel):
    config_class = MambaConfig
    base_model_prefix = "backbone"
    token_table = "embedding"
    _no_split_modules = ["_Block"]  # noqa: RUF012 (the library's own form)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name the copies of shared tensors."""
        tied = {"lm_head.weight": "backbone.embedding.weight"}
        return tied if self.config.tie_word_embeddings else {}


class _Block(GradientCheckpointingLayer):
    """Add to the running sum, normalize, mix; transformers can have it computed again."""

    def __init__(self, config: MambaConfig) -> None:
        super().__init__()
        self.norm = Norm(config.d_model, config.norm_epsilon, config.rms_norm)
        self.mixer = MambaMixer(config.d_model, **config.mixer.layer_options())
        self.residual_in_fp32 = config.residual_in_fp32

    def forward(
        self, hidden: Tensor, residual: Tensor | None = None, mask: Tensor | None = None,
        state: MambaState | None = None,
    ) -> tuple[Tensor, Tensor, MambaState]:  # fmt: skip
        """Give (output of the mixer, running sum before it, what the next position needs)."""
        hidden, residual = add_norm(self.norm, hidden, residual, self.residual_in_fp32)
        hidden, after = self.mixer(hidden, mask, state)
        return hidden, residual, after


class MambaModel(_MambaPreTrainedModel):
    """Mamba without a head: one vector per position."""

    def __init__(self, config: MambaConfig, **_: Any) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_rows, config.d_model)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.norm_f = Norm(config.d_model, config.norm_epsilon, config.rms_norm)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, cache: MambaCache | None = None,
        use_cache: bool = False, output_hidden_states: bool | None = None, **rest: Any,
    ) -> Any:  # fmt: skip
        """Encode token ids to ``last_hidden_state`` (batch, length, width).

        Parameters
        ----------
        input_ids, inputs_embeds, output_hidden_states
            As in :meth:`megabase.models.decoder.DecoderModel.forward`.
        attention_mask
            1 at real tokens, shape (batch, length). Padding neither enters convolutions nor states,
            so real positions do not depend on it, unless ``config.mask_padding`` is False (the
            published models ignore the mask).
        cache
            ``cache`` of an earlier output, to continue after its last position.
        use_cache
            Whether to return a cache.
        """
        refuse_rest(self, rest)
        self._given(input_ids, inputs_embeds)
        hidden: Tensor = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        collect = self._collects(output_hidden_states)
        mask = self.mixer_mask(attention_mask)
        residual: Tensor | None = None
        seen: list[Tensor] = []
        states: list[MambaState] = []
        for i, layer in enumerate(self.layers):
            if collect:
                seen.append(hidden if residual is None else hidden + residual)
            before = None if cache is None else cache[i]
            hidden, residual, state = layer(hidden, residual, mask, before)
            states += [state] if use_cache else []
        hidden = add_norm(self.norm_f, hidden, residual, self.config.residual_in_fp32)[0]
        after = tuple(states) if use_cache else None
        return _MambaOutput(hidden, after, (*seen, hidden) if collect else None)


_MambaPreTrainedModel.base_class = MambaModel


class MambaForCausalLM(_MambaPreTrainedModel, CausalLM):
    """Mamba with the next-token head it is pretrained with."""

    encoder_options = ("cache", "use_cache")

    @torch.no_grad()
    def step(self, input_ids: Tensor, cache: MambaCache | None = None) -> tuple[Tensor, MambaCache]:
        """Read one more token of every sequence, ids (batch,) or (batch, 1).

        Gives the logits (batch, config.vocab_rows) of the full pass at this position, and the cache
        for the next call, whose size does not grow. `cache` is that of the call before, or of a
        forward pass with ``use_cache``; None at the first token.
        """
        ids = input_ids.reshape(-1, 1)
        output = self(input_ids=ids, cache=cache, use_cache=True, return_dict=True)
        return output.logits[:, -1], output.cache


class MambaForSequenceClassification(_MambaPreTrainedModel, SequenceClassifier):
    """Mamba, pooled over positions, with a linear head."""


class MambaForTokenClassification(_MambaPreTrainedModel, TokenClassifier):
    """Mamba with a linear head at every position."""


_RULES = (reader.HEAD_RULE, (r"^backbone\.embeddings\.weight", "backbone.embedding.weight"))
"""The second is the name in transformers' own Mamba."""
_EMBEDDING = "backbone.embedding.weight"  # the tied copy of the head, and what tells the width


def convert(weights: reader.Weights, **overrides: Any) -> reader.ConvertedModel:
    """Build a causal language model, classifier or bare model, by the heads of the weights."""
    tensors, dropped = reader.renamed(weights.tensors, _RULES)
    bare = "embedding.weight" in tensors
    if bare:
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    settings = reader.recorded_settings(
        weights, MambaConfig, (None, MambaConfig.model_type, "mamba")
    )
    head = "lm_head.weight"
    found = read_shapes(tensors, _EMBEDDING, head, "backbone.layers.", "mixer.", weights.path)
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    notes = []
    if "residual_in_fp32" not in settings:
        notes.append("residual_in_fp32 is not recorded; taken as False (it matters below float32)")
    config = MambaConfig(**{**settings, **found, **overrides})
    bare = bare and head not in tensors
    return build_found(config, tensors, weights.path, bare=bare, notes=notes, dropped=dropped)
