"""HyenaDNA as transformers models.

State-dict names are those of the published ``LongSafari/hyenadna-*-hf`` folders. One thing differs
there: the published port stores the positional table ``pos_emb.z`` as a trainable parameter. Here
it is a buffer unless ``config.lr_pos_emb`` is above 0, as in the published training runs; its
values are taken from the checkpoint either way.
"""

from __future__ import annotations

from typing import Any

from megabase.layers.hyena import ACTIVATIONS
from megabase.models.base import Problems
from megabase.models.decoder import MIXERS, DecoderConfig, DecoderModel, DecoderPreTrainedModel
from megabase.models.heads import CausalLM, SequenceClassifier, TokenClassifier


class HyenaDNAConfig(DecoderConfig):
    """Settings of a HyenaDNA model (HyenaDNA paper, arXiv 2306.15794).

    Names are those of the published ``LongSafari/hyenadna-*-hf`` folders, so that such a folder
    loads as it is. Defaults are the shape of the published tiny-1k model. The other settings are
    those of :class:`megabase.models.base.LanguageModelConfig`.

    Attributes
    ----------
    d_inner : int or None
        Width inside the MLP; four times the width when None.
    max_seq_len : int
        Longest input in tokens (``l_max``, published as length + 2). The filter depends on it.
    hyena_order : int
        Number of gates, at least 2.
    emb_dim : int
        Positional features of the filter, odd.
    filter_order : int
        Width of the filter network.
    num_inner_mlps : int
        Hidden layers of the filter network after the first.
    activation_freq : float
        Initial frequency of the filter's sines.
    train_freq : bool
        Whether the frequencies learn.
    short_filter_order : int
        Taps of the short convolution.
    use_bias : bool
        Whether the filter's skip term acts (the published Hugging Face port ignores the flag).
    modulate : bool
        Whether the filter is multiplied by the decaying window.
    window_shift : float
        Constant added to the window: 0.05 in the published loaders, 0.0 in the published training
        code. No published file records it.
    fast_decay_pct, slow_decay_pct, decay_target : float
        Decay rates of the window.
    normalized_filter : bool
        Whether filter taps are divided by their L1 norm over channels.
    filter_layout : str
        Numbering of filter channels for orders above 2: ``training`` or ``standalone``.
    bidirectional : str
        ``none`` (causal), ``published`` (the published arithmetic) or ``two_sided``.
    output_activation : str
        Function between the last gate and the output projection.
    lr_pos_emb : float
        Learning rate of the positional table; 0 makes it a constant.
    attention_layers : list of int
        Blocks that mix by causal attention instead of Hyena.
    mixers : str or list of str or None
        Registered mixer of every block, or one for each
        (:func:`megabase.models.decoder.register_mixer`); None for Hyena, and attention in
        `attention_layers`.
    attention_heads : int
        Heads of blocks with attention.
    attention_dropout : float
        Dropout of attention weights.
    max_position_embeddings : int
        Rows of a learned position table added to the embeddings; 0 for none.
    embed_dropout, resid_dropout, hyena_dropout : float
        Dropout of the embeddings, of block outputs, and of gated values inside the operator.
    hyena_filter_dropout : float
        Accepted and never applied, as in the published code.
    layer_norm_epsilon, initializer_range : float
        Epsilon of every LayerNorm; standard deviation of initial weights.
    residual_in_fp32 : bool
        Whether the running sum is kept in float32 at least.
    """

    model_type = "hyenadna"
    attribute_map = {**DecoderConfig.attribute_map, "num_attention_heads": "attention_heads"}  # noqa: RUF012
    computed = ("num_attention_heads",)

    max_seq_len: int = 1026
    hyena_order: int = 2
    emb_dim: int = 5
    filter_order: int = 64
    num_inner_mlps: int = 2
    activation_freq: float = 10
    train_freq: bool = True
    short_filter_order: int = 3
    use_bias: bool = True
    modulate: bool = True
    window_shift: float = 0.05
    fast_decay_pct: float = 0.3
    slow_decay_pct: float = 1.5
    decay_target: float = 0.01
    normalized_filter: bool = False
    filter_layout: str = "training"
    bidirectional: str = "none"
    output_activation: str = "id"
    lr_pos_emb: float = 0.0
    attention_layers: list[int] | None = None
    mixers: str | list[str] | None = None
    attention_heads: int = 8
    hyena_dropout: float = 0.0
    hyena_filter_dropout: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        self.attention_layers = sorted(self.attention_layers or [])
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read settings from a ``config.json``.

        A classifier written by the published port says nothing about its head, which reads the
        last token and has no bias; our own files always say.
        """
        heads = config_dict.get("architectures") or []
        if "pooling" not in config_dict and any("SequenceClassification" in str(h) for h in heads):
            config_dict = {**config_dict, "pooling": "hf", "head_bias": False}
        return super().from_dict(config_dict, **kwargs)

    def _check(self, problems: Problems) -> None:
        problems.whole("max_seq_len", "filter_order", "short_filter_order")
        problems.whole("hyena_order", at_least=2)
        problems.whole("emb_dim", at_least=3)
        problems.whole("num_inner_mlps", "max_position_embeddings", at_least=0)
        problems.number("hyena_dropout", high=1.0)
        problems.number("window_shift", "lr_pos_emb")
        problems.number("fast_decay_pct", "slow_decay_pct", low=1e-12)
        problems.number("decay_target", low=1e-300, high=1.0)
        problems.one_of("filter_layout", ("training", "standalone"))
        problems.one_of("bidirectional", ("none", "published", "two_sided"))
        problems.one_of("output_activation", ACTIVATIONS)
        if isinstance(self.emb_dim, int):
            problems.demand(self.emb_dim % 2 == 1, f"emb_dim must be odd, found {self.emb_dim}")
        if isinstance(self.n_layer, int):
            layers = self.attention_layers or []
            problems.demand(
                all(isinstance(i, int) and 0 <= i < self.n_layer for i in layers),
                f"attention_layers must be block numbers from 0 to {self.n_layer - 1}, "
                f"found {layers}",
            )
            names = self.mixer_names
            if "attention" in names:
                self._check_heads(problems)
            problems.demand(
                len(names) == self.n_layer and all(name in MIXERS for name in names),
                f"mixers must be one or {self.n_layer} of {', '.join(MIXERS)}, found {self.mixers}",
            )
        super()._check(problems)

    @property
    def mixer_names(self) -> list[str]:
        """Registered name of the mixer of every block."""
        if isinstance(self.mixers, str):
            return [self.mixers] * self.n_layer
        if self.mixers is not None:
            return list(self.mixers)
        attends = self.attention_layers or []
        return ["attention" if i in attends else "hyena" for i in range(self.n_layer)]

    def to_dict(self) -> dict[str, Any]:
        """Give all settings, and the heads under the name that other libraries look for."""
        found = super().to_dict()
        if found.get("mixers") is None:  # settings of before say nothing of it
            found.pop("mixers", None)
        return found

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        if self.max_position_embeddings > 0:
            return min(self.max_seq_len, self.max_position_embeddings)
        return self.max_seq_len

    @property
    def length_setting(self) -> str:
        """Name of the setting that limits the length."""
        return "max_seq_len" if self.max_length == self.max_seq_len else "max_position_embeddings"

    @property
    def works_piecewise(self) -> bool:
        """Whether a training step keeps only the running sums and the filters."""
        return (
            self.hyena_order == 2
            and set(self.mixer_names) == {"hyena"}
            and self.hyena_dropout == 0
            and self.output_activation == "id"
            and not self.normalized_filter
        )

    @property
    def is_causal_model(self) -> bool:
        """Whether no position sees a later one."""
        return self.bidirectional == "none"


class _HyenaDNA(DecoderPreTrainedModel):
    config_class = HyenaDNAConfig
    base_model_prefix = "hyena"
    # In bfloat16 most lags would share their times with others.
    _keep_in_fp32_modules_strict = ["pos_emb", "modulation"]  # noqa: RUF012


class HyenaDNAModel(_HyenaDNA, DecoderModel):
    """HyenaDNA without a head: one vector per position."""


_HyenaDNA.base_class = HyenaDNAModel


class HyenaDNAForCausalLM(_HyenaDNA, CausalLM):
    """HyenaDNA with the next-token head it is pretrained with."""


class HyenaDNAForSequenceClassification(_HyenaDNA, SequenceClassifier):
    """HyenaDNA with a pooled linear head, for labels of whole sequences."""


class HyenaDNAForTokenClassification(_HyenaDNA, TokenClassifier):
    """HyenaDNA with a linear head at every position, for labels of nucleotides."""
