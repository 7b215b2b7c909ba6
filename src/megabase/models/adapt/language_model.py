"""A language model from settings, and back into a folder that transformers loads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from megabase.errors import ConfigError
from megabase.models.auto import load_config, load_model, resolve_model
from megabase.models.checkpoints.checks import check_config
from megabase.models.checkpoints.convert import write_model
from megabase.models.families import FAMILIES, Family, all_families
from megabase.models.presets import find_preset
from megabase.models.tokenizers.character import DNATokenizer
from megabase.objectives.base import OBJECTIVES
from megabase.settings import ModelConfig
from megabase.untrusted import parsing

_SPECIAL_POSITIONS = 2
"""Positions beyond the bases in the published models (l_max = length + 2)."""


def build_language_model(
    spec: ModelConfig, longest: int, objective: str = "causal_lm"
) -> PreTrainedModel:
    """Build a language model with fresh weights from torch's seed, or load ``init_from``.

    `longest`, the longest input of the run in positions, decides the length of the model when
    neither preset nor ``max_length`` does. Raises :class:`ConfigError` for an unknown family,
    preset or field, or a model that cannot learn the objective.
    """
    if spec.init_from is not None:
        source = resolve_model(spec.init_from)
        masked = any("ForMaskedLM" in name for name in load_config(source).architectures or ())
        model = load_model(source, kind="masked-lm" if masked else "causal-lm")
        _check_objective(model, objective)
        return model.train()
    if spec.preset is not None:
        preset = find_preset(spec.preset)
        name, fields, length = preset.family, dict(preset.config), spec.max_length
    else:
        name, length = spec.family, spec.max_length or longest + _SPECIAL_POSITIONS
        fields = {"d_model": spec.d_model, "n_layer": spec.n_layer}
    family = _pretrained_family(name)
    if length is not None and family.length_field is not None:
        fields[family.length_field] = length
    model_class = _model_class(family, objective)
    fields.update(spec.overrides)
    unknown = set(fields) - config_fields(model_class.config_class)
    if unknown:
        raise ConfigError(
            f"model.overrides has {', '.join(sorted(map(str, unknown)))}, which "
            f"{model_class.config_class.__name__} does not have; its fields are listed in its "
            "documentation"
        )
    model = new_model(model_class, fields, "model")
    _check_objective(model, objective)
    return model


def config_fields(config_class: Any) -> set[str]:
    """Name the fields of a configuration class."""
    return {field.name for field in dataclasses.fields(config_class)}


def new_model(model_class: Any, fields: dict[str, Any], what: str) -> Any:
    """Build a model of settings that `what` gave, if this machine's memory can hold it."""
    check_config(fields, Path(what), ConfigError)
    config = model_class.config_class(**fields)
    with parsing("the model", ConfigError), torch.device("meta"):
        state = model_class(config).state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in state)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ConfigError(
            f"the model takes {size / 1e9:,.0f} GB, more than the {memory / 1e9:,.0f} GB of this "
            "machine; give fewer layers, a smaller width or a shorter input"
        )
    return model_class(config)


def _pretrained_family(name: str) -> Family:
    """Give the family of a name, if its models can be pretrained."""
    if name not in FAMILIES or not FAMILIES[name].pretrained:
        known = ", ".join(family.name for family in all_families() if family.pretrained)
        raise ConfigError(f"model.family is {name!r}; pretraining knows {known}")
    return FAMILIES[name]


def _model_class(family: Family, objective: str) -> Any:
    """Find the class of a family that learns an objective."""
    classes = family.classes()
    # A family without a masked class, such as HyenaDNA, learns the masked objective with the same
    # head, when it reads both sides.
    kinds = ("causal-lm",) if _both_sides(objective) is False else ("masked-lm", "causal-lm")
    for kind in kinds:
        if kind in classes:
            return classes[kind]
    raise ConfigError(
        f"model.family {family.name} is bidirectional, so next-token prediction would see its "
        "target; set objective.name to masked_lm"
    )


def _both_sides(objective: str) -> bool | None:
    """Whether an objective is for models that read both sides of a base; None for any model."""
    return getattr(OBJECTIVES[objective], "both_sides", None)


def _check_objective(model: PreTrainedModel, objective: str) -> None:
    """Refuse a pair of model and objective that learns nothing, or learns to copy."""
    both_sides = getattr(model.config, "bidirectional", "none") not in ("none", False)
    wanted = _both_sides(objective)
    if both_sides and wanted is False:
        raise ConfigError(
            "the model is bidirectional, so next-token prediction would see its target; set "
            "objective.name to masked_lm, or a model.overrides.bidirectional that is causal"
        )
    if not both_sides and wanted is True:
        raise ConfigError(
            f"objective.name is {objective}, and the model reads one side only; use a model of "
            "both sides (model.family caduceus, or hyenadna with model.overrides.bidirectional "
            "two_sided), or causal_lm"
        )


def save_language_model(
    model: PreTrainedModel, folder: Path, state: Mapping[str, torch.Tensor]
) -> None:
    """Write weights, configuration and the tokenizer of pretraining into a folder that exists."""
    limit = getattr(model.config, "max_length", None)
    # As it was trained: bases only, padded on the right.
    tokenizer = DNATokenizer(model_max_length=limit, special_tokens="none", padding_side="right")
    write_model(folder, model, tokenizer, state)
