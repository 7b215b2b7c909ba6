"""Published DNABERT folders and weights, which call themselves just ``"bert"``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from megabase.errors import ConfigError, ModelError
from megabase.models.checkpoints.published import ConvertedModel, build
from megabase.models.checkpoints.reader import Weights
from megabase.models.dnabert import (
    DNABERTConfig,
    DNABERTForMaskedLM,
    DNABERTForSequenceClassification,
    DNABERTModel,
)
from megabase.models.tokenizers.kmer import DNABERTTokenizer, read_dnabert_vocabulary

_EMBEDDING = "embeddings.word_embeddings.weight"
"""What tells the vocabulary and the width."""
_HEAD_SIZE = 64
"""Width of an attention head in every BERT of the published sizes."""


def is_dnabert(settings: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether a folder whose settings say ``bert`` has a vocabulary of k-mers."""
    if not any(settings.get("vocab_size") == 4**k + 5 for k in range(3, 7)):
        return False
    try:
        vocabulary = folder / "vocab.txt"
        return not vocabulary.exists() or bool(read_dnabert_vocabulary(vocabulary))
    except ModelError:
        return False


def load_tokenizer(folder: Path, config: DNABERTConfig) -> DNABERTTokenizer:
    """Load the tokenizer of a DNABERT folder, whatever its ``tokenizer_config.json`` names.

    ConfigError when its vocabulary does not fit its configuration.
    """
    if not (folder / "vocab.txt").exists():
        return DNABERTTokenizer(k=int(config.k or 0))
    tokenizer = DNABERTTokenizer.from_pretrained(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise ConfigError(
            f"{folder}: the model reads {config.vocab_size} tokens, its vocab.txt has "
            f"{tokenizer.vocab_size} ({tokenizer.k}-mers); the two files are of different models"
        )
    return tokenizer


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
