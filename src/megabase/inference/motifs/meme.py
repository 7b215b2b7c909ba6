"""Motifs of a MEME file: https://meme-suite.org/meme/doc/meme-format.html (the minimal format)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import BASES
from megabase.genome.files import numbered_lines

Matrix = NDArray[np.float64]
_ROUNDING = 0.02  # by which a row of printed probabilities may miss 1


def read_motifs(path: str | Path) -> dict[str, Matrix]:
    """Read the motifs of a MEME file, plain or gzip.

    The names are those of the MOTIF lines (``MA0099.3 FOS::JUN``), the matrices float64 (width, 4),
    rows of probabilities of A, C, G, T. InputError, with the line, for a row of others, a name that
    is there twice, and a file without motifs.
    """
    found: dict[str, list[list[float]]] = {}
    rows: list[list[float]] | None = None
    inside = False
    for number, line in numbered_lines(Path(path)):
        words, where = line.split(), f"{path}, line {number:,}"
        inside = bool(words) and inside and words[0][0] in "0123456789.+-"
        if words[:1] == ["MOTIF"]:
            name, rows = " ".join(words[1:]), []
            if not name or name in found:
                raise InputError(f"{where}: expected a name of a motif of its own, found {name!r}")
            found[name] = rows
        elif inside and rows is not None:
            try:
                rows.append([float(word) for word in words])
            except ValueError:
                rows.append([])
            if len(rows[-1]) != 4 or min(rows[-1]) < 0 or not abs(sum(rows[-1]) - 1) < _ROUNDING:
                raise InputError(
                    f"{where}: expected probabilities of A, C, G, T, found {line.strip()[:60]!r}"
                )
        inside = inside or line.startswith("letter-probability matrix")
    if not found or not all(found.values()):
        bare = "".join(f" of {name}" for name, rows in found.items() if not rows)
        raise InputError(f"{path}: holds no letter-probability matrix{bare} (MEME format)")
    return {name: np.array(rows) / np.sum(rows, 1, keepdims=True) for name, rows in found.items()}


def consensus(motif: Matrix) -> str:
    """Give the most probable base of each position."""
    return "".join(BASES[base] for base in motif.argmax(1))
