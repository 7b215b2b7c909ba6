"""From tensor names and shapes of published Mamba and Caduceus files to settings and models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from megabase.errors import CheckpointError
from megabase.models.checkpoints.reader import Weights, compare_shapes
from megabase.models.state_space import StateSpacePreTrainedModel
from megabase.models.state_space_settings import MixerSettings, StateSpaceConfig

__all__ = ["build", "published_settings", "shapes", "unwrapped"]

_WRAPPERS = re.compile(r"^(?:_orig_mod\.|_forward_module\.|module\.|model\.)+")
_HEAD = re.compile(r"^(?:decoder(?:\.\d+)?|head)\.output_transform\.(weight|bias)$")
_LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type")
_RENAMED = {"tie_embeddings": "tie_word_embeddings"}


def unwrapped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take wrappers off the names of a training checkpoint.

    Parameters
    ----------
    tensors
        By the names of any published file.

    Returns
    -------
    tensors : dict[str, Tensor]
        Without ``model.`` and the like; the classifier of the public training code as ``score``.
    dropped : tuple of str
        Names that are no part of the model (counters of torchmetrics).
    """
    found = {
        _HEAD.sub(r"score.\1", _WRAPPERS.sub("", name)): tensor
        for name, tensor in tensors.items()
        if "torchmetrics" not in name
    }
    return found, tuple(name for name in tensors if "torchmetrics" in name)


def published_settings(
    weights: Weights, config_class: type[StateSpaceConfig], accepted: Iterable[str | None]
) -> dict[str, Any]:
    """Read the settings that a ``config.json`` or a Lightning checkpoint state.

    Parameters
    ----------
    weights
        What was read.
    config_class
        Says which settings there are.
    accepted
        Values of ``model_type`` that are of the family; None for files that have none.

    Returns
    -------
    dict
        Settings under our names.

    Raises
    ------
    CheckpointError
        When the configuration is that of another family.
    """
    known = {field.name for field in dataclasses.fields(config_class)} | set(_LABEL_KEYS)
    run = weights.hyper_parameters.get("model") or {}
    sources = [run, run.get("config") if isinstance(run, Mapping) else None, weights.config]
    settings: dict[str, Any] = {}
    for source in sources:
        if not isinstance(source, Mapping):
            continue
        for name, value in source.items():
            name = _RENAMED.get(name, name)
            if name in known and value is not None and "${" not in str(value):
                settings[name] = value
    model_type = (weights.config or {}).get("model_type")
    if model_type not in tuple(accepted):
        raise CheckpointError(
            f"{weights.path}: the weights are of a {config_class.__name__.removesuffix('Config')} "
            f"model, but the configuration says {model_type!r}"
        )
    return settings


def shapes(
    tensors: Mapping[str, Tensor],
    embedding: str,
    layers: str,
    mixer: str,
    norm: str,
    source: object,
) -> dict[str, Any]:
    """Read from the weights the settings that they decide.

    Parameters
    ----------
    tensors
        By our names.
    embedding
        Name of the embedding matrix.
    layers
        What the names of blocks begin with.
    mixer, norm
        What follows the number of a block, in the names of its mixer and of its norm's weight.
    source
        Where the weights are from, for the message.

    Returns
    -------
    dict
        Settings under our names.

    Raises
    ------
    CheckpointError
        When a tensor that decides is missing.
    """
    first = f"{layers}0.{mixer}"
    needed = [embedding, *(f"{first}{end}" for end in ("A_log", "conv1d.weight", "dt_proj.weight"))]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise CheckpointError(f"{source}: expected {', '.join(missing)}, which is not there")
    rows, width = tensors[embedding].shape
    inner, states = tensors[f"{first}A_log"].shape
    count = {name[len(layers) :].split(".")[0] for name in tensors if name.startswith(layers)}
    defaults = MixerSettings()
    mixing: dict[str, Any] = {
        "d_state": states,
        "d_conv": tensors[f"{first}conv1d.weight"].shape[-1],
        "expand": inner / width if inner % width else inner // width,
        "dt_rank": tensors[f"{first}dt_proj.weight"].shape[1],
        "conv_bias": f"{first}conv1d.bias" in tensors,
        "bias": f"{first}in_proj.bias" in tensors,
    }
    if mixing["dt_rank"] == -(-width // 16):
        mixing["dt_rank"] = defaults.dt_rank
    norm_name = f"{layers}0.{norm}"
    settings: dict[str, Any] = {
        "d_model": width,
        "n_layer": len(count),
        "ssm_cfg": mixing,
        "rms_norm": norm_name.removesuffix("weight") + "bias" not in tensors,
    }
    if rows != 16:  # the published vocabulary of 12, padded
        settings.update(vocab_size=rows, pad_vocab_size_multiple=1)
    if "score.weight" in tensors:
        settings["num_labels"] = tensors["score.weight"].shape[0]
        settings["head_bias"] = "score.bias" in tensors
    return settings


def build(
    model_class: type[StateSpacePreTrainedModel],
    config: StateSpaceConfig,
    tensors: Mapping[str, Tensor],
    source: object,
) -> StateSpacePreTrainedModel:
    """Build a model and give it its weights, strictly.

    Parameters
    ----------
    model_class, config
        What to build.
    tensors
        By our names; of a tied tensor, either copy or both.
    source
        Where the weights are from, for messages.

    Returns
    -------
    StateSpacePreTrainedModel
        In evaluation mode, in the dtype of its fresh weights (float32).

    Raises
    ------
    CheckpointError
        Naming every missing, unexpected and mis-shaped tensor, and tied ones that differ.
    """
    model = model_class(config)
    state = dict(tensors)
    for copy, first in model.get_expanded_tied_weights_keys().items():
        if copy in state and first in state and not torch.equal(state[copy], state[first]):
            raise CheckpointError(
                f"{source}: {copy} and {first} are one tensor of the model, but differ in the file"
            )
        if first in state:
            state.setdefault(copy, state[first])
        elif copy in state:
            state[first] = state[copy]
    expected = model.state_dict()
    for name in expected:
        if name.endswith("complement_map"):  # computed from the configuration
            state.setdefault(name, expected[name])
    compare_shapes(expected, state).demand(source, model_class.__name__)
    model.load_state_dict(
        {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, strict=True
    )
    return model.eval()
