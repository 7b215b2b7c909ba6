"""A language model from settings, and back into a folder that transformers loads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megabase.errors import ConfigError
from megabase.models.checkpoints.config_file import check_config
from megabase.settings import ModelConfig
from megabase.untrusted import parsing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PRETRAINED_FAMILIES", "build_language_model", "save_language_model"]

# Special positions beside the bases in the published models (l_max = length + 2).
_SPECIAL_POSITIONS = 2

# The setting of each family that limits the length.
_LENGTH_FIELD = {"hyenadna": "max_seq_len", "gpt": "max_position_embeddings"}

PRETRAINED_FAMILIES = ("hyenadna", "gpt", "mamba", "caduceus")
"""Families that read one token a base, so that the pretraining data fits them."""


def build_language_model(
    spec: ModelConfig, longest: int, objective: str = "causal_lm"
) -> PreTrainedModel:
    """Build a language model with fresh weights, or load ``init_from``.

    Weights are drawn from torch's current seed.

    Parameters
    ----------
    spec
        Preset or fields.
    longest
        Longest input the run will give, in positions; decides the length of the model when neither
        preset nor ``max_length`` does.
    objective
        ``causal_lm``, or ``masked_lm`` for a model that reads both sides of a base.

    Raises
    ------
    ConfigError
        For an unknown family, preset or field, or a model that cannot learn the objective.
    """
    if spec.init_from is not None:
        from megabase.models.auto import load_config, load_model, resolve_model

        source = resolve_model(spec.init_from)
        masked = any("ForMaskedLM" in name for name in load_config(source).architectures or ())
        model = load_model(source, kind="masked-lm" if masked else "causal-lm")
        _check_objective(model, objective)
        return model.train()
    fields: dict[str, Any]
    if spec.preset is not None:
        name, fields = _preset(spec.preset)
        length = spec.max_length
    else:
        name, length = spec.family, spec.max_length or longest + _SPECIAL_POSITIONS
        fields = {"d_model": spec.d_model, "n_layer": spec.n_layer}
    if length is not None and name in _LENGTH_FIELD:
        fields[_LENGTH_FIELD[name]] = length
    model_class = _model_class(name, objective)
    config_class: Any = model_class.config_class
    fields.update(spec.overrides)
    unknown = set(fields) - _known_fields(config_class)
    if unknown:
        raise ConfigError(
            f"model.overrides has {', '.join(sorted(map(str, unknown)))}, which "
            f"{config_class.__name__} does not have; its fields are listed in its documentation"
        )
    check_config(fields, Path("model"), ConfigError)
    config = config_class(**fields)
    require_room(model_class, config)
    model = model_class(config)
    _check_objective(model, objective)
    return model


def require_room(model_class: Any, config: Any) -> None:
    """Refuse a model whose numbers alone are more than this machine's memory, before it is built.

    Raises
    ------
    ConfigError
        With its size.
    """
    with parsing("the model", ConfigError), torch.device("meta"):
        state = model_class(config).state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ConfigError(
            f"the model takes {size / 1e9:,.0f} GB, more than the {memory / 1e9:,.0f} GB of this "
            "machine; give fewer layers, a smaller width or a shorter input"
        )


def _known_fields(config_class: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _model_class(name: str, objective: str) -> type[PreTrainedModel]:
    from megabase.models.families import FAMILIES

    families = {family.name: family for family in FAMILIES if family.name in PRETRAINED_FAMILIES}
    if name not in families:
        raise ConfigError(f"model.family is {name!r}; pretraining knows {', '.join(families)}")
    classes = families[name].classes()
    # A family without a masked class, such as HyenaDNA, learns the masked objective with the same
    # head, when it reads both sides.
    kinds = ("masked-lm", "causal-lm") if objective == "masked_lm" else ("causal-lm",)
    for kind in kinds:
        if kind in classes:
            return classes[kind]
    raise ConfigError(
        f"model.family {name} reads both sides of a base, so the next one is no secret to it; "
        "set objective.name to masked_lm"
    )


def _check_objective(model: PreTrainedModel, objective: str) -> None:
    """Refuse a pair of model and objective that learns nothing, or learns to copy."""
    both_sides = getattr(model.config, "bidirectional", "none") not in ("none", False)
    if both_sides and objective == "causal_lm":
        raise ConfigError(
            "the model reads both sides of a base, so the next one is no secret to it; set "
            "objective.name to masked_lm, or a model.overrides.bidirectional that is causal"
        )
    if not both_sides and objective == "masked_lm":
        raise ConfigError(
            "objective.name is masked_lm, and the model reads one side only; use a model of both "
            "sides (model.family caduceus, or hyenadna with model.overrides.bidirectional "
            "two_sided), or causal_lm"
        )


def _preset(name: str) -> tuple[str, dict[str, Any]]:
    from megabase.models.presets import find_preset

    preset = find_preset(name)
    return preset.family, dict(preset.config)


def save_language_model(
    model: PreTrainedModel, folder: Path, state: Mapping[str, torch.Tensor]
) -> None:
    """Write a Hugging Face folder: weights, configuration and tokenizer.

    Parameters
    ----------
    model
        Gives configuration and names.
    folder
        Existing folder.
    state
        Full state dict, which may differ from the model's own when it is sharded.
    """
    from transformers.utils import logging

    from megabase.models.checkpoints.save import open_up
    from megabase.models.tokenizers.character import DNATokenizer

    # The library's bar over the files it writes would cut through the run's own.
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, state_dict=dict(state))
    finally:
        if bars:
            logging.enable_progress_bar()
    limit = getattr(model.config, "max_length", None)
    # As it was trained: bases only, padded on the right.
    tokenizer = DNATokenizer(model_max_length=limit, special_tokens="none", padding_side="right")
    tokenizer.save_pretrained(folder)
    open_up(folder)
