"""A language model from settings, and back into a folder that transformers loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megabase.tasks.pretrain_config import ModelConfig
from megabase.training.config import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["build_language_model", "save_language_model"]

# Special positions beside the bases in the published models (l_max = length + 2).
_SPECIAL_POSITIONS = 2

# The setting of each family that limits the length.
_LENGTH_FIELD = {"hyenadna": "max_seq_len", "gpt": "max_position_embeddings"}


def build_language_model(spec: ModelConfig, longest: int) -> PreTrainedModel:
    """Build a causal language model with fresh weights, or load ``init_from``.

    Weights are drawn from torch's current seed.

    Parameters
    ----------
    spec
        Preset or fields.
    longest
        Longest input the run will give, in positions; decides the length of the model when neither
        preset nor ``max_length`` does.

    Raises
    ------
    ConfigError
        For an unknown family, preset or field.
    """
    if spec.init_from is not None:
        from megabase.models.auto import load_model

        model = load_model(spec.init_from, kind="causal-lm")
        return model.train()
    fields: dict[str, Any]
    if spec.preset is not None:
        family, fields = _preset(spec.preset)
        if spec.max_length is not None:
            fields[_LENGTH_FIELD[family]] = spec.max_length
    else:
        family = spec.family
        fields = {
            "d_model": spec.d_model,
            "n_layer": spec.n_layer,
            _LENGTH_FIELD.get(family, ""): spec.max_length or longest + _SPECIAL_POSITIONS,
        }
    config_class, model_class = _family(family)
    fields.update(spec.overrides)
    unknown = set(fields) - _known_fields(config_class)
    if unknown:
        raise ConfigError(
            f"model.overrides has {', '.join(sorted(unknown))}, which {config_class.__name__} "
            "does not have; its fields are listed in its documentation"
        )
    return model_class(config_class(**fields))


def _known_fields(config_class: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _family(name: str) -> tuple[type, type]:
    if name == "hyenadna":
        from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM

        return HyenaDNAConfig, HyenaDNAForCausalLM
    if name == "gpt":
        from megabase.models.gpt import GPTConfig, GPTForCausalLM

        return GPTConfig, GPTForCausalLM
    raise ConfigError(f"model.family is {name!r}; pretraining knows hyenadna and gpt")


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

    from megabase.models.tokenization import HyenaDNATokenizer

    # The library's bar over the files it writes would cut through the run's own.
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, state_dict=dict(state))
    finally:
        if bars:
            logging.enable_progress_bar()
    limit = int(getattr(model.config, "max_length", 0)) or None
    HyenaDNATokenizer(model_max_length=limit).save_pretrained(folder)
