"""HyenaDNA as transformers models, and published checkpoints into them.

State-dict names are those of the published ``LongSafari/hyenadna-*-hf`` folders. Their port stores
the positional table ``pos_emb.z`` as a trainable parameter; here it is a buffer unless
``config.lr_pos_emb`` is above 0, as in the published training runs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megabase.errors import CheckpointError
from megabase.layers.hyena import ACTIVATIONS
from megabase.models.base import Problems
from megabase.models.checkpoints import reader
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
    hyena_order, short_filter_order : int
        Number of gates, at least 2; taps of the short convolution.
    emb_dim, filter_order, num_inner_mlps : int
        Of the filter network: positional features (odd), width, hidden layers after the first.
    activation_freq, train_freq : float, bool
        Initial frequency of the filter's sines, and whether they learn.
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
    attention_layers, attention_heads : list of int, int
        Blocks that mix by causal attention instead of Hyena, and their heads.
    mixers : str or list of str or None
        Registered mixer of every block, or one for each
        (:func:`megabase.models.decoder.register_mixer`), in place of Hyena and `attention_layers`.
    max_position_embeddings : int
        Rows of a learned position table added to the embeddings; 0 for none.
    embed_dropout, resid_dropout, hyena_dropout, attention_dropout : float
        Dropout of the embeddings, block outputs, gated values inside the operator, attention.
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
                f"mixers must be one or {self.n_layer} of {', '.join(MIXERS)}, "
                f"found {self.mixers}; {MIXERS.advice}",
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
        """Give all settings, but `mixers` that are None: settings of before say nothing of it."""
        found = super().to_dict()
        return {k: v for k, v in found.items() if k != "mixers" or v is not None}

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        return min(self.max_seq_len, self.max_position_embeddings or self.max_seq_len)

    @property
    def length_setting(self) -> str:
        """Name of the setting that limits the length."""
        return "max_seq_len" if self.max_length == self.max_seq_len else "max_position_embeddings"

    @property
    def works_piecewise(self) -> bool:
        """Whether a training step keeps only the running sums and the filters."""
        plain = self.hyena_dropout == 0 and self.output_activation == "id"
        fuses = plain and self.hyena_order == 2 and not self.normalized_filter
        return fuses and set(self.mixer_names) == {"hyena"}

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


NAME_RULES = (
    (r"\.(mixer|mlp)\.layer\.", r".\1."),  # blocks that were recomputed in training
    (r"^backbone\.", "hyena.backbone."),  # the training repository and its standalone loader
    reader.HEAD_RULE,
    (r"^(.*\.implicit_filter)\.\d+\.freq$", r"\1.1.freq"),  # one frequency, under several numbers
)
"""From the names of the training repository (HazyResearch/hyena-dna) to ours, which are those of
the ``LongSafari/hyenadna-*-hf`` files: ``hyena.backbone.layers.0.mixer...``, ``lm_head.weight``,
``score.weight``."""
_EMBEDDING = "hyena.backbone.embeddings.word_embeddings.weight"
"""What tells the vocabulary and the width."""
_POSITIONS = "hyena.backbone.embeddings.position_embeddings.weight"
"""A learned position table, which few published models have."""
_LAYER = re.compile(r"^hyena\.backbone\.layers\.(\d+)\.(.*)$")
"""Number of a block, and the name of a tensor inside it."""
_TABLE = r"\.filter_fn\.(pos_emb\.[zt]|modulation\.deltas)$"
"""Tables that a file may lack, since their formulas give them."""
_VOCABULARY, _ROWS = 12, 16
"""Tokens of every published model, and the rows they are padded to."""
# Names of the training repository's settings that are not ours, by the table that has them.
_TABLES = {
    "": {"attn_layer_idx": "attention_layers"},
    "layer": {
        **{name: name for name in (
            "emb_dim", "filter_order", "num_inner_mlps", "short_filter_order", "modulate",
            "fast_decay_pct", "slow_decay_pct", "lr_pos_emb", "bidirectional")},
        "l_max": "max_seq_len", "order": "hyena_order", "w": "activation_freq",
        "normalized": "normalized_filter", "bias": "use_bias", "shift": "window_shift",
        "target": "decay_target", "dropout": "hyena_dropout", "activation": "output_activation",
        "filter_dropout": "hyena_filter_dropout",
    },
    "attn_cfg": {"num_heads": "attention_heads", "dropout": "attention_dropout"},
}  # fmt: skip


def _published_settings(weights: reader.Weights) -> dict[str, Any]:
    """Give what the files say, in the words of the training repository or of transformers."""
    accepted = (None, HyenaDNAConfig.model_type)
    settings = reader.recorded_settings(weights, HyenaDNAConfig, accepted, _TABLES)
    if isinstance(settings.get("bidirectional"), bool):
        settings["bidirectional"] = "published" if settings["bidirectional"] else "none"
    config = weights.config or {}
    if config.get("model_type") is not None:
        fields = {*reader.LABEL_KEYS, *(one.name for one in dataclasses.fields(HyenaDNAConfig))}
        settings |= {name: value for name, value in config.items() if name in fields}
        if "pooling" not in config:  # written by the published port, not by us
            settings["pooling"] = "hf"
            settings.setdefault("window_shift", 0.05)
    settings.pop("tie_word_embeddings", None)  # the weights tell
    return settings


def _shapes(tensors: Mapping[str, Tensor], path: object) -> dict[str, Any]:
    """Read from the weights every setting that they decide."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _LAYER.match(name):
            layers.setdefault(int(match.group(1)), {})[match.group(2)] = tensor
    hyena = {i: part for i, part in layers.items() if "mixer.filter_fn.bias" in part}
    if not hyena or _EMBEDDING not in tensors:
        raise CheckpointError(
            f"{path}: expected a HyenaDNA model ({_EMBEDDING}, layers with mixer.filter_fn.bias), "
            f"found {', '.join(list(tensors)[:4])}, ..."
        )
    rows, width = tensors[_EMBEDDING].shape
    padded = rows == _ROWS
    part = next(iter(hyena.values()))

    def size(name: str, dimension: int) -> int:
        if name not in part or part[name].dim() <= dimension:
            raise CheckpointError(f"{path}: the layers have no usable {name}")
        return part[name].shape[dimension]

    mixer, first = "mixer.filter_fn.", "mixer.filter_fn.implicit_filter.0.weight"
    network = re.compile(re.escape(mixer) + r"implicit_filter\.\d+\.weight")
    settings: dict[str, Any] = {
        "vocab_size": _VOCABULARY if padded else rows,
        "pad_vocab_size_multiple": 8 if padded else 1,
        "d_model": width,
        "n_layer": max(layers) + 1,
        "d_inner": size("mlp.fc1.weight", 0),
        "hyena_order": size("mixer.in_proj.weight", 0) // width - 1,
        "short_filter_order": size("mixer.short_filter.weight", 2),
        "emb_dim": size(first, 1),
        "filter_order": size(first, 0),
        "num_inner_mlps": sum(1 for name in part if network.fullmatch(name)) - 2,
        "attention_layers": sorted(set(layers) - set(hyena)),
    }
    if _POSITIONS in tensors:
        settings["max_position_embeddings"] = tensors[_POSITIONS].shape[0]
    if f"{mixer}pos_emb.z" in part:
        settings["max_seq_len"] = size(f"{mixer}pos_emb.z", 1)
    deltas = part.get(f"{mixer}modulation.deltas")
    if deltas is not None and deltas.numel() > 1:  # told when they are not the published ones
        level = math.log(HyenaDNAConfig.decay_target)
        for name, i in (("slow_decay_pct", 0), ("fast_decay_pct", -1)):
            found, usual = level / float(deltas.flatten()[i]), getattr(HyenaDNAConfig, name)
            if not math.isclose(found, usual, rel_tol=1e-4):
                settings[name] = found
    return settings


