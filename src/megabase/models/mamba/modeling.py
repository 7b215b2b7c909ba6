"""Mamba as transformers models, and what Caduceus shares with it.

State-dict names are those of the public state-spaces/mamba code: ``backbone.embedding.weight``,
``backbone.layers.0.mixer.A_log``, ``backbone.norm_f.weight``, ``lm_head.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput, can_return_tuple

from megabase.errors import CheckpointError
from megabase.layers.linear import can_read
from megabase.layers.mamba import MambaBlock, MambaMixer, MambaState
from megabase.layers.norms import RMSNorm, add_norm, make_norm
from megabase.layers.rcps import RCPSEmbedding, RCPSHead
from megabase.models.base import DNAModel, optimizer_groups, refuse_rest
from megabase.models.heads import CausalLM, SequenceClassifier, TokenClassifier
from megabase.models.mamba.configuration import MambaConfig, MixerSettings, StateSpaceConfig

MambaCache = tuple[MambaState, ...]
"""What the model remembers of the positions before: one state for each block."""


@dataclass
class _MambaOutput(ModelOutput):
    """Hidden vectors of a Mamba model."""

    last_hidden_state: Tensor | None = None
    """Shape (batch, length, width)."""
    cache: MambaCache | None = None
    """What the next position needs, when it was requested."""
    hidden_states: tuple[Tensor, ...] | None = None
    """Input of every block and the final output, when they were requested."""


class StateSpacePreTrainedModel(DNAModel):
    """Initial weights, optimizer groups and tied tensors of both families."""

    config: StateSpaceConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the published initial values.

        Embeddings and classifiers N(0, range^2); other linear maps and convolutions as torch does,
        with biases of linear maps 0, and ``out_proj`` divided by the root of the number of blocks;
        ``A = -(1, 2, ..., N)``, ``D = 1``; initial step sizes log-uniform from ``dt_min`` to
        ``dt_max``.
        """
        if isinstance(module, RCPSEmbedding | RCPSHead):
            # Their weights are those of a module inside. The library builds models without memory
            # first, so computed tables are filled here.
            init.copy_(module.complement_map, module.table())
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.Conv1d):
            if module is getattr(self, "score", None):
                init.normal_(module.weight, std=self.config.initializer_range)
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                if isinstance(module, nn.Conv1d):
                    bound = 1 / math.sqrt(module.kernel_size[0])
                    init.uniform_(module.bias, -bound, bound)
                else:
                    init.zeros_(module.bias)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                init.zeros_(module.bias)
        elif isinstance(module, MambaMixer):
            _init_mixer(module, self.config.mixer, self.config.residual_scale)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model folder; as in transformers, but strict about tied tensors.

        CheckpointError when both copies of a tied tensor are in the file with different values.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        _check_ties(model, pretrained_model_name_or_path)
        return (model, info) if wants_info else model

    def parameter_groups(
        self, lr: float, weight_decay: float, decay_rms_norm: bool = True
    ) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer.

        Biases, embeddings (and a head tied to them), LayerNorms, ``A_log`` and ``D`` do not decay.
        RMSNorms do where `decay_rms_norm`, as in the public training code, whose list of exceptions
        does not know that norm.
        """
        spared: set[int] = set()
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.LayerNorm) or (
                isinstance(module, RMSNorm) and not decay_rms_norm
            ):
                spared.update(id(parameter) for parameter in module.parameters(recurse=False))

        def group_of(name: str, parameter: nn.Parameter) -> str:
            last = name.rsplit(".", 1)[-1]
            keeps = id(parameter) in spared or last in ("A_log", "D", "bias")
            return "not_decayed" if keeps else "decayed"

        settings = {"decayed": (lr, weight_decay), "not_decayed": (lr, 0.0)}
        return optimizer_groups(self, settings, group_of)

    def mixer_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Give the mask the mixers need, or None when nothing has to be hidden."""
        if attention_mask is None or not self.config.mask_padding:
            return None
        mask = attention_mask.bool()
        return None if can_read(mask) and bool(mask.all()) else mask


