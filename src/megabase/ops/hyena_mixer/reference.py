"""The definition of the Hyena mixer of order 2, by the definitions of its parts.

Shape suffixes: B batch, L positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from megabase.ops.long_conv.reference import long_conv_reference
from megabase.ops.short_conv.reference import short_conv_reference


def hyena_mixer_reference(
    x: Tensor,
    norm_w: Tensor | None,
    norm_b: Tensor | None,
    eps: float,
    w_in: Tensor,
    b_in: Tensor,
    w: Tensor,
    b: Tensor,
    k: Tensor,
    skip: Tensor | None,
    w_out: Tensor,
    b_out: Tensor,
    *,
    centred: bool = False,
    two_sided: bool = False,
    product: torch.dtype | None = None,
) -> Tensor:
    """Normalise, project, convolve and gate, project; see :func:`hyena_mixer`."""
    dtype = w_in.dtype if product is None else product
    if norm_w is not None:
        x = F.layer_norm(x.to(norm_w.dtype), x.shape[-1:], norm_w, norm_b, eps)
    p_BPL = F.linear(x.to(dtype), w_in.to(dtype), b_in.to(dtype)).transpose(1, 2)
    first_BDL, gate_BDL, v_BDL = short_conv_reference(p_BPL, w, b, centred=centred).chunk(3, dim=1)
    g_BDL = first_BDL * long_conv_reference(v_BDL * gate_BDL, k, skip, two_sided=two_sided)
    return F.linear(g_BDL.to(dtype).transpose(1, 2), w_out.to(dtype), b_out.to(dtype))
