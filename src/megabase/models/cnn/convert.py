"""Weights of the GenomicBenchmarks and Caduceus CNNs, which are plain state dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from megabase.errors import ConfigError
from megabase.models.checkpoints.published import ConvertedModel
from megabase.models.checkpoints.reader import Weights
from megabase.models.cnn.configuration import CHANNELS, SHORTEST, GenomicCNNConfig, flatten_size
from megabase.models.cnn.modeling import GenomicCNNForSequenceClassification

_TELLING = frozenset({"embeddings.weight", "cnn_model.0.weight", "dense_model.0.weight"})
"""Names that together no other family has."""


def _lengths_of(flatten: int) -> range:
    """Give every input length that leads to a flattened width."""
    lengths = [n for n in range(SHORTEST, flatten * 2 + 128) if flatten_size(n) == flatten]
    return range(lengths[0], lengths[-1] + 1) if lengths else range(0)


def from_state_dict(
    state_dict: Mapping[str, Tensor], max_length: int, **settings: Any
) -> GenomicCNNForSequenceClassification:
    """Build a model from published weights; the shape is read from them.

    Parameters
    ----------
    state_dict
        Published names; a leading ``model.`` is allowed.
    max_length
        Tokens the model was built for. The weights tell it only up to 7 tokens.
    **settings
        Passed on to :class:`GenomicCNNConfig`; ``variant`` and ``num_labels`` follow the last
        layer when left out (one output: the original with two classes).

    Raises
    ------
    ConfigError
        When the weights are of another model or another input length.
    """
    weights = _published_names(state_dict)
    flatten = weights["dense_model.0.weight"].shape[1]
    if flatten != flatten_size(max_length):
        known = _lengths_of(flatten)
        fits = f"of {known.start} to {known.stop - 1} tokens" if known else "of no length"
        raise ConfigError(
            f"the weights are of a CNN for inputs {fits}, not {max_length:,}; pass the max_length "
            "it was trained with"
        )
    outputs = weights["dense_model.1.weight"].shape[0]
    settings.setdefault("variant", "genomic-benchmarks" if outputs != 2 else "caduceus")
    settings.setdefault("num_labels", 2 if outputs == 1 else outputs)
    vocab_size, embedding_dim = weights["embeddings.weight"].shape
    settings.setdefault("pad_token_id", 4 if vocab_size >= 12 else vocab_size - 1)
    config = GenomicCNNConfig(
        max_length=max_length, vocab_size=vocab_size, embedding_dim=embedding_dim, **settings
    )
    model = GenomicCNNForSequenceClassification(config)
    model.load_state_dict(weights)
    return model.eval()


def _published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = {name.removeprefix("model."): tensor for name, tensor in state_dict.items()}
    shape = weights["cnn_model.7.weight"].shape[0] if "cnn_model.7.weight" in weights else None
    if not set(weights) >= _TELLING or shape != CHANNELS[-1]:
        found = ", ".join(sorted(state_dict)[:3]) or "nothing"
        raise ConfigError(
            "expected the weights of a GenomicBenchmarks CNN (embeddings.weight, "
            f"cnn_model.0.weight, ..., dense_model.1.bias), found {found}, ...; this is a "
            "checkpoint of another family"
        )
    return weights


def recognizes(names: Iterable[str]) -> bool:
    """Tell whether tensor names are those of a GenomicBenchmarks CNN."""
    return {name.removeprefix("model.") for name in names} >= _TELLING


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights.

    Parameters
    ----------
    weights
        As :func:`~megabase.models.checkpoints.reader.read_weights` gives them.
    **overrides
        Fields of :class:`GenomicCNNConfig` that win over what is inferred. ``max_length`` is
        needed unless the ``config.json`` beside the weights has it: the weights tell the input
        length only up to 7 tokens.

    Raises
    ------
    ConfigError
        When the weights are of another model, or nothing tells the input length.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    beside = weights.config or {}
    length = given.pop("max_length", beside.get("max_length", beside.get("input_len")))
    if length is None:
        known = _lengths_of(_published_names(weights.tensors)["dense_model.0.weight"].shape[1])
        raise ConfigError(
            f"{weights.path}: nothing tells the input length of this CNN; pass max_length, which "
            f"lies between {known.start} and {known.stop - 1} tokens"
        )
    model = from_state_dict(weights.tensors, int(length), **given)
    note = f"read as the variant {model.config.variant!r}, by the width of its last layer"
    return ConvertedModel(model, () if "variant" in given else (note,), ())