def _init_mixer(mixer: MambaMixer, settings: MixerSettings, residual_scale: float) -> None:
    """Draw the initial weights of a mixer."""
    # Drawn for a copy too, so that the numbers after it do not depend on what is tied or loaded.
    drawn = torch.empty_like(mixer.out_proj.weight, device=mixer.D.device)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
    init.copy_(mixer.out_proj.weight, drawn * residual_scale)
    bound = settings.dt_scale * mixer.dt_rank**-0.5
    if settings.dt_init == "constant":
        init.constant_(mixer.dt_proj.weight, bound)
    else:
        init.uniform_(mixer.dt_proj.weight, -bound, bound)
    low, high = math.log(settings.dt_min), math.log(settings.dt_max)
    steps = torch.exp(torch.rand_like(mixer.dt_proj.bias) * (high - low) + low)
    steps = steps.clamp(min=settings.dt_init_floor)
    # The inverse of softplus, so that the first step sizes are `steps`.
    init.copy_(mixer.dt_proj.bias, steps + torch.log(-torch.expm1(-steps)))
    rates = torch.arange(1, mixer.d_state + 1, dtype=mixer.A_log.dtype, device=mixer.A_log.device)
    init.copy_(mixer.A_log, torch.log(rates).expand_as(mixer.A_log))
    init.ones_(mixer.D)


def _check_ties(model: DNAModel, source: object) -> None:
    """Demand that tied tensors of a loaded model were one in its file."""
    parted = [
        f"{copy} and {first}"
        for copy, first in model.get_expanded_tied_weights_keys().items()
        if model.get_parameter(copy) is not model.get_parameter(first)
    ]
    if parted:
        raise CheckpointError(
            f"{source}: the configuration ties tensors that have different values in the file "
            f"({'; '.join(parted)}); load it with tie_word_embeddings=False (the head) or "
            "bidirectional_weight_tie=False (the two directions)"
        )


class _MambaPreTrainedModel(StateSpacePreTrainedModel):
    config_class = MambaConfig
    base_model_prefix = "backbone"
    token_table = "embedding"
    _no_split_modules = ["_Block"]  # noqa: RUF012 (the library's own form)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name the copies of shared tensors."""
        tied = {"lm_head.weight": "backbone.embedding.weight"}
        return tied if self.config.tie_word_embeddings else {}


class _Block(GradientCheckpointingLayer, MambaBlock):
    """A block that transformers can have computed again in the backward pass."""


class MambaModel(_MambaPreTrainedModel):
    """Mamba without a head: one vector per position."""

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

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache: MambaCache | None = None,
        use_cache: bool = False,
        output_hidden_states: bool | None = None,
        **rest: Any,
    ) -> Any:
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
            if use_cache:
                states.append(state)
        hidden = add_norm(self.norm_f, hidden, residual, self.config.residual_in_fp32)[0]
        return _MambaOutput(
            last_hidden_state=hidden,
            cache=tuple(states) if use_cache else None,
            hidden_states=(*seen, hidden) if collect else None,
        )


class MambaForCausalLM(_MambaPreTrainedModel, CausalLM):
    """Mamba with the next-token head it is pretrained with."""

    base_class = MambaModel
    encoder_options = ("cache", "use_cache")

    @torch.no_grad()
    def step(self, input_ids: Tensor, cache: MambaCache | None = None) -> tuple[Tensor, MambaCache]:
        """Read one more token of every sequence, ids (batch,) or (batch, 1).

        Gives the logits (batch, config.vocab_rows) of the full pass at this position, and the cache
        for the next call, whose size does not grow. `cache` is that of the call before, or of a
        forward pass with ``use_cache``; None at the first token.
        """
        output = self(
            input_ids=input_ids.reshape(-1, 1), cache=cache, use_cache=True, return_dict=True
        )
        return output.logits[:, -1], output.cache


class MambaForSequenceClassification(_MambaPreTrainedModel, SequenceClassifier):
    """Mamba, pooled over positions, with a linear head."""

    base_class = MambaModel


class MambaForTokenClassification(_MambaPreTrainedModel, TokenClassifier):
    """Mamba with a linear head at every position."""

    base_class = MambaModel
