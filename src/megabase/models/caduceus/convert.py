"""Published Caduceus checkpoints into models: Hub folders and Lightning checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from megabase.models.caduceus.configuration import CaduceusConfig
from megabase.models.caduceus.modeling import (
    CaduceusForMaskedLM,
    CaduceusForSequenceClassification,
    CaduceusModel,
)
from megabase.models.checkpoints.reader import Weights
from megabase.models.state_space_naming import build, published_settings, shapes, unwrapped
from megabase.models.supervised import ConvertedModel

__all__ = ["convert", "recognises"]

_MODEL_TYPES = (None, CaduceusConfig.model_type)
_EMBEDDINGS = "caduceus.backbone.embeddings.word_embeddings."
_LAYERS = "caduceus.backbone.layers."


def recognises(names: Iterable[str]) -> bool:
    """Whether tensor names, published or ours, are those of a Caduceus model."""
    return any(name.endswith(".mamba_fwd.A_log") for name in names)


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights.

    Parameters
    ----------
    weights
        As :func:`~megabase.models.checkpoints.reader.read_weights` gives them.
    **overrides
        Fields of :class:`CaduceusConfig` that win over what is inferred.

    Returns
    -------
    ConvertedModel
        A masked language model, a classifier, or the bare model, by the heads the weights have.

    Raises
    ------
    CheckpointError
        Naming every missing, unexpected and mis-shaped tensor.
    """
    tensors, dropped = unwrapped(weights.tensors)
    tensors = {
        f"caduceus.{name}" if name.startswith("backbone.") else name: tensor
        for name, tensor in tensors.items()
    }
    settings = published_settings(weights, CaduceusConfig, _MODEL_TYPES)
    rcps = any(".mixer.submodule." in name for name in tensors)
    fused = f"{_LAYERS}0.norm.weight" in tensors
    embedding = _EMBEDDINGS + ("embedding.weight" if rcps else "weight")
    mixer = "mixer.submodule." if rcps else "mixer."
    head = tensors.get("lm_head.lm_head.weight" if rcps else "lm_head.weight")
    if head is not None:  # a file may hold one of two tied tensors
        tensors.setdefault(embedding, head)
    found = shapes(
        tensors,
        embedding,
        _LAYERS,
        f"{mixer}mamba_fwd.",
        "norm.weight" if fused else "norm.submodule.weight",
        weights.path,
    )
    found["rcps"] = rcps
    found["bidirectional"] = any(".mamba_rev." in name for name in tensors)
    forward, reverse = (
        tensors.get(f"{_LAYERS}0.{mixer}mamba_{way}.in_proj.weight") for way in ("fwd", "rev")
    )
    if forward is not None and reverse is not None:
        found["bidirectional_weight_tie"] = torch.equal(forward, reverse)
    if head is not None:
        found["tie_word_embeddings"] = torch.equal(head, tensors[embedding])
    notes = []
    if rcps:
        found["fused_add_norm"] = fused
        table = tensors.get(f"{_EMBEDDINGS}complement_map")
        if table is not None:
            found["complement_map"] = table.tolist()
    if "bidirectional_strategy" not in settings and found["bidirectional"]:
        notes.append("bidirectional_strategy is not recorded; taken as add, as in all published")
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    config = CaduceusConfig(**{**settings, **found, **overrides})
    model_class: Any = CaduceusForMaskedLM
    if "score.weight" in tensors:
        model_class = CaduceusForSequenceClassification
        dropped += tuple(name for name in tensors if name.startswith("lm_head."))
        tensors = {k: v for k, v in tensors.items() if not k.startswith("lm_head.")}
    elif head is None and not config.tie_word_embeddings:
        model_class = CaduceusModel
    if model_class is CaduceusModel:
        tensors = {name.removeprefix("caduceus."): tensor for name, tensor in tensors.items()}
    return ConvertedModel(build(model_class, config, tensors, weights.path), tuple(notes), dropped)
