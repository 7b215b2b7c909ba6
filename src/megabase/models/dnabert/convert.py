"""Published DNABERT weights into models."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from megabase.models.checkpoints.published import ConvertedModel, build
from megabase.models.checkpoints.reader import Weights
from megabase.models.dnabert import (
    DNABERTConfig,
    DNABERTForMaskedLM,
    DNABERTForSequenceClassification,
    DNABERTModel,
)

_EMBEDDING = "embeddings.word_embeddings.weight"
"""What tells the vocabulary and the width."""
_HEAD_SIZE = 64
"""Width of an attention head in every BERT of the published sizes."""


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a masked language model, a classifier or the bare model, by the heads of the weights.

    ConfigError when the vocabulary is not one of k-mers.
    """
    tensors = dict(weights.tensors)
    prefix = "bert." if f"bert.{_EMBEDDING}" in tensors else ""
    rows, width = tensors[f"{prefix}{_EMBEDDING}"].shape
    layer = f"{prefix}encoder.layer."
    numbers = {int(name[len(layer) :].split(".")[0]) for name in tensors if name.startswith(layer)}
    settings: dict[str, Any] = {"num_attention_heads": max(width // _HEAD_SIZE, 1)}
    settings |= weights.config or {}
    settings |= {
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": max(numbers) + 1,
        "intermediate_size": tensors[f"{layer}0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": tensors[f"{prefix}embeddings.position_embeddings.weight"].shape[
            0
        ],
    }
    settings.pop("model_type", None)
    settings |= {name: value for name, value in overrides.items() if value is not None}
    notes: list[str] = []
    model_class: type[PreTrainedModel] = DNABERTModel
    if "classifier.weight" in tensors:
        model_class = DNABERTForSequenceClassification
        settings.setdefault("num_labels", tensors["classifier.weight"].shape[0])
    elif any(name.startswith("cls.predictions.") for name in tensors):
        model_class = DNABERTForMaskedLM
        if f"{prefix}pooler.dense.weight" in tensors:
            notes.append(
                "the pooler is left out: masked prediction never trained it; a classifier made of "
                "this model starts with a new one"
            )
    config = DNABERTConfig(**settings)
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    dropped = tuple(name for name in tensors if name not in expected)
    kept = {name: tensor for name, tensor in tensors.items() if name in expected}
    model, _ = build(model_class, config, kept, weights.path)
    return ConvertedModel(model, tuple(notes), dropped)
