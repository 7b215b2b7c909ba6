"""``config.json`` of a model folder: sizes are bounded, and it cannot fetch or import code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megabase.errors import MegabaseError
from megabase.untrusted import read_json, shown

_ATTENTION = (None, "eager", "sdpa")
"""Kinds of attention that are part of torch; transformers fetches code for others."""
# The library fetches, imports or runs what the values of these name.
_REFUSED = ("quantization_config", "transformers_weights", "experts_implementation",
            "kernel_config", "fusion_config", "distributed_config", "custom_generate")  # fmt: skip
# Sizes decide what is allocated, and how many modules are built, before any weight is seen.
_LARGEST = (1 << 31) - 1
"""Numbers are sizes or positions, which some libraries index with 32 bits."""
# Beyond every published model, and few enough to build on any machine.
_BOUNDS = {
    "num_labels": 100_000, "vocab_size": 1 << 20, "pad_vocab_size_multiple": 1 << 16, "k": 8,
    "n_layer": 256, "num_hidden_layers": 256, "num_inner_mlps": 256, "hyena_order": 256,
}  # fmt: skip
_MOST_VALUES, _DEPTH = 1_000_000, 16
"""Values and levels of a file: names of 100,000 classes take 200,000 values on two levels."""
_MOST_LABELS = 100_000
"""Classes of a head; the largest published one has 919."""


def read_config(path: Path, error: type[MegabaseError]) -> dict[str, Any]:
    """Read the settings of a model from its ``config.json``, those that name code left out.

    Raises `error` when it is not a JSON object, for a number beyond what any model has, and for a
    setting that would make transformers fetch or import what the file names.
    """
    return check_config(read_json(path, error), path, error)


def check_config(content: dict[str, Any], path: Path, error: type[MegabaseError]) -> dict[str, Any]:
    """Check settings from elsewhere as :func:`read_config` does."""
    left = _MOST_VALUES

    def check(name: str, value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEPTH:
            raise error(f"{path}: holds more values or levels than a model's settings can have")
        if isinstance(value, int) and abs(value) > _BOUNDS.get(name, _LARGEST):
            raise error(
                f"{path}: {name[:60]} is {shown(value)}; expected at most "
                f"{_BOUNDS.get(name, _LARGEST):,}"
            )
        if isinstance(value, dict):
            for key, item in value.items():
                check(key, item, depth + 1)
        elif isinstance(value, list):
            for item in value:
                check(name, item, depth + 1)

    check("config", content, 0)
    for name in ("attn_implementation", "_attn_implementation"):
        if (value := content.get(name)) not in _ATTENTION:
            raise error(
                f"{path}: {name} is {shown(value)}; expected eager or sdpa (other names can make "
                "transformers fetch and import code); remove the line"
            )
    for name in _REFUSED:
        if content.get(name) is not None:
            raise error(f"{path}: {name} is not supported; remove the line")
    names = content.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise error(f"{path}: architectures is {shown(names)}; expected a list of class names")
    for name in ("id2label", "label2id"):
        labels = content.get(name)
        if labels is not None and not (isinstance(labels, dict) and len(labels) <= _MOST_LABELS):
            raise error(f"{path}: {name} is {shown(labels)}; expected a table of class names")
    # Leading underscores are the library's own state; auto_map names code, and ours needs none.
    return {
        name: value
        for name, value in content.items()
        if not name.startswith("_") and name != "auto_map"
    }