def _infer_settings(
    weights: reader.Weights, tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Give the configuration's arguments, `given` ones first, and notes on open questions.

    Shapes come from the weights; what these cannot tell (dropout, window shift, labels) from the
    ``config.json`` beside them, from the run settings inside a Lightning checkpoint, or from the
    published defaults.
    """
    settings = _published_settings(weights)
    shapes = _shapes(tensors, weights.path)
    notes = [
        f"the configuration says {name} {settings[name]!r}, the weights {value!r}; "
        "the weights are taken"
        for name, value in shapes.items()
        if name in settings and settings[name] != value and not isinstance(value, float)
    ]
    settings.update(shapes)
    settings.update(given)
    if "max_seq_len" not in settings:
        raise CheckpointError(
            f"{weights.path}: the weights have no positional table, and no configuration says the "
            "longest input (max_seq_len, or l_max under layer); give one with config=..."
        )
    if "window_shift" not in settings:
        settings["window_shift"] = HyenaDNAConfig.window_shift
        notes.append(
            f"no file says the window shift; {settings['window_shift']} is taken, as all published "
            "loaders do (the training code has 0.0)"
        )
    if settings["hyena_order"] > 2 and "filter_layout" not in settings:
        notes.append("the order is above 2 and no file says the filter layout; that of the "
                     "training code is taken")  # fmt: skip
    head = tensors.get("lm_head.weight")
    tied = head is None or torch.equal(head, tensors[_EMBEDDING])
    settings.setdefault("tie_word_embeddings", tied)
    if "score.weight" not in tensors:
        return settings, notes
    labels, names = len(tensors["score.weight"]), settings.get("id2label")
    settings |= {"head_bias": "score.bias" in tensors, "num_labels": labels}
    if isinstance(names, Mapping) and len(names) == labels:
        settings["id2label"] = {int(index): name for index, name in names.items()}
    elif names is not None:
        settings |= {"id2label": None, "label2id": None}
    if "pooling" not in settings:
        settings["pooling"] = "mean"
        notes.append(
            "no file says how the head pools; the mean over real tokens is taken (the training "
            "code averages padding too: pooling published_mean)"
        )
    return settings, notes


def convert(weights: reader.Weights, **overrides: Any) -> reader.ConvertedModel:
    """Build a causal language model, a classifier, or the bare model, by the heads of the weights.

    `overrides` are fields of :class:`HyenaDNAConfig` that win over what is inferred, such as
    ``window_shift=0.0`` or ``filter_layout="standalone"``.
    """
    tensors, dropped = reader.renamed(weights.tensors, NAME_RULES)
    settings, notes = _infer_settings(weights, tensors, overrides)
    model_class: type[Any] = HyenaDNAForCausalLM
    if "score.weight" in tensors:
        saved = (weights.config or {}).get("architectures") or []
        model_class = HyenaDNAForSequenceClassification
        if any("TokenClassification" in str(name) for name in saved):
            model_class = HyenaDNAForTokenClassification
    elif "lm_head.weight" not in tensors:
        model_class = HyenaDNAModel
        tensors = {name.removeprefix("hyena."): tensor for name, tensor in tensors.items()}
    config = HyenaDNAConfig(**settings)
    model, computed = reader.build(model_class, config, tensors, weights.path, computed=_TABLE)
    if computed:
        notes.append(f"{len(computed)} tables are not stored and were computed by their formulas")
    return reader.ConvertedModel(model, tuple(notes), dropped)
