"""Tables of sequences that a model learns to tell apart in a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def write_table(
    path: Path, rows: int, seed: int, length: int | tuple[int, int] = (24, 25),
    header: str = "seq,label", labels: Callable[[int], str] = [",a", ",g"].__getitem__,
) -> str:  # fmt: skip
    """Write sequences rich in A (even rows) and in G; `labels` gives the cells behind one."""
    rng = np.random.default_rng(seed)
    lines = [header]
    for i in range(rows):
        weights = [0.1, 0.2, 0.5, 0.2] if i % 2 else [0.5, 0.2, 0.1, 0.2]
        size = length if isinstance(length, int) else rng.integers(*length)
        lines.append("".join(rng.choice(list("ACGT"), size=size, p=weights)) + labels(i % 2))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return str(path)
