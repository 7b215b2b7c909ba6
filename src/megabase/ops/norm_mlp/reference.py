"""The definition of LayerNorm followed by the MLP of a block.

Shape suffixes: D width, E inner width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def norm_mlp_reference(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w1_ED: Tensor,
    b1_E: Tensor,
    w2_DE: Tensor,
    b2_D: Tensor,
    product: torch.dtype | None = None,
) -> Tensor:
    """Normalise and apply the MLP; see :func:`megabase.ops.norm_mlp.norm_mlp`."""
    dtype = w1_ED.dtype if product is None else product
    if norm_w is not None:
        x = F.layer_norm(x.to(norm_w.dtype), x.shape[-1:], norm_w, norm_b, eps)
    a = F.linear(x.to(dtype), w1_ED.to(dtype), b1_E.to(dtype))
    return F.linear(F.gelu(a, approximate="tanh"), w2_DE.to(dtype), b2_D.to(dtype))
