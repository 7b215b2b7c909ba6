"""Weights of the GenomicBenchmarks and Caduceus CNNs, which are plain state dicts."""

from __future__ import annotations

from typing import Any

from megabase.errors import ConfigError
from megabase.models.base import positions_left
from megabase.models.checkpoints.published import ConvertedModel, build
from megabase.models.checkpoints.reader import Weights
from megabase.models.cnn import (
    CHANNELS,
    KERNEL,
    POOLS,
    SHORTEST,
    GenomicCNNConfig,
    GenomicCNNForSequenceClassification,
)


def _flat(length: int) -> int:
    """Give the width of the first dense layer's input."""
    return CHANNELS[-1] * positions_left(length, KERNEL, POOLS)


def _lengths_of(flatten: int) -> range:
    """Give every input length that leads to a flattened width."""
    lengths = [n for n in range(SHORTEST, flatten * 2 + 128) if _flat(n) == flatten]
    return range(lengths[0], lengths[-1] + 1) if lengths else range(0)


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights; a leading ``model.`` of their names is allowed.

    ``variant`` and ``num_labels`` follow the last layer when left out (one output: the original
    with two classes). ``max_length`` is needed unless the ``config.json`` beside the weights has it
    (ConfigError): the weights tell the input length only up to 7 tokens.
    """
    tensors = {name.removeprefix("model."): tensor for name, tensor in weights.tensors.items()}
    settings = {name: value for name, value in overrides.items() if value is not None}
    beside = weights.config or {}
    length = settings.pop("max_length", beside.get("max_length", beside.get("input_len")))
    flatten = tensors["dense_model.0.weight"].shape[1]
    known = _lengths_of(flatten)
    if length is None:
        raise ConfigError(
            f"{weights.path}: nothing tells the input length of this CNN; pass max_length, which "
            f"lies between {known.start} and {known.stop - 1} tokens"
        )
    if flatten != _flat(int(length)):
        fits = f"of {known.start} to {known.stop - 1} tokens" if known else "of no length"
        raise ConfigError(
            f"the weights are of a CNN for inputs {fits}, not {int(length):,}; pass the max_length "
            "it was trained with"
        )
    outputs = tensors["dense_model.1.weight"].shape[0]
    notes: tuple[str, ...] = ()
    if "variant" not in settings:
        settings["variant"] = "genomic-benchmarks" if outputs != 2 else "caduceus"
        notes = (f"read as the variant {settings['variant']!r}, by the width of its last layer",)
    settings.setdefault("num_labels", 2 if outputs == 1 else outputs)
    vocab_size, embedding_dim = tensors["embeddings.weight"].shape
    settings.setdefault("pad_token_id", 4 if vocab_size >= 12 else vocab_size - 1)
    config = GenomicCNNConfig(
        max_length=int(length), vocab_size=vocab_size, embedding_dim=embedding_dim, **settings
    )
    model, _ = build(GenomicCNNForSequenceClassification, config, tensors, weights.path)
    return ConvertedModel(model, notes, ())
