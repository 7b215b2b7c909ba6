"""Published HyenaDNA checkpoints into models.

Shapes come from the weights; what weights cannot tell (dropout, window shift, labels) comes from
the ``config.json`` beside them, from the run settings inside a Lightning checkpoint, or from the
published defaults. Everything that was decided is said in the notes of the result.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megabase.errors import CheckpointError
from megabase.models.checkpoints.published import (
    HEAD_RULE,
    LABEL_KEYS,
    ConvertedModel,
    build,
    recorded_settings,
    renamed,
)
from megabase.models.checkpoints.reader import Weights
from megabase.models.hyenadna import (
    HyenaDNAConfig,
    HyenaDNAForCausalLM,
    HyenaDNAForSequenceClassification,
    HyenaDNAForTokenClassification,
    HyenaDNAModel,
)

NAME_RULES = (
    (r"\.(mixer|mlp)\.layer\.", r".\1."),  # blocks that were recomputed in training
    (r"^backbone\.", "hyena.backbone."),  # the training repository and its standalone loader
    HEAD_RULE,
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


def _published_settings(weights: Weights) -> dict[str, Any]:
    """Give what the files say, in the words of the training repository or of transformers."""
    accepted = (None, HyenaDNAConfig.model_type)
    settings = recorded_settings(weights, HyenaDNAConfig, accepted, _TABLES)
    if isinstance(settings.get("bidirectional"), bool):
        settings["bidirectional"] = "published" if settings["bidirectional"] else "none"
    config = weights.config or {}
    if config.get("model_type") is not None:
        fields = {field.name for field in dataclasses.fields(HyenaDNAConfig)} | set(LABEL_KEYS)
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

    network = [name for name in part if re.fullmatch(
        r"mixer\.filter_fn\.implicit_filter\.\d+\.weight", name)]  # fmt: skip
    settings: dict[str, Any] = {
        "vocab_size": _VOCABULARY if padded else rows,
        "pad_vocab_size_multiple": 8 if padded else 1,
        "d_model": width,
        "n_layer": max(layers) + 1,
        "d_inner": size("mlp.fc1.weight", 0),
        "hyena_order": size("mixer.in_proj.weight", 0) // width - 1,
        "short_filter_order": size("mixer.short_filter.weight", 2),
        "emb_dim": size("mixer.filter_fn.implicit_filter.0.weight", 1),
        "filter_order": size("mixer.filter_fn.implicit_filter.0.weight", 0),
        "num_inner_mlps": len(network) - 2,
        "attention_layers": sorted(set(layers) - set(hyena)),
    }
    if _POSITIONS in tensors:
        settings["max_position_embeddings"] = tensors[_POSITIONS].shape[0]
    if "mixer.filter_fn.pos_emb.z" in part:
        settings["max_seq_len"] = size("mixer.filter_fn.pos_emb.z", 1)
    settings.update(_decay(part.get("mixer.filter_fn.modulation.deltas")))
    return settings


def _decay(deltas: Tensor | None) -> dict[str, float]:
    """Give the decay rates of a stored window when they are not the published ones."""
    if deltas is None or deltas.numel() < 2:
        return {}
    level = math.log(HyenaDNAConfig.decay_target)
    slow, fast = (level / float(deltas.flatten()[i]) for i in (0, -1))
    found = {"slow_decay_pct": slow, "fast_decay_pct": fast}
    published = (
        math.isclose(v, getattr(HyenaDNAConfig, n), rel_tol=1e-4) for n, v in found.items()
    )
    return {} if all(published) else found


def _infer_settings(
    weights: Weights, tensors: Mapping[str, Tensor], given: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Give the configuration's arguments, `given` ones first, and notes on open questions."""
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
        notes.append(
            "the order is above 2 and no file says the filter layout; that of the training code "
            "is taken"
        )
    head = tensors.get("lm_head.weight")
    settings.setdefault(
        "tie_word_embeddings", head is None or torch.equal(head, tensors[_EMBEDDING])
    )
    if "score.weight" in tensors:
        settings.update(_head_settings(settings, tensors, notes))
    return settings, notes


def _head_settings(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Any]:
    labels = tensors["score.weight"].shape[0]
    names = settings.get("id2label")
    head: dict[str, Any] = {"head_bias": "score.bias" in tensors, "num_labels": labels}
    if isinstance(names, Mapping) and len(names) == labels:
        head["id2label"] = {int(index): name for index, name in names.items()}
    elif names is not None:
        head |= {"id2label": None, "label2id": None}
    if "pooling" not in settings:
        head["pooling"] = "mean"
        notes.append(
            "no file says how the head pools; the mean over real tokens is taken (the training "
            "code averages padding too: pooling published_mean)"
        )
    return head


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a causal language model, a classifier, or the bare model, by the heads of the weights.

    `overrides` are fields of :class:`HyenaDNAConfig` that win over what is inferred, such as
    ``window_shift=0.0`` or ``filter_layout="standalone"``.
    """
    tensors, dropped = renamed(weights.tensors, NAME_RULES)
    settings, notes = _infer_settings(weights, tensors, overrides)
    model_class: type[Any] = HyenaDNAForCausalLM
    if "score.weight" in tensors:
        saved = (weights.config or {}).get("architectures") or []
        by_base = any("TokenClassification" in str(name) for name in saved)
        model_class = (
            HyenaDNAForTokenClassification if by_base else HyenaDNAForSequenceClassification
        )
    elif "lm_head.weight" not in tensors:
        model_class = HyenaDNAModel
        tensors = {name.removeprefix("hyena."): tensor for name, tensor in tensors.items()}
    config = HyenaDNAConfig(**settings)
    model, computed = build(model_class, config, tensors, weights.path, computed=_TABLE)
    if computed:
        notes.append(f"{len(computed)} tables are not stored and were computed by their formulas")
    return ConvertedModel(model, tuple(notes), dropped)
