"""The decoder of HyenaDNA and GPT: embeddings, pre-norm blocks of a mixer and an MLP, final norm.

A mixer moves information between positions. Its name in the configuration chooses among the
registered ones (:func:`register_mixer`), so another mixer needs no other family.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from megabase.errors import sequence_too_long
from megabase.layers.backbone import Backbone, Block, Embeddings, SelfAttention
from megabase.layers.hyena import FilterOptions, HyenaFilter, HyenaOperator
from megabase.layers.linear import ResidualLinear, can_read
from megabase.models.base import (
    DNAModel,
    LanguageModelConfig,
    Problems,
    optimizer_groups,
    refuse_rest,
)
from megabase.registry import Registry

MixerBuilder = Callable[[Any, int], nn.Module]
"""From the configuration of a decoder and the number of a block to its mixer."""
MIXERS: Registry[MixerBuilder] = Registry("mixer", "megabase.mixers")
"""Every mixer by name."""
_SINE_COPY = re.compile(r"^(.*implicit_filter\.)(\d+)\.freq$")
"""A filter's sines share one frequency; these are the names that files may repeat it under."""


def register_mixer(name: str, build: MixerBuilder) -> None:
    """Make a mixer known by name, for ``mixers`` in the configuration of a decoder.

    Parameters
    ----------
    name
        ConfigError when another mixer has it.
    build
        Called as ``build(config, layer)`` for every block that has the mixer; gives a module that
        is called as ``mixer(x, mask)`` with x of shape (batch, length, width), and mask True at
        real positions, shape (batch, length), or None. Where ``config.is_causal_model``, a
        position of its output must not depend on later ones.
    """
    MIXERS.register(name, build)


def _attention(config: Any, layer: int) -> SelfAttention:
    heads, causal = config.num_attention_heads, config.is_causal_model
    return SelfAttention(config.d_model, heads, causal, config.attention_dropout)


def _hyena(config: Any, layer: int) -> HyenaOperator:
    window = {
        "fast_decay": config.fast_decay_pct, "slow_decay": config.slow_decay_pct,
        "target": config.decay_target, "shift": config.window_shift,
    }  # fmt: skip
    options = FilterOptions(
        config.filter_layout, config.emb_dim, config.filter_order, config.num_inner_mlps,
        config.activation_freq, config.train_freq, config.modulate, window,
        config.normalized_filter, config.use_bias, config.lr_pos_emb > 0,
    )  # fmt: skip
    return HyenaOperator(
        config.d_model, config.max_seq_len, config.hyena_order, config.short_filter_order,
        config.bidirectional, config.output_activation, config.hyena_dropout, options,
    )  # fmt: skip


register_mixer("attention", _attention)
register_mixer("hyena", _hyena)


class DecoderConfig(LanguageModelConfig):
    """Settings of a decoder; see :class:`megabase.models.hyenadna.HyenaDNAConfig`."""

    attribute_map = {  # noqa: RUF012 (the library's own form)
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "intermediate_size": "d_inner",
    }
    keys_to_ignore_at_inference = ["hidden_states"]  # noqa: RUF012

    d_inner: int | None = None
    max_position_embeddings: int = 0
    embed_dropout: float = 0.1
    resid_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    residual_in_fp32: bool = True

    if TYPE_CHECKING:  # properties of every family: its longest input in tokens, mixers by name
        num_attention_heads: int = 0
        max_length: Any
        mixer_names: Any
        is_causal_model: Any

    def __post_init__(self, **kwargs: Any) -> None:
        if self.d_inner is None and isinstance(self.d_model, int):
            self.d_inner = 4 * self.d_model
        super().__post_init__(**kwargs)

    def _check(self, problems: Problems) -> None:
        problems.whole("d_inner", self.attribute_map["num_attention_heads"])
        problems.number("embed_dropout", "resid_dropout", "attention_dropout", high=1.0)
        problems.number("initializer_range", "layer_norm_epsilon")

    def _check_heads(self, problems: Problems) -> None:
        """Demand heads that divide the width."""
        width, heads = self.d_model, self.num_attention_heads
        if isinstance(width, int) and isinstance(heads, int):
            problems.demand(
                heads > 0 and width % heads == 0,
                f"{self.attribute_map['num_attention_heads']} must divide d_model {width}, "
                f"found {heads}",
            )

    @property
    def length_setting(self) -> str:
        """Name of the setting that limits the length."""
        return "max_position_embeddings"


class _Block(GradientCheckpointingLayer, Block):
    """A block whose activations transformers can recompute in the backward pass."""


