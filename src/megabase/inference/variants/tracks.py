"""What an allele does to predicted tracks: their sums over the windows of REF and ALT.

Both windows begin at one base of the genome and are read up to one base of it: REF loses as many of
its last bases as an insertion adds, ALT as many as a deletion takes. Bins are counted from the
start of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from megabase.inference.prediction import Predictor
from megabase.inference.variants.methods import Method
from megabase.inference.variants.windows import AlleleWindows


def compare_tracks(
    ready: Predictor, windows: Sequence[AlleleWindows], methods: Sequence[Method]
) -> NDArray[np.float64]:
    """Give the values of methods, each for all tracks: (windows, methods * tracks)."""
    rows: dict[bytes, NDArray[np.uint8]] = {}  # equal ones are read once
    names: dict[bytes, str] = {}
    pairs: list[list[bytes]] = []
    for one in windows:
        longer = one.alt_bases - one.ref_bases
        alleles = (one.ref[: one.stop - max(0, longer)], one.alt[: one.stop - max(0, -longer)])
        pairs.append([codes.tobytes() for codes in alleles])
        for key, codes in zip(pairs[-1], alleles, strict=True):
            rows[key] = codes
            names.setdefault(key, one.name)
    if not windows:
        return np.zeros((0, len(methods) * len(ready.classes)))
    means = ready.sequences(list(rows.values()), list(names.values()))
    sums = {key: len(key) * mean for key, mean in zip(rows, means, strict=True)}
    both = torch.from_numpy(np.array([[sums[key] for key in pair] for pair in pairs]))
    values = [method.value(both[:, 0], both[:, 1]) for method in methods]
    return torch.cat(values, 1).numpy()
