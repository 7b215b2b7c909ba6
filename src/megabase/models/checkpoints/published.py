"""What the readers of published weights share: names, recorded settings and the strict build.

A family's ``convert.py`` holds ``convert(weights, **overrides)``, which gives a
:class:`ConvertedModel` of weights whose names the family recognizes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megabase.errors import CheckpointError
from megabase.models.checkpoints.reader import Weights, require_fit

_WRAPPERS = re.compile(r"^(?:_orig_mod\.|_forward_module\.|module\.|model\.)+")
"""What torch.compile, Lightning and data parallelism put before the names of a model's tensors."""
HEAD_RULE = (r"^(?:head|decoder(?:\.\d+)?)\.output_transform\.(weight|bias)$", r"score.\1")
"""The classifier of the public HyenaDNA and Caduceus training code, and its name here."""
LABEL_KEYS = ("id2label", "label2id", "num_labels", "problem_type")
"""Settings of a classifier that transformers keeps outside the fields of a configuration."""


class ConvertedModel(NamedTuple):
    """A model made of published weights."""

    model: PreTrainedModel
    """In evaluation mode, float32."""
    notes: tuple[str, ...]
    """What was decided that the files do not say, or say differently."""
    dropped: tuple[str, ...]
    """Names of the file that are not part of the model."""


def renamed(
    tensors: Mapping[str, Tensor], rules: Sequence[tuple[str, str]] = (HEAD_RULE,)
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Rename published tensors: (tensors under our names, names that are not part of the model).

    Rules are pairs of a pattern and its replacement, applied in order to names without wrappers;
    unknown names stay, for the report. Counters of torchmetrics are left out. Two names of one
    tensor with different values are a :class:`CheckpointError`.
    """
    found: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        if "torchmetrics" in name:
            continue
        new = _WRAPPERS.sub("", name)
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if new in found and not torch.equal(found[new], tensor):
            raise CheckpointError(
                f"{origin[new]} and {name} are one tensor of the model ({new}), "
                "but their values differ"
            )
        found.setdefault(new, tensor)
        origin.setdefault(new, name)
    return found, tuple(name for name in tensors if "torchmetrics" in name)


def recorded_settings(
    weights: Weights,
    config_class: type[Any],
    accepted: Collection[str | None],
    tables: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Read the settings, under our names, that a ``config.json`` or a Lightning checkpoint records.

    `accepted` are the values of ``model_type`` of the family (None: the file has none); another one
    is a :class:`CheckpointError`. `tables` gives, by the name of a table inside of the settings,
    or ``""`` for the settings themselves, the published names that are not ours.
    """
    known = {field.name: field.name for field in dataclasses.fields(config_class)}
    known |= {name: name for name in LABEL_KEYS} | {"tie_embeddings": "tie_word_embeddings"}
    tables = {**tables, "": {**known, **tables.get("", {})}}
    run = weights.hyper_parameters.get("model") or {}
    settings: dict[str, Any] = {}
    for source in (run, run.get("config") if isinstance(run, Mapping) else None, weights.config):
        if not isinstance(source, Mapping):
            continue
        for part, names in tables.items():
            values = source.get(part) if part else source
            for name, value in values.items() if isinstance(values, Mapping) else ():
                if name in names and value not in (None, "") and "${" not in str(value):
                    settings[names[name]] = value
    model_type = (weights.config or {}).get("model_type")
    if model_type not in accepted:
        raise CheckpointError(
            f"{weights.path}: the weights are of a {config_class.__name__.removesuffix('Config')} "
            f"model, but the configuration says {model_type!r}"
        )
    return settings


def build(
    model_class: type[Any],
    config: Any,
    tensors: Mapping[str, Tensor],
    source: object,
    computed: str = r"$^",
) -> tuple[Any, list[str]]:
    """Build a model in evaluation mode and load its weights: (model, names that were filled in).

    Tensors have our names; of a tied tensor, either copy or both. A checkpoint in half precision is
    widened: filters and tables need float32. A file may lack names that match `computed`, since the
    configuration gives their values. Every missing, unexpected and mis-shaped tensor is named in a
    :class:`CheckpointError`.
    """
    model = model_class(config)
    state, expected = dict(tensors), model.state_dict()
    for copy, first in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if copy in state and first in state and not torch.equal(state[copy], state[first]):
            raise CheckpointError(
                f"{source}: {copy} and {first} are one tensor of the model, but differ in the file"
            )
        for name, other in ((copy, first), (first, copy)):
            if other in state and name in expected:
                state.setdefault(name, state[other])
    filled = [name for name in expected if name not in state and re.search(computed, name)]
    state.update((name, expected[name]) for name in filled)
    require_fit(
        source,
        model_class.__name__,
        missing=[name for name in expected if name not in state],
        unexpected=[name for name in state if name not in expected],
        mismatched=[
            (name, tuple(tensor.shape), tuple(state[name].shape))
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    )
    model.load_state_dict({name: state[name].to(expected[name].dtype) for name in expected})
    return model.eval(), filled
