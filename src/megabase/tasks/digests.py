"""Short hashes of rows and of settings, by which runs of a sweep are told apart."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from megabase.data.labelled import LabelledSequences

__all__ = ["digest", "hash_of"]


def digest(rows: LabelledSequences) -> str:
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
