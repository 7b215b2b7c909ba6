"""What the HyenaDNA and GPT families share as transformers models.

Both are one shell (:mod:`megabase.layers.backbone`) with different mixers. This module holds the
initialisation, the optimizer groups, the tying of names and the base model's forward pass;
:mod:`megabase.models.shell_heads` holds the heads; a family adds its configuration and its mixers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Literal, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from megabase.errors import ConfigError, sequence_too_long
from megabase.layers.attention import SelfAttention
from megabase.layers.backbone import Backbone, Block
from megabase.layers.hyena_filter import ExponentialWindow, HyenaFilter, PositionalFeatures, Sine
from megabase.layers.linear import ResidualLinear, can_read
from megabase.models.checkpoints.shared_tensors import SharedTensors
from megabase.models.forward import collects, finish, given_once, refuse_rest

__all__ = ["ShellBlock", "ShellModel", "ShellPreTrainedModel"]

_SINE_COPY = re.compile(r"^(.*implicit_filter\.)(\d+)\.freq$")


class ShellBlock(GradientCheckpointingLayer, Block):
    """A block that transformers can have computed again in the backward pass."""


class ShellPreTrainedModel(  # pyright: ignore[reportIncompatibleVariableOverride]
    SharedTensors, PreTrainedModel
):
    """Initialization, optimizer groups and tied names of the shell families."""

    supports_gradient_checkpointing = True
    _no_split_modules = ["ShellBlock"]  # noqa: RUF012 (the library's own form)
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the published initial values.

        Linear and embedding weights N(0, range^2), biases 0; the maps that write into the running
        sum (``out_proj``, ``fc2``) with range / sqrt(2 n_layer) instead; the short convolution
        U(-1/sqrt(k), 1/sqrt(k)); the skip term N(0, 1). Computed tables are filled here too,
        because the library builds models without memory first.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            if isinstance(module, ResidualLinear):
                std /= math.sqrt(2 * self.config.n_layer)
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):
            bound = 1 / math.sqrt(module.kernel_size[0])
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, Sine):
            init.constant_(module.freq, module.frequency)
        elif isinstance(module, PositionalFeatures):
            z, t = module.tables()
            init.copy_(module.z, z)
            init.copy_(module.t, t)
        elif isinstance(module, ExponentialWindow):
            init.copy_(module.deltas, module.table())
        elif isinstance(module, HyenaFilter):
            init.normal_(module.bias)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Name the copies of shared tensors.

        The sines of a filter share one frequency in every model; the head shares the embedding
        when ``config.tie_word_embeddings``.
        """
        tied: dict[str, str] = {}
        for name in names:
            found = _SINE_COPY.match(name)
            if found and found.group(2) != "1":
                tied[name] = f"{found.group(1)}1.freq"
        if self.config.tie_word_embeddings:
            prefix = self.base_model_prefix
            tied["lm_head.weight"] = f"{prefix}.backbone.embeddings.word_embeddings.weight"
        return tied

    def parameter_groups(
        self,
        lr: float,
        weight_decay: float,
        filter_weight_decay: float = 0.0,
        decay: Literal["published", "standard"] = "published",
    ) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer.

        Parameters
        ----------
        lr
            Learning rate of everything but a learned positional table, which has
            ``config.lr_pos_emb``.
        weight_decay
            Weight decay of ordinary parameters.
        filter_weight_decay
            Weight decay of the filter networks and their sine frequencies (published: 0).
        decay
            ``"published"``: every other parameter decays, biases, norms and embeddings too, as in
            the public training code. ``"standard"``: biases, norms, embeddings and the skip term
            do not decay.

        Returns
        -------
        list of dict
            Each with ``name``, ``params``, ``lr`` and ``weight_decay``; empty groups are left out.

        Raises
        ------
        ConfigError
            When `decay` is unknown.
        """
        if decay not in ("published", "standard"):
            raise ConfigError(f"decay must be published or standard, found {decay!r}")
        members: dict[str, list[nn.Parameter]] = {
            "decayed": [],
            "not_decayed": [],
            "filter": [],
            "positions": [],
        }
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            if ".pos_emb." in name:
                group = "positions"
            elif ".implicit_filter." in name:
                group = "filter"
            elif decay == "standard" and (parameter.dim() < 2 or "embeddings." in name):
                group = "not_decayed"
            else:
                group = "decayed"
            members[group].append(parameter)
        settings = {
            "decayed": (lr, weight_decay),
            "not_decayed": (lr, 0.0),
            "filter": (lr, filter_weight_decay),
            "positions": (getattr(self.config, "lr_pos_emb", 0.0), 0.0),
        }
        return [
            {"name": name, "params": members[name], "lr": rate, "weight_decay": wd}
            for name, (rate, wd) in settings.items()
            if members[name]
        ]

    def _mixer_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Give the mask the mixers need, or None when padding cannot reach a real position."""
        if attention_mask is None or not self.config.mask_padding:
            return None
        mask = attention_mask.bool()
        # Right padding lies after every real token: a causal model never sees it.
        readable = self.config.is_causal_model and can_read(mask)
        return None if readable and bool((mask[:, :-1] | ~mask[:, 1:]).all()) else mask


class ShellModel(ShellPreTrainedModel):
    """Embeddings, blocks and final norm; gives one vector per position."""

    backbone: Backbone

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        return self.backbone.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.backbone.embeddings.word_embeddings = cast("nn.Embedding", value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        **rest: Any,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode token ids.

        Parameters
        ----------
        input_ids
            Shape (batch, length); or give `inputs_embeds`.
        attention_mask
            1 at real tokens, shape (batch, length). A causal model on right-padded input gives the
            same vectors at real positions with and without it. With left padding, or in a model
            that also looks ahead, padded positions are emptied before every convolution unless
            ``config.mask_padding`` is False (the published models ignore the mask).
        inputs_embeds
            Embeddings instead of ids, shape (batch, length, width).
        output_hidden_states
            Whether to return the input of every block and the final output as well.
        return_dict
            Whether to return an object instead of a tuple.
        output_attentions
            Whether to return the weights of every block that attends, each (batch, heads, length,
            length). They take memory in the square of the length.

        Returns
        -------
        BaseModelOutput
            ``last_hidden_state`` has shape (batch, length, width).

        Raises
        ------
        InputError
            When the input is longer than ``config.max_length``.
        ConfigError
            When not exactly one of `input_ids` and `inputs_embeds` is given, or for an argument
            that the model cannot honor: attention weights where no block attends.
        """
        refuse_rest(self, rest)
        given = given_once(input_ids, inputs_embeds)
        if given.shape[1] > self.config.max_length:
            raise sequence_too_long(
                given.shape[1], self.config.max_length, self.config.length_setting
            )
        collect = collects(self.config, output_hidden_states)
        attentions = self._attentions(output_attentions)
        mask = self._mixer_mask(attention_mask)
        hidden, states = self.backbone(input_ids, inputs_embeds, mask, collect, attentions)
        output = BaseModelOutput(
            last_hidden_state=hidden,
            hidden_states=states,
            attentions=None if attentions is None else cast("Any", tuple(attentions)),
        )
        return finish(self, output, return_dict)

    def _attentions(self, wanted: bool | None) -> list[Tensor] | None:
        """Give an empty list for attention weights, where they are asked for."""
        if not (self.config.output_attentions if wanted is None else wanted):
            return None
        blocks = cast("list[Any]", self.backbone.layers)
        if not any(isinstance(block.mixer, SelfAttention) for block in blocks):
            refuse_rest(self, {"output_attentions": True})
        return []
