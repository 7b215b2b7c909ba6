"""What a model folder holds, told without loading its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megabase.errors import CheckpointError, ModelError
from megabase.models.auto import find_kind, load_config, load_tokenizer, resolve_model
from megabase.models.families import family_of
from megabase.untrusted import parsing, read_json, recognise

__all__ = ["ModelDescription", "describe"]

_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True)
class ModelDescription:
    """A model, in numbers and words."""

    path: Path
    """Folder it lies in."""
    class_name: str
    """Class that loads it."""
    model_type: str
    """Its family, as written in ``config.json``."""
    kind: str
    """What it is for: causal-lm, sequence-classification, ..."""
    parameters: int
    """Trainable numbers; tied and shared tensors count once."""
    constants: int
    """Numbers that are stored but never trained (positional tables and the like)."""
    file_bytes: int
    """Size of the weight files."""
    longest: int | None
    """Longest input in tokens; None when nothing limits it."""
    layers: int | None
    """Number of blocks, where that makes sense."""
    width: int | None
    """Width of a block, where that makes sense."""
    columns: int | None
    """Columns of a language model's logits."""
    piecewise: bool
    """Whether a training step keeps only the running sums and the filters."""
    labels: tuple[str, ...]
    """Names of a classifier's classes, in order."""
    tokenizer: dict[str, Any]
    """Class, special tokens, padding side and case of the tokenizer."""
    settings: dict[str, Any]
    """Configuration of the family's own fields."""
    source: dict[str, Any] | None
    """Where a converted model comes from (``conversion.json``)."""


def describe(spec: str | Path | None = None) -> ModelDescription:
    """Describe a model.

    Parameters
    ----------
    spec
        As for :func:`~megabase.models.auto.resolve_model`.

    Returns
    -------
    ModelDescription
        Read from the configuration and the file sizes; no weight is loaded.

    Raises
    ------
    ModelError
        When there is no such model.
    ModelError
        When it is of a family that megabase does not have.
    """
    path = resolve_model(spec)
    config = load_config(path)
    kind, model_class = find_kind(path, config)
    with parsing(path / "config.json", ModelError), torch.device("meta"):
        model = model_class(config)
    weights = [file for file in path.iterdir() if file.suffix in _WEIGHT_SUFFIXES]
    for file in weights:
        if known := recognise(file):
            raise CheckpointError(f"{file} {known}")
    head = kind in ("causal-lm", "masked-lm")
    embeddings = model.get_output_embeddings() if head else None
    classifier = kind.endswith("classification")
    names: dict[int, str] = (getattr(config, "id2label", None) or {}) if classifier else {}
    record = path / "conversion.json"
    return ModelDescription(
        path=path,
        class_name=model_class.__name__,
        model_type=config.model_type,
        kind=kind,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        constants=sum(buffer.numel() for buffer in model.buffers()),
        file_bytes=sum(file.stat().st_size for file in weights),
        longest=_number(config, "max_length"),
        layers=_number(config, "num_hidden_layers", "n_layer"),
        width=_number(config, "hidden_size", "d_model"),
        columns=getattr(embeddings, "out_features", None),
        piecewise=bool(getattr(config, "works_piecewise", False)),
        labels=tuple(names[index] for index in sorted(names)),
        tokenizer=_tokenizer(path),
        settings=_own_settings(config),
        source=read_json(record, ModelError) if record.is_file() else None,
    )


def _number(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if isinstance(value, int | float)), None)


def _tokenizer(path: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(path)
    return {
        "class": type(tokenizer).__name__,
        "padding_side": tokenizer.padding_side,
        **{
            name: getattr(tokenizer, name)
            for name in ("special_tokens", "case_sensitive", "iupac", "k")
            if hasattr(tokenizer, name)
        },
    }


def _own_settings(config: Any) -> dict[str, Any]:
    """Give the fields that the family's configuration class itself declares."""
    family = family_of(config.model_type)
    own = vars(family.config_class()).get("__annotations__", {}) if family else {}
    return {name: getattr(config, name) for name in own if hasattr(config, name)}
