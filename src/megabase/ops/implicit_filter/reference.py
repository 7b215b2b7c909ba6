"""The definition of the implicit filter: a network of the lag with sines, times a decaying window.

Shape suffixes: M lags, E features, W width, C filter channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def implicit_filter_reference(
    z_ME: Tensor,
    t_M: Tensor,
    freq_W: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    last_CW: Tensor,
    rate_C: Tensor | None,
    shift: float,
) -> Tensor:
    """Compute the taps; see :func:`megabase.ops.implicit_filter.implicit_filter`."""
    h_MW = z_ME
    for w, b in zip(weights, biases, strict=True):
        h_MW = torch.sin(freq_W * F.linear(h_MW, w, b))
    k_CM = last_CW @ h_MW.t()
    return k_CM if rate_C is None else k_CM * (torch.exp(-rate_C[:, None] * t_M) + shift)
