"""Published Mamba checkpoints into models.

Known names are those of the public state-spaces/mamba code, of Lightning checkpoints of the public
Caduceus code, which trains the baseline, and of transformers' own Mamba.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from megabase.models.checkpoints.reader import Weights
from megabase.models.mamba.configuration import MambaConfig
from megabase.models.mamba.modeling import (
    MambaForCausalLM,
    MambaForSequenceClassification,
    MambaModel,
)
from megabase.models.state_space_naming import build, published_settings, shapes, unwrapped
from megabase.models.supervised import ConvertedModel

__all__ = ["convert", "recognises"]

_MODEL_TYPES = (None, MambaConfig.model_type, "mamba")


def recognises(names: Iterable[str]) -> bool:
    """Whether tensor names are those of a Mamba model that reads in one direction."""
    return any(name.endswith(".mixer.A_log") for name in names)


def convert(weights: Weights, **overrides: Any) -> ConvertedModel:
    """Build a model from published weights.

    Parameters
    ----------
    weights
        As :func:`~megabase.models.checkpoints.reader.read_weights` gives them.
    **overrides
        Fields of :class:`MambaConfig` that win over what is inferred.

    Returns
    -------
    ConvertedModel
        A causal language model, a classifier, or the bare model, by the heads the weights have.

    Raises
    ------
    CheckpointError
        Naming every missing, unexpected and mis-shaped tensor.
    """
    tensors, dropped = unwrapped(weights.tensors)
    tensors = {
        name.replace("backbone.embeddings.weight", "backbone.embedding.weight"): tensor
        for name, tensor in tensors.items()
    }
    bare = "embedding.weight" in tensors
    if bare:
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    settings = published_settings(weights, MambaConfig, _MODEL_TYPES)
    embedding = "backbone.embedding.weight"
    head = tensors.get("lm_head.weight")
    if head is not None:  # a file may hold one of two tied tensors
        tensors.setdefault(embedding, head)
    found = shapes(tensors, embedding, "backbone.layers.", "mixer.", "norm.weight", weights.path)
    if head is not None:
        found["tie_word_embeddings"] = torch.equal(head, tensors[embedding])
    found["ssm_cfg"] = {**settings.get("ssm_cfg", {}), **found["ssm_cfg"]}
    notes = []
    if "residual_in_fp32" not in settings:
        notes.append("residual_in_fp32 is not recorded; taken as False (it matters below float32)")
    config = MambaConfig(**{**settings, **found, **overrides})
    if "score.weight" in tensors:
        model_class = MambaForSequenceClassification
        dropped += tuple(name for name in tensors if name.startswith("lm_head."))
        tensors = {k: v for k, v in tensors.items() if not k.startswith("lm_head.")}
    elif bare and head is None:
        model_class = MambaModel
        tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    else:
        model_class = MambaForCausalLM
    return ConvertedModel(build(model_class, config, tensors, weights.path), tuple(notes), dropped)
