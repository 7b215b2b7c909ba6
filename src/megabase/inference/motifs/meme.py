"""Motifs of a MEME file: https://meme-suite.org/meme/doc/meme-format.html (the minimal format)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megabase.errors import InputError
from megabase.genome.alphabet import BASES
from megabase.genome.files import numbered_lines

Matrix = NDArray[np.float64]
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)  # not below 0
_ROUNDING = 0.02  # by which a row of printed probabilities may miss 1


def read_motifs(path: str | Path) -> dict[str, Matrix]:
    """Read the motifs of a MEME file, plain or gzip.

    The names are those of the MOTIF lines (``MA0099.3 FOS::JUN``), the matrices float64 (width, 4),
    rows of probabilities of A, C, G, T. InputError, with the line, for a row of others, a name that
    is there twice, and a file without motifs.
    """
    found: dict[str, list[list[float]]] = {}
    name, inside = "", False
    for number, line in numbered_lines(Path(path)):
        words, where = line.split(), f"{path}, line {number:,}"
        inside = inside and bool(words) and words[0][0] in "0123456789.+-"
        if words[:1] == ["MOTIF"]:
            name = " ".join(words[1:])
            if not name or name in found:
                raise InputError(f"{where}: expected a name of a motif of its own, found {name!r}")
            found[name] = []
        elif inside and name:
            row = [float(word) for word in words if _NUMBER.fullmatch(word)]
            if len(row) != len(words) or len(row) != 4 or not abs(sum(row) - 1) < _ROUNDING:
                raise InputError(
                    f"{where}: expected probabilities of A, C, G, T, found {line.strip()[:60]!r}"
                )
            found[name].append(row)
        inside = inside or line.startswith("letter-probability matrix")
    if not found or not all(found.values()):
        bare = "".join(f" of {name}" for name, rows in found.items() if not rows)
        raise InputError(f"{path}: holds no letter-probability matrix{bare} (MEME format)")
    return {name: np.array(rows) / np.sum(rows, 1, keepdims=True) for name, rows in found.items()}


def consensus(motif: Matrix) -> str:
    """Give the most probable base of each position."""
    return "".join(BASES[base] for base in motif.argmax(1))