class DecoderPreTrainedModel(DNAModel):
    """Initial weights, optimizer groups and tied names of the decoders."""

    config: DecoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    token_table = "backbone.embeddings.word_embeddings"
    encoder_options = ("output_attentions",)
    _no_split_modules = ["_Block"]  # noqa: RUF012 (the library's own form)
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
        elif isinstance(module, HyenaFilter):
            init.normal_(module.bias)
        elif hasattr(module, "tables"):
            for name, values in cast("Any", module).tables().items():
                init.copy_(getattr(module, name), values)

    def tied_names(self, names: Iterable[str]) -> dict[str, str]:
        """Map the copies of shared tensors to their first names.

        The sines of a filter share one frequency in every model; the head shares the embedding
        when ``config.tie_word_embeddings``.
        """
        pairs = ((name, _SINE_COPY.match(name)) for name in names)
        tied = {name: f"{m.group(1)}1.freq" for name, m in pairs if m and m.group(2) != "1"}
        if self.config.tie_word_embeddings:
            tied["lm_head.weight"] = f"{self.base_model_prefix}.{self.token_table}.weight"
        return tied

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer.

        Filter networks do not decay, as published; everything else does, biases, norms and
        embeddings too, as in the public training code. A learned positional table has the learning
        rate ``config.lr_pos_emb``.
        """
        fixed = (getattr(self.config, "lr_pos_emb", 0.0), 0.0)
        settings = {"decayed": (lr, weight_decay), "filter": (lr, 0.0), "positions": fixed}

        def group_of(name: str, parameter: nn.Parameter) -> str:
            if ".pos_emb." in name:
                return "positions"
            return "filter" if ".implicit_filter." in name else "decayed"

        return optimizer_groups(self, settings, group_of)

    def _real_tokens(
        self, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Tensor | None:
        # The published port pools by pad tokens and never looks at the mask.
        pad = self.config.pad_token_id
        by_tokens = attention_mask is None or self.config.pooling == "hf"
        tells = by_tokens and input_ids is not None and pad is not None
        return cast("Tensor", input_ids) != pad if tells else attention_mask


class DecoderModel(DecoderPreTrainedModel):
    """A decoder without a head: one vector per position."""

    def __init__(self, config: DecoderConfig, **_: Any) -> None:
        super().__init__(config)
        width, inner = config.d_model, cast("int", config.d_inner)
        eps, drop, wide = config.layer_norm_epsilon, config.resid_dropout, config.residual_in_fp32
        layers = []
        for i, mixer in enumerate(config.mixer_names):
            first = drop if i else config.embed_dropout
            layers.append(_Block(MIXERS[mixer](config, i), width, inner, eps, first, drop, wide))
        embeddings = Embeddings(config.vocab_rows, width, config.max_position_embeddings)
        self.backbone = Backbone(embeddings, layers, width, eps, drop)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_hidden_states: bool | None = None,
        output_attentions: bool | None = None, **rest: Any,
    ) -> Any:  # fmt: skip
        """Encode token ids to ``last_hidden_state`` (batch, length, width).

        Parameters
        ----------
        input_ids, inputs_embeds
            Exactly one of ids (batch, length) and embeddings (batch, length, width); InputError
            when longer than ``config.max_length``.
        attention_mask
            1 at real tokens, shape (batch, length). A causal model on right-padded input gives the
            same vectors at real positions with and without it. With left padding, or in a model
            that also looks ahead, padded positions are emptied before every convolution unless
            ``config.mask_padding`` is False (the published models ignore the mask).
        output_hidden_states
            Whether to return the input of every block and the final output as well.
        output_attentions
            Whether to return the weights of every block that attends, each (batch, heads, length,
            length): memory in the square of the length. ConfigError where no block attends.
        """
        refuse_rest(self, rest)
        length, longest = self._given(input_ids, inputs_embeds).shape[1], self.config.max_length
        if length > longest:
            raise sequence_too_long(length, longest, self.config.length_setting)
        collect = self._collects(output_hidden_states)
        attentions = self._attentions(output_attentions)
        mask = self._mixer_mask(attention_mask)
        hidden, states = self.backbone(input_ids, inputs_embeds, mask, collect, attentions)
        attended = None if attentions is None else cast("Any", tuple(attentions))
        return BaseModelOutput(hidden, states, attended)

    def _attentions(self, wanted: bool | None) -> list[Tensor] | None:
        """Give an empty list for attention weights, where they are requested."""
        if not (self.config.output_attentions if wanted is None else wanted):
            return None
        blocks = cast("list[Any]", self.backbone.layers)
        if not any(isinstance(block.mixer, SelfAttention) for block in blocks):
            refuse_rest(self, {"output_attentions": True})
        return []

    def _mixer_mask(self, attention_mask: Tensor | None) -> Tensor | None:
        """Give the mask the mixers need, or None when padding cannot reach a real position."""
        if attention_mask is None or not self.config.mask_padding:
            return None
        mask, right = attention_mask.bool(), self.padded_side == "right"
        # What other processes hold is not known here.
        if self.backbone.sharded is not None or not self.config.is_causal_model:
            return mask
        if self.padded_side is None and can_read(mask):
            right = bool((mask[:, :-1] | ~mask[:, 1:]).all())
        # Right padding lies after every real token: a causal model never sees it.
        return None if right else mask
