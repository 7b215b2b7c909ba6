"""Digests of rows, settings and start models, by which runs are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megabase.data.labeled import LabeledSequences

if TYPE_CHECKING:
    from megabase.tasks.finetune_config import FinetuneConfig

__all__ = ["describe_data", "digest", "hash_of", "start_model", "start_of"]


def digest(rows: LabeledSequences) -> str:
    """Give a hash of sequences, labels and class names."""
    found = hashlib.sha256()
    for array in (rows.codes, rows.offsets, np.ascontiguousarray(rows.labels)):
        found.update(array.tobytes())
    found.update("\0".join(rows.classes).encode())
    return found.hexdigest()[:16]


def hash_of(values: Any) -> str:
    """Give a short hash of plain values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def describe_data(
    splits: Mapping[str, LabeledSequences], start: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Give what a run is made from: its rows with their checksum, and the model it starts from."""
    described: dict[str, Any] = {"kind": splits["train"].kind}
    described["classes"] = list(splits["train"].classes)
    if start:
        described["start"] = dict(start)
    for name, split in splits.items():
        found = hashlib.sha256()
        for array in (split.codes, split.offsets, np.ascontiguousarray(split.labels)):
            found.update(array.tobytes())
        described[name] = {
            "source": str(Path(split.text.source).absolute()),
            "rows": len(split),
            "bases": int(split.offsets[-1]),
            "sha256": found.hexdigest(),
            "classes": split.class_counts(),
            **({"unknown_labels": split.unknown} if split.unknown else {}),
        }
    return described


def start_of(config: FinetuneConfig) -> dict[str, str]:
    """Give name and checksum of the model that a run starts from; nothing for fresh weights."""
    if config.model is None or config.from_scratch:
        return {}
    return start_model(config.model)


def start_model(model: str) -> dict[str, str]:
    """Give name and checksum of the weights of a model."""
    from megabase.models.auto import resolve_model
    from megabase.models.checkpoints.checks import weights_checksum

    return {"model": model, "sha256": weights_checksum(resolve_model(model))}
